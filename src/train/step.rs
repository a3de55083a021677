//! One optimizer step, to be read in one sitting.
//!
//! ```text
//! targets = number of target tokens of all micro-batches
//! for each micro-batch: gradients += ∇ (Σ token losses / targets)
//! norm = ‖gradients‖; a non-finite loss or norm skips the update
//! gradients *= min(1, max_norm / (norm + 1e-6)); optimizer(parameters, gradients, learning rates)
//! ```
//!
//! Dividing by the targets of the whole step makes accumulation equal to one big batch. With a GPU the passes run there, and
//! norm and update too where it has a kernel for them ([`super::gpu`]), with the same bits.

use super::gpu::{OnGpu, StepBatches};
use crate::data::batch::MicroBatch;
use crate::device::Compute;
use crate::error::Result;
use crate::model::{Batch, Keep, Llama, Noise, Pass, Rows};
use crate::ops::cross_entropy::Loss;
use crate::ops::{profile, Arena, Gradients, ParamStore};
use crate::optim::{clip, LearningRates, Optimizer};

/// Everything that a step reads and changes.
pub struct Engine {
    /// The model; its trained values are in `params`.
    pub model: Llama,
    /// Values of everything trained; with a GPU that updates by itself, those of the last [`Engine::download`].
    pub params: ParamStore,
    /// Gradients of the step in progress; a GPU has its own.
    pub grads: Gradients,
    /// Update rule and its state; with a GPU, as `params`.
    pub optimizer: Box<dyn Optimizer>,
    /// Memory of the activations.
    pub arena: Arena,
    /// Constants of the run.
    pub settings: StepSettings,
    /// The same model on a GPU, if that is where the passes run.
    pub gpu: Option<OnGpu>,
}

/// What stays the same from step to step.
#[derive(Debug, Clone)]
pub struct StepSettings {
    /// Operand format of the matrix products.
    pub compute: Compute,
    /// What each block keeps for its backward pass.
    pub keep: Vec<Keep>,
    /// Gradients are scaled down to this global norm; 0 turns clipping off.
    pub max_grad_norm: f64,
    /// NEFTune's alpha; 0 turns the noise off.
    pub neftune_alpha: f64,
    /// Rows of a window: NEFTune's sequence length.
    pub sequence_length: usize,
    /// Names the random masks.
    pub seed: u64,
}

/// What a step did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepReport {
    /// Mean loss of the target tokens, before the update.
    pub loss: f64,
    /// Global norm of the gradients, before clipping.
    pub grad_norm: f64,
    /// Target tokens.
    pub targets: usize,
    /// Rows that went through the model.
    pub tokens: usize,
    /// False if the loss or the norm was not finite: nothing was updated.
    pub updated: bool,
}

impl Engine {
    /// One update from `batches` with these learning rates. `step` counts from 0 and names the random masks.
    ///
    /// Runs on a thread of the pool, so that an operation begins at once instead of waking one up and waiting for it.
    ///
    /// # Errors
    /// What a GPU says; on the CPU none.
    pub fn step(&mut self, step: u64, batches: &[MicroBatch], rates: &LearningRates) -> Result<StepReport> {
        rayon::scope(|_| self.step_here(step, batches, rates))
    }

    fn step_here(&mut self, step: u64, batches: &[MicroBatch], rates: &LearningRates) -> Result<StepReport> {
        let targets: usize = batches.iter().map(MicroBatch::target_count).sum();
        let tokens = batches.iter().map(|batch| batch.ids.len()).sum();
        let loss = self.accumulate(step, batches, targets)? / targets.max(1) as f64;
        let span = profile::span("gradient norm", 0.0);
        let grad_norm = match self.gpu.as_ref().map(OnGpu::norm).transpose()?.flatten() {
            Some(norm) => norm,
            None => clip::global_norm(self.gradients()?),
        };
        drop(span);
        let updated = loss.is_finite() && grad_norm.is_finite();
        if updated {
            self.update(rates, clip::scale(grad_norm, self.settings.max_grad_norm))?;
        }
        Ok(StepReport { loss, grad_norm, targets, tokens, updated })
    }

