//! Measured figures of the engine: training step, decoding, quantisation. Each is one JSON object.
//!
//! Random weights stand in for a model of a known shape; the token batches are a 64-bit LCG that any language repeats,
//! so that other tools can run the very same steps and their losses be compared. Never a test: figures vary.

pub mod gpu;
mod shapes;

pub use shapes::{prompt_operations, step_operations, token_ids, Shape};

use crate::adapter::{peft, LoraConfig};
use crate::data::batch::MicroBatch;
use crate::device::{self, Compute};
use crate::error::Result;
use crate::generate::{Generator, SamplingOptions};
use crate::model::layer::Vector;
use crate::model::random::{random_values, RandomWeights};
use crate::model::{self, Keep, Llama, LoadOptions, Method, ModelConfig, OpenModel, TensorSource};
use crate::ops::gemm::peak::peak_rate;
use crate::ops::gemm::CoarseMatrix;
use crate::ops::{profile, Arena, Gradients, ParamStore};
use crate::optim::{LearningRates, OptimizerConfig};
use crate::quant::double::double_quantize;
use crate::quant::{self, QuantConfig, Values};
use crate::train::config::RunConfig;
use crate::train::memory::job::{Adapters, Job};
use crate::train::memory::time::operations_per_token;
use crate::train::memory::{self, Budget};
use crate::train::recompute::Recompute;
use crate::train::step::{Engine, StepSettings};
use serde_json::{json, Value};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Weights to bench.
#[derive(Debug, Clone)]
pub enum ModelChoice {
    /// Random values of a known shape.
    Random(Shape),
    /// A model folder, with an adapter to start from or a fresh one.
    Folder {
        /// HF or NF4 folder, or GGUF file.
        model: PathBuf,
        /// PEFT folder.
        adapter: Option<PathBuf>,
    },
}

/// A bench of optimizer steps.
#[derive(Debug, Clone)]
pub struct TrainBench {
    /// Weights.
    pub model: ModelChoice,
    /// Operand format.
    pub compute: Compute,
    /// Tokens of a sequence.
    pub sequence: usize,
    /// Sequences of a step.
    pub batch: usize,
    /// Rank of a fresh adapter.
    pub rank: usize,
    /// What is computed again in the backward pass.
    pub recompute: Recompute,
    /// Most memory with [`Recompute::Auto`]; 0: what is free.
    pub memory_limit_gib: f64,
    /// Timed steps.
    pub steps: usize,
    /// Steps before them.
    pub warmup: usize,
    /// Whether to report where the time of the timed steps went.
    pub profile: bool,
}

struct Loaded {
    model: Llama,
    params: ParamStore,
    seconds: f64,
}

fn load(choice: &ModelChoice, lora: Option<LoraConfig>, positions: usize) -> Result<Loaded> {
    let start = Instant::now();
    let mut options = LoadOptions::training(Method::Qlora, QuantConfig::default(), &LoraConfig::default(), 0);
    options.lora = lora;
    options.positions = positions;
    let mut adapter = None;
    let (config, source): (ModelConfig, Box<dyn TensorSource>) = match choice {
        ModelChoice::Random(shape) => {
            let config = shape.config()?;
            (config.clone(), Box::new(RandomWeights::new(0, 0.02)))
        }
        ModelChoice::Folder { model, adapter: folder } => {
            if let Some(folder) = folder {
                let read = peft::read(folder)?;
                options.lora = Some(read.config.clone());
                adapter = Some(read);
            }
            let opened = OpenModel::open(model)?;
            (opened.config.clone(), opened.into_source())
        }
    };
    let (mut model, mut params) = model::load(&config, source.as_ref(), &options, &mut |_, _| {})?;
    if let Some(adapter) = adapter {
        adapter.apply(&mut model, &mut params)?;
    }
    Ok(Loaded { model, params, seconds: start.elapsed().as_secs_f64() })
}

