//! ACTI: conspiracy theories — whether (A) and which (B).

use super::rows::{label, units};
use super::{flag, rows, well_formed, yes_no};
use crate::eval::metrics::labels::{accuracy, agrees, macro_f1};
use crate::eval::task::Answer;
use crate::eval::{Example, Metric, Task, Unit};

/// Subtask A.
pub const A: Task = Task {
    name: "acti_a",
    about: "EVALITA 2023: does a text speak of a conspiracy?",
    source: "ExtremITA's rows; macro-F1 (a participant's account)",
    load: |path| rows::load(path, "acti_a", yes_no::SHORT),
    judge: yes_no::judge,
    metrics: yes_no::MACRO_F1,
};

/// Subtask B.
pub const B: Task = Task {
    name: "acti_b",
    about: "EVALITA 2023: which conspiracy theory?",
    source: "ExtremITA's rows and decoder; macro-F1 (a participant's account)",
    load: |path| rows::load(path, "acti_b", yes_no::SHORT),
    judge,
    metrics: &[Metric::higher("macro_f1", macro_f1), Metric::share("acc", accuracy, agrees), well_formed::<2>()],
};

/// Names of the theories and the organisers' numbers for them.
const NAMES: [&str; 7] = ["Covid", "Qanon", "Climate Change", "Russia", "Ucraina", "Terra Piatta", "Terrapiattista"];
const NUMBERS: [f64; 7] = [0.0, 1.0, 1.0, 2.0, 2.0, 3.0, 3.0];

/// Evidence: right and given number, well-formed. What is no theory counts as Covid, the most frequent one.
fn judge(answered: &[(&Example, &Answer)]) -> Vec<Unit> {
    let number = |text: &str| label(text, &NAMES).map(|place| NUMBERS[place]);
    units(answered, &|_, gold, given| {
        let given = number(given);
        vec![number(gold).unwrap_or(0.0), given.unwrap_or(0.0), flag(given.is_some())]
    })
}

#[cfg(test)]
mod tests {
    use super::super::rows::testing::judge;
    use super::*;

    #[test]
    fn theories_by_hand() {
        let rows = [("", "Terra Piatta", "terrapiattista"), ("", "Russia", "Ucraina"), ("", "Qanon", "non saprei")];
        assert_eq!(judge(&B, &rows), [[3.0, 3.0, 1.0], [2.0, 2.0, 1.0], [1.0, 0.0, 0.0]]);
    }
}
