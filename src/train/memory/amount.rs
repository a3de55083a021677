//! How much a run will do: steps and rows, from its text where that can be read.

use crate::data::batch::{BatchSettings, Batches};
use crate::data::load;
use crate::data::tokenize::Tokenizer;
use crate::error::Result;
use crate::model::open::with_description;
use crate::train::config::RunConfig;
use crate::train::start::count_steps;
use serde::Serialize;
use std::path::Path;
use std::sync::Arc;

/// Steps and rows of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Amount {
    /// Optimizer steps.
    pub steps: u64,
    /// Rows (tokens to predict) of all steps.
    pub rows: u64,
    /// What an epoch has, if the text was read.
    pub epoch: Option<Epoch>,
}

/// One pass over the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Epoch {
    /// Documents to train on.
    pub documents: u64,
    /// Windows that they are packed into.
    pub windows: u64,
    /// Their rows.
    pub rows: u64,
    /// Optimizer steps.
    pub steps: u64,
}

/// Reads and packs the training text of `config`.
///
/// # Errors
/// The tokenizer or the text cannot be read.
pub fn of_text(config: &RunConfig, vocabulary: usize) -> Result<Amount> {
    let train = with_description(Path::new(&config.model), |model| {
        let tokenizer = Tokenizer::load(model, Some(vocabulary))?;
        Ok(load::load(&config.data, &tokenizer, model, &mut |_| {})?.train)
    })?;
    let settings = BatchSettings {
        sequence_length: config.data.sequence_length,
        packing: config.data.packing,
        group_by_length: config.data.group_by_length,
        windows: config.training.micro_batch,
        seed: config.seed,
    };
    let documents = train.len() as u64;
    let batches = Batches::new(Arc::new(train), settings)?;
    let rows: u64 = batches.rows_by_window().map(|rows| rows as u64).sum();
    let steps = batches.steps_per_epoch(config.training.accumulation as u64);
    let epoch = Epoch { documents, windows: batches.windows() as u64, rows, steps };
    let total = count_steps(config, &batches);
    let rows = (rows as f64 * total as f64 / steps.max(1) as f64) as u64;
    Ok(Amount { steps: total, rows, epoch: Some(epoch) })
}

/// Without the text: the steps of the configuration, with full windows. `None` where only the text would say.
pub fn of_steps(config: &RunConfig) -> Option<Amount> {
    let training = &config.training;
    let windows = training.micro_batch as u64 * training.accumulation as u64;
    let rows = training.steps.saturating_mul(windows).saturating_mul(config.data.sequence_length as u64);
    (training.steps > 0).then_some(Amount { steps: training.steps, rows, epoch: None })
}
