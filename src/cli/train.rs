//! `llamantino train`: runs a configuration and shows how it goes.

use super::{chain, hub, output, progress, quickstart, shell};
use crate::config;
use crate::device::{self, DeviceChoice};
use crate::error::{Error, ErrorKind, Result};
use crate::ops::gpu::Gpu;
use crate::train::config::RunConfig;
use crate::train::folder::Beginning;
use crate::train::metrics::{EvalRow, StepRow};
use crate::train::run::{self, Observer, RunOptions, RunSummary};
use crate::train::signals;
use crate::train::stages::{self, ChainObserver, Recipe, Stage};
use clap::Args;
use indicatif::ProgressBar;
use std::path::PathBuf;

/// Arguments of `train`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  llamantino train\n  llamantino train configs/stories260k-italian.toml\n  \
    llamantino train my.toml --set training.steps=200 --set lora.r=32\n  \
    llamantino train my.toml --device cuda:1\n  \
    llamantino train configs/llamantino.toml --set stage.adapt.training.steps=5000 --stage adapt")]
pub struct TrainArgs {
    /// The run's configuration (TOML). Without it: the bundled quickstart, unpacked into `llamantino-quickstart`.
    pub config: Option<PathBuf>,
    /// Replace a value of the configuration, e.g. `lora.r=32`; may be given again.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
    /// Go on from the newest checkpoint; refuse to start a new run. Without it an existing run is resumed too, and a
    /// missing one is started.
    #[arg(long, conflicts_with = "fresh")]
    pub resume: bool,
    /// Start over; an existing run of this name is kept under another name. With --stage, only that stage starts over.
    #[arg(long)]
    pub fresh: bool,
    /// Where to compute: auto, cpu, cuda or cuda:1; the same as `--set training.device=...`.
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<DeviceChoice>,
    /// Of a chain of stages, run up to this one; finished ones are not run again.
    #[arg(long, value_name = "NAME")]
    pub stage: Option<String>,
    /// Resume although settings changed that do not change what is trained (how often to save or measure, how long, ...).
    #[arg(long)]
    pub allow_config_change: bool,
}

/// Runs `train`.
pub fn run(args: TrainArgs) -> Result<()> {
    let path = args.config.clone().map_or_else(quickstart::unpack, Ok)?;
    let device = args.device.map(|device| format!("training.device=\"{device}\""));
    let overrides: Vec<String> = args.overrides.iter().cloned().chain(device).collect();
    let mut recipe: Recipe = config::load_file(&path, &overrides)?;
    recipe.stages_up_to(args.stage.as_deref())?;
    recipe.run.model = hub::resolve(&recipe.run.model)?.to_string_lossy().into_owned();
    device::set_threads(Some(recipe.run.training.threads).filter(|threads| *threads > 0))?;
    signals::install();
    let mut screen = Screen::default();
    let opened = recipe.run.training.device.open()?;
    opened.note.iter().for_each(|note| output::note(note));
    let gpu = opened.gpu.map(Gpu::new);
    let beginning = match (args.resume, args.fresh) {
        (true, _) => Beginning::Resume,
        (_, true) => Beginning::Fresh,
        _ => Beginning::Auto,
    };
    let options = RunOptions {
        beginning,
        allow_config_change: args.allow_config_change,
        stop: &|_| signals::requested().map(|signal| signal.name().to_string()),
        chain: None,
        gpu: gpu.as_ref(),
    };
    if !recipe.stage.is_empty() {
        let result = stages::run_chain(&recipe, args.stage.as_deref(), &options, &mut screen);
        screen.finish();
        let done = result.map_err(|error| with_command(error, &args))?;
        output::note(&chain::table(&done));
        done.last().into_iter().for_each(|(stage, summary)| show_next(&stage.config, summary));
        return Ok(());
    }
    let config = recipe.run;
    let result = run::run(&config, &options, &mut screen);
    screen.finish();
    let summary = result.map_err(|error| with_command(error, &args))?;
    show_summary(&summary);
    match args.config {
        None => quickstart::show(&config, &summary),
        Some(_) => {
            show_next(&config, &summary);
            Ok(())
        }
    }
}

/// An interrupted run says how to resume it.
fn with_command(error: Error, args: &TrainArgs) -> Error {
    if error.kind() != ErrorKind::Interrupted {
        return error;
    }
    let config = args.config.as_ref().map_or(String::new(), |path| format!(" {}", shell::path(path)));
    let mut command = format!("llamantino train{config}");
    if let Some(stage) = &args.stage {
        command += &format!(" --stage {}", shell::word(stage));
    }
    if let Some(device) = args.device {
        command += &format!(" --device {device}");
    }
    for given in &args.overrides {
        command += &format!(" --set {}", shell::word(given));
    }
    let what = error.hint_text().unwrap_or_default().to_string();
    error.hint(format!("{what}: {command}"))
}

