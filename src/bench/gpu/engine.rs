//! The engine of a bench with its model on a GPU or on the CPU: the same values on both.

use super::super::{ModelChoice, Shape};
use crate::adapter::LoraConfig;
use crate::device::Compute;
use crate::error::Result;
use crate::model::random::RandomWeights;
use crate::model::{self, Keep, LoadOptions, Method, ModelConfig, OpenModel, TensorSource};
use crate::ops::gpu::Gpu;
use crate::ops::{Arena, Gradients};
use crate::optim::OptimizerConfig;
use crate::quant::QuantConfig;
use crate::train::gpu::OnGpu;
use crate::train::memory::gpu as planned;
use crate::train::memory::job::{Adapters, Job};
use crate::train::step::{Engine, StepSettings};
use crate::train::RunConfig;

/// Rank of the adapters on all linears; alpha is twice as much.
pub const RANK: usize = 16;

fn lora() -> LoraConfig {
    LoraConfig { r: RANK, alpha: 2.0 * RANK as f64, ..LoraConfig::default() }
}

/// How its steps run.
#[derive(Debug, Clone, Copy)]
pub struct Variant {
    /// What every block keeps.
    pub keep: Keep,
    /// Of the adapters' inputs.
    pub dropout: f32,
    /// Whether a GPU decodes all weights once.
    pub cached: bool,
}

/// QLoRA on `choice`, where the passes run on `gpu` if there is one. Every block keeps `keep`.
///
/// # Errors
/// The model cannot be read; the GPU's memory.
pub fn engine(choice: &ModelChoice, gpu: Option<&Gpu>, keep: Keep) -> Result<Engine> {
    engine_of(choice, gpu, Variant { keep, dropout: 0.0, cached: false })
}

/// [`engine`] in any variant.
///
/// # Errors
/// As there.
pub fn engine_of(choice: &ModelChoice, gpu: Option<&Gpu>, variant: Variant) -> Result<Engine> {
    let lora = LoraConfig { dropout: variant.dropout, ..lora() };
    let mut options = LoadOptions::training(Method::Qlora, QuantConfig::default(), &lora, 0);
    options.gpu = gpu.cloned();
    let (config, source): (ModelConfig, Box<dyn TensorSource>) = match choice {
        ModelChoice::Random(shape) => (shape.config()?, Box::new(RandomWeights::new(0, 0.02))),
        ModelChoice::Folder { model, .. } => {
            let opened = OpenModel::open(model)?;
            (opened.config.clone(), opened.into_source())
        }
    };
    let (model, params) = model::load(&config, source.as_ref(), &options, &mut |_, _| {})?;
    let settings = StepSettings {
        compute: Compute::Bf16,
        keep: vec![variant.keep; model.blocks.len()],
        max_grad_norm: 1.0,
        neftune_alpha: 0.0,
        sequence_length: 0,
        seed: 0,
    };
    let optimizer = OptimizerConfig::default().build(&params);
    let grads = Gradients::zeros(&params);
    let cached = if variant.cached { model.blocks.len() } else { 0 };
    let gpu = gpu.map(|gpu| OnGpu::new(gpu, (&model, &params), &OptimizerConfig::default(), cached)).transpose()?;
    Ok(Engine { model, params, grads, optimizer, arena: Arena::new(), settings, gpu })
}

/// Bytes that the plan says the engine asks of a card for steps of `batch` windows of `sequence` rows.
///
/// # Errors
/// Not a shape that there is.
pub fn planned_bytes(shape: Shape, sequence: usize, batch: usize, keep: Keep) -> Result<u64> {
    let mut config = RunConfig { lora: lora(), ..RunConfig::default() };
    config.data.sequence_length = sequence;
    config.training.micro_batch = batch;
    let model = shape.config()?;
    let job = Job { on_gpu: true, evaluates: false, ..Job::new(&config, &model, &Adapters::fresh(&config), 1) };
    Ok(planned::with_keep(&job, vec![keep; model.layers], 0).parts.total() - planned::CONTEXT)
}
