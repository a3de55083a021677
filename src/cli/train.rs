//! `llamantino train`: runs a configuration and shows how it goes.

use super::{output, progress};
use crate::config;
use crate::device;
use crate::error::Result;
use crate::train::config::RunConfig;
use crate::train::metrics::{EvalRow, StepRow};
use crate::train::run::{self, Observer, RunSummary};
use clap::Args;
use indicatif::ProgressBar;
use std::path::PathBuf;

/// Arguments of `train`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  llamantino train configs/stories260k-italian.toml\n  \
    llamantino train my.toml --set training.steps=200 --set lora.r=32")]
pub struct TrainArgs {
    /// The run's configuration (TOML).
    pub config: PathBuf,
    /// Replace a value of the configuration, e.g. `lora.r=32`; may be given again.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
}

/// Runs `train`.
pub fn run(args: TrainArgs) -> Result<()> {
    let config: RunConfig = config::load_file(&args.config, &args.overrides)?;
    device::set_threads(Some(config.training.threads).filter(|threads| *threads > 0))?;
    let mut screen = Screen::default();
    let result = run::run(&config, &mut screen);
    screen.finish();
    show_summary(&config, &result?);
    Ok(())
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
        let bar = self.steps.get_or_insert_with(|| progress::training(total));
        bar.set_position(row.step);
        bar.set_message(format!(
            "loss {:.4} · lr {:.2e} · {:.0} tok/s · {} MiB",
            row.loss, row.lr, row.tokens_per_s, row.rss_mib
        ));
        let every = (total / 20).max(1);
        if bar.is_hidden() && (row.step == 1 || row.step.is_multiple_of(every)) {
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

fn show_summary(config: &RunConfig, summary: &RunSummary) {
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
    let result = summary.result.display();
    let model = &config.model;
    output::note(&match config.method {
        crate::model::Method::Full => {
            format!("\nmodel: {result}\nnext: llamantino generate --model {result} --prompt \"...\"")
        }
        _ => format!(
            "\nadapter: {result}\nnext:\n  llamantino generate --model {model} --adapter {result} --prompt \"...\"\n  \
             llamantino merge --base {model} --adapter {result} --out {}-merged",
            summary.folder.display()
        ),
    });
}