/// Times optimizer steps.
pub fn train(bench: &TrainBench) -> Result<Value> {
    let (process, budget) = (device::resident_bytes(), Budget::new(bench.memory_limit_gib));
    let rank = bench.rank;
    let lora = LoraConfig { r: rank, alpha: 2.0 * rank as f64, ..LoraConfig::default() };
    let Loaded { model, params, seconds: load_seconds } = load(&bench.model, Some(lora.clone()), bench.sequence)?;
    let job = job(bench, &model.config, lora);
    let predicted = memory::plan(&job, process + memory::PROGRAM, budget);
    let operations = operations_per_token(&job, &vec![Keep::Light; job.model.blocks.len()]);
    let operations_again = operations_per_token(&job, &predicted.keep);
    let settings = StepSettings {
        compute: bench.compute,
        keep: predicted.keep.clone(),
        max_grad_norm: 1.0,
        neftune_alpha: 0.0,
        sequence_length: bench.sequence,
        seed: 0,
    };
    let optimizer = OptimizerConfig::default().build(&params);
    let (grads, trainable) = (Gradients::zeros(&params), params.numel());
    let vocab = model.config.vocab_size;
    let mut engine = Engine { model, params, grads, optimizer, arena: Arena::new(), settings, gpu: None };
    let (mut losses, mut times, mut peaks) = (Vec::new(), Vec::new(), Vec::new());
    for step in 0..bench.warmup + bench.steps {
        if bench.profile && step == bench.warmup {
            profile::start();
        }
        let peak = peak_rate(bench.compute);
        let rows = token_ids(step as u64, bench.batch, bench.sequence, vocab);
        let batch = MicroBatch::from_rows(&rows);
        let start = Instant::now();
        let report = engine.step(step as u64, &[batch], &LearningRates::uniform(2e-4))?;
        losses.push((report.loss * 1e6).round() / 1e6);
        if step >= bench.warmup {
            times.push(start.elapsed());
            peaks.push((peak + peak_rate(bench.compute)) / 2.0);
        }
    }
    let lines = profile::finish();
    let step_seconds: Vec<f64> = times.iter().map(Duration::as_secs_f64).collect();
    let tokens = (bench.batch * bench.sequence) as f64;
    // The bound of each step from the peak beside it.
    let mut shares: Vec<f64> =
        step_seconds.iter().zip(&peaks).map(|(seconds, peak)| operations * tokens / seconds / peak).collect();
    let peak = median_of(&mut peaks);
    let report = json!({
        "tool": "llamantino", "what": "train", "dtype": bench.compute, "cpu_path": device::cpu_path().name(),
        "seq": bench.sequence, "batch": bench.batch, "rank": rank, "recomputed_blocks": predicted.recomputed(),
        "threads": rayon::current_num_threads(), "n": times.len(),
        "tokens_per_s": round(tokens / median(times.clone())), "step_s": step_seconds,
        "peak_rss_mib": device::peak_resident_bytes() >> 20, "rss_before_load_mib": process >> 20,
        "predicted_mib": predicted.peak() >> 20,
        "arena_peak_mib": engine.arena.peak_bytes() >> 20, "arena_touched_mib": engine.arena.touched_bytes() >> 20,
        "load_s": round(load_seconds), "trainable": trainable, "losses": losses,
        "gflop_per_token": round(operations / 1e9), "flop_ratio": round(operations_again / operations),
        "peak_gflops": round(peak / 1e9), "bound_tokens_per_s": round(peak / operations),
        "share_of_bound": round(median_of(&mut shares)),
    });
    Ok(match bench.profile {
        true => with_profile(report, &lines, &times, peak),
        false => report,
    })
}

/// Adds the profile: for each kind of work its share of the steps, its time a step, and how near its products came to
/// the peak. What no span covers is `other`.
fn with_profile(mut report: Value, lines: &[profile::Line], times: &[Duration], peak: f64) -> Value {
    let total: Duration = times.iter().sum();
    let steps = times.len() as f64;
    let covered: Duration = lines.iter().map(|line| line.time).sum();
    let other = profile::Line { name: "other", calls: 0, time: total.saturating_sub(covered), operations: 0.0 };
    let rows = lines.iter().chain([&other]).map(|line| {
        let seconds = line.time.as_secs_f64();
        json!({
            "what": line.name, "calls": line.calls as f64 / steps, "ms": round(seconds * 1e3 / steps),
            "percent": round(100.0 * seconds / total.as_secs_f64()),
            "percent_of_peak": round(100.0 * line.operations / seconds / peak),
        })
    });
    report["profile"] = rows.collect();
    report
}

/// The bench as the memory planner sees it.
fn job(bench: &TrainBench, model: &ModelConfig, lora: LoraConfig) -> Job {
    let mut config = RunConfig { lora, ..RunConfig::default() };
    config.data.sequence_length = bench.sequence;
    config.training.micro_batch = bench.batch;
    (config.training.compute, config.training.recompute) = (bench.compute, bench.recompute);
    let mut job = Job::new(&config, model, &Adapters::fresh(&config), rayon::current_num_threads());
    // The last row of each sequence has no target.
    job.batch.ignored = true;
    job
}

/// What random logits are multiplied by, so that about as many tokens are likely as in a trained model: decoding reads the
/// rows of the head again that matter.
const PEAKED: f32 = 8.0;

