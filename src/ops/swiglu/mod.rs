//! SwiGLU activation of the feed-forward network.
//!
//! All slices have the same length (tokens times intermediate features), any shape, f32.
//!
//! Forward: `act = silu(gate) · up`, `silu(g) = g · σ(g)`, `σ(g) = 1 / (1 + e^−g)`.
//! Backward: `dgate = dact · up · σ(g) · (1 + g · (1 − σ(g)))`, `dup = dact · silu(gate)`.
//!
//! Saved for backward: `gate` and `up`, which the backward pass overwrites with their gradients; `act` is computed again
//! on the way, bit for bit, because the gradient of the down projection's adapter needs it. With bf16 operands gate and
//! up are rounded to bf16 on the way in and kept so: the same formulas of the rounded values.
//! Reference: Shazeer, "GLU Variants Improve Transformer", 2020; `transformers`' `LlamaMLP`.

mod cpu;
pub mod cuda;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

use super::vector::TASK;
use super::{Arena, HalfMatrix, Matrix};
use crate::device::{cpu_path, CpuPath};
use crate::ops::profile;
use rayon::prelude::*;

/// `out = silu(gate) · up`.
pub fn forward(gate: &[f32], up: &[f32], out: &mut [f32]) {
    forward_on(cpu_path(), gate, up, out);
}

/// On return `gate` holds `∂L/∂gate`, `up` holds `∂L/∂up`, and `dact` (`∂L/∂act` before) holds `act`.
pub fn backward_in_place(gate: &mut [f32], up: &mut [f32], dact: &mut [f32]) {
    backward_in_place_on(cpu_path(), gate, up, dact);
}

/// [`forward`] of gate and up rounded to bf16.
pub fn forward_rounding(gate: &[f32], up: &[f32], out: &mut [f32]) {
    let _span = profile::span("swiglu", 0.0);
    assert!(gate.len() == out.len() && up.len() == out.len());
    let path = cpu_path();
    (gate.par_chunks(TASK), up.par_chunks(TASK), out.par_chunks_mut(TASK))
        .into_par_iter()
        .for_each(|(gate, up, out)| cpu::forward_rounding(path, gate, up, out));
}

/// [`forward_rounding`], and the rounded gate and up for [`backward_kept`].
pub fn forward_keeping(gate: &Matrix, up: &Matrix, out: &mut Matrix, arena: &Arena) -> [HalfMatrix; 2] {
    let _span = profile::span("swiglu", 0.0);
    assert!(gate.len() == out.len() && up.len() == out.len());
    let path = cpu_path();
    let mut kept = [(); 2].map(|()| HalfMatrix::new(gate.rows(), gate.cols(), arena));
    let [gate_kept, up_kept] = &mut kept;
    let words = gate_kept.words_mut().par_chunks_mut(TASK / 2).zip(up_kept.words_mut().par_chunks_mut(TASK / 2));
    (gate.par_chunks(TASK), up.par_chunks(TASK), out.par_chunks_mut(TASK), words)
        .into_par_iter()
        .for_each(|(gate, up, out, (g, u))| cpu::forward_keeping(path, gate, up, out, [g, u]));
    kept
}

/// [`backward_in_place`] of what [`forward_keeping`] kept: returns `∂L/∂gate` and `∂L/∂up`, and `dact` becomes `act`.
pub fn backward_kept(kept: [HalfMatrix; 2], dact: &mut Matrix, arena: &Arena) -> [Matrix; 2] {
    let _span = profile::span("swiglu", 0.0);
    let [gate, up] = &kept;
    assert!(gate.rows() * gate.cols() == dact.len() && up.words().len() == gate.words().len());
    let path = cpu_path();
    let mut gradients = [(); 2].map(|()| arena.matrix(gate.rows(), gate.cols()));
    let [dgate, dup] = &mut gradients;
    let words = gate.words().par_chunks(TASK / 2).zip(up.words().par_chunks(TASK / 2));
    (dact.par_chunks_mut(TASK), dgate.par_chunks_mut(TASK), dup.par_chunks_mut(TASK), words)
        .into_par_iter()
        .for_each(|(dact, dgate, dup, (g, u))| cpu::backward_kept(path, [g, u], dact, [dgate, dup]));
    gradients
}

fn forward_on(path: CpuPath, gate: &[f32], up: &[f32], out: &mut [f32]) {
    let _span = profile::span("swiglu", 0.0);
    assert!(gate.len() == out.len() && up.len() == out.len());
    if out.len() <= TASK {
        return cpu::forward(path, gate, up, out);
    }
    (gate.par_chunks(TASK), up.par_chunks(TASK), out.par_chunks_mut(TASK))
        .into_par_iter()
        .for_each(|(gate, up, out)| cpu::forward(path, gate, up, out));
}

fn backward_in_place_on(path: CpuPath, gate: &mut [f32], up: &mut [f32], dact: &mut [f32]) {
    let _span = profile::span("swiglu", 0.0);
    assert!(gate.len() == dact.len() && up.len() == dact.len());
    if dact.len() <= TASK {
        return cpu::backward_in_place(path, gate, up, dact);
    }
    (gate.par_chunks_mut(TASK), up.par_chunks_mut(TASK), dact.par_chunks_mut(TASK))
        .into_par_iter()
        .for_each(|(gate, up, dact)| cpu::backward_in_place(path, gate, up, dact));
}
