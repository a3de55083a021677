//! Quantising whole folders. (Equality with what transformers writes is in tests/parity.rs.)

use super::*;
use crate::error::ErrorKind;
use crate::model::weights::{base_hash, HashDepth};
use crate::model::StoredDtype;
use crate::ops::bytes::Bytes;
use crate::ops::random::RandomStream;
use serde_json::json;
use std::path::PathBuf;

/// A one-block model in bf16; `change` may damage it before it is written.
fn base(place: &Path, change: impl Fn(&mut Vec<(String, RawTensor)>)) -> PathBuf {
    let folder = place.join("base");
    std::fs::create_dir(&folder).unwrap();
    let config = json!({
        "model_type": "llama", "vocab_size": 32, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 1,
        "num_attention_heads": 3, "num_key_value_heads": 1, "torch_dtype": "bfloat16", "x": 1
    });
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    std::fs::write(folder.join("tokenizer.json"), "{}").unwrap();
    let model = ModelConfig::from_folder(&folder).unwrap();
    let mut shapes: Vec<(String, Vec<usize>)> = vec![
        ("model.embed_tokens.weight".into(), vec![32, 48]),
        ("model.norm.weight".into(), vec![48]),
        ("lm_head.weight".into(), vec![32, 48]),
    ];
    shapes.extend(model.linear_shapes(0).map(|(name, shape)| (name, shape.to_vec())));
    let mut tensors: Vec<_> =
        shapes.into_iter().enumerate().map(|(i, (name, shape))| (name, random(&shape, i as u64))).collect();
    change(&mut tensors);
    let specs = tensors.iter().map(|(name, t)| vec![TensorSpec::new(name, t.dtype, t.shape.clone())]).collect();
    let mut writer = ShardWriter::new(&folder, "model", specs, SHARD_BYTES).unwrap();
    tensors.iter().for_each(|(name, tensor)| writer.write(name, tensor).unwrap());
    writer.finish().unwrap();
    folder
}

fn random(shape: &[usize], seed: u64) -> RawTensor {
    let stream = RandomStream::new(seed, 0);
    let count = shape.iter().product::<usize>() as u64;
    let bytes: Vec<u8> = (0..count).flat_map(|i| half::bf16::from_f32(stream.normal(i)).to_le_bytes()).collect();
    RawTensor { dtype: StoredDtype::Bf16, shape: shape.to_vec(), bytes: Bytes::owned(&bytes) }
}

fn run(base: &Path, out: &Path, config: QuantConfig) -> Result<Summary> {
    quantize_folder(base, out, config, &mut |_, _, _| {})
}

#[test]
fn a_folder_is_quantised_and_the_rest_is_kept() {
    let place = tempfile::tempdir().unwrap();
    let base = base(place.path(), |_| {});
    for double in [false, true] {
        let out = place.path().join(format!("out-{double}"));
        let mut calls = Vec::new();
        let config = QuantConfig { block: 128, double };
        let summary = quantize_folder(&base, &out, config, &mut |done, all, name| {
            calls.push((done, all, name.to_string()));
        })
        .unwrap();
        assert_eq!((summary.quantized, summary.plain), (7, 3));
        assert_eq!(summary.companions, ["tokenizer.json"]);
        assert_eq!(calls.len(), 10);
        assert_eq!((calls[9].0, calls[9].1), (summary.source_bytes, summary.source_bytes));
        let (model, source) = (ModelConfig::from_folder(&out).unwrap(), Checkpoint::open(&base).unwrap());
        let result = Checkpoint::open(&out).unwrap();
        assert!(model.quantized && model.raw["x"] == 1);
        assert_eq!(model.raw["quantization_config"]["bnb_4bit_compute_dtype"], "bfloat16");
        for name in source.names() {
            let tensor = source.get(name).unwrap();
            if !result.is_nf4(name) {
                assert_eq!(result.get(name).unwrap().bytes[..], tensor.bytes[..], "{name}");
                continue;
            }
            let (rows, cols) = (tensor.shape[0], tensor.shape[1]);
            let expected = quantize(tensor.values().unwrap(), rows, cols, config).unwrap();
            let found = result.expect_nf4(name, rows, cols).unwrap();
            assert_eq!(found.codes[..], expected.codes[..], "{name}");
            assert!(found.codes.is_mapped());
            assert!((0..rows * cols).all(|i| found.value(i).to_bits() == expected.value(i).to_bits()));
        }
        assert_eq!(model.linear_shapes(0).iter().filter(|(name, _)| result.is_nf4(name)).count(), 7);
    }
}

