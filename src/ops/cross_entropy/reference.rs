//! Head and cross-entropy in f64 under candle's autograd, with whole logits: the truth of the tests.
//!
//! Reference: `candle_nn::ops::log_softmax` (the fast `softmax_last_dim` has no gradient and says nothing).

use super::IGNORE;
use crate::ops::testing::{flat, tensor};
use candle_core::{Device, Tensor, Var, D};

pub(super) struct Truth {
    pub sum: f64,
    pub token_loss: Vec<f64>,
    pub dhidden: Vec<f64>,
    pub dweight: Vec<f64>,
}

/// Σ token losses and the gradients of `scale` times it, for hidden `[T, H]`, weight `[V, H]`, targets `[T]`.
pub(super) fn cross_entropy(hidden: &[f32], weight: &[f32], targets: &[i32], scale: f32) -> Truth {
    let features = hidden.len() / targets.len();
    let hidden = Var::from_tensor(&tensor(hidden, &[targets.len(), features])).unwrap();
    let weight = Var::from_tensor(&tensor(weight, &[weight.len() / features, features])).unwrap();
    let logits = hidden.matmul(&weight.t().unwrap()).unwrap();
    let log_p = candle_nn::ops::log_softmax(&logits, D::Minus1).unwrap();
    let index: Vec<u32> = targets.iter().map(|&y| y.max(0) as u32).collect();
    let index = Tensor::from_vec(index, (targets.len(), 1), &Device::Cpu).unwrap();
    let mask: Vec<f32> = targets.iter().map(|&y| if y == IGNORE { 0.0 } else { 1.0 }).collect();
    let picked = log_p.gather(&index, 1).unwrap().squeeze(1).unwrap().neg().unwrap();
    let token_loss = (picked * tensor(&mask, &[targets.len()])).unwrap();
    let total = token_loss.sum_all().unwrap();
    let gradients = (&total * f64::from(scale)).unwrap().backward().unwrap();
    Truth {
        sum: total.to_scalar().unwrap(),
        token_loss: flat(&token_loss),
        dhidden: flat(gradients.get(&hidden).unwrap()),
        dweight: flat(gradients.get(&weight).unwrap()),
    }
}
