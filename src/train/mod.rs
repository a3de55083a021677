//! The training run: from a resolved configuration to an adapter (or a full model) in the run's folder.
//!
//! [`memory`] plans before anything is loaded, [`folder`] finds out where the run stands, [`start`] loads data and model, [`run`] is the loop, [`step`] one optimizer
//! step, [`evaluate`] the held-out measure, [`save`] checkpoints and the result, [`metrics`] the log. [`guards`] watch the
//! losses, [`signals`] listen for the wish to stop. [`stages`] makes a chain of such runs, [`kept`] what each of them holds
//! out.

pub mod cache_weights;
pub mod config;
pub mod config_change;
pub mod evaluate;
pub mod folder;
pub mod gpu;
#[cfg(test)]
mod gpu_memory_tests;
#[cfg(test)]
mod gpu_tests;
pub mod guards;
pub mod kept;
pub mod memory;
pub mod metrics;
pub mod recompute;
pub mod run;
pub mod save;
pub mod signals;
pub mod stages;
pub mod start;
pub mod step;
pub mod tensorboard;

pub use config::RunConfig;

use crate::config::{Problems, Section};
use crate::device::{Compute, DeviceChoice};
use cache_weights::CacheWeights;
use guards::SpikeConfig;
use recompute::Recompute;
use serde::{Deserialize, Serialize};

/// `[training]`: how long, how much at once, how often to look.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TrainingConfig {
    /// Optimizer steps; 0: as many as `tokens` or `epochs` give.
    pub steps: u64,
    /// Tokens (rows) to see, used when `steps` is 0: the step that reaches so many is the last. 0: as `epochs` say.
    pub tokens: u64,
    /// Passes over the training data, used when `steps` and `tokens` are 0.
    pub epochs: f64,
    /// Windows (or documents, without packing) of a micro-batch: what goes through the model at once.
    pub micro_batch: usize,
    /// Micro-batches of an optimizer step. Equal to one big batch: the loss is divided by the targets of the whole step.
    pub accumulation: usize,
    /// NEFTune's noise on the embeddings (Jain et al. 2023; 5 is usual); 0 turns it off.
    pub neftune_alpha: f64,
    /// Compute activations again in the backward pass (`on`: less memory, up to a third more time) or keep them (`off`);
    /// `auto`: again where the memory demands it. No bit of the result depends on it.
    pub recompute: Recompute,
    /// On a GPU, decode 4-bit weights once and keep them (`on`: all, `off`: none); `auto`: those of as many blocks as there
    /// is room for. No bit of the result depends on it.
    pub cache_weights: CacheWeights,
    /// Most memory that the run may take, in GiB; 0: what the machine has left when it starts.
    pub memory_limit_gib: f64,
    /// Operand format of the matrix products; accumulation is f32 in both. On a GPU they are bf16 whatever it says.
    pub compute: Compute,
    /// `auto` (a GPU if the program was built for one and one is there), `cpu`, `cuda` or `cuda:1`.
    pub device: DeviceChoice,
    /// Threads; 0: one for each core.
    pub threads: usize,
    /// Evaluate on the held-out text every so many steps (and before the first and after the last); 0: only then.
    pub evaluate_every: u64,
    /// Write a checkpoint every so many steps; 0: only at the end and when the run is interrupted.
    pub checkpoint_every: u64,
    /// How many of the newest checkpoints stay.
    pub keep_last: usize,
    /// How many of the best checkpoints stay beside them: those with the least held-out loss at their step.
    pub keep_best: usize,
    /// Stop after so many hours, with a checkpoint to resume from; 0: no limit.
    pub max_hours: f64,
    /// A run of this many skipped (non-finite) steps is stopped.
    pub max_skipped_steps: u64,
    /// What happens when the loss jumps up and stays up.
    pub spike: SpikeConfig,
}

impl Default for TrainingConfig {
    fn default() -> TrainingConfig {
        TrainingConfig {
            steps: 0,
            tokens: 0,
            epochs: 1.0,
            micro_batch: 1,
            accumulation: 1,
            neftune_alpha: 0.0,
            recompute: Recompute::Auto,
            cache_weights: CacheWeights::Auto,
            memory_limit_gib: 0.0,
            compute: Compute::F32,
            device: DeviceChoice::Auto,
            threads: 0,
            evaluate_every: 0,
            checkpoint_every: 100,
            keep_last: 2,
            keep_best: 0,
            max_hours: 0.0,
            max_skipped_steps: 5,
            spike: SpikeConfig::default(),
        }
    }
}

impl Section for TrainingConfig {
    fn check(&self, problems: &mut Problems) {
        let counted = self.steps > 0 || self.tokens > 0;
        problems.expect(counted || self.epochs > 0.0, "epochs", "above 0 where steps and tokens are 0", self.epochs);
        let both = self.steps > 0 && self.tokens > 0;
        problems.expect(!both, "tokens", "0 where steps is set", self.tokens);
        problems.expect(self.epochs.is_finite(), "epochs", "a number", self.epochs);
        problems.expect((1..=1 << 16).contains(&self.micro_batch), "micro_batch", "from 1 to 65536", self.micro_batch);
        let accumulation = self.accumulation;
        problems.expect((1..=1 << 16).contains(&accumulation), "accumulation", "from 1 to 65536", accumulation);
        let alpha = self.neftune_alpha;
        problems.expect((0.0..=1e3).contains(&alpha), "neftune_alpha", "0 (off) to 1000", alpha);
        let limit = self.memory_limit_gib;
        problems.expect((0.0..=1e6).contains(&limit), "memory_limit_gib", "0 (what is free) or some GiB", limit);
        problems.expect(self.threads <= 1024, "threads", "0 (one for each core) to 1024", self.threads);
        problems.expect(self.keep_last > 0, "keep_last", "at least 1", self.keep_last);
        problems.expect((0.0..=1e5).contains(&self.max_hours), "max_hours", "0 (no limit) to 100000", self.max_hours);
        problems.section("spike", &self.spike);
        problems.expect(self.max_skipped_steps > 0, "max_skipped_steps", "at least 1", self.max_skipped_steps);
    }
}
