//! The loop of a run: evaluate, save, step, until all steps are done or somebody wants it to stop.
//!
//! Invariant: N steps are k steps, a stop of any kind, and N − k steps after resuming: the same bits in values, optimizer,
//! data order and log (but for times, speed and memory). At the top of the loop everything that is due at the present
//! step and was not done yet is done, so that it does not matter where an earlier process ended.

use super::config::RunConfig;
use super::evaluate::evaluate;
use super::folder::{Beginning, RunFolder};
use super::guards::{SkipCounter, SpikeAction, SpikeDetector};
use super::kept::Earlier;
use super::memory;
use super::metrics::{EvalRow, Log, Row, StepRow};
use super::save::result_path;
use super::start::Corpora;
use super::step::{Engine, StepReport};
use super::tensorboard::EventFile;
use crate::checkpoint::RunState;
use crate::device;
use crate::error::{Error, Result};
use crate::model::Method;
use crate::ops::gpu::Gpu;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// What a run tells as it goes on.
pub trait Observer {
    /// Something worth knowing.
    fn note(&mut self, text: &str);
    /// Something that may be wrong.
    fn warning(&mut self, text: &str);
    /// Part `done` of `total` of a phase such as "loading the model" is finished.
    fn phase(&mut self, what: &str, done: usize, total: usize);
    /// A step is done.
    fn step(&mut self, row: &StepRow, total: u64);
    /// An evaluation is done.
    fn evaluation(&mut self, row: &EvalRow);
}

/// How to run, beside what the configuration says.
pub struct RunOptions<'a> {
    /// Where to begin.
    pub beginning: Beginning,
    /// Go on although keys that do not change what is trained have other values than before.
    pub allow_config_change: bool,
    /// Why the run should stop after so many steps, if it should: asked after each step and during evaluations.
    pub stop: &'a dyn Fn(u64) -> Option<String>,
    /// In a chain, the stages that this one builds upon: what they held out is measured too. None outside of one.
    pub chain: Option<&'a [Earlier]>,
    /// The GPU to compute on; none for the CPU.
    pub gpu: Option<&'a Gpu>,
}

/// What a run leaves behind.
#[derive(Debug, Clone)]
pub struct RunSummary {
    /// The run's folder.
    pub folder: PathBuf,
    /// The adapter's folder, or the model's with `method = "full"`.
    pub result: PathBuf,
    /// Optimizer steps done.
    pub steps: u64,
    /// Rows seen.
    pub tokens: u64,
    /// Seconds of the steps.
    pub seconds: f64,
    /// First and last evaluation of each held-out set.
    pub evaluations: Vec<(EvalRow, EvalRow)>,
}

/// A run between two steps.
pub(super) struct Run {
    pub(super) folder: RunFolder,
    pub(super) engine: Engine,
    pub(super) corpora: Corpora,
    pub(super) log: Log,
    /// The same curves for TensorBoard.
    pub(super) events: EventFile,
    pub(super) config: RunConfig,
    /// Hash of the base, as quick as its size allows; see [`super::start`].
    pub(super) base_hash: String,
    /// Hash of the whole base, once it was needed.
    pub(super) full_base_hash: Option<String>,
    pub(super) data_hash: String,
    pub(super) total_steps: u64,
    /// Steps done.
    pub(super) step: u64,
    pub(super) tokens: u64,
    pub(super) seconds: f64,
    pub(super) evaluations: Vec<EvalRow>,
    pub(super) skips: SkipCounter,
    pub(super) spike: SpikeDetector,
    /// Step of the newest checkpoint.
    pub(super) saved: Option<u64>,
    /// Whether an evaluation was done since, at the same step: it ended early when that checkpoint was written.
    pub(super) evaluated_since: bool,
}

/// Runs the configuration, from the start or from where an earlier process stopped.
///
/// # Errors
/// [`crate::error::ErrorKind::Interrupted`] when it was asked to stop and can be resumed; otherwise whatever went wrong.
pub fn run(config: &RunConfig, options: &RunOptions<'_>, observer: &mut dyn Observer) -> Result<RunSummary> {
    let plan = memory::admit(config, options.gpu, observer)?;
    let result = carry_out(config, options, plan.clone(), observer);
    result.map_err(|error| match options.gpu {
        Some(gpu) => memory::gpu::explain(config, &plan, gpu, error),
        None => error,
    })
}

