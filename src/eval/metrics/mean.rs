//! Means of one column of the evidence.

/// Mean of column `COLUMN`.
pub fn mean<const COLUMN: usize>(units: &[&[f64]]) -> f64 {
    units.iter().map(|unit| unit[COLUMN]).sum::<f64>() / units.len() as f64
}

/// Whether column `COLUMN` is 1.
pub fn is_one<const COLUMN: usize>(unit: &[f64]) -> bool {
    unit[COLUMN] == 1.0
}

/// `exp` of minus the mean of column `COLUMN`, a logarithm of probabilities: perplexity for each item.
pub fn perplexity<const COLUMN: usize>(units: &[&[f64]]) -> f64 {
    (-mean::<COLUMN>(units)).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_by_hand() {
        let units: [&[f64]; 3] = [&[1.0, -2.0], &[0.0, -4.0], &[1.0, -3.0]];
        assert_eq!(mean::<0>(&units), 2.0 / 3.0);
        assert!((perplexity::<1>(&units) - 3f64.exp()).abs() < 1e-12);
        assert_eq!(units.map(is_one::<0>), [true, false, true]);
    }
}
