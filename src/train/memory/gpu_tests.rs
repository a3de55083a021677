//! The plan of a run on a GPU against the memory of an emulated one, byte for byte; what does not fit is refused.

use super::gpu_replay::{self, GpuBytes};
use super::*;
use crate::adapter::{LoraConfig, Target};
use crate::data::batch::MicroBatch;
use crate::device::cuda::emulator::emulator_with;
use crate::model::cuda::{GpuLlama, GpuParams};
use crate::model::random::RandomWeights;
use crate::model::{load, Batch, LoadOptions, Noise};
use crate::ops::testing::emulated_gpu;
use crate::optim::cuda::GpuAdamW;
use crate::optim::OptimizerKind;
use crate::train::cache_weights::CacheWeights;
use crate::train::step::rows;
use serde_json::json;

/// Enough blocks that keeping everything takes several times what a block needs.
const LAYERS: usize = 8;

/// A model of so many blocks and of these sizes: of the residual stream and inside the feed-forward part.
pub(super) fn model(layers: usize, [hidden, inner]: [usize; 2]) -> ModelConfig {
    ModelConfig::from_json(json!({
        "model_type": "llama", "vocab_size": 300, "hidden_size": hidden, "intermediate_size": inner,
        "num_hidden_layers": layers, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
    }))
    .unwrap()
}

const SMALL: [usize; 2] = [64, 96];

pub(super) fn config(method: Method, change: impl FnOnce(&mut RunConfig)) -> RunConfig {
    let mut config = RunConfig { model: "m".into(), method, ..RunConfig::default() };
    config.lora = LoraConfig { r: 4, ..LoraConfig::default() };
    (config.training.micro_batch, config.data.sequence_length) = (2, 24);
    change(&mut config);
    config
}

fn job(config: &RunConfig) -> Job {
    Job { on_gpu: true, evaluates: true, ..Job::new(config, &model(3, SMALL), &Adapters::fresh(config), 1) }
}

/// Memory after an evaluation and two steps of `config` on `gpu`: lent at most, and asked of the driver.
pub(super) fn measured(
    gpu: &Gpu,
    config: &RunConfig,
    model: &ModelConfig,
    keep: &[Keep],
    cached: usize,
) -> Result<(usize, usize)> {
    let mut options = LoadOptions::training(config.method, config.quantization, &config.lora, 0);
    options.gpu = Some(gpu.clone());
    let (mut host, store) = load(model, &RandomWeights::new(0, 0.02), &options, &mut |_, _| {})?;
    let (windows, length) = (config.training.micro_batch as u32, config.data.sequence_length as u32);
    let ids: Vec<Vec<u32>> = (0..windows).map(|row| (0..length).map(|i| (i * 7 + row) % 50).collect()).collect();
    let batch = MicroBatch::from_rows(&ids);
    let mut there = GpuLlama::new(gpu, &host, &store)?;
    there.cache_weights(cached)?;
    let params = GpuParams::new(gpu, &store)?;
    let has_kernel = config.optimizer.kind == OptimizerKind::AdamW;
    let _optimizer = has_kernel.then(|| GpuAdamW::new(gpu, &config.optimizer, &store, params.trained())).transpose()?;
    host.rope.ensure(batch.longest_segment());
    there.ensure_positions(&host.rope)?;
    there.loss(&params, rows(&batch), &batch.targets)?.sum()?;
    for step in 0..2 {
        let noise = Noise { seed: 0, step, micro_step: 0, embedding_bound: 0.0 };
        let batch = Batch { rows: rows(&batch), targets: &batch.targets, scale: 0.01 };
        there.loss_and_gradients(&params, batch, keep, noise)?.sum()?;
    }
    Ok((gpu.peak_bytes(), gpu.allocated_bytes()))
}

fn assert_exact(what: &str, config: &RunConfig, keep: &[Keep]) {
    for cached in [0, 2] {
        let GpuBytes { peak, allocated, .. } = gpu_replay::step(&job(config), keep, cached);
        let Some(gpu) = emulated_gpu() else { return };
        let measured = measured(&gpu, config, &model(3, SMALL), keep, cached).unwrap();
        assert_eq!((peak, allocated), measured, "{what} {keep:?} {cached}");
        if config.method != Method::Qlora {
            break; // nothing to decode
        }
    }
}

#[test]
fn the_replay_is_the_memory_of_a_step() {
    for light in 0..=3 {
        let keep: Vec<Keep> = (0..3).map(|i| if i + light < 3 { Keep::Input } else { Keep::Light }).collect();
        assert_exact("qlora", &config(Method::Qlora, |_| {}), &keep);
    }
    for keep in [[Keep::Light; 3], [Keep::Input; 3]] {
        assert_exact("lora, one window", &config(Method::Lora, |config| config.training.micro_batch = 1), &keep);
        assert_exact("dropout", &config(Method::Qlora, |config| config.lora.dropout = 0.1), &keep);
        assert_exact("two targets", &config(Method::Qlora, |c| c.lora.targets = vec![Target::Q, Target::Down]), &keep);
        assert_exact("8 bits", &config(Method::Qlora, |c| c.optimizer.kind = OptimizerKind::AdamW8), &keep);
        assert_exact("plain scales", &config(Method::Qlora, |config| config.quantization.double = false), &keep);
    }
}

