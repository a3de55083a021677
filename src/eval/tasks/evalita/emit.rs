//! EMit: emotions in messages about television (A), and what these speak of (B).
//!
//! As in ExtremITA a label is given if its word stands anywhere in the answer. Evidence: right and given, 0 or 1, for
//! each label in turn; then well-formed: at least one label is given. A row of subtask A without a target expresses
//! none of them.

use super::rows::{plain, units};
use super::{flag, rows, well_formed};
use crate::eval::metrics::labels::multi_label_macro_f1;
use crate::eval::task::Answer;
use crate::eval::{Example, Metric, Task, Unit};

/// Subtask A.
pub const A: Task = Task {
    name: "emit_a",
    about: "EVALITA 2023: which emotions does a text express?",
    source: "ExtremITA's rows and decoder; macro-F1 over labels (abstract of the organisers' overview)",
    load: |path| rows::load_or(path, "emit_a", 48, Some("")),
    judge: |answered| judge(answered, &EMOTIONS.map(|emotion| [emotion].to_vec())),
    metrics: &[Metric::higher("macro_f1", multi_label_macro_f1::<10>), well_formed::<20>()],
};

/// Subtask B.
pub const B: Task = Task {
    name: "emit_b",
    about: "EVALITA 2023: does a text speak of the topic, of the direction, of both?",
    source: "ExtremITA's rows and decoder; macro-F1 over labels (abstract of the organisers' overview)",
    load: |path| rows::load(path, "emit_b", 16),
    judge: |answered| judge(answered, &[["direzione", "entrambi"].to_vec(), ["argomento", "entrambi"].to_vec()]),
    metrics: &[Metric::higher("macro_f1", multi_label_macro_f1::<2>), well_formed::<4>()],
};

const EMOTIONS: [&str; 10] =
    ["rabbia", "anticipazione", "disgusto", "paura", "gioia", "amore", "neutro", "tristezza", "sorpresa", "fiducia"];

/// A label is given by any of its words.
fn judge(answered: &[(&Example, &Answer)], labels: &[Vec<&str>]) -> Vec<Unit> {
    units(answered, &|_, gold, given| {
        let given = plain(given);
        let has = |text: &str, words: &[&str]| words.iter().any(|word| text.contains(word));
        let mut evidence: Vec<f64> =
            labels.iter().flat_map(|words| [flag(has(gold, words)), flag(has(&given, words))]).collect();
        let unspecified = given == "non_specificato" || given == "non specificato";
        evidence.push(flag(unspecified || labels.iter().any(|words| has(&given, words))));
        evidence
    })
}

#[cfg(test)]
mod tests {
    use super::super::rows::testing::judge;
    use super::*;

    #[test]
    fn labels_by_hand() {
        let found = judge(&A, &[("", "gioia sorpresa", "Gioia, paura"), ("", "neutro", "mah")]);
        let labels = |row: &[f64], part: usize| -> Vec<&str> {
            (0..10).filter(|label| row[2 * label + part] == 1.0).map(|label| EMOTIONS[label]).collect()
        };
        assert_eq!((labels(&found[0], 0), labels(&found[0], 1)), (vec!["gioia", "sorpresa"], vec!["paura", "gioia"]));
        assert_eq!((labels(&found[1], 0), labels(&found[1], 1)), (vec!["neutro"], vec![]));
        assert_eq!((found[0][20], found[1][20]), (1.0, 0.0));
        // Only gioia is right: F1 1; sorpresa, paura, neutro 0; six labels that never occur 0.
        let rows: Vec<&[f64]> = found.iter().map(Vec::as_slice).collect();
        assert!(((A.metrics[0].of)(&rows) - 0.1).abs() < 1e-12);
    }

    #[test]
    fn both_is_both() {
        let rows = [
            ("", "direzione_argomento", "entrambi"),
            ("", "argomento", "direzione_argomento"),
            ("", "non_specificato", "non specificato"),
        ];
        let expected = [[1.0, 1.0, 1.0, 1.0, 1.0], [0.0, 1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0, 1.0]];
        assert_eq!(judge(&B, &rows), expected);
    }
}
