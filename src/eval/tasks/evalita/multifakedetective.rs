//! MULTI-Fake-DetectiVE, task 1, from the text alone: how likely is it that what a message tells is true?

use super::rows::{label, units};
use super::{flag, rows, well_formed, yes_no};
use crate::eval::metrics::labels::{accuracy, agrees, macro_f1, weighted_f1};
use crate::eval::task::Answer;
use crate::eval::{Example, Metric, Task, Unit};

/// The subtask.
pub const TASK: Task = Task {
    name: "multifakedetective",
    about: "EVALITA 2023: how likely is a message true?",
    source: "ExtremITA's rows and decoder; weighted F1 (closest known to the organisers')",
    load: |path| rows::load(path, "multifakedetective", yes_no::SHORT),
    judge,
    metrics: &[
        Metric::higher("weighted_f1", weighted_f1),
        Metric::higher("macro_f1", macro_f1),
        Metric::share("acc", accuracy, agrees),
        well_formed::<2>(),
    ],
};

const LABELS: [&str; 4] = ["certamente falso", "probabilmente falso", "probabilmente vero", "certamente vero"];
/// What anything else counts as: the most frequent label.
const FREQUENT: usize = 2;

/// Evidence: right and given label, well-formed.
fn judge(answered: &[(&Example, &Answer)]) -> Vec<Unit> {
    units(answered, &|_, gold, given| {
        let given = label(given, &LABELS);
        let number = |place: Option<usize>| place.unwrap_or(FREQUENT) as f64;
        vec![number(label(gold, &LABELS)), number(given), flag(given.is_some())]
    })
}

#[cfg(test)]
mod tests {
    use super::super::rows::testing::judge;
    use super::*;

    #[test]
    fn labels_by_hand() {
        let rows = [("", "certamente vero", "Certamente vero."), ("", "certamente falso", "falso")];
        assert_eq!(judge(&TASK, &rows), [[3.0, 3.0, 1.0], [0.0, 2.0, 0.0]]);
    }
}
