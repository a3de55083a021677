//! Root-mean-square norm, alone or after adding to the residual stream.
//!
//! Legend: T rows (tokens), H columns (features); all matrices `[T, H]`, row-major f32.
//!
//! Forward, for each row: `s = 1 / sqrt(mean(x²) + eps)`, `y = (x · s) · w`.
//! Backward, with `g = dy · w`: `dx += s · (g − x · s² · mean(g · x))`, `dw += Σ_rows dy · x · s`.
//!
//! Saved for backward: `x` (the residual stream, which is kept anyway) and `s`, 4 bytes a token.
//! Invariant: the weight gradient adds fixed chunks of rows in order, so its bits do not depend on the threads.
//! Reference: Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019; the order of the operations is the one
//! of `transformers`' `LlamaRMSNorm` in f32.

mod cpu;
pub mod cuda;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

use super::vector::rows_per_task;
use crate::device::{cpu_path, CpuPath};
use crate::ops::profile;
use rayon::prelude::*;

/// Rows whose weight gradients are added up before they join the total.
const PARTIAL_ROWS: usize = 64;

/// What the backward pass needs of the forward pass.
#[derive(Clone, Copy)]
pub struct Saved<'a> {
    /// Input of the norm `[T, H]` (after the addition in [`add_forward`]).
    pub x: &'a [f32],
    /// `1 / sqrt(mean(x²) + eps)` of each row `[T]`.
    pub inv_rms: &'a [f32],
    /// The weight `[H]`.
    pub weight: &'a [f32],
}

/// `y = norm(x) · weight`. `x` and `y` are `[T, H]` with `H = weight.len()`, `inv_rms` is `[T]`.
pub fn forward(x: &[f32], weight: &[f32], eps: f32, y: &mut [f32], inv_rms: &mut [f32]) {
    forward_on(cpu_path(), x, weight, eps, y, inv_rms);
}

/// `residual += delta; y = norm(residual) · weight`, in one pass over memory. Shapes as in [`forward`].
pub fn add_forward(residual: &mut [f32], delta: &[f32], weight: &[f32], eps: f32, y: &mut [f32], inv_rms: &mut [f32]) {
    add_forward_on(cpu_path(), (residual, delta), weight, eps, y, inv_rms);
}

/// `dx += ∂L/∂x` and, where asked for, `dweight += ∂L/∂weight`, given `dy` `[T, H]`.
pub fn backward(saved: Saved<'_>, dy: &[f32], dx: &mut [f32], dweight: Option<&mut [f32]>) {
    backward_on(cpu_path(), saved, dy, dx, dweight);
}

fn check(rows: usize, features: usize, lengths: &[usize]) {
    assert!(features > 0, "a norm over no features");
    assert!(lengths.iter().all(|&len| len == rows * features), "[{rows}, {features}] expected, lengths {lengths:?}");
}

fn forward_on(path: CpuPath, x: &[f32], weight: &[f32], eps: f32, y: &mut [f32], inv_rms: &mut [f32]) {
    let _span = profile::span("norm", 0.0);
    let features = weight.len();
    check(inv_rms.len(), features, &[x.len(), y.len()]);
    let rows = rows_per_task(features);
    if inv_rms.len() <= rows {
        return cpu::forward(path, x, weight, eps, y, inv_rms);
    }
    let size = rows * features;
    (x.par_chunks(size), y.par_chunks_mut(size), inv_rms.par_chunks_mut(rows))
        .into_par_iter()
        .for_each(|(x, y, inv_rms)| cpu::forward(path, x, weight, eps, y, inv_rms));
}

fn add_forward_on(
    path: CpuPath,
    (residual, delta): (&mut [f32], &[f32]),
    weight: &[f32],
    eps: f32,
    y: &mut [f32],
    inv_rms: &mut [f32],
) {
    let _span = profile::span("norm", 0.0);
    let features = weight.len();
    check(inv_rms.len(), features, &[residual.len(), delta.len(), y.len()]);
    let rows = rows_per_task(features);
    if inv_rms.len() <= rows {
        return cpu::add_forward(path, residual, delta, weight, eps, y, inv_rms);
    }
    let size = rows * features;
    (residual.par_chunks_mut(size), delta.par_chunks(size), y.par_chunks_mut(size), inv_rms.par_chunks_mut(rows))
        .into_par_iter()
        .for_each(|(residual, delta, y, inv_rms)| cpu::add_forward(path, residual, delta, weight, eps, y, inv_rms));
}

fn backward_on(path: CpuPath, saved: Saved<'_>, dy: &[f32], dx: &mut [f32], dweight: Option<&mut [f32]>) {
    let _span = profile::span("norm", 0.0);
    let Saved { x, inv_rms, weight } = saved;
    let features = weight.len();
    check(inv_rms.len(), features, &[x.len(), dy.len(), dx.len()]);
    if let Some(dweight) = dweight {
        assert_eq!(dweight.len(), features);
        weight_gradient(path, saved, dy, dweight);
    }
    let rows = rows_per_task(features);
    if inv_rms.len() <= rows {
        return cpu::input_gradient(path, x, inv_rms, weight, dy, dx);
    }
    let size = rows * features;
    (x.par_chunks(size), inv_rms.par_chunks(rows), dy.par_chunks(size), dx.par_chunks_mut(size))
        .into_par_iter()
        .for_each(|(x, inv_rms, dy, dx)| cpu::input_gradient(path, x, inv_rms, weight, dy, dx));
}

fn weight_gradient(path: CpuPath, saved: Saved<'_>, dy: &[f32], dweight: &mut [f32]) {
    let Saved { x, inv_rms, weight } = saved;
    let features = weight.len();
    let size = PARTIAL_ROWS * features;
    let mut partial = vec![0f32; inv_rms.len().div_ceil(PARTIAL_ROWS) * features];
    (x.par_chunks(size), inv_rms.par_chunks(PARTIAL_ROWS), dy.par_chunks(size), partial.par_chunks_mut(features))
        .into_par_iter()
        .for_each(|(x, inv_rms, dy, partial)| cpu::weight_gradient(path, x, inv_rms, dy, partial));
    for partial in partial.chunks_exact(features) {
        for (total, value) in dweight.iter_mut().zip(partial) {
            *total += value;
        }
    }
}
