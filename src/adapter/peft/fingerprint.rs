//! A hash of everything that an adapter does: equal adapters on equal bases have equal ones, wherever they lie.

use super::{LinearAdapter, PeftAdapter};
use blake3::Hasher;

impl PeftAdapter {
    /// BLAKE3 (64 hex digits) of base, shapes, scales, dropout and values.
    pub fn fingerprint(&self) -> String {
        let mut hasher = Hasher::new();
        text(&mut hasher, self.provenance.as_ref().map_or("", |provenance| &provenance.base_hash));
        hasher.update(&self.config.dropout.to_le_bytes());
        for (name, linear) in &self.linears {
            let LinearAdapter { rows, cols, rank, scale, a, b, magnitude } = linear;
            text(&mut hasher, name);
            numbers(&mut hasher, &[*rows, *cols, *rank, usize::from(magnitude.is_some())]);
            hasher.update(&scale.to_le_bytes());
            for part in [a, b, magnitude.as_deref().unwrap_or_default()] {
                values(&mut hasher, part);
            }
        }
        for (name, weight) in &self.saved {
            text(&mut hasher, name);
            numbers(&mut hasher, &[weight.rows, weight.cols]);
            values(&mut hasher, &weight.values);
        }
        hasher.finalize().to_hex().to_string()
    }
}

/// With its length, so that texts beside each other cannot be taken for others.
fn text(hasher: &mut Hasher, text: &str) {
    numbers(hasher, &[text.len()]);
    hasher.update(text.as_bytes());
}

fn numbers(hasher: &mut Hasher, numbers: &[usize]) {
    for &number in numbers {
        hasher.update(&(number as u64).to_le_bytes());
    }
}

fn values(hasher: &mut Hasher, values: &[f32]) {
    for part in values.chunks(1 << 14) {
        let bytes: Vec<u8> = part.iter().flat_map(|value| value.to_le_bytes()).collect();
        hasher.update(&bytes);
    }
}
