//! What an optimizer remembers, as named tensors: borrowed to save, owned to restore.

use crate::bail;
use crate::error::Result;
use std::collections::HashMap;

/// One state tensor to save.
#[derive(Debug, Clone, PartialEq)]
pub struct StateTensor<'a> {
    /// `<parameter>.<what>`, unique.
    pub name: String,
    /// Its values.
    pub values: StateValues<&'a [f32], &'a [u8]>,
}

/// Values of a state tensor, borrowed (slices) or owned (vectors).
#[derive(Debug, Clone, PartialEq)]
pub enum StateValues<F = Vec<f32>, B = Vec<u8>> {
    /// 32-bit floats.
    F32(F),
    /// 8-bit codes.
    U8(B),
}

impl StateValues<&[f32], &[u8]> {
    /// A copy.
    pub fn to_owned(&self) -> StateValues {
        match self {
            StateValues::F32(values) => StateValues::F32(values.to_vec()),
            StateValues::U8(values) => StateValues::U8(values.to_vec()),
        }
    }
}

/// A saved state to restore; its tensors become the optimizer's own without a copy.
#[derive(Debug, Clone, Default)]
pub struct OptimizerState {
    /// Steps done when it was saved.
    pub steps: u64,
    /// Tensors by name.
    pub tensors: HashMap<String, StateValues>,
}

impl OptimizerState {
    /// Takes the f32 tensor `name` of exactly `len` values.
    pub(super) fn take_f32(&mut self, name: &str, len: usize) -> Result<Vec<f32>> {
        match self.tensors.remove(name) {
            Some(StateValues::F32(values)) if values.len() == len => Ok(values),
            Some(other) => bail!("optimizer state {name}: expected {len} f32 values, found {}", other.describe()),
            None => bail!("optimizer state {name}: missing"),
        }
    }

    /// Takes the u8 tensor `name` of exactly `len` values.
    pub(super) fn take_u8(&mut self, name: &str, len: usize) -> Result<Vec<u8>> {
        match self.tensors.remove(name) {
            Some(StateValues::U8(values)) if values.len() == len => Ok(values),
            Some(other) => bail!("optimizer state {name}: expected {len} u8 values, found {}", other.describe()),
            None => bail!("optimizer state {name}: missing"),
        }
    }

    /// Refuses tensors that nobody took.
    pub(super) fn finish(&self) -> Result<()> {
        match self.tensors.keys().min() {
            Some(name) => bail!("optimizer state {name}: belongs to no trainable parameter of this run"),
            None => Ok(()),
        }
    }
}

impl StateValues {
    fn describe(&self) -> String {
        match self {
            StateValues::F32(values) => format!("{} f32 values", values.len()),
            StateValues::U8(values) => format!("{} u8 values", values.len()),
        }
    }
}
