//! `llamantino eval`: what a model knows, measured. stdout carries the numbers.

mod forms;
mod session;
mod table;

use super::model_args::ModelArgs;
use super::output;
use crate::adapter::peft;
use crate::device::DeviceChoice;
use crate::error::{Error, Result};
use crate::eval::compare;
use crate::eval::results::{Results, RESULTS};
use clap::Args;
use forms::FormArg;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Arguments of `eval`.
#[derive(Debug, Args)]
#[command(mut_arg("model", |arg| arg.required(false).required_unless_present_any(["list", "compare"])))]
#[command(after_help = "Examples:\n  llamantino eval --model MODEL --text wiki_it/ --text english=english.jsonl\n  \
    llamantino eval --model MODEL --adapter runs/NAME/adapter --task xcopa_it=test.it.jsonl --out results/adapted\n  \
    llamantino eval --model MODEL --task m_mmlu_it=test.jsonl --shots 5 --shots-from train.jsonl --limit 500\n  \
    llamantino eval --model MODEL --adapter runs/NAME/adapter --text wiki_it/ --device cuda\n  \
    llamantino eval --compare results/base results/adapted\n  \
    llamantino eval --model MODEL --text it=wiki_it/ --compare MODEL runs/NAME/adapter\n  \
    llamantino eval --model MODEL --adapter runs/NAME/adapter --text wiki_it/ --as nf4,merged,nf4-again,gguf\n\n\
    A stopped evaluation with --out goes on where it was when the same command is given again.")]
pub struct EvalArgs {
    /// Which model.
    #[command(flatten)]
    pub model: Option<ModelArgs>,
    /// Where to compute: cpu, cuda (the first GPU) or cuda:N, or auto. A GPU scores texts and choices; tasks whose answers are
    /// written, or compared with the likeliest tokens, are the CPU's.
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    pub device: DeviceChoice,
    /// Text to measure bits per byte and perplexity on: a file, folder or glob, with a name before it if there are
    /// several. May be repeated.
    #[arg(long, value_name = "[NAME=]PATH")]
    pub text: Vec<String>,
    /// Task and its file. May be repeated.
    #[arg(long, value_name = "NAME=FILE")]
    pub task: Vec<String>,
    /// Solved examples before each question.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub shots: usize,
    /// File to take them from, its first ones; for one task only with its name before. Default: the task's own file, without
    /// the question at hand. May be repeated.
    #[arg(long, value_name = "[NAME=]FILE")]
    pub shots_from: Vec<String>,
    /// How open questions are written: `model` for the model's own template, a built-in name, a .toml or .jinja file, or
    /// `none` for plain text. Default: the one that the adapter was trained with, else the model's own, else extremita.
    #[arg(long, value_name = "NAME")]
    pub template: Option<String>,
    /// Ask only the first N questions of each task, read only the first N documents of each text.
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    /// Tokens of text read at once [default: the context]
    #[arg(long)]
    pub window: Option<usize>,
    /// Tokens of text between the beginnings of two windows: what a window overlaps is context only [default: half the
    /// window; with the window's own length: as training does]
    #[arg(long)]
    pub stride: Option<usize>,
    /// Lines of text files that may be unusable.
    #[arg(long, default_value_t = 0)]
    pub max_bad_lines: u64,
    /// Put no beginning-of-text token in front, as lm-evaluation-harness does by default.
    #[arg(long)]
    pub no_bos: bool,
    /// Folder for results and answers; a rerun goes on in it.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Print all results as JSON.
    #[arg(long)]
    pub json: bool,
    /// Set two results side by side, with paired tests. Each is a folder that --out wrote, or what is to be measured now: a
    /// model, or an adapter of --model.
    #[arg(long, num_args = 2, value_names = ["A", "B"])]
    pub compare: Vec<String>,
    /// Measure text with the model in each of these forms, against the form that it was trained in.
    #[arg(long = "as", value_name = "FORMS", value_delimiter = ',', value_enum)]
    pub forms: Vec<FormArg>,
    /// List all tasks, with the source of each prompt and metric.
    #[arg(long)]
    pub list: bool,
}

/// Runs `eval`.
pub fn run(args: EvalArgs) -> Result<()> {
    if args.list {
        output::data(&table::tasks(args.json));
        return Ok(());
    }
    if args.limit == Some(0) {
        return Err(Error::usage("--limit 0: expected at least 1"));
    }
    if !args.compare.is_empty() {
        return compare(&args);
    }
    let model = args.model.as_ref().ok_or_else(|| Error::usage("--model is missing"))?;
    if args.text.is_empty() && args.task.is_empty() {
        return Err(Error::usage("nothing to evaluate").hint("give --text PATH or --task NAME=FILE"));
    }
    if !args.forms.is_empty() {
        if args.device != DeviceChoice::Cpu {
            return Err(Error::usage("--as compares forms on the CPU").hint("leave --device out"));
        }
        return forms::run(&args, model);
    }
    let results = session::evaluate(&args, model, args.out.clone())?;
    print(&args, &results.to_json(), &table::results(&results));
    if let Some(folder) = results.folder() {
        output::note(&format!("results in {}", folder.display()));
    }
    Ok(())
}

fn print(args: &EvalArgs, json: &Value, table: &str) {
    output::data(&if args.json { format!("{json:#}\n") } else { table.to_string() });
}

/// Compares two results, measuring what is not measured yet.
fn compare(args: &EvalArgs) -> Result<()> {
    let [first, second] = &args.compare[..] else { return Err(Error::usage("--compare takes two results")) };
    let measures = !args.text.is_empty() || !args.task.is_empty();
    if measures && args.compare.iter().all(|name| Path::new(name).join(RESULTS).exists()) {
        return Err(Error::usage(format!("{first} and {second} are results already: nothing is left to measure"))
            .hint("leave --text and --task out, or name a model"));
    }
    if !args.forms.is_empty() {
        return Err(Error::usage("--compare and --as exclude each other"));
    }
    let sides = [side(args, first, "first")?, side(args, second, "second")?];
    let comparison = compare::compare(&sides[0], &sides[1])?;
    comparison.notes.iter().for_each(|note| output::note(note));
    print(args, &comparison.to_json(), &table::comparison(&comparison));
    Ok(())
}

/// Results as the user named them.
fn side(args: &EvalArgs, name: &str, folder: &str) -> Result<Results> {
    let path = Path::new(name);
    if path.join(RESULTS).exists() {
        return Results::read(path);
    }
    if args.text.is_empty() && args.task.is_empty() {
        return Err(Error::usage(format!("{name}: no results of an evaluation there"))
            .hint("name a folder that --out wrote, or add --text or --task to measure it now"));
    }
    let model = match (path.join(peft::CONFIG_FILE).exists(), &args.model) {
        (true, Some(model)) => ModelArgs { adapter: Some(path.into()), ..model.clone() },
        (true, None) => return Err(Error::usage(format!("{name} is an adapter: name its model with --model"))),
        (false, Some(model)) => ModelArgs { model: name.into(), adapter: None, ..model.clone() },
        (false, None) => ModelArgs::of(name),
    };
    session::evaluate(args, &model, args.out.as_ref().map(|out| out.join(folder)))
}
