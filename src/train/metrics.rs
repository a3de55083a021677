//! The run's log: one JSON object a line in `log.jsonl`, flushed line by line.
//!
//! A `step` row: `step` (from 1), `loss` (mean over the step's target tokens, natural log), `lr`, `grad_norm` (before
//! clipping), `tokens` (rows seen since the run began), `tokens_per_s`, `rss_mib`. An `eval` row: `step`, `set`, `loss`,
//! `perplexity`, `bits_per_byte`. A `skip` row: a step that was left out. A `spike` row: the loss stays far above its mean.

use crate::checkpoint::Measured;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// One line of the log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
    /// A loss spike (`[training.spike]`).
    Spike {
        /// Step, from 1.
        step: u64,
        /// Its loss.
        loss: f64,
        /// Mean of the losses before it.
        mean: f64,
    },
}

/// An optimizer step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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

impl From<&EvalRow> for Measured {
    fn from(row: &EvalRow) -> Measured {
        let EvalRow { step, set, loss, perplexity, bits_per_byte } = row.clone();
        Measured { step, set, loss, perplexity, bits_per_byte }
    }
}

impl From<&Measured> for EvalRow {
    fn from(measured: &Measured) -> EvalRow {
        let Measured { step, set, loss, perplexity, bits_per_byte } = measured.clone();
        EvalRow { step, set, loss, perplexity, bits_per_byte }
    }
}

/// The open log file.
pub struct Log {
    path: PathBuf,
    file: File,
    bytes: u64,
}

impl Log {
    /// Opens `path`, creates it if need be, and cuts it back to its first `bytes` bytes: what came after them belongs to
    /// steps that will be done again. If it is shorter (somebody cut it), it goes on after its last whole line.
    pub fn open(path: &Path, bytes: u64) -> Result<Log> {
        let file = File::options().create(true).read(true).write(true).truncate(false).open(path);
        let mut file = file.map_err(|error| Error::io(path, "open", error))?;
        let io = |error| Error::io(path, "cut back", error);
        let mut kept = file.metadata().map_err(io)?.len().min(bytes);
        if kept < bytes {
            let mut text = Vec::new();
            file.read_to_end(&mut text).map_err(io)?;
            kept = text.iter().rposition(|&byte| byte == b'\n').map_or(0, |place| place as u64 + 1);
        }
        file.set_len(kept).and_then(|()| file.seek(SeekFrom::End(0))).map_err(io)?;
        Ok(Log { path: path.into(), file, bytes: kept })
    }

    /// Writes one row.
    pub fn write(&mut self, row: &Row) -> Result<()> {
        let mut line = serde_json::to_string(row).map_err(|error| Error::file(&self.path, error))?;
        line.push('\n');
        self.file.write_all(line.as_bytes()).map_err(|error| Error::io(&self.path, "write", error))?;
        self.bytes += line.len() as u64;
        Ok(())
    }

    /// Length of the log.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Makes everything written durable.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(|error| Error::io(&self.path, "sync", error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn skip(step: u64) -> Row {
        Row::Skip { step, reason: "loss NaN".into() }
    }

    #[test]
    fn the_log_is_cut_back_to_where_the_checkpoint_was() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("log.jsonl");
        let mut log = Log::open(&path, 0).unwrap();
        log.write(&skip(1)).unwrap();
        let (bytes, first) = (log.bytes(), std::fs::read(&path).unwrap());
        log.write(&skip(2)).unwrap();
        drop(log);
        let mut log = Log::open(&path, bytes).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), first);
        log.write(&skip(2)).unwrap();
        assert_eq!(log.bytes(), std::fs::metadata(&path).unwrap().len());
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 2);
    }

    #[test]
    fn a_log_that_is_too_short_goes_on_after_its_last_whole_line() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("log.jsonl");
        std::fs::write(&path, "{\"a\":1}\n{\"b\"").unwrap();
        let log = Log::open(&path, 1000).unwrap();
        assert_eq!(log.bytes(), 8);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "{\"a\":1}\n");
    }
}
