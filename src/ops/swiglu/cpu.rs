//! The elements of one task: SwiGLU on the CPU.
//!
//! Invariant: the same bits on every path (see `ops::vector`).
//! Reference: the formulas in the operation's header.

use crate::ops::vector::kernel;
use crate::ops::vector_exp::sigmoid;

kernel! {
    pub(super) fn forward(gate: &[f32], up: &[f32], out: &mut [f32]) {
        for ((out, &gate), &up) in out.iter_mut().zip(gate).zip(up) {
            *out = gate * sigmoid(gate) * up;
        }
    }
}

kernel! {
    pub(super) fn backward_in_place(gate: &mut [f32], up: &mut [f32], dact: &mut [f32]) {
        for ((gate, up), dact) in gate.iter_mut().zip(up).zip(dact) {
            let (g, u, d) = (*gate, *up, *dact);
            let s = sigmoid(g);
            let silu = g * s;
            *gate = d * u * (s * (1.0 + g * (1.0 - s)));
            *up = d * silu;
            *dact = silu * u;
        }
    }
}
