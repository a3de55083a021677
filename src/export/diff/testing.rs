//! Small models on disk for the tests of diffs.

use crate::export::{ShardWriter, TensorSpec};
use crate::model::{RawTensor, StoredDtype};
use crate::ops::testing::normal;
use crate::ops::Bytes;
use half::{bf16, f16};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A tensor to write.
pub(super) type Tensor = (String, RawTensor);

/// `values` in `dtype`.
pub(super) fn tensor(name: &str, dtype: StoredDtype, shape: &[usize], values: &[f32]) -> Tensor {
    assert_eq!(values.len(), shape.iter().product::<usize>());
    let bytes: Vec<u8> = match dtype {
        StoredDtype::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        StoredDtype::F16 => values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
        StoredDtype::Bf16 => values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
        StoredDtype::U8 => values.iter().map(|v| v.to_bits() as u8).collect(),
    };
    (name.into(), RawTensor { dtype, shape: shape.to_vec(), bytes: Bytes::owned(&bytes) })
}

/// Normal values of standard deviation 0.05, and the same a little moved where `tuned` says so.
pub(super) fn weights(name: &str, count: usize, tuned: bool) -> Vec<f32> {
    let moves = normal(&format!("{name} moved"), count);
    let values = normal(name, count).into_iter().zip(moves);
    values.map(|(value, moved)| 0.05 * value + if tuned { 2e-4 * moved } else { 0.0 }).collect()
}

/// Writes a model folder: weights, config.json, tokenizer.json and an empty LICENSE.
pub(super) fn write_model(folder: &Path, tensors: &[Tensor], shard_bytes: u64) -> PathBuf {
    std::fs::create_dir_all(folder).unwrap();
    let spec = |(name, tensor): &Tensor| vec![TensorSpec::new(name, tensor.dtype, tensor.shape.clone())];
    let mut writer = ShardWriter::new(folder, "model", tensors.iter().map(spec).collect(), shard_bytes).unwrap();
    tensors.iter().for_each(|(name, tensor)| writer.write(name, tensor).unwrap());
    writer.finish().unwrap();
    for (name, content) in [("config.json", "{\"model_type\": \"llama\"}\n"), ("tokenizer.json", "{}"), ("LICENSE", "")]
    {
        std::fs::write(folder.join(name), content).unwrap();
    }
    folder.to_path_buf()
}

/// Every file of a folder.
pub(super) fn content(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.map(|path| (path.file_name().unwrap().to_string_lossy().into(), std::fs::read(&path).unwrap())).collect()
}
