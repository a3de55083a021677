//! The norm in f64 under candle's autograd: the truth of the tests.
//!
//! Reference: `candle_nn::ops::rms_norm_slow`; the fast `rms_norm` has no gradient and says nothing.

use crate::ops::testing::{flat, tensor};
use candle_core::Var;

pub(super) struct Truth {
    pub y: Vec<f64>,
    pub dx: Vec<f64>,
    pub dweight: Vec<f64>,
}

/// Value and gradients of `Σ norm(x) · weight · dy` for `x`, `dy` `[rows, H]`, `weight` `[H]`.
pub(super) fn rms_norm(x: &[f32], weight: &[f32], eps: f32, dy: &[f32]) -> Truth {
    let features = weight.len();
    let shape = [x.len() / features, features];
    let x = Var::from_tensor(&tensor(x, &shape)).unwrap();
    let weight = Var::from_tensor(&tensor(weight, &[features])).unwrap();
    let y = candle_nn::ops::rms_norm_slow(&x, &weight, eps).unwrap();
    let gradients = (&y * tensor(dy, &shape)).unwrap().sum_all().unwrap().backward().unwrap();
    Truth { y: flat(&y), dx: flat(gradients.get(&x).unwrap()), dweight: flat(gradients.get(&weight).unwrap()) }
}