/// Times reading a prompt and greedy decoding.
pub fn decode(choice: &ModelChoice, compute: Compute, prompt: usize, tokens: usize, repeats: usize) -> Result<Value> {
    let context = prompt + tokens + 1;
    let Loaded { mut model, params, seconds } = load(choice, None, context)?;
    if let (ModelChoice::Random(_), Vector::Frozen(norm)) = (choice, &mut model.norm) {
        norm.iter_mut().for_each(|value| *value *= PEAKED);
    }
    let vocab = model.config.vocab_size;
    let mut generator = Generator::new(model, params, compute, context);
    let model = generator.model();
    let linears: usize = model.linears().map(|layer| layer.weight.frozen_bytes()).sum();
    let head = model.coarse_head.as_ref().map_or(model.head_weight().frozen_bytes(), CoarseMatrix::bytes);
    let bytes = linears + head;
    generator.set_stop_tokens(Vec::new());
    let options = SamplingOptions { max_tokens: tokens, ..SamplingOptions::default() };
    let (mut prompt_times, mut decode_times) = (Vec::new(), Vec::new());
    for repeat in 0..repeats {
        // Another prompt each time: the generator does not read again what its cache holds.
        let ids = &token_ids(repeat as u64, 1, prompt, vocab)[0];
        let generated = generator.generate(ids, &options, &mut |_| Ok(true))?;
        prompt_times.push(generated.prompt_time);
        decode_times.push(generated.decode_time);
    }
    Ok(json!({
        "tool": "llamantino", "what": "decode", "dtype": compute, "cpu_path": device::cpu_path().name(),
        "threads": rayon::current_num_threads(), "n": repeats, "prompt": prompt, "tokens": tokens,
        "prompt_tokens_per_s": round(prompt as f64 / median(prompt_times)),
        "decode_tokens_per_s": round((tokens - 1) as f64 / median(decode_times)),
        "bytes_per_token": bytes, "load_s": round(seconds), "peak_rss_mib": device::peak_resident_bytes() >> 20,
    }))
}

/// Times NF4 quantisation with double quantisation, of f32 or of bf16 values.
pub fn quantize(repeats: usize, half: bool) -> Result<Value> {
    let (rows, cols) = (4096, 11008);
    let values = random_values(0, "bench", rows * cols, 0.02);
    let bits: Vec<u16> = match half {
        true => values.iter().map(|&value| half::bf16::from_f32(value).to_bits()).collect(),
        false => Vec::new(),
    };
    let source = if half { Values::Bf16(&bits) } else { Values::F32(&values) };
    let config = QuantConfig::default();
    let matrix = quant::quantize(source, rows, cols, config)?;
    let mut times = Vec::new();
    for _ in 0..repeats {
        let start = Instant::now();
        std::hint::black_box(quant::quantize(source, rows, cols, config)?);
        times.push(start.elapsed());
    }
    let seconds = median(times);
    // Once more into memory that has been written before, as copying is measured: the system gives and clears fresh
    // memory page by page.
    let (mut packed, mut absmax) = (vec![1u8; rows * cols / 2], vec![1f32; rows * cols / config.block]);
    let mut warm = Vec::new();
    for _ in 0..repeats {
        let start = Instant::now();
        quant::quantize::encode(source, cols, config.block, (&mut packed, &mut absmax))?;
        std::hint::black_box(double_quantize(&absmax));
        warm.push(start.elapsed());
    }
    let warm = median(warm);
    let count = (rows * cols) as f64;
    let read = count * if half { 2.0 } else { 4.0 };
    Ok(json!({
        "tool": "llamantino", "what": "quantize", "cpu_path": device::cpu_path().name(),
        "threads": rayon::current_num_threads(), "n": repeats, "rows": rows, "cols": cols,
        "dtype": if half { "bf16" } else { "f32" }, "seconds": seconds, "gvalues_per_s": round(count / seconds / 1e9),
        "gb_per_s_in": round(read / seconds / 1e9),
        "gb_per_s": round((read + matrix.stored_bytes() as f64) / seconds / 1e9),
        "gb_per_s_into_used_memory": round((read + matrix.stored_bytes() as f64) / warm / 1e9),
    }))
}

fn median(times: Vec<Duration>) -> f64 {
    median_of(&mut times.iter().map(Duration::as_secs_f64).collect::<Vec<_>>())
}

fn median_of(values: &mut [f64]) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() % 2 {
        1 => values[middle],
        _ => (values[middle - 1] + values[middle]) / 2.0,
    }
}

fn round(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}
