//! Dropout and its gradient in f64 under candle's autograd, with the mask drawn element by element.
//!
//! Reference: the definition in the operation's header over `RandomStream::word`.

use crate::ops::testing::{flat, tensor};
use crate::ops::RandomStream;
use candle_core::Var;

/// Value and gradient of `Σ dropout(x) · dy`.
pub(super) fn dropout(x: &[f32], dy: &[f32], probability: f32, stream: RandomStream) -> (Vec<f64>, Vec<f64>) {
    let kept = |i: usize| f64::from(stream.word(i as u64)) >= f64::from(probability) * 4_294_967_296.0;
    let mask: Vec<f32> = (0..x.len()).map(|i| if kept(i) { 1.0 } else { 0.0 }).collect();
    let shape = [x.len()];
    let x = Var::from_tensor(&tensor(x, &shape)).unwrap();
    let y = ((x.as_tensor() * tensor(&mask, &shape)).unwrap() / (1.0 - f64::from(probability))).unwrap();
    let gradients = (&y * tensor(dy, &shape)).unwrap().sum_all().unwrap().backward().unwrap();
    (flat(&y), flat(gradients.get(&x).unwrap()))
}
