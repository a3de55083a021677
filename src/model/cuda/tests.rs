//! The model on an emulated GPU against the model on the CPU: losses, every gradient, a fall in the loss.

use super::*;
use crate::adapter::{peft, LoraConfig};
use crate::device::Compute;
use crate::model::layer::Weight;
use crate::model::{self, Checkpoint, LoadOptions, Method, Pass, TensorSource};
use crate::ops::linear::cuda::GpuWeight;
use crate::ops::testing::emulated_gpu;
use crate::ops::{Arena, Bytes, Gradients};
use crate::optim::{clip, LearningRates, OptimizerConfig};
use crate::quant::file::RawTensor;
use crate::quant::QuantConfig;
use std::path::{Path, PathBuf};

pub(super) fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// The tiny model of the golden vectors with PEFT's adapter of rank 8, its base in 4 bits if asked.
pub(super) fn tiny(dropout: f32, quantize: bool) -> (Llama, ParamStore) {
    let adapter = peft::read(&golden("lora/lora")).unwrap();
    let mut options = LoadOptions::frozen(128);
    options.quantize = quantize.then(QuantConfig::default);
    options.lora = Some(LoraConfig { dropout, ..adapter.config.clone() });
    let folder = golden("llama/tiny");
    let config = ModelConfig::from_folder(&folder).unwrap();
    let (mut model, mut params) =
        model::load(&config, &Checkpoint::open(&folder).unwrap(), &options, &mut |_, _| {}).unwrap();
    adapter.apply(&mut model, &mut params).unwrap();
    model.linears().for_each(|layer| assert!(layer.lora.is_some()));
    for block in &mut model.blocks {
        for layer in block.linears_mut() {
            layer.lora.as_mut().unwrap().dropout = dropout;
        }
    }
    (model, params)
}

struct Packed {
    ids: Vec<u32>,
    positions: Vec<u32>,
    segments: Vec<std::ops::Range<usize>>,
    targets: Vec<i32>,
}

/// Documents of these lengths, every third target ignored.
fn packed(lengths: &[usize]) -> Packed {
    let stream = RandomStream::derive(3, "ids", &[]);
    let rows: usize = lengths.iter().sum();
    let mut packed = Packed { ids: Vec::new(), positions: Vec::new(), segments: Vec::new(), targets: Vec::new() };
    packed.ids.extend((0..rows as u64).map(|i| stream.word(i) % 128));
    for &length in lengths {
        let start = packed.positions.len();
        packed.positions.extend(0..length as u32);
        packed.segments.push(start..start + length);
    }
    let ends: Vec<usize> = packed.segments.iter().map(|segment| segment.end - 1).collect();
    let target = |row: usize| match row % 3 == 1 || ends.contains(&row) {
        true => IGNORE,
        false => packed.ids[row + 1] as i32,
    };
    packed.targets = (0..rows).map(target).collect();
    packed
}

impl Packed {
    fn rows(&self) -> Rows<'_> {
        Rows { ids: &self.ids, positions: &self.positions, segments: &self.segments }
    }

    fn batch(&self) -> Batch<'_> {
        let count = self.targets.iter().filter(|&&target| target != IGNORE).count();
        Batch { rows: self.rows(), targets: &self.targets, scale: 1.0 / count as f32 }
    }
}

const NOISE: Noise = Noise { seed: 5, step: 2, micro_step: 1, embedding_bound: 0.0 };

fn on_cpu(model: &Llama, params: &ParamStore, data: &Packed, compute: Compute, noise: Noise) -> (f64, Gradients) {
    let arena = Arena::new();
    let pass = Pass { params, dora: &Default::default(), arena: &arena, compute, noise: Some(noise) };
    let mut grads = Gradients::zeros(params);
    let keep = vec![Keep::Light; model.blocks.len()];
    let loss = model.loss_and_gradients(&pass, data.batch(), &keep, &mut grads);
    (loss.sum, grads)
}

