//! Diffs of the Alpaca kind: a model folder whose tensors are `tuned − base` as floats.
//!
//! Recovered as its scripts do it: `base + diff` in f32, rounded once to the dtype of the new model; rows that the base
//! does not have (an added padding token) start from the mean of the base's rows. A float difference does not hold the
//! tuned bits, so nothing proves the result. What the scripts offer is the sum of all values within 0.01 (Alpaca 7B:
//! 50637.1836); it is compared when asked for, here in f64. Reference: stanford_alpaca `weight_diff.py`.

use crate::adapter::peft::{EMBEDDING, HEAD};
use crate::checkpoint::AtomicFolder;
use crate::error::{Error, Result};
use crate::export::companions;
use crate::export::merge::MergeDtype;
use crate::export::quantize::natural_key;
use crate::export::safetensors::{write_json, ShardWriter, TensorSpec};
use crate::model::{Checkpoint, ModelConfig, RawTensor, StoredDtype};
use crate::ops::Bytes;
use crate::quant::Values;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rayon::prelude::*;
use std::ops::Range;
use std::path::PathBuf;

/// The tolerance of Alpaca's sum.
pub const SUM_TOLERANCE: f64 = 1e-2;

/// Values that are added at once by one thread.
const PIECE: usize = 1 << 16;

/// What to recover.
#[derive(Debug, Clone)]
pub struct FloatJob {
    /// Folder of the base.
    pub base: PathBuf,
    /// Folder of the differences, with the tuned model's config and tokenizer.
    pub diff: PathBuf,
    /// Folder to write; must not exist.
    pub out: PathBuf,
    /// dtype of the recovered model; `None`: each tensor's in the diff.
    pub dtype: Option<MergeDtype>,
    /// What all values must add up to, within a tolerance.
    pub sum: Option<(f64, f64)>,
    /// Largest shard, in bytes of tensors.
    pub shard_bytes: u64,
}

/// What was recovered.
#[derive(Debug, Clone, PartialEq)]
pub struct FloatApplied {
    /// Tensors written.
    pub tensors: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Σ of all values written.
    pub sum: f64,
    /// Tensors of the base that the diff does not name; the new model does not have them.
    pub left_out: Vec<String>,
}

/// Recovers the tuned model. `progress` is told the tensors done, their number, and the name of the last one.
///
/// # Errors
/// A tensor that the base does not have, or in another shape; a value that is not finite in its dtype; another sum than
/// the expected one; `out` exists; the disk.
pub fn apply(job: &FloatJob, progress: &mut dyn FnMut(usize, usize, &str)) -> Result<FloatApplied> {
    let (base, diff) = (Checkpoint::open(&job.base)?, Checkpoint::open(&job.diff)?);
    let config = ModelConfig::from_folder(&job.diff)?;
    let mut names: Vec<&str> = diff.names().collect();
    names.sort_by_cached_key(|name| natural_key(name));
    let specs = names.iter().map(|name| Ok(vec![spec(name, &base, &diff, job.dtype)?])).collect::<Result<_>>()?;
    let mut folder = AtomicFolder::begin_new(&job.out)?;
    let mut writer = ShardWriter::new(folder.temporary(), "model", specs, job.shard_bytes)?;
    let mut sum = 0.0;
    for (done, name) in names.iter().enumerate() {
        let tensor = diff.get(name)?;
        let base = find_base(name, &base)?;
        let (recovered, part) = recover(&base, &tensor, job.dtype).map_err(|e| e.at(format!("tensor {name}")))?;
        writer.write(name, &recovered)?;
        sum += part;
        progress(done + 1, names.len(), name);
    }
    if let Some((expected, tolerance)) = job.sum {
        if (sum - expected).abs() > tolerance {
            let what = format!("the values add up to {sum:.4}, expected {expected} within {tolerance}");
            return Err(Error::file(&job.diff, what).hint("this is not the diff's base, or a file is damaged"));
        }
    }
    let bytes = writer.finish()?.tensor_bytes;
    let mut json = config.raw;
    if let Some(dtype) = job.dtype {
        let key = if json.get("dtype").is_some() { "dtype" } else { "torch_dtype" };
        json[key] = crate::quant::file::torch_name(dtype).into();
    }
    write_json(&folder.temporary().join("config.json"), &json)?;
    companions::copy(&job.diff, &mut folder)?;
    folder.commit()?;
    let left_out = base.names().filter(|name| !diff.contains(name)).map(String::from).collect();
    Ok(FloatApplied { tensors: names.len(), bytes, sum, left_out })
}

/// The base's tensor of this name, or the embedding for a head that the base ties to it.
fn find_base(name: &str, base: &Checkpoint) -> Result<RawTensor> {
    match base.find(name)? {
        None if name == HEAD => base.get(EMBEDDING),
        None => base.get(name),
        Some(tensor) => Ok(tensor),
    }
}

