//! The rows of one task: softmax and loss on the CPU.
//!
//! Invariant: exponentials are summed in f32 over fixed lanes within blocks of [`BLOCK`] logits and in f64 over the
//! blocks, so the error of the sum does not grow with the vocabulary; both kernels give the same losses, and every path
//! the same bits. Reference: the formulas in the operation's header.

use crate::ops::vector::{add_lanes, kernel, LANES};
use crate::ops::vector_exp::exp;

const BLOCK: usize = 16 * LANES;

/// The largest value; NaN is passed over (it comes back through the sum).
#[inline(always)]
fn largest(row: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (whole, rest) = row.as_chunks::<LANES>();
    for values in whole {
        for lane in 0..LANES {
            lanes[lane] = if values[lane] > lanes[lane] { values[lane] } else { lanes[lane] };
        }
    }
    for (lane, &value) in lanes.iter_mut().zip(rest) {
        *lane = if value > *lane { value } else { *lane };
    }
    lanes.iter().fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a })
}

/// `ln Σ e^z − z_y` from the largest logit, the sum of `e^(z − largest)` and the target's logit.
#[inline(always)]
fn loss(largest: f32, sum: f64, target: f32) -> f64 {
    (f64::from(largest) - f64::from(target)) + sum.ln()
}

kernel! {
    /// Losses of rows of so many logits, so far from one row to the next.
    pub(super) fn losses(shape: (usize, usize), logits: &[f32], targets: &[usize], losses: &mut [f64]) {
        let (vocabulary, stride) = shape;
        for ((row, &target), out) in logits.chunks_exact(stride).zip(targets).zip(losses) {
            let row = &row[..vocabulary];
            let largest = largest(row);
            let mut sum = 0f64;
            for block in row.chunks(BLOCK) {
                let mut lanes = [0f32; LANES];
                let (whole, rest) = block.as_chunks::<LANES>();
                for values in whole {
                    let mut exponentials = [0f32; LANES];
                    for (out, value) in exponentials.iter_mut().zip(values) {
                        *out = exp(value - largest);
                    }
                    for (lane, value) in lanes.iter_mut().zip(exponentials) {
                        *lane += value;
                    }
                }
                for (lane, value) in lanes.iter_mut().zip(rest) {
                    *lane += exp(value - largest);
                }
                sum += f64::from(add_lanes(lanes));
            }
            *out = loss(largest, sum, row[target]);
        }
    }
}

kernel! {
    /// The same losses; the logits become `(softmax − onehot) · scale`.
    pub(super) fn losses_and_gradients(
        shape: (usize, usize),
        logits: &mut [f32],
        targets: &[usize],
        losses: &mut [f64],
        scale: f32,
    ) {
        let (vocabulary, stride) = shape;
        for ((row, &target), out) in logits.chunks_exact_mut(stride).zip(targets).zip(losses) {
            let row = &mut row[..vocabulary];
            let (largest, target_logit) = (largest(row), row[target]);
            let mut sum = 0f64;
            for block in row.chunks_mut(BLOCK) {
                let mut lanes = [0f32; LANES];
                let (whole, rest) = block.as_chunks_mut::<LANES>();
                for values in whole {
                    for value in values.iter_mut() {
                        *value = exp(*value - largest);
                    }
                    for (lane, value) in lanes.iter_mut().zip(values) {
                        *lane += *value;
                    }
                }
                for (lane, value) in lanes.iter_mut().zip(rest) {
                    *value = exp(*value - largest);
                    *lane += *value;
                }
                sum += f64::from(add_lanes(lanes));
            }
            *out = loss(largest, sum, target_logit);
            let factor = (f64::from(scale) / sum) as f32;
            for value in row.iter_mut() {
                *value *= factor;
            }
            row[target] -= scale;
        }
    }
}
