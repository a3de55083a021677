//! Dropout with a counter-based mask, and the uniform noise of NEFTune.
//!
//! Forward: `out[i] = x[i] · m[i] / (1 − p)`, with `m[i] = 1` where word `i` of the stream is at least `p · 2³²`, else 0.
//! Backward: the same call on the gradient: the mask is drawn again from the stream, so nothing is saved.
//! NEFTune: `x[i] += bound · (2u[i] − 1)` with `u[i]` uniform in [0, 1); its gradient is the identity.
//!
//! Invariant: element `i` depends on word `i` of the stream only, whatever the chunks, threads and CPU path.
//! Reference: Srivastava et al., "Dropout", 2014 (inverted scaling as in torch); Jain et al., "NEFTune", 2023.

mod cpu;
pub mod cuda;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

use super::vector::TASK;
use super::RandomStream;
use crate::device::{cpu_path, CpuPath};
use rayon::prelude::*;

/// What a kernel needs to draw the mask.
#[derive(Clone, Copy)]
struct Mask {
    stream: RandomStream,
    /// Words below it drop their element.
    threshold: u32,
    /// `1 / (1 − p)`.
    scale: f32,
}

impl Mask {
    /// `probability` of dropping, in [0, 1).
    fn new(probability: f32, stream: RandomStream) -> Mask {
        assert!((0.0..1.0).contains(&probability), "a dropout probability of {probability}");
        let threshold = (f64::from(probability) * 4_294_967_296.0).round() as u32;
        Mask { stream, threshold, scale: 1.0 / (1.0 - probability) }
    }
}

/// `out = x · mask / (1 − probability)`; same lengths. A probability of 0 copies.
pub fn apply(x: &[f32], out: &mut [f32], probability: f32, stream: RandomStream) {
    assert_eq!(x.len(), out.len());
    if probability == 0.0 {
        return out.copy_from_slice(x);
    }
    apply_on(cpu_path(), x, out, Mask::new(probability, stream));
}

/// `x = x · mask / (1 − probability)`.
pub fn apply_in_place(x: &mut [f32], probability: f32, stream: RandomStream) {
    if probability == 0.0 {
        return;
    }
    apply_in_place_on(cpu_path(), x, Mask::new(probability, stream));
}

/// `dx += dy · mask / (1 − probability)`: the backward pass into a gradient that has other terms; same lengths.
pub fn apply_add(dy: &[f32], dx: &mut [f32], probability: f32, stream: RandomStream) {
    assert_eq!(dy.len(), dx.len());
    apply_add_on(cpu_path(), dy, dx, Mask::new(probability, stream));
}

/// `x[i] += uniform in [−bound, bound)`: the noise of NEFTune, whose bound is `alpha / sqrt(T · H)`.
pub fn add_uniform(x: &mut [f32], bound: f32, stream: RandomStream) {
    add_uniform_on(cpu_path(), x, bound, stream);
}

fn apply_on(path: CpuPath, x: &[f32], out: &mut [f32], mask: Mask) {
    if out.len() <= TASK {
        return cpu::apply(path, x, out, mask, 0);
    }
    (x.par_chunks(TASK), out.par_chunks_mut(TASK))
        .into_par_iter()
        .enumerate()
        .for_each(|(task, (x, out))| cpu::apply(path, x, out, mask, (task * TASK) as u64));
}

fn apply_in_place_on(path: CpuPath, x: &mut [f32], mask: Mask) {
    if x.len() <= TASK {
        return cpu::apply_in_place(path, x, mask, 0);
    }
    x.par_chunks_mut(TASK).enumerate().for_each(|(task, x)| cpu::apply_in_place(path, x, mask, (task * TASK) as u64));
}

fn apply_add_on(path: CpuPath, dy: &[f32], dx: &mut [f32], mask: Mask) {
    if dx.len() <= TASK {
        return cpu::apply_add(path, dy, dx, mask, 0);
    }
    (dy.par_chunks(TASK), dx.par_chunks_mut(TASK))
        .into_par_iter()
        .enumerate()
        .for_each(|(task, (dy, dx))| cpu::apply_add(path, dy, dx, mask, (task * TASK) as u64));
}

fn add_uniform_on(path: CpuPath, x: &mut [f32], bound: f32, stream: RandomStream) {
    if x.len() <= TASK {
        return cpu::add_uniform(path, x, bound, stream, 0);
    }
    x.par_chunks_mut(TASK)
        .enumerate()
        .for_each(|(task, x)| cpu::add_uniform(path, x, bound, stream, (task * TASK) as u64));
}
