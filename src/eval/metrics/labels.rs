//! Metrics of labels. Evidence: pairs (right label, given label), as small whole numbers; several pairs a unit make
//! several columns.
//!
//! For a label c: tp, fp, fn counts over all units; F1(c) = 2·tp / (2·tp + fp + fn). Macro-F1 is the mean over the labels
//! that occur, right or given; weighted F1 weighs each by how often it is right. Reference: scikit-learn's `f1_score`
//! with `zero_division=0` and its default set of labels.

use super::f1;
use std::collections::BTreeMap;

/// Counts of one label.
#[derive(Debug, Default, Clone, Copy)]
struct Counts {
    hits: f64,
    given: f64,
    wanted: f64,
}

/// Counts of every label that occurs in the pair of columns at `column`.
fn count(units: &[&[f64]], column: usize) -> BTreeMap<i64, Counts> {
    let mut counts: BTreeMap<i64, Counts> = BTreeMap::new();
    for unit in units {
        let (gold, given) = (unit[column] as i64, unit[column + 1] as i64);
        counts.entry(gold).or_default().wanted += 1.0;
        counts.entry(given).or_default().given += 1.0;
        if gold == given {
            counts.entry(gold).or_default().hits += 1.0;
        }
    }
    counts
}

/// Share of units whose first pair agrees.
pub fn accuracy(units: &[&[f64]]) -> f64 {
    units.iter().filter(|unit| agrees(unit)).count() as f64 / units.len() as f64
}

/// Whether the first pair agrees.
pub fn agrees(unit: &[f64]) -> bool {
    unit[0] == unit[1]
}

/// Macro-F1 of the pair of columns at `column`.
pub fn macro_f1_at(units: &[&[f64]], column: usize) -> f64 {
    let counts = count(units, column);
    counts.values().map(|c| f1(c.hits, c.given, c.wanted)).sum::<f64>() / counts.len() as f64
}

/// Macro-F1 of the first pair.
pub fn macro_f1(units: &[&[f64]]) -> f64 {
    macro_f1_at(units, 0)
}

/// F1 of each label weighted by how often it is right, of the first pair.
pub fn weighted_f1(units: &[&[f64]]) -> f64 {
    let counts = count(units, 0);
    counts.values().map(|c| c.wanted * f1(c.hits, c.given, c.wanted)).sum::<f64>() / units.len() as f64
}

/// F1 of label 1 of the first pair.
pub fn positive_f1(units: &[&[f64]]) -> f64 {
    count(units, 0).get(&1).map_or(0.0, |c| f1(c.hits, c.given, c.wanted))
}

/// Mean of F1(1) over `LABELS` pairs of 0/1 columns: macro-F1 of a multi-label task, as scikit-learn has it.
pub fn multi_label_macro_f1<const LABELS: usize>(units: &[&[f64]]) -> f64 {
    let of = |label: usize| count(units, 2 * label).get(&1).map_or(0.0, |c| f1(c.hits, c.given, c.wanted));
    (0..LABELS).map(of).sum::<f64>() / LABELS as f64
}

/// Mean of the macro-F1 of `PAIRS` pairs.
pub fn mean_macro_f1<const PAIRS: usize>(units: &[&[f64]]) -> f64 {
    (0..PAIRS).map(|pair| macro_f1_at(units, 2 * pair)).sum::<f64>() / PAIRS as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Right 0 0 0 1 1 2, given 0 0 1 1 2 3: label 3 is never right, label 2 never hit.
    const UNITS: [&[f64]; 6] = [&[0.0, 0.0], &[0.0, 0.0], &[0.0, 1.0], &[1.0, 1.0], &[1.0, 2.0], &[2.0, 3.0]];

    fn close(found: f64, wanted: f64) {
        assert!((found - wanted).abs() < 1e-12, "{found}, expected {wanted}");
    }

    #[test]
    fn labels_by_hand() {
        close(accuracy(&UNITS), 0.5);
        // F1(0) = 4/5, F1(1) = 2/4, F1(2) = 0/2, F1(3) = 0/1
        close(macro_f1(&UNITS), (0.8 + 0.5) / 4.0);
        close(weighted_f1(&UNITS), (3.0 * 0.8 + 2.0 * 0.5) / 6.0);
        close(positive_f1(&UNITS), 0.5);
        close(positive_f1(&[&[0.0, 0.0]]), 0.0);
        close(macro_f1(&[&[1.0, 1.0]]), 1.0);
    }

    #[test]
    fn several_labels_by_hand() {
        // Label 0: tp 1, fp 0, fn 1 → 2/3. Label 1: tp 1, fp 1, fn 0 → 2/3. Label 2 never occurs → 0.
        let units: [&[f64]; 3] =
            [&[1.0, 1.0, 0.0, 0.0, 0.0, 0.0], &[1.0, 0.0, 1.0, 1.0, 0.0, 0.0], &[0.0, 0.0, 0.0, 1.0, 0.0, 0.0]];
        close(multi_label_macro_f1::<3>(&units), 4.0 / 9.0);
        // The first pair as labels 0 and 1: F1(0) = 2/3, F1(1) = 2/3; the second: F1(0) = 2/3, F1(1) = 2/3.
        close(mean_macro_f1::<2>(&units), 2.0 / 3.0);
    }
}
