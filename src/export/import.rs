//! A GGUF file as a Hugging Face folder: safetensors, `config.json`, the tokenizer's files.
//!
//! One tensor is in memory at a time: the next one is dequantised while the last one is written. The folder appears
//! when it is complete and was opened again.

use super::safetensors::{ShardWriter, TensorSpec, Written, SHARD_BYTES};
use crate::checkpoint::AtomicFolder;
use crate::data::tokenize::Tokenizer;
use crate::error::Result;
use crate::model::gguf::Gguf;
use crate::model::weights::check_finite;
use crate::model::{Checkpoint, ModelConfig, RawTensor};
use crate::quant::SourceDtype;
use std::collections::BTreeMap;
use std::path::Path;

/// What was done.
#[derive(Debug, Clone)]
pub struct ImportSummary {
    /// Types of the matrices in the GGUF file, and how many there were of each.
    pub stored_types: BTreeMap<&'static str, usize>,
    /// dtype of the matrices now.
    pub dtype: SourceDtype,
    /// Number of tensors.
    pub tensors: usize,
    /// The files of weights.
    pub written: Written,
    /// The other files.
    pub files: Vec<&'static str>,
    /// What was odd in the file.
    pub notes: Vec<String>,
}

/// Converts the model in `gguf` into the new folder `out`, which appears when it is complete.
///
/// `dtype` rounds every weight to it; none keeps floats as they are stored and writes what was quantised in f32, which is
/// exact. `progress` is called with (bytes written, of all, name of the tensor). Errors: a model or a tokenizer that is
/// not known here, a damaged file, a value that is not finite or does not fit the dtype, `out` exists, the disk.
pub fn import_gguf(
    gguf: &Path,
    out: &Path,
    dtype: Option<SourceDtype>,
    progress: &mut dyn FnMut(u64, u64, &str),
) -> Result<ImportSummary> {
    let model = Gguf::open(gguf, dtype)?;
    let notes = model.tokenizer()?.notes;
    let folder = AtomicFolder::begin_new(out)?;
    let files = model.write_description(folder.temporary())?;
    let written = write_weights(&model, folder.temporary(), progress)?;
    check_result(folder.temporary(), &model)?;
    folder.commit()?;
    Ok(ImportSummary {
        stored_types: model.stored_types(),
        dtype: model.dtype(),
        tensors: model.tensors().count(),
        written,
        files,
        notes,
    })
}

fn write_weights(model: &Gguf, folder: &Path, progress: &mut dyn FnMut(u64, u64, &str)) -> Result<Written> {
    let specs: Vec<TensorSpec> =
        model.tensors().map(|(name, dtype, shape)| TensorSpec::new(name, dtype, shape.to_vec())).collect();
    let bytes = |spec: &TensorSpec| (spec.shape.iter().product::<usize>() * spec.dtype.size()) as u64;
    let total: u64 = specs.iter().map(bytes).sum();
    let groups = specs.iter().map(|spec| vec![spec.clone()]).collect();
    let mut writer = ShardWriter::new(folder, "model", groups, SHARD_BYTES)?;
    let mut done = 0;
    let mut ready: Option<(&str, RawTensor)> = None;
    for spec in specs.iter().map(Some).chain([None]) {
        let write = |writer: &mut ShardWriter| ready.iter().try_for_each(|(name, tensor)| writer.write(name, tensor));
        let read = || spec.map(|spec| read(model, &spec.name)).transpose();
        let (next, written) = rayon::join(read, || write(&mut writer));
        written?;
        if let Some((name, tensor)) = &ready {
            done += tensor.bytes.len() as u64;
            progress(done, total, name);
        }
        ready = next?;
    }
    writer.finish()
}

fn read<'n>(model: &Gguf, name: &'n str) -> Result<(&'n str, RawTensor)> {
    let tensor = model.get(name)?;
    check_finite(name, &tensor).map_err(|e| e.at(model.path().display()))?;
    Ok((name, tensor))
}

/// Opens the result as any user of it would.
fn check_result(folder: &Path, model: &Gguf) -> Result<()> {
    let config = ModelConfig::from_folder(folder)?;
    let checkpoint = Checkpoint::open(folder)?;
    model.tensors().try_for_each(|(name, _, shape)| checkpoint.expect(name, shape).map(drop))?;
    Tokenizer::load(folder, Some(config.vocab_size)).map(drop)
}

#[cfg(test)]
#[path = "import_tests.rs"]
mod tests;
