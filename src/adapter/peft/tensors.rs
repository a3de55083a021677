//! `adapter_model.safetensors`: read one tensor at a time, widened to f32, every value checked to be finite.

use super::SavedWeight;
use crate::bail;
use crate::error::{Error, Result};
use half::{bf16, f16};
use safetensors::tensor::Metadata;
use safetensors::{Dtype, SafeTensors};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// Longest header accepted, in bytes; also the limit of the safetensors format.
const LONGEST_HEADER: u64 = 100_000_000;

/// A tensor in f32.
#[derive(Debug, Clone)]
pub(super) struct Tensor {
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
}

impl Tensor {
    /// As a `[rows, cols]` weight.
    pub(super) fn saved(self) -> Result<SavedWeight> {
        match self.shape[..] {
            [rows, cols] => Ok(SavedWeight { rows, cols, values: self.values }),
            _ => bail!("expected shape [vocabulary, hidden], found {:?}", self.shape),
        }
    }
}

/// An open file whose header has been read.
pub(super) struct TensorFile {
    path: PathBuf,
    file: File,
    metadata: Metadata,
    /// Where the data begins.
    start: u64,
}

impl TensorFile {
    /// Opens the file and checks that it is as long as its header says.
    pub(super) fn open(path: &Path) -> Result<TensorFile> {
        let mut file = File::open(path).map_err(|error| Error::io(path, "open", error))?;
        let len = file.metadata().map_err(|error| Error::io(path, "read", error))?.len();
        let mut prefix = [0u8; 8];
        if len < 8 {
            return Err(truncated(path, 8, len));
        }
        file.read_exact(&mut prefix).map_err(|error| Error::io(path, "read", error))?;
        let header_len = u64::from_le_bytes(prefix);
        if header_len > LONGEST_HEADER {
            return Err(Error::file(path, format!("not a safetensors file (a header of {header_len} bytes)")));
        }
        let start = 8 + header_len;
        if len < start {
            return Err(truncated(path, start, len));
        }
        let mut header = vec![0u8; start as usize];
        header[..8].copy_from_slice(&prefix);
        file.read_exact(&mut header[8..]).map_err(|error| Error::io(path, "read", error))?;
        let (_, metadata) = SafeTensors::read_metadata(&header)
            .map_err(|error| Error::file(path, format!("not a safetensors file ({error})")))?;
        let expected = start + metadata.data_len() as u64;
        if len != expected {
            return Err(truncated(path, expected, len));
        }
        Ok(TensorFile { path: path.into(), file, metadata, start })
    }

    /// Names of the tensors, sorted.
    pub(super) fn names(&self) -> Vec<String> {
        let mut names = self.metadata.offset_keys();
        names.sort_unstable();
        names
    }

    /// Reads a tensor.
    pub(super) fn read(&mut self, name: &str) -> Result<Tensor> {
        let Some(info) = self.metadata.info(name) else { bail!("{}: no tensor {name}", self.path.display()) };
        let (begin, end) = info.data_offsets;
        let mut bytes = vec![0u8; end - begin];
        let position = SeekFrom::Start(self.start + begin as u64);
        let read = self.file.seek(position).and_then(|_| self.file.read_exact(&mut bytes));
        read.map_err(|error| Error::io(&self.path, "read", error))?;
        let values: Vec<f32> = match info.dtype {
            Dtype::F32 => bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
            Dtype::F16 => bytes.as_chunks().0.iter().map(|&b| f16::from_le_bytes(b).to_f32()).collect(),
            Dtype::BF16 => bytes.as_chunks().0.iter().map(|&b| bf16::from_le_bytes(b).to_f32()).collect(),
            other => {
                return Err(Error::file(&self.path, format!("{name}: expected F32, F16 or BF16, found {other:?}")))
            }
        };
        if let Some(index) = values.iter().position(|value| !value.is_finite()) {
            let what = format!("{name}: value {index} is not finite ({})", values[index]);
            return Err(Error::file(&self.path, what).hint("the training that made this adapter diverged"));
        }
        Ok(Tensor { shape: info.shape.clone(), values })
    }
}

fn truncated(path: &Path, expected: u64, found: u64) -> Error {
    Error::file(path, format!("expected {expected} bytes, found {found}: the file is damaged"))
        .hint("copy or download it again")
}
