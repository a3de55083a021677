//! Subtasks answered by `sì` or `no`: acti_a, discotex_1, haspeede, hodi_a, and what langlearn and wicita share with
//! them.
//!
//! Evidence: right and given label (1 for `sì`), well-formed. Anything but `sì` (or `si`) counts as `no`, as in
//! ExtremITA: the label itself (`odio`) too, for it is not what was asked for.

use super::rows::{plain, units};
use super::{flag, rows, well_formed};
use crate::eval::metrics::labels::{accuracy, agrees, macro_f1};
use crate::eval::task::Answer;
use crate::eval::{Example, Metric, Task, Unit};

/// Tokens of an answer of one word.
pub const SHORT: usize = 16;

/// Ranked by macro-F1.
pub const MACRO_F1: &[Metric] =
    &[Metric::higher("macro_f1", macro_f1), Metric::share("acc", accuracy, agrees), well_formed::<2>()];

/// HaSpeeDe 3, subtask A: hate speech.
pub const HASPEEDE: Task = Task {
    name: "haspeede",
    about: "EVALITA 2023: does a text express hate?",
    source: "ExtremITA's rows; macro-F1 (mirkolai/EVALITA2023-HaSpeeDe3)",
    load: |path| rows::load(path, "haspeede", SHORT),
    judge,
    metrics: MACRO_F1,
};

/// HODI, subtask A: hate of homosexual and transgender persons.
pub const HODI_A: Task = Task {
    name: "hodi_a",
    about: "EVALITA 2023: does a text express homotransphobic hate?",
    source: "ExtremITA's rows; macro-F1 (closest known to the organisers')",
    load: |path| rows::load(path, "hodi_a", SHORT),
    judge,
    metrics: MACRO_F1,
};

/// Judges answers to a question of yes or no.
pub fn judge(answered: &[(&Example, &Answer)]) -> Vec<Unit> {
    units(answered, &|_, gold, given| {
        let given = plain(given);
        let is_yes = given == "sì" || given == "si";
        vec![flag(gold == "sì"), flag(is_yes), flag(is_yes || given == "no")]
    })
}

#[cfg(test)]
mod tests {
    use super::super::rows::testing::judge;
    use super::*;

    #[test]
    fn answers_by_hand() {
        let rows = [("", "sì", "Sì."), ("", "no", "no"), ("", "sì", "boh, sì"), ("", "no", "odio"), ("", "no", "")];
        let found = judge(&HASPEEDE, &rows);
        assert_eq!(found, [[1.0, 1.0, 1.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]);
        let rows: Vec<&[f64]> = found.iter().map(Vec::as_slice).collect();
        // F1(1) = 2·1 / (2 + 0 + 1), F1(0) = 2·3 / (6 + 1 + 0).
        assert!(((MACRO_F1[0].of)(&rows) - (2.0 / 3.0 + 6.0 / 7.0) / 2.0).abs() < 1e-12);
        assert_eq!((MACRO_F1[2].of)(&rows), 0.4);
    }
}
