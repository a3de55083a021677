//! Rotary position embedding, in place, with the scalings that LLaMA checkpoints use.
//!
//! Legend: T tokens, D values a head. `x` is `[T, heads · D]`, row-major f32.
//!
//! The values `i` and `i + D/2` of a head are a pair (the `rotate_half` convention of Hugging Face checkpoints), turned
//! by the angle `a = position · inv_freq[i]`:
//! forward `x[i]' = x[i] cos a − x[i+D/2] sin a`, `x[i+D/2]' = x[i+D/2] cos a + x[i] sin a`;
//! backward is the turn by `−a`. Nothing is saved.
//!
//! `inv_freq[i] = theta^(−2i/D)`, then the scaling. It is computed as torch does, in f32 step by step, because its last
//! bit times a long position is visible in the angle: with these steps the frequencies equal those of `transformers`
//! bit for bit, with f64 steps half of them do not.
//!
//! Invariant: the table has the cosine and sine of the f32 angle, rounded once; a grown table keeps its first rows.
//! Reference: Su et al., "RoFormer", 2021; `transformers`' `modeling_rope_utils` for the scalings.

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

/// How the frequencies are changed to reach beyond the positions of the original training.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum RopeScaling {
    /// Not at all.
    #[default]
    Default,
    /// Every frequency divided by a factor.
    Linear {
        /// Larger than 1 for longer texts.
        factor: f64,
    },
    /// Llama 3.1: long wavelengths divided by a factor, short ones kept, a linear passage between.
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Wavelengths above `original_max_position_embeddings / low_freq_factor` are divided.
        low_freq_factor: f64,
        /// Wavelengths below `original_max_position_embeddings / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Positions of the original training.
        original_max_position_embeddings: usize,
    },
}

/// What determines the angles.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RopeConfig {
    /// Base of the frequencies (`rope_theta`).
    pub theta: f64,
    /// D, even.
    pub head_dim: usize,
    /// Change of the frequencies.
    pub scaling: RopeScaling,
}

impl RopeConfig {
    /// The `D/2` angular frequencies in radians a position.
    pub fn inv_freq(&self) -> Vec<f32> {
        let dim = self.head_dim as f32;
        let plain = (0..self.head_dim).step_by(2).map(|i| {
            let power = self.theta.powf(f64::from(i as f32 / dim)) as f32;
            1.0 / power
        });
        plain.map(|frequency| self.scaling.apply(frequency)).collect()
    }
}

impl RopeScaling {
    fn apply(self, frequency: f32) -> f32 {
        match self {
            RopeScaling::Default => frequency,
            RopeScaling::Linear { factor } => frequency / factor as f32,
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                let original = original_max_position_embeddings as f64;
                let wavelength = std::f32::consts::TAU / frequency;
                if f64::from(wavelength) > original / low_freq_factor {
                    frequency / factor as f32
                } else if f64::from(wavelength) < original / high_freq_factor {
                    frequency
                } else {
                    let turns = original as f32 / wavelength;
                    let smooth = (turns - low_freq_factor as f32) / (high_freq_factor - low_freq_factor) as f32;
                    (1.0 - smooth) * frequency / factor as f32 + smooth * frequency
                }
            }
        }
    }
}

/// Which way to turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// By the position's angle: queries and keys.
    Forward,
    /// Back by it: their gradients.
    Backward,
}

/// Cosines and sines of the first positions, `[positions, D/2]`.
#[derive(Debug, Clone)]
pub struct RopeTable {
    inv_freq: Vec<f32>,
    cos: Vec<f32>,
    sin: Vec<f32>,
    positions: usize,
}

impl RopeTable {
    /// The table of positions `0..max_positions`. `head_dim` must be even and not zero.
    pub fn new(config: &RopeConfig, max_positions: usize) -> RopeTable {
        assert!(config.head_dim > 0 && config.head_dim.is_multiple_of(2), "head_dim {} is odd", config.head_dim);
        let mut table = RopeTable { inv_freq: config.inv_freq(), cos: Vec::new(), sin: Vec::new(), positions: 0 };
        table.ensure(max_positions);
        table
    }

    /// The `D/2` frequencies in radians a position.
    pub fn inv_freq(&self) -> &[f32] {
        &self.inv_freq
    }

    /// Number of positions in the table.
    pub fn positions(&self) -> usize {
        self.positions
    }

    /// Cosines of one position, `[D/2]`.
    pub fn cos(&self, position: usize) -> &[f32] {
        let half = self.inv_freq.len();
        &self.cos[position * half..(position + 1) * half]
    }

    /// Sines of one position, `[D/2]`.
    pub fn sin(&self, position: usize) -> &[f32] {
        let half = self.inv_freq.len();
        &self.sin[position * half..(position + 1) * half]
    }

    /// Grows the table to at least `positions` positions; what is there stays.
    pub fn ensure(&mut self, positions: usize) {
        let missing = positions.saturating_sub(self.positions);
        self.cos.reserve(missing * self.inv_freq.len());
        self.sin.reserve(missing * self.inv_freq.len());
        for position in self.positions..positions {
            for frequency in &self.inv_freq {
                let (sin, cos) = f64::from(position as f32 * frequency).sin_cos();
                self.cos.push(cos as f32);
                self.sin.push(sin as f32);
            }
        }
        self.positions = self.positions.max(positions);
    }
}

/// Turns every head of `x` `[T, heads · D]` in place; row `t` stands at `positions[t]`, which the table must hold.
pub fn apply(x: &mut [f32], heads: usize, positions: &[u32], table: &RopeTable, direction: Direction) {
    apply_on(cpu_path(), x, heads, positions, table, direction);
}

fn apply_on(path: CpuPath, x: &mut [f32], heads: usize, positions: &[u32], table: &RopeTable, direction: Direction) {
    let _span = profile::span("rope", 0.0);
    let features = heads * 2 * table.inv_freq.len();
    assert!(heads > 0 && x.len() == positions.len() * features, "[{}, {features}] expected", positions.len());
    let last = positions.iter().max().map_or(0, |&p| p as usize + 1);
    assert!(last <= table.positions, "position {last} of a table of {}", table.positions);
    let rows = rows_per_task(features);
    if positions.len() <= rows {
        return cpu::turn(path, x, positions, table, direction);
    }
    (x.par_chunks_mut(rows * features), positions.par_chunks(rows))
        .into_par_iter()
        .for_each(|(x, positions)| cpu::turn(path, x, positions, table, direction));
}
