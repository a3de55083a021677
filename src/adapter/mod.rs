//! Low-rank adapters: their options, their parameters, their files, and what they add to a weight.
//!
//! A linear `W [N,K]` gets `A [R,K]` and `B [N,R]`; its output gains `s·B·A·x` with s = α/R (α/√R with rsLoRA). B starts at
//! zero, so a fresh adapter changes nothing. DoRA adds a magnitude a row, which starts as the row's norm.
//! References: Hu et al. 2021 (LoRA), Kalajdzievski 2023 (rsLoRA), Liu et al. 2024 (DoRA); names and semantics are PEFT's.

mod config;
pub mod delta;
pub mod dora;
pub mod peft;

pub use config::{LoraConfig, Modules, Target};

use crate::ops::{Param, ParamId, ParamKind, ParamStore, RandomStream};

/// Shape of a linear's weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinearShape {
    /// Output features, N.
    pub rows: usize,
    /// Input features, K.
    pub cols: usize,
}

/// The parameters of one linear's adapter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LoraParams {
    /// `[R, K]`.
    pub a: ParamId,
    /// `[N, R]`.
    pub b: ParamId,
    /// `[1, N]`, with DoRA.
    pub magnitude: Option<ParamId>,
    /// Factor of the adapter's output.
    pub scale: f32,
    /// Probability of dropping an element of the adapter's input in training.
    pub dropout: f32,
    /// The α that gave `scale`.
    pub alpha: f64,
    /// Whether `scale` is α/√R.
    pub rslora: bool,
}

/// Name of the parameter A of a linear, e.g. of `model.layers.0.self_attn.q_proj`.
pub fn name_of_a(linear: &str) -> String {
    format!("{linear}.lora_A.weight")
}

/// Name of the parameter B of a linear.
pub fn name_of_b(linear: &str) -> String {
    format!("{linear}.lora_B.weight")
}

/// Name of the magnitude of a linear.
pub fn name_of_magnitude(linear: &str) -> String {
    format!("{linear}.lora_magnitude_vector.weight")
}

/// Adds a fresh adapter for the linear `name`: A uniform in ±1/√K, B zero, the magnitude as given (the norms of the
/// weight's rows; with DoRA only). The random values depend on the seed and the name alone.
pub fn create(
    store: &mut ParamStore,
    name: &str,
    shape: LinearShape,
    config: &LoraConfig,
    magnitude: Option<Vec<f32>>,
    seed: u64,
) -> LoraParams {
    let LinearShape { rows, cols } = shape;
    let rank = config.rank_of(name);
    let stream = RandomStream::derive(seed, &name_of_a(name), &[]);
    let bound = 1.0 / (cols as f32).sqrt();
    let a = (0..(rank * cols) as u64).map(|index| (2.0 * stream.uniform(index) - 1.0) * bound).collect();
    let a = Param { name: name_of_a(name), kind: ParamKind::LoraA, rows: rank, cols, value: a };
    let b = Param { name: name_of_b(name), kind: ParamKind::LoraB, rows, cols: rank, value: vec![0.0; rows * rank] };
    let magnitude = magnitude.map(|value| {
        let name = name_of_magnitude(name);
        Param { name, kind: ParamKind::Magnitude, rows: 1, cols: rows, value }
    });
    LoraParams {
        a: store.add(a),
        b: store.add(b),
        magnitude: magnitude.map(|param| store.add(param)),
        scale: config.scale_of(name),
        dropout: config.dropout,
        alpha: config.alpha_of(name),
        rslora: config.rslora,
    }
}

#[cfg(test)]
mod tests;
