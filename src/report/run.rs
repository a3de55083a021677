//! What a run's folder tells: its log, its configuration, samples, and results of evaluations.
//!
//! | file | what |
//! |---|---|
//! | `log.jsonl` | the log ([`crate::train::metrics`]) |
//! | `config.toml` | the resolved configuration |
//! | `samples.jsonl` | `{"step", "label", "prompt", "text"}` a line: how texts go on before, during and after the run |
//! | `results.json`, here or up to two folders deeper | results of `llamantino eval --out` |
//! | `checkpoints/*/manifest.json` | by what the run was computed |

use crate::error::{Error, Result};
use crate::train::folder::{CONFIG_FILE, LOG_FILE};
use crate::train::metrics::{EvalRow, Row, StepRow};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Name of the file of samples.
pub const SAMPLES_FILE: &str = "samples.jsonl";
/// Name of a file of results.
const RESULTS_FILE: &str = "results.json";

/// How a text goes on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// Optimizer steps done.
    pub step: u64,
    /// What wrote it: `base`, `step 100`, `result`.
    pub label: String,
    /// The beginning.
    pub prompt: String,
    /// The continuation.
    pub text: String,
}

/// A metric of a task.
#[derive(Debug, Clone, PartialEq)]
pub struct Metric {
    /// Task, as the results name it.
    pub task: String,
    /// Metric.
    pub name: String,
    /// Its value.
    pub value: f64,
    /// Bounds of the 95 % interval.
    pub interval: Option<[f64; 2]>,
    /// Questions that it stands on.
    pub questions: Option<u64>,
}

/// One file of results.
#[derive(Debug, Clone, PartialEq)]
pub struct Results {
    /// Its folder below the run's.
    pub place: String,
    /// The metrics.
    pub metrics: Vec<Metric>,
}

/// A run.
#[derive(Debug, Clone, Default)]
pub struct RunData {
    /// Its name.
    pub name: String,
    /// Whether its result is there.
    pub finished: bool,
    /// The resolved configuration as text.
    pub config: String,
    /// Optimizer steps.
    pub steps: Vec<StepRow>,
    /// Evaluations of held-out texts.
    pub evaluations: Vec<EvalRow>,
    /// Steps left out and spikes: step and what happened.
    pub events: Vec<(u64, String)>,
    /// Lines of the log that could not be read.
    pub unreadable: usize,
    /// How texts went on.
    pub samples: Vec<Sample>,
    /// Results of evaluations.
    pub results: Vec<Results>,
    /// Program, kernels and platform, by name.
    pub environment: Vec<(String, String)>,
}

impl RunData {
    /// A text value of the configuration, such as `model` or `training.compute`.
    pub fn setting(&self, key: &str) -> Option<String> {
        let table: toml::Table = self.config.parse().ok()?;
        let mut parts = key.split('.');
        let first = table.get(parts.next()?)?;
        let value = parts.try_fold(first, |value, part| value.get(part))?;
        Some(value.as_str().map_or_else(|| value.to_string(), str::to_string))
    }
}

/// Reads the folder of a run.
///
/// # Errors
/// No run there; files that cannot be read.
pub fn read(folder: &Path) -> Result<RunData> {
    let log = folder.join(LOG_FILE);
    let text = std::fs::read_to_string(&log).map_err(|error| {
        Error::io(&log, "read", error).hint(match run_inside(folder) {
            Some(run) => format!("it holds several runs, as a chain does: name one of them, such as {}", run.display()),
            None => "expected the folder of a run, such as runs/NAME: it holds log.jsonl".into(),
        })
    })?;
    let name = std::path::absolute(folder).ok().and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()));
    let mut run = RunData { name: name.unwrap_or_default(), ..RunData::default() };
    run.read_log(&text);
    run.finished = ["adapter", "model"].iter().any(|result| folder.join(result).is_dir());
    run.config = optional(&folder.join(CONFIG_FILE))?.unwrap_or_default();
    run.samples = samples(&folder.join(SAMPLES_FILE))?;
    run.results = results_of(folder)?;
    run.environment = environment(folder);
    Ok(run)
}

