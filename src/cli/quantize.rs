//! `llamantino quantize`: a model folder in NF4, in the layout of bitsandbytes.

use super::{hub, output, progress, shell};
use crate::device;
use crate::error::Result;
use crate::export::quantize::quantize_folder;
use crate::quant::QuantConfig;
use clap::Args;
use std::path::PathBuf;

/// Arguments of `quantize`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  llamantino quantize --model MODEL --out MODEL-nf4\n  \
    llamantino quantize --model model.gguf --out MODEL-nf4 --block 128")]
pub struct QuantizeArgs {
    /// Model: a folder (safetensors), a GGUF file, or org/name[@revision] of the hub.
    #[arg(long, value_name = "MODEL")]
    pub model: String,
    /// Folder to write; must not exist.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Values that share a scale: a power of two from 32 to 4096.
    #[arg(long, default_value_t = 64)]
    pub block: usize,
    /// Keep the scales in f32 instead of quantising them too.
    #[arg(long)]
    pub single: bool,
    /// Threads; default: one for each core.
    #[arg(long)]
    pub threads: Option<usize>,
}

/// Runs `quantize`.
pub fn run(args: QuantizeArgs) -> Result<()> {
    device::set_threads(args.threads)?;
    let config = QuantConfig { block: args.block, double: !args.single };
    let model = hub::resolve(&args.model)?;
    let bar = progress::counted(0, "quantising");
    let summary = quantize_folder(&model, &args.out, config, &mut |done, total, name| {
        bar.set_length(total);
        bar.set_position(done);
        bar.set_message(name.to_string());
    });
    bar.finish_and_clear();
    let summary = summary?;
    let out = args.out.display();
    output::note(&format!(
        "{} linears in NF4, {:.1} MiB in {out}\nnext: llamantino generate --model {} --prompt \"...\"",
        summary.quantized,
        summary.written.tensor_bytes as f64 / f64::from(1 << 20),
        shell::path(&args.out),
    ));
    Ok(())
}
