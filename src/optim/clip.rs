//! Clipping of the global gradient norm.
//!
//! total = √(Σ g²) over all tensors, factor = min(1, max_norm / (total + 1e-6)); every gradient counts times the factor.
//! Squares are summed in f64, in chunks whose sums are added in order. Reference: `torch.nn.utils.clip_grad_norm_`.

use super::{vectorized, CHUNK};
use crate::ops::Gradients;
use rayon::prelude::*;

/// Running sums of a chunk, added up only at its end: enough to fill the vector units' latency.
const LANES: usize = 32;

/// The Euclidean norm of all gradients together; not finite when any of them is not.
pub fn global_norm(gradients: &Gradients) -> f64 {
    let chunks: Vec<&[f32]> = gradients.iter().flat_map(|values| values.chunks(CHUNK)).collect();
    let sums: Vec<f64> = chunks.into_par_iter().map(sum_of_squares).collect();
    norm_of(&sums)
}

/// The norm of values whose squares add up to `sums` by chunk.
pub(super) fn norm_of(sums: &[f64]) -> f64 {
    sums.iter().sum::<f64>().sqrt()
}

/// The factor that brings a norm of `total` down to `max_norm`; 1 where `max_norm` is 0 (no clipping).
pub fn scale(total: f64, max_norm: f64) -> f32 {
    if max_norm <= 0.0 {
        return 1.0;
    }
    (max_norm / (total + 1e-6)).min(1.0) as f32
}

vectorized! {
    /// Σ x² of a chunk in f64.
    fn sum_of_squares(values: &[f32]) -> f64 = sum_of_squares_body;
}

#[inline(always)]
fn sum_of_squares_body(values: &[f32]) -> f64 {
    let mut sums = [0.0f64; LANES];
    let (groups, rest) = values.as_chunks::<LANES>();
    for group in groups {
        for (sum, &value) in sums.iter_mut().zip(group) {
            let value = f64::from(value);
            *sum += value * value;
        }
    }
    let tail: f64 = rest.iter().map(|&value| f64::from(value) * f64::from(value)).sum();
    sums.iter().sum::<f64>() + tail
}
