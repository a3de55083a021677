//! A model to run, train or convert, however it is stored: a Hugging Face or NF4 folder, or a GGUF file.

use super::gguf::{is_gguf, Gguf};
use super::hf_config::ModelConfig;
use super::source::{StoredTensors, TensorSource};
use super::weights::{base_hash, quick_hash, Checkpoint, HashDepth};
use crate::data::template::Template;
use crate::data::tokenize::Tokenizer;
use crate::error::Result;
use std::path::{Path, PathBuf};

/// An open model: its configuration, its tensors, its tokenizer.
pub struct OpenModel {
    path: PathBuf,
    /// Shape and constants.
    pub config: ModelConfig,
    storage: Storage,
}

enum Storage {
    Folder(Checkpoint),
    Gguf(Box<Gguf>),
}

impl OpenModel {
    /// Opens a folder or a `.gguf` file.
    ///
    /// Errors: whatever the reader of that form finds wrong.
    pub fn open(path: &Path) -> Result<OpenModel> {
        if is_gguf(path) {
            let gguf = Gguf::open(path, None)?;
            let config = gguf.config().clone();
            return Ok(OpenModel { path: path.into(), config, storage: Storage::Gguf(Box::new(gguf)) });
        }
        let config = ModelConfig::from_folder(path)?;
        Ok(OpenModel { path: path.into(), config, storage: Storage::Folder(Checkpoint::open(path)?) })
    }

    /// The tensors, for loading.
    pub fn source(&self) -> &dyn TensorSource {
        match &self.storage {
            Storage::Folder(checkpoint) => checkpoint,
            Storage::Gguf(gguf) => gguf.as_ref(),
        }
    }

    /// The tensors, when nothing else of the model is needed any more.
    pub fn into_source(self) -> Box<dyn TensorSource> {
        match self.storage {
            Storage::Folder(checkpoint) => Box::new(checkpoint),
            Storage::Gguf(gguf) => gguf,
        }
    }

    /// The tensors as they can be listed.
    pub fn stored(&self) -> &dyn StoredTensors {
        match &self.storage {
            Storage::Folder(checkpoint) => checkpoint,
            Storage::Gguf(gguf) => gguf.as_ref(),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A hash of the weights that takes little time beside loading them, as `KIND HEX`.
    ///
    /// Errors: files that cannot be read.
    pub fn hash(&self) -> Result<String> {
        quick_hash(self.stored())
    }

    /// The hash of the weights, every byte of them, as adapters keep it of their base. `quick` is what
    /// [`OpenModel::hash`] gave.
    ///
    /// Errors: files that cannot be read.
    pub fn full_hash(&self, quick: &str) -> Result<String> {
        match quick.strip_prefix("whole ") {
            Some(hash) => Ok(hash.to_string()),
            None => base_hash(self.stored(), HashDepth::Full),
        }
    }

    /// Calls `read` with a folder that holds what describes the model: config, tokenizer, chat template.
    ///
    /// Errors: those of `read`; for a GGUF file, a temporary folder that cannot be written.
    pub fn with_description<T>(&self, read: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
        match &self.storage {
            Storage::Folder(_) => read(&self.path),
            Storage::Gguf(gguf) => gguf.with_description(read),
        }
    }

    /// The model's own chat template, if it has one.
    ///
    /// Errors: a template that is not valid Jinja; files that cannot be read.
    pub fn chat_template(&self) -> Result<Option<Template>> {
        let template = self.with_description(Template::from_model)?;
        Ok(match &self.storage {
            Storage::Folder(_) => template,
            Storage::Gguf(_) => {
                let place = format!("{} (tokenizer.chat_template)", self.path.display());
                template.map(|template| template.from_place(&place))
            }
        })
    }

    /// The tokenizer.
    ///
    /// Errors: there is none, or of a kind that is not known here.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        self.with_description(|folder| Tokenizer::load(folder, Some(self.config.vocab_size)))
    }
}

/// Configuration of the model at `path`; no weights need be there.
///
/// Errors: whatever the reader of its form finds wrong.
pub fn config_of(path: &Path) -> Result<ModelConfig> {
    match is_gguf(path) {
        true => Ok(Gguf::open(path, None)?.config().clone()),
        false => ModelConfig::from_folder(path),
    }
}

/// [`OpenModel::with_description`] of the model at `path`; no weights need be there.
///
/// Errors: those of `read`; a GGUF file that cannot be read.
pub fn with_description<T>(path: &Path, read: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    match is_gguf(path) {
        true => Gguf::open(path, None)?.with_description(read),
        false => read(path),
    }
}
