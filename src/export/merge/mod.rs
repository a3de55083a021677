//! An adapter folded into its base: a folder that `transformers` loads without PEFT.
//!
//! Arithmetic in f32, each value rounded once; one tensor in memory at a time (the next is merged while the last is
//! written). The folder appears when it is complete and has been read back. Reference: PEFT `merge_and_unload`.

mod tensor;

use super::folder::NewFolder;
use super::quantize::natural_key;
use super::safetensors::{write_json, ShardWriter, TensorSpec};
use crate::adapter::peft::{self, LinearAdapter, PeftAdapter, SavedWeight, EMBEDDING, HEAD};
use crate::error::{Error, Result};
use crate::model::weights::{base_hash, check_finite, HashDepth};
use crate::model::{Checkpoint, ModelConfig, RawTensor, StoredDtype};
use crate::ops::{MatRef, WeightRef};
use crate::quant::file::PART_SUFFIXES;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub use crate::quant::SourceDtype as MergeDtype;

/// What to merge, and how.
#[derive(Debug, Clone)]
pub struct MergeJob {
    /// Folder of the model that the adapter was trained on.
    pub base: PathBuf,
    /// Folder of the adapter.
    pub adapter: PathBuf,
    /// Folder to write; must not exist.
    pub out: PathBuf,
    /// dtype of all weights; `None`: each keeps that of the base (of an NF4 weight: what it was quantised from).
    pub dtype: Option<MergeDtype>,
    /// Largest shard, in bytes of tensors.
    pub shard_bytes: u64,
    /// Merge even if the adapter was trained on another base.
    pub any_base: bool,
    /// Allow an NF4 base: its rounded weights become the model's.
    pub dequantize_base: bool,
}

/// What was done.
#[derive(Debug, Clone)]
pub struct Summary {
    /// Tensors written.
    pub tensors: usize,
    /// Weights that an adapter changed or replaced.
    pub merged: usize,
    /// Bytes of all tensors.
    pub bytes: u64,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// Merges. `progress` is told the tensors done, their number, and the name of the last one.
///
/// # Errors
/// The base is not the adapter's, or NF4, and the job does not allow it; anything of the adapter that does not fit the
/// base; a merged value that is not finite in its dtype; `out` exists; the disk.
pub fn merge_folder(job: &MergeJob, progress: &mut dyn FnMut(usize, usize, &str)) -> Result<Summary> {
    let config = ModelConfig::from_folder(&job.base)?;
    if config.quantized && !job.dequantize_base {
        return Err(Error::usage(format!("{}: the base is in NF4, whose rounding would stay", job.base.display()))
            .hint("merge into the unquantised model (with --any-base), or accept the loss with --dequantize-base"));
    }
    let checkpoint = Checkpoint::open(&job.base)?;
    let adapter = peft::read(&job.adapter)?;
    let warnings = check_base(job, &checkpoint, &adapter)?;
    let plan = Plan::new(&config, &checkpoint, &adapter, job.dtype)?;
    let folder = NewFolder::create(&job.out)?;
    let bytes = plan.write(folder.path(), job.shard_bytes, progress)?;
    let json = merged_config(&config, plan.unties, job.dtype);
    write_json(&folder.path().join("config.json"), &json)?;
    folder.copy_companions(&job.base)?;
    ModelConfig::from_folder(folder.path())?;
    Checkpoint::open(folder.path())?;
    folder.commit()?;
    let merged = plan.items.iter().filter(|item| item.source.is_merged()).count();
    Ok(Summary { tensors: plan.items.len(), merged, bytes, warnings })
}

/// Compares the base with the one that the adapter was trained on.
fn check_base(job: &MergeJob, checkpoint: &Checkpoint, adapter: &PeftAdapter) -> Result<Vec<String>> {
    let Some(provenance) = &adapter.provenance else {
        let file = job.adapter.join(peft::PROVENANCE_FILE);
        let warning = "no such file, so nothing tells whether the adapter was trained on this base";
        return Ok(vec![format!("{}: {warning}", file.display())]);
    };
    let found = base_hash(checkpoint, HashDepth::Full)?;
    if found == provenance.base_hash {
        return Ok(Vec::new());
    }
    let what = format!(
        "{}: not the base of the adapter, which was trained on {} (hash {}, this one has {})",
        job.base.display(),
        provenance.base,
        short(&provenance.base_hash),
        short(&found)
    );
    match job.any_base {
        true => Ok(vec![what]),
        false => Err(Error::failed(what).hint("name that model as the base, or insist with --any-base")),
    }
}

fn short(hash: &str) -> &str {
    hash.get(..12).unwrap_or(hash)
}

/// Every tensor of the merged model.
struct Plan<'a> {
    checkpoint: &'a Checkpoint,
    items: Vec<Item<'a>>,
    /// Whether the base's head was its embedding, and the merged model's is not.
    unties: bool,
}

