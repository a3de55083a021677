//! Opening sound checkpoints in every layout, and refusing damaged ones without a panic.

use super::*;
use serde_json::json;
use std::fs;

type Entries<'a> = &'a [(&'a str, &'a str, &'a [usize], &'a [u8])];

/// A safetensors file written by hand, so that it can be wrong where a writer would not be.
fn safetensors(entries: Entries<'_>) -> Vec<u8> {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, dtype, shape, bytes) in entries {
        let start = data.len();
        data.extend_from_slice(bytes);
        header.insert((*name).into(), json!({"dtype": dtype, "shape": shape, "data_offsets": [start, data.len()]}));
    }
    with_header(&serde_json::Value::Object(header).to_string(), &data)
}

fn with_header(header: &str, data: &[u8]) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend_from_slice(data);
    file
}

fn f32s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn folder(files: &[(&str, Vec<u8>)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        fs::write(folder.path().join(name), bytes).unwrap();
    }
    folder
}

fn opened(files: &[(&str, Vec<u8>)]) -> (tempfile::TempDir, Checkpoint) {
    let folder = folder(files);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    (folder, checkpoint)
}

fn refused(files: &[(&str, Vec<u8>)], parts: &[&str]) -> Error {
    let folder = folder(files);
    let error = Checkpoint::open(folder.path()).err().expect("must be refused");
    for part in parts {
        assert!(error.message().contains(part), "expected {part:?} in: {error}");
    }
    error
}

fn two_tensors() -> Vec<u8> {
    safetensors(&[("a", "F32", &[2, 2], &f32s(&[1.0, 2.0, 3.0, 4.0])), ("b", "BF16", &[3], &[0, 0x3f, 1, 2, 3, 4])])
}

fn index(map: serde_json::Value) -> Vec<u8> {
    json!({"metadata": {"total_size": 1}, "weight_map": map}).to_string().into_bytes()
}

fn shard(name: &str, value: f32) -> Vec<u8> {
    safetensors(&[(name, "F32", &[1], &f32s(&[value]))])
}

#[test]
fn the_three_layouts_of_a_folder_open_alike() {
    let sharded = [
        ("model.safetensors.index.json", index(json!({"a": "x-1.safetensors", "b": "x-2.safetensors"}))),
        ("x-1.safetensors", shard("a", 1.0)),
        ("x-2.safetensors", shard("b", 2.0)),
    ];
    let (_one, sharded) = opened(&sharded);
    let whole = safetensors(&[("b", "F32", &[1], &f32s(&[2.0])), ("a", "F32", &[1], &f32s(&[1.0]))]);
    let (_two, named) = opened(&[("model.safetensors", whole.clone()), ("other.safetensors", vec![1])]);
    let (three, other) = opened(&[("weights.safetensors", whole), ("adapter_model.safetensors", vec![1])]);
    for checkpoint in [&sharded, &named, &other] {
        assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(checkpoint.get("b").unwrap().bytes.as_f32(), [2.0]);
        for depth in [HashDepth::Full, HashDepth::Sampled] {
            assert_eq!(base_hash(checkpoint, depth).unwrap(), base_hash(&sharded, depth).unwrap());
        }
    }
    let file = Checkpoint::open(&three.path().join("weights.safetensors")).unwrap();
    assert_eq!((file.folder(), file.files().count()), (three.path(), 1));
}

#[test]
fn values_are_read_where_they_lie_unless_misaligned() {
    let mut odd = String::from("{\"p\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},");
    odd += "\"q\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[1,9]}}";
    odd.extend(std::iter::repeat_n(' ', (8 - odd.len() % 8) % 8));
    let data = [vec![9u8], f32s(&[5.0, 6.0])].concat();
    let (_folder, checkpoint) = opened(&[("model.safetensors", with_header(&odd, &data))]);
    let (byte, values) = (checkpoint.get("p").unwrap(), checkpoint.get("q").unwrap());
    assert!(byte.bytes.is_mapped() && !values.bytes.is_mapped());
    assert_eq!((byte.bytes[0], values.bytes.as_f32()), (9, &[5.0, 6.0][..]));
}

#[test]
fn a_tensor_outlives_its_checkpoint() {
    let (folder, checkpoint) = opened(&[("model.safetensors", two_tensors())]);
    let tensor = checkpoint.get("a").unwrap();
    drop((checkpoint, folder));
    assert_eq!(tensor.bytes.len(), 16);
    assert_eq!(f32::from_le_bytes(tensor.bytes[12..16].try_into().unwrap()), 4.0);
}

