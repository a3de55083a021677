//! Learning-rate schedules: the factor of the peak learning rate that optimizer step `i` (from 0) of `n` uses.
//!
//! With w warm-up steps, step i < w has i/w: the first step of a warm-up has learning rate 0. Then
//! constant: 1; linear: max(0, (n-i)/(n-w)); cosine: max(0, (1+cos(π(i-w)/(n-w)))/2).
//! Reference: `get_{constant,linear,cosine}_schedule_with_warmup` of transformers, and the Trainer's ratio rule.

use serde::{Deserialize, Serialize};

/// Shape after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScheduleKind {
    /// Stays at the peak.
    Constant,
    /// A straight line down to 0 at the last step.
    Linear,
    /// Half a cosine down to 0 at the last step.
    #[default]
    Cosine,
}

/// Options of the schedule.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ScheduleConfig {
    /// `constant`, `linear` or `cosine` (default).
    pub kind: ScheduleKind,
    /// Warm-up steps; when given, `warmup_ratio` plays no part.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warmup_steps: Option<u64>,
    /// Warm-up as a part of all steps, rounded up. Default 0.03.
    pub warmup_ratio: f64,
}

impl Default for ScheduleConfig {
    fn default() -> Self {
        ScheduleConfig { kind: ScheduleKind::Cosine, warmup_steps: None, warmup_ratio: 0.03 }
    }
}

impl ScheduleConfig {
    /// Warm-up steps in a run of `total` steps.
    pub fn warmup(&self, total: u64) -> u64 {
        self.warmup_steps.unwrap_or_else(|| (total as f64 * self.warmup_ratio).ceil() as u64)
    }

    /// Factor of the learning rate at `step` (from 0) of `total`.
    pub fn multiplier(&self, step: u64, total: u64) -> f64 {
        let warmup = self.warmup(total);
        if step < warmup {
            return step as f64 / warmup as f64;
        }
        let length = total.saturating_sub(warmup).max(1) as f64;
        match self.kind {
            ScheduleKind::Constant => 1.0,
            ScheduleKind::Linear => ((total as f64 - step as f64) / length).max(0.0),
            ScheduleKind::Cosine => {
                let progress = (step - warmup) as f64 / length;
                (0.5 * (1.0 + (std::f64::consts::PI * progress).cos())).max(0.0)
            }
        }
    }

    /// Everything wrong with the values, one `key = value: what was expected` each.
    pub fn problems(&self) -> Vec<String> {
        if (0.0..=1.0).contains(&self.warmup_ratio) {
            return Vec::new();
        }
        vec![format!("warmup_ratio = {}: expected a number from 0 to 1", self.warmup_ratio)]
    }
}
