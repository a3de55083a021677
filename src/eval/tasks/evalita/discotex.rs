//! DisCoTEX: coherence of texts — does the last sentence follow (1), and how coherent do people find it (2).

use super::rows::units;
use super::{flag, rows, well_formed, yes_no};
use crate::eval::metrics::correlation::{harmonic, pearson, spearman};
use crate::eval::metrics::labels::{accuracy, agrees, macro_f1};
use crate::eval::task::Answer;
use crate::eval::{Example, Metric, Task, Unit};

/// Subtask 1.
pub const ONE: Task = Task {
    name: "discotex_1",
    about: "EVALITA 2023: does the last sentence follow?",
    source: "ExtremITA's rows; accuracy (closest known to the organisers')",
    load: |path| rows::load(path, "discotex_1", yes_no::SHORT),
    judge: yes_no::judge,
    metrics: &[Metric::share("acc", accuracy, agrees), Metric::higher("macro_f1", macro_f1), well_formed::<2>()],
};

/// Subtask 2.
pub const TWO: Task = Task {
    name: "discotex_2",
    about: "EVALITA 2023: how coherent is a text, from 0 to 5?",
    source: "ExtremITA's rows; harmonic mean of Pearson and Spearman (closest known to the organisers')",
    load: |path| rows::load(path, "discotex_2", yes_no::SHORT),
    judge,
    metrics: &[
        Metric::higher("harmonic", harmonic),
        Metric::higher("pearson", pearson::<0>),
        Metric::higher("spearman", spearman),
        well_formed::<2>(),
    ],
};

/// What stands for an answer that is no number: the middle of the scale (ExtremITA has no rule here).
const MIDDLE: f64 = 2.5;

/// Evidence: right and given score, well-formed.
fn judge(answered: &[(&Example, &Answer)]) -> Vec<Unit> {
    units(answered, &|_, gold, given| {
        let given = number(given);
        vec![number(gold).unwrap_or(MIDDLE), given.unwrap_or(MIDDLE), flag(given.is_some())]
    })
}

/// A number; a comma may stand for the point, and a full stop behind it.
pub fn number(text: &str) -> Option<f64> {
    let text = text.trim().trim_end_matches(['.', ',', ';']).replace(',', ".");
    text.parse().ok().filter(|number: &f64| number.is_finite())
}

#[cfg(test)]
mod tests {
    use super::super::rows::testing::judge;
    use super::*;

    #[test]
    fn scores_by_hand() {
        let rows = [("", "3.4", "3,5."), ("", "4.0", "abbastanza"), ("", "1", "inf")];
        assert_eq!(judge(&TWO, &rows), [[3.4, 3.5, 1.0], [4.0, 2.5, 0.0], [1.0, 2.5, 0.0]]);
        assert_eq!(judge(&ONE, &[("", "sì", "non_coerente")]), [[1.0, 0.0, 0.0]]);
    }
}
