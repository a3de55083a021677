//! A model in NF4, in the layout that transformers and bitsandbytes write and read.
//!
//! The linears of the decoder blocks are quantised; embeddings, norms, biases and the head are stored as they are, in
//! their dtype; config.json gets a `quantization_config`. One tensor is in memory at a time: the next one is quantised
//! while the last one is written.

use super::companions;
use super::safetensors::{write_json, ShardWriter, TensorSpec, Written, SHARD_BYTES};
use crate::checkpoint::AtomicFolder;
use crate::error::{Error, Result};
use crate::model::weights::{check_finite, stored_bytes};
use crate::model::{Checkpoint, ModelConfig, OpenModel, RawTensor, StoredTensors};
use crate::quant::file::{planned_parts, quantization_config, state_key, stored_parts};
use crate::quant::{quantize, QuantConfig, SourceDtype};
use std::collections::BTreeMap;
use std::path::Path;

/// What was done.
#[derive(Debug, Clone)]
pub struct Summary {
    /// Weights that are now in 4 bits.
    pub quantized: usize,
    /// Tensors stored as they were.
    pub plain: usize,
    /// Bytes of the source's tensors.
    pub source_bytes: u64,
    /// The files of weights.
    pub written: Written,
    /// Other files copied.
    pub companions: Vec<String>,
}

/// Quantises the model `base` (a folder or a GGUF file) into the new folder `out`, which appears when it is complete.
///
/// `progress` is called with (bytes of the source done, of all, name of the tensor).
///
/// Errors: `base` is no unquantised model that the engine knows, a weight is missing or has another shape, a value is
/// not finite, `out` exists, the disk.
pub fn quantize_folder(
    base: &Path,
    out: &Path,
    config: QuantConfig,
    progress: &mut dyn FnMut(u64, u64, &str),
) -> Result<Summary> {
    config.check()?;
    let model = OpenModel::open(base)?;
    if model.config.quantized {
        return Err(Error::file(base, "the model is quantized already").hint("quantize the original model"));
    }
    let tensors = model.stored();
    let linears = linears(&model.config, tensors)?;
    let mut folder = AtomicFolder::begin_new(out)?;
    let mut names = tensors.names();
    names.sort_by_cached_key(|name| natural_key(name));
    let groups = planned(&names, &linears, tensors, config)?;
    let mut writer = ShardWriter::new(folder.temporary(), "model", groups, SHARD_BYTES)?;
    let source_bytes = stored_bytes(tensors)?;
    let mut done = 0;
    let mut ready: Option<Prepared> = None;
    for name in names.iter().map(Some).chain([None]) {
        let write = |writer: &mut ShardWriter| ready.iter().try_for_each(|prepared| prepared.write(writer));
        let prepare = || name.map(|name| prepare(name, tensors, &linears, config)).transpose();
        let (next, written) = rayon::join(prepare, || write(&mut writer));
        written?;
        if let Some(Prepared { name, source_bytes: bytes, .. }) = &ready {
            done += bytes;
            progress(done, source_bytes, name);
        }
        ready = next?;
    }
    let written = writer.finish()?;
    let dtype = linears.values().next().map_or(SourceDtype::F32, |linear| linear.dtype);
    let json = model.config.json_with_quantization(Some(quantization_config(config, dtype)));
    write_json(&folder.temporary().join("config.json"), &json)?;
    let companions = model.with_description(|description| companions::copy(description, &mut folder))?;
    check_result(folder.temporary(), &linears)?;
    folder.commit()?;
    let quantized = linears.len();
    Ok(Summary { quantized, plain: names.len() - quantized, source_bytes, written, companions })
}

/// A weight to quantise.
struct Linear {
    rows: usize,
    cols: usize,
    dtype: SourceDtype,
}

/// The linears of the blocks, each checked against the config's sizes.
fn linears(model: &ModelConfig, tensors: &dyn StoredTensors) -> Result<BTreeMap<String, Linear>> {
    let mut linears = BTreeMap::new();
    for (name, [rows, cols]) in (0..model.layers).flat_map(|layer| model.linear_shapes(layer)) {
        let dtype = tensors.expect_float(&name, &[rows, cols])?;
        linears.insert(name, Linear { rows, cols, dtype });
    }
    Ok(linears)
}

/// What will be written, one group for each tensor of the source.
fn planned(
    names: &[&str],
    linears: &BTreeMap<String, Linear>,
    tensors: &dyn StoredTensors,
    config: QuantConfig,
) -> Result<Vec<Vec<TensorSpec>>> {
    let group = |name: &&str| {
        let Some(linear) = linears.get(*name) else {
            let (dtype, shape) = tensors.about(name)?;
            return Ok(vec![TensorSpec::new(*name, dtype, shape)]);
        };
        let parts = planned_parts(name, linear.rows, linear.cols, config);
        let spec = |(part, dtype, shape)| {
            let at_most = part == state_key(name);
            TensorSpec { at_most, ..TensorSpec::new(part, dtype, shape) }
        };
        Ok(parts.into_iter().map(spec).collect())
    };
    names.iter().map(group).collect()
}

/// A tensor of the source in the form that is written.
struct Prepared {
    name: String,
    parts: Vec<(String, RawTensor)>,
    source_bytes: u64,
}

impl Prepared {
    fn write(&self, writer: &mut ShardWriter) -> Result<()> {
        self.parts.iter().try_for_each(|(part, tensor)| writer.write(part, tensor))
    }
}

fn prepare(
    name: &str,
    tensors: &dyn StoredTensors,
    linears: &BTreeMap<String, Linear>,
    config: QuantConfig,
) -> Result<Prepared> {
    let tensor = tensors.get(name)?;
    let place = tensors.path_of(name).display();
    let source_bytes = tensor.bytes.len() as u64;
    let parts = match (linears.get(name), tensor.values()) {
        (Some(linear), Some(values)) => {
            let matrix = quantize(values, linear.rows, linear.cols, config)
                .map_err(|e| e.at(format!("{place}: tensor {name}")))?;
            tensor.bytes.release();
            stored_parts(name, &matrix)
        }
        _ => {
            check_finite(name, &tensor).map_err(|e| e.at(place))?;
            vec![(name.to_string(), tensor)]
        }
    };
    Ok(Prepared { name: name.to_string(), parts, source_bytes })
}

/// Opens the result as any user of it would.
fn check_result(folder: &Path, linears: &BTreeMap<String, Linear>) -> Result<()> {
    ModelConfig::from_folder(folder)?;
    let checkpoint = Checkpoint::open(folder)?;
    linears.iter().try_for_each(|(name, linear)| checkpoint.expect_nf4(name, linear.rows, linear.cols).map(drop))
}

/// Sorts layer 2 before layer 10: runs of digits by length first.
pub(super) fn natural_key(name: &str) -> Vec<(usize, String)> {
    let key = |part: &str| match part.bytes().all(|byte| byte.is_ascii_digit()) {
        true => (part.len(), part.to_string()),
        false => (0, part.to_string()),
    };
    name.split('.').map(key).collect()
}

#[cfg(test)]
#[path = "quantize_tests.rs"]
mod tests;
