//! WiC-ITA: does a word mean the same in two sentences (1), and how near are its meanings (2)?

use super::discotex::number;
use super::rows::units;
use super::{flag, rows, well_formed, yes_no};
use crate::eval::metrics::correlation::spearman;
use crate::eval::metrics::labels::{accuracy, agrees, macro_f1, positive_f1};
use crate::eval::{Metric, Task};

const F1: &[Metric] = &[
    Metric::higher("f1", positive_f1),
    Metric::higher("macro_f1", macro_f1),
    Metric::share("acc", accuracy, agrees),
    well_formed::<2>(),
];

/// Subtask 1.
pub const TASK: Task = Task {
    name: "wicita",
    about: "EVALITA 2023: does a word mean the same in two sentences?",
    source: "ExtremITA's rows; F1 (the task's page; of `uguale`: which average it does not say)",
    load: |path| rows::load(path, "wicita", yes_no::SHORT),
    judge: yes_no::judge,
    metrics: F1,
};

/// Subtask 1 in the tutorial's files, which name the word in the target.
pub const TUTORIAL_ONE: Task = Task {
    name: "wicita_1",
    about: "EVALITA 2023: does a word mean the same? (tutorial's rows)",
    load: |path| rows::load(path, "wicita_1", yes_no::SHORT),
    ..TASK
};

/// Subtask 2, which only the tutorial's files have. Evidence: right and given nearness, well-formed.
pub const TUTORIAL_TWO: Task = Task {
    name: "wicita_2",
    about: "EVALITA 2023: how near are two meanings, from 1 to 4? (tutorial's rows)",
    source: "ExtremITA's tutorial; Spearman (the task's page)",
    load: |path| rows::load(path, "wicita_2", yes_no::SHORT),
    judge: |answered| {
        units(answered, &|_, gold, given| {
            let given = number(given);
            vec![number(gold).unwrap_or(MIDDLE), given.unwrap_or(MIDDLE), flag(given.is_some())]
        })
    },
    metrics: &[Metric::higher("spearman", spearman), well_formed::<2>()],
};

/// What stands for an answer that is no number: the middle of the scale.
const MIDDLE: f64 = 2.5;

#[cfg(test)]
mod tests {
    use super::super::rows::testing::judge;
    use super::*;

    #[test]
    fn meanings_by_hand() {
        let rows = [("", "sì", "Sì"), ("", "no", "No."), ("", "sì", "no"), ("", "no", "sì"), ("", "sì", "si")];
        let found = judge(&TASK, &rows);
        let rows: Vec<&[f64]> = found.iter().map(Vec::as_slice).collect();
        assert!(((F1[0].of)(&rows) - 2.0 * 2.0 / 6.0).abs() < 1e-12);
        assert!(((F1[1].of)(&rows) - (2.0 / 3.0 + 0.5) / 2.0).abs() < 1e-12);
        assert_eq!(judge(&TUTORIAL_TWO, &[("", "3.5", "4"), ("", "1.0", "poco")]), [[3.5, 4.0, 1.0], [1.0, 2.5, 0.0]]);
    }
}
