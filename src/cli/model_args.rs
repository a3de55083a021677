//! Arguments that every command with a running model shares: which model, and how it chooses tokens.

use super::{hub, output, progress};
use crate::adapter::peft;
use crate::data::tokenize::Tokenizer;
use crate::device::{self, Compute, DeviceChoice};
use crate::error::{Error, Result};
use crate::generate::{self, Generator, SamplingOptions};
use crate::model::{self, Llama, LoadOptions, OpenModel};
use crate::ops::gpu::Gpu;
use crate::ops::ParamStore;
use clap::Args;
use std::path::PathBuf;

/// Which model, and how it is computed.
#[derive(Debug, Clone, Args)]
pub struct ModelArgs {
    /// Model: a folder (safetensors; plain, merged or NF4), a GGUF file, or org/name[@revision] of the hub.
    #[arg(long, value_name = "MODEL")]
    pub model: String,
    /// Adapter folder (PEFT files) to put on the model.
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// Tokens that the context holds (prompt and answer); default: what the model was made for, at most 4096.
    #[arg(long)]
    pub context: Option<usize>,
    /// Operand format of the matrix products on a CPU; on a GPU it is always bf16.
    #[arg(long, value_enum, default_value = "f32")]
    pub compute: ComputeArg,
    /// Threads; default: one for each core.
    #[arg(long)]
    pub threads: Option<usize>,
    /// Quantise the model to NF4 on load.
    #[arg(long)]
    pub nf4: bool,
}

/// Where to compute.
#[derive(Debug, Clone, Copy, Args)]
pub struct DeviceArgs {
    /// cpu, cuda (the first GPU) or cuda:N; auto: a GPU if this build can use one and it answers, otherwise the CPU.
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: DeviceChoice,
}

/// [`Compute`] on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum ComputeArg {
    /// f32 operands. Logits of tokens less likely than the likeliest by a factor of 400 come from 8 bits.
    F32,
    /// bf16 operands, f32 accumulation, the same logits from 8 bits. Faster: a processor with AVX2 alone multiplies 16-bit
    /// integers, which are nearer to f32.
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

impl ModelArgs {
    /// A model with everything else as it is by default.
    pub fn of(model: &str) -> ModelArgs {
        let compute = ComputeArg::F32;
        ModelArgs { model: model.into(), adapter: None, context: None, compute, threads: None, nf4: false }
    }

    /// Sets the threads and opens the model, fetching it from the hub if need be.
    ///
    /// # Errors
    /// Files that are missing or damaged.
    pub fn open(&self) -> Result<OpenModel> {
        device::set_threads(self.threads)?;
        OpenModel::open(&hub::resolve(&self.model)?)
    }

    /// Loads model, adapter and tokenizer, ready to generate.
    ///
    /// # Errors
    /// Files that are missing or do not fit together; a device that is not there or cannot run this model.
    pub fn load(&self, opened: &OpenModel, device: DeviceChoice) -> Result<(Generator, Tokenizer)> {
        let device = device.open()?;
        device.note.iter().for_each(|note| output::note(note));
        let gpu = device.gpu.map(Gpu::new);
        let Loaded { model, params, tokenizer, context } = self.load_parts(opened, gpu.as_ref())?;
        let generator = match gpu {
            None => Generator::new(model, params, self.compute.into(), context),
            Some(gpu) => Generator::on_gpu(&gpu, model, &params, context)?,
        };
        Ok((generator, tokenizer))
    }

    /// Loads model, adapter and tokenizer; with a GPU the model's linears are loaded to it.
    ///
    /// # Errors
    /// Files that are missing or do not fit together; a GPU without memory for the model.
    pub fn load_parts(&self, opened: &OpenModel, gpu: Option<&Gpu>) -> Result<Loaded> {
        let config = &opened.config;
        let context = self.context.unwrap_or(config.max_position_embeddings.min(4096));
        if context < 2 {
            return Err(Error::usage(format!("--context {context}: expected at least 2")));
        }
        let adapter = self.adapter.as_deref().map(peft::read).transpose()?;
        let mut options = LoadOptions::frozen(context);
        options.quantize = self.nf4.then(Default::default);
        options.gpu = gpu.cloned();
        options.lora = adapter.as_ref().map(|adapter| adapter.config.clone());
        let bar = progress::counted(0, "loading");
        let load = || {
            model::load(config, opened.source(), &options, &mut |done, total| {
                bar.set_length(total as u64);
                bar.set_position(done as u64);
            })
        };
        let loaded = match gpu {
            Some(gpu) => generate::with_room(gpu, config, (options.quantize, context), load),
            None => load(),
        };
        bar.finish_and_clear();
        let (mut model, mut params) = loaded?;
        if let Some(adapter) = adapter {
            adapter.apply(&mut model, &mut params)?;
        }
        Ok(Loaded { model, params, tokenizer: opened.tokenizer()?, context })
    }
}

/// A model in memory.
pub struct Loaded {
    /// The model.
    pub model: Llama,
    /// Its adapter's values.
    pub params: ParamStore,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Tokens that it is to hold.
    pub context: usize,
}

/// How tokens are chosen. The defaults of some are the command's.
#[derive(Debug, Clone, Args)]
pub struct SamplingArgs {
    /// Most tokens to generate [default: 256; in a chat 512]
    #[arg(long)]
    pub max_tokens: Option<usize>,
    /// 0 is greedy; higher is more varied [default: 0; in a chat 0.7]
    #[arg(long)]
    pub temperature: Option<f64>,
    /// Choose among the smallest set of tokens with this probability [default: 1; in a chat 0.9]
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
}

impl SamplingArgs {
    /// The options; `default` fills in what was not given.
    ///
    /// # Errors
    /// Values that make no sense (usage).
    pub fn options(&self, default: &SamplingOptions) -> Result<SamplingOptions> {
        let options = SamplingOptions {
            temperature: self.temperature.unwrap_or(default.temperature),
            top_p: self.top_p.or(default.top_p),
            top_k: self.top_k.or(default.top_k),
            seed: self.seed,
            repeat_penalty: self.repeat_penalty,
            max_tokens: self.max_tokens.unwrap_or(default.max_tokens),
        };
        options.validate()?;
        Ok(options)
    }
}
