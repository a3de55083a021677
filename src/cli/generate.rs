//! `llamantino generate`: one completion for scripts, streamed to stdout.

use super::{hub, output};
use crate::adapter::peft;
use crate::device::{self, Compute};
use crate::error::{Error, Result};
use crate::generate::{generate_text, Generator, SamplingOptions, Stop};
use crate::model::{self, LoadOptions, OpenModel};
use clap::Args;
use std::path::PathBuf;

/// Arguments of `generate`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  llamantino generate --model models/stories260K --prompt \"Once upon a time\"\n  \
    llamantino generate --model MODEL --adapter runs/NAME/adapter --prompt \"Ciao\" --temperature 0.8 --top-p 0.9")]
pub struct GenerateArgs {
    /// Model: a folder (safetensors; plain, merged or NF4), a GGUF file, or org/name[@revision] of the hub.
    #[arg(long, value_name = "MODEL")]
    pub model: String,
    /// Adapter folder (PEFT files) to put on the model.
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// Text to continue; empty: from the beginning-of-text token.
    #[arg(long, default_value = "")]
    pub prompt: String,
    /// Most tokens to generate.
    #[arg(long, default_value_t = 256)]
    pub max_tokens: usize,
    /// 0 is greedy; higher is more varied.
    #[arg(long, default_value_t = 0.0)]
    pub temperature: f64,
    /// Choose among the smallest set of tokens with this probability.
    #[arg(long)]
    pub top_p: Option<f64>,
    /// Choose among the k most probable tokens.
    #[arg(long)]
    pub top_k: Option<usize>,
    /// Above 1: tokens that occurred already become less probable.
    #[arg(long, default_value_t = 1.0)]
    pub repeat_penalty: f32,
    /// Names the random draws: the same seed gives the same text.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Tokens that the context holds (prompt and answer); default: what the model was made for, at most 4096.
    #[arg(long)]
    pub context: Option<usize>,
    /// Operand format of the matrix products.
    #[arg(long, value_enum, default_value = "f32")]
    pub compute: ComputeArg,
    /// Threads; default: one for each core.
    #[arg(long)]
    pub threads: Option<usize>,
    /// Quantise the model to NF4 on load.
    #[arg(long)]
    pub nf4: bool,
    /// Print the prompt before its completion.
    #[arg(long)]
    pub echo: bool,
}

/// [`Compute`] on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum ComputeArg {
    /// f32 operands.
    F32,
    /// bf16 operands, f32 accumulation.
    Bf16,
}

impl From<ComputeArg> for Compute {
    fn from(arg: ComputeArg) -> Compute {
        match arg {
            ComputeArg::F32 => Compute::F32,
            ComputeArg::Bf16 => Compute::Bf16,
        }
    }
}

/// Runs `generate`.
pub fn run(args: GenerateArgs) -> Result<()> {
    device::set_threads(args.threads)?;
    let model = OpenModel::open(&hub::resolve(&args.model)?)?;
    let tokenizer = model.tokenizer()?;
    let mut generator = load_generator(&model, &args)?;
    let mut prompt: Vec<u32> = tokenizer.special().bos.iter().map(|token| token.id).collect();
    prompt.extend(tokenizer.encode_plain(&args.prompt)?);
    let options = SamplingOptions {
        temperature: args.temperature,
        top_p: args.top_p,
        top_k: args.top_k,
        seed: args.seed,
        repeat_penalty: args.repeat_penalty,
        max_tokens: args.max_tokens,
    };
    if args.echo {
        output::data(&args.prompt);
    }
    let generated = generate_text(&mut generator, &tokenizer, &prompt, &options, &mut |piece| {
        output::data(piece);
        Ok(true)
    })?;
    output::data("\n");
    if generated.stop == Stop::ContextFull {
        output::warning("stopped: the context is full");
    }
    let seconds = generated.decode_time.as_secs_f64();
    output::note(&format!(
        "{} prompt tokens in {:.2} s, {} new tokens in {:.2} s ({:.0} tok/s)",
        prompt.len(),
        generated.prompt_time.as_secs_f64(),
        generated.ids.len(),
        seconds,
        generated.ids.len() as f64 / seconds.max(1e-9),
    ));
    Ok(())
}

fn load_generator(opened: &OpenModel, args: &GenerateArgs) -> Result<Generator> {
    let config = &opened.config;
    let context = args.context.unwrap_or(config.max_position_embeddings.min(4096));
    if context < 2 {
        return Err(Error::usage(format!("--context {context}: expected at least 2")));
    }
    let adapter = args.adapter.as_deref().map(peft::read).transpose()?;
    let mut options = LoadOptions::frozen(context);
    options.quantize = args.nf4.then(Default::default);
    options.lora = adapter.as_ref().map(|adapter| adapter.config.clone());
    let (mut model, mut params) = model::load(config, opened.source(), &options, &mut |_, _| {})?;
    if let Some(adapter) = adapter {
        adapter.apply(&mut model, &mut params)?;
    }
    Ok(Generator::new(model, params, args.compute.into(), context))
}
