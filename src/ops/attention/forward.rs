//! Forward: one task per (segment, query head, block of 64 queries).

use super::parallel::{in_order, scratch};
use super::product::{product, Before, Left, Right, Size, Target, PADDING};
use super::rows::{pack_transposed, Lanes, Rows, Shared};
use super::softmax::{online_softmax, Running};
use super::visible::Limits;
use super::{check_segments, gaps, AttentionShape, BLOCK};
use crate::device::{cpu_path, CpuPath};
use crate::ops::Matrix;
use std::ops::Range;

/// Attention of every row over its own segment.
///
/// `q` is `[T, heads * head_dim]`, `k` and `v` are `[T, kv_heads * head_dim]`; `out` is like `q`, and `lse` is
/// `[T, heads]`, what [`super::backward`] needs. `segments` are disjoint ascending row ranges covering documents; a row
/// attends to the rows of its own segment at or before it. Rows outside every segment get 0 in `out` and `lse`.
///
/// Panics if a slice has another length or the segments overlap.
pub fn forward(
    shape: AttentionShape,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    segments: &[Range<usize>],
    out: &mut [f32],
    lse: &mut [f32],
) {
    forward_on(cpu_path(), shape, Inputs { q, k, v, segments }, out, lse);
}

/// What attention reads.
#[derive(Clone, Copy)]
pub(super) struct Inputs<'a> {
    pub q: &'a [f32],
    pub k: &'a [f32],
    pub v: &'a [f32],
    pub segments: &'a [Range<usize>],
}

/// [`forward`] on a given kernel path.
pub(super) fn forward_on(path: CpuPath, shape: AttentionShape, inputs: Inputs, out: &mut [f32], lse: &mut [f32]) {
    shape.check();
    let rows = inputs.q.len() / shape.query_width();
    assert_eq!(inputs.q.len(), rows * shape.query_width());
    assert_eq!(inputs.k.len(), rows * shape.kv_width());
    assert_eq!(inputs.v.len(), rows * shape.kv_width());
    assert_eq!((out.len(), lse.len()), (inputs.q.len(), rows * shape.heads));
    check_segments(inputs.segments, rows);
    for gap in gaps(inputs.segments, rows) {
        out[gap.start * shape.query_width()..gap.end * shape.query_width()].fill(0.0);
        lse[gap.start * shape.heads..gap.end * shape.heads].fill(0.0);
    }
    let tasks = tasks(shape, inputs.segments);
    let (out, lse) = (Shared::new(out), Shared::new(lse));
    in_order(tasks.len(), |index| run(path, shape, inputs, &tasks[index], (&out, &lse)));
}

/// A block of queries of one head.
struct Task {
    segment: Range<usize>,
    head: usize,
    /// Rows of the queries, within the segment.
    queries: Range<usize>,
}

/// All blocks, those with most keys first.
fn tasks(shape: AttentionShape, segments: &[Range<usize>]) -> Vec<Task> {
    let mut tasks = Vec::new();
    for segment in segments {
        for first in (0..segment.len()).step_by(BLOCK) {
            let queries = first..segment.len().min(first + BLOCK);
            for head in 0..shape.heads {
                tasks.push(Task { segment: segment.clone(), head, queries: queries.clone() });
            }
        }
    }
    tasks.sort_by_key(|task| std::cmp::Reverse(task.queries.end * task.queries.len()));
    tasks
}

