//! Values of `adapter_model.safetensors` as f32, checked to be finite.

use super::SavedWeight;
use crate::bail;
use crate::error::Result;
use crate::model::weights::check_finite;
use crate::model::{Checkpoint, StoredDtype};
use half::{bf16, f16};

/// A tensor in f32.
#[derive(Debug, Clone)]
pub(super) struct Tensor {
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
}

impl Tensor {
    /// Reads a tensor of the file.
    pub(super) fn read(file: &Checkpoint, name: &str) -> Result<Tensor> {
        let raw = file.get(name)?;
        check_finite(name, &raw)?;
        let values = match raw.dtype {
            StoredDtype::F32 => raw.bytes.as_f32().to_vec(),
            StoredDtype::F16 => raw.bytes.as_u16().iter().map(|&bits| f16::from_bits(bits).to_f32()).collect(),
            StoredDtype::Bf16 => raw.bytes.as_u16().iter().map(|&bits| bf16::from_bits(bits).to_f32()).collect(),
            StoredDtype::U8 => bail!("{name}: expected F32, F16 or BF16, found U8"),
        };
        Ok(Tensor { shape: raw.shape, values })
    }

    /// As a `[rows, cols]` weight.
    pub(super) fn saved(self) -> Result<SavedWeight> {
        match self.shape[..] {
            [rows, cols] => Ok(SavedWeight { rows, cols, values: self.values }),
            _ => bail!("expected shape [vocabulary, hidden], found {:?}", self.shape),
        }
    }
}
