//! `llamantino import`: a GGUF model as a Hugging Face folder.

use super::merge::DtypeArg;
use super::{output, progress, shell};
use crate::error::Result;
use crate::export::import_gguf;
use crate::quant::SourceDtype;
use clap::Args;
use std::path::PathBuf;

/// Arguments of `import`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  llamantino import SmolLM2-135M-Instruct.Q4_1.gguf --out models/SmolLM2-135M\n  \
    llamantino import model.gguf --out MODEL --dtype bf16")]
pub struct ImportArgs {
    /// GGUF file.
    #[arg(value_name = "FILE")]
    pub gguf: PathBuf,
    /// Folder to write; must not exist.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// dtype of the weights; default: as stored, f32 for what was quantised.
    #[arg(long, value_enum)]
    pub dtype: Option<DtypeArg>,
}

/// Runs `import`.
pub fn run(args: ImportArgs) -> Result<()> {
    let dtype = args.dtype.map(|dtype| match dtype {
        DtypeArg::F32 => SourceDtype::F32,
        DtypeArg::F16 => SourceDtype::F16,
        DtypeArg::Bf16 => SourceDtype::Bf16,
    });
    let bar = progress::counted(0, "importing");
    let summary = import_gguf(&args.gguf, &args.out, dtype, &mut |done, total, name| {
        bar.set_length(total);
        bar.set_position(done);
        bar.set_message(name.to_string());
    });
    bar.finish_and_clear();
    let summary = summary?;
    summary.notes.iter().for_each(|note| output::warning(note));
    let types: Vec<String> = summary.stored_types.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    let out = args.out.display();
    output::note(&format!(
        "{} tensors ({}) in {out}, {:.1} MiB\nnext: llamantino generate --model {} --prompt \"...\"",
        summary.tensors,
        types.join(", "),
        summary.written.tensor_bytes as f64 / f64::from(1 << 20),
        shell::path(&args.out),
    ));
    Ok(())
}
