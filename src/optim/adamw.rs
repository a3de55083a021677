//! AdamW with f32 state, one fused pass over parameter, gradient and both moments.
//!
//! For step t from 1, with learning rate η and decay λ:
//! p ← p·(1-ηλ); m ← m + (1-β₁)(g-m); v ← β₂v + (1-β₂)g²; p ← p - η/(1-β₁ᵗ) · m / (√v/√(1-β₂ᵗ) + ε).
//! Bias corrections are f64, everything per element f32. Reference: `torch.optim.AdamW` (Loshchilov and Hutter, 2019).

use super::{vectorized, LearningRates, Optimizer, OptimizerConfig, OptimizerState, StateTensor, StateValues, CHUNK};
use crate::error::Result;
use crate::ops::{Gradients, ParamKind, ParamStore};
use rayon::prelude::*;

/// The moments of one parameter.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Moments {
    first: Vec<f32>,
    second: Vec<f32>,
}

impl Moments {
    pub(super) fn zeros(len: usize) -> Moments {
        Moments { first: vec![0.0; len], second: vec![0.0; len] }
    }

    pub(super) fn bytes(&self) -> usize {
        (self.first.len() + self.second.len()) * size_of::<f32>()
    }

    pub(super) fn state<'a>(&'a self, name: &str, out: &mut Vec<StateTensor<'a>>) {
        out.push(StateTensor { name: format!("{name}.exp_avg"), values: StateValues::F32(&self.first) });
        out.push(StateTensor { name: format!("{name}.exp_avg_sq"), values: StateValues::F32(&self.second) });
    }

    pub(super) fn take(state: &mut OptimizerState, name: &str, len: usize) -> Result<Moments> {
        let first = state.take_f32(&format!("{name}.exp_avg"), len)?;
        let second = state.take_f32(&format!("{name}.exp_avg_sq"), len)?;
        Ok(Moments { first, second })
    }

    /// Cuts the update of a parameter into chunks of work.
    pub(super) fn chunks<'a>(
        &'a mut self,
        values: &'a mut [f32],
        gradients: &'a [f32],
    ) -> impl Iterator<Item = Chunk<'a>> {
        let moments = self.first.chunks_mut(CHUNK).zip(self.second.chunks_mut(CHUNK));
        let data = values.chunks_mut(CHUNK).zip(gradients.chunks(CHUNK));
        data.zip(moments).map(|((values, gradients), (first, second))| Chunk { values, gradients, first, second })
    }
}

/// A run of values of one parameter with everything that its update touches.
pub(super) struct Chunk<'a> {
    values: &'a mut [f32],
    gradients: &'a [f32],
    first: &'a mut [f32],
    second: &'a mut [f32],
}

/// The numbers of one step that all elements of a parameter share.
#[derive(Debug, Clone, Copy)]
pub(super) struct Factors {
    /// Factor of the gradient (clipping).
    pub gradient_scale: f32,
    /// 1 - ηλ.
    pub keep: f32,
    /// 1 - β₁.
    pub first: f32,
    /// β₂.
    pub second: f32,
    /// 1 - β₂.
    pub second_new: f32,
    /// η / (1-β₁ᵗ).
    pub step_size: f32,
    /// √(1-β₂ᵗ).
    pub root_correction: f32,
    /// ε.
    pub eps: f32,
}

impl Factors {
    /// For parameters of a kind at step `step` (from 1).
    pub(super) fn new(
        config: &OptimizerConfig,
        step: u64,
        kind: ParamKind,
        rates: &LearningRates,
        gradient_scale: f32,
    ) -> Factors {
        let [first, second] = config.betas;
        let exponent = i32::try_from(step).unwrap_or(i32::MAX);
        let rate = rates.of(kind);
        Factors {
            gradient_scale,
            keep: (1.0 - rate * config.decay_of(kind)) as f32,
            first: (1.0 - first) as f32,
            second: second as f32,
            second_new: (1.0 - second) as f32,
            step_size: (rate / (1.0 - first.powi(exponent))) as f32,
            root_correction: (1.0 - second.powi(exponent)).sqrt() as f32,
            eps: config.eps as f32,
        }
    }

