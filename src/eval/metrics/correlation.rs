//! Correlations of pairs of numbers. Evidence: (right, given) pairs, several a unit.
//!
//! Pearson's r = Σ(x−x̄)(y−ȳ) / √(Σ(x−x̄)² Σ(y−ȳ)²); Spearman's ρ is Pearson's r of the ranks, equal values sharing their
//! mean rank. 0 where one side is constant: no order can be read from it (SciPy gives NaN there).

/// Pearson's r.
pub fn pearson_of(x: &[f64], y: &[f64]) -> f64 {
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let (x_mean, y_mean) = (mean(x), mean(y));
    let product: f64 = x.iter().zip(y).map(|(x, y)| (x - x_mean) * (y - y_mean)).sum();
    let square = |values: &[f64], mean: f64| values.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>();
    let squares = square(x, x_mean) * square(y, y_mean);
    if squares > 0.0 {
        product / squares.sqrt()
    } else {
        0.0
    }
}

/// Spearman's ρ.
pub fn spearman_of(x: &[f64], y: &[f64]) -> f64 {
    pearson_of(&ranks(x), &ranks(y))
}

/// Ranks from 1; equal values share the mean of theirs.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    let mut before = 0;
    for equal in order.chunk_by(|&a, &b| values[a] == values[b]) {
        let rank = before as f64 + (equal.len() + 1) as f64 / 2.0;
        equal.iter().for_each(|&index| ranks[index] = rank);
        before += equal.len();
    }
    ranks
}

fn columns(units: &[&[f64]], pair: usize) -> (Vec<f64>, Vec<f64>) {
    units.iter().map(|unit| (unit[2 * pair], unit[2 * pair + 1])).unzip()
}

/// Mean of Pearson's r over `PAIRS` pairs.
pub fn mean_pearson<const PAIRS: usize>(units: &[&[f64]]) -> f64 {
    let of = |pair| {
        let (x, y) = columns(units, pair);
        pearson_of(&x, &y)
    };
    (0..PAIRS).map(of).sum::<f64>() / PAIRS as f64
}

/// Pearson's r of one pair.
pub fn pearson<const PAIR: usize>(units: &[&[f64]]) -> f64 {
    let (x, y) = columns(units, PAIR);
    pearson_of(&x, &y)
}

/// Spearman's ρ of the first pair.
pub fn spearman(units: &[&[f64]]) -> f64 {
    let (x, y) = columns(units, 0);
    spearman_of(&x, &y)
}

/// Harmonic mean of Pearson's r and Spearman's ρ of the first pair; 0 if one of them is not positive.
pub fn harmonic(units: &[&[f64]]) -> f64 {
    let (r, rho) = (pearson::<0>(units), spearman(units));
    if r > 0.0 && rho > 0.0 {
        2.0 * r * rho / (r + rho)
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(found: f64, wanted: f64) {
        assert!((found - wanted).abs() < 1e-12, "{found}, expected {wanted}");
    }

    #[test]
    fn correlations_by_hand() {
        // x − x̄ = −1 0 1 0, y − ȳ = −1 −1 2 0: products 3, squares 2 and 6.
        let units: [&[f64]; 4] = [&[1.0, 1.0], &[2.0, 1.0], &[3.0, 4.0], &[2.0, 2.0]];
        close(pearson::<0>(&units), 3.0 / 12f64.sqrt());
        assert_eq!(ranks(&[1.0, 2.0, 3.0, 2.0]), [1.0, 2.5, 4.0, 2.5]);
        assert_eq!(ranks(&[1.0, 1.0, 4.0, 2.0]), [1.5, 1.5, 4.0, 3.0]);
        // Ranks less 2.5: −1.5 0 1.5 0 and −1 −1 1.5 0.5: products 3.75, squares 4.5 and 4.5.
        close(spearman(&units), 3.75 / 4.5);
        let (r, rho) = (3.0 / 12f64.sqrt(), 3.75 / 4.5);
        close(harmonic(&units), 2.0 * r * rho / (r + rho));
    }

    #[test]
    fn a_constant_answer_has_no_correlation() {
        let units: [&[f64]; 3] = [&[1.0, 3.5], &[2.0, 3.5], &[3.0, 3.5]];
        assert_eq!((pearson::<0>(&units), spearman(&units), harmonic(&units)), (0.0, 0.0, 0.0));
        let against: [&[f64]; 2] = [&[1.0, 2.0], &[2.0, 1.0]];
        assert_eq!((pearson::<0>(&against), harmonic(&against)), (-1.0, 0.0));
    }
}