#[test]
fn the_same_folder_gives_the_same_files() {
    let place = tempfile::tempdir().unwrap();
    let base = base(place.path(), |_| {});
    let outs = ["a", "b"].map(|name| place.path().join(name));
    let [first, second] = outs.each_ref().map(|out| run(&base, out, QuantConfig::default()).unwrap().written);
    assert_eq!(first, second);
    let [first, second] = outs.map(|out| base_hash(&Checkpoint::open(&out).unwrap(), HashDepth::Full).unwrap());
    assert_eq!(first, second);
}

type Change<'a> = &'a dyn Fn(&mut Vec<(String, RawTensor)>);

#[test]
fn damaged_sources_are_refused_and_leave_nothing() {
    let cases: [(&str, Change<'_>); 4] = [
        ("q_proj.weight is missing", &|tensors| tensors.retain(|(name, _)| !name.contains("q_proj"))),
        ("k_proj.weight: expected F32, F16 or BF16 [16, 48], found BF16 [48, 16]", &|tensors| {
            tensors.iter_mut().filter(|(name, _)| name.contains("k_proj")).for_each(|(_, t)| t.shape.reverse());
        }),
        ("up_proj.weight: the value at flat index 49 (row 1, column 1) is not finite", &|tensors| {
            put_nan(tensors, "up_proj", 49);
        }),
        ("tensor model.norm.weight [48]: value 7 is not finite", &|tensors| put_nan(tensors, "model.norm", 7)),
    ];
    for (message, change) in cases {
        let place = tempfile::tempdir().unwrap();
        let base = base(place.path(), change);
        let error = run(&base, &place.path().join("out"), QuantConfig::default()).unwrap_err();
        assert!(error.message().contains(message), "expected {message:?} in: {error}");
        assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 1, "only the base stays");
    }
}

fn put_nan(tensors: &mut [(String, RawTensor)], part: &str, index: usize) {
    for (_, tensor) in tensors.iter_mut().filter(|(name, _)| name.contains(part)) {
        let mut bytes = tensor.bytes.to_vec();
        bytes[2 * index..2 * index + 2].copy_from_slice(&half::bf16::NAN.to_le_bytes());
        tensor.bytes = Bytes::owned(&bytes);
    }
}

#[test]
fn a_quantised_model_a_taken_name_and_a_wrong_block_are_refused() {
    let place = tempfile::tempdir().unwrap();
    let base = base(place.path(), |_| {});
    let out = place.path().join("out");
    let error = run(&base, &out, QuantConfig { block: 48, double: true }).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage);
    run(&base, &out, QuantConfig::default()).unwrap();
    assert!(run(&base, &out, QuantConfig::default()).unwrap_err().message().contains("exists already"));
    let error = run(&out, &place.path().join("again"), QuantConfig::default()).unwrap_err();
    assert!(error.message().contains("quantized already"), "{error}");
}

#[test]
fn layers_are_written_in_their_numeric_order() {
    let mut names = ["model.layers.10.a", "model.layers.2.b", "model.layers.2.a", "lm_head", "model.norm"];
    names.sort_by_cached_key(|name| natural_key(name));
    assert_eq!(names, ["lm_head", "model.layers.2.a", "model.layers.2.b", "model.layers.10.a", "model.norm"]);
}
