//! An open GGUF file: the mapping, its header, and metadata asked for by key with errors that name file and key.

use super::header::{Header, TensorInfo, Value};
use super::values::{self, Form};
use crate::error::{Error, Result};
use crate::quant::file::RawTensor;
use memmap2::Mmap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const MAX_SIZE: usize = 1 << 31;
const DAMAGED: &str = "the file is damaged or cut: fetch it again";

/// A mapped GGUF file with a sound header.
pub struct GgufFile {
    path: PathBuf,
    map: Arc<Mmap>,
    header: Header,
}

impl GgufFile {
    /// Maps a file and reads its header. Errors: no such file, no GGUF file, a damaged or cut one.
    pub fn open(path: &Path) -> Result<GgufFile> {
        let about = std::fs::metadata(path).map_err(|e| Error::io(path, "open", e))?;
        if !about.is_file() {
            return Err(Error::file(path, "expected a GGUF file, found a folder or a device"));
        }
        let file = std::fs::File::open(path).map_err(|e| Error::io(path, "open", e))?;
        if about.len() < 8 {
            return Err(Error::file(path, format!("a file of {} bytes is no GGUF file", about.len())).hint(DAMAGED));
        }
        // SAFETY: the files of a model are not written while they are read: everything that this program writes goes to
        // a temporary name and is renamed.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io(path, "map", e))?;
        let header = Header::read(&map).map_err(|flaw| Error::file(path, flaw).hint(DAMAGED))?;
        Ok(GgufFile { path: path.to_path_buf(), map: Arc::new(map), header })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Tensors by name, in name order.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &TensorInfo)> {
        self.header.tensors.iter().map(|(name, info)| (name.as_str(), info))
    }

    /// A tensor's place.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.header.tensors.get(name)
    }

    /// Keys of the metadata, in order.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.header.metadata.keys().map(String::as_str)
    }

    /// The values of a tensor of this file.
    pub fn values(&self, name: &str, info: &TensorInfo, form: Form) -> Result<RawTensor> {
        values::read(&self.map, info, form).map_err(|flaw| self.error(format!("tensor {name}: {flaw}")))
    }

    /// An error in this file.
    pub fn error(&self, what: impl std::fmt::Display) -> Error {
        Error::file(&self.path, what)
    }

    /// An error about the value of a key.
    pub fn wrong(&self, key: &str, expected: &str) -> Error {
        let found = match self.header.metadata.get(key) {
            None => "nothing".to_string(),
            Some(Value::Unsigned(value)) => value.to_string(),
            Some(Value::Signed(value)) => value.to_string(),
            Some(Value::Float(value)) => value.to_string(),
            Some(Value::Bool(value)) => value.to_string(),
            Some(Value::Text(text)) => format!("{:?}", text.chars().take(80).collect::<String>()),
            Some(Value::List(list)) => format!("a list of {}", list.count()),
        };
        self.error(format!("{key}: expected {expected}, found {found}"))
    }

    fn get<T>(&self, key: &str, expected: &str, read: impl Fn(&Value) -> Option<T>) -> Result<Option<T>> {
        let Some(value) = self.header.metadata.get(key) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| self.wrong(key, expected))
    }

    /// A text.
    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        match self.header.metadata.get(key) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(_) => Err(self.wrong(key, "a text")),
        }
    }

    /// true or false.
    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.get(key, "true or false", |value| match value {
            Value::Bool(value) => Some(*value),
            _ => None,
        })
    }

    /// A number of any kind.
    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        self.get(key, "a number", |value| match value {
            Value::Unsigned(value) => Some(*value as f64),
            Value::Signed(value) => Some(*value as f64),
            Value::Float(value) => Some(*value),
            _ => None,
        })
    }

    /// A whole number from 0.
    pub fn whole(&self, key: &str) -> Result<Option<u64>> {
        self.get(key, "a whole number", |value| match value {
            Value::Unsigned(value) => Some(*value),
            Value::Signed(value) => u64::try_from(*value).ok(),
            _ => None,
        })
    }

    /// A size from 1 to 2^31, so that the product of two is a number; for a list of one for each layer, the one that
    /// they all are.
    pub fn size(&self, key: &str) -> Result<Option<usize>> {
        if let Some(numbers) = self.numbers_or_none(key) {
            let same = numbers.iter().all(|number| *number == numbers[0]);
            return match numbers.first() {
                Some(&first) if same && (1.0..=MAX_SIZE as f64).contains(&first) && first.fract() == 0.0 => {
                    Ok(Some(first as usize))
                }
                _ => Err(self.wrong(key, "one size for all layers")),
            };
        }
        let wrong = || self.wrong(key, "a whole number from 1 to 2^31");
        let Some(value) = self.whole(key)? else { return Ok(None) };
        usize::try_from(value).ok().filter(|value| (1..=MAX_SIZE).contains(value)).map(Some).ok_or_else(wrong)
    }

    fn numbers_or_none(&self, key: &str) -> Option<Vec<f64>> {
        match self.header.metadata.get(key) {
            Some(Value::List(list)) => self.header.numbers(&self.map, list),
            _ => None,
        }
    }

    /// A list of numbers.
    pub fn numbers(&self, key: &str) -> Result<Option<Vec<f64>>> {
        if !self.header.metadata.contains_key(key) {
            return Ok(None);
        }
        self.numbers_or_none(key).map(Some).ok_or_else(|| self.wrong(key, "a list of numbers"))
    }

    /// A list of texts.
    pub fn texts(&self, key: &str) -> Result<Option<Vec<String>>> {
        let Some(value) = self.header.metadata.get(key) else { return Ok(None) };
        let texts = match value {
            Value::List(list) => self.header.texts(&self.map, list),
            _ => None,
        };
        match texts {
            Some(Ok(texts)) => Ok(Some(texts)),
            Some(Err(flaw)) => Err(self.error(format!("{key}: {flaw}")).hint(DAMAGED)),
            None => Err(self.wrong(key, "a list of texts")),
        }
    }
}
