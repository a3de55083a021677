//! The plan of a run on a GPU: what lies in its memory, from a replay of the step ([`super::gpu_replay`]), and what the
//! machine holds beside it.
//!
//! AdamW's masters and moments are on the GPU, and copies of them in the machine's memory from the first checkpoint on; an
//! 8-bit optimizer and its masters are in the machine's memory alone. What the CUDA driver and its libraries take of the card
//! for themselves is an estimate; no card has been compared with it yet.

use super::gpu_replay::{self, GpuBytes};
use super::job::Job;
use super::{choices, most_blocks, refusal, remedies, shown, Budget, Parts, Plan, Situation};
use crate::device::cuda::requirements::more_memory;
use crate::error::{Error, Result};
use crate::model::Keep;
use crate::ops::gpu::Gpu;
use crate::optim::OptimizerKind;
use crate::train::cache_weights::CacheWeights;
use crate::train::config::RunConfig;

/// What a CUDA process takes of a card beside its buffers: context, kernels, cuBLAS and its workspace.
pub const CONTEXT: u64 = 600 << 20;

/// The part of a GPU that decoded weights leave free.
pub(super) const SPARE: u64 = 20;

/// The memory of `job` on a GPU with these keep policies and the weights of the first `cached` blocks decoded.
pub fn with_keep(job: &Job, keep: Vec<Keep>, cached: usize) -> Plan {
    let bytes = gpu_replay::step(job, &keep, cached);
    Plan { loading: CONTEXT + bytes.loading as u64, parts: parts(bytes), saving: 0, keep, cached }
}

/// `plan` with as many blocks' weights decoded as `training.cache_weights` says: by itself only into memory that is known
/// to be there.
pub fn with_cached_weights(job: &Job, plan: Plan, budget: Budget) -> Plan {
    let layers = job.model.blocks.len();
    let caching = |cached: usize| with_keep(job, plan.keep.clone(), cached);
    let Some(bytes) = budget.bytes.filter(|_| job.cache_weights == CacheWeights::Auto) else {
        let wanted = job.cache_weights == CacheWeights::On && job.quantization.is_some();
        return if wanted { caching(layers) } else { plan };
    };
    // What is only faster must not be what the memory runs out for.
    let budget = Budget { bytes: Some(bytes - bytes / SPARE), ..budget };
    match job.quantization.is_some() && budget.holds(plan.peak()) {
        true => most_blocks(layers + 1, budget, caching),
        false => plan,
    }
}

fn parts(bytes: GpuBytes) -> Parts {
    let GpuBytes { base, embeddings, trained, gradients, optimizer, scratch, saved, logits, allocated, .. } = bytes;
    let known = base + embeddings + trained + gradients + optimizer + scratch + saved + logits;
    Parts {
        program: CONTEXT,
        base: base as u64,
        embeddings: embeddings as u64,
        trained: trained as u64,
        gradients: gradients as u64,
        optimizer: optimizer as u64,
        saved: saved as u64,
        work: allocated.saturating_sub(known) as u64,
        logits: logits as u64,
        packing: scratch as u64,
    }
}

/// Linears in the machine's memory at a time: one being read, one being uploaded.
const ON_THEIR_WAY: usize = 2;

/// What the machine itself holds of a run on a GPU: weights on their way, masters, gradients, optimizer state.
pub fn host_bytes(situation: &Situation) -> u64 {
    let job = &situation.job;
    let parts = super::parts(job, Default::default());
    let largest = job.linears().map(|linear| linear.rows * linear.cols).max().unwrap_or(0);
    let base = (ON_THEIR_WAY * largest * job.stored_bytes) as u64;
    // Where the GPU updates, gradients never come here.
    let gradients = if job.optimizer == OptimizerKind::AdamW { 0 } else { parts.gradients };
    situation.program + base + parts.embeddings + parts.trained + gradients + parts.optimizer
}

impl Situation {
    /// The same run on a GPU of which `free` bytes are to be had; `None`: a GPU that is large enough.
    pub fn on_gpu(mut self, free: Option<u64>) -> Situation {
        self.job.on_gpu = true;
        let configured = self.budget.configured;
        let limit = self.budget.bytes.filter(|_| configured);
        let bytes = match (free.map(|free| free - free / 50 + CONTEXT), limit) {
            (Some(free), Some(limit)) => Some(free.min(limit)),
            (free, limit) => free.or(limit),
        };
        self.budget = Budget { bytes, configured };
        self
    }
}

/// [`super::admit`] for a run on `gpu`: the plan, and what it may take.
///
/// # Errors
/// The run does not fit into the GPU's memory, with what makes it fit; or not into the machine's.
pub fn admit(config: &RunConfig, situation: Situation, gpu: &Gpu) -> Result<(Plan, Option<u64>)> {
    let host = host_bytes(&situation);
    if let Some(limit) = situation.budget.bytes.filter(|limit| host > *limit) {
        let text = format!(
            "the run does not fit: beside the GPU it needs {} of the machine's memory, {} are to be had",
            shown(host),
            shown(limit)
        );
        return Err(Error::failed(text).hint("a smaller lora.r, or optimizer.kind = \"adamw8bit\", takes less"));
    }
    let memory = gpu.driver().memory()?;
    let situation = situation.on_gpu(Some(gpu.available()? as u64));
    let plan = situation.plan();
    match situation.budget.bytes.filter(|limit| plan.peak() > *limit) {
        None => Ok((plan, situation.budget.bytes)),
        Some(limit) => Err(refusal(config, &situation, &plan, limit).at(format_args!(
            "{} ({} in all)",
            gpu.driver().name(),
            shown(memory.total as u64)
        ))),
    }
}

/// What to say where the memory of `gpu` ran out in a run that was let in with `plan`: what was planned, what there is now,
/// and what can be done. Every other error stays as it is.
pub fn explain(config: &RunConfig, plan: &Plan, gpu: &Gpu, error: Error) -> Error {
    if !error.is_out_of_memory() {
        return error;
    }
    // Everything of the run is given back by now.
    let situation = gpu.available().and_then(|now| Ok((now, Situation::of(config)?.on_gpu(Some(now as u64)))));
    let Ok((now, situation)) = situation else { return error };
    let text = format!(
        "GPU memory ran out: {}; planned were {} ({} of it for the driver), and the run can have {} now",
        error.message(),
        shown(plan.peak()),
        shown(CONTEXT),
        shown(now as u64)
    );
    let others = more_memory();
    let again = situation.plan();
    let hint = if situation.budget.holds(again.peak()) {
        format!(
            "{others}; the same command goes on from the last checkpoint with a new plan for what is free{}; if it ends like \
             this again, plan with less: --set training.memory_limit_gib={:.2}",
            choices(&again),
            again.peak().min(plan.peak()) as f64 * 0.9 / f64::from(1 << 30)
        )
    } else {
        match remedies::lines(config, &situation) {
            Some(lines) => format!("{others}; for what is free now each of these is enough:\n  {lines}"),
            None => format!("{others}; no setting makes this model fit into what is free now"),
        }
    };
    Error::failed(text).hint(hint)
}
