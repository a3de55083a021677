//! Options of the adapters.

use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// A linear of the decoder block that can carry an adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Target {
    /// Queries.
    #[serde(rename = "q_proj")]
    Q,
    /// Keys.
    #[serde(rename = "k_proj")]
    K,
    /// Values.
    #[serde(rename = "v_proj")]
    V,
    /// Attention output.
    #[serde(rename = "o_proj")]
    O,
    /// Gate of the MLP.
    #[serde(rename = "gate_proj")]
    Gate,
    /// Input of the MLP.
    #[serde(rename = "up_proj")]
    Up,
    /// Output of the MLP.
    #[serde(rename = "down_proj")]
    Down,
}

impl Target {
    /// All of them, in the block's order.
    pub const ALL: [Target; 7] = [Target::Q, Target::K, Target::V, Target::O, Target::Gate, Target::Up, Target::Down];

    /// The model's name of it.
    pub fn name(self) -> &'static str {
        match self {
            Target::Q => "q_proj",
            Target::K => "k_proj",
            Target::V => "v_proj",
            Target::O => "o_proj",
            Target::Gate => "gate_proj",
            Target::Up => "up_proj",
            Target::Down => "down_proj",
        }
    }

    /// What the linear `name` (such as `model.layers.0.self_attn.q_proj`) is.
    pub fn of(name: &str) -> Option<Target> {
        let last = name.rsplit('.').next();
        Target::ALL.into_iter().find(|target| last == Some(target.name()))
    }
}

/// `[lora]`: rank, scale and place of the adapters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoraConfig {
    /// Rank. Default 16.
    pub r: usize,
    /// The adapter's output is scaled by alpha/r (alpha/√r with `rslora`). Default 16.
    pub alpha: f64,
    /// Probability of dropping an element of the adapter's input in training. Default 0.
    pub dropout: f32,
    /// Linears that get an adapter. Default: all seven.
    pub targets: Vec<Target>,
    /// Scale by alpha/√r. Default false.
    pub rslora: bool,
    /// DoRA: train a magnitude for each output row. Default false.
    pub dora: bool,
    /// What an adapter's files say beyond this; empty for a fresh adapter.
    #[serde(skip)]
    pub modules: Modules,
}

/// Exceptions of single linears, as adapters made elsewhere have them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Modules {
    /// Full names of the linears that have an adapter, in place of `targets`.
    pub only: Option<BTreeSet<String>>,
    /// Rank by name or end of name; the first that fits wins over `r`.
    pub ranks: Vec<(String, usize)>,
    /// Alpha by name or end of name; the first that fits wins over `alpha`.
    pub alphas: Vec<(String, f64)>,
}

impl Default for LoraConfig {
    fn default() -> Self {
        LoraConfig {
            r: 16,
            alpha: 16.0,
            dropout: 0.0,
            targets: Target::ALL.to_vec(),
            rslora: false,
            dora: false,
            modules: Modules::default(),
        }
    }
}

impl LoraConfig {
    /// Whether the linear `name` gets an adapter.
    pub fn applies_to(&self, name: &str) -> bool {
        match &self.modules.only {
            Some(names) => names.contains(name),
            None => Target::of(name).is_some_and(|target| self.targets.contains(&target)),
        }
    }

    /// Rank of the linear `name`.
    pub fn rank_of(&self, name: &str) -> usize {
        exception(&self.modules.ranks, name).unwrap_or(self.r)
    }

    /// Alpha of the linear `name`.
    pub fn alpha_of(&self, name: &str) -> f64 {
        exception(&self.modules.alphas, name).unwrap_or(self.alpha)
    }

    /// Factor of the adapter's output of the linear `name`.
    pub fn scale_of(&self, name: &str) -> f32 {
        let rank = self.rank_of(name) as f64;
        (self.alpha_of(name) / if self.rslora { rank.sqrt() } else { rank }) as f32
    }

    /// Everything wrong with the values, one `key = value: what was expected` each.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.r == 0 || self.r > 4096 {
            problems.push(format!("r = {}: expected 1 to 4096", self.r));
        }
        if !(self.alpha.is_finite() && self.alpha > 0.0) {
            problems.push(format!("alpha = {}: expected a number above 0", self.alpha));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            problems.push(format!("dropout = {}: expected a number from 0 to below 1", self.dropout));
        }
        if self.targets.is_empty() {
            problems.push("targets = []: expected at least one linear, e.g. \"q_proj\"".into());
        }
        problems
    }
}

/// Whether `pattern` is the linear's name or the end of it after a dot.
pub(super) fn names(pattern: &str, linear: &str) -> bool {
    linear.strip_suffix(pattern).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

fn exception<T: Copy>(exceptions: &[(String, T)], name: &str) -> Option<T> {
    exceptions.iter().find(|(pattern, _)| names(pattern, name)).map(|&(_, value)| value)
}
