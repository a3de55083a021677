//! An adapter as a GGUF file that llama.cpp puts on its base at run time (`--lora`).
//!
//! `W' = W + alpha/r · B·A`: A `[r, in]` and B `[out, r]` of each linear under its tensor's name with `.lora_a` and
//! `.lora_b`, rows of B interleaved as those of their weight, one `adapter.lora.alpha` for all. Reference: llama.cpp's
//! `convert_lora_to_gguf.py` and `llama-adapter.cpp`.

use super::encode::encode;
use super::metadata::text;
use super::writer::{GgufWriter, TensorPlan, Value};
use crate::adapter::peft::{self, LinearAdapter, PeftAdapter};
use crate::error::{Error, Result};
use crate::export::merge::check_base;
use crate::model::gguf::{layout, BlockType, GgufFile, Place};
use crate::model::{ModelConfig, OpenModel, RawTensor, StoredDtype};
use crate::ops::Bytes;
use std::path::{Path, PathBuf};

/// What to export.
#[derive(Debug, Clone)]
pub struct AdapterJob {
    /// The model that the adapter was trained on: a folder or a GGUF file.
    pub model: PathBuf,
    /// Folder of the adapter.
    pub adapter: PathBuf,
    /// File to write; must not exist.
    pub out: PathBuf,
    /// Export even if the adapter was trained on another base.
    pub any_base: bool,
}

/// What was done.
#[derive(Debug, Clone)]
pub struct AdapterSummary {
    /// Linears with an adapter.
    pub linears: usize,
    /// Length of the file.
    pub bytes: u64,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// Exports the adapter, in f32.
///
/// # Errors
/// An adapter of another base, with DoRA or with weights trained as a whole; `out` exists; the disk.
pub fn export_adapter(job: &AdapterJob) -> Result<AdapterSummary> {
    super::expect_gguf_name(&job.out)?;
    let model = OpenModel::open(&job.model)?;
    let adapter = peft::read(&job.adapter)?;
    refuse_what_the_format_lacks(&adapter)?;
    let warnings = check_base(&adapter, &model, job.any_base)?;
    let linears = linears(&model.config, &adapter)?;
    let alpha = common_alpha(&linears);
    let metadata = vec![
        text("general.architecture", "llama"),
        text("general.type", "adapter"),
        text("adapter.type", "lora"),
        text("general.name", &job.out.file_stem().unwrap_or_default().to_string_lossy()),
        // Zero says that the scale is in B already.
        ("adapter.lora.alpha".into(), Value::F32(alpha.unwrap_or(0.0))),
    ];
    let mut writer = GgufWriter::create(&job.out, &metadata, linears.iter().flat_map(plans).collect())?;
    for (place, adapter) in &linears {
        let [a, b] = plans(&(place.clone(), *adapter));
        writer.write(&a.name, &tensor(&adapter.a, &a.shape).bytes)?;
        let b_values: Vec<f32> = match alpha {
            Some(_) => adapter.b.clone(),
            None => adapter.b.iter().map(|value| value * adapter.scale).collect(),
        };
        writer.write(&b.name, &encode(&tensor(&b_values, &b.shape), place.heads, b.kind)?)?;
    }
    let bytes = writer.finish(|file| check(file, linears.len()))?;
    Ok(AdapterSummary { linears: linears.len(), bytes, warnings })
}

fn refuse_what_the_format_lacks(adapter: &PeftAdapter) -> Result<()> {
    let what = match (adapter.config.dora, adapter.saved().keys().next()) {
        (true, _) => "DoRA".to_string(),
        (_, Some(name)) => format!("{name}, trained as a whole"),
        (false, None) => return Ok(()),
    };
    Err(Error::file(&adapter.folder, format!("expected a plain adapter, found {what}: a GGUF adapter cannot hold it"))
        .hint("fold it into the model: llamantino export gguf --model MODEL --adapter ADAPTER --out model.gguf"))
}

/// The model's linears that have an adapter, in the model's order.
fn linears<'a>(config: &ModelConfig, adapter: &'a PeftAdapter) -> Result<Vec<(Place, &'a LinearAdapter)>> {
    let mut linears = Vec::new();
    let mut names = Vec::new();
    for (weight, [rows, cols]) in (0..config.layers).flat_map(|layer| config.linear_shapes(layer)) {
        let name = weight.trim_end_matches(".weight").to_string();
        linears.extend(adapter.for_linear(&name, rows, cols)?.map(|adapter| (weight, adapter)));
        names.push(name);
    }
    adapter.check_names(names.iter().map(String::as_str))?;
    let places = layout(config).collect::<Vec<_>>();
    let place = |weight: &str| places.iter().find(|place| place.name == weight).cloned();
    Ok(linears.into_iter().filter_map(|(weight, adapter)| Some((place(&weight)?, adapter))).collect())
}

/// The alpha that gives every linear its scale, if there is one.
fn common_alpha(linears: &[(Place, &LinearAdapter)]) -> Option<f32> {
    let alpha = |adapter: &LinearAdapter| adapter.scale * adapter.rank as f32;
    let first = linears.first().map(|(_, adapter)| alpha(adapter))?;
    let gives_all = linears.iter().all(|(_, adapter)| (alpha(adapter) / first - 1.0).abs() < 1e-6);
    gives_all.then_some(first)
}

fn plans((place, adapter): &(Place, &LinearAdapter)) -> [TensorPlan; 2] {
    let LinearAdapter { rows, cols, rank, .. } = **adapter;
    let plan = |part: &str, shape| TensorPlan { name: format!("{}.{part}", place.stored), shape, kind: BlockType::F32 };
    [plan("lora_a", vec![rank, cols]), plan("lora_b", vec![rows, rank])]
}

fn tensor(values: &[f32], shape: &[usize]) -> RawTensor {
    let bytes = Bytes::filled(values.len() * 4, |out| {
        out.as_chunks_mut().0.iter_mut().zip(values).for_each(|(bytes, value)| *bytes = value.to_le_bytes());
    });
    RawTensor { dtype: StoredDtype::F32, shape: shape.to_vec(), bytes }
}

fn check(path: &Path, linears: usize) -> Result<()> {
    let file = GgufFile::open(path)?;
    match file.tensors().count() == 2 * linears && file.text("adapter.type")? == Some("lora") {
        true => Ok(()),
        false => Err(Error::file(path, "reads back as another adapter: this is a mistake of this program")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn linear(scale: f32, rank: usize) -> LinearAdapter {
        let (rows, cols) = (8, 4);
        let values = |count: usize| (0..count).map(|i| i as f32).collect();
        LinearAdapter { rows, cols, rank, scale, a: values(rank * cols), b: values(rows * rank), magnitude: None }
    }

    #[test]
    fn one_alpha_stands_for_equal_scales_only() {
        let place = || Place { name: "n".into(), stored: "blk.0.attn_q.weight".into(), shape: vec![8, 4], heads: 2 };
        let (one, two, other) = (linear(2.0, 4), linear(1.0, 8), linear(2.0, 8));
        assert_eq!(common_alpha(&[(place(), &one), (place(), &two)]), Some(8.0));
        assert_eq!(common_alpha(&[(place(), &one), (place(), &other)]), None);
        let [a, b] = plans(&(place(), &one));
        assert_eq!((a.name.as_str(), a.shape, b.shape), ("blk.0.attn_q.weight.lora_a", vec![4, 4], vec![8, 4]));
    }
}