fn run(path: CpuPath, shape: AttentionShape, inputs: Inputs, task: &Task, outputs: (&Shared, &Shared)) {
    let Task { segment, head, queries } = task;
    let (head_dim, lanes) = (shape.head_dim, queries.len());
    let first_row = segment.start + queries.start;
    let starts: [usize; BLOCK] = std::array::from_fn(|lane| (first_row + lane) * shape.query_width() + head * head_dim);
    let starts = &starts[..lanes];
    let limits = Limits::new(lanes, |lane| queries.start + lane + 1);
    let mut state = BlockState::new(head_dim, lanes);
    state.load_queries(path, Lanes { data: inputs.q, starts, head_dim }, shape.scale());
    let offset = segment.start * shape.kv_width() + head / shape.group() * head_dim;
    let view = |data| Rows { data, stride: shape.kv_width(), head_dim };
    let keys_values = (view(&inputs.k[offset..]), view(&inputs.v[offset..]));
    state.attend(path, keys_values, 0..queries.end, &limits);
    for (lane, &start) in starts.iter().enumerate() {
        // SAFETY: no other task has this head of this row.
        let (out, lse) = unsafe {
            let place = (first_row + lane) * shape.heads + head;
            (outputs.0.slice(start, head_dim), outputs.1.slice(place, 1))
        };
        state.write(lane, out);
        lse[0] = state.lse(lane);
    }
}

/// A block of up to [`BLOCK`] queries on its way over the keys.
pub(super) struct BlockState {
    head_dim: usize,
    /// Lanes of a score tile: queries, rounded up to whole registers.
    width: usize,
    /// Length of a row of outputs or values: `head_dim`, rounded up to whole registers.
    padded: usize,
    lanes: usize,
    /// `[head_dim, width]`, scaled.
    queries: Matrix,
    /// `[BLOCK, width]`.
    scores: Matrix,
    /// `[BLOCK, padded]`.
    values: Matrix,
    /// `[lanes, padded]`, to be divided by the running sum.
    outputs: Matrix,
    running: Running,
}

impl BlockState {
    pub fn new(head_dim: usize, lanes: usize) -> BlockState {
        let arena = scratch();
        let (width, padded) = (lanes.next_multiple_of(PADDING), head_dim.next_multiple_of(PADDING));
        BlockState {
            head_dim,
            width,
            padded,
            lanes,
            queries: arena.matrix(head_dim, width),
            scores: arena.matrix(BLOCK, width),
            values: arena.matrix(BLOCK, padded),
            outputs: arena.zeros(lanes, padded),
            running: Running::new(),
        }
    }

    /// Takes the queries in, times `scale`.
    pub fn load_queries(&mut self, path: CpuPath, queries: Lanes<'_>, scale: f32) {
        pack_transposed(path, queries, scale, self.width, &mut self.queries);
    }

    /// Goes over a range of keys, of which each lane sees those below its limit.
    pub fn attend(&mut self, path: CpuPath, (keys, values): (Rows, Rows), range: Range<usize>, limits: &Limits) {
        let (width, padded) = (self.width, self.padded);
        for first in range.clone().step_by(BLOCK) {
            let tile = limits.tile(first, BLOCK.min(range.end - first));
            let scores = &mut self.scores[..tile.count * width];
            for (strip, lane) in tile.strips() {
                let size = Size { rows: strip.len(), columns: width - lane, depth: self.head_dim };
                let right = Right { data: &self.queries[lane..], row: width };
                let data = &mut scores[strip.start * width + lane..];
                product(
                    path,
                    size,
                    keys.left(first + strip.start),
                    right,
                    Target { data, row: width, before: Before::Drop },
                );
            }
            online_softmax(path, tile, scores, &mut self.running);
            let right = values.right(first, tile.count, &mut self.values);
            for (lanes, count) in tile.columns(self.lanes) {
                let size = Size { rows: lanes.len(), columns: padded, depth: count };
                let left = Left { data: &scores[lanes.start..], row: 1, step: width };
                let before = Before::Scale(&self.running.decay[lanes.start..]);
                let data = &mut self.outputs[lanes.start * padded..];
                product(path, size, left, right, Target { data, row: padded, before });
            }
        }
    }

    /// ln Σ exp(score) of a lane.
    pub fn lse(&self, lane: usize) -> f32 {
        self.running.maximum[lane] + self.running.sum[lane].ln()
    }

    /// Writes a lane's output.
    pub fn write(&self, lane: usize, out: &mut [f32]) {
        let inverse = 1.0 / self.running.sum[lane];
        for (out, value) in out.iter_mut().zip(&self.outputs[lane * self.padded..]) {
            *out = value * inverse;
        }
    }
}
