//! CLinkaRT: results of tests and measurements in clinical reports.
//!
//! `[BREL] result [SEP] test [EREL]` for each pair, `[NOREL]` for none. Evidence: pairs found rightly, given, wanted;
//! well-formed. As in ExtremITA, a pair counts only if both its texts stand in the report as whole words, a pair that
//! is given twice counts once, and a pair with markers inside is none. The rows hold no offsets: pairs are compared as
//! texts, each right one once.

use super::rows::units;
use super::{flag, rows, well_formed};
use crate::eval::metrics::spans::micro_f1;
use crate::eval::task::Answer;
use crate::eval::{Example, Metric, Task, Unit};
use std::collections::BTreeSet;

/// The subtask.
pub const TASK: Task = Task {
    name: "clinkart",
    about: "EVALITA 2023: test results and their tests in clinical text",
    source:
        "ExtremITA's rows and decoder; micro-F1 of pairs as texts (closest to the organisers': rows hold no offsets)",
    load: |path| rows::load(path, "clinkart", 256),
    judge,
    metrics: &[Metric::higher("micro_f1", micro_f1), well_formed::<3>()],
};

fn judge(answered: &[(&Example, &Answer)]) -> Vec<Unit> {
    units(answered, &|text, gold, given| {
        let wanted = pairs(gold);
        let well_formed = given.contains("[NOREL]") || !pairs(given).is_empty();
        let stands = |pair: &(String, String)| stands_in(text, &pair.0) && stands_in(text, &pair.1);
        let given: BTreeSet<(String, String)> = pairs(given).into_iter().filter(stands).collect();
        let mut left = wanted.clone();
        let hits = given
            .iter()
            .filter(|pair| left.iter().position(|other| other == *pair).map(|place| left.swap_remove(place)).is_some())
            .count();
        vec![hits as f64, given.len() as f64, wanted.len() as f64, flag(well_formed)]
    })
}

/// Whether `part` stands in `text` without cutting a word.
fn stands_in(text: &str, part: &str) -> bool {
    let cut = |a: Option<char>, b: Option<char>| a.is_some_and(in_word) && b.is_some_and(in_word);
    text.match_indices(part).any(|(start, found)| {
        let (before, after) = (&text[..start], &text[start + found.len()..]);
        !cut(before.chars().next_back(), found.chars().next()) && !cut(found.chars().next_back(), after.chars().next())
    })
}

fn in_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The pairs of an answer.
fn pairs(text: &str) -> Vec<(String, String)> {
    let mut pairs = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find("[BREL]") {
        let body = &rest[start + "[BREL]".len()..];
        let Some(end) = body.find("[EREL]") else { break };
        if let Some((result, test)) = body[..end].split_once("[SEP]") {
            let (result, test) = (result.trim(), test.trim());
            let marked = [result, test].iter().any(|part| part.contains("[BREL]") || part.contains("[SEP]"));
            if !marked && !result.is_empty() && !test.is_empty() {
                pairs.push((result.to_string(), test.to_string()));
            }
        }
        rest = &body[end + "[EREL]".len()..];
    }
    pairs
}

#[cfg(test)]
mod tests {
    use super::super::rows::testing::judge;
    use super::*;

    #[test]
    fn pairs_by_hand() {
        let text = "Glicemia 90 mg, poi 110 mg; emoglobina 13.";
        let gold = "[BREL] 90 mg [SEP] Glicemia [EREL] [BREL] 110 mg [SEP] Glicemia [EREL]";
        let rows = [
            (text, gold, gold),
            (text, gold, "[BREL] 90 mg [SEP] Glicemia [EREL] [BREL] 90 mg [SEP] Glicemia [EREL]"),
            (text, gold, "[BREL] 90 mg [SEP] Glicemia [EREL] [BREL] 7 [SEP] sodio [EREL] [BREL] rotto"),
            (text, gold, "[BREL] 13 [SEP] [SEP] emoglobina [EREL]"),
            (text, gold, "[BREL] 0 mg [SEP] Glicemia [EREL]"),
            (text, "[NOREL]", "[NOREL]"),
            (text, "[NOREL]", "nulla"),
        ];
        let expected = [
            [2.0, 2.0, 2.0, 1.0],
            [1.0, 1.0, 2.0, 1.0],
            [1.0, 1.0, 2.0, 1.0],
            [0.0, 0.0, 2.0, 0.0],
            [0.0, 0.0, 2.0, 1.0],
            [0.0, 0.0, 0.0, 1.0],
            [0.0, 0.0, 0.0, 0.0],
        ];
        assert_eq!(judge(&TASK, &rows), expected);
    }
}