fn carry_out(
    config: &RunConfig,
    options: &RunOptions<'_>,
    plan: memory::Plan,
    observer: &mut dyn Observer,
) -> Result<RunSummary> {
    let start = Instant::now();
    let limit = config.training.max_hours;
    let stop = |step: u64| {
        let late = limit > 0.0 && start.elapsed() >= Duration::from_secs_f64(limit * 3600.0);
        (options.stop)(step).or_else(|| late.then(|| format!("the limit of {limit} hours")))
    };
    let (folder, restored) = RunFolder::open(config, options, observer)?;
    if let Some(state) = restored.as_ref().map(|restored| &restored.state).filter(|state| is_finished(config, state)) {
        observer.note(&format!("this run is finished: all {} steps are done", state.total_steps));
        let evaluations: Vec<EvalRow> = state.evaluations.iter().map(EvalRow::from).collect();
        return Ok(summary(config, &evaluations, (state.step, state.tokens, state.seconds)));
    }
    let mut run = Run::start((config, options), plan, folder, restored, observer)?;
    loop {
        if run.evaluation_is_due() {
            run.evaluate(&stop, observer)?;
        }
        let done = run.step >= run.total_steps;
        // A wish to stop cannot cut off what is done: only an evaluation that it ended early is left for later.
        let reason = stop(run.step).filter(|_| !done || run.evaluation_is_due());
        if run.checkpoint_is_due(reason.is_some()) {
            if let (_, Some(error)) = run.save_checkpoint()? {
                observer.warning(&format!("an old checkpoint could not be removed: {error}"));
            }
        }
        if let Some(reason) = reason {
            return Err(run.interrupted(&reason));
        }
        if done {
            break;
        }
        run.step(observer)?;
    }
    run.save_result()?;
    Ok(summary(config, &run.evaluations, (run.step, run.tokens, run.seconds)))
}

impl Run {
    fn evaluation_is_due(&self) -> bool {
        let every = self.config.training.evaluate_every;
        let due = self.step == 0 || self.step == self.total_steps || (every > 0 && self.step.is_multiple_of(every));
        due && !self.corpora.held_out.is_empty() && self.evaluations.last().is_none_or(|row| row.step != self.step)
    }

    fn checkpoint_is_due(&self, stopping: bool) -> bool {
        let every = self.config.training.checkpoint_every;
        let due = stopping || self.step == self.total_steps || (every > 0 && self.step.is_multiple_of(every));
        due && self.step > 0 && (self.saved != Some(self.step) || self.evaluated_since)
    }

    /// One optimizer step, and what the guards say to it.
    fn step(&mut self, observer: &mut dyn Observer) -> Result<()> {
        let (training, total) = (&self.config.training, self.total_steps);
        let count = self.corpora.train.left_in_epoch().min(training.accumulation as u64);
        let batches: Vec<_> = (0..count).map(|_| self.corpora.train.next_micro_batch()).collect();
        let rates = self.config.optimizer.learning_rates(self.config.schedule.multiplier(self.step, total));
        let start = Instant::now();
        let report = self.engine.step(self.step, &batches, &rates)?;
        let seconds = start.elapsed().as_secs_f64();
        if self.step == 0 {
            check_first(&report)?;
        }
        self.step += 1;
        self.tokens += report.tokens as u64;
        self.seconds += seconds;
        if self.skips.observe(report.updated) {
            self.left_out(&report, observer)?;
            return Err(self.stopped(&format!(
                "{} steps in a row had a loss or gradient that was not finite",
                self.skips.skips().in_a_row
            )));
        }
        if !report.updated {
            return self.left_out(&report, observer);
        }
        let row = StepRow {
            step: self.step,
            loss: report.loss,
            lr: rates.base,
            grad_norm: report.grad_norm,
            tokens: self.tokens,
            tokens_per_s: report.tokens as f64 / seconds,
            rss_mib: device::resident_bytes() >> 20,
        };
        observer.step(&row, total);
        let curves =
            [("loss", row.loss), ("lr", row.lr), ("grad_norm", row.grad_norm), ("tokens_per_s", row.tokens_per_s)];
        self.events.scalars(row.step, &curves)?;
        self.log.write(&Row::Step(row))?;
        self.watch(report.loss, observer)
    }

    fn left_out(&mut self, report: &StepReport, observer: &mut dyn Observer) -> Result<()> {
        let reason = format!("loss {}, gradient norm {}", report.loss, report.grad_norm);
        observer.warning(&format!("step {} left out: {reason}", self.step));
        self.log.write(&Row::Skip { step: self.step, reason })
    }