    /// The factors in the order of the GPU's kernel.
    pub(super) fn list(&self) -> [f32; 8] {
        let Factors { gradient_scale, keep, first, second, second_new, step_size, root_correction, eps } = *self;
        [gradient_scale, keep, first, second, second_new, step_size, root_correction, eps]
    }

    /// New value, first and second moment of one element.
    #[inline(always)]
    pub(super) fn update(&self, value: f32, gradient: f32, first: f32, second: f32) -> (f32, f32, f32) {
        let gradient = gradient * self.gradient_scale;
        let first = first + (gradient - first) * self.first;
        let second = second * self.second + gradient * gradient * self.second_new;
        let denominator = second.sqrt() / self.root_correction + self.eps;
        (value * self.keep - self.step_size * (first / denominator), first, second)
    }
}

vectorized! {
    /// Updates a chunk.
    fn update(chunk: Chunk<'_>, factors: &Factors) = update_body;
}

#[inline(always)]
fn update_body(chunk: Chunk<'_>, factors: &Factors) {
    let len = chunk.values.len();
    let (values, gradients) = (&mut chunk.values[..len], &chunk.gradients[..len]);
    let (first, second) = (&mut chunk.first[..len], &mut chunk.second[..len]);
    for i in 0..len {
        (values[i], first[i], second[i]) = factors.update(values[i], gradients[i], first[i], second[i]);
    }
}

impl Chunk<'_> {
    /// Updates the chunk.
    pub(super) fn run(self, factors: &Factors) {
        update(self, factors);
    }
}

/// AdamW with f32 moments.
#[derive(Debug, Clone)]
pub struct AdamW {
    config: OptimizerConfig,
    steps: u64,
    names: Vec<String>,
    moments: Vec<Moments>,
}

impl AdamW {
    /// Bytes of state for a parameter of so many values.
    pub fn state_bytes_of(values: usize) -> usize {
        2 * values * size_of::<f32>()
    }

    /// Zero state for every parameter of `store`.
    pub fn new(config: &OptimizerConfig, store: &ParamStore) -> AdamW {
        AdamW {
            config: config.clone(),
            steps: 0,
            names: store.iter().map(|param| param.name.clone()).collect(),
            moments: store.iter().map(|param| Moments::zeros(param.value.len())).collect(),
        }
    }
}

impl Optimizer for AdamW {
    fn step(&mut self, store: &mut ParamStore, gradients: &Gradients, rates: &LearningRates, gradient_scale: f32) {
        assert_eq!(store.len(), self.moments.len(), "the optimizer was made for another store");
        self.steps += 1;
        let mut work = Vec::new();
        for ((param, gradient), moments) in store.iter_mut().zip(gradients.iter()).zip(&mut self.moments) {
            assert_eq!(param.value.len(), gradient.len(), "{}: gradient of another size", param.name);
            let factors = Factors::new(&self.config, self.steps, param.kind, rates, gradient_scale);
            work.extend(moments.chunks(&mut param.value, gradient).map(|chunk| (chunk, factors)));
        }
        work.into_par_iter().for_each(|(chunk, factors)| chunk.run(&factors));
    }

    fn steps(&self) -> u64 {
        self.steps
    }

    fn state_bytes(&self) -> usize {
        self.moments.iter().map(Moments::bytes).sum()
    }

    fn state(&self) -> Vec<StateTensor<'_>> {
        let mut out = Vec::with_capacity(2 * self.names.len());
        self.names.iter().zip(&self.moments).for_each(|(name, moments)| moments.state(name, &mut out));
        out
    }

    fn restore(&mut self, mut state: OptimizerState) -> Result<()> {
        let names = self.names.iter().zip(&self.moments);
        let moments: Result<Vec<_>> =
            names.map(|(name, old)| Moments::take(&mut state, name, old.first.len())).collect();
        let moments = moments?;
        state.finish()?;
        (self.moments, self.steps) = (moments, state.steps);
        Ok(())
    }
}
