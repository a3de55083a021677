//! The generator on an emulated GPU says what the one on the CPU says.

use super::*;
use crate::device::cuda::emulator::emulator_that_changes;
use crate::model::{self, Checkpoint, LoadOptions, ModelConfig};
use crate::ops::testing::emulated_gpu;
use std::path::Path;
use std::sync::atomic::AtomicUsize;
use std::sync::Arc;

const CONTEXT: usize = 40;

/// The third prompt begins as the first: of the cache only the part behind it is read again.
const PROMPTS: [&[u32]; 4] = [&[1, 17, 40, 99, 5], &[2], &[1, 17, 40, 98], &[1, 17, 40, 98, 3, 3, 7]];

fn tiny() -> (Llama, ParamStore) {
    loaded(None)
}

/// The model with its linears here, or on a GPU.
fn loaded(gpu: Option<&Gpu>) -> (Llama, ParamStore) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/llama/tiny");
    let config = ModelConfig::from_folder(&folder).unwrap();
    let options = LoadOptions { quantize: Some(Default::default()), gpu: gpu.cloned(), ..LoadOptions::frozen(128) };
    model::load(&config, &Checkpoint::open(&folder).unwrap(), &options, &mut |_, _| {}).unwrap()
}

fn on_cpu() -> Generator {
    let (model, params) = tiny();
    Generator::new(model, params, Compute::F32, CONTEXT)
}

fn on_gpu(gpu: &Gpu) -> Generator {
    let (model, params) = tiny();
    Generator::on_gpu(gpu, model, &params, CONTEXT).unwrap()
}

fn answers(generator: &mut Generator, options: &SamplingOptions) -> Vec<Vec<u32>> {
    generator.set_stop_tokens(Vec::new());
    let mut answer = |prompt: &&[u32]| generator.generate(prompt, options, &mut |_| Ok(true)).unwrap().ids;
    PROMPTS.iter().map(&mut answer).collect()
}

/// A model of random weights has logits that lie close together, and those of the GPU are rounded to bf16 on the way: two
/// texts may part where the CPU's logits of both tokens are closer than that. What both chose before is compared.
#[test]
fn greedy_tokens_are_those_of_the_cpu() {
    let Some(gpu) = emulated_gpu() else { return };
    let options = SamplingOptions { max_tokens: 24, ..SamplingOptions::default() };
    let mut cpu = on_cpu();
    let (expected, found) = (answers(&mut cpu, &options), answers(&mut on_gpu(&gpu), &options));
    let mut same = 0;
    for ((prompt, expected), found) in PROMPTS.iter().zip(&expected).zip(&found) {
        assert_eq!(expected.len(), found.len());
        let agreed = expected.iter().zip(found).take_while(|(a, b)| a == b).count();
        same += agreed;
        let (Some(&wanted), Some(&chosen)) = (expected.get(agreed), found.get(agreed)) else { continue };
        cpu.read(&[prompt, &expected[..agreed]].concat()).unwrap();
        let largest = cpu.logits.iter().fold(0f32, |largest, logit| largest.max(logit.abs()));
        let gap = cpu.logits[wanted as usize] - cpu.logits[chosen as usize];
        assert!(gap <= 1e-2 * largest, "token {agreed} of {prompt:?}: {chosen} for {wanted}, {gap} of {largest}");
    }
    assert!(same >= 48, "only {same} of 96 tokens before the first near tie: {found:?} for {expected:?}");
}

#[test]
fn the_same_seed_gives_the_same_tokens() {
    let Some(gpu) = emulated_gpu() else { return };
    let options = SamplingOptions { temperature: 1.0, top_k: Some(9), seed: 4, max_tokens: 24, ..Default::default() };
    assert_eq!(answers(&mut on_gpu(&gpu), &options), answers(&mut on_gpu(&gpu), &options));
}

#[test]
fn a_model_loaded_to_the_gpu_says_the_same() {
    let Some(gpu) = emulated_gpu() else { return };
    let options = SamplingOptions { max_tokens: 24, ..SamplingOptions::default() };
    let (model, params) = loaded(Some(&gpu));
    let mut there = Generator::on_gpu(&gpu, model, &params, CONTEXT).unwrap();
    assert_eq!(answers(&mut there, &options), answers(&mut on_gpu(&gpu), &options));
}

#[test]
fn linears_that_the_gpu_cannot_hold_are_refused_before_they_are_loaded() {
    let Some(driver) = crate::device::cuda::emulator::emulator_with(20 << 10) else { return };
    let (gpu, config) = (Gpu::new(driver), tiny().0.config.clone());
    let refused = with_room(&gpu, &config, (Some(Default::default()), CONTEXT), || Ok(())).unwrap_err();
    assert!(refused.message().contains("GiB of GPU memory; "), "{refused}");
    let Some(gpu) = emulated_gpu() else { return };
    with_room(&gpu, &config, (None, CONTEXT), || Ok(())).unwrap();
    let (model, _) = loaded(Some(&gpu));
    let taken: usize = model.linears().map(|layer| layer.weight.frozen_bytes()).sum();
    let planned = crate::model::cuda::linear_bytes(&config, Some(Default::default()));
    // But for the map of each weight's scales.
    assert_eq!(taken, planned + 1024 * model.linears().count());
}

#[test]
fn a_cache_that_the_gpu_cannot_hold_is_refused_before_anything_is_copied() {
    let Some(driver) = crate::device::cuda::emulator::emulator_with(4 << 20) else { return };
    let (gpu, (model, params)) = (Gpu::new(driver), tiny());
    let error = Generator::on_gpu(&gpu, model, &params, 100_000).err().expect("no memory");
    assert!(error.message().contains("a context of 100000 tokens need"), "{error}");
    assert!(error.hint_text().is_some_and(|hint| hint.contains("--context")), "{error}");
    assert_eq!(gpu.live_bytes(), 0);
}

#[test]
fn memory_that_others_take_meanwhile_is_told_with_what_was_planned() {
    let limit = Arc::new(AtomicUsize::new(1 << 30));
    let Some(driver) = emulator_that_changes(limit.clone()) else { return };
    let (gpu, (model, params)) = (Gpu::new(driver), tiny());
    let told = |error: Error| {
        let hint = error.hint_text().unwrap_or_default();
        assert!(hint.contains("nvidia-smi") && hint.contains("--context"), "{hint}");
        assert!(error.message().contains("GPU memory ran out: emulated GPU: no memory for "), "{error}");
        assert!(error.message().contains("GiB for the model and a context of "), "{error}");
    };
    let loading = with_room(&gpu, &model.config, (None, CONTEXT), || {
        limit.store(0, Ordering::Relaxed);
        gpu.buffer::<f32>(1, 1)
    });
    told(loading.err().expect("no memory"));
    limit.store(1 << 30, Ordering::Relaxed);
    let mut generator = Generator::on_gpu(&gpu, model, &params, CONTEXT).unwrap();
    limit.store(0, Ordering::Relaxed);
    let _all_that_is_held: Vec<_> = std::iter::from_fn(|| gpu.buffer::<u8>(1, 4096).ok()).collect();
    let options = SamplingOptions { max_tokens: 1, ..SamplingOptions::default() };
    told(generator.generate(&[1, 17], &options, &mut |_| Ok(true)).expect_err("no memory"));
}
