//! The rows of one task: kernels of the norm on the CPU.
//!
//! Invariant: a row's result depends on that row only, with the same bits on every path (see `ops::vector`).
//! Reference: the formulas in the operation's header.

use crate::ops::vector::{kernel, sum_pairs, sum_products};

/// Sum of squares to `1 / sqrt(mean + eps)`.
#[inline(always)]
fn inverse_rms(x: &[f32], eps: f32) -> f32 {
    let squares = sum_pairs(x, x, |a, b| a * b);
    1.0 / (squares / x.len() as f32 + eps).sqrt()
}

#[inline(always)]
fn scale_row(x: &[f32], weight: &[f32], scale: f32, y: &mut [f32]) {
    for ((y, &x), &w) in y.iter_mut().zip(x).zip(weight) {
        *y = x * scale * w;
    }
}

kernel! {
    pub(super) fn forward(x: &[f32], weight: &[f32], eps: f32, y: &mut [f32], inv_rms: &mut [f32]) {
        let features = weight.len();
        for ((x, y), inv) in x.chunks_exact(features).zip(y.chunks_exact_mut(features)).zip(inv_rms) {
            *inv = inverse_rms(x, eps);
            scale_row(x, weight, *inv, y);
        }
    }
}

kernel! {
    pub(super) fn add_forward(
        residual: &mut [f32],
        delta: &[f32],
        weight: &[f32],
        eps: f32,
        y: &mut [f32],
        inv_rms: &mut [f32],
    ) {
        let features = weight.len();
        let rows = residual.chunks_exact_mut(features).zip(delta.chunks_exact(features));
        for (((x, delta), y), inv) in rows.zip(y.chunks_exact_mut(features)).zip(inv_rms) {
            for (x, &delta) in x.iter_mut().zip(delta) {
                *x += delta;
            }
            *inv = inverse_rms(x, eps);
            scale_row(x, weight, *inv, y);
        }
    }
}

kernel! {
    pub(super) fn input_gradient(x: &[f32], inv_rms: &[f32], weight: &[f32], dy: &[f32], dx: &mut [f32]) {
        let features = weight.len();
        let rows = x.chunks_exact(features).zip(inv_rms).zip(dy.chunks_exact(features));
        for (((x, &inv), dy), dx) in rows.zip(dx.chunks_exact_mut(features)) {
            let back = inv * inv * (sum_products(dy, weight, x) / features as f32);
            for (((dx, &x), &dy), &w) in dx.iter_mut().zip(x).zip(dy).zip(weight) {
                *dx += inv * (dy * w - x * back);
            }
        }
    }
}

kernel! {
    pub(super) fn weight_gradient(x: &[f32], inv_rms: &[f32], dy: &[f32], dweight: &mut [f32]) {
        let features = dweight.len();
        for ((x, &inv), dy) in x.chunks_exact(features).zip(inv_rms).zip(dy.chunks_exact(features)) {
            for ((total, &x), &dy) in dweight.iter_mut().zip(x).zip(dy) {
                *total += dy * (x * inv);
            }
        }
    }
}
