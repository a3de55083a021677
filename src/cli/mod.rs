//! The command line: one file a subcommand with its arguments and its wiring; [`output`] alone prints.
//!
//! stdout carries data (generated text, JSON), stderr everything else. Reference for the arrangement: ripgrep, uv.

pub mod bench;
pub mod chain;
pub mod chat;
pub mod completions;
pub mod data;
pub mod diff;
pub mod doctor;
pub mod eval;
pub mod export;
pub mod generate;
pub mod hub;
pub mod import;
pub mod interrupt;
pub mod man;
pub mod merge;
pub mod model_args;
pub mod output;
pub mod plan;
pub mod progress;
pub mod quantize;
pub mod quickstart;
pub mod report;
pub mod shell;
pub mod train;
pub mod version;

use crate::device;
use crate::error::{Error, Result};
use clap::{Parser, Subcommand};
use std::ffi::OsString;

/// QLoRA fine-tuning of LLaMA-architecture models, made for good Italian models.
#[derive(Debug, Parser)]
#[command(name = "llamantino", version, long_version = version::long(), propagate_version = true, max_term_width = 100)]
#[command(after_help = "Examples:\n  llamantino train\n  llamantino train configs/stories260k-italian.toml\n  \
    llamantino merge --base MODEL --adapter runs/NAME/adapter --out MERGED\n  \
    llamantino generate --model MERGED --prompt \"C'era una volta\"")]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train an adapter (or a whole model) as a TOML file says.
    Train(train::TrainArgs),
    /// Show what the model will see of the data, or tokenise it ahead of time.
    Data(data::DataArgs),
    /// Say what a run will take in memory and time, before anything is loaded.
    Plan(plan::PlanArgs),
    /// Fold an adapter into its base: a model that transformers loads.
    Merge(merge::MergeArgs),
    /// Write what a tuned model changes in its base, or recover the model from that.
    Diff(diff::DiffArgs),
    /// Talk with a model.
    Chat(chat::ChatArgs),
    /// Complete a prompt.
    Generate(generate::GenerateArgs),
    /// Measure a model: bits per byte of text, multiple choice, tasks in Italian.
    Eval(eval::EvalArgs),
    /// Write a model in 4-bit NF4, once; later runs start from it at once.
    Quantize(quantize::QuantizeArgs),
    /// Write a model for other programs: a GGUF file for llama.cpp and Ollama.
    Export(export::ExportArgs),
    /// Turn a GGUF model into a Hugging Face folder.
    Import(import::ImportArgs),
    /// Write one HTML page about a run.
    Report(report::ReportArgs),
    /// Print completions for a shell.
    Completions(completions::CompletionsArgs),
    /// Print a manual page, or write those of all commands.
    Man(man::ManArgs),
    /// Time a training step, decoding or quantisation: one JSON line.
    Bench(bench::BenchArgs),
    /// Say what this machine offers, what is missing and how to get it; verify a model.
    Doctor(doctor::DoctorArgs),
}

/// Runs the command line `args` (the program's name first).
pub fn run(args: impl IntoIterator<Item = OsString>) -> Result<()> {
    device::memory::settle_allocator();
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) if error.kind() == clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            output::note(error.render().to_string().trim_end());
            return Err(Error::usage("a command is missing, or what it works on"));
        }
        Err(error) if error.use_stderr() => {
            return Err(usage_error(&error));
        }
        Err(help) => {
            // The version names the kernels in use, so a choice that this machine lacks is an error here too.
            if help.kind() == clap::error::ErrorKind::DisplayVersion {
                device::check()?;
            }
            output::help(&help.render());
            return Ok(());
        }
    };
    device::check()?;
    match cli.command {
        Command::Train(args) => train::run(args),
        Command::Data(args) => data::run(args),
        Command::Plan(args) => plan::run(args),
        Command::Doctor(args) => doctor::run(args),
        Command::Merge(args) => merge::run(args),
        Command::Diff(args) => diff::run(args),
        Command::Chat(args) => chat::run(args),
        Command::Generate(args) => generate::run(args),
        Command::Eval(args) => eval::run(args),
        Command::Quantize(args) => quantize::run(args),
        Command::Export(args) => export::run(args),
        Command::Import(args) => import::run(args),
        Command::Report(args) => report::run(args),
        Command::Completions(args) => completions::run(args),
        Command::Man(args) => man::run(args),
        Command::Bench(args) => bench::run(args),
    }
}

/// clap's message as ours: it already names the argument and the remedy.
fn usage_error(error: &clap::Error) -> Error {
    let text = error.render().to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text).trim_end();
    Error::usage(text)
}

#[cfg(test)]
#[path = "help_tests.rs"]
mod help_tests;
