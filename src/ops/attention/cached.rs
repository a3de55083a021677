//! Decoding: new queries of one sequence against the keys and values of all its rows so far.
//!
//! [`cached_forward`] takes any number of new rows and shares the work out itself; [`RowAttention`] takes one, in parts
//! that the caller's threads take.

use super::block::{BlockState, KeysValues};
use super::pairs::Arithmetic;
use super::parallel::in_order;
use super::product::PADDING;
use super::row;
use super::rows::{Lanes, Rows, Shared};
use super::visible::Limits;
use super::words::{convert, of_forward, HeadWords, Layout};
use super::{AttentionShape, BLOCK};
use crate::device::{cpu_path, Compute, CpuPath};
use std::ops::Range;
use std::sync::OnceLock;

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

/// Attention of new rows, `q` `[n, heads * head_dim]` at positions `past..past + n`, over the cache; `out` is like `q`. Few
/// rows are multiplied in f32 whatever is asked for: making words of all that is cached would take longer.
///
/// Panics if a slice has another length or the cache cannot hold `past + n` rows.
pub fn cached_forward(shape: AttentionShape, compute: Compute, q: &[f32], cache: CacheView<'_>, out: &mut [f32]) {
    cached_forward_on(Arithmetic::new(cpu_path(), compute), shape, q, cache, out);
}

/// [`cached_forward`] with given instructions.
pub(super) fn cached_forward_on(with: Arithmetic, shape: AttentionShape, q: &[f32], cache: CacheView, out: &mut [f32]) {
    shape.check();
    let rows = q.len() / shape.query_width();
    assert_eq!((q.len(), out.len()), (rows * shape.query_width(), q.len()));
    assert_eq!(cache.keys.len(), shape.kv_width() * cache.capacity);
    assert_eq!(cache.values.len(), cache.keys.len());
    assert!(cache.past + rows <= cache.capacity, "{} + {rows} rows, {} fit", cache.past, cache.capacity);
    let plan = Plan::new(shape, rows, cache);
    let with = if plan.blocks > 1 { with } else { Arithmetic::f32(with.path) };
    let layout = Layout { rows: plan.past + rows, row: shape.head_dim, head: cache.capacity * shape.head_dim };
    let all = 0..layout.rows;
    let (segments, tensors) = (std::slice::from_ref(&all), of_forward(cache.keys, cache.values));
    let words = with.is_pairs().then(|| convert(shape, layout, segments, tensors));
    let out = Shared::new(out);
    let states: Vec<OnceLock<BlockState>> = (0..plan.tasks()).map(|_| OnceLock::new()).collect();
    let write = |kv_head: usize, block: usize, state: &BlockState| {
        for lane in plan.lanes_of(block) {
            let start = plan.start(kv_head, lane);
            // SAFETY: one task writes this head of this row, after all others that read it have ended.
            state.write(lane - block * BLOCK, unsafe { out.slice(start, shape.head_dim) });
        }
    };
    let attend = |task: usize| {
        // The last queries see most keys: longest first.
        let (kv_head, part) = (task % shape.kv_heads, task / shape.kv_heads % plan.parts);
        let block = plan.blocks - 1 - task / (shape.kv_heads * plan.parts);
        let state = plan.attend((with, words.as_ref()), q, cache, (kv_head, block, part));
        if plan.parts == 1 {
            write(kv_head, block, &state);
        } else {
            let _ = states[task].set(state);
        }
    };
    if plan.work() < SERIAL {
        (0..plan.tasks()).for_each(attend);
    } else {
        in_order(plan.tasks(), attend);
    }
    if plan.parts > 1 {
        let mut states = states.into_iter().filter_map(OnceLock::into_inner);
        let mut merged: Vec<BlockState> = states.by_ref().take(shape.kv_heads).collect();
        for (i, state) in states.enumerate() {
            merged[i % shape.kv_heads].merge(&state);
        }
        merged.iter().enumerate().for_each(|(kv_head, state)| write(kv_head, 0, state));
    }
}

/// Attention of one new row, in parts: a key-value head's queries over some of the keys. How they are cut depends on sizes
/// only.
pub struct RowAttention {
    shape: AttentionShape,
    path: CpuPath,
    /// Rows in the cache, to which the new one comes.
    past: usize,
    parts: usize,
}

