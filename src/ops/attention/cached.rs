//! Decoding: new queries of one sequence against the keys and values of all its rows so far.

use super::forward::BlockState;
use super::parallel::in_order;
use super::rows::{Lanes, Rows, Shared};
use super::visible::Limits;
use super::{AttentionShape, BLOCK};
use crate::device::{cpu_path, CpuPath};

/// The keys and values of one sequence.
#[derive(Clone, Copy)]
pub struct CacheView<'a> {
    /// `[kv_heads, capacity, head_dim]`; the first `past + n` rows of each head are valid, the new ones included.
    pub keys: &'a [f32],
    /// Laid out like `keys`.
    pub values: &'a [f32],
    /// Rows that a head has room for.
    pub capacity: usize,
    /// Rows before the new ones.
    pub past: usize,
}

/// Attention of new rows, `q` `[n, heads * head_dim]` at positions `past..past + n`, over the cache; `out` is like `q`.
///
/// Panics if a slice has another length or the cache cannot hold `past + n` rows.
pub fn cached_forward(shape: AttentionShape, q: &[f32], cache: CacheView<'_>, out: &mut [f32]) {
    cached_forward_on(cpu_path(), shape, q, cache, out);
}

/// [`cached_forward`] on a given kernel path.
pub(super) fn cached_forward_on(path: CpuPath, shape: AttentionShape, q: &[f32], cache: CacheView, out: &mut [f32]) {
    shape.check();
    let rows = q.len() / shape.query_width();
    assert_eq!((q.len(), out.len()), (rows * shape.query_width(), q.len()));
    assert_eq!(cache.keys.len(), shape.kv_width() * cache.capacity);
    assert_eq!(cache.values.len(), cache.keys.len());
    assert!(cache.past + rows <= cache.capacity, "{} + {rows} rows, {} fit", cache.past, cache.capacity);
    // All query rows of a key-value head, row by row and within a row head by head, in blocks.
    let lanes = rows * shape.group();
    let blocks = lanes.div_ceil(BLOCK);
    let out = Shared::new(out);
    in_order(shape.kv_heads * blocks, |task| {
        let (kv_head, block) = (task % shape.kv_heads, blocks - 1 - task / shape.kv_heads);
        let range = block * BLOCK..lanes.min((block + 1) * BLOCK);
        let row_of = |lane: usize| (range.start + lane) / shape.group();
        let starts: [usize; BLOCK] = std::array::from_fn(|lane| {
            let head = kv_head * shape.group() + (range.start + lane) % shape.group();
            row_of(lane) * shape.query_width() + head * shape.head_dim
        });
        let starts = &starts[..range.len()];
        let limits = Limits::new(starts.len(), |lane| cache.past + row_of(lane) + 1);
        let mut state = BlockState::new(shape.head_dim, starts.len());
        state.load_queries(path, Lanes { data: q, starts, head_dim: shape.head_dim }, shape.scale());
        let size = cache.capacity * shape.head_dim;
        let place = kv_head * size..(kv_head + 1) * size;
        let keys = Rows { data: &cache.keys[place.clone()], stride: shape.head_dim, head_dim: shape.head_dim };
        let values = Rows { data: &cache.values[place], ..keys };
        let visible = cache.past + row_of(starts.len() - 1) + 1;
        state.attend(path, (keys, values), 0..visible, &limits);
        for (lane, &start) in starts.iter().enumerate() {
            // SAFETY: no other task has this head of this row.
            state.write(lane, unsafe { out.slice(start, shape.head_dim) });
        }
    });
}
