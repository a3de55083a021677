//! Values: block formulas, the order of rows, dtypes.

use super::*;
use crate::model::gguf::blocks::BlockType;
use crate::model::gguf::testing::Builder;
use crate::model::gguf::GgufFile;
use safetensors::SafeTensors;

fn open(builder: &Builder) -> GgufFile {
    let (_place, path) = builder.write();
    GgufFile::open(&path).unwrap()
}

fn tensor(kind: u32, shape: &[usize], bytes: &[u8], form: Form) -> crate::error::Result<RawTensor> {
    let mut builder = Builder::new();
    builder.tensor("t", kind, shape, bytes);
    let file = open(&builder);
    file.values("t", file.tensor("t").unwrap(), form)
}

#[test]
fn blocks_give_the_values_that_llama_cpp_gives() {
    let file = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/gguf/blocks.safetensors")).unwrap();
    let golden = SafeTensors::deserialize(&file).unwrap();
    let kinds =
        [("Q4_0", 2), ("Q4_1", 3), ("Q5_0", 6), ("Q5_1", 7), ("Q8_0", 8), ("Q2_K", 10), ("Q3_K", 11), ("Q4_K", 12)];
    for (name, number) in kinds.into_iter().chain([("Q5_K", 13), ("Q6_K", 14)]) {
        assert_eq!(BlockType::of(number).unwrap().name(), name);
        let blocks = golden.tensor(&format!("{name}.blocks")).unwrap();
        let expected = golden.tensor(&format!("{name}.values")).unwrap();
        let expected: Vec<f32> =
            expected.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        let shape = [blocks.shape()[0], expected.len() / blocks.shape()[0]];
        let values = tensor(number, &shape, blocks.data(), Form::default()).unwrap();
        assert_eq!(values.shape, shape);
        for (i, (found, expected)) in values.bytes.as_f32().iter().zip(&expected).enumerate() {
            let close = (found - expected).abs() <= 1e-6 * expected.abs().max(0.01);
            assert!(close, "{name}: value {i}: expected {expected}, found {found}");
        }
    }
}

#[test]
fn plain_floats_stay_in_the_mapping() {
    let bytes: Vec<u8> = (0..64).collect();
    for (kind, dtype, shape) in
        [(0, StoredDtype::F32, [4, 4]), (1, StoredDtype::F16, [8, 4]), (30, StoredDtype::Bf16, [8, 4])]
    {
        let tensor = tensor(kind, &shape, &bytes, Form::default()).unwrap();
        assert!(tensor.bytes.is_mapped() && tensor.dtype == dtype);
        assert_eq!(&tensor.bytes[..], &bytes[..]);
    }
}

/// What the converter to GGUF does to the rows of q and k.
fn interleaved(rows: usize, heads: usize) -> Vec<usize> {
    let pairs = rows / heads / 2;
    let mut order = Vec::new();
    for head in 0..heads {
        for pair in 0..pairs {
            for half in 0..2 {
                order.push(head * 2 * pairs + half * pairs + pair);
            }
        }
    }
    order
}

#[test]
fn rows_of_queries_and_keys_are_put_back() {
    for (rows, heads, cols) in [(8, 2, 3), (12, 1, 1), (512, 4, 320)] {
        // The value of a row is its number in the checkpoint.
        let stored: Vec<f32> =
            interleaved(rows, heads).into_iter().flat_map(|row| (0..cols).map(move |_| row as f32)).collect();
        let bytes: Vec<u8> = stored.iter().flat_map(|value| value.to_le_bytes()).collect();
        let form = Form { heads, dtype: None };
        let found = tensor(0, &[rows, cols], &bytes, form).unwrap();
        let expected: Vec<f32> = (0..rows).flat_map(|row| (0..cols).map(move |_| row as f32)).collect();
        assert_eq!(found.bytes.as_f32(), expected);
    }
}

#[test]
fn a_bias_of_queries_is_put_back_value_by_value() {
    let stored: Vec<u8> = interleaved(8, 2).into_iter().flat_map(|row| (row as f32).to_le_bytes()).collect();
    let found = tensor(0, &[8], &stored, Form { heads: 2, dtype: None }).unwrap();
    assert_eq!((&found.shape[..], found.bytes.as_f32()), (&[8][..], &[0., 1., 2., 3., 4., 5., 6., 7.][..]));
}

#[test]
fn rows_of_blocks_are_put_back_too() {
    // Rows of one Q4_0 block of 18 bytes, d = row number, every q = 9, so that x = d.
    let block = |row: usize| [&f16::from_f32(row as f32).to_le_bytes()[..], &[0x99; 16]].concat();
    let bytes: Vec<u8> = interleaved(12, 2).into_iter().flat_map(block).collect();
    let found = tensor(2, &[12, 32], &bytes, Form { heads: 2, dtype: Some(SourceDtype::Bf16) }).unwrap();
    let expected: Vec<u16> = (0..12).flat_map(|row| [bf16::from_f32(row as f32).to_bits(); 32]).collect();
    assert_eq!(found.bytes.as_u16(), expected);
}

#[test]
fn values_are_rounded_to_the_dtype_that_is_asked_for() {
    let values = [1.0f32, -2.5, 1.000_976_6, 1e-30];
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let read = |dtype| tensor(0, &[2, 2], &bytes, Form { heads: 0, dtype: Some(dtype) }).unwrap();
    let halves: Vec<u16> = values.iter().map(|&value| f16::from_f32(value).to_bits()).collect();
    assert_eq!(read(SourceDtype::F16).bytes.as_u16(), halves);
    let brains: Vec<u16> = values.iter().map(|&value| bf16::from_f32(value).to_bits()).collect();
    assert_eq!(read(SourceDtype::Bf16).bytes.as_u16(), brains);
    let wide = tensor(
        1,
        &[4],
        &halves.iter().flat_map(|bits| bits.to_le_bytes()).collect::<Vec<_>>(),
        Form { heads: 0, dtype: Some(SourceDtype::F32) },
    );
    assert_eq!(wide.unwrap().bytes.as_f32()[..3], [1.0, -2.5, 1.000_976_6]);
}

#[test]
fn a_value_without_room_in_the_dtype_is_an_error() {
    let bytes: Vec<u8> = [1.0f32, 70_000.0].iter().flat_map(|value| value.to_le_bytes()).collect();
    let error = tensor(0, &[2], &bytes, Form { heads: 0, dtype: Some(SourceDtype::F16) }).err().unwrap();
    assert!(error.message().ends_with("model.gguf: tensor t: the value 70000 does not fit in F16"), "{error}");
    tensor(0, &[2], &bytes, Form { heads: 0, dtype: Some(SourceDtype::Bf16) }).unwrap();
}
