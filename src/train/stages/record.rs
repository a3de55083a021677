//! `stage.json`: what a stage began from, and how it ended.
//!
//! Invariant: it is written before anything else of the stage, and again once the result stands. A stage whose record names
//! another beginning than what is there now was made from something that no longer exists.

use super::config::{Handover, Stage};
use crate::adapter::peft;
use crate::checkpoint::{write_file, Measured, RealDisk};
use crate::error::{Error, Result};
use crate::model::weights::quick_hash;
use crate::model::{Checkpoint, Method};
use crate::train::config::RunConfig;
use crate::train::metrics::EvalRow;
use crate::train::run::RunSummary;
use crate::train::save::result_path;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Name of the file.
pub const RECORD_FILE: &str = "stage.json";

/// The record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// `None` for a stage that starts from the file's own model.
    pub began_from: Option<Origin>,
    /// `None` until the result stands.
    pub finished: Option<Finish>,
}

/// What a stage began from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    /// Name of the stage's folder.
    pub stage: String,
    /// What was taken over from it.
    pub handover: Handover,
    /// Hash of its result.
    pub result: String,
}

/// How a stage ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Finish {
    steps: u64,
    tokens: u64,
    seconds: f64,
    /// First and last evaluation of each held-out set.
    evaluations: Vec<[Measured; 2]>,
}

impl Origin {
    /// The result of `stage` as it is now.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn of(stage: &Stage, handover: Handover) -> Result<Origin> {
        let path = result_path(&stage.config);
        let result = match stage.config.method {
            Method::Full => quick_hash(&Checkpoint::open(&path)?)?,
            Method::Lora | Method::Qlora => peft::read(&path)?.fingerprint(),
        };
        Ok(Origin { stage: stage.config.name.clone(), handover, result })
    }
}

impl Finish {
    /// Of a run that has just ended.
    pub fn of(summary: &RunSummary) -> Finish {
        let pair = |(first, last): &(EvalRow, EvalRow)| [Measured::from(first), Measured::from(last)];
        let RunSummary { steps, tokens, seconds, evaluations, .. } = summary;
        Finish {
            steps: *steps,
            tokens: *tokens,
            seconds: *seconds,
            evaluations: evaluations.iter().map(pair).collect(),
        }
    }

    /// The summary of the run, whose configuration is `config`.
    pub fn summary(&self, config: &RunConfig) -> RunSummary {
        let pair = |[first, last]: &[Measured; 2]| (EvalRow::from(first), EvalRow::from(last));
        RunSummary {
            folder: config.folder(),
            result: result_path(config),
            steps: self.steps,
            tokens: self.tokens,
            seconds: self.seconds,
            evaluations: self.evaluations.iter().map(pair).collect(),
        }
    }
}

/// Reads a small JSON file; `None` where there is none.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| Error::file(path, error)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io(path, "read", error)),
    }
}

/// Writes a small JSON file at once.
pub fn write<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let mut text = serde_json::to_vec_pretty(value).map_err(|error| Error::file(path, error))?;
    text.push(b'\n');
    write_file(&RealDisk, path, &text)
}
