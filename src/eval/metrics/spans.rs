//! Metrics of things found in a text. Evidence: counts (found rightly, given, wanted), a triple for each kind of thing.

use super::f1;

fn triple(units: &[&[f64]], kind: usize) -> [f64; 3] {
    [0, 1, 2].map(|part| units.iter().map(|unit| unit[3 * kind + part]).sum())
}

/// F1 of the sums over all units (micro), of the first kind.
pub fn micro_f1(units: &[&[f64]]) -> f64 {
    let [hits, given, wanted] = triple(units, 0);
    f1(hits, given, wanted)
}

/// Mean over `KINDS` kinds of F1 of the sums. A kind that is neither wanted nor given counts as 0.
pub fn macro_f1<const KINDS: usize>(units: &[&[f64]]) -> f64 {
    let of = |kind| {
        let [hits, given, wanted] = triple(units, kind);
        f1(hits, given, wanted)
    };
    (0..KINDS).map(of).sum::<f64>() / KINDS as f64
}

/// Mean over units of each one's own F1; 1 where nothing is wanted and nothing given.
pub fn mean_f1(units: &[&[f64]]) -> f64 {
    let of = |unit: &&[f64]| if unit[1] + unit[2] == 0.0 { 1.0 } else { f1(unit[0], unit[1], unit[2]) };
    units.iter().map(of).sum::<f64>() / units.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_by_hand() {
        let units: [&[f64]; 3] =
            [&[1.0, 2.0, 1.0, 0.0, 0.0, 1.0], &[0.0, 0.0, 0.0, 2.0, 2.0, 2.0], &[1.0, 1.0, 3.0, 0.0, 1.0, 0.0]];
        // First kind: 2 hits, 3 given, 4 wanted; second: 2, 3, 3.
        assert_eq!(micro_f1(&units), 4.0 / 7.0);
        assert_eq!(macro_f1::<2>(&units), (4.0 / 7.0 + 4.0 / 6.0) / 2.0);
        assert_eq!(mean_f1(&units), (2.0 / 3.0 + 1.0 + 2.0 / 4.0) / 3.0);
        assert_eq!(micro_f1(&[&[0.0, 0.0, 0.0]]), 0.0);
    }
}