/// The new row of one key-value head.
#[derive(Clone, Copy)]
pub struct NewRow<'a> {
    /// Queries of the heads of the group, `[group * head_dim]`.
    pub queries: &'a [f32],
    /// The new key, `[head_dim]`.
    pub key: &'a [f32],
    /// The new value, `[head_dim]`.
    pub value: &'a [f32],
}

impl RowAttention {
    /// Most query heads of a key-value head.
    pub const MOST_QUERIES: usize = BLOCK;

    /// For a row behind `past` rows of the cache.
    pub fn new(shape: AttentionShape, past: usize) -> RowAttention {
        shape.check();
        assert!(shape.group() <= RowAttention::MOST_QUERIES);
        RowAttention { shape, path: cpu_path(), past, parts: (past + 1).div_ceil(ROW_PART) }
    }

    /// Number of parts of all heads; part `i` belongs to head `i % kv_heads`, and the last part of a head alone sees the
    /// new key and value.
    pub fn tasks(&self) -> usize {
        self.shape.kv_heads * self.parts
    }

    /// The key-value head of a part.
    pub fn head(&self, task: usize) -> usize {
        task % self.shape.kv_heads
    }

    /// Whether this part sees the new key.
    pub fn is_last(&self, task: usize) -> bool {
        task / self.shape.kv_heads + 1 == self.parts
    }

    /// Values that the result of a part has.
    pub fn result_len(shape: AttentionShape) -> usize {
        shape.group() * (shape.head_dim + 2)
    }

    /// Computes one part: for each query the largest score, the sum of the exponentials and the values weighted so.
    pub fn attend(&self, task: usize, new: NewRow<'_>, cache: CacheView<'_>, result: &mut [f32]) {
        let (head_dim, lanes) = (self.shape.head_dim, self.shape.group());
        let size = cache.capacity * head_dim;
        let place = self.head(task) * size..(self.head(task) + 1) * size;
        let keys = Rows { data: &cache.keys[place.clone()], stride: head_dim, head_dim };
        let values = Rows { data: &cache.values[place], ..keys };
        let first = task / self.shape.kv_heads * ROW_PART;
        let mut state = BlockState::new(Arithmetic::f32(self.path), head_dim, lanes);
        self.over(&mut state, new.queries, (keys, values), first..self.past.min(first + ROW_PART));
        if self.is_last(task) {
            let row = |data| Rows { data, stride: head_dim, head_dim };
            self.over(&mut state, new.queries, (row(new.key), row(new.value)), 0..1);
        }
        for (lane, result) in result.chunks_exact_mut(head_dim + 2).enumerate() {
            (result[0], result[1]) = (state.running.maximum[lane], state.running.sum[lane]);
            result[2..].copy_from_slice(&state.outputs[lane * state.padded..][..head_dim]);
        }
    }

    fn over(&self, state: &mut BlockState, queries: &[f32], (keys, values): (Rows, Rows), range: Range<usize>) {
        if range.is_empty() {
            return;
        }
        if state.lanes <= row::LANES {
            return row::attend(self.path, state, (queries, self.shape.scale()), (keys, values), range);
        }
        let head_dim = self.shape.head_dim;
        let starts: Vec<usize> = (0..state.lanes).map(|lane| lane * head_dim).collect();
        state.load_queries(Lanes { data: queries, starts: &starts, head_dim }, self.shape.scale());
        let limits = Limits::new(state.lanes, |_| range.end);
        state.attend(KeysValues::Rows(keys, values), range, &limits);
    }

    /// The output of a head's queries, `[group * head_dim]`, from the results of its parts in order.
    pub fn merge<'r>(&self, results: impl Iterator<Item = &'r [f32]> + Clone, out: &mut [f32]) {
        let stride = self.shape.head_dim + 2;
        for (lane, out) in out.chunks_exact_mut(self.shape.head_dim).enumerate() {
            let parts = results.clone().map(|result| &result[lane * stride..(lane + 1) * stride]);
            let largest = parts.clone().fold(-f32::MAX, |largest, part| largest.max(part[0]));
            let mut total = 0.0;
            out.fill(0.0);
            for part in parts {
                let weight = (part[0] - largest).exp();
                total += weight * part[1];
                out.iter_mut().zip(&part[2..]).for_each(|(out, value)| *out += weight * value);
            }
            let inverse = 1.0 / total;
            out.iter_mut().for_each(|out| *out *= inverse);
        }
    }

    /// Parts of a head when `rows` rows are cached.
    pub fn most_parts(rows: usize) -> usize {
        (rows + 1).div_ceil(ROW_PART)
    }
}