#[test]
fn the_parts_are_what_the_driver_is_asked_for() {
    let plan = gpu::with_keep(&job(&config(Method::Qlora, |_| {})), vec![Keep::Light; 3], 0);
    let bytes = gpu_replay::step(&job(&config(Method::Qlora, |_| {})), &[Keep::Light; 3], 0);
    assert_eq!(plan.peak(), gpu::CONTEXT + bytes.allocated as u64);
    assert!(plan.parts.list().iter().all(|(_, bytes)| *bytes > 0), "{plan:?}");
    let on_cpu = config(Method::Qlora, |config| config.optimizer.kind = OptimizerKind::AdamW8);
    assert_eq!(gpu::with_keep(&job(&on_cpu), vec![Keep::Light; 3], 0).parts.optimizer, 0);
}

fn situation(config: &RunConfig) -> Situation {
    let adapters = Adapters::fresh(config);
    let model = model(LAYERS, SMALL);
    let job = Job::new(config, &model, &adapters, 1);
    let budget = Budget { bytes: None, configured: false };
    Situation { job, adapters, model, program: 10 << 20, budget }
}

#[test]
fn a_run_that_a_gpu_cannot_hold_is_refused_with_what_makes_it_fit() {
    let change = |config: &mut RunConfig| {
        (config.training.micro_batch, config.data.sequence_length) = (4, 256);
        config.training.recompute = Recompute::Off;
    };
    let config = config(Method::Qlora, change);
    let bytes = gpu_replay::step(&situation(&config).on_gpu(None).job, &[Keep::Light; LAYERS], 0);
    let Some(large) = emulator_with(2 * bytes.allocated).map(Gpu::new) else { return };
    let (plan, limit) = gpu::admit(&config, situation(&config), &large).unwrap();
    assert!(plan.recomputed() == 0 && limit.is_some_and(|limit| plan.peak() <= limit));

    let small = emulator_with(bytes.allocated * 3 / 4).map(Gpu::new).unwrap();
    let error = gpu::admit(&config, situation(&config), &small).unwrap_err();
    assert!(error.message().contains("the run does not fit"), "{error}");
    let hint = error.hint_text().unwrap_or_default();
    assert!(hint.contains("training.micro_batch=1") && !hint.contains("bf16") && !hint.contains("adamw8bit"), "{hint}");
    // And truly.
    assert!(measured(&small, &config, &model(LAYERS, SMALL), &[Keep::Light; LAYERS], 0).is_err());
}

#[test]
fn auto_computes_again_what_a_gpu_cannot_keep() {
    let config = config(Method::Qlora, |config| {
        (config.training.micro_batch, config.data.sequence_length) = (16, 256);
    });
    let job = situation(&config).on_gpu(None).job;
    let [most, least] = [Keep::Light, Keep::Input].map(|keep| gpu::with_keep(&job, vec![keep; LAYERS], 0).peak());
    assert!(least < most);
    let plan = situation(&config).on_gpu(Some(most - gpu::CONTEXT - 1)).plan();
    assert!(plan.recomputed() > 0 && plan.peak() < most);
}

#[test]
fn what_is_proposed_lowers_the_memory_of_the_card() {
    let config = config(Method::Qlora, |config| {
        (config.training.micro_batch, config.lora.r) = (1, 8);
        config.training.cache_weights = CacheWeights::On;
        config.quantization.double = false;
    });
    let model = ModelConfig::from_json(json!({
        "model_type": "llama", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008,
        "num_hidden_layers": LAYERS, "num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 512,
    }))
    .unwrap();
    let adapters = Adapters::fresh(&config);
    let budget = Budget { bytes: None, configured: false };
    let job = Job::new(&config, &model, &adapters, 1);
    let mut situation = Situation { job, adapters, model, program: 0, budget }.on_gpu(None);
    let peak = situation.plan().peak();
    situation.budget.bytes = Some(peak - 1);
    let remedies = remedies::cheapest(&config, &situation, 10);
    let keys: Vec<&str> = remedies.iter().filter_map(|remedy| remedy.settings[0].split('=').next()).collect();
    assert_eq!(keys, ["training.cache_weights", "optimizer.kind", "quantization.double"], "{remedies:?}");
    assert!(remedies.iter().all(|remedy| remedy.settings.len() == 1 && remedy.peak < peak), "{remedies:?}");
    assert!(remedies[1].cost.contains("the CPU updates: slower"), "{remedies:?}");
}
