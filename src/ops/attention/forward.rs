//! Forward: one task per (segment, query head, block of 64 queries).

use super::block::{BlockState, KeysValues};
use super::pairs::Arithmetic;
use super::parallel::in_order;
use super::rows::{Lanes, Rows, Shared};
use super::visible::Limits;
use super::words::{convert, of_forward, HeadWords, Layout};
use super::{check_segments, gaps, AttentionShape, BLOCK};
use crate::device::{cpu_path, Compute};
use crate::ops::profile;
use std::ops::Range;

/// Attention of every row over its own segment.
///
/// `out` is like `q`, and `lse` is `[T, heads]`, what [`super::backward`] needs. A row attends to the rows of its own
/// segment at or before it. Rows outside every segment get 0 in `out` and `lse`.
///
/// Panics if a slice has another length or the segments overlap.
pub fn forward(shape: AttentionShape, compute: Compute, inputs: Inputs<'_>, out: &mut [f32], lse: &mut [f32]) {
    forward_on(Arithmetic::new(cpu_path(), compute), shape, inputs, out, lse);
}

/// What attention reads.
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    /// `[T, heads * head_dim]`.
    pub q: &'a [f32],
    /// `[T, kv_heads * head_dim]`.
    pub k: &'a [f32],
    /// `[T, kv_heads * head_dim]`.
    pub v: &'a [f32],
    /// Documents: disjoint ascending ranges of rows.
    pub segments: &'a [Range<usize>],
}

/// [`forward`] with given instructions.
pub(super) fn forward_on(with: Arithmetic, shape: AttentionShape, inputs: Inputs, out: &mut [f32], lse: &mut [f32]) {
    let _span = profile::span("attention forward", 0.0);
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
    let layout = Layout::row_by_row(shape, rows);
    let words = with.is_pairs().then(|| convert(shape, layout, inputs.segments, of_forward(inputs.k, inputs.v)));
    let (out, lse) = (Shared::new(out), Shared::new(lse));
    in_order(tasks.len(), |index| run(with, shape, (inputs, words.as_ref()), &tasks[index], (&out, &lse)));
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

fn run(
    with: Arithmetic,
    shape: AttentionShape,
    (inputs, words): (Inputs, Option<&[HeadWords; 2]>),
    task: &Task,
    outputs: (&Shared, &Shared),
) {
    let Task { segment, head, queries } = task;
    let (head_dim, lanes) = (shape.head_dim, queries.len());
    let first_row = segment.start + queries.start;
    let starts: [usize; BLOCK] = std::array::from_fn(|lane| (first_row + lane) * shape.query_width() + head * head_dim);
    let starts = &starts[..lanes];
    let limits = Limits::new(lanes, |lane| queries.start + lane + 1);
    let mut state = BlockState::new(with, head_dim, lanes);
    state.load_queries(Lanes { data: inputs.q, starts, head_dim }, shape.scale());
    let kv_head = head / shape.group();
    let keys_values = match words {
        Some([keys, values]) => KeysValues::Words(keys.of(kv_head, segment), values.of(kv_head, segment)),
        None => {
            let offset = segment.start * shape.kv_width() + kv_head * head_dim;
            let view = |data| Rows { data, stride: shape.kv_width(), head_dim };
            KeysValues::Rows(view(&inputs.k[offset..]), view(&inputs.v[offset..]))
        }
    };
    state.attend(keys_values, 0..queries.end, &limits);
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
