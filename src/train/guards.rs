//! What watches over a run's losses: left-out steps and loss spikes.
//!
//! Invariant: a guard's answer is a function of the losses it was shown, and its memory is part of a checkpoint, so that a
//! resumed run stops (or warns) exactly where the uninterrupted one does.

use crate::checkpoint::{Skips, SpikeMemory};
use crate::config::{Problems, Section};
use serde::{Deserialize, Serialize};

/// `[training.spike]`: what happens when the loss jumps up and stays up.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SpikeConfig {
    /// `warn` (default), `stop` or `off`.
    pub action: SpikeAction,
    /// Losses that the mean is taken of; nothing is a spike before there are so many.
    pub window: usize,
    /// A loss is an outlier from this many times the mean on.
    pub multiplier: f64,
    /// More outliers in a row than this are a spike.
    pub patience: u64,
}

/// See [`SpikeConfig::action`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SpikeAction {
    /// Says so and goes on.
    #[default]
    Warn,
    /// Ends the run; earlier checkpoints stay.
    Stop,
    /// Nothing.
    Off,
}

impl Default for SpikeConfig {
    fn default() -> SpikeConfig {
        SpikeConfig { action: SpikeAction::Warn, window: 100, multiplier: 2.0, patience: 4 }
    }
}

impl Section for SpikeConfig {
    fn check(&self, problems: &mut Problems) {
        problems.expect((100..=1 << 20).contains(&self.window), "window", "from 100 to 1048576", self.window);
        let multiplier = self.multiplier;
        problems.expect(multiplier > 1.0 && multiplier.is_finite(), "multiplier", "a number above 1", multiplier);
    }
}

/// A loss that stays far above what it was.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spike {
    /// Outliers in a row.
    pub outliers: u64,
    /// The latest one.
    pub loss: f64,
    /// Mean of the window before it.
    pub mean: f64,
}

/// Finds loss spikes as `KillLossSpike` of llm-foundry does: a loss of at least `multiplier` times the mean of the last
/// `window` losses is an outlier, more than `patience` outliers in a row are a spike. Outliers enter the window too.
#[derive(Debug, Clone)]
pub struct SpikeDetector {
    config: SpikeConfig,
    memory: SpikeMemory,
}

impl SpikeDetector {
    /// With an empty window.
    pub fn new(config: &SpikeConfig) -> SpikeDetector {
        SpikeDetector { config: config.clone(), memory: SpikeMemory::default() }
    }

    /// What a checkpoint keeps.
    pub fn memory(&self) -> &SpikeMemory {
        &self.memory
    }

    /// Goes on from a saved memory; of a longer window the latest losses are kept.
    pub fn restore(&mut self, memory: SpikeMemory) {
        self.memory = memory;
        let excess = self.memory.window.len().saturating_sub(self.config.window);
        self.memory.window.drain(..excess);
    }

    /// The loss of the next step. A spike is reported at its first step and at every further outlier.
    pub fn observe(&mut self, loss: f64) -> Option<Spike> {
        let SpikeMemory { window, outliers } = &mut self.memory;
        let mut spike = None;
        if window.len() >= self.config.window {
            let mean = window.iter().sum::<f64>() / window.len() as f64;
            *outliers = if loss >= mean * self.config.multiplier { *outliers + 1 } else { 0 };
            if *outliers > self.config.patience && self.config.action != SpikeAction::Off {
                spike = Some(Spike { outliers: *outliers, loss, mean });
            }
            window.pop_front();
        }
        window.push_back(loss);
        spike
    }
}

/// Counts left-out steps.
#[derive(Debug, Clone, Copy)]
pub struct SkipCounter {
    most_in_a_row: u64,
    skips: Skips,
}

impl SkipCounter {
    /// `most_in_a_row` left-out steps, one after the other, are too many; 0: never too many.
    pub fn new(most_in_a_row: u64) -> SkipCounter {
        SkipCounter { most_in_a_row, skips: Skips::default() }
    }

    /// What a checkpoint keeps.
    pub fn skips(&self) -> Skips {
        self.skips
    }

    /// Goes on from a saved count.
    pub fn restore(&mut self, skips: Skips) {
        self.skips = skips;
    }

    /// A step was done (`updated`) or left out; true when that makes too many.
    pub fn observe(&mut self, updated: bool) -> bool {
        let Skips { total, in_a_row } = &mut self.skips;
        if updated {
            *in_a_row = 0;
            return false;
        }
        *total += 1;
        *in_a_row += 1;
        self.most_in_a_row > 0 && *in_a_row >= self.most_in_a_row
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn detector(window: usize, patience: u64) -> SpikeDetector {
        SpikeDetector::new(&SpikeConfig { window, patience, ..SpikeConfig::default() })
    }

    #[test]
    fn a_spike_is_patience_plus_one_outliers_in_a_row() {
        let mut detector = detector(4, 2);
        let found: Vec<bool> =
            [1.0, 1.0, 1.0, 1.0, 9.0, 9.0, 1.0, 99.0, 99.0, 999.0].map(|l| detector.observe(l).is_some()).into();
        assert_eq!(found, [false, false, false, false, false, false, false, false, false, true]);
    }

    #[test]
    fn nothing_is_a_spike_before_the_window_is_full() {
        let mut detector = detector(100, 0);
        assert!((0..100).all(|step| detector.observe(f64::from(10 * step)).is_none()));
        let spike = detector.observe(990.0).unwrap();
        assert_eq!((spike.outliers, spike.mean), (1, 495.0));
    }

    #[test]
    fn outliers_enter_the_window_and_exactly_twice_the_mean_is_one() {
        let mut detector = detector(2, 0);
        detector.observe(1.0);
        detector.observe(1.0);
        assert_eq!(detector.observe(2.0).unwrap().mean, 1.0);
        assert!(detector.observe(2.5).is_none(), "the mean is 1.5 by now");
    }

    #[test]
    fn a_restored_detector_answers_like_the_one_that_was_saved() {
        let losses: Vec<f64> =
            (0..400).map(|i| 2.0 + f64::from(i % 7) + if i % 90 > 80 { 60.0 } else { 0.0 }).collect();
        let mut whole = detector(100, 4);
        let expected: Vec<_> = losses.iter().map(|&loss| whole.observe(loss)).collect();
        assert!(expected.iter().any(Option::is_some));
        for cut in [0, 99, 100, 183, 265, 399] {
            let mut first = detector(100, 4);
            for &loss in &losses[..cut] {
                first.observe(loss);
            }
            let mut second = detector(100, 4);
            second.restore(first.memory().clone());
            let rest: Vec<_> = losses[cut..].iter().map(|&loss| second.observe(loss)).collect();
            assert_eq!(rest, expected[cut..]);
        }
    }

    #[test]
    fn off_finds_nothing() {
        let config = SpikeConfig { action: SpikeAction::Off, window: 1, patience: 0, ..SpikeConfig::default() };
        let mut detector = SpikeDetector::new(&config);
        assert!((0..10).all(|step| detector.observe(10f64.powi(step)).is_none()));
    }

    #[test]
    fn skips_count_in_a_row_and_in_all() {
        let mut counter = SkipCounter::new(2);
        let stops: Vec<bool> = [false, true, false, false].map(|updated| counter.observe(updated)).into();
        assert_eq!(stops, [false, false, false, true]);
        assert_eq!(counter.skips(), Skips { total: 3, in_a_row: 2 });
        let mut never = SkipCounter::new(0);
        assert!((0..50).all(|_| !never.observe(false)));
    }
}