#[test]
fn expectations_say_what_is_there_instead() {
    let mut file = two_tensors();
    let eight = safetensors(&[("i", "I64", &[1], &[0; 8])]);
    let (_folder, checkpoint) = opened(&[("model.safetensors", std::mem::take(&mut file))]);
    assert_eq!(checkpoint.expect("a", &[2, 2]).unwrap().dtype, StoredDtype::F32);
    assert_eq!(checkpoint.expect("b", &[3]).unwrap().dtype, StoredDtype::Bf16);
    let error = checkpoint.expect("a", &[4]).err().unwrap();
    assert!(error.message().ends_with("model.safetensors: tensor a: expected F32, F16 or BF16 [4], found F32 [2, 2]"));
    assert!(checkpoint.get("c").err().unwrap().message().ends_with("tensor c is missing"));
    assert!(checkpoint.find("c").unwrap().is_none());
    let (_folder, checkpoint) = opened(&[("model.safetensors", eight)]);
    assert!(checkpoint.get("i").err().unwrap().message().contains("found I64"));
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let file = two_tensors();
    for len in 0..file.len() {
        let error = refused(&[("model.safetensors", file[..len].to_vec())], &["model.safetensors"]);
        assert!(error.hint_text().is_some(), "{len} bytes: {error}");
    }
    let longer = [file, vec![0]].concat();
    refused(&[("model.safetensors", longer)], &["22 bytes", "23 bytes of data"]);
}

#[test]
fn a_header_with_any_byte_flipped_never_panics() {
    let file = two_tensors();
    let header = 8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    for at in 0..header {
        for bit in 0..8 {
            let mut damaged = file.clone();
            damaged[at] ^= 1 << bit;
            let folder = folder(&[("model.safetensors", damaged)]);
            // A flip may leave a sound file: another name, or F16 for BF16's size. Then everything must be readable.
            let Ok(checkpoint) = Checkpoint::open(folder.path()) else { continue };
            for name in checkpoint.names() {
                if let Ok(tensor) = checkpoint.get(name) {
                    assert_eq!(tensor.bytes.len(), tensor.shape.iter().product::<usize>() * tensor.dtype.size());
                }
            }
        }
    }
}

#[test]
fn wrong_offsets_are_refused_with_the_tensor() {
    let header = |a: (usize, usize), b: (usize, usize)| {
        let entry = |(start, end): (usize, usize)| {
            let len = end.saturating_sub(start);
            json!({"dtype": "U8", "shape": [len], "data_offsets": [start, end]})
        };
        json!({"a": entry(a), "b": entry(b)}).to_string()
    };
    let file = |a, b| vec![("model.safetensors", with_header(&header(a, b), &[0; 16]))];
    refused(&file((0, 8), (6, 16)), &["tensor b at byte 6 overlaps a, which ends at 8"]);
    refused(&file((0, 8), (9, 16)), &["tensor b at byte 9 leaves a gap after a"]);
    refused(&file((1, 8), (8, 16)), &["tensor a at byte 1 leaves a gap after the start"]);
    refused(&file((0, 8), (8, 17)), &["tensor b ends at byte 17", "16 bytes"]);
    refused(&file((0, 8), (8, 15)), &["15 bytes", "16 bytes"]);
    refused(&file((8, 0), (8, 16)), &["tensor a", "do not fit"]);
    let huge = json!({"a": {"dtype": "F32", "shape": [1u64 << 62, 8], "data_offsets": [0, 16]}}).to_string();
    refused(&[("model.safetensors", with_header(&huge, &[0; 16]))], &["tensor a", "do not fit"]);
    let wrong = json!({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 16]}}).to_string();
    refused(&[("model.safetensors", with_header(&wrong, &[0; 16]))], &["tensor a: F32 [3] at bytes 0 to 16"]);
}

