//! Weight diffs: a tuned model as what it changes in its base, recovered byte for byte.
//!
//! A diff is one safetensors file that any reader of the format lists. Its metadata hold two texts, its tensors are
//! bytes (U8):
//!
//! | place | content |
//! |---|---|
//! | metadata `header_blake3` | BLAKE3 of the file's first 8 + N bytes (length and header), these 64 digits read as `0` |
//! | metadata `llamantino_diff` | the [`Manifest`] as JSON: files, tensors, companions, and a BLAKE3 of every payload |
//! | tensor `NAME` | the changed tensor NAME of the tuned model ([`codec`]); a tensor equal to its base's has none |
//! | tensor `header/FILE` | the header of the tuned weights file FILE, zstd |
//! | tensor `file/FILE` | a file that belongs to the tuned model (config, tokenizer, index), zstd |
//!
//! Invariants: every bit of the file is covered by a hash, so that no damaged diff is applied; a base is refused unless
//! each tensor that is read of it has the hash that the diff was made with; a recovered file has the tuned file's hash.
//! Arithmetic is on bit patterns (the difference of two floats in f32 does not give the second one back; Alpaca's
//! `weight_diff.py` has that weakness, which is why it can only check a sum). [`float`] applies such diffs.

mod apply;
mod codec;
mod container;
mod files;
pub mod float;
mod make;
mod reference;

#[cfg(test)]
mod float_tests;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use apply::{apply, Applied};
pub use make::{make, Made};

use crate::error::{Error, Result};
use crate::model::{RawTensor, StoredDtype};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Version of the format.
const FORMAT: u32 = 1;

/// What a diff says about the tuned model and its base.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of the format, 1.
    pub format: u32,
    /// Program that made it.
    pub made_by: String,
    /// Name of the base's folder, for messages.
    pub base: String,
    /// The tuned weights files.
    pub files: Vec<StoredFile>,
    /// The tuned tensors by name.
    pub tensors: BTreeMap<String, Entry>,
    /// Other files of the tuned model.
    pub companions: Vec<StoredFile>,
    /// BLAKE3 of each payload by the name of its tensor in the diff.
    pub payloads: BTreeMap<String, String>,
}

/// A file of the tuned model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredFile {
    /// Name in the folder.
    pub name: String,
    /// Length.
    pub bytes: u64,
    /// BLAKE3 of the whole file.
    pub blake3: String,
}

/// A tensor of the tuned model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// How it is stored.
    pub kind: Kind,
    /// dtype, shape and hash of its bytes.
    #[serde(flatten)]
    pub tensor: Identity,
    /// The base's tensor that it is a difference from; none for `whole`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<BaseTensor>,
}

/// How a tensor is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Not at all: it has the bytes of its base.
    Same,
    /// As a difference of bit patterns from its base; rows that the base does not have, as they are.
    Diff,
    /// As it is: the base has nothing like it.
    Whole,
}

/// A tensor of the base.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseTensor {
    /// Name in the base: the tuned tensor's, or the embedding for a head that the base ties to it.
    pub name: String,
    /// dtype, shape and hash of its bytes.
    #[serde(flatten)]
    pub tensor: Identity,
}

/// What tells a tensor from another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Name of the dtype in a safetensors header.
    pub dtype: String,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// BLAKE3 of the bytes, row-major and little-endian.
    pub blake3: String,
}

impl Identity {
    fn of(tensor: &RawTensor) -> Identity {
        Identity {
            dtype: tensor.dtype.name().into(),
            shape: tensor.shape.clone(),
            blake3: hash(&tensor.bytes).to_string(),
        }
    }

    fn dtype(&self) -> Result<StoredDtype> {
        let known = [StoredDtype::F32, StoredDtype::F16, StoredDtype::Bf16, StoredDtype::U8];
        known.into_iter().find(|dtype| dtype.name() == self.dtype).ok_or_else(|| {
            Error::failed(format!("dtype {}: expected F32, F16, BF16 or U8", self.dtype))
                .hint("the diff was made by a newer version of this program")
        })
    }

    /// Bytes of the tensor. Errors: more than can be addressed.
    fn bytes(&self) -> Result<u64> {
        let size = self.dtype()?.size() as u64;
        let bytes = self.shape.iter().try_fold(size, |bytes, &size| bytes.checked_mul(size as u64));
        bytes
            .filter(|&bytes| bytes <= i64::MAX as u64)
            .ok_or_else(|| Error::failed(format!("shape {:?}: too large", self.shape)))
    }
}

/// BLAKE3 of bytes, on all threads where there are many.
fn hash(bytes: &[u8]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    update(&mut hasher, bytes);
    hasher.finalize()
}

fn update(hasher: &mut blake3::Hasher, bytes: &[u8]) {
    if bytes.len() < 1 << 17 {
        hasher.update(bytes);
    } else {
        hasher.update_rayon(bytes);
    }
}
