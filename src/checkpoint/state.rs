//! `state.json`: everything about a run that is not a tensor.
//!
//! Random streams need no state of their own: every random number of a run is a function of (seed, what it is for, step,
//! micro-step, position), see [`crate::ops`]; `seed` and `step` stand for all of them. The learning rate is a function of
//! the step and of the schedule in the configuration.

use super::exact;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::VecDeque;

/// Where a run stands between two steps.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunState {
    /// Optimizer steps done (skipped ones included).
    pub step: u64,
    /// Steps of the whole run.
    pub total_steps: u64,
    /// Rows seen.
    pub tokens: u64,
    /// Names every random choice.
    pub seed: u64,
    /// Which micro-batch comes next.
    pub cursor: Value,
    /// The resolved configuration as TOML.
    pub config: String,
    /// Hash of what the base model holds.
    pub base_hash: String,
    /// Hash of what decides the batches.
    pub data_hash: String,
    /// Updates that the optimizer counted for its bias correction; filled in when it is saved.
    pub optimizer_steps: u64,
    /// Length of `log.jsonl`: the rows up to here.
    pub log_bytes: u64,
    /// The evaluations done so far.
    pub evaluations: Vec<Measured>,
    /// Steps left out because of a loss or gradient that was not finite.
    pub skips: Skips,
    /// Memory of the loss-spike detector.
    pub spike: SpikeMemory,
    /// Seconds spent in steps.
    #[serde(with = "exact")]
    pub seconds: f64,
}

/// An evaluation of a held-out set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measured {
    /// Optimizer steps done before it.
    pub step: u64,
    /// Name of the set.
    pub set: String,
    /// Mean loss of the target tokens, natural log.
    #[serde(with = "exact")]
    pub loss: f64,
    /// `exp(loss)`.
    #[serde(with = "exact")]
    pub perplexity: f64,
    /// Bits per UTF-8 byte of text.
    #[serde(with = "exact")]
    pub bits_per_byte: f64,
}

/// Steps that were left out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Skips {
    /// In the whole run.
    pub total: u64,
    /// Up to now without a good one in between.
    pub in_a_row: u64,
}

/// What the loss-spike detector remembers.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpikeMemory {
    /// Latest losses, oldest first.
    #[serde(with = "exact::list")]
    pub window: VecDeque<f64>,
    /// Outliers up to now without an ordinary loss in between.
    pub outliers: u64,
}
