//! How sure a number is: bootstrap intervals, and tests of a difference on the same items.
//!
//! Bootstrap (Efron 1979): the units are drawn again with replacement, [`RESAMPLES`] times, and the metric computed each
//! time; the interval holds the middle 95 % of these values (percentile method). The paired form draws the same units for
//! both models. McNemar's test (1947, exact binomial form) looks only at the items that one model has right and the
//! other wrong. The draws are named by a fixed seed: the same units give the same interval on any number of threads.

use super::metrics::Metric;
use crate::ops::RandomStream;
use rayon::prelude::*;

/// How often the units are drawn again.
pub const RESAMPLES: usize = 1000;
/// Share of the resampled values outside the interval, on each side.
const TAIL: f64 = 0.025;
/// Names the draws.
const SEED: u64 = 2023;

/// A value with its 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Interval {
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// What a paired bootstrap says about `second − first`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Difference {
    /// The difference of the two values.
    pub value: f64,
    /// Its interval.
    pub interval: Interval,
    /// Two-sided p-value: twice the smaller share of resamples on either side of no difference, at most 1 and at least
    /// 1 / (resamples + 1).
    pub p: f64,
}

/// Places of the units of resample number `round`.
fn draw(round: usize, count: usize) -> impl Iterator<Item = usize> {
    let stream = RandomStream::derive(SEED, "bootstrap", &[round as u64]);
    (0..count).map(move |place| ((u64::from(stream.word(place as u64)) * count as u64) >> 32) as usize)
}

/// The values of `metric` over all resamples, in order of the resamples.
fn resampled(metric: &Metric, units: &[&[f64]]) -> Vec<f64> {
    (0..RESAMPLES)
        .into_par_iter()
        .map(|round| {
            let drawn: Vec<&[f64]> = draw(round, units.len()).map(|place| units[place]).collect();
            (metric.of)(&drawn)
        })
        .collect()
}

/// The middle 95 %.
fn middle(mut values: Vec<f64>) -> Interval {
    values.sort_by(f64::total_cmp);
    // The ends are values that occurred: TAIL of them lie outside on each side.
    let outside = (TAIL * values.len() as f64).floor() as usize;
    Interval { low: values[outside], high: values[values.len() - 1 - outside] }
}

/// The 95 % interval of `metric` on `units`; none for fewer than two units.
pub fn interval(metric: &Metric, units: &[&[f64]]) -> Option<Interval> {
    (units.len() >= 2).then(|| middle(resampled(metric, units)))
}

/// How `metric` differs between two models on the same units, in the same order; none for fewer than two.
pub fn difference(metric: &Metric, first: &[&[f64]], second: &[&[f64]]) -> Option<Difference> {
    assert_eq!(first.len(), second.len(), "the same units");
    if first.len() < 2 {
        return None;
    }
    let (a, b) = (resampled(metric, first), resampled(metric, second));
    let differences: Vec<f64> = a.iter().zip(&b).map(|(a, b)| b - a).collect();
    let share = |test: &dyn Fn(f64) -> bool| {
        let count = differences.iter().filter(|&&difference| test(difference)).count();
        (count + 1) as f64 / (RESAMPLES + 1) as f64
    };
    let p = (2.0 * share(&|d| d <= 0.0).min(share(&|d| d >= 0.0))).min(1.0);
    Some(Difference { value: (metric.of)(second) - (metric.of)(first), interval: middle(differences), p })
}

/// McNemar's test: items that only the first has right, items that only the second has right, and the two-sided p-value
/// of such a split if both were equally good.
pub fn mcnemar(right: fn(&[f64]) -> bool, first: &[&[f64]], second: &[&[f64]]) -> (usize, usize, f64) {
    let (mut only_first, mut only_second) = (0, 0);
    for (a, b) in first.iter().zip(second) {
        match (right(a), right(b)) {
            (true, false) => only_first += 1,
            (false, true) => only_second += 1,
            _ => {}
        }
    }
    (only_first, only_second, binomial_two_sided(only_first.min(only_second), only_first + only_second))
}

/// Probability of a split of `count` fair throws at least as uneven as `fewer` to the rest.
fn binomial_two_sided(fewer: usize, count: usize) -> f64 {
    // Σ_{k ≤ fewer} C(count, k) / 2^count, term by term in logarithms: large counts do not overflow.
    let mut log_term = -(count as f64) * std::f64::consts::LN_2;
    let mut tail = 0.0;
    for k in 0..=fewer {
        tail += log_term.exp();
        log_term += ((count - k) as f64).ln() - ((k + 1) as f64).ln();
    }
    (2.0 * tail).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::super::metrics::mean::{is_one, mean};
    use super::*;

    const MEAN: Metric = Metric::share("mean", mean::<0>, is_one::<0>);

    fn units(count: usize, every: usize) -> Vec<[f64; 1]> {
        (0..count).map(|i| [f64::from(u8::from(i % every == 0))]).collect()
    }

    fn rows(units: &[[f64; 1]]) -> Vec<&[f64]> {
        units.iter().map(<[f64; 1]>::as_slice).collect()
    }

    #[test]
    fn an_interval_of_a_share_is_near_the_normal_one() {
        let units = units(400, 4);
        let found = interval(&MEAN, &rows(&units)).unwrap();
        let half = 1.96 * (0.25f64 * 0.75 / 400.0).sqrt();
        assert!((found.low - (0.25 - half)).abs() < 0.01 && (found.high - (0.25 + half)).abs() < 0.01, "{found:?}");
        assert_eq!(interval(&MEAN, &rows(&units)), Some(found), "the draws are named");
        assert_eq!(interval(&MEAN, &rows(&units[..1])), None);
    }

    #[test]
    fn differences_are_found_where_they_are() {
        let (a, b) = (units(200, 4), units(200, 2));
        let found = difference(&MEAN, &rows(&a), &rows(&b)).unwrap();
        assert_eq!(found.value, 0.25);
        assert!(found.interval.low > 0.1 && found.p < 0.01, "{found:?}");
        let none = difference(&MEAN, &rows(&a), &rows(&a)).unwrap();
        assert_eq!((none.value, none.p), (0.0, 1.0));
    }

    #[test]
    fn mcnemar_by_hand() {
        let a: Vec<[f64; 1]> = [1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0].map(|v| [v]).to_vec();
        let b: Vec<[f64; 1]> = [1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0].map(|v| [v]).to_vec();
        // One against three: 2 · (C(4,0) + C(4,1)) / 16.
        let (first, second, p) = mcnemar(is_one::<0>, &rows(&a), &rows(&b));
        assert_eq!((first, second), (1, 3));
        assert!((p - 0.625).abs() < 1e-12);
        assert_eq!(mcnemar(is_one::<0>, &rows(&a), &rows(&a)), (0, 0, 1.0));
        assert!((binomial_two_sided(0, 10) - 2.0 / 1024.0).abs() < 1e-15);
        assert!(binomial_two_sided(4000, 10_000) < 1e-80);
    }
}
