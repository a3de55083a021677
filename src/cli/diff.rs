//! `llamantino diff`: a tuned model as what it changes in its base, and back.

use super::merge::DtypeArg;
use super::{output, progress};
use crate::device;
use crate::error::{Error, Result};
use crate::export::diff::{self, float};
use crate::export::SHARD_BYTES;
use clap::{Args, Subcommand};
use std::path::PathBuf;

/// Arguments of `diff`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  llamantino diff make MODEL MERGED --out merged.diff.safetensors\n  \
    llamantino diff apply MODEL merged.diff.safetensors --out MERGED")]
pub struct DiffArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: DiffCommand,
    /// Threads; default: one for each core.
    #[arg(long, global = true)]
    pub threads: Option<usize>,
}

/// The two directions.
#[derive(Debug, Subcommand)]
pub enum DiffCommand {
    /// Write what TUNED changes in BASE to one file.
    Make(MakeArgs),
    /// Recover the tuned model, byte for byte, from BASE and a diff.
    Apply(ApplyArgs),
}

/// Arguments of `diff make`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  llamantino diff make MODEL MERGED --out merged.diff.safetensors")]
pub struct MakeArgs {
    /// Model folder (or safetensors file) that others have.
    pub base: PathBuf,
    /// Model folder (or safetensors file) that they are to get.
    pub tuned: PathBuf,
    /// File to write; must not exist.
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
}

/// Arguments of `diff apply`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  llamantino diff apply MODEL merged.diff.safetensors --out MERGED\n  \
    llamantino diff apply models/llama-7b alpaca-diff/ --out alpaca-7b --check-sum 50637.1836")]
pub struct ApplyArgs {
    /// The very model that the diff was made from.
    pub base: PathBuf,
    /// A file of `diff make`, or a folder of float differences (tuned - base) as Alpaca published them.
    pub diff: PathBuf,
    /// Folder to write; must not exist.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Float differences: dtype of the recovered weights; default: that of the differences.
    #[arg(long, value_enum)]
    pub dtype: Option<DtypeArg>,
    /// Float differences: what all values must add up to (Alpaca 7B: 50637.1836). A weak check.
    #[arg(long, value_name = "SUM", allow_negative_numbers = true)]
    pub check_sum: Option<f64>,
    /// Float differences: how far the sum may be off.
    #[arg(long, value_name = "DIFFERENCE", default_value_t = float::SUM_TOLERANCE, requires = "check_sum")]
    pub sum_tolerance: f64,
}

/// Runs `diff`.
pub fn run(args: DiffArgs) -> Result<()> {
    device::set_threads(args.threads)?;
    match args.command {
        DiffCommand::Make(args) => make(&args),
        DiffCommand::Apply(args) if args.diff.is_dir() => apply_float(args),
        DiffCommand::Apply(args) => apply(&args),
    }
}

fn make(args: &MakeArgs) -> Result<()> {
    let made = progress::counting("packing", |progress| diff::make(&args.base, &args.tuned, &args.out, progress))?;
    if made.whole == made.tensors {
        output::warning("no tensor has a counterpart in the base: the diff holds the whole model");
    }
    output::note(&format!(
        "{} tensors: {} changed, {} as in the base, {} new\n{}: {:.1} MiB for a model of {:.1} MiB ({:.3} of it)\n\
         next: llamantino diff apply {} {} --out TUNED",
        made.tensors,
        made.tensors - made.same - made.whole,
        made.same,
        made.whole,
        args.out.display(),
        mebibytes(made.diff_bytes),
        mebibytes(made.tuned_bytes),
        made.diff_bytes as f64 / made.tuned_bytes.max(1) as f64,
        args.base.display(),
        args.out.display(),
    ));
    Ok(())
}

fn apply(args: &ApplyArgs) -> Result<()> {
    if args.dtype.is_some() || args.check_sum.is_some() {
        return Err(Error::usage("--dtype and --check-sum are for float differences; this diff proves its result"));
    }
    let applied =
        progress::counting("recovering", |progress| diff::apply(&args.base, &args.diff, &args.out, progress))?;
    output::note(&format!(
        "{} tensors, {:.1} MiB in {}: every file is the tuned model's, byte for byte",
        applied.tensors,
        mebibytes(applied.bytes),
        args.out.display()
    ));
    Ok(())
}

fn apply_float(args: ApplyArgs) -> Result<()> {
    let job = float::FloatJob {
        base: args.base,
        diff: args.diff,
        out: args.out,
        dtype: args.dtype.map(Into::into),
        sum: args.check_sum.map(|sum| (sum, args.sum_tolerance)),
        shard_bytes: SHARD_BYTES,
    };
    let applied = progress::counting("adding", |progress| float::apply(&job, progress))?;
    if !applied.left_out.is_empty() {
        let (count, first) = (applied.left_out.len(), &applied.left_out[0]);
        output::warning(&format!("{count} tensor(s) of the base are not in the diff and were left out: {first}, ..."));
    }
    let proof = match job.sum {
        Some(_) => "as expected",
        None => "not checked; a float diff cannot prove its result",
    };
    output::note(&format!(
        "{} tensors, {:.1} MiB in {}; sum of all values {:.4} ({proof})",
        applied.tensors,
        mebibytes(applied.bytes),
        job.out.display(),
        applied.sum
    ));
    Ok(())
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