    fn update(&mut self, rates: &LearningRates, gradient_scale: f32) -> Result<()> {
        let _span = profile::span("optimizer", 0.0);
        if let Some(gpu) = self.gpu.as_mut().filter(|gpu| gpu.updates()) {
            return gpu.update(rates, gradient_scale);
        }
        self.optimizer.step(&mut self.params, &self.grads, rates, gradient_scale);
        self.upload()
    }

    /// Lets a GPU know that `params` and `optimizer` hold something else now.
    ///
    /// # Errors
    /// What the GPU says.
    pub fn upload(&mut self) -> Result<()> {
        let Engine { params, optimizer, gpu, .. } = self;
        gpu.as_mut().map_or(Ok(()), |gpu| gpu.upload(params, optimizer.as_ref()))
    }

    /// Brings `params` and `optimizer` up to date with a GPU that updates by itself.
    ///
    /// # Errors
    /// What the GPU says.
    pub fn download(&mut self) -> Result<()> {
        let Engine { params, optimizer, gpu, .. } = self;
        gpu.as_ref().map_or(Ok(()), |gpu| gpu.download(params, optimizer.as_mut()))
    }

    /// The gradients of the last [`Engine::accumulate`], brought here from a GPU.
    ///
    /// # Errors
    /// What the GPU says.
    pub fn gradients(&mut self) -> Result<&Gradients> {
        if let Some(gpu) = &self.gpu {
            self.grads.clear();
            gpu.add_gradients_to(&mut self.grads)?;
        }
        Ok(&self.grads)
    }

    /// Sets the gradients to those of `Σ token losses / targets` over all micro-batches; returns the sum of the losses.
    /// On a GPU they stay there.
    ///
    /// # Errors
    /// What a GPU says; on the CPU none.
    pub fn accumulate(&mut self, step: u64, batches: &[MicroBatch], targets: usize) -> Result<f64> {
        if let Some(gpu) = &mut self.gpu {
            let all = StepBatches { step, batches, targets };
            return gpu.accumulate(&mut self.model.rope, &self.settings, all);
        }
        let span = profile::span("clear gradients", 0.0);
        self.grads.clear();
        drop(span);
        let dora = self.model.dora_scales(&self.params, &self.arena);
        let Engine { model, params, grads, arena, settings, .. } = self;
        let mut sum = 0.0;
        for (index, batch) in batches.iter().enumerate() {
            model.rope.ensure(batch.longest_segment());
            let noise = settings.noise(step, index as u64, model.config.hidden_size);
            let pass = Pass { params, dora: &dora, arena, compute: settings.compute, noise: Some(noise) };
            let batch = Batch { rows: rows(batch), targets: &batch.targets, scale: 1.0 / targets.max(1) as f32 };
            sum += model.loss_and_gradients(&pass, batch, &settings.keep, grads).sum;
        }
        Ok(sum)
    }

    /// Shows `each` the batches with their losses, of a whole batch and of its rows, without gradients, until it says
    /// that this is enough; whether it saw all.
    ///
    /// # Errors
    /// What a GPU says; on the CPU none.
    pub fn losses(
        &mut self,
        batches: &[MicroBatch],
        each: &mut dyn FnMut(&MicroBatch, Loss, &[f32]) -> bool,
    ) -> Result<bool> {
        let Engine { model, params, arena, settings, gpu, .. } = self;
        let dora = model.dora_scales(params, arena);
        for batch in batches {
            let mut of_rows = vec![0.0; batch.ids.len()];
            let loss = match gpu {
                Some(gpu) => gpu.losses(&mut model.rope, batch, &mut of_rows)?,
                None => {
                    model.rope.ensure(batch.longest_segment());
                    let pass = Pass { params, dora: &dora, arena, compute: settings.compute, noise: None };
                    model.loss(&pass, rows(batch), &batch.targets, Some(&mut of_rows))
                }
            };
            if !each(batch, loss, &of_rows) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

impl StepSettings {
    /// The random masks of a micro-batch.
    pub(super) fn noise(&self, step: u64, micro_step: u64, hidden: usize) -> Noise {
        let size = (self.sequence_length * hidden) as f64;
        let embedding_bound = (self.neftune_alpha / size.sqrt()) as f32;
        Noise { seed: self.seed, step, micro_step, embedding_bound }
    }
}

/// The rows of a micro-batch as the model takes them.
pub fn rows(batch: &MicroBatch) -> Rows<'_> {
    Rows { ids: &batch.ids, positions: &batch.positions, segments: &batch.segments }
}