struct Item<'a> {
    name: String,
    source: Source<'a>,
    shape: Vec<usize>,
    /// `None`: not floating-point, copied as it is.
    dtype: Option<MergeDtype>,
}

/// Where a merged tensor comes from.
enum Source<'a> {
    /// A tensor of the base, of this name.
    Stored(String),
    /// A linear's weight, with its adapter.
    Linear { shape: [usize; 2], adapter: Option<&'a LinearAdapter> },
    /// A weight trained as a whole.
    Saved(&'a SavedWeight),
}

impl Source<'_> {
    fn is_merged(&self) -> bool {
        matches!(self, Source::Linear { adapter: Some(_), .. } | Source::Saved(_))
    }
}

impl<'a> Plan<'a> {
    fn new(
        config: &ModelConfig,
        checkpoint: &'a Checkpoint,
        adapter: &'a PeftAdapter,
        dtype: Option<MergeDtype>,
    ) -> Result<Plan<'a>> {
        let mut linears = linears(config, adapter)?;
        let (rows, cols) = (config.vocab_size, config.hidden_size);
        let embedding = adapter.for_weight(EMBEDDING, rows, cols)?;
        let head = adapter.for_weight(HEAD, rows, cols)?;
        // Under PEFT saved copies are not tied; two equal ones are as good as tied.
        let unties = config.tie_word_embeddings && embedding != head;
        let mut names: Vec<&str> = checkpoint.names().filter(|name| !is_part(name, checkpoint)).collect();
        if unties && !checkpoint.contains(HEAD) {
            names.push(HEAD);
        }
        let mut source = |name: &str| match (linears.remove(name), name, embedding, head) {
            (Some(linear), ..) => linear,
            (_, EMBEDDING, Some(weight), _) | (_, HEAD, _, Some(weight)) => Source::Saved(weight),
            (_, HEAD, ..) if unties => Source::Stored(EMBEDDING.into()),
            _ => Source::Stored(name.into()),
        };
        names.sort_by_cached_key(|name| natural_key(name));
        let items = names.into_iter().map(|name| Item::new(name, source(name), checkpoint, dtype));
        let items = items.collect::<Result<_>>()?;
        match linears.keys().next() {
            Some(name) => Err(Error::file(checkpoint.folder(), format!("tensor {name} is missing"))),
            None => Ok(Plan { checkpoint, items, unties }),
        }
    }

    /// Writes all tensors into `folder`; gives their bytes.
    fn write(&self, folder: &Path, shard_bytes: u64, progress: &mut dyn FnMut(usize, usize, &str)) -> Result<u64> {
        let groups = self.items.iter().map(|item| vec![item.spec()]).collect();
        let mut writer = ShardWriter::new(folder, "model", groups, shard_bytes)?;
        let mut ready: Option<(&str, RawTensor)> = None;
        let mut done = 0;
        for item in self.items.iter().map(Some).chain([None]) {
            let prepare = || item.map(|item| item.read(self.checkpoint)).transpose();
            let write = || ready.iter().try_for_each(|(name, tensor)| writer.write(name, tensor));
            let (next, written) = rayon::join(prepare, write);
            written?;
            if let Some((name, _)) = &ready {
                done += 1;
                progress(done, self.items.len(), name);
            }
            ready = item.map(|item| item.name.as_str()).zip(next?);
        }
        Ok(writer.finish()?.tensor_bytes)
    }
}

/// The linears of the blocks, each with its adapter, by the name of its weight.
fn linears<'a>(config: &ModelConfig, adapter: &'a PeftAdapter) -> Result<BTreeMap<String, Source<'a>>> {
    let mut linears = BTreeMap::new();
    let mut names = Vec::new();
    for (weight, shape) in (0..config.layers).flat_map(|layer| config.linear_shapes(layer)) {
        let name = weight.strip_suffix(".weight").unwrap_or(&weight).to_string();
        let adapter = adapter.for_linear(&name, shape[0], shape[1])?;
        names.push(name);
        linears.insert(weight, Source::Linear { shape, adapter });
    }
    adapter.check_names(names.iter().map(String::as_str))?;
    Ok(linears)
}

