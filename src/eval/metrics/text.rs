//! Perplexity and bits per byte. Evidence: nats, tokens, bytes of the predicted text.
//!
//! ```text
//! perplexity = exp(Σ nats / Σ tokens)        bits per byte = Σ nats / ln 2 / Σ bytes
//! ```
//!
//! Bits per byte compare models with different tokenizers; perplexity does not.

fn sum(units: &[&[f64]], column: usize) -> f64 {
    units.iter().map(|unit| unit[column]).sum()
}

/// Perplexity for each token.
pub fn perplexity(units: &[&[f64]]) -> f64 {
    (sum(units, 0) / sum(units, 1)).exp()
}

/// Bits per byte.
pub fn bits_per_byte(units: &[&[f64]]) -> f64 {
    sum(units, 0) / std::f64::consts::LN_2 / sum(units, 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        let two_bits = 2.0 * std::f64::consts::LN_2;
        let units: [&[f64]; 2] = [&[two_bits, 2.0, 4.0], &[3.0 * two_bits, 2.0, 4.0]];
        assert!((perplexity(&units) - 4.0).abs() < 1e-12, "8 bits over 4 tokens");
        assert!((bits_per_byte(&units) - 1.0).abs() < 1e-12, "8 bits over 8 bytes");
    }
}
