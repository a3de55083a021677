//! What computes the logits of a generator: the CPU or a GPU, each with the cache of one sequence.

use crate::device::cuda::requirements::FREE_THE_CARD;
use crate::device::Compute;
use crate::error::{Error, Result};
use crate::model::cuda::{generation_bytes, linear_bytes, GpuKvCache, GpuLlama, GpuParams};
use crate::model::{DoraScales, KvCache, Llama, ModelConfig, Pass};
use crate::ops::gpu::Gpu;
use crate::ops::{Arena, ParamStore};
use crate::quant::QuantConfig;

/// A model in the memory of what computes it.
pub(super) enum Engine {
    Cpu(Box<OnCpu>),
    Gpu(Box<OnGpu>),
}

pub(super) struct OnCpu {
    params: ParamStore,
    dora: DoraScales,
    arena: Arena,
    compute: Compute,
    cache: KvCache,
}

pub(super) struct OnGpu {
    model: GpuLlama,
    params: GpuParams,
    cache: GpuKvCache,
    /// Bytes that were planned for all of it.
    planned: usize,
}

/// Loads linears to a GPU, which must have room for them before any is loaded.
///
/// # Errors
/// The GPU's memory, with what takes less; what `load` says.
pub fn with_room<R>(
    gpu: &Gpu,
    config: &ModelConfig,
    (quantize, context): (Option<QuantConfig>, usize),
    load: impl FnOnce() -> Result<R>,
) -> Result<R> {
    check_linears(gpu, config, quantize, context)?;
    load().map_err(|error| explain(error, linear_bytes(config, quantize), context))
}

/// Refuses a model whose linears alone a GPU cannot hold, before any of it is loaded.
///
/// # Errors
/// The GPU's memory, with what takes less.
pub(super) fn check_linears(
    gpu: &Gpu,
    config: &ModelConfig,
    quantize: Option<QuantConfig>,
    context: usize,
) -> Result<()> {
    check_room(gpu, linear_bytes(config, quantize), context)
}

/// Refuses what needs more bytes than the GPU has, beside those that it holds already.
fn check_room(gpu: &Gpu, needed: usize, context: usize) -> Result<()> {
    let (available, memory) = (gpu.available()?, gpu.driver().memory()?);
    if needed <= available {
        return Ok(());
    }
    Err(Error::failed(format!(
        "the model and a context of {context} tokens need {:.2} GiB of GPU memory; {:.2} of {:.2} GiB are free",
        gib(needed + gpu.live_bytes()),
        gib(available + gpu.live_bytes()),
        gib(memory.total)
    ))
    .hint(LESS))
}

const LESS: &str = "use a smaller --context, the model in 4 bits (--nf4), or --device cpu";

fn gib(bytes: usize) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}

/// Adds what was planned where a GPU's memory ran out although that fitted. Every other error stays as it is.
fn explain(error: Error, planned: usize, context: usize) -> Error {
    if !error.is_out_of_memory() {
        return error;
    }
    Error::failed(format!(
        "GPU memory ran out: {}; planned were {:.2} GiB for the model and a context of {context} tokens",
        error.message(),
        gib(planned)
    ))
    .hint(format!("{FREE_THE_CARD}, or {LESS}"))
}

impl Engine {
    /// The CPU, for sequences of `context` tokens.
    pub(super) fn on_cpu(model: &mut Llama, params: ParamStore, compute: Compute, context: usize) -> Engine {
        model.prepare_head(compute);
        model.prepare_rows(compute);
        let arena = Arena::new();
        let dora = model.dora_scales(&params, &arena);
        Engine::Cpu(Box::new(OnCpu { params, dora, arena, compute, cache: KvCache::new(model, context) }))
    }

    /// A GPU, for sequences of `context` tokens. The model's blocks are there afterwards, and no longer in `model`.
    pub(super) fn on_gpu(gpu: &Gpu, model: &mut Llama, params: &ParamStore, context: usize) -> Result<Engine> {
        let needed = generation_bytes(model, params, context);
        check_room(gpu, needed, context)?;
        let planned = needed + gpu.live_bytes();
        let parts = || {
            let there = GpuLlama::new(gpu, model, params)?;
            let params = GpuParams::frozen(gpu, params)?;
            let cache = GpuKvCache::new(&there, context)?;
            Ok(OnGpu { model: there, params, cache, planned })
        };
        let on_gpu = parts().map_err(|error| explain(error, planned, context))?;
        model.blocks.clear();
        Ok(Engine::Gpu(Box::new(on_gpu)))
    }

    /// Most tokens of a sequence.
    pub(super) fn capacity(&self) -> usize {
        match self {
            Engine::Cpu(cpu) => cpu.cache.capacity(),
            Engine::Gpu(gpu) => gpu.cache.capacity(),
        }
    }

    /// Forgets all but the first `len` tokens.
    pub(super) fn truncate(&mut self, len: usize) {
        match self {
            Engine::Cpu(cpu) => cpu.cache.truncate(len),
            Engine::Gpu(gpu) => gpu.cache.truncate(len),
        }
    }

    /// Appends `ids` to the sequence; `logits` become those behind the last of them.
    ///
    /// # Errors
    /// What a GPU says; on the CPU none.
    pub(super) fn append(&mut self, model: &Llama, ids: &[u32], logits: &mut Vec<f32>) -> Result<()> {
        match self {
            Engine::Cpu(cpu) => {
                let OnCpu { params, dora, arena, compute, cache } = &mut **cpu;
                let pass = Pass { params, dora, arena, compute: *compute, noise: None };
                let found = model.next_logits(&pass, ids, cache);
                logits.clear();
                logits.extend_from_slice(&found);
            }
            Engine::Gpu(gpu) => {
                let OnGpu { model, params, cache, planned } = &mut **gpu;
                let context = cache.capacity();
                let found = model.next_logits(params, ids, cache);
                *logits = found.map_err(|error| explain(error, *planned, context))?;
            }
        }
        Ok(())
    }
}
