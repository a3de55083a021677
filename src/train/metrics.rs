//! The run's log: one JSON object a line in `log.jsonl`, flushed line by line.
//!
//! A `step` row: `step` (from 1), `loss` (mean over the step's target tokens, natural log), `lr`, `grad_norm` (before
//! clipping), `tokens` (rows seen since the run began), `tokens_per_s`, `rss_mib`. An `eval` row: `step`, `set`, `loss`,
//! `perplexity`, `bits_per_byte`.

use crate::error::{Error, Result};
use serde::Serialize;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

/// One line of the log.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Row {
    /// After an optimizer step.
    Step(StepRow),
    /// After an evaluation.
    Eval(EvalRow),
    /// A step whose loss or gradient was not finite and was left out.
    Skip {
        /// Step, from 1.
        step: u64,
        /// What was not finite.
        reason: String,
    },
}

/// An optimizer step.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StepRow {
    /// From 1.
    pub step: u64,
    /// Mean loss of the target tokens before the update.
    pub loss: f64,
    /// Learning rate of this update.
    pub lr: f64,
    /// Global norm before clipping.
    pub grad_norm: f64,
    /// Rows seen since the run began.
    pub tokens: u64,
    /// Rows a second in this step.
    pub tokens_per_s: f64,
    /// Resident memory.
    pub rss_mib: u64,
}

/// An evaluation of a held-out set.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EvalRow {
    /// Optimizer steps done before it.
    pub step: u64,
    /// Name of the set.
    pub set: String,
    /// Mean loss of the target tokens (end-of-text included), natural log.
    pub loss: f64,
    /// `exp(loss)`.
    pub perplexity: f64,
    /// Loss of the text tokens in bits, per UTF-8 byte of text.
    pub bits_per_byte: f64,
}

/// The open log file.
pub struct Log {
    path: PathBuf,
    file: File,
}

impl Log {
    /// Opens `path` to append; creates it if need be.
    pub fn append(path: &Path) -> Result<Log> {
        let file = OpenOptions::new().create(true).append(true).open(path);
        Ok(Log { path: path.into(), file: file.map_err(|error| Error::io(path, "open", error))? })
    }

    /// Writes one row.
    pub fn write(&mut self, row: &Row) -> Result<()> {
        let mut line = serde_json::to_string(row).map_err(|error| Error::file(&self.path, error))?;
        line.push('\n');
        self.file.write_all(line.as_bytes()).map_err(|error| Error::io(&self.path, "write", error))
    }
}
