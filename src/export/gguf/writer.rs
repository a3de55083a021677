//! Streaming writer of GGUF files, version 3: metadata and places first, then one tensor at a time.
//!
//! Invariant: the final name never holds half a file: everything goes to `NAME.partial`, is synced, read back, compared
//! with what was written, opened by the caller's check, and renamed. Reference: the GGUF specification.

use crate::error::{Error, Result};
use crate::export::safetensors::{hash, read_back, sync_folder, PartialFile};
use crate::model::gguf::BlockType;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// Where data begins and tensors are aligned: the format's default.
const ALIGNMENT: usize = 32;

/// A metadata value, of the types that are written.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A whole number.
    U32(u32),
    /// A number.
    F32(f32),
    /// true or false.
    Flag(bool),
    /// UTF-8 text.
    Text(String),
    /// A list of texts.
    Texts(Vec<String>),
    /// A list of numbers.
    F32s(Vec<f32>),
    /// A list of whole numbers.
    I32s(Vec<i32>),
}

/// Metadata in the order in which it is written.
pub type Metadata = Vec<(String, Value)>;

/// What is known of a tensor before its values are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorPlan {
    /// Name in the file.
    pub name: String,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// How its values are stored. Rows are whole blocks.
    pub kind: BlockType,
}

impl TensorPlan {
    /// Bytes in the file.
    pub fn bytes(&self) -> usize {
        self.kind.bytes_of(self.shape.iter().product())
    }
}

/// An open file.
pub struct GgufWriter {
    path: PathBuf,
    partial: PartialFile,
    file: BufWriter<File>,
    tensors: Vec<TensorPlan>,
    /// Index of the next tensor.
    next: usize,
    /// Over everything written.
    hasher: blake3::Hasher,
    bytes: u64,
}

impl GgufWriter {
    /// Begins the file `path` with these tensors.
    ///
    /// # Errors
    /// Something is there already; what the file system says.
    pub fn create(path: &Path, metadata: &Metadata, tensors: Vec<TensorPlan>) -> Result<GgufWriter> {
        if std::fs::symlink_metadata(path).is_ok() {
            return Err(Error::file(path, "exists already").hint("name another file, or remove this one"));
        }
        let header = header(metadata, &tensors);
        let (partial, file) = PartialFile::create(path)?;
        let file = BufWriter::with_capacity(1 << 20, file);
        let path = path.to_path_buf();
        let mut writer = GgufWriter { path, partial, file, tensors, next: 0, hasher: blake3::Hasher::new(), bytes: 0 };
        writer.append(&header)?;
        Ok(writer)
    }

    /// Writes the values of the next tensor.
    ///
    /// # Errors
    /// It is not the planned one; what the file system says.
    pub fn write(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        match self.tensors.get(self.next) {
            Some(tensor) if tensor.name == name && tensor.bytes() == bytes.len() => {}
            Some(tensor) => {
                let expected = format!("{} of {} bytes", tensor.name, tensor.bytes());
                let found = format!("{name} of {} bytes", bytes.len());
                return Err(Error::file(&self.path, format!("next tensor: expected {expected}, found {found}")));
            }
            None => return Err(Error::file(&self.path, format!("tensor {name} is not planned"))),
        }
        self.next += 1;
        self.append(bytes)
    }

    /// Writes bytes and fills up to the alignment.
    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        let padding = [0; ALIGNMENT];
        let padding = &padding[..bytes.len().next_multiple_of(ALIGNMENT) - bytes.len()];
        for bytes in [bytes, padding] {
            self.file.write_all(bytes).map_err(|e| Error::io(&self.partial.partial, "write", e))?;
            hash(&mut self.hasher, bytes);
            self.bytes += bytes.len() as u64;
        }
        Ok(())
    }

    /// Syncs the file, reads it back, has `check` open it under its temporary name, and renames it. Gives its length.
    ///
    /// # Errors
    /// A planned tensor was not written; it reads back differently; those of `check`; what the file system says.
    pub fn finish(self, check: impl FnOnce(&Path) -> Result<()>) -> Result<u64> {
        if let Some(tensor) = self.tensors.get(self.next) {
            return Err(Error::file(&self.path, format!("tensor {} was planned and not written", tensor.name)));
        }
        let partial = &self.partial.partial;
        let file = self.file.into_inner().map_err(|e| Error::io(partial, "write", e.into_error()))?;
        file.sync_all().map_err(|e| Error::io(partial, "sync", e))?;
        read_back(&file, 0, &self.hasher.finalize(), partial)?;
        check(partial)?;
        self.partial.keep()?;
        match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => sync_folder(parent)?,
            _ => {}
        }
        Ok(self.bytes)
    }
}

/// Everything before the data, without the padding behind it.
fn header(metadata: &Metadata, tensors: &[TensorPlan]) -> Vec<u8> {
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(3u32.to_le_bytes());
    bytes.extend((tensors.len() as u64).to_le_bytes());
    bytes.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        push_text(&mut bytes, key);
        push_value(&mut bytes, value);
    }
    let mut offset = 0u64;
    for tensor in tensors {
        push_text(&mut bytes, &tensor.name);
        bytes.extend((tensor.shape.len() as u32).to_le_bytes());
        tensor.shape.iter().rev().for_each(|&size| bytes.extend((size as u64).to_le_bytes()));
        bytes.extend(tensor.kind.number().to_le_bytes());
        bytes.extend(offset.to_le_bytes());
        offset += tensor.bytes().next_multiple_of(ALIGNMENT) as u64;
    }
    bytes
}

fn push_text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

/// The number of the value's type, and the value. Types: 4 u32, 5 i32, 6 f32, 7 bool, 8 text, 9 list.
fn push_value(bytes: &mut Vec<u8>, value: &Value) {
    let mut kind = |number: u32| bytes.extend(number.to_le_bytes());
    match value {
        Value::U32(_) => kind(4),
        Value::F32(_) => kind(6),
        Value::Flag(_) => kind(7),
        Value::Text(_) => kind(8),
        Value::Texts(_) => [9, 8].into_iter().for_each(kind),
        Value::F32s(_) => [9, 6].into_iter().for_each(kind),
        Value::I32s(_) => [9, 5].into_iter().for_each(kind),
    }
    let mut count = |count: usize| bytes.extend((count as u64).to_le_bytes());
    match value {
        Value::U32(value) => bytes.extend(value.to_le_bytes()),
        Value::F32(value) => bytes.extend(value.to_le_bytes()),
        Value::Flag(value) => bytes.push(u8::from(*value)),
        Value::Text(text) => push_text(bytes, text),
        Value::Texts(texts) => {
            count(texts.len());
            texts.iter().for_each(|text| push_text(bytes, text));
        }
        Value::F32s(values) => {
            count(values.len());
            values.iter().for_each(|value| bytes.extend(value.to_le_bytes()));
        }
        Value::I32s(values) => {
            count(values.len());
            values.iter().for_each(|value| bytes.extend(value.to_le_bytes()));
        }
    }
}