fn on_gpu(gpu: &Gpu, model: &Llama, params: &ParamStore, data: &Packed, keep: Keep, noise: Noise) -> (f64, Gradients) {
    let on_gpu = GpuLlama::new(gpu, model, params).unwrap();
    let gpu_params = GpuParams::new(gpu, params).unwrap();
    let keep = vec![keep; model.blocks.len()];
    let loss = on_gpu.loss_and_gradients(&gpu_params, data.batch(), &keep, noise).unwrap();
    let mut grads = Gradients::zeros(params);
    gpu_params.add_gradients_to(&mut grads).unwrap();
    (loss.sum().unwrap(), grads)
}

#[test]
fn losses_and_gradients_are_those_of_the_cpu() {
    let Some(gpu) = emulated_gpu() else { return };
    let data = packed(&[1, 40, 7, 66]);
    for (dropout, quantize, bound) in [(0.0, false, 0.0), (0.0, true, 0.0), (0.2, true, 0.01)] {
        let (model, params) = tiny(dropout, quantize);
        let noise = Noise { embedding_bound: bound, ..NOISE };
        let (loss, grads) = on_cpu(&model, &params, &data, Compute::F32, noise);
        let (found_loss, found) = on_gpu(&gpu, &model, &params, &data, Keep::Light, noise);
        assert!((found_loss / loss - 1.0).abs() < agreement::LOSS, "loss {found_loss} for {loss}");
        for ((param, expected), found) in params.iter().zip(grads.iter()).zip(found.iter()) {
            let error = agreement::distance(expected, found);
            assert!(error < agreement::GRADIENT, "{}: {error} (dropout {dropout}, 4 bits {quantize})", param.name);
        }
    }
}

#[test]
fn recomputing_changes_no_bit() {
    let Some(gpu) = emulated_gpu() else { return };
    let data = packed(&[33, 20]);
    let (model, params) = tiny(0.1, true);
    let (light_loss, light) = on_gpu(&gpu, &model, &params, &data, Keep::Light, NOISE);
    let (input_loss, input) = on_gpu(&gpu, &model, &params, &data, Keep::Input, NOISE);
    assert_eq!(light_loss.to_bits(), input_loss.to_bits());
    light.iter().zip(input.iter()).for_each(|(light, input)| assert_eq!(light, input));
}

#[test]
fn decoding_weights_once_changes_no_bit() {
    let Some(gpu) = emulated_gpu() else { return };
    let data = packed(&[33, 20]);
    let (model, params) = tiny(0.1, true);
    let (expected_loss, expected) = on_gpu(&gpu, &model, &params, &data, Keep::Input, NOISE);
    for blocks in [1, 2] {
        let mut on_gpu = GpuLlama::new(&gpu, &model, &params).unwrap();
        let live = gpu.live_bytes();
        on_gpu.cache_weights(blocks).unwrap();
        assert!(gpu.live_bytes() > live);
        let gpu_params = GpuParams::new(&gpu, &params).unwrap();
        let loss = on_gpu.loss_and_gradients(&gpu_params, data.batch(), &[Keep::Input; 2], NOISE).unwrap();
        assert_eq!(loss.sum().unwrap().to_bits(), expected_loss.to_bits());
        let mut grads = Gradients::zeros(&params);
        gpu_params.add_gradients_to(&mut grads).unwrap();
        assert!(expected.iter().zip(grads.iter()).all(|(expected, found)| expected == found), "{blocks}");
    }
}

#[test]
fn the_loss_without_gradients_is_the_same() {
    let Some(gpu) = emulated_gpu() else { return };
    let data = packed(&[9, 30]);
    let (model, params) = tiny(0.0, true);
    let (expected, _) = on_gpu(&gpu, &model, &params, &data, Keep::Light, NOISE);
    let (on_gpu, gpu_params) = (GpuLlama::new(&gpu, &model, &params).unwrap(), GpuParams::new(&gpu, &params).unwrap());
    let loss = on_gpu.loss(&gpu_params, data.rows(), &data.targets).unwrap();
    assert_eq!(loss.sum().unwrap().to_bits(), expected.to_bits());
    let by_row = loss.of_rows().unwrap();
    assert!(by_row.iter().zip(&data.targets).all(|(loss, target)| (*loss == 0.0) == (*target == IGNORE)));
}

