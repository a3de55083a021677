//! The configuration of a run: sections that live beside what they configure.

use super::TrainingConfig;
use crate::adapter::LoraConfig;
use crate::config::{self, Problems, Section};
use crate::data::{formats, DataConfig};
use crate::error::Result;
use crate::export::full::SaveDtype;
use crate::model::Method;
use crate::optim::{OptimizerConfig, ScheduleConfig};
use crate::quant::QuantConfig;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Everything that a run depends on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RunConfig {
    /// Name of the run: its folder under `output`.
    pub name: String,
    /// Folder of all runs.
    pub output: PathBuf,
    /// Names every random choice: the same seed gives the same bytes.
    pub seed: u64,
    /// Model folder (safetensors, or NF4 as `llamantino quantize` writes it) or GGUF file.
    pub model: String,
    /// Start from random weights instead: `model` then holds config.json and the tokenizer only. With `full` only.
    pub from_scratch: bool,
    /// `qlora`, `lora` or `full`.
    pub method: Method,
    /// dtype of the model's file with `method = "full"`.
    pub save_dtype: SaveDtype,
    /// Adapter folder to continue from; its rank, alpha and targets replace `[lora]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adapter: Option<PathBuf>,
    /// Train the embeddings and the head too, beside the adapters; they are saved as PEFT's `modules_to_save`. Their
    /// learning rate is `optimizer.embedding_learning_rate`.
    pub train_embeddings: bool,
    /// How the base is quantised on load.
    pub quantization: QuantConfig,
    /// The adapters.
    pub lora: LoraConfig,
    /// Training text and what is held out of it.
    pub data: DataConfig,
    /// Steps, batches, memory, evaluation.
    pub training: TrainingConfig,
    /// Update rule and peak learning rate.
    pub optimizer: OptimizerConfig,
    /// Learning rate over the steps.
    pub schedule: ScheduleConfig,
    /// Further texts to measure on, such as another language.
    pub evaluation: Vec<EvaluationConfig>,
}

/// `[[evaluation]]`: data that are never trained on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct EvaluationConfig {
    /// Its name in the log.
    pub name: String,
    /// Files, folders or globs.
    pub paths: Vec<String>,
    /// How to read them, as in `[data]`.
    pub format: String,
    /// How conversations and instructions are written, as in `[data]`.
    pub template: String,
}

impl Default for EvaluationConfig {
    fn default() -> EvaluationConfig {
        EvaluationConfig { name: String::new(), paths: Vec::new(), format: "auto".into(), template: String::new() }
    }
}

impl Section for EvaluationConfig {
    fn check(&self, problems: &mut Problems) {
        if let Err(error) = formats::by_name(&self.format) {
            problems.add("format", error.message());
        }
        problems.expect(!self.name.is_empty(), "name", "a name", &self.name);
        problems.expect(!self.paths.is_empty(), "paths", "at least one file, folder or glob", &self.paths);
    }
}

impl Default for RunConfig {
    fn default() -> RunConfig {
        RunConfig {
            name: "run".into(),
            output: "runs".into(),
            seed: 42,
            model: String::new(),
            from_scratch: false,
            method: Method::default(),
            save_dtype: SaveDtype::F32,
            adapter: None,
            train_embeddings: false,
            quantization: QuantConfig::default(),
            lora: LoraConfig::default(),
            data: DataConfig::default(),
            training: TrainingConfig::default(),
            optimizer: OptimizerConfig::default(),
            schedule: ScheduleConfig::default(),
            evaluation: Vec::new(),
        }
    }
}

impl Section for RunConfig {
    fn example() -> RunConfig {
        RunConfig {
            adapter: Some(PathBuf::from("adapter")),
            data: DataConfig::example(),
            optimizer: OptimizerConfig { embedding_learning_rate: Some(1e-5), ..OptimizerConfig::default() },
            schedule: ScheduleConfig { warmup_steps: Some(1), ..ScheduleConfig::default() },
            evaluation: vec![EvaluationConfig::default()],
            ..RunConfig::default()
        }
    }

    fn check(&self, problems: &mut Problems) {
        let plain = !self.name.is_empty() && !self.name.contains(['/', '\\']) && !self.name.starts_with('.');
        problems.expect(plain, "name", "a folder name", &self.name);
        problems.expect(!self.model.is_empty(), "model", "a model folder or GGUF file", &self.model);
        let scratch = !self.from_scratch || self.method == Method::Full;
        problems.expect(scratch, "from_scratch", "false, or method = \"full\"", self.from_scratch);
        let adapter = self.adapter.is_none() || self.method != Method::Full;
        problems.expect(adapter, "adapter", "none with method = \"full\"", &self.adapter);
        if let Err(error) = self.quantization.check() {
            problems.add("quantization", error.message());
        }
        self.lora.problems().iter().for_each(|problem| problems.add("lora", problem));
        self.optimizer.problems().iter().for_each(|problem| problems.add("optimizer", problem));
        self.schedule.problems().iter().for_each(|problem| problems.add("schedule", problem));
        problems.section("data", &self.data);
        problems.section("training", &self.training);
        problems.sections("evaluation", &self.evaluation);
    }
}

impl RunConfig {
    /// The run's folder.
    pub fn folder(&self) -> PathBuf {
        self.output.join(&self.name)
    }

    /// The resolved configuration as a TOML file.
    pub fn to_toml(&self) -> Result<String> {
        config::to_toml(self)
    }
}
