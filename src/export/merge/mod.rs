//! An adapter folded into its base: a folder that `transformers` loads without PEFT.
//!
//! Arithmetic in f32, each value rounded once; a few rows in memory at a time (the next are merged while the last are
//! hashed and written). The folder appears when it is complete and has been read back. Reference: PEFT `merge_and_unload`.

pub(super) mod plan;
mod tensor;

use super::companions;
use super::safetensors::{write_json, ShardWriter};
use crate::adapter::peft::{self, PeftAdapter};
use crate::checkpoint::AtomicFolder;
use crate::error::{Error, Result};
use crate::model::weights::{base_hash, HashDepth};
use crate::model::{Checkpoint, ModelConfig, OpenModel};
use plan::Plan;
use serde_json::Value;
use std::path::{Path, PathBuf};

pub use crate::quant::SourceDtype as MergeDtype;

/// What to merge, and how.
#[derive(Debug, Clone)]
pub struct MergeJob {
    /// The model that the adapter was trained on: a folder or a GGUF file.
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
    let base = OpenModel::open(&job.base)?;
    refuse_rounded(&job.base, &base.config, job.dequantize_base)?;
    let adapter = peft::read(&job.adapter)?;
    let warnings = check_base(&adapter, &base, job.any_base)?;
    let plan = Plan::new(&base.config, base.stored(), Some(&adapter), job.dtype)?;
    let mut folder = AtomicFolder::begin_new(&job.out)?;
    let bytes = write(&plan, folder.temporary(), job.shard_bytes, progress)?;
    let json = merged_config(&base.config, plan.unties, job.dtype);
    write_json(&folder.temporary().join("config.json"), &json)?;
    base.with_description(|description| companions::copy(description, &mut folder))?;
    ModelConfig::from_folder(folder.temporary())?;
    Checkpoint::open(folder.temporary())?;
    folder.commit()?;
    let merged = plan.items.iter().filter(|item| item.source.is_merged()).count();
    Ok(Summary { tensors: plan.items.len(), merged, bytes, warnings })
}

/// Refuses an NF4 base unless its rounding is accepted.
pub(super) fn refuse_rounded(base: &Path, config: &ModelConfig, accepted: bool) -> Result<()> {
    match config.quantized && !accepted {
        true => Err(Error::usage(format!("{}: the base is in NF4, whose rounding would stay", base.display()))
            .hint("start from the unquantised model (with --any-base), or accept the loss with --dequantize-base")),
        false => Ok(()),
    }
}

/// Compares the base with the one that the adapter was trained on.
///
/// # Errors
/// It is another one, and `any_base` does not allow that.
pub(super) fn check_base(adapter: &PeftAdapter, base: &OpenModel, any_base: bool) -> Result<Vec<String>> {
    let Some(provenance) = &adapter.provenance else {
        let file = adapter.folder.join(peft::PROVENANCE_FILE);
        let warning = "no such file, so nothing tells whether the adapter was trained on this base";
        return Ok(vec![format!("{}: {warning}", file.display())]);
    };
    match provenance.mismatch(base.path(), &base_hash(base.stored(), HashDepth::Full)?) {
        None => Ok(Vec::new()),
        Some(what) if any_base => Ok(vec![what]),
        Some(what) => Err(Error::failed(what).hint("name that model as the base, or insist with --any-base")),
    }
}

/// Writes all tensors into `folder`; gives their bytes.
fn write(
    plan: &Plan<'_>,
    folder: &Path,
    shard_bytes: u64,
    progress: &mut dyn FnMut(usize, usize, &str),
) -> Result<u64> {
    let groups = plan.items.iter().map(|item| vec![item.spec()]).collect();
    let mut writer = ShardWriter::new(folder, "model", groups, shard_bytes)?;
    for (index, item) in plan.items.iter().enumerate() {
        item.write(plan.base, &mut writer)?;
        item.release(plan.base);
        progress(index + 1, plan.items.len(), &item.name);
    }
    Ok(writer.finish()?.tensor_bytes)
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
