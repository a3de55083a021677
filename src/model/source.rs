//! Where a model's tensors come from: anything that gives one by its name ([`TensorSource`]), and what lies on disk and can
//! be listed too ([`StoredTensors`]): a Hugging Face or NF4 folder, a GGUF file.
//!
//! Loading asks for the first; hashing, merging, quantising and exporting ask for the second.

use super::weights::Checkpoint;
use crate::error::{Error, Result};
use crate::quant::file::{RawTensor, StoredDtype, PART_SUFFIXES};
use crate::quant::{Nf4Matrix, SourceDtype};
use std::path::Path;

/// Where tensors come from: a checkpoint, a GGUF file, or values made up for a bench.
pub trait TensorSource: Sync {
    /// The tensor `name`, which must have this shape.
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<RawTensor>;
    /// The linear weight `name` in NF4, if it is stored so.
    fn nf4(&self, name: &str, rows: usize, cols: usize) -> Result<Option<Nf4Matrix>>;
    /// Where it is, for messages.
    fn place(&self) -> String;
}

/// A model on disk.
pub trait StoredTensors: TensorSource {
    /// Every tensor, in name order.
    fn names(&self) -> Vec<&str>;
    /// dtype and shape in which [`StoredTensors::get`] gives a tensor, without reading it.
    fn about(&self, name: &str) -> Result<(StoredDtype, Vec<usize>)>;
    /// The tensor of this name.
    fn get(&self, name: &str) -> Result<RawTensor>;
    /// Whether a tensor takes memory of its own while it is looked at, so that few are best read at once.
    fn copies(&self) -> bool;
    /// Whether the weight `name` is stored in NF4.
    fn is_nf4(&self, name: &str) -> bool;
    /// File of a tensor, for errors.
    fn path_of(&self, name: &str) -> &Path;
    /// Lets go of the memory that looking at a tensor took; it can be read again.
    fn release(&self, name: &str);

    /// Whether there is a tensor of this name.
    fn contains(&self, name: &str) -> bool {
        self.about(name).is_ok()
    }

    /// dtype of a floating-point tensor of this name and shape, without reading it. Errors say what was expected and
    /// what is there.
    fn expect_float(&self, name: &str, shape: &[usize]) -> Result<SourceDtype> {
        let (dtype, found) = self.about(name)?;
        match dtype.float().filter(|_| found == shape) {
            Some(float) => Ok(float),
            None => {
                let what = format!("expected F32, F16 or BF16 {shape:?}, found {} {found:?}", dtype.name());
                Err(Error::file(self.path_of(name), format!("tensor {name}: {what}")))
            }
        }
    }
}

impl TensorSource for Checkpoint {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<RawTensor> {
        self.expect(name, shape)
    }

    fn nf4(&self, name: &str, rows: usize, cols: usize) -> Result<Option<Nf4Matrix>> {
        self.is_nf4(name).then(|| self.expect_nf4(name, rows, cols)).transpose()
    }

    fn place(&self) -> String {
        self.folder().display().to_string()
    }
}

impl StoredTensors for Checkpoint {
    fn names(&self) -> Vec<&str> {
        Checkpoint::names(self).collect()
    }

    fn about(&self, name: &str) -> Result<(StoredDtype, Vec<usize>)> {
        Checkpoint::get(self, name).map(|tensor| (tensor.dtype, tensor.shape))
    }

    fn get(&self, name: &str) -> Result<RawTensor> {
        Checkpoint::get(self, name)
    }

    fn copies(&self) -> bool {
        false
    }

    fn is_nf4(&self, name: &str) -> bool {
        Checkpoint::is_nf4(self, name)
    }

    fn path_of(&self, name: &str) -> &Path {
        Checkpoint::path_of(self, name)
    }

    fn release(&self, name: &str) {
        let parts = PART_SUFFIXES.iter().map(|part| format!("{name}{part}"));
        let tensors = parts.chain([name.to_string()]).filter_map(|name| self.find(&name).ok()?);
        tensors.for_each(|tensor| tensor.bytes.release());
    }

    fn contains(&self, name: &str) -> bool {
        Checkpoint::contains(self, name)
    }
}
