//! SwiGLU in f64 under candle's autograd: the truth of the tests.
//!
//! Reference: `candle_nn::ops::silu`, written out, since its gradient is what is tested.

use crate::ops::testing::{flat, tensor};
use candle_core::Var;

pub(super) struct Truth {
    pub act: Vec<f64>,
    pub dgate: Vec<f64>,
    pub dup: Vec<f64>,
}

/// Value and gradients of `Σ silu(gate) · up · dact`.
pub(super) fn swiglu(gate: &[f32], up: &[f32], dact: &[f32]) -> Truth {
    let shape = [gate.len()];
    let gate = Var::from_tensor(&tensor(gate, &shape)).unwrap();
    let up = Var::from_tensor(&tensor(up, &shape)).unwrap();
    let exp = gate.neg().unwrap().exp().unwrap();
    let act = ((gate.as_tensor() / (exp + 1.0).unwrap()).unwrap() * up.as_tensor()).unwrap();
    let gradients = (&act * tensor(dact, &shape)).unwrap().sum_all().unwrap().backward().unwrap();
    Truth { act: flat(&act), dgate: flat(gradients.get(&gate).unwrap()), dup: flat(gradients.get(&up).unwrap()) }
}
