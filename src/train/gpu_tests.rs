//! Whole runs on an emulated GPU: the curve is the CPU's, a stopped run ends with the bits of one that never was, and what
//! cannot be trained there is refused before it begins.

use super::cache_weights::CacheWeights;
use super::config::RunConfig;
use super::folder::Beginning;
use super::metrics::{EvalRow, StepRow};
use super::run::{run, Observer, RunOptions};
use super::TrainingConfig;
use crate::device::{Compute, DeviceChoice};
use crate::error::Result;
use crate::ops::gpu::Gpu;
use crate::ops::testing::emulated_gpu;
use crate::optim::OptimizerKind;
use std::fs;
use std::path::Path;

/// Losses of the steps, losses of the held-out text, what was said.
#[derive(Default)]
struct Seen {
    losses: Vec<f64>,
    held_out: Vec<f64>,
    said: Vec<String>,
}

impl Observer for Seen {
    fn note(&mut self, text: &str) {
        self.said.push(text.into());
    }
    fn warning(&mut self, text: &str) {
        self.said.push(text.into());
    }
    fn phase(&mut self, _: &str, _: usize, _: usize) {}
    fn step(&mut self, row: &StepRow, _: u64) {
        self.losses.push(row.loss);
    }
    fn evaluation(&mut self, row: &EvalRow) {
        self.held_out.push(row.loss);
    }
}

/// A few steps of the quickstart's model with everything random in them.
pub(super) fn config(folder: &Path, name: &str) -> RunConfig {
    let text = folder.join("text.jsonl");
    let words = ["il cane", "corre", "verso la città", "perché", "non piove", "più", "e il sole", "torna"];
    let line = |i: usize| {
        let words: Vec<&str> = (0..12).map(|j| words[(i * 5 + j * 3 + i * j) % 8]).collect();
        format!("{{\"text\": \"{}, {i}\"}}\n", words.join(" "))
    };
    fs::write(&text, (0..40).map(line).collect::<String>()).unwrap();
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/quickstart/model");
    let mut config = RunConfig {
        name: name.into(),
        output: folder.join("runs"),
        model: model.display().to_string(),
        ..RunConfig::default()
    };
    config.lora.r = 4;
    config.lora.dropout = 0.1;
    config.data.paths = vec![text.display().to_string()];
    config.data.held_out_fraction = 0.1;
    config.data.cache = "off".into();
    config.data.sequence_length = 24;
    config.training.steps = 4;
    config.training.accumulation = 2;
    config.training.checkpoint_every = 2;
    config.training.neftune_alpha = 5.0;
    config.training.compute = Compute::Bf16;
    config.training.device = DeviceChoice::Cpu;
    config.optimizer.learning_rate = 5e-3;
    (config.optimizer.lora_plus_ratio, config.optimizer.weight_decay) = (2.0, 0.01);
    config
}

fn go(config: &RunConfig, gpu: Option<&Gpu>, until: u64) -> (Result<()>, Seen) {
    let mut seen = Seen::default();
    let stop = |step: u64| (step >= until).then(|| "the test".to_string());
    let options = RunOptions { beginning: Beginning::Auto, allow_config_change: false, stop: &stop, chain: None, gpu };
    (run(config, &options, &mut seen).map(drop), seen)
}

pub(super) fn adapter(config: &RunConfig) -> Vec<u8> {
    fs::read(config.folder().join("adapter/adapter_model.safetensors")).unwrap()
}

