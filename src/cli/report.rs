//! `llamantino report`: one self-contained HTML page about a run.

use super::model_args::{ComputeArg, ModelArgs};
use super::output;
use crate::checkpoint::{write_file, RealDisk};
use crate::device::DeviceChoice;
use crate::error::{Error, Result};
use crate::generate::{generate_text, SamplingOptions};
use crate::report::{self, RunData, Sample, BEGINNING, SAMPLES_FILE};
use clap::Args;
use std::path::{Path, PathBuf};

/// Arguments of `report`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  llamantino report runs/NAME\n  \
    llamantino report runs/NAME --prompt \"Il mare\" --prompt \"La capitale d'Italia\" --out page.html\n\n\
    The page shows what the run's folder holds: log.jsonl, config.toml, samples.jsonl, and every results.json that\n\
    `llamantino eval --out` wrote there or up to two folders deeper. It needs no network and runs no script.")]
pub struct ReportArgs {
    /// Folder of the run.
    #[arg(value_name = "RUN")]
    pub run: PathBuf,
    /// Page to write; default: report.html in the run's folder. An older page is replaced.
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Have the base, every checkpoint and the result go on with this text (greedily) and keep that in the run's
    /// samples.jsonl; may be given several times.
    #[arg(long, value_name = "TEXT")]
    pub prompt: Vec<String>,
    /// Tokens of each such sample.
    #[arg(long, value_name = "N", default_value_t = 60)]
    pub max_tokens: usize,
    /// Threads for samples; default: one for each core.
    #[arg(long)]
    pub threads: Option<usize>,
}

/// Runs `report`.
pub fn run(args: ReportArgs) -> Result<()> {
    let out = args.out.clone().unwrap_or_else(|| args.run.join("report.html"));
    // Both before any work: a folder that is no run, a file that is not ours.
    let mut run = report::read(&args.run)?;
    refuse_other_file(&out)?;
    if !args.prompt.is_empty() {
        run.samples.retain(|sample| !args.prompt.contains(&sample.prompt));
        run.samples.extend(samples(&args, &run)?);
        let lines: Vec<String> =
            run.samples.iter().map(|sample| serde_json::json!(sample).to_string() + "\n").collect();
        write_file(&RealDisk, &args.run.join(SAMPLES_FILE), lines.concat().as_bytes())?;
    }
    write_file(&RealDisk, &out, report::html(&run).as_bytes())?;
    output::note(&format!("{}: open it in a browser", out.display()));
    Ok(())
}

fn refuse_other_file(out: &Path) -> Result<()> {
    match std::fs::read(out) {
        Ok(bytes) if bytes.starts_with(BEGINNING.as_bytes()) => Ok(()),
        Ok(_) => Err(Error::file(out, "exists already and is no report").hint("name another file with --out")),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::io(out, "read", error)),
    }
}

/// A state of the run's model.
struct State {
    label: String,
    step: u64,
    model: String,
    adapter: Option<PathBuf>,
}

/// How each state of the run goes on with each prompt.
fn samples(args: &ReportArgs, run: &RunData) -> Result<Vec<Sample>> {
    let Some(base) = run.setting("model").filter(|model| !model.is_empty()) else {
        return Err(Error::file(&args.run.join("config.toml"), "names no model to take samples of"));
    };
    let is_full = run.setting("method").as_deref() == Some("full");
    let mut samples = Vec::new();
    for state in states(args, run, &base, is_full)? {
        let model = ModelArgs {
            model: state.model,
            adapter: state.adapter,
            context: None,
            compute: ComputeArg::F32,
            threads: args.threads,
            nf4: run.setting("method").as_deref() == Some("qlora"),
        };
        let (mut generator, tokenizer) = model.load(&model.open()?, DeviceChoice::Cpu)?;
        let options = SamplingOptions { max_tokens: args.max_tokens, ..SamplingOptions::default() };
        for prompt in &args.prompt {
            let mut ids: Vec<u32> = tokenizer.special().bos.iter().map(|token| token.id).collect();
            ids.extend(tokenizer.encode_plain(prompt)?);
            let mut text = String::new();
            generate_text(&mut generator, &tokenizer, &ids, &options, &mut |piece| {
                text.push_str(piece);
                Ok(true)
            })?;
            samples.push(Sample { step: state.step, label: state.label.clone(), prompt: prompt.clone(), text });
        }
    }
    Ok(samples)
}

/// The base, each checkpoint that is still there, the result.
fn states(args: &ReportArgs, run: &RunData, base: &str, is_full: bool) -> Result<Vec<State>> {
    let last = run.steps.last().map_or(0, |row| row.step);
    let mut states = Vec::new();
    // A model trained from random weights has no base to show.
    if run.setting("from_scratch").as_deref() != Some("true") {
        states.push(State { label: "base".into(), step: 0, model: base.into(), adapter: None });
    }
    let state = |label: String, step: u64, folder: PathBuf| match is_full {
        true => State { label, step, model: folder.display().to_string(), adapter: None },
        false => State { label, step, model: base.into(), adapter: Some(folder) },
    };
    let checkpoints = args.run.join("checkpoints");
    let mut steps: Vec<(u64, PathBuf)> = std::fs::read_dir(&checkpoints)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Some((entry.file_name().to_str()?.strip_prefix("step-")?.parse().ok()?, entry.path())))
        .collect();
    steps.sort_unstable();
    let steps = steps.into_iter().filter(|(step, _)| !(run.finished && *step == last));
    states.extend(steps.map(|(step, path)| {
        let folder = if is_full { path } else { path.join("adapter") };
        state(format!("step {step}"), step, folder)
    }));
    if run.finished {
        let result = args.run.join(if is_full { "model" } else { "adapter" });
        states.push(state("result".into(), last, result));
    }
    Ok(states)
}
