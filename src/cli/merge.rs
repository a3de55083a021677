//! `llamantino merge`: folds an adapter into its base, streamed, in f32, rounded once.

use super::{hub, output, progress, shell};
use crate::device;
use crate::error::Result;
use crate::export::merge::{merge_folder, MergeDtype, MergeJob};
use clap::{Args, ValueEnum};
use std::path::PathBuf;

/// Arguments of `merge`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  llamantino merge --base MODEL --adapter runs/NAME/adapter --out MERGED\n  \
    llamantino merge --base MODEL --adapter ADAPTER --out MERGED --dtype bf16 --shard-gib 5")]
pub struct MergeArgs {
    /// The model that the adapter was trained on: a folder, a GGUF file, or org/name[@revision] of the hub.
    #[arg(long, value_name = "MODEL")]
    pub base: String,
    /// Folder of the adapter (PEFT files).
    #[arg(long, value_name = "DIR")]
    pub adapter: PathBuf,
    /// Folder to write; must not exist.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// dtype of the merged weights; default: that of the base.
    #[arg(long, value_enum)]
    pub dtype: Option<DtypeArg>,
    /// Largest shard in GiB.
    #[arg(long, default_value_t = 5.0)]
    pub shard_gib: f64,
    /// Merge even if the adapter was trained on another base.
    #[arg(long)]
    pub any_base: bool,
    /// Allow an NF4 base: its rounded weights become the model's.
    #[arg(long)]
    pub dequantize_base: bool,
    /// Threads; default: one for each core.
    #[arg(long)]
    pub threads: Option<usize>,
}

/// dtype on the command line.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum DtypeArg {
    /// 4 bytes a value.
    F32,
    /// 2 bytes a value.
    F16,
    /// 2 bytes a value.
    Bf16,
}

impl From<DtypeArg> for MergeDtype {
    fn from(dtype: DtypeArg) -> MergeDtype {
        match dtype {
            DtypeArg::F32 => MergeDtype::F32,
            DtypeArg::F16 => MergeDtype::F16,
            DtypeArg::Bf16 => MergeDtype::Bf16,
        }
    }
}

/// Runs `merge`.
pub fn run(args: MergeArgs) -> Result<()> {
    device::set_threads(args.threads)?;
    let job = MergeJob {
        base: hub::resolve(&args.base)?,
        adapter: args.adapter,
        out: args.out,
        dtype: args.dtype.map(Into::into),
        shard_bytes: (args.shard_gib * f64::from(1 << 30)) as u64,
        any_base: args.any_base,
        dequantize_base: args.dequantize_base,
    };
    let summary = progress::counting("merging", |progress| merge_folder(&job, progress));
    let summary = summary?;
    for warning in &summary.warnings {
        output::warning(warning);
    }
    let out = job.out.display();
    output::note(&format!(
        "{} tensors, {} of them merged, {:.1} MiB in {out}\nnext: llamantino generate --model {} --prompt \"...\"",
        summary.tensors,
        summary.merged,
        summary.bytes as f64 / f64::from(1 << 20),
        shell::path(&job.out),
    ));
    Ok(())
}
