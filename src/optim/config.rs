//! Options of the optimizer and the learning rate of each kind of parameter.

use super::{AdamW, AdamW8, Optimizer};
use crate::ops::{ParamKind, ParamStore};
use serde::{Deserialize, Serialize};

/// Which optimizer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum OptimizerKind {
    /// AdamW with f32 state: 8 bytes a trainable value.
    #[default]
    #[serde(rename = "adamw")]
    AdamW,
    /// AdamW with 8-bit state in blocks of 256: 2.03 bytes a trainable value (bitsandbytes' `AdamW8bit`).
    #[serde(rename = "adamw8bit")]
    AdamW8,
}

impl OptimizerKind {
    /// Bytes of state for a parameter of so many values.
    pub fn state_bytes(self, values: usize) -> usize {
        match self {
            OptimizerKind::AdamW => AdamW::state_bytes_of(values),
            OptimizerKind::AdamW8 => AdamW8::state_bytes_of(values),
        }
    }

    /// The optimizer for the parameters of `store`, with empty state.
    pub fn build(self, config: &OptimizerConfig, store: &ParamStore) -> Box<dyn Optimizer> {
        match self {
            OptimizerKind::AdamW => Box::new(AdamW::new(config, store)),
            OptimizerKind::AdamW8 => Box::new(AdamW8::new(config, store)),
        }
    }
}

/// Options of the optimizer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OptimizerConfig {
    /// `adamw` (default) or `adamw8bit`.
    pub kind: OptimizerKind,
    /// Peak learning rate, before the schedule's factor. Default 2e-4.
    pub learning_rate: f64,
    /// Decay of the first and second moment. Default [0.9, 0.999].
    pub betas: [f64; 2],
    /// Added to the denominator. Default 1e-8.
    pub eps: f64,
    /// Decoupled weight decay; norms and biases are never decayed. Default 0.
    pub weight_decay: f64,
    /// Largest global gradient norm; 0 turns clipping off. Default 0.3.
    pub max_grad_norm: f64,
    /// LoRA+: learning rate of every LoRA B divided by that of A. Default 1.
    pub lora_plus_ratio: f64,
    /// Learning rate of trainable embeddings and head, if another. Default: `learning_rate`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub embedding_learning_rate: Option<f64>,
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        OptimizerConfig {
            kind: OptimizerKind::AdamW,
            learning_rate: 2e-4,
            betas: [0.9, 0.999],
            eps: 1e-8,
            weight_decay: 0.0,
            max_grad_norm: 0.3,
            lora_plus_ratio: 1.0,
            embedding_learning_rate: None,
        }
    }
}

impl OptimizerConfig {
    /// The optimizer that this configures.
    pub fn build(&self, store: &ParamStore) -> Box<dyn Optimizer> {
        self.kind.build(self, store)
    }

    /// The learning rates of a step whose schedule factor is `multiplier`.
    pub fn learning_rates(&self, multiplier: f64) -> LearningRates {
        let embedding = self.embedding_learning_rate.unwrap_or(self.learning_rate);
        LearningRates {
            base: self.learning_rate * multiplier,
            lora_b: self.learning_rate * self.lora_plus_ratio * multiplier,
            embedding: embedding * multiplier,
        }
    }

    /// Weight decay of a kind of parameter.
    pub(super) fn decay_of(&self, kind: ParamKind) -> f64 {
        match kind {
            ParamKind::Norm | ParamKind::Bias => 0.0,
            _ => self.weight_decay,
        }
    }

    /// Everything wrong with the values, one `key = value: what was expected` each.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut expect = |fine: bool, key: &str, value: f64, expected: &str| {
            if !fine {
                problems.push(format!("{key} = {value}: expected {expected}"));
            }
        };
        let positive = |value: f64| value > 0.0 && value.is_finite();
        let not_negative = |value: f64| value >= 0.0 && value.is_finite();
        expect(positive(self.learning_rate), "learning_rate", self.learning_rate, "a number above 0");
        for (index, beta) in self.betas.into_iter().enumerate() {
            let key = ["betas[0]", "betas[1]"][index];
            expect((0.0..1.0).contains(&beta), key, beta, "a number from 0 to below 1");
        }
        expect(positive(self.eps), "eps", self.eps, "a number above 0");
        expect(not_negative(self.weight_decay), "weight_decay", self.weight_decay, "0 or more");
        expect(not_negative(self.max_grad_norm), "max_grad_norm", self.max_grad_norm, "0 (no clipping) or more");
        expect(positive(self.lora_plus_ratio), "lora_plus_ratio", self.lora_plus_ratio, "a number above 0");
        if let Some(rate) = self.embedding_learning_rate {
            expect(positive(rate), "embedding_learning_rate", rate, "a number above 0");
        }
        problems
    }
}

/// Learning rates of one step, by kind of parameter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LearningRates {
    /// Of everything not named below.
    pub base: f64,
    /// Of every LoRA B.
    pub lora_b: f64,
    /// Of embeddings and head.
    pub embedding: f64,
}

impl LearningRates {
    /// One rate for all.
    pub fn uniform(rate: f64) -> LearningRates {
        LearningRates { base: rate, lora_b: rate, embedding: rate }
    }

    /// The rate of a kind of parameter.
    pub fn of(&self, kind: ParamKind) -> f64 {
        match kind {
            ParamKind::LoraB => self.lora_b,
            ParamKind::Embedding | ParamKind::Head => self.embedding,
            _ => self.base,
        }
    }
}