#[test]
fn indexes_that_lie_are_refused() {
    let index_name = "model.safetensors.index.json";
    let a = ("x-1.safetensors", shard("a", 1.0));
    let missing = index(json!({"a": "x-1.safetensors", "b": "x-2.safetensors", "c": "x-3.safetensors"}));
    refused(&[(index_name, missing), a.clone()], &["expected 3 shards", "x-2.safetensors, x-3.safetensors"]);
    let wrong = index(json!({"a": "x-1.safetensors", "b": "x-1.safetensors"}));
    refused(&[(index_name, wrong), a.clone()], &["tensor b: expected in x-1.safetensors, found in no shard"]);
    let swapped = index(json!({"a": "x-2.safetensors", "b": "x-1.safetensors"}));
    refused(
        &[(index_name, swapped), a.clone(), ("x-2.safetensors", shard("b", 1.0))],
        &["tensor a", "x-1.safetensors"],
    );
    let twice = index(json!({"a": "x-1.safetensors", "b": "x-2.safetensors"}));
    refused(&[(index_name, twice), a.clone(), ("x-2.safetensors", shard("a", 1.0))], &["tensor a is also in"]);
    let extra = index(json!({"a": "x-1.safetensors"}));
    let two = safetensors(&[("a", "U8", &[1], &[0]), ("z", "U8", &[1], &[0])]);
    refused(&[(index_name, extra), ("x-1.safetensors", two)], &["tensor z is not in the weight_map"]);
    for shard in ["../x-1.safetensors", "/etc/passwd", "", "..", "s/x"] {
        refused(&[(index_name, index(json!({"a": shard}))), a.clone()], &["weight_map.a", "a file name"]);
    }
    for text in ["", "{}", "[]", "{\"weight_map\": {}}", "{\"weight_map\": {\"a\": 1}}"] {
        refused(&[(index_name, text.into()), a.clone()], &[index_name]);
    }
}

#[test]
fn folders_without_safetensors_say_what_they_are() {
    let pickle = refused(&[("pytorch_model.bin", vec![0])], &["pytorch_model.bin"]);
    assert!(pickle.hint_text().unwrap().contains("save_pretrained"));
    let adapter = [("adapter_config.json", vec![]), ("adapter_model.safetensors", vec![0])];
    refused(&adapter, &["adapter, expected a model"]);
    refused(&[("m.gguf", vec![0])], &["m.gguf"]);
    refused(&[("a.safetensors", vec![]), ("b.safetensors", vec![])], &["a.safetensors, b.safetensors"]);
    refused(&[], &["no weights"]);
    let error = Checkpoint::open(Path::new("/nonexistent/model")).err().unwrap();
    assert!(error.message().contains("no such model folder"));
}

#[test]
fn the_first_value_that_is_not_finite_is_found_in_every_dtype() {
    let count = 200_000;
    for (dtype, one, nan, infinity) in [
        (StoredDtype::F32, &1f32.to_le_bytes()[..], &f32::NAN.to_le_bytes()[..], &f32::NEG_INFINITY.to_le_bytes()[..]),
        (StoredDtype::F16, &0x7bffu16.to_le_bytes(), &0x7e01u16.to_le_bytes(), &0xfc00u16.to_le_bytes()),
        (StoredDtype::Bf16, &0x7f7fu16.to_le_bytes(), &0x7fc0u16.to_le_bytes(), &0xff80u16.to_le_bytes()),
    ] {
        let size = dtype.size();
        let mut bytes = one.repeat(count);
        let tensor = |bytes: &[u8]| RawTensor { dtype, shape: vec![count], bytes: Bytes::owned(bytes) };
        assert_eq!(first_non_finite(&tensor(&bytes)), None);
        for (at, value) in [(count - 1, nan), (150_001, infinity), (70_003, nan), (0, infinity)] {
            bytes[at * size..(at + 1) * size].copy_from_slice(value);
            assert_eq!(first_non_finite(&tensor(&bytes)), Some(at), "{dtype:?}");
        }
        let error = check_finite("w", &tensor(&bytes)).unwrap_err();
        assert!(error.message().contains("tensor w [200000]: value 0"), "{error}");
    }
}

#[test]
fn the_hash_sees_every_name_shape_dtype_and_byte() {
    let hash = |entries: Entries<'_>, depth| {
        let (_folder, checkpoint) = opened(&[("model.safetensors", safetensors(entries))]);
        base_hash(&checkpoint, depth).unwrap()
    };
    let data = vec![7u8; 100_000];
    let mut other = data.clone();
    other[62_000] = 8; // between the samples
    for depth in [HashDepth::Full, HashDepth::Sampled] {
        let base = hash(&[("w", "U8", &[100_000], &data)], depth);
        assert_eq!(base.len(), 64);
        assert_eq!(base, hash(&[("w", "U8", &[100_000], &data)], depth));
        assert_ne!(base, hash(&[("v", "U8", &[100_000], &data)], depth));
        assert_ne!(base, hash(&[("w", "U8", &[10, 10_000], &data)], depth));
        assert_ne!(base, hash(&[("w", "F16", &[50_000], &data)], depth));
        assert_eq!(base == hash(&[("w", "U8", &[100_000], &other)], depth), depth == HashDepth::Sampled);
        let mut end = data.clone();
        end[99_999] = 8;
        assert_ne!(base, hash(&[("w", "U8", &[100_000], &end)], depth));
    }
}
