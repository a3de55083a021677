//! EmotivITA: valence, arousal and dominance of a text, each from 1 to 5.

use super::discotex::number;
use super::rows::units;
use super::{flag, rows, well_formed};
use crate::eval::metrics::correlation::{mean_pearson, pearson};
use crate::eval::task::Answer;
use crate::eval::{Example, Metric, Task, Unit};

/// The subtask (B: all three at once).
pub const TASK: Task = Task {
    name: "emotivita",
    about: "EVALITA 2023: valence, arousal and dominance of a text",
    source: "ExtremITA's rows and decoder; mean Pearson correlation (closest known to the organisers')",
    load: |path| rows::load(path, "emotivita", 24),
    judge,
    metrics: &[
        Metric::higher("mean_pearson", mean_pearson::<3>),
        Metric::higher("pearson_valence", pearson::<0>),
        Metric::higher("pearson_arousal", pearson::<1>),
        Metric::higher("pearson_dominance", pearson::<2>),
        well_formed::<6>(),
    ],
};

/// ExtremITA's stand-in for each number that is missing.
const STAND_IN: f64 = 3.5;

/// Evidence: right and given number of each dimension, well-formed.
fn judge(answered: &[(&Example, &Answer)]) -> Vec<Unit> {
    units(answered, &|_, gold, given| {
        let numbers = |text: &str| {
            let mut words = text.split_whitespace().map(number);
            [0, 1, 2].map(|_| words.next().flatten())
        };
        let (gold, given) = (numbers(gold), numbers(given));
        let pairs = gold.iter().zip(&given).flat_map(|(gold, given)| [gold, given].map(|v| v.unwrap_or(STAND_IN)));
        pairs.chain([flag(given.iter().all(Option::is_some))]).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::super::rows::testing::judge;
    use super::*;

    #[test]
    fn numbers_by_hand() {
        let rows = [("", "2.9 3.1 4.0", "3 3,5 4.1 2"), ("", "2 3 4", "1.5 x"), ("", "2 3 4", "")];
        let expected = [
            [2.9, 3.0, 3.1, 3.5, 4.0, 4.1, 1.0],
            [2.0, 1.5, 3.0, 3.5, 4.0, 3.5, 0.0],
            [2.0, 3.5, 3.0, 3.5, 4.0, 3.5, 0.0],
        ];
        assert_eq!(judge(&TASK, &rows), expected);
    }
}