#[test]
fn a_run_follows_the_cpu_and_resumes_with_the_same_bits() {
    let Some(gpu) = emulated_gpu() else { return };
    let folder = tempfile::tempdir().unwrap();
    let (on_cpu, on_gpu, stopped) =
        (config(folder.path(), "cpu"), config(folder.path(), "gpu"), config(folder.path(), "stopped"));
    // Whether weights are decoded once changes no bit either.
    let stopped = RunConfig {
        training: TrainingConfig { cache_weights: CacheWeights::Off, ..stopped.training.clone() },
        ..stopped
    };
    let (result, expected) = go(&on_cpu, None, u64::MAX);
    result.unwrap();
    let (result, found) = go(&on_gpu, Some(&gpu), u64::MAX);
    result.unwrap();
    assert!(found.said.iter().any(|text| text.starts_with("GPU memory: about")), "{:?}", found.said);
    assert!(found.said.iter().any(|text| text.contains("stay decoded")), "{:?}", found.said);
    // Both round operands to bf16; activations are bf16 on the GPU alone.
    assert_eq!((found.losses.len(), found.held_out.len()), (4, 2));
    let pairs = |expected: &[f64], found: &[f64]| -> Vec<(f64, f64)> {
        expected.iter().copied().zip(found.iter().copied()).collect()
    };
    for (expected, found) in
        pairs(&expected.losses, &found.losses).into_iter().chain(pairs(&expected.held_out, &found.held_out))
    {
        assert!((found / expected - 1.0).abs() < 1e-2, "{found} for {expected}");
    }
    assert!(found.held_out[1] < found.held_out[0] - 0.1, "{:?}", found.held_out);

    let (result, _) = go(&stopped, Some(&gpu), 3);
    assert!(result.unwrap_err().message().contains("after step 3"));
    let (result, again) = go(&stopped, Some(&gpu), u64::MAX);
    result.unwrap();
    assert_eq!(again.losses, found.losses[3..]);
    assert!(adapter(&stopped) == adapter(&on_gpu), "resuming changed the adapter");
    assert!(adapter(&on_cpu) != adapter(&on_gpu));
    let manifest = fs::read_to_string(on_gpu.folder().join("checkpoints/step-000004/manifest.json")).unwrap();
    assert!(manifest.contains("emulated GPU"), "{manifest}");
}

#[test]
fn state_in_eight_bits_stays_with_the_cpu_and_resumes_with_the_same_bits() {
    let Some(gpu) = emulated_gpu() else { return };
    let folder = tempfile::tempdir().unwrap();
    let [whole, stopped] = ["whole", "stopped"].map(|name| {
        let mut config = config(folder.path(), name);
        (config.training.steps, config.training.checkpoint_every) = (2, 1);
        config.data.held_out_fraction = 0.0;
        config.optimizer.kind = OptimizerKind::AdamW8;
        config
    });
    let (result, seen) = go(&whole, Some(&gpu), u64::MAX);
    result.unwrap();
    assert!(
        seen.said.iter().any(|text| text.contains("adamw8bit") && text.contains("the CPU updates")),
        "{:?}",
        seen.said
    );
    go(&stopped, Some(&gpu), 1).0.unwrap_err();
    go(&stopped, Some(&gpu), u64::MAX).0.unwrap();
    assert!(adapter(&stopped) == adapter(&whole), "resuming changed the adapter");
}

#[test]
fn going_on_elsewhere_is_told() {
    let Some(gpu) = emulated_gpu() else { return };
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(folder.path(), "moved");
    config.training.steps = 2;
    go(&config, Some(&gpu), 1).0.unwrap_err();
    let (result, seen) = go(&config, None, u64::MAX);
    result.unwrap();
    let warned = seen.said.iter().any(|text| text.contains("kernels: emulated GPU then, "));
    assert!(warned, "{:?}", seen.said);
}

#[test]
fn what_a_gpu_cannot_do_is_refused() {
    let Some(gpu) = emulated_gpu() else { return };
    let folder = tempfile::tempdir().unwrap();
    let mut dora = config(folder.path(), "dora");
    dora.lora.dora = true;
    let error = go(&dora, Some(&gpu), u64::MAX).0.unwrap_err();
    assert!(error.hint_text().is_some_and(|hint| hint.contains("--device cpu")), "{error}");

    let Some(small) = crate::device::cuda::emulator::emulator_with(3 << 20) else { return };
    let error = go(&config(folder.path(), "small"), Some(&Gpu::new(small)), u64::MAX).0.unwrap_err();
    assert!(error.message().contains("the run does not fit"), "{error}");
    assert!(error.message().contains("emulated GPU"), "{error}");
}
