//! NERMuD: persons, places and organisations in a text.
//!
//! `[PER] name [LOC] name ...`, or `nessuna`. As in ExtremITA each word of a mention marks the first such word of the text,
//! without regard to capitals; entities are runs of marks. The right answer is read the same way, for the rows hold no
//! marks. Evidence: entities found rightly, given, wanted, for persons, places and organisations in turn; well-formed.

use super::rows::{plain, units};
use super::{flag, rows, well_formed};
use crate::eval::metrics::spans::macro_f1;
use crate::eval::task::Answer;
use crate::eval::{Example, Metric, Task, Unit};
use std::collections::BTreeSet;

/// The subtask.
pub const TASK: Task = Task {
    name: "nermud",
    about: "EVALITA 2023: persons, places and organisations in a text",
    source: "ExtremITA's rows and decoder; macro-F1 of entities (closest known to the organisers')",
    load: |path| rows::load(path, "nermud", 256),
    judge,
    metrics: &[Metric::higher("macro_f1", macro_f1::<3>), well_formed::<9>()],
};

const KINDS: [&str; 3] = ["per", "loc", "org"];

fn judge(answered: &[(&Example, &Answer)]) -> Vec<Unit> {
    units(answered, &|text, gold, given| {
        let nothing = ["nessuna", "nessun", "nessuno"].contains(&plain(given).as_str());
        let well_formed = nothing || !mentions(given).is_empty();
        let (wanted, given) = (entities(text, gold), entities(text, given));
        let of = |entities: &BTreeSet<Entity>, kind: usize| entities.iter().filter(|e| e.kind == kind).count() as f64;
        let hits: BTreeSet<Entity> = wanted.intersection(&given).copied().collect();
        let counts = (0..KINDS.len()).flat_map(|kind| [of(&hits, kind), of(&given, kind), of(&wanted, kind)]);
        counts.chain([flag(well_formed)]).collect()
    })
}

/// Words `first..=last` of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Entity {
    kind: usize,
    first: usize,
    last: usize,
}

/// Kind and words of each mention in an answer.
fn mentions(answer: &str) -> Vec<(usize, String)> {
    let answer = answer.to_lowercase();
    let parts = answer.split('[').skip(1).filter_map(|part| part.split_once(']'));
    let known = |(kind, words): (&str, &str)| {
        let kind = KINDS.iter().position(|known| *known == kind.trim())?;
        (!words.trim().is_empty()).then(|| (kind, words.trim().to_string()))
    };
    parts.filter_map(known).collect()
}

/// The entities that the mentions of an answer mark in a text.
fn entities(text: &str, answer: &str) -> BTreeSet<Entity> {
    let text = text.to_lowercase();
    let words: Vec<&str> = text.split(' ').collect();
    // For each word: the kind that marks it, and whether it begins a mention.
    let mut marks: Vec<Option<(usize, bool)>> = vec![None; words.len()];
    for (kind, mention) in mentions(answer) {
        for (index, word) in mention.split_whitespace().enumerate() {
            if let Some(place) = words.iter().position(|known| *known == word) {
                marks[place] = Some((kind, index == 0));
            }
        }
    }
    let mut entities = BTreeSet::new();
    let mut open: Option<Entity> = None;
    for (place, mark) in marks.iter().enumerate() {
        match (mark, &mut open) {
            (Some((kind, false)), Some(entity)) if entity.kind == *kind => entity.last = place,
            (Some((kind, _)), _) => {
                entities.extend(open.replace(Entity { kind: *kind, first: place, last: place }));
            }
            (None, _) => entities.extend(open.take()),
        }
    }
    entities.extend(open);
    entities
}

#[cfg(test)]
mod tests {
    use super::super::rows::testing::judge;
    use super::*;

    #[test]
    fn entities_by_hand() {
        let text = "Aldo Moro parlò a Venezia con la Commissione Alleata";
        let gold = "[PER] Aldo Moro [LOC] Venezia [ORG] Commissione Alleata";
        let rows = [
            (text, gold, "[PER] aldo moro [LOC] Venezia [ORG] Commissione Alleata"),
            (text, gold, "[PER] Aldo [LOC] Venezia [LOC] Roma"),
            (text, gold, "[PER Aldo Moro"),
            ("niente qui", "nessuna", "Nessuna."),
            ("niente qui", "nessuna", "[ORG] niente"),
        ];
        let expected = [
            [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0],
            [0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0],
            [0.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0],
            [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0],
            [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 1.0],
        ];
        assert_eq!(judge(&TASK, &rows), expected);
    }
}