/// Shows a run on stderr: a bar on a terminal, plain lines elsewhere.
#[derive(Default)]
struct Screen {
    phase: Option<(String, ProgressBar)>,
    steps: Option<ProgressBar>,
}

impl Screen {
    fn end_phase(&mut self) {
        if let Some((_, bar)) = self.phase.take() {
            bar.finish_and_clear();
        }
    }

    /// The end of a run: the next one has bars of its own.
    fn finish(&mut self) {
        self.end_phase();
        if let Some(bar) = self.steps.take() {
            bar.finish();
        }
    }

    fn line(&mut self, text: &str) {
        match &self.steps {
            Some(bar) if !bar.is_hidden() => bar.suspend(|| output::note(text)),
            _ => output::note(text),
        }
    }
}

impl Observer for Screen {
    fn note(&mut self, text: &str) {
        self.end_phase();
        self.line(text);
    }

    fn warning(&mut self, text: &str) {
        self.end_phase();
        match &self.steps {
            Some(bar) if !bar.is_hidden() => bar.suspend(|| output::warning(text)),
            _ => output::warning(text),
        }
    }

    fn phase(&mut self, what: &str, done: usize, total: usize) {
        if self.phase.as_ref().is_none_or(|(name, _)| name != what) {
            self.end_phase();
            self.phase = Some((what.to_string(), progress::counted(total as u64, what)));
        }
        if let Some((_, bar)) = &self.phase {
            bar.set_position(done as u64);
        }
        if done == total {
            self.end_phase();
        }
    }

    fn step(&mut self, row: &StepRow, total: u64) {
        self.end_phase();
        let first = self.steps.is_none();
        let bar = self.steps.get_or_insert_with(|| progress::training(total));
        bar.set_position(row.step);
        if first {
            // A resumed run begins in the middle: the steps before say nothing about its speed.
            bar.reset_eta();
        }
        bar.set_message(format!(
            "loss {:.4} · lr {:.2e} · {:.0} tok/s · {} MiB",
            row.loss, row.lr, row.tokens_per_s, row.rss_mib
        ));
        let every = (total / 20).max(1);
        if bar.is_hidden() && (first || row.step.is_multiple_of(every)) {
            output::note(&format!(
                "step {}/{total}  loss {:.4}  lr {:.2e}  {:.0} tok/s  {} MiB",
                row.step, row.loss, row.lr, row.tokens_per_s, row.rss_mib
            ));
        }
    }

    fn evaluation(&mut self, row: &EvalRow) {
        self.end_phase();
        self.line(&format!(
            "held out ({}) after {} steps: {:.4} bits per byte, perplexity {:.2}, loss {:.4}",
            row.set, row.step, row.bits_per_byte, row.perplexity, row.loss
        ));
    }
}

impl ChainObserver for Screen {
    fn begin(&mut self, number: usize, total: usize, stage: &Stage) {
        self.finish();
        self.line(&format!("\nstage {number} of {total}: {} ({})", stage.name, stage.folder().display()));
    }

    fn end(&mut self, _: &Stage, summary: &RunSummary) {
        self.finish();
        show_summary(summary);
    }
}

/// How the run went.
fn show_summary(summary: &RunSummary) {
    let speed = summary.tokens as f64 / summary.seconds.max(1e-9);
    output::note(&format!(
        "\n{} steps, {} tokens in {:.0} s ({speed:.0} tok/s), peak memory {} MiB",
        summary.steps,
        summary.tokens,
        summary.seconds,
        device::peak_resident_bytes() >> 20,
    ));
    for (first, last) in &summary.evaluations {
        output::note(&format!(
            "{}: {:.4} → {:.4} bits per byte, perplexity {:.2} → {:.2}",
            first.set, first.bits_per_byte, last.bits_per_byte, first.perplexity, last.perplexity
        ));
    }
}

/// The commands that use the result.
fn show_next(config: &RunConfig, summary: &RunSummary) {
    let result = shell::path(&summary.result);
    let model = shell::word(&config.model);
    output::note(&match config.method {
        crate::model::Method::Full => {
            format!(
                "\nmodel: {}\nnext: llamantino generate --model {result} --prompt \"...\"",
                summary.result.display()
            )
        }
        _ => format!(
            "\nadapter: {}\nnext:\n  llamantino generate --model {model} --adapter {result} --prompt \"...\"\n  \
             llamantino merge --base {model} --adapter {result} --out {}",
            summary.result.display(),
            shell::word(&format!("{}-merged", summary.folder.display()))
        ),
    });
}
