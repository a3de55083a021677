//! PoliticIT: gender of an author of political messages, side and leaning.
//!
//! `donna sinistra centrosinistra`. Rows hold a few messages each; an author is judged once, by what most of their rows
//! say. Ties and answers in another form fall to what is most frequent, as in ExtremITA. Evidence: right and given gender,
//! side and leaning; well-formed share of the rows.

use super::rows::{parts, plain};
use super::{rows, well_formed};
use crate::eval::metrics::labels::mean_macro_f1;
use crate::eval::task::Answer;
use crate::eval::{Example, Metric, Task, Unit};
use std::collections::BTreeMap;

/// The subtask.
pub const TASK: Task = Task {
    name: "politicit",
    about: "EVALITA 2023: gender and politics of an author",
    source: "ExtremITA's rows and decoder; mean of three macro-F1 (closest known to the organisers')",
    load: |path| rows::load(path, "politicit", 24),
    judge,
    metrics: &[Metric::higher("mean_macro_f1", mean_macro_f1::<3>), well_formed::<6>()],
};

/// Labels of each trait; the first is the one to fall back to.
const TRAITS: [&[&str]; 3] =
    [&["uomo", "donna"], &["sinistra", "destra"], &["centrosinistra", "sinistra", "destra", "centrodestra"]];

/// A label of each trait, as places in [`TRAITS`].
type Labels = [usize; 3];

fn judge(answered: &[(&Example, &Answer)]) -> Vec<Unit> {
    let mut authors: BTreeMap<&str, Vec<(Labels, Option<Labels>)>> = BTreeMap::new();
    for (example, answer) in answered {
        let Some((_, gold, given)) = parts(example, answer) else { continue };
        // The id of a row is its line and the author.
        let author = example.id.split_once(':').map_or(example.id.as_str(), |(_, author)| author);
        authors.entry(author).or_default().push((labels(gold).unwrap_or([0; 3]), labels(given)));
    }
    let unit = |(author, rows): (&str, Vec<(Labels, Option<Labels>)>)| {
        let given: Vec<Labels> = rows.iter().map(|(_, given)| given.unwrap_or([0; 3])).collect();
        let (gold, given) = (rows[0].0, majority(&given));
        let well_formed = rows.iter().filter(|(_, given)| given.is_some()).count() as f64 / rows.len() as f64;
        let pairs = gold.iter().zip(given).flat_map(|(&gold, given)| [gold as f64, given as f64]);
        Unit { id: author.to_string(), evidence: pairs.chain([well_formed]).collect() }
    };
    authors.into_iter().map(unit).collect()
}

/// Gender, side and leaning: the first, the second and the last word.
fn labels(text: &str) -> Option<Labels> {
    let text = plain(text);
    let words: Vec<&str> = text.split_whitespace().collect();
    let place = |part: usize, word: &str| TRAITS[part].iter().position(|label| *label == word);
    Some([place(0, words.first()?)?, place(1, words.get(1)?)?, place(2, words.last()?)?])
}

/// What most rows say of each trait. Of equally frequent genders or sides the most frequent in the training data is
/// taken, of leanings the one that agrees with the side.
fn majority(rows: &[Labels]) -> Labels {
    let most = |part: usize| -> Vec<usize> {
        let count = |label: usize| rows.iter().filter(|row| row[part] == label).count();
        let most = (0..TRAITS[part].len()).map(count).max().unwrap_or(0);
        (0..TRAITS[part].len()).filter(|&label| count(label) == most).collect()
    };
    let single = |part: usize| if let [label] = most(part)[..] { label } else { 0 };
    let (gender, side) = (single(0), single(1));
    let leanings = most(2);
    let side_name = TRAITS[1][side];
    let exact = leanings.iter().find(|&&leaning| TRAITS[2][leaning] == side_name);
    let near = leanings.iter().find(|&&leaning| TRAITS[2][leaning].contains(side_name));
    let leaning = match leanings[..] {
        [leaning] => leaning,
        _ => exact.or(near).copied().unwrap_or_else(|| first_said(rows, &leanings)),
    };
    [gender, side, leaning]
}

/// Which of some leanings a row says first.
fn first_said(rows: &[Labels], leanings: &[usize]) -> usize {
    rows.iter().map(|row| row[2]).find(|leaning| leanings.contains(leaning)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::super::rows::testing::judge_as;
    use super::*;

    #[test]
    fn authors_by_hand() {
        let gold = "donna sinistra centrosinistra";
        let rows = [
            ("", gold, gold),
            ("", gold, "Uomo sinistra sinistra."),
            ("", "uomo destra destra", "uomo destra centrodestra"),
            ("", "uomo destra destra", "boh"),
            ("", "uomo destra destra", "uomo destra centrodestra"),
        ];
        let ids = ["1:a", "2:a", "3:b", "4:b", "5:b"].map(String::from);
        let found = judge_as(&TASK, &rows, &ids);
        // Author a: genders tie → uomo; leanings tie → the one that is the side, sinistra.
        // Author b: two of three say centrodestra.
        assert_eq!(found[0], [1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0]);
        assert_eq!(found[1], [0.0, 0.0, 1.0, 1.0, 2.0, 3.0, 2.0 / 3.0]);
    }

    #[test]
    fn ties_of_leanings() {
        // Side: two of three say destra; leanings centrosinistra, centrodestra and destra tie.
        assert_eq!(majority(&[[0, 0, 0], [0, 1, 3], [0, 1, 2]]), [0, 1, 2], "the side itself");
        assert_eq!(majority(&[[0, 1, 0], [0, 1, 3]]), [0, 1, 3], "what holds the side");
        assert_eq!(majority(&[[0, 0, 2], [0, 0, 3]]), [0, 0, 2], "what was said first");
    }
}
