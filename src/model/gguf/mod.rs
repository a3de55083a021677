//! GGUF models: the format of llama.cpp, read as if it were a Hugging Face folder.
//!
//! [`Gguf`] gives the equivalent `config.json`, the tensors under their Hugging Face names with the rows of q and k in
//! transformers' order, and the tokenizer's files. Quantised tensors are dequantised when they are asked for, one at a
//! time; the rest stays in the mapping. Invariant: an open file has every tensor of its model in the right shape.

mod blocks;
mod config;
mod file;
mod header;
mod names;
mod rope;
#[cfg(test)]
pub(crate) mod testing;
pub mod tokenizer;
mod values;

pub use blocks::BlockType;
pub use file::GgufFile;
pub use names::{layout, Place};
pub use rope::{llama3_divisors, FREQUENCIES};
pub use tokenizer::TokenizerFiles;
pub use values::checkpoint_row;

use super::hf_config::ModelConfig;
use super::source::{StoredTensors, TensorSource};
use crate::data::tokenize::Tokenizer;
use crate::error::{Error, Result};
use crate::quant::file::{RawTensor, StoredDtype};
use crate::quant::{Nf4Matrix, SourceDtype};
use names::Entry;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// Whether a path names a GGUF file: by its ending, or by what it begins with.
pub fn is_gguf(path: &Path) -> bool {
    use std::io::Read;
    if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf")) {
        return true;
    }
    let mut magic = [0; 4];
    let regular = std::fs::metadata(path).is_ok_and(|about| about.is_file());
    regular && std::fs::File::open(path).is_ok_and(|mut file| file.read_exact(&mut magic).is_ok()) && &magic == b"GGUF"
}

/// The tokenizer's files of a GGUF file, which may hold a vocabulary and no tensors.
///
/// Errors: as [`Gguf::tokenizer`]; a damaged file.
pub fn tokenizer_files(path: &Path) -> Result<TokenizerFiles> {
    tokenizer::files(&GgufFile::open(path)?, usize::MAX)
}

/// An open GGUF model.
pub struct Gguf {
    file: GgufFile,
    config: ModelConfig,
    entries: Vec<Entry>,
    /// Place of a tensor in `entries`, by its checkpoint name.
    index: BTreeMap<String, usize>,
    dtype: SourceDtype,
}

impl Gguf {
    /// Opens a model. `dtype` rounds every tensor to it; none keeps floats as they are stored and gives dequantised
    /// tensors in f32, which is exact.
    ///
    /// Errors: a damaged or cut file, an architecture or a scaling that the engine does not compute, a missing tensor.
    pub fn open(path: &Path, dtype: Option<SourceDtype>) -> Result<Gguf> {
        let file = GgufFile::open(path)?;
        let common = dtype.unwrap_or_else(|| common_dtype(&file));
        let json = config::config_json(&file, common)?;
        let config = ModelConfig::from_json(json).map_err(|e| e.at(path.display()))?;
        let entries = names::entries(&file, &config, dtype)?;
        let index = entries.iter().enumerate().map(|(i, entry)| (entry.name.clone(), i)).collect();
        Ok(Gguf { file, config, entries, index, dtype: common })
    }

    /// What the model is made of.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// dtype of the matrices as they are handed out; f32 where they differ.
    pub fn dtype(&self) -> SourceDtype {
        self.dtype
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// Every tensor in the model's order: name in a checkpoint, dtype as handed out, shape.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, StoredDtype, &[usize])> {
        self.entries.iter().map(|entry| (entry.name.as_str(), stored_dtype(entry), &entry.info.shape[..]))
    }

