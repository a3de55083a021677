//! Many short stretches of tokens through the model at once, each behind a cached beginning.
//!
//! The rows of all stretches share the matrix products; attention runs stretch by stretch, in order, and writes the
//! stretch's keys and values behind its beginning. So one cache serves a whole tree: a trunk that stays, an item behind
//! it, and one branch after the other behind the item, each overwriting the last. Several caches make a batch of
//! sequences that are continued side by side.
//!
//! Invariant: the hidden states of a stretch are those of [`Llama::forward`] over beginning and stretch as one document.

use super::cache::KvCache;
use super::llama::Llama;
use super::pass::{Pass, Rows};
use crate::ops::cross_entropy::{self, IGNORE};
use crate::ops::{Arena, Matrix};

/// Tokens behind the first `past` rows of a cache.
#[derive(Debug, Clone, Copy)]
pub struct Extension<'a> {
    /// The tokens; not empty.
    pub ids: &'a [u32],
    /// Which of the caches.
    pub cache: usize,
    /// Rows of the cache that come before; those behind are overwritten.
    pub past: usize,
}

impl Llama {
    /// The hidden states of all stretches in order, before the final norm, `[Σ n, H]`. Afterwards each cache holds the
    /// last stretch that was put into it, with its beginning.
    ///
    /// The caller keeps `past + ids.len()` within the cache's capacity and the rotation table.
    pub fn extend(&self, pass: &Pass<'_>, stretches: &[Extension<'_>], caches: &mut [KvCache]) -> Matrix {
        let ids: Vec<u32> = stretches.iter().flat_map(|stretch| stretch.ids).copied().collect();
        let positions: Vec<u32> = stretches
            .iter()
            .flat_map(|stretch| stretch.past as u32..(stretch.past + stretch.ids.len()) as u32)
            .collect();
        let context = self.context(pass, Rows { ids: &ids, positions: &positions, segments: &[] });
        let (width, kv_width) = (self.config.query_width(), self.config.kv_width());
        let mut x = self.embed(pass, &ids);
        for (layer, block) in self.blocks.iter().enumerate() {
            block.forward_cached(&context, &mut x, &mut |[q, k, v], out| {
                let mut start = 0;
                for stretch in stretches {
                    let end = start + stretch.ids.len();
                    let (queries, rows) = (start * width..end * width, start * kv_width..end * kv_width);
                    let inputs = [&q[queries.clone()], &k[rows.clone()], &v[rows]];
                    let place = (layer, stretch.past);
                    caches[stretch.cache].attend(&context, place, inputs, &mut out[queries]);
                    start = end;
                }
            });
        }
        for stretch in stretches {
            caches[stretch.cache].set_len(stretch.past + stretch.ids.len());
        }
        x
    }

    /// Minus the natural logarithm of the probability of each target, `[T]`, where `last [T,H]` are hidden states before
    /// the final norm; 0 where the target is -100.
    pub fn token_losses(&self, pass: &Pass<'_>, last: &Matrix, targets: &[i32]) -> Vec<f32> {
        let (normed, _) = self.final_norm(pass, last);
        let mut losses = vec![0.0; targets.len()];
        cross_entropy::forward(self.head_view(pass), normed.view(), targets, pass.arena, Some(&mut losses));
        losses
    }

    /// Whether no other token is likelier than the target, for each row that has one, in order.
    pub fn greedy_hits(&self, pass: &Pass<'_>, last: &Matrix, targets: &[i32]) -> Vec<bool> {
        let rows: Vec<usize> = (0..targets.len()).filter(|&row| targets[row] != IGNORE).collect();
        let hit = |row: usize, logits: &[f32]| argmax(logits) == targets[row] as usize;
        self.of_logits(pass, last, &rows, &hit)
    }

    /// The likeliest token after each of `rows` of `last [T,H]`; the first of equals.
    pub fn likeliest(&self, pass: &Pass<'_>, last: &Matrix, rows: &[usize]) -> Vec<u32> {
        self.of_logits(pass, last, rows, &|_, logits| argmax(logits) as u32)
    }

    /// Logits after some rows of `last [T,H]`, `[rows, vocab]`.
    pub fn logits_rows(&self, pass: &Pass<'_>, last: &Matrix, rows: &[usize]) -> Matrix {
        self.logits_of(pass, &gather(pass.arena, last, rows))
    }

    /// Calls `read` with the logits of each row, in chunks that bound the memory.
    fn of_logits<T>(
        &self,
        pass: &Pass<'_>,
        last: &Matrix,
        rows: &[usize],
        read: &dyn Fn(usize, &[f32]) -> T,
    ) -> Vec<T> {
        let chunk = cross_entropy::chunk_rows(self.config.vocab_size, rows.len());
        let mut values = Vec::with_capacity(rows.len());
        for rows in rows.chunks(chunk) {
            let logits = self.logits_rows(pass, last, rows);
            values.extend(rows.iter().enumerate().map(|(place, &row)| read(row, logits.row(place))));
        }
        values
    }
}

/// The given rows of a matrix.
fn gather(arena: &Arena, from: &Matrix, rows: &[usize]) -> Matrix {
    let mut chosen = arena.matrix(rows.len(), from.cols());
    for (target, &row) in chosen.chunks_exact_mut(from.cols()).zip(rows) {
        target.copy_from_slice(from.row(row));
    }
    chosen
}

/// Place of the largest value, the first of equals; values that are not numbers are passed over.
fn argmax(values: &[f32]) -> usize {
    let mut best = 0;
    for (place, &value) in values.iter().enumerate() {
        if value > values[best] || values[best].is_nan() {
            best = place;
        }
    }
    best
}

#[cfg(test)]
#[path = "extend_tests.rs"]
mod tests;
