//! `llamantino bench`: one measured figure as one JSON line, comparable with other tools on the same batches.

use super::model_args::ComputeArg;
use super::output;
use crate::bench::gpu::{self, Scale, Section};
use crate::bench::{self, ModelChoice, Shape, TrainBench};
use crate::device::{self, DeviceChoice};
use crate::error::{Error, Result};
use crate::train::recompute::Recompute;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Subcommand, ValueEnum};
use std::path::PathBuf;

/// Arguments of `bench`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  llamantino bench train --shape 135m --seq 512 --steps 5\n  \
    llamantino bench train --model MODEL --adapter ADAPTER --dtype bf16 --recompute on\n  \
    llamantino bench decode --shape 135m\n  llamantino bench quantize")]
pub struct BenchArgs {
    /// What to time.
    #[command(subcommand)]
    pub what: What,
}

/// The benches.
#[derive(Debug, Subcommand)]
pub enum What {
    /// Optimizer steps of QLoRA (rank on all linears, alpha twice the rank, AdamW 2e-4, clip 1).
    Train(TrainArgs),
    /// Prompt reading and greedy decoding with the NF4 base.
    Decode(DecodeArgs),
    /// NF4 quantisation of a 4096 x 11008 matrix, with double quantisation.
    Quantize(QuantizeArgs),
    /// Checks and measures a GPU: every operation against the CPU and its bound, training, decoding, memory.
    Gpu(GpuArgs),
}

/// Where the weights come from, and what computes.
#[derive(Debug, Args)]
pub struct CommonArgs {
    /// Random weights of this shape.
    #[arg(long, value_enum, conflicts_with = "model", default_value = "135m")]
    pub shape: ShapeArg,
    /// A model (folder or GGUF file) instead of random weights.
    #[arg(long, value_name = "DIR")]
    pub model: Option<PathBuf>,
    /// An adapter folder to start from.
    #[arg(long, value_name = "DIR", requires = "model")]
    pub adapter: Option<PathBuf>,
    /// Operand format of the matrix products.
    #[arg(long, value_enum, default_value = "f32")]
    pub dtype: ComputeArg,
    /// Threads; default: one for each core.
    #[arg(long)]
    pub threads: Option<usize>,
}

/// Named shapes.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum ShapeArg {
    /// SmolLM2-135M.
    #[value(name = "135m")]
    M135,
    /// SmolLM2-360M.
    #[value(name = "360m")]
    M360,
    /// TinyLlama-1.1B.
    #[value(name = "1.1b")]
    B1,
    /// LLaMA 2 7B.
    #[value(name = "7b")]
    B7,
    /// LLaMA 2 13B.
    #[value(name = "13b")]
    B13,
    /// A toy for trying out.
    #[value(name = "tiny")]
    Tiny,
}

/// Arguments of `bench train`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  llamantino bench train --shape 135m --dtype bf16 --profile\n  \
    llamantino bench train --model MODEL --seq 1024 --recompute auto --memory-limit-gib 2")]
pub struct TrainArgs {
    /// Weights, adapter, threads.
    #[command(flatten)]
    pub common: CommonArgs,
    /// Tokens of a sequence.
    #[arg(long, default_value_t = 512)]
    pub seq: usize,
    /// Sequences of a step.
    #[arg(long, default_value_t = 1)]
    pub batch: usize,
    /// Rank of fresh adapters.
    #[arg(long, default_value_t = 16)]
    pub rank: usize,
    /// Compute activations again in the backward pass.
    #[arg(long, value_enum, default_value = "off")]
    pub recompute: Switch,
    /// Most memory with `--recompute auto`, in GiB; 0: what is free.
    #[arg(long, default_value_t = 0.0)]
    pub memory_limit_gib: f64,
    /// Steps that are timed.
    #[arg(long, default_value_t = 5)]
    pub steps: usize,
    /// Steps that run first and are not timed (their losses are listed too).
    #[arg(long, default_value_t = 1)]
    pub warmup: usize,
    /// Also report where the time goes, as `profile` in the JSON line and as a table on stderr.
    #[arg(long)]
    pub profile: bool,
}

/// [`Recompute`] on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// As few blocks as the memory demands.
    Auto,
    /// All blocks.
    On,
    /// None.
    Off,
}

impl From<Switch> for Recompute {
    fn from(switch: Switch) -> Recompute {
        match switch {
            Switch::Auto => Recompute::Auto,
            Switch::On => Recompute::On,
            Switch::Off => Recompute::Off,
        }
    }
}

/// Arguments of `bench decode`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  llamantino bench decode --shape 135m --prompt 512 --tokens 64")]
pub struct DecodeArgs {
    /// Weights, adapter, threads.
    #[command(flatten)]
    pub common: CommonArgs,
    /// Tokens of the prompt.
    #[arg(long, default_value_t = 512)]
    pub prompt: usize,
    /// Tokens to decode.
    #[arg(long, default_value_t = 64)]
    pub tokens: usize,
    /// Repetitions; the medians are reported.
    #[arg(long, default_value_t = 3)]
    pub steps: usize,
}

/// Arguments of `bench quantize`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  llamantino bench quantize --dtype bf16 --threads 1")]
pub struct QuantizeArgs {
    /// Threads; default: one for each core.
    #[arg(long)]
    pub threads: Option<usize>,
    /// Format of the values.
    #[arg(long, value_enum, default_value = "f32")]
    pub dtype: ComputeArg,
    /// Repetitions; the median is reported.
    #[arg(long, default_value_t = 5)]
    pub steps: usize,
}

