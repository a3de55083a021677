//! The engine's model on a GPU: the passes of a step and of an evaluation there, everything else on the CPU.
//!
//! ```text
//! gradients of all micro-batches add up in GPU memory; one download a step → clip and update (CPU, f32 masters) → one upload
//! ```
//!
//! Invariant: masters, optimizer, checkpoints and the log know nothing of the GPU, so that all of them, resuming included,
//! are those of the CPU. Within the passes of a step nothing waits for the GPU: losses are read with the gradients.

use super::step::{rows, StepSettings};
use crate::data::batch::MicroBatch;
use crate::error::Result;
use crate::model::cuda::{GpuLlama, GpuParams};
use crate::model::{Batch, Llama};
use crate::ops::cross_entropy::Loss;
use crate::ops::gpu::Gpu;
use crate::ops::rope::RopeTable;
use crate::ops::{Gradients, ParamStore};

/// Frozen weights, trained values and gradients in GPU memory.
pub struct OnGpu {
    model: GpuLlama,
    params: GpuParams,
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
    /// Copies a model and its trained values.
    ///
    /// # Errors
    /// A model that cannot be trained on a GPU; the GPU's memory.
    pub fn new(gpu: &Gpu, model: &Llama, params: &ParamStore) -> Result<OnGpu> {
        Ok(OnGpu { model: GpuLlama::new(gpu, model, params)?, params: GpuParams::new(gpu, params)? })
    }

    /// The GPU.
    pub fn gpu(&self) -> &Gpu {
        self.model.gpu()
    }

    /// Takes over the values of `params`.
    ///
    /// # Errors
    /// What the driver says.
    pub fn upload(&self, params: &ParamStore) -> Result<()> {
        self.params.upload(params)
    }

    /// Adds the gradients of `Σ token losses / targets` over all micro-batches to `grads`; the sum of the losses.
    ///
    /// # Errors
    /// The GPU's memory; what the driver says.
    pub fn accumulate(
        &mut self,
        rope: &mut RopeTable,
        settings: &StepSettings,
        all: StepBatches<'_>,
        grads: &mut Gradients,
    ) -> Result<f64> {
        self.params.clear_gradients()?;
        let hidden = self.model.hidden();
        let mut losses = Vec::with_capacity(all.batches.len());
        for (index, batch) in all.batches.iter().enumerate() {
            self.cover(rope, batch)?;
            let noise = settings.noise(all.step, index as u64, hidden);
            let scale = 1.0 / all.targets.max(1) as f32;
            let batch = Batch { rows: rows(batch), targets: &batch.targets, scale };
            losses.push(self.model.loss_and_gradients(&self.params, batch, &settings.keep, noise)?);
        }
        self.params.add_gradients_to(grads)?;
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
