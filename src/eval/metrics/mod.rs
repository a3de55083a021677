//! Metrics: numbers from the units of a task.
//!
//! Legend: a unit's evidence is a row of numbers. [`labels`] read pairs (right label, given label), [`mean`] single
//! values, [`text`] sums over tokens, [`correlation`] pairs of numbers, [`spans`] counts.

pub mod correlation;
pub mod labels;
pub mod mean;
pub mod spans;
pub mod text;

/// What is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Better {
    /// A larger value.
    Higher,
    /// A smaller value.
    Lower,
}

/// A number computed from the evidence of any number of units (at least one).
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    /// Its name in results.
    pub name: &'static str,
    /// What is better.
    pub better: Better,
    /// The computation; NaN where it is not defined.
    pub of: fn(&[&[f64]]) -> f64,
    /// For metrics that are a share of right answers: whether a unit is right. McNemar's test needs it.
    pub right: Option<fn(&[f64]) -> bool>,
}

impl Metric {
    /// A metric of which more is better.
    pub const fn higher(name: &'static str, of: fn(&[&[f64]]) -> f64) -> Metric {
        Metric { name, better: Better::Higher, of, right: None }
    }

    /// A metric of which less is better.
    pub const fn lower(name: &'static str, of: fn(&[&[f64]]) -> f64) -> Metric {
        Metric { name, better: Better::Lower, of, right: None }
    }

    /// A share of right answers.
    pub const fn share(name: &'static str, of: fn(&[&[f64]]) -> f64, right: fn(&[f64]) -> bool) -> Metric {
        Metric { name, better: Better::Higher, of, right: Some(right) }
    }
}

/// F1 = 2·hits / (given + wanted), the harmonic mean of precision and recall; 0 where that is 0/0.
pub fn f1(hits: f64, given: f64, wanted: f64) -> f64 {
    match given + wanted {
        total if total > 0.0 => 2.0 * hits / total,
        _ => 0.0,
    }
}
