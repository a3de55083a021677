//! The stored form: what is written is read back, and what is damaged is refused with its place.

use super::file::*;
use super::*;
use crate::error::Result;
use crate::ops::bytes::Bytes;
use crate::ops::random::RandomStream;
use std::collections::BTreeMap;

type Parts = BTreeMap<String, RawTensor>;

fn matrix(double: bool) -> Nf4Matrix {
    let stream = RandomStream::new(1, 1);
    let bits: Vec<u16> = (0..24 * 80).map(|i| half::bf16::from_f32(stream.normal(i)).to_bits()).collect();
    quantize(Values::Bf16(&bits), 24, 80, QuantConfig { block: 64, double }).unwrap()
}

fn parts(double: bool) -> Parts {
    stored_parts("l.weight", &matrix(double)).into_iter().collect()
}

fn read(parts: &Parts) -> Result<Nf4Matrix> {
    read_weight("l.weight", &|name| Ok(parts.get(name).cloned()))
}

fn message(parts: &Parts) -> String {
    read(parts).err().expect("must be refused").message().to_string()
}

fn with_state(text: &str) -> Parts {
    let mut parts = parts(true);
    let bytes = Bytes::owned(text.as_bytes());
    parts.insert(state_key("l.weight"), RawTensor { dtype: StoredDtype::U8, shape: vec![text.len()], bytes });
    parts
}

fn state_text() -> String {
    String::from_utf8(parts(true)[&state_key("l.weight")].bytes.to_vec()).unwrap()
}

#[test]
fn what_is_stored_is_read_back() {
    for double in [false, true] {
        let (written, read) = (matrix(double), read(&parts(double)).unwrap());
        assert_eq!((read.rows, read.cols, read.block, read.dtype), (24, 80, 64, SourceDtype::Bf16));
        assert_eq!(&read.codes[..], &written.codes[..]);
        assert!((0..30).all(|b| read.scale(b).to_bits() == written.scale(b).to_bits()));
    }
}

#[test]
fn planned_parts_are_the_stored_ones() {
    for double in [false, true] {
        let planned = planned_parts("l.weight", 24, 80, QuantConfig { block: 64, double });
        let stored = stored_parts("l.weight", &matrix(double));
        for ((name, dtype, shape), (stored_name, tensor)) in planned.into_iter().zip(stored) {
            assert_eq!((&name, dtype), (&stored_name, tensor.dtype));
            let is_state = name == state_key("l.weight");
            assert!(if is_state { shape[0] >= tensor.shape[0] } else { shape == tensor.shape }, "{name}");
        }
    }
}

#[test]
fn the_longest_state_fits_its_bound() {
    let mut matrix = matrix(true);
    (matrix.rows, matrix.cols) = (usize::MAX, usize::MAX);
    if let Scales::Double { offset, nested_block, .. } = &mut matrix.scales {
        (*offset, *nested_block) = (-1.234_567_8e-38, usize::MAX);
    }
    matrix.block = usize::MAX;
    let state = stored_parts("w", &matrix).pop().unwrap().1;
    assert!(state.bytes.len() <= STATE_BYTES, "{}", state.bytes.len());
}

#[test]
fn offsets_are_spelled_as_python_spells_them() {
    let spelled = |offset: f32| {
        let mut matrix = matrix(true);
        if let Scales::Double { offset: o, .. } = &mut matrix.scales {
            *o = offset;
        }
        let state = stored_parts("w", &matrix).pop().unwrap().1;
        let text = String::from_utf8(state.bytes.to_vec()).unwrap();
        text.split("\"nested_offset\": ").nth(1).unwrap().trim_end_matches('}').to_string()
    };
    // Expected: repr(float(numpy.float32(x))).
    for (offset, expected) in [
        (0.25, "0.25"),
        (0.0, "0.0"),
        (1.0, "1.0"),
        (0.1, "0.10000000149011612"),
        (1e-4, "9.999999747378752e-05"),
        (2f32.powi(-14), "6.103515625e-05"),
        (2f32.powi(-20), "9.5367431640625e-07"),
        (1e-38, "9.999999350456404e-39"),
        (1e15, "999999986991104.0"),
        (1e30, "1.0000000150474662e+30"),
    ] {
        assert_eq!(spelled(offset), expected);
    }
}

#[test]
fn every_missing_part_is_named() {
    for double in [false, true] {
        let all = parts(double);
        for name in all.keys() {
            let mut parts = all.clone();
            parts.remove(name);
            assert_eq!(message(&parts), format!("tensor {name} is missing"));
        }
    }
}

