//! The engine's model on a GPU: the passes of a step and of an evaluation, and AdamW's update, there.
//!
//! ```text
//! gradients of all micro-batches add up in GPU memory → norm → clip and update there (f32 masters and moments)
//! a checkpoint: masters and moments are downloaded; a run that goes on: uploaded
//! ```
//!
//! An optimizer without a kernel (8-bit state) keeps masters and state with the CPU: gradients are downloaded once a step,
//! values uploaded. Invariant: checkpoints and the log know nothing of the GPU, and every update has the CPU's bits. Within
//! the passes of a step nothing waits for the GPU: losses are read behind them.

use super::step::{rows, StepSettings};
use crate::data::batch::MicroBatch;
use crate::error::Result;
use crate::model::cuda::{GpuLlama, GpuParams};
use crate::model::{Batch, Llama};
use crate::ops::cross_entropy::Loss;
use crate::ops::gpu::Gpu;
use crate::ops::rope::RopeTable;
use crate::ops::{Gradients, ParamStore};
use crate::optim::cuda::GpuAdamW;
use crate::optim::{LearningRates, Optimizer, OptimizerConfig, OptimizerKind};

/// Frozen weights, trained values and gradients in GPU memory.
pub struct OnGpu {
    model: GpuLlama,
    params: GpuParams,
    /// Masters and moments, where the update is the GPU's.
    optimizer: Option<GpuAdamW>,
}

/// A step's micro-batches, and the targets of all of them.
#[derive(Clone, Copy)]
pub struct StepBatches<'a> {
    /// Counts from 0; names the random masks.
    pub step: u64,
    /// What goes through the model at once.
    pub batches: &'a [MicroBatch],
    /// Target tokens of all of them.
    pub targets: usize,
}

impl OnGpu {
    /// Copies a model and its trained values, and decodes the weights of its first `cached` blocks.
    ///
    /// # Errors
    /// A model that cannot be trained on a GPU; the GPU's memory.
    pub fn new(
        gpu: &Gpu,
        (model, params): (&Llama, &ParamStore),
        optimizer: &OptimizerConfig,
        cached: usize,
    ) -> Result<OnGpu> {
        let mut model = GpuLlama::new(gpu, model, params)?;
        model.cache_weights(cached)?;
        let on_gpu = GpuParams::new(gpu, params)?;
        let optimizer = match optimizer.kind {
            OptimizerKind::AdamW => Some(GpuAdamW::new(gpu, optimizer, params, on_gpu.trained())?),
            OptimizerKind::AdamW8 => None,
        };
        Ok(OnGpu { model, params: on_gpu, optimizer })
    }

    /// Whether masters and moments are in the GPU's memory.
    pub fn updates(&self) -> bool {
        self.optimizer.is_some()
    }

    /// The GPU.
    pub fn gpu(&self) -> &Gpu {
        self.model.gpu()
    }

    /// Takes over the values of `params`, and the state of `optimizer` if the update is the GPU's.
    ///
    /// # Errors
    /// What the driver says.
    pub fn upload(&mut self, params: &ParamStore, optimizer: &dyn Optimizer) -> Result<()> {
        match &mut self.optimizer {
            Some(there) => there.load(params, optimizer),
            None => self.params.upload(params),
        }
    }

    /// Brings `params` and `optimizer` up to date, if the update is the GPU's.
    ///
    /// # Errors
    /// What the driver says.
    pub fn download(&self, params: &mut ParamStore, optimizer: &mut dyn Optimizer) -> Result<()> {
        self.optimizer.as_ref().map_or(Ok(()), |there| there.save(params, optimizer))
    }

    /// The norm of the gradients, all together, where the update is the GPU's.
    ///
    /// # Errors
    /// What the driver says.
    pub fn norm(&self) -> Result<Option<f64>> {
        self.optimizer.as_ref().map(GpuAdamW::norm).transpose()
    }

    /// The update, where it is the GPU's; every gradient counts times `gradient_scale`.
    ///
    /// # Errors
    /// What the driver says.
    pub fn update(&mut self, rates: &LearningRates, gradient_scale: f32) -> Result<()> {
        self.optimizer.as_mut().map_or(Ok(()), |optimizer| optimizer.step(rates, gradient_scale))
    }

    /// Adds the gradients of the last [`OnGpu::accumulate`] to `grads`.
    ///
    /// # Errors
    /// What the driver says.
    pub fn add_gradients_to(&self, grads: &mut Gradients) -> Result<()> {
        self.params.add_gradients_to(grads)
    }

    /// Sets the gradients to those of `Σ token losses / targets` over all micro-batches; the sum of the losses.
    ///
    /// # Errors
    /// The GPU's memory; what the driver says.
    pub fn accumulate(&mut self, rope: &mut RopeTable, settings: &StepSettings, all: StepBatches<'_>) -> Result<f64> {
        match &self.optimizer {
            Some(optimizer) => optimizer.clear_gradients()?,
            None => self.params.clear_gradients()?,
        }
        let hidden = self.model.hidden();
        let mut losses = Vec::with_capacity(all.batches.len());
        for (index, batch) in all.batches.iter().enumerate() {
            self.cover(rope, batch)?;
            let noise = settings.noise(all.step, index as u64, hidden);
            let scale = 1.0 / all.targets.max(1) as f32;
            let batch = Batch { rows: rows(batch), targets: &batch.targets, scale };
            losses.push(self.model.loss_and_gradients(&self.params, batch, &settings.keep, noise)?);
        }
        losses.iter().map(|loss| loss.sum()).sum()
    }

    /// The loss of a batch, and into `of_rows` that of each of its rows.
    ///
    /// # Errors
    /// As [`OnGpu::accumulate`].
    pub fn losses(&mut self, rope: &mut RopeTable, batch: &MicroBatch, of_rows: &mut [f32]) -> Result<Loss> {
        self.cover(rope, batch)?;
        let pending = self.model.loss(&self.params, rows(batch), &batch.targets)?;
        of_rows.copy_from_slice(&pending.of_rows()?);
        let sum = of_rows.iter().copied().map(f64::from).sum();
        Ok(Loss { sum, targets: pending.targets() })
    }

    /// Has angles for every position of a batch.
    fn cover(&mut self, rope: &mut RopeTable, batch: &MicroBatch) -> Result<()> {
        rope.ensure(batch.longest_segment());
        self.model.ensure_positions(rope)
    }
}
