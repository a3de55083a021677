//! The configuration of a training run: sections that live beside what they configure.

use crate::adapter::LoraConfig;
use crate::data::DataConfig;
use crate::error::{Error, Result};
use crate::export::full::SaveDtype;
use crate::model::Method;
use crate::optim::{OptimizerConfig, ScheduleConfig};
use crate::quant::QuantConfig;
use crate::train::TrainingConfig;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Everything a run depends on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RunConfig {
    /// Name of the run: its folder under `output`.
    pub name: String,
    /// Folder of all runs.
    pub output: PathBuf,
    /// Names every random choice: the same seed gives the same bytes.
    pub seed: u64,
    /// Model folder (safetensors, or NF4 as `llamantino quantize` writes it).
    pub model: String,
    /// Start from random weights instead: `model` then holds only config.json and the tokenizer. With `full` only.
    pub from_scratch: bool,
    /// dtype of the model's file with `method = "full"`.
    pub save_dtype: SaveDtype,
    /// `qlora`, `lora` or `full`.
    pub method: Method,
    /// Adapter folder to continue from; its rank, alpha and targets replace `[lora]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adapter: Option<PathBuf>,
    /// How the base is quantised on load.
    pub quantization: QuantConfig,
    /// The adapters.
    pub lora: LoraConfig,
    /// Training and held-out text.
    pub data: DataConfig,
    /// Steps, batches, memory, evaluation.
    pub training: TrainingConfig,
    /// Update rule and peak learning rate.
    pub optimizer: OptimizerConfig,
    /// Learning rate over the steps.
    pub schedule: ScheduleConfig,
}

impl Default for RunConfig {
    fn default() -> RunConfig {
        RunConfig {
            name: "run".into(),
            output: "runs".into(),
            seed: 42,
            model: String::new(),
            from_scratch: false,
            save_dtype: SaveDtype::F32,
            method: Method::default(),
            adapter: None,
            quantization: QuantConfig::default(),
            lora: LoraConfig::default(),
            data: DataConfig::default(),
            training: TrainingConfig::default(),
            optimizer: OptimizerConfig::default(),
            schedule: ScheduleConfig::default(),
        }
    }
}

impl RunConfig {
    /// The run's folder.
    pub fn folder(&self) -> PathBuf {
        self.output.join(&self.name)
    }

    /// The resolved configuration as a TOML file.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self).map_err(|error| Error::failed(format!("writing the configuration: {error}")))
    }
}