    /// Shows the loss to the spike detector.
    fn watch(&mut self, loss: f64, observer: &mut dyn Observer) -> Result<()> {
        let Some(spike) = self.spike.observe(loss) else { return Ok(()) };
        let config = &self.config.training.spike;
        let text = format!(
            "the loss was at least {} times its mean {:.4} for {} steps, now {loss:.4}",
            config.multiplier, spike.mean, spike.outliers
        );
        // Told when it is found; as long as it lasts there is nothing new to say.
        if spike.outliers == config.patience + 1 {
            observer.warning(&format!("step {}: {text}", self.step));
            self.log.write(&Row::Spike { step: self.step, loss, mean: spike.mean })?;
        }
        match config.action {
            SpikeAction::Stop => Err(self.stopped(&text)),
            SpikeAction::Warn | SpikeAction::Off => Ok(()),
        }
    }

    /// Evaluates all held-out sets; none counts if `stop` wants to end it before the last is done.
    fn evaluate(&mut self, stop: &dyn Fn(u64) -> Option<String>, observer: &mut dyn Observer) -> Result<()> {
        let step = self.step;
        let mut rows = Vec::new();
        for (name, batches) in &self.corpora.held_out {
            let row = evaluate(&mut self.engine, batches, (name, step), &mut |done, total| {
                observer.phase("evaluating", done, total);
                stop(step).is_none()
            })?;
            match row {
                Some(row) => rows.push(row),
                None => return Ok(()),
            }
        }
        for row in rows {
            observer.evaluation(&row);
            let (bits, loss) = (format!("bits_per_byte/{}", row.set), format!("loss/{}", row.set));
            self.events.scalars(row.step, &[(&bits, row.bits_per_byte), (&loss, row.loss)])?;
            self.log.write(&Row::Eval(row.clone()))?;
            self.evaluations.push(row);
        }
        self.evaluated_since = true;
        Ok(())
    }

    /// The end that can be resumed.
    fn interrupted(&self, reason: &str) -> Error {
        let (step, total) = (self.step, self.total_steps);
        match self.saved {
            Some(saved) => {
                let path = self.folder.checkpoints.path(saved);
                let text = format!("stopped by {reason} after step {step} of {total}; saved {}", path.display());
                Error::interrupted(text).hint("the same command goes on from there")
            }
            None => Error::interrupted(format!("stopped by {reason} before the first step"))
                .hint("the same command starts the run"),
        }
    }

    /// The end that a guard brings about.
    fn stopped(&self, what: &str) -> Error {
        let error = Error::failed(format!("stopped after step {}: {what}", self.step));
        let Some(saved) = self.saved else {
            return error.hint("lower optimizer.learning_rate, or look at the data of these steps");
        };
        let path = self.folder.checkpoints.path(saved);
        let from = match self.config.method {
            Method::Full => format!("--set model={}", path.display()),
            Method::Lora | Method::Qlora => format!("--set adapter={}", path.join("adapter").display()),
        };
        error.hint(format!(
            "the last checkpoint before it is {}; a new run can start there with a lower rate: --set name=NAME {from} --set \
             optimizer.learning_rate=RATE",
            path.display()
        ))
    }
}

/// The first step shows what can never work.
fn check_first(report: &StepReport) -> Result<()> {
    if report.targets == 0 {
        return Err(Error::failed("the first step has no token to predict: every label is ignored")
            .hint("look at the data; with one document a window, sequence_length may be too short for any answer"));
    }
    if report.grad_norm == 0.0 {
        return Err(Error::failed("the first step's gradient is zero: nothing would ever be learned")
            .hint("a base or an adapter of zeros passes no gradient on: check both"));
    }
    Ok(())
}

fn is_finished(config: &RunConfig, state: &RunState) -> bool {
    state.step >= state.total_steps && result_path(config).is_dir()
}

fn summary(config: &RunConfig, rows: &[EvalRow], (steps, tokens, seconds): (u64, u64, f64)) -> RunSummary {
    let mut evaluations: Vec<(EvalRow, EvalRow)> = Vec::new();
    for row in rows {
        match evaluations.iter_mut().find(|(first, _)| first.set == row.set) {
            Some((_, last)) => *last = row.clone(),
            None => evaluations.push((row.clone(), row.clone())),
        }
    }
    RunSummary { folder: config.folder(), result: result_path(config), steps, tokens, seconds, evaluations }
}
