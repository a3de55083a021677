//! SwiGLU activation of the feed-forward network.
//!
//! All slices have the same length (tokens times intermediate features), any shape, f32.
//!
//! Forward: `act = silu(gate) · up`, `silu(g) = g · σ(g)`, `σ(g) = 1 / (1 + e^−g)`.
//! Backward: `dgate = dact · up · σ(g) · (1 + g · (1 − σ(g)))`, `dup = dact · silu(gate)`.
//!
//! Saved for backward: `gate` and `up`, which the backward pass overwrites with their gradients; `act` is computed again
//! on the way, bit for bit, because the gradient of the down projection's adapter needs it.
//! Reference: Shazeer, "GLU Variants Improve Transformer", 2020; `transformers`' `LlamaMLP`.

mod cpu;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

use super::vector::TASK;
use crate::device::{cpu_path, CpuPath};
use rayon::prelude::*;

/// `out = silu(gate) · up`.
pub fn forward(gate: &[f32], up: &[f32], out: &mut [f32]) {
    forward_on(cpu_path(), gate, up, out);
}

/// On return `gate` holds `∂L/∂gate`, `up` holds `∂L/∂up`, and `dact` (`∂L/∂act` before) holds `act`.
pub fn backward_in_place(gate: &mut [f32], up: &mut [f32], dact: &mut [f32]) {
    backward_in_place_on(cpu_path(), gate, up, dact);
}

fn forward_on(path: CpuPath, gate: &[f32], up: &[f32], out: &mut [f32]) {
    assert!(gate.len() == out.len() && up.len() == out.len());
    if out.len() <= TASK {
        return cpu::forward(path, gate, up, out);
    }
    (gate.par_chunks(TASK), up.par_chunks(TASK), out.par_chunks_mut(TASK))
        .into_par_iter()
        .for_each(|(gate, up, out)| cpu::forward(path, gate, up, out));
}

fn backward_in_place_on(path: CpuPath, gate: &mut [f32], up: &mut [f32], dact: &mut [f32]) {
    assert!(gate.len() == dact.len() && up.len() == dact.len());
    if dact.len() <= TASK {
        return cpu::backward_in_place(path, gate, up, dact);
    }
    (gate.par_chunks_mut(TASK), up.par_chunks_mut(TASK), dact.par_chunks_mut(TASK))
        .into_par_iter()
        .for_each(|(gate, up, dact)| cpu::backward_in_place(path, gate, up, dact));
}
