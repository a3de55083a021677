//! `llamantino export`: models and adapters in the formats of other programs.

use super::{hub, output, progress};
use crate::device;
use crate::error::Result;
use crate::export::gguf::adapter::{export_adapter, AdapterJob};
use crate::export::gguf::scheme::FileType;
use crate::export::gguf::{export_gguf, GgufJob, Summary};
use clap::{Args, Subcommand, ValueEnum};
use std::path::PathBuf;

/// Arguments of `export`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  llamantino export gguf --model MERGED --out model.gguf\n  \
    llamantino export adapter-gguf --model MODEL --adapter runs/NAME/adapter --out adapter.gguf")]
pub struct ExportArgs {
    /// Which format.
    #[command(subcommand)]
    pub command: ExportCommand,
    /// Threads; default: one for each core.
    #[arg(long, global = true)]
    pub threads: Option<usize>,
}

/// The formats.
#[derive(Debug, Subcommand)]
pub enum ExportCommand {
    /// Write a model as one GGUF file for llama.cpp and Ollama, with a Modelfile beside it.
    Gguf(GgufArgs),
    /// Write a LoRA adapter as a GGUF file that llama.cpp puts on its base (`--lora`).
    AdapterGguf(AdapterGgufArgs),
}

/// Arguments of `export gguf`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  llamantino export gguf --model MERGED --out model.gguf --type q8_0\n  \
    llamantino export gguf --model MODEL --adapter runs/NAME/adapter --template llamantino-chat --out model.gguf\n  \
    ollama create NAME -f model.Modelfile")]
pub struct GgufArgs {
    /// Model: a folder (safetensors; plain, merged or NF4), a GGUF file, or org/name[@revision] of the hub.
    #[arg(long, value_name = "MODEL")]
    pub model: String,
    /// Adapter folder (PEFT files) to fold in.
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// File to write, ending in .gguf; must not exist. The Modelfile gets the same name.
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// What the matrices are stored in; vectors are always f32.
    #[arg(long = "type", value_enum, default_value = "f16")]
    pub file_type: TypeArg,
    /// Chat template to write: `model` for the model's own, a built-in name (llamantino-chat, ...), or a .toml or .jinja
    /// file. Default: the model's own if it has one.
    #[arg(long, value_name = "NAME")]
    pub template: Option<String>,
    /// Fold in even if the adapter was trained on another base.
    #[arg(long)]
    pub any_base: bool,
    /// Allow an NF4 model: its rounded weights become the file's.
    #[arg(long)]
    pub dequantize_base: bool,
}

/// Arguments of `export adapter-gguf`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  \
    llamantino export adapter-gguf --model MODEL --adapter runs/NAME/adapter --out adapter.gguf\n  \
    llama-cli -m model.gguf --lora adapter.gguf")]
pub struct AdapterGgufArgs {
    /// The model that the adapter was trained on: a folder, a GGUF file, or org/name[@revision] of the hub.
    #[arg(long, value_name = "MODEL")]
    pub model: String,
    /// Folder of the adapter (PEFT files).
    #[arg(long, value_name = "DIR")]
    pub adapter: PathBuf,
    /// File to write, ending in .gguf; must not exist.
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Export even if the adapter was trained on another base.
    #[arg(long)]
    pub any_base: bool,
}

/// [`FileType`] on the command line.
#[derive(Debug, Clone, Copy, ValueEnum)]
#[value(rename_all = "lower")]
pub enum TypeArg {
    /// 32 bits a value: exact.
    F32,
    /// 16 bits a value.
    F16,
    /// 16 bits a value, bfloat16.
    Bf16,
    /// 8.5 bits a value: hardly to be told from f16.
    #[value(name = "q8_0")]
    Q8_0,
    /// 4.5 bits a value, simple.
    #[value(name = "q4_0")]
    Q4_0,
    /// About 4.8 bits a value, the usual choice for small files.
    #[value(name = "q4_k_m")]
    Q4KM,
}

impl From<TypeArg> for FileType {
    fn from(arg: TypeArg) -> FileType {
        match arg {
            TypeArg::F32 => FileType::F32,
            TypeArg::F16 => FileType::F16,
            TypeArg::Bf16 => FileType::Bf16,
            TypeArg::Q8_0 => FileType::Q8_0,
            TypeArg::Q4_0 => FileType::Q4_0,
            TypeArg::Q4KM => FileType::Q4KM,
        }
    }
}

/// Runs `export`.
pub fn run(args: ExportArgs) -> Result<()> {
    device::set_threads(args.threads)?;
    match args.command {
        ExportCommand::Gguf(args) => gguf(args),
        ExportCommand::AdapterGguf(args) => adapter_gguf(args),
    }
}

fn adapter_gguf(args: AdapterGgufArgs) -> Result<()> {
    let model = hub::resolve(&args.model)?;
    let job = AdapterJob { model, adapter: args.adapter, out: args.out, any_base: args.any_base };
    let summary = export_adapter(&job)?;
    summary.warnings.iter().for_each(|warning| output::warning(warning));
    let (out, mebibytes) = (job.out.display(), summary.bytes as f64 / f64::from(1 << 20));
    output::note(&format!(
        "{} linears, {mebibytes:.1} MiB in {out}\nnext: llama-cli -m BASE.gguf --lora {out}",
        summary.linears
    ));
    Ok(())
}

fn gguf(args: GgufArgs) -> Result<()> {
    let job = GgufJob {
        model: hub::resolve(&args.model)?,
        adapter: args.adapter,
        out: args.out,
        file_type: args.file_type.into(),
        template: args.template,
        any_base: args.any_base,
        dequantize_base: args.dequantize_base,
    };
    let summary = progress::counting("exporting", |progress| export_gguf(&job, progress));
    report(&job, &summary?);
    Ok(())
}

fn report(job: &GgufJob, summary: &Summary) {
    summary.warnings.iter().for_each(|warning| output::warning(warning));
    if !summary.fallbacks.is_empty() {
        output::note("rows that are no whole number of blocks are stored in another type:");
        for (fallback, count) in &summary.fallbacks {
            let (name, row) = (&fallback.name, fallback.row);
            output::note(&format!("  {count} x {name}, rows of {row}: {} → {}", fallback.wanted, fallback.found));
        }
    }
    let types: Vec<String> = summary.types.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    let merged = match summary.merged {
        0 => String::new(),
        merged => format!(", {merged} of them merged"),
    };
    let (out, modelfile) = (job.out.display(), summary.modelfile.display());
    output::note(&format!(
        "{} tensors{merged}; matrices: {}; {:.1} MiB in {out}\nnext: llamantino generate --model {out} --prompt \"...\"\n\
         or:   ollama create NAME -f {modelfile}",
        summary.tensors,
        types.join(", "),
        summary.bytes as f64 / f64::from(1 << 20)
    ));
}