/// The first run in a folder that is none itself.
fn run_inside(folder: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.filter(|path| path.join(LOG_FILE).is_file()).min()
}

impl RunData {
    fn read_log(&mut self, text: &str) {
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            match serde_json::from_str(line) {
                Ok(Row::Step(row)) => self.steps.push(row),
                Ok(Row::Eval(row)) => self.evaluations.push(row),
                Ok(Row::Skip { step, reason }) => self.events.push((step, format!("left out: {reason}"))),
                Ok(Row::Spike { step, loss, mean }) => {
                    self.events.push((step, format!("spike: loss {loss:.4}, mean before {mean:.4}")));
                }
                Err(_) => self.unreadable += 1,
            }
        }
    }
}

/// A file's text, none if there is no such file.
fn optional(path: &Path) -> Result<Option<String>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io(path, "read", error)),
    }
}

fn samples(path: &Path) -> Result<Vec<Sample>> {
    let Some(text) = optional(path)? else { return Ok(Vec::new()) };
    let sample = |(index, line): (usize, &str)| {
        serde_json::from_str(line)
            .map_err(|error| Error::failed(format!("{}:{}: not a sample: {error}", path.display(), index + 1)))
    };
    text.lines().enumerate().map(sample).collect()
}

/// Every file of results in a folder and two levels below it, in the order of their places.
///
/// # Errors
/// One that cannot be read, or holds something else.
pub fn results_of(folder: &Path) -> Result<Vec<Results>> {
    let mut files = Vec::new();
    find(folder, 2, &mut files);
    files.sort_unstable();
    let read = |path: &PathBuf| {
        let text = optional(path)?.unwrap_or_default();
        let value: Value =
            serde_json::from_str(&text).map_err(|error| Error::file(path, format!("not JSON: {error}")))?;
        let place = path.parent().and_then(|parent| parent.strip_prefix(folder).ok()).unwrap_or(Path::new(""));
        let place = if place.as_os_str().is_empty() { ".".into() } else { place.display().to_string() };
        Ok(Results { place, metrics: metrics(&value) })
    };
    files.iter().map(read).collect()
}

fn find(folder: &Path, depth: usize, files: &mut Vec<PathBuf>) {
    for path in std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()) {
        if path.is_dir() && depth > 0 && !path.is_symlink() {
            find(&path, depth - 1, files);
        } else if path.file_name().is_some_and(|name| name == RESULTS_FILE) {
            files.push(path);
        }
    }
}

/// `tasks.NAME.metrics.METRIC.{value, interval_95}` and `tasks.NAME.questions`.
fn metrics(results: &Value) -> Vec<Metric> {
    let mut metrics = Vec::new();
    for (task, outcome) in results["tasks"].as_object().into_iter().flatten() {
        for (name, metric) in outcome["metrics"].as_object().into_iter().flatten() {
            let Some(value) = metric["value"].as_f64() else { continue };
            let bound = |index: usize| metric["interval_95"][index].as_f64();
            let interval = bound(0).zip(bound(1)).map(|(low, high)| [low, high]);
            let questions = outcome["questions"].as_u64();
            metrics.push(Metric { task: task.clone(), name: name.clone(), value, interval, questions });
        }
    }
    metrics
}

/// What computed the newest checkpoint.
fn environment(folder: &Path) -> Vec<(String, String)> {
    let entries = std::fs::read_dir(folder.join("checkpoints")).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path().join("manifest.json")).collect();
    paths.sort_unstable();
    let manifest = paths.iter().rev().find_map(|path| optional(path).ok().flatten());
    let manifest: Value = manifest.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
    let made_by = manifest["made_by"].as_object().into_iter().flatten();
    made_by.filter_map(|(name, value)| Some((name.replace('_', " "), value.as_str()?.to_string()))).collect()
}