/// Whether a tensor belongs to a 4-bit weight of another name.
fn is_part(name: &str, checkpoint: &Checkpoint) -> bool {
    PART_SUFFIXES.iter().any(|suffix| name.strip_suffix(suffix).is_some_and(|weight| checkpoint.is_nf4(weight)))
}

impl<'a> Item<'a> {
    fn new(name: &str, source: Source<'a>, checkpoint: &Checkpoint, wanted: Option<MergeDtype>) -> Result<Item<'a>> {
        let stored = |name: &str| checkpoint.get(name).map(|tensor| (float_dtype(&tensor), tensor.shape));
        let (dtype, shape) = match &source {
            Source::Linear { shape: [rows, cols], .. } if checkpoint.is_nf4(name) => {
                (Some(checkpoint.expect_nf4(name, *rows, *cols)?.dtype), vec![*rows, *cols])
            }
            Source::Linear { shape, .. } => {
                let tensor = checkpoint.expect(name, shape)?;
                (float_dtype(&tensor), tensor.shape)
            }
            // A head that the base does not store gets the dtype of the embedding that it was.
            Source::Saved(weight) => {
                let like = if checkpoint.contains(name) { name } else { EMBEDDING };
                (stored(like)?.0, vec![weight.rows, weight.cols])
            }
            Source::Stored(name) => stored(name)?,
        };
        Ok(Item { name: name.into(), source, shape, dtype: dtype.map(|dtype| wanted.unwrap_or(dtype)) })
    }

    fn spec(&self) -> TensorSpec {
        TensorSpec::new(&self.name, self.dtype.map_or(StoredDtype::U8, StoredDtype::from), self.shape.clone())
    }

    fn read(&self, checkpoint: &Checkpoint) -> Result<RawTensor> {
        let place = || format!("{}: tensor {}", checkpoint.path_of(&self.name).display(), self.name);
        self.merged(checkpoint).map_err(|error| error.at(place()))
    }

    fn merged(&self, checkpoint: &Checkpoint) -> Result<RawTensor> {
        let Some(dtype) = self.dtype else { return checkpoint.get(&self.name) };
        match &self.source {
            Source::Stored(name) => {
                let tensor = checkpoint.get(name)?;
                check_finite(name, &tensor)?;
                tensor::convert(&tensor, dtype)
            }
            Source::Saved(weight) => {
                tensor::merge(WeightRef::F32(MatRef::new(&weight.values, weight.rows, weight.cols)), None, dtype)
            }
            Source::Linear { shape: [rows, cols], adapter } => {
                let delta = adapter.map(LinearAdapter::delta);
                if checkpoint.is_nf4(&self.name) {
                    let matrix = checkpoint.expect_nf4(&self.name, *rows, *cols)?;
                    return tensor::merge(WeightRef::Nf4(&matrix), delta, dtype);
                }
                let tensor = checkpoint.get(&self.name)?;
                match tensor.values() {
                    Some(values) => tensor::merge(tensor::weight_ref(values, *rows, *cols), delta, dtype),
                    None => Ok(tensor),
                }
            }
        }
    }
}

fn float_dtype(tensor: &RawTensor) -> Option<MergeDtype> {
    tensor.values().map(|values| values.dtype())
}

/// The base's config.json for the merged weights.
fn merged_config(config: &ModelConfig, unties: bool, dtype: Option<MergeDtype>) -> Value {
    let mut json = config.json_with_quantization(None);
    if unties {
        json["tie_word_embeddings"] = false.into();
    }
    if let Some(dtype) = dtype {
        // transformers 5 writes `dtype`, older versions `torch_dtype`.
        let key = if json.get("dtype").is_some() { "dtype" } else { "torch_dtype" };
        json[key] = dtype_name(dtype).into();
    }
    json
}

/// The name in a config.json.
fn dtype_name(dtype: MergeDtype) -> &'static str {
    match dtype {
        MergeDtype::F32 => "float32",
        MergeDtype::F16 => "float16",
        MergeDtype::Bf16 => "bfloat16",
    }
}

#[cfg(test)]
mod tests;
