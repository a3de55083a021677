//! `llamantino generate`: one completion for scripts, streamed to stdout.

use super::model_args::{DeviceArgs, ModelArgs, SamplingArgs};
use super::output;
use crate::error::Result;
use crate::generate::{generate_text, SamplingOptions, Stop};
use clap::Args;

/// Arguments of `generate`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  llamantino generate --model models/stories260K --prompt \"Once upon a time\"\n  \
    llamantino generate --model MODEL --adapter runs/NAME/adapter --prompt \"Ciao\" --temperature 0.8 --top-p 0.9")]
pub struct GenerateArgs {
    /// Which model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Where to compute.
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Text to continue; empty: from the beginning-of-text token.
    #[arg(long, default_value = "")]
    pub prompt: String,
    /// How tokens are chosen.
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// Print the prompt before its completion.
    #[arg(long)]
    pub echo: bool,
}

/// Runs `generate`.
pub fn run(args: GenerateArgs) -> Result<()> {
    let options = args.sampling.options(&SamplingOptions::default())?;
    let (mut generator, tokenizer) = args.model.load(&args.model.open()?, args.device.device)?;
    let mut prompt: Vec<u32> = tokenizer.special().bos.iter().map(|token| token.id).collect();
    prompt.extend(tokenizer.encode_plain(&args.prompt)?);
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
