//! Causal attention over documents of any length, grouped-query heads included, and decoding from a key-value cache.
//!
//! Legend: T rows, H query heads, G key-value heads (H a multiple of G; query head h reads key-value head h / (H / G)),
//! D values per head. For a row i, sums run over the rows j ≤ i of its own segment:
//!
//! ```text
//! forward    s_ij = q_i · k_j / √D        lse_i = ln Σ_j exp(s_ij)      p_ij = exp(s_ij - lse_i)      o_i = Σ_j p_ij v_j
//! backward   Δ_i = do_i · o_i             ds_ij = p_ij (do_i · v_j - Δ_i) / √D
//!            dv_j = Σ_i p_ij do_i         dk_j = Σ_i ds_ij q_i          dq_i = Σ_j ds_ij k_j
//! ```
//!
//! dk and dv also sum over the query heads of a group. Saved for backward: q, k, v, o and lse. Nothing of size T × T
//! exists: scores live in tiles of 64 × 64, the forward softmax runs online (Milakov & Gimelshein 2018; Dao et al. 2022,
//! FlashAttention), and backward computes p again from lse. Tiles hold scores with the keys as rows and the queries as
//! lanes, so that maxima, sums and masks need no work across lanes. Tiles above the diagonal are never visited.
//!
//! With bf16 operands, all five products take p, ds, q / √D and the others rounded to bf16 where the path multiplies such
//! ([`pairs`]); scores, softmax and sums stay f32.
//!
//! Invariant: results depend on the shape, the segments and the kernel path, not on the number of threads: blocks are
//! cut relative to their segment and every sum has a fixed order.

mod backward;
mod block;
mod cached;
pub mod cuda;
pub(crate) mod exp;
mod forward;
mod pairs;
mod parallel;
mod product;
mod row;
mod rows;
pub(crate) mod simd;
mod softmax;
#[cfg(target_arch = "x86_64")]
mod tiles;
mod visible;
mod words;

#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

pub use backward::{backward, borrowed, Grads, Saved};
pub use cached::{cached_forward, CacheView, NewRow, RowAttention};
pub use forward::{forward, Inputs};
pub use words::bytes as word_bytes;

use std::ops::Range;

/// Queries and keys of one score tile.
const BLOCK: usize = 64;

/// Head counts and head size; scores are scaled by 1/√`head_dim`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionShape {
    /// Query heads, H.
    pub heads: usize,
    /// Key-value heads, G; divides `heads`.
    pub kv_heads: usize,
    /// Values per head, D.
    pub head_dim: usize,
}

impl AttentionShape {
    /// Length of a row of queries.
    fn query_width(self) -> usize {
        self.heads * self.head_dim
    }

    /// Length of a row of keys or values.
    fn kv_width(self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Query heads of one key-value head.
    pub fn group(self) -> usize {
        self.heads / self.kv_heads
    }

    fn scale(self) -> f32 {
        (1.0 / (self.head_dim as f64).sqrt()) as f32
    }

    fn check(self) {
        assert!(self.head_dim > 0 && self.kv_heads > 0 && self.heads > 0, "{self:?}");
        assert!(self.heads.is_multiple_of(self.kv_heads), "{self:?}");
    }
}

/// Panics unless the segments are disjoint, ascending and within `rows`.
fn check_segments(segments: &[Range<usize>], rows: usize) {
    let mut end = 0;
    for segment in segments {
        assert!(end <= segment.start && segment.start <= segment.end, "segment {segment:?} after row {end}");
        end = segment.end;
    }
    assert!(end <= rows, "segments end at {end} of {rows} rows");
}

/// The rows that belong to no segment.
fn gaps(segments: &[Range<usize>], rows: usize) -> impl Iterator<Item = Range<usize>> + '_ {
    let starts = segments.iter().map(|segment| segment.start).chain([rows]);
    let ends = [0].into_iter().chain(segments.iter().map(|segment| segment.end));
    ends.zip(starts).map(|(end, start)| end..start)
}