/// Arguments of `bench gpu`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  llamantino bench gpu --out report --sections parity,curve,memory")]
pub struct GpuArgs {
    /// `cuda` or `cuda:NUMBER`.
    #[arg(long, default_value = "cuda")]
    pub device: DeviceChoice,
    /// Folder for gpu.json and gpu.md.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Parts of the report; default: all.
    #[arg(long, value_parser = section_parser(), value_delimiter = ',')]
    pub sections: Vec<Section>,
    /// Model of the training steps and their curve; default: a toy with random weights.
    #[arg(long, value_name = "DIR")]
    pub model: Option<PathBuf>,
    /// Toy sizes: checks in seconds, figures that mean nothing.
    #[arg(long)]
    pub tiny: bool,
}

/// Sections by their names.
fn section_parser() -> impl TypedValueParser<Value = Section> {
    PossibleValuesParser::new(Section::ALL.map(Section::name))
        .try_map(|name| Section::ALL.into_iter().find(|section| section.name() == name).ok_or("no such section"))
}

/// Runs `bench gpu`: the report's files, its JSON on stdout, and an error where a check did not pass.
fn run_gpu(args: &GpuArgs) -> Result<()> {
    let Some(driver) = args.device.open()?.gpu else {
        return Err(Error::usage(format!("--device {}: expected a GPU, cuda or cuda:NUMBER", args.device)));
    };
    let sections = match args.sections.is_empty() {
        true => Section::ALL.to_vec(),
        false => args.sections.clone(),
    };
    let scale = if args.tiny { Scale::Tiny } else { Scale::Full };
    let options = gpu::Options { sections, scale, model: args.model.clone() };
    // Before the work, which takes minutes.
    std::fs::create_dir_all(&args.out).map_err(|error| Error::failed(format!("{}: {error}", args.out.display())))?;
    let report = gpu::run(&driver, &options, &mut |what| output::note(what))?;
    let write = |name: &str, text: String| {
        let path = args.out.join(name);
        std::fs::write(&path, text).map_err(|error| Error::failed(format!("{}: {error}", path.display())))
    };
    write("gpu.json", format!("{report:#}\n"))?;
    write("gpu.md", gpu::markdown(&report))?;
    output::data(&format!("{report}\n"));
    match report["passed"] == true {
        true => Ok(()),
        false => Err(Error::failed(format!("not all checks passed: see {}", args.out.join("gpu.md").display()))),
    }
}

impl CommonArgs {
    fn choice(&self) -> ModelChoice {
        match &self.model {
            Some(model) => ModelChoice::Folder { model: model.clone(), adapter: self.adapter.clone() },
            None => ModelChoice::Random(match self.shape {
                ShapeArg::M135 => Shape::M135,
                ShapeArg::M360 => Shape::M360,
                ShapeArg::B1 => Shape::B1,
                ShapeArg::B7 => Shape::B7,
                ShapeArg::B13 => Shape::B13,
                ShapeArg::Tiny => Shape::Tiny,
            }),
        }
    }
}

/// Runs `bench`.
pub fn run(args: BenchArgs) -> Result<()> {
    let report = match args.what {
        What::Gpu(args) => return run_gpu(&args),
        What::Train(args) => {
            device::set_threads(args.common.threads)?;
            positive(&[("--seq", args.seq.saturating_sub(1)), ("--batch", args.batch), ("--steps", args.steps)])?;
            bench::train(&TrainBench {
                model: args.common.choice(),
                compute: args.common.dtype.into(),
                sequence: args.seq,
                batch: args.batch,
                rank: args.rank,
                recompute: args.recompute.into(),
                memory_limit_gib: args.memory_limit_gib,
                steps: args.steps,
                warmup: args.warmup,
                profile: args.profile,
            })?
        }
        What::Decode(args) => {
            device::set_threads(args.common.threads)?;
            positive(&[("--prompt", args.prompt), ("--tokens", args.tokens), ("--steps", args.steps)])?;
            bench::decode(&args.common.choice(), args.common.dtype.into(), args.prompt, args.tokens, args.steps)?
        }
        What::Quantize(args) => {
            device::set_threads(args.threads)?;
            positive(&[("--steps", args.steps)])?;
            bench::quantize(args.steps, args.dtype == ComputeArg::Bf16)?
        }
    };
    if let Some(rows) = report["profile"].as_array() {
        print_profile(rows);
    }
    output::data(&format!("{report}\n"));
    Ok(())
}

/// The profile as a table.
fn print_profile(rows: &[serde_json::Value]) {
    output::note(&format!("{:36} {:>8} {:>9} {:>6} {:>10}", "of a step", "calls", "ms", "%", "% of peak"));
    for row in rows {
        let number = |key: &str| row[key].as_f64().unwrap_or(0.0);
        let share = match number("percent_of_peak") {
            0.0 => String::new(),
            share => format!("{share:.1}"),
        };
        let (calls, time, percent) = (number("calls"), number("ms"), number("percent"));
        let what = row["what"].as_str().unwrap_or("");
        output::note(&format!("{what:36} {calls:8.0} {time:9.2} {percent:6.1} {share:>10}"));
    }
}

fn positive(values: &[(&str, usize)]) -> Result<()> {
    match values.iter().find(|(_, value)| *value == 0) {
        Some((name, _)) => Err(Error::usage(format!("{name}: too small"))),
        None => Ok(()),
    }
}