#[test]
fn steps_follow_the_cpu_and_memory_does_not_grow() {
    let Some(gpu) = emulated_gpu() else { return };
    let data = packed(&[24, 24]);
    let (model, start) = tiny(0.0, true);
    let gpu_model = GpuLlama::new(&gpu, &model, &start).unwrap();
    let config = OptimizerConfig::default();
    let (mut cpu_params, mut params) = (start.clone(), start);
    let (mut cpu_optimizer, mut optimizer) = (config.build(&cpu_params), config.build(&params));
    let gpu_params = GpuParams::new(&gpu, &params).unwrap();
    let keep = vec![Keep::Light; model.blocks.len()];
    let mut live = None;
    let mut losses = Vec::new();
    for step in 0..8 {
        let noise = Noise { step, ..NOISE };
        let (cpu_loss, cpu_grads) = on_cpu(&model, &cpu_params, &data, Compute::F32, noise);
        let factor = clip::scale(clip::global_norm(&cpu_grads), 1.0);
        cpu_optimizer.step(&mut cpu_params, &cpu_grads, &LearningRates::uniform(1e-3), factor);

        gpu_params.clear_gradients().unwrap();
        let loss = gpu_model.loss_and_gradients(&gpu_params, data.batch(), &keep, noise).unwrap().sum().unwrap();
        let mut grads = Gradients::zeros(&params);
        gpu_params.add_gradients_to(&mut grads).unwrap();
        let factor = clip::scale(clip::global_norm(&grads), 1.0);
        optimizer.step(&mut params, &grads, &LearningRates::uniform(1e-3), factor);
        gpu_params.upload(&params).unwrap();
        assert!((loss / cpu_loss - 1.0).abs() < 5e-3, "step {step}: {loss} for {cpu_loss}");
        assert_eq!(*live.get_or_insert(gpu.live_bytes()), gpu.live_bytes());
        losses.push(loss);
    }
    assert!(losses[7] < losses[0], "{losses:?}");
}

/// Codes, scales and values of every linear, and the loss, must be those of a model that the CPU loaded.
#[test]
fn loading_to_the_gpu_gives_the_bits_of_the_cpu() {
    let Some(gpu) = emulated_gpu() else { return };
    let data = packed(&[9, 30]);
    let double = |double| Some(QuantConfig { double, ..QuantConfig::default() });
    for quantize in [None, double(false), double(true)] {
        for variant in ["tiny", "variant_tied_theta500k_llama3rope"] {
            let folder = golden("llama").join(variant);
            let config = ModelConfig::from_folder(&folder).unwrap();
            let source = Checkpoint::open(&folder).unwrap();
            let mut options = LoadOptions { quantize, seed: 3, ..LoadOptions::frozen(128) };
            options.lora = Some(LoraConfig { r: 4, ..LoraConfig::default() });
            let (host, params) = model::load(&config, &source, &options, &mut |_, _| {}).unwrap();
            options.gpu = Some(gpu.clone());
            let (there, same_params) = model::load(&config, &source, &options, &mut |_, _| {}).unwrap();
            assert!(params.iter().zip(same_params.iter()).all(|(a, b)| (&a.name, &a.value) == (&b.name, &b.value)));
            for (host, there) in host.linears().zip(there.linears()) {
                assert_eq!(host.name, there.name);
                let Weight::OnGpu(there) = &there.weight else { panic!("{}: not on the GPU", there.name) };
                let (GpuWeight::Nf4(there), Weight::Nf4(host)) = (&**there, &host.weight) else {
                    assert!(quantize.is_none());
                    continue;
                };
                let there = there.to_host().unwrap();
                assert!(there.codes[..] == host.codes[..] && there.dtype == host.dtype);
                let blocks = host.len().div_ceil(host.block);
                assert!((0..blocks).all(|block| there.scale(block).to_bits() == host.scale(block).to_bits()));
            }
            if check_shape(host.attention_shape()).is_err() {
                continue;
            }
            let gpu_params = GpuParams::new(&gpu, &params).unwrap();
            let loss = |model: &Llama| {
                let model = GpuLlama::new(&gpu, model, &params).unwrap();
                model.loss(&gpu_params, data.rows(), &data.targets).unwrap().of_rows().unwrap()
            };
            assert_eq!(loss(&host), loss(&there), "{variant}");
        }
    }
}

