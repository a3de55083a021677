//! A model to run, however it is stored: a Hugging Face or NF4 folder, or a GGUF file.

use super::gguf::{is_gguf, Gguf};
use super::hf_config::ModelConfig;
use super::load::TensorSource;
use super::weights::{quick_hash, Checkpoint};
use crate::data::template::Template;
use crate::data::tokenize::Tokenizer;
use crate::error::{Error, Result};
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

    /// The tensors.
    pub fn source(&self) -> &dyn TensorSource {
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
        match &self.storage {
            Storage::Folder(checkpoint) => quick_hash(checkpoint),
            Storage::Gguf(_) => {
                let mut hasher = blake3::Hasher::new();
                hasher.update_mmap_rayon(&self.path).map_err(|error| Error::io(&self.path, "read", error))?;
                Ok(format!("file {}", hasher.finalize().to_hex()))
            }
        }
    }

    /// Calls `read` with a folder that holds what describes the model: config, tokenizer, chat template.
    ///
    /// Errors: those of `read`; for a GGUF file, a temporary folder that cannot be written.
    pub fn with_description<T>(&self, read: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
        match &self.storage {
            Storage::Folder(_) => read(&self.path),
            Storage::Gguf(gguf) => {
                let folder = tempfile::tempdir().map_err(|e| Error::io(&std::env::temp_dir(), "write into", e))?;
                gguf.write_description(folder.path())?;
                read(folder.path()).map_err(|error| error.at(self.path.display()))
            }
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
        match &self.storage {
            Storage::Folder(_) => Tokenizer::load(&self.path, Some(self.config.vocab_size)),
            Storage::Gguf(gguf) => gguf.load_tokenizer(),
        }
    }
}