/// Keys of one part of [`RowAttention`].
const ROW_PART: usize = 128;

/// Below this many products the call runs on the calling thread: waking others would take longer.
const SERIAL: usize = 1 << 21;
/// Keys of one task when few queries would leave threads idle.
const PART: usize = 256;

/// How the work is cut, which depends on sizes only.
///
/// Lanes are all query rows of a key-value head, row by row and within a row head by head, in blocks; if there is one
/// block only, its keys are cut into parts, whose results are merged in order.
struct Plan {
    shape: AttentionShape,
    past: usize,
    rows: usize,
    lanes: usize,
    blocks: usize,
    parts: usize,
}

impl Plan {
    fn new(shape: AttentionShape, rows: usize, cache: CacheView<'_>) -> Plan {
        let lanes = rows * shape.group();
        let blocks = lanes.div_ceil(BLOCK);
        let parts = if blocks == 1 { (cache.past + rows).div_ceil(PART) } else { 1 };
        Plan { shape, past: cache.past, rows, lanes, blocks, parts }
    }

    fn tasks(&self) -> usize {
        self.shape.kv_heads * self.blocks * self.parts
    }

    /// Products, about.
    fn work(&self) -> usize {
        let lanes = self.lanes.next_multiple_of(PADDING);
        2 * self.shape.kv_width() * lanes * (self.past + self.rows)
    }

    fn lanes_of(&self, block: usize) -> Range<usize> {
        block * BLOCK..self.lanes.min((block + 1) * BLOCK)
    }

    /// Where a lane's values start in q and out.
    fn start(&self, kv_head: usize, lane: usize) -> usize {
        let (row, head) = (lane / self.shape.group(), kv_head * self.shape.group() + lane % self.shape.group());
        row * self.shape.query_width() + head * self.shape.head_dim
    }

    /// Keys that a lane sees.
    fn limit(&self, lane: usize) -> usize {
        self.past + lane / self.shape.group() + 1
    }

    fn attend(
        &self,
        (with, words): (Arithmetic, Option<&[HeadWords; 2]>),
        q: &[f32],
        cache: CacheView<'_>,
        (kv_head, block, part): (usize, usize, usize),
    ) -> BlockState {
        let (head_dim, range) = (self.shape.head_dim, self.lanes_of(block));
        let starts: [usize; BLOCK] = std::array::from_fn(|lane| self.start(kv_head, range.start + lane));
        let starts = &starts[..range.len()];
        let limits = Limits::new(range.len(), |lane| self.limit(range.start + lane));
        let size = cache.capacity * head_dim;
        let place = kv_head * size..(kv_head + 1) * size;
        let keys = Rows { data: &cache.keys[place.clone()], stride: head_dim, head_dim };
        let values = Rows { data: &cache.values[place], ..keys };
        let visible = self.limit(range.end - 1);
        let visible = if self.parts == 1 { 0..visible } else { part * PART..visible.min((part + 1) * PART) };
        let mut state = BlockState::new(with, head_dim, range.len());
        if self.rows == 1 && self.lanes <= row::LANES {
            let queries = &q[starts[0]..starts[0] + self.lanes * head_dim];
            row::attend(with.path, &mut state, (queries, self.shape.scale()), (keys, values), visible);
            return state;
        }
        state.load_queries(Lanes { data: q, starts, head_dim }, self.shape.scale());
        let all = 0..self.past + self.rows;
        let keys_values = match words {
            Some([keys, values]) => KeysValues::Words(keys.of(kv_head, &all), values.of(kv_head, &all)),
            None => KeysValues::Rows(keys, values),
        };
        state.attend(keys_values, visible, &limits);
        state
    }
}
