//! What tasks of choice by log-likelihood share.
//!
//! `acc`: the likeliest choice is right. `acc_norm`: the choice with the largest log-likelihood for each character is —
//! Unicode characters of the choice without the space before it, not bytes, which matters for accented Italian. The first
//! of equals wins. Reference: lm-evaluation-harness, `lm_eval/api/task.py`.

use super::super::metrics::mean::{is_one, mean};
use super::super::task::{Answer, Example, Gold, Question, Unit};
use super::super::Metric;

const ACC: Metric = Metric::share("acc", mean::<0>, is_one::<0>);
const ACC_NORM: Metric = Metric::share("acc_norm", mean::<1>, is_one::<1>);

/// Ranked by `acc`.
pub const ACC_FIRST: &[Metric] = &[ACC, ACC_NORM];
/// Ranked by `acc_norm`.
pub const ACC_NORM_FIRST: &[Metric] = &[ACC_NORM, ACC];
/// `acc` alone: choices of one length, such as letters.
pub const ACC_ONLY: &[Metric] = &[ACC];

/// Evidence: 0 or 1 for `acc`, 0 or 1 for `acc_norm`.
pub fn judge(answered: &[(&Example, &Answer)]) -> Vec<Unit> {
    let unit = |(example, answer): &(&Example, &Answer)| {
        let (Question::Choices { choices, .. }, Answer::Choices(log_likelihoods)) = (&example.question, answer) else {
            return None;
        };
        let per_character =
            log_likelihoods.iter().zip(choices).map(|(sum, choice)| sum / choice.chars().count() as f64);
        let right = |place: usize| f64::from(u8::from(example.gold == Gold::Choice(place)));
        let evidence = vec![right(largest(log_likelihoods.iter().copied())), right(largest(per_character))];
        Some(Unit { id: example.id.clone(), evidence })
    };
    answered.iter().filter_map(unit).collect()
}

/// Place of the largest value, the first of equals.
fn largest(values: impl Iterator<Item = f64>) -> usize {
    let mut best = (0, f64::NEG_INFINITY);
    for (place, value) in values.enumerate() {
        if value > best.1 {
            best = (place, value);
        }
    }
    best.0
}

/// Question with these choices.
pub fn example(id: String, context: String, choices: Vec<String>, right: usize) -> Example {
    Example { id, question: Question::Choices { context, choices }, gold: Gold::Choice(right) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accuracy_by_hand() {
        let choices = ["è là", "e la via", "no"].map(str::to_string).to_vec();
        // For each of 4, 8 and 2 characters: −1, −0.75, −3. By bytes (6, 8, 2) the first would win.
        let question = |right| example("q".into(), String::new(), choices.clone(), right);
        let answer = Answer::Choices(vec![-4.0, -6.0, -6.0]);
        let evidence = |right| judge(&[(&question(right), &answer)])[0].evidence.clone();
        assert_eq!(evidence(0), [1.0, 0.0]);
        assert_eq!(evidence(1), [0.0, 1.0]);
        let tie = Answer::Choices(vec![-3.0, -2.0, -2.0]);
        assert_eq!(judge(&[(&question(1), &tie)])[0].evidence[0], 1.0, "the first of equals");
        assert_eq!(judge(&[(&question(2), &tie)])[0].evidence[0], 0.0);
    }
}