fn spec(name: &str, base: &Checkpoint, diff: &Checkpoint, dtype: Option<MergeDtype>) -> Result<TensorSpec> {
    let tensor = diff.get(name)?;
    let like = find_base(name, base)?;
    let (from, to) = (&like.shape, &tensor.shape);
    let added_rows = from.len() == 2 && to.len() == 2 && from[1] == to[1] && from[0] > 0 && from[0] < to[0];
    if from != to && !added_rows || like.values().is_none() {
        let found = format!("{} {:?}", like.dtype.name(), like.shape);
        let what = format!("tensor {name}: expected floats {:?} as in the diff, found {found}", tensor.shape);
        return Err(Error::file(base.path_of(name), what).hint("this is not the base that the diff was made from"));
    }
    let Some(values) = tensor.values() else {
        return Err(Error::file(diff.path_of(name), format!("tensor {name}: expected floats, found bytes"))
            .hint("`llamantino diff make` writes one file: name that file"));
    };
    Ok(TensorSpec::new(name, StoredDtype::from(dtype.unwrap_or(values.dtype())), tensor.shape.clone()))
}

/// `base + diff`, and the sum of its values.
fn recover(base: &RawTensor, diff: &RawTensor, dtype: Option<MergeDtype>) -> Result<(RawTensor, f64)> {
    let dtype = dtype.map_or(diff.dtype, StoredDtype::from);
    let (size, elements) = (dtype.size(), diff.elements());
    let mean = if base.elements() < elements { column_means(base) } else { Vec::new() };
    let mut sums = Vec::new();
    let bytes = Bytes::filled(elements * size, |bytes| {
        let piece = |(index, bytes): (usize, &mut [u8])| {
            let start = index * PIECE;
            let range = start..start + bytes.len() / size;
            let mut values = widened(base, range.start..range.end.min(base.elements()));
            values.extend((range.start + values.len()..range.end).map(|i| mean[i % mean.len()]));
            values.iter_mut().zip(widened(diff, range)).for_each(|(value, diff)| *value += diff);
            round(&values, dtype, bytes)
        };
        sums = bytes.par_chunks_mut(PIECE * size).enumerate().map(piece).collect();
    });
    let mut sum = 0.0;
    for part in sums {
        sum += part?;
    }
    Ok((RawTensor { dtype, shape: diff.shape.clone(), bytes }, sum))
}

/// Means of the columns of `[rows, cols]`, added up row by row in f64.
fn column_means(tensor: &RawTensor) -> Vec<f32> {
    let (rows, cols) = (tensor.shape[0], tensor.shape[1]);
    let mut sums = vec![0.0f64; cols];
    for row in 0..rows {
        let values = widened(tensor, row * cols..(row + 1) * cols);
        sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += f64::from(value));
    }
    sums.into_iter().map(|sum| (sum / rows as f64) as f32).collect()
}

/// Elements as f32; none for a range that ends before it starts.
fn widened(tensor: &RawTensor, range: Range<usize>) -> Vec<f32> {
    if range.start >= range.end {
        return Vec::new();
    }
    let mut values = vec![0.0; range.len()];
    match tensor.values() {
        Some(Values::F32(stored)) => values.copy_from_slice(&stored[range]),
        Some(Values::F16(stored)) => {
            let stored: Vec<f16> = stored[range].iter().map(|&bits| f16::from_bits(bits)).collect();
            stored.convert_to_f32_slice(&mut values);
        }
        Some(Values::Bf16(stored)) => {
            values.iter_mut().zip(&stored[range]).for_each(|(value, &bits)| *value = bf16::from_bits(bits).to_f32());
        }
        None => {}
    }
    values
}

/// Rounds, writes, and adds up what was written.
fn round(values: &[f32], dtype: StoredDtype, bytes: &mut [u8]) -> Result<f64> {
    let mut sum = 0.0;
    for (value, bytes) in values.iter().zip(bytes.chunks_exact_mut(dtype.size())) {
        let rounded = match dtype {
            StoredDtype::F16 => {
                let rounded = f16::from_f32(*value);
                bytes.copy_from_slice(&rounded.to_le_bytes());
                rounded.to_f32()
            }
            StoredDtype::Bf16 => {
                let rounded = bf16::from_f32(*value);
                bytes.copy_from_slice(&rounded.to_le_bytes());
                rounded.to_f32()
            }
            _ => {
                bytes.copy_from_slice(&value.to_le_bytes());
                *value
            }
        };
        if !rounded.is_finite() {
            return Err(Error::failed(format!("the value {value} is not finite as {}", dtype.name())));
        }
        sum += f64::from(rounded);
    }
    Ok(sum)
}