    /// Types of the stored matrices and how many there are of each, such as `Q4_1`.
    pub fn stored_types(&self) -> BTreeMap<&'static str, usize> {
        let mut types = BTreeMap::new();
        let matrices = self.entries.iter().filter(|entry| entry.info.shape.len() > 1);
        matrices.for_each(|entry| *types.entry(entry.info.kind.name()).or_default() += 1);
        types
    }

    /// The tensor of this checkpoint name.
    pub fn get(&self, name: &str) -> Result<RawTensor> {
        let entry = self.entry(name)?;
        self.file.values(&entry.stored, &entry.info, entry.form)
    }

    fn entry(&self, name: &str) -> Result<&Entry> {
        let index = self.index.get(name);
        index.map(|&i| &self.entries[i]).ok_or_else(|| self.file.error(format!("tensor {name} is missing")))
    }

    /// The files of the tokenizer.
    ///
    /// Errors: a kind of tokenizer that is not known here, lists that do not fit each other.
    pub fn tokenizer(&self) -> Result<TokenizerFiles> {
        tokenizer::files(&self.file, self.config.vocab_size)
    }

    /// The tokenizer, ready to use.
    ///
    /// Errors: as [`Gguf::tokenizer`]; a temporary folder cannot be written.
    pub fn load_tokenizer(&self) -> Result<Tokenizer> {
        self.with_description(|folder| Tokenizer::load(folder, Some(self.config.vocab_size)))
    }

    /// Calls `read` with a temporary folder that holds what [`Gguf::write_description`] writes.
    ///
    /// Errors: those of `read`, in which this file stands for the folder; a temporary folder that cannot be written.
    pub fn with_description<T>(&self, read: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
        let place = tempfile::tempdir().map_err(|e| Error::io(&std::env::temp_dir(), "write into", e))?;
        // Templates are named after the place where they were found: let that tell the model.
        let folder = place.path().join(self.path().file_name().unwrap_or("gguf".as_ref()));
        std::fs::create_dir(&folder).map_err(|e| Error::io(&folder, "create", e))?;
        self.write_description(&folder)?;
        read(&folder).map_err(|error| error.with_place(&folder, self.path()))
    }

    /// Writes everything of a model folder but the weights: `config.json`, `tokenizer.json`, `tokenizer_config.json`,
    /// `generation_config.json`. Gives the names.
    pub fn write_description(&self, folder: &Path) -> Result<Vec<&'static str>> {
        let tokenizer = self.tokenizer()?;
        let files = [
            ("config.json", &self.config.raw),
            ("tokenizer.json", &tokenizer.tokenizer),
            ("tokenizer_config.json", &tokenizer.tokenizer_config),
            ("generation_config.json", &tokenizer.generation_config),
        ];
        for (name, value) in files {
            write_json(&folder.join(name), value)?;
        }
        Ok(files.map(|(name, _)| name).to_vec())
    }
}

fn stored_dtype(entry: &Entry) -> StoredDtype {
    entry.form.dtype_of(&entry.info).into()
}

/// The dtype that all matrices are stored in, f32 if there is none such.
fn common_dtype(file: &GgufFile) -> SourceDtype {
    let matrices = file.tensors().filter(|(_, info)| info.shape.len() > 1);
    let mut dtypes = matrices.map(|(_, info)| info.kind.plain().unwrap_or(SourceDtype::F32));
    let first = dtypes.next().unwrap_or(SourceDtype::F32);
    if dtypes.all(|dtype| dtype == first) {
        first
    } else {
        SourceDtype::F32
    }
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    use std::io::Write;
    let text = serde_json::to_string_pretty(value).map_err(|e| Error::file(path, e))?;
    let write = |path: &Path| {
        let mut file = std::fs::File::create(path)?;
        file.write_all(text.as_bytes())?;
        file.write_all(b"\n")?;
        file.sync_all()
    };
    write(path).map_err(|e| Error::io(path, "write", e))
}

impl TensorSource for Gguf {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<RawTensor> {
        let tensor = self.get(name)?;
        match tensor.shape == shape {
            true => Ok(tensor),
            false => Err(self.file.error(format!("tensor {name}: expected shape {shape:?}, found {:?}", tensor.shape))),
        }
    }

    /// Never: none of the format's block types is NF4.
    fn nf4(&self, _name: &str, _rows: usize, _cols: usize) -> Result<Option<Nf4Matrix>> {
        Ok(None)
    }

    fn place(&self) -> String {
        self.path().display().to_string()
    }
}

impl StoredTensors for Gguf {
    fn names(&self) -> Vec<&str> {
        self.index.keys().map(String::as_str).collect()
    }

    fn about(&self, name: &str) -> Result<(StoredDtype, Vec<usize>)> {
        self.entry(name).map(|entry| (stored_dtype(entry), entry.info.shape.clone()))
    }

    fn get(&self, name: &str) -> Result<RawTensor> {
        Gguf::get(self, name)
    }

    fn copies(&self) -> bool {
        true
    }

    fn is_nf4(&self, _name: &str) -> bool {
        false
    }

    fn path_of(&self, _name: &str) -> &Path {
        self.path()
    }

    fn release(&self, name: &str) {
        // What is quantised was copied, and let go of then; the rest is given as it lies in the file.
        let is_plain = self.entry(name).is_ok_and(|entry| entry.info.kind.plain().is_some());
        if let Some(tensor) = is_plain.then(|| self.get(name).ok()).flatten() {
            tensor.bytes.release();
        }
    }
}

#[cfg(test)]
mod tests;