#[test]
fn every_part_of_a_wrong_length_or_dtype_is_refused() {
    for double in [false, true] {
        let all = parts(double);
        for (name, tensor) in &all {
            for (dtype, len) in
                [(tensor.dtype, (tensor.bytes.len() / 2) & !3), (StoredDtype::F16, tensor.bytes.len() & !1)]
            {
                if name == "l.weight" && dtype == StoredDtype::F16 {
                    continue; // the same bytes in wider words are a legal storage
                }
                let mut parts = all.clone();
                let shape = vec![len / dtype.size()];
                parts.insert(name.clone(), RawTensor { dtype, shape, bytes: Bytes::owned(&tensor.bytes[..len]) });
                assert!(message(&parts).contains(name), "{name}: {}", message(&parts));
            }
        }
    }
}

#[test]
fn fp4_is_refused_by_name() {
    let mut parts = parts(true);
    let state = parts.remove(&state_key("l.weight")).unwrap();
    parts.insert("l.weight.quant_state.bitsandbytes__fp4".into(), state);
    assert!(message(&parts).contains("fp4, expected nf4"));
    assert!(message(&with_state(&state_text().replace("nf4", "fp4"))).contains("quant_type: expected \"nf4\""));
}

#[test]
fn wrong_fields_of_the_state_are_refused_with_their_key() {
    let text = state_text();
    for (from, to, key) in [
        ("64", "63", "blocksize"),
        ("64", "\"64\"", "blocksize"),
        ("bfloat16", "int8", "dtype"),
        ("[24, 80]", "[24, 80, 1]", "shape"),
        ("[24, 80]", "[24, -80]", "shape"),
        ("[24, 80]", "[0, 80]", "shape"),
        ("[24, 80]", "[9223372036854775807, 4]", "shape"),
        ("[24, 80]", "[24, 81]", "l.weight"),
        ("256", "0", "nested_blocksize"),
        ("float32", "float16", "nested_dtype"),
        ("\"nested_offset\": ", "\"nested_offset\": 1e300, \"x\": ", "nested_offset"),
        ("\"nested_offset\"", "\"x\"", "nested_offset"),
        ("\"quant_type\"", "\"x\"", "quant_type"),
    ] {
        let changed = text.replacen(from, to, 1);
        assert_ne!(changed, text, "{from}");
        let message = message(&with_state(&changed));
        assert!(message.contains(key), "{from} -> {to}: {message}");
    }
    for damaged in ["", "{", "[]", "null", "\u{fffd}"] {
        assert!(message(&with_state(damaged)).contains("JSON"), "{damaged:?}");
    }
}

#[test]
fn cutting_or_flipping_the_state_never_panics() {
    let text = state_text().into_bytes();
    for i in 0..text.len() {
        for bytes in
            [text[..i].to_vec(), text.iter().enumerate().map(|(j, b)| if i == j { b ^ 1 } else { *b }).collect()]
        {
            let mut parts = parts(true);
            let state = RawTensor { dtype: StoredDtype::U8, shape: vec![bytes.len()], bytes: Bytes::owned(&bytes) };
            parts.insert(state_key("l.weight"), state);
            let _ = read(&parts); // a flipped digit of the offset is still a legal state
        }
    }
}

#[test]
fn another_codebook_and_scales_that_are_not_finite_are_refused() {
    for (part, entry, double) in
        [("quant_map", 3, true), ("nested_quant_map", 7, true), ("nested_absmax", 0, true), ("absmax", 5, false)]
    {
        let mut parts = parts(double);
        let name = format!("l.weight.{part}");
        let tensor = parts.get_mut(&name).unwrap();
        let mut bytes = tensor.bytes.to_vec();
        bytes[4 * entry..4 * entry + 4].copy_from_slice(&f32::NAN.to_le_bytes());
        tensor.bytes = Bytes::owned(&bytes);
        let message = message(&parts);
        assert!(message.contains(&format!("tensor {name}: entry {entry}")), "{message}");
    }
}

#[test]
fn only_bitsandbytes_nf4_configs_pass() {
    let good = quantization_config(QuantConfig::default(), SourceDtype::Bf16);
    check_quantization_config(&good).unwrap();
    for (key, value) in [
        ("quant_method", serde_json::json!("gptq")),
        ("load_in_4bit", serde_json::json!(false)),
        ("bnb_4bit_quant_type", serde_json::json!("fp4")),
        ("bnb_4bit_quant_type", serde_json::Value::Null),
    ] {
        let mut changed = good.clone();
        changed[key] = value;
        let error = check_quantization_config(&changed).unwrap_err();
        assert!(error.message().contains(key) && error.hint_text().is_some(), "{error}");
    }
    let mut old = good;
    old.as_object_mut().unwrap().remove("quant_method");
    check_quantization_config(&old).unwrap();
    assert!(check_quantization_config(&serde_json::json!("int4")).is_err());
}
