//! HODI, subtask B: which words of a text express homotransphobic hate.
//!
//! The answer holds stretches of the text, `[gap]` between them. As in ExtremITA, each stretch is looked for in the
//! text without regard to capitals, up to the last word that still fits; its first place counts. The right answers of
//! the tutorial's files have no marks between the stretches: there, what no longer fits begins the next stretch.
//! Evidence: characters found rightly, given, wanted; well-formed: some of the answer stands in the text.

use super::rows::units;
use super::{flag, rows, well_formed};
use crate::eval::metrics::spans::{mean_f1, micro_f1};
use crate::eval::task::Answer;
use crate::eval::{Example, Metric, Task, Unit};
use std::collections::BTreeSet;

/// The subtask.
pub const TASK: Task = Task {
    name: "hodi_b",
    about: "EVALITA 2023: the words that express homotransphobic hate",
    source:
        "ExtremITA's rows and decoder; mean F1 of characters, as in SemEval-2021 (closest known to the organisers')",
    load: |path| rows::load(path, "hodi_b", 256),
    judge,
    metrics: &[Metric::higher("mean_f1", mean_f1), Metric::higher("micro_f1", micro_f1), well_formed::<3>()],
};

fn judge(answered: &[(&Example, &Answer)]) -> Vec<Unit> {
    units(answered, &|text, gold, given| {
        let (wanted, given) = (characters(text, gold, true), characters(text, given, false));
        let hits = wanted.intersection(&given).count();
        vec![hits as f64, given.len() as f64, wanted.len() as f64, flag(!given.is_empty())]
    })
}

/// Places (bytes of the lower-case text, spaces included) that the stretches of an answer cover. What does not fit is
/// passed over, or with `resume` looked for as a stretch of its own.
fn characters(text: &str, answer: &str, resume: bool) -> BTreeSet<usize> {
    let (text, answer) = (text.to_lowercase(), answer.to_lowercase());
    let mut places = BTreeSet::new();
    for stretch in answer.split("[gap]") {
        let words: Vec<&str> = stretch.split_whitespace().collect();
        let mut rest = &words[..];
        while !rest.is_empty() {
            let fits = |count: &usize| text.find(&rest[..*count].join(" ")).is_some();
            let count = (1..=rest.len()).take_while(fits).last().unwrap_or(0);
            let found = rest[..count].join(" ");
            if let Some(start) = text.find(&found) {
                places.extend(found.char_indices().map(|(at, _)| start + at));
            }
            rest = if resume { &rest[count.max(1)..] } else { &[] };
        }
    }
    places
}

#[cfg(test)]
mod tests {
    use super::super::rows::testing::judge;
    use super::*;

    #[test]
    fn stretches_by_hand() {
        let text = "Però sono Tutti uguali, sì tutti";
        let rows = [
            (text, "tutti uguali", "TUTTI"),
            (text, "tutti uguali", "tutti quanti [gap] sì"),
            (text, "però sì tutti", "Però [gap] sì tutti"),
            (text, "sì", "niente del genere"),
            (text, "sì", ""),
        ];
        let expected = [
            [5.0, 5.0, 12.0, 1.0],
            [5.0, 7.0, 12.0, 1.0],
            [12.0, 12.0, 12.0, 1.0],
            [0.0, 0.0, 2.0, 0.0],
            [0.0, 0.0, 2.0, 0.0],
        ];
        assert_eq!(judge(&TASK, &rows), expected, "characters, not bytes");
    }
}