#[test]
fn a_damaged_linear_is_named_and_loading_ends() {
    struct Damaged(Checkpoint);
    impl TensorSource for Damaged {
        fn tensor(&self, name: &str, shape: &[usize]) -> crate::error::Result<RawTensor> {
            let mut tensor = self.0.tensor(name, shape)?;
            if name.ends_with("layers.1.self_attn.k_proj.weight") {
                let size = tensor.dtype.size();
                let mut bytes = tensor.bytes.to_vec();
                bytes[5 * size..6 * size].fill(0xff);
                tensor.bytes = Bytes::owned(&bytes);
            }
            Ok(tensor)
        }
        fn nf4(&self, _: &str, _: usize, _: usize) -> crate::error::Result<Option<crate::quant::Nf4Matrix>> {
            Ok(None)
        }
        fn place(&self) -> String {
            "here".into()
        }
    }
    let Some(gpu) = emulated_gpu() else { return };
    let folder = golden("llama/tiny");
    let config = ModelConfig::from_folder(&folder).unwrap();
    let source = Damaged(Checkpoint::open(&folder).unwrap());
    let mut options = LoadOptions { quantize: Some(QuantConfig::default()), ..LoadOptions::frozen(8) };
    let mut message = || {
        let error = model::load(&config, &source, &options, &mut |_, _| {}).err().expect("damaged");
        options.gpu = Some(gpu.clone());
        error.to_string()
    };
    let on_cpu = message();
    assert_eq!(message(), on_cpu);
    assert!(
        on_cpu.contains("layers.1.self_attn.k_proj.weight") && on_cpu.contains("value 5 is not finite"),
        "{on_cpu}"
    );
    assert_eq!(gpu.live_bytes(), 0);
}

#[test]
fn what_a_gpu_cannot_train_is_refused() {
    let Some(gpu) = emulated_gpu() else { return };
    let folder = golden("llama/tiny");
    let config = ModelConfig::from_folder(&folder).unwrap();
    let options = LoadOptions::training(Method::Full, QuantConfig::default(), &LoraConfig::default(), 0);
    let checkpoint = Checkpoint::open(&folder).unwrap();
    let (model, params) = model::load(&config, &checkpoint, &options, &mut |_, _| {}).unwrap();
    let error = GpuLlama::new(&gpu, &model, &params).err().expect("a refusal");
    assert!(error.message().contains("LoRA's A and B only"), "{}", error.message());
}

#[test]
fn a_gpu_without_memory_says_so() {
    let Some(driver) = crate::device::cuda::emulator::emulator_with(2 << 20) else { return };
    let gpu = Gpu::new(driver);
    let (model, params) = tiny(0.0, true);
    let data = packed(&[120]);
    let run = || {
        let model = GpuLlama::new(&gpu, &model, &params)?;
        let params = GpuParams::new(&gpu, &params)?;
        model.loss_and_gradients(&params, data.batch(), &[Keep::Light; 2], NOISE)?.sum()
    };
    let error = run().expect_err("no memory");
    assert!(error.message().contains("no "), "{}", error.message());
}
