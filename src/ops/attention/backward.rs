//! Backward: probabilities once more from lse, tile by tile, and the three gradients from them in the same visit.
//!
//! A unit is a (segment, key-value head): all the tiles that add to the same rows of dk and dv. A large unit is cut into
//! pieces, runs of (query head, block of 64 queries) of about equal work, each with its own dk and dv; the pieces are
//! then added in order. How a unit is cut depends on the shape and the segments only, so the sums have one order
//! whatever the number of threads. dq of a block belongs to one piece.

use super::pairs::{interleaved, neighbours, Arithmetic, Source};
use super::parallel::{in_order, scratch};
use super::product::{product, Before, Left, Right, Size, Target, PADDING};
use super::rows::{pack_transposed, Lanes, Rows, Shared};
use super::softmax::{softmax_gradient, LaneGradient};
use super::visible::Limits;
use super::words::{convert, of_backward, HeadWords, Layout};
use super::{check_segments, gaps, AttentionShape, Inputs, BLOCK};
use crate::device::{cpu_path, Compute};
use crate::ops::profile;
use crate::ops::{Arena, Matrix};
use std::ops::Range;
use std::sync::OnceLock;

/// What [`super::forward`] read and wrote.
#[derive(Clone, Copy)]
pub struct Saved<'a> {
    /// What it read.
    pub inputs: Inputs<'a>,
    /// `[T, heads * head_dim]`.
    pub out: &'a [f32],
    /// `[T, heads]`.
    pub lse: &'a [f32],
}

/// Where the gradients go; overwritten.
pub struct Grads<'a> {
    /// Like `q`.
    pub dq: &'a mut [f32],
    /// Like `k`.
    pub dk: &'a mut [f32],
    /// Like `v`.
    pub dv: &'a mut [f32],
}

/// Gradients of q, k and v from `dout`, the gradient of [`super::forward`]'s output; 0 outside every segment.
///
/// The arena lends dk and dv of the pieces: 8 bytes per segment row and head value (`head_dim` rounded up to 16) for each
/// piece alive, of which there are fewer than [`PIECES`] plus one per thread.
///
/// Panics if a slice has another length or the segments overlap.
pub fn backward(
    shape: AttentionShape,
    compute: Compute,
    saved: Saved<'_>,
    dout: &[f32],
    arena: &Arena,
    grads: Grads<'_>,
) {
    backward_on(Arithmetic::new(cpu_path(), compute), Problem { shape, saved, dout }, arena, grads);
}

/// `[rows, cols]` of the matrices that [`backward`] borrows at most at a time on so many threads: dk and dv of every
/// piece of a unit that is cut, and of as many whole units as there are threads.
pub fn borrowed(shape: AttentionShape, segments: &[Range<usize>], threads: usize) -> Vec<[usize; 2]> {
    let padded = shape.head_dim.next_multiple_of(PADDING);
    let (mut sizes, mut whole) = (Vec::new(), Vec::new());
    for unit in units(shape, segments) {
        let size = [unit.segment.len(), padded];
        match unit.pieces.len() {
            1 => whole.push(size),
            pieces => sizes.extend(std::iter::repeat_n(size, 2 * pieces)),
        }
    }
    whole.sort_unstable_by(|a, b| b.cmp(a));
    sizes.extend(whole.into_iter().take(threads).flat_map(|size| [size; 2]));
    sizes
}

/// What backward reads.
#[derive(Clone, Copy)]
pub(super) struct Problem<'a> {
    pub shape: AttentionShape,
    pub saved: Saved<'a>,
    pub dout: &'a [f32],
}

/// [`backward`] with given instructions.
pub(super) fn backward_on(with: Arithmetic, problem: Problem<'_>, arena: &Arena, grads: Grads<'_>) {
    let _span = profile::span("attention backward", 0.0);
    let (shape, segments) = (problem.shape, problem.saved.inputs.segments);
    let rows = check(&problem, &grads);
    let (width, kv_width) = (shape.query_width(), shape.kv_width());
    for gap in gaps(segments, rows) {
        grads.dq[gap.start * width..gap.end * width].fill(0.0);
        grads.dk[gap.start * kv_width..gap.end * kv_width].fill(0.0);
        grads.dv[gap.start * kv_width..gap.end * kv_width].fill(0.0);
    }
    let units = units(shape, segments);
    let Inputs { k, v, .. } = problem.saved.inputs;
    let words = with.is_pairs().then(|| convert(shape, Layout::row_by_row(shape, rows), segments, of_backward(k, v)));
    let mut order: Vec<(usize, usize)> =
        (0..units.len()).flat_map(|unit| (0..units[unit].pieces.len()).map(move |piece| (unit, piece))).collect();
    order.sort_by_key(|&(unit, piece)| std::cmp::Reverse(units[unit].work(&units[unit].pieces[piece])));
    let outputs = Outputs { dq: Shared::new(grads.dq), dk: Shared::new(grads.dk), dv: Shared::new(grads.dv) };
    in_order(order.len(), |task| {
        let (unit, piece) = order[task];
        let unit = &units[unit];
        let sums =
            Piece::new(with, &problem, (unit, words.as_ref()), arena).run(unit.pieces[piece].clone(), &outputs.dq);
        if unit.pieces.len() == 1 {
            add_up(shape, unit, 0..unit.segment.len(), &[&sums], &outputs);
        } else {
            let _ = unit.sums[piece].set(sums);
        }
    });
    let cut: Vec<(&Unit, Range<usize>)> = units
        .iter()
        .filter(|unit| unit.pieces.len() > 1)
        .flat_map(|unit| {
            let length = unit.segment.len();
            (0..length).step_by(BLOCK).map(move |first| (unit, first..length.min(first + BLOCK)))
        })
        .collect();
    in_order(cut.len(), |task| {
        let (unit, rows) = &cut[task];
        let sums: Vec<&Sums> = unit.sums.iter().filter_map(OnceLock::get).collect();
        add_up(shape, unit, rows.clone(), &sums, &outputs);
    });
}

/// Panics unless all lengths agree; returns T.
fn check(problem: &Problem<'_>, grads: &Grads<'_>) -> usize {
    let Problem { shape, saved, dout } = problem;
    let Inputs { q, k, v, segments } = saved.inputs;
    shape.check();
    let rows = q.len() / shape.query_width();
    let (queries, keys) = (rows * shape.query_width(), rows * shape.kv_width());
    assert_eq!((q.len(), saved.out.len(), saved.lse.len()), (queries, queries, rows * shape.heads));
    assert_eq!((k.len(), v.len(), dout.len()), (keys, keys, queries));
    assert_eq!((grads.dq.len(), grads.dk.len(), grads.dv.len()), (queries, keys, keys));
    check_segments(segments, rows);
    rows
}

struct Outputs<'a> {
    dq: Shared<'a>,
    dk: Shared<'a>,
    dv: Shared<'a>,
}

/// A segment of one key-value head, and how its work is cut.
struct Unit {
    segment: Range<usize>,
    kv_head: usize,
    /// Runs of items; item i is block `i % blocks` of the group's query head `i / blocks`.
    pieces: Vec<Range<usize>>,
    /// One per piece, where there are several.
    sums: Vec<OnceLock<Sums>>,
}

/// A step is cut into about this many pieces if its units alone are fewer: enough to keep 8 threads evenly busy.
const PIECES: u64 = 16;
/// A piece has at least this many scores: with less, adding it up costs more than the balance gains.
const SMALLEST: u64 = 24 * (BLOCK * BLOCK) as u64;

impl Unit {
    fn blocks(&self) -> usize {
        self.segment.len().div_ceil(BLOCK)
    }

    /// Queries of a block.
    fn block(&self, block: usize) -> Range<usize> {
        block * BLOCK..self.segment.len().min((block + 1) * BLOCK)
    }

    /// Scores computed for an item.
    fn item_work(&self, item: usize) -> u64 {
        let queries = self.block(item % self.blocks());
        (queries.len() * queries.end) as u64
    }

    fn work(&self, items: &Range<usize>) -> u64 {
        items.clone().map(|item| self.item_work(item)).sum()
    }

    /// Cuts all items of `group` heads into runs of about `share` of work.
    fn cut(&mut self, group: usize, share: u64) {
        let items = group * self.blocks();
        let work = self.work(&(0..items));
        let pieces = ((work + share / 2) / share).max(1);
        let (mut first, mut done) = (0, 0);
        for item in 0..items {
            done += self.item_work(item);
            if done * pieces >= work * (self.pieces.len() as u64 + 1) {
                self.pieces.push(first..item + 1);
                first = item + 1;
            }
        }
        self.sums = self.pieces.iter().map(|_| OnceLock::new()).collect();
    }
}

/// Every unit, cut.
fn units(shape: AttentionShape, segments: &[Range<usize>]) -> Vec<Unit> {
    let mut units = Vec::new();
    for segment in segments.iter().filter(|segment| !segment.is_empty()) {
        for kv_head in 0..shape.kv_heads {
            units.push(Unit { segment: segment.clone(), kv_head, pieces: Vec::new(), sums: Vec::new() });
        }
    }
    let work: u64 = units.iter().map(|unit| unit.work(&(0..shape.group() * unit.blocks()))).sum();
    let share = (work / PIECES).max(SMALLEST);
    units.iter_mut().for_each(|unit| unit.cut(shape.group(), share));
    units
}

/// dk and dv of a piece: `[rows, padded head_dim]` each, valid below `rows`.
struct Sums {
    dk: Matrix,
    dv: Matrix,
    rows: usize,
}

/// Writes `rows` of a unit's dk and dv: the sum of its pieces in order.
fn add_up(shape: AttentionShape, unit: &Unit, rows: Range<usize>, pieces: &[&Sums], outputs: &Outputs<'_>) {
    for row in rows {
        let start = (unit.segment.start + row) * shape.kv_width() + unit.kv_head * shape.head_dim;
        // SAFETY: no other task has this head of this row.
        let (dk, dv) = unsafe { (outputs.dk.slice(start, shape.head_dim), outputs.dv.slice(start, shape.head_dim)) };
        dk.fill(0.0);
        dv.fill(0.0);
        for piece in pieces.iter().filter(|piece| row < piece.rows) {
            dk.iter_mut().zip(piece.dk.row(row)).for_each(|(sum, value)| *sum += value);
            dv.iter_mut().zip(piece.dv.row(row)).for_each(|(sum, value)| *sum += value);
        }
    }
}

/// Tiles and sums of a piece at work.
struct Piece<'a> {
    with: Arithmetic,
    problem: &'a Problem<'a>,
    unit: &'a Unit,
    keys: Rows<'a>,
    values: Rows<'a>,
    /// Neighbours of a key and of a value, two keys.
    key_value_words: Option<[(&'a [f32], usize); 3]>,
    padded: usize,
    sums: Sums,
    tiles: Tiles,
}

struct Tiles {
    /// `[head_dim, BLOCK]`, scaled.
    queries_transposed: Matrix,
    /// `[head_dim, BLOCK]`.
    dout_transposed: Matrix,
    /// `[BLOCK, padded]`.
    queries: Matrix,
    dout: Matrix,
    keys: Matrix,
    dq: Matrix,
    /// `[BLOCK, BLOCK]`.
    scores: Matrix,
    gradients: Matrix,
    words: Option<Words>,
}

/// Tiles of words of two bf16.
struct Words {
    /// `[head_dim / 2, BLOCK]`: neighbours of a query, scaled, and of an output gradient.
    queries_transposed: Matrix,
    dout_transposed: Matrix,
    /// `[BLOCK / 2, padded]`: two queries, two output gradients.
    queries: Matrix,
    dout: Matrix,
    /// `[BLOCK, BLOCK / 2]`: two queries.
    scores: Matrix,
    gradients: Matrix,
    /// `[BLOCK / 2, BLOCK]`: two keys.
    gradients_of_keys: Matrix,
}

impl Words {
    fn new(head_dim: usize, padded: usize) -> Words {
        let arena = scratch();
        let pairs = || arena.matrix(BLOCK / 2, padded);
        let (transposed, half) = (|| arena.matrix(head_dim.div_ceil(2), BLOCK), || arena.matrix(BLOCK, BLOCK / 2));
        Words {
            queries_transposed: transposed(),
            dout_transposed: transposed(),
            queries: pairs(),
            dout: pairs(),
            scores: half(),
            gradients: half(),
            gradients_of_keys: arena.matrix(BLOCK / 2, BLOCK),
        }
    }
}

impl Tiles {
    fn new(with: Arithmetic, head_dim: usize, padded: usize) -> Tiles {
        let arena = scratch();
        Tiles {
            queries_transposed: arena.matrix(head_dim, BLOCK),
            dout_transposed: arena.matrix(head_dim, BLOCK),
            queries: arena.matrix(BLOCK, padded),
            dout: arena.matrix(BLOCK, padded),
            keys: arena.matrix(BLOCK, padded),
            dq: arena.matrix(BLOCK, padded),
            scores: arena.matrix(BLOCK, BLOCK),
            gradients: arena.matrix(BLOCK, BLOCK),
            words: with.is_pairs().then(|| Words::new(head_dim, padded)),
        }
    }
}

/// A block of queries of one head.
struct QueryBlock {
    queries: Range<usize>,
    /// Lanes of its score tiles.
    width: usize,
    /// Where each lane's values start in q, out, dout and dq.
    starts: [usize; BLOCK],
    limits: Limits,
    lanes: LaneGradient,
}

impl<'a> Piece<'a> {
    fn new(
        with: Arithmetic,
        problem: &'a Problem<'a>,
        (unit, words): (&'a Unit, Option<&'a [HeadWords; 3]>),
        arena: &Arena,
    ) -> Piece<'a> {
        let shape = problem.shape;
        let head_dim = shape.head_dim;
        let padded = head_dim.next_multiple_of(PADDING);
        let offset = unit.segment.start * shape.kv_width() + unit.kv_head * head_dim;
        let view = |data: &'a [f32]| Rows { data: &data[offset..], stride: shape.kv_width(), head_dim };
        let length = unit.segment.len();
        Piece {
            with,
            problem,
            unit,
            keys: view(problem.saved.inputs.k),
            values: view(problem.saved.inputs.v),
            key_value_words: words
                .map(|words| words.each_ref().map(|words| (words.of(unit.kv_head, &unit.segment), words.width))),
            padded,
            sums: Sums { dk: arena.matrix(length, padded), dv: arena.matrix(length, padded), rows: 0 },
            tiles: Tiles::new(with, head_dim, padded),
        }
    }

    fn run(mut self, items: Range<usize>, dq: &Shared<'_>) -> Sums {
        for item in items {
            let block = self.load(item);
            for first in (0..block.queries.end).step_by(BLOCK) {
                let count = BLOCK.min(block.queries.end - first);
                self.tile(&block, first, count);
            }
            self.sums.rows = self.sums.rows.max(block.queries.end);
            for (row, &start) in self.tiles.dq.chunks_exact(self.padded).zip(&block.starts[..block.queries.len()]) {
                // SAFETY: this head of this row belongs to this item alone.
                let target = unsafe { dq.slice(start, self.problem.shape.head_dim) };
                target.copy_from_slice(&row[..target.len()]);
            }
        }
        self.sums
    }

    /// Packs an item's queries and output gradients, and computes Δ.
    fn load(&mut self, item: usize) -> QueryBlock {
        let Problem { shape, saved, dout } = *self.problem;
        let q = saved.inputs.q;
        let (queries, head_dim) = (self.unit.block(item % self.unit.blocks()), shape.head_dim);
        let head = self.unit.kv_head * shape.group() + item / self.unit.blocks();
        let count = queries.len();
        let mut block = QueryBlock {
            width: count.next_multiple_of(PADDING),
            starts: [0; BLOCK],
            limits: Limits::new(count, |lane| queries.start + lane + 1),
            lanes: LaneGradient { lse: [0.0; BLOCK], delta: [0.0; BLOCK], scale: shape.scale() },
            queries,
        };
        for lane in 0..count {
            let row = self.unit.segment.start + block.queries.start + lane;
            let start = row * shape.query_width() + head * head_dim;
            block.starts[lane] = start;
            block.lanes.lse[lane] = saved.lse[row * shape.heads + head];
            block.lanes.delta[lane] = dot(&saved.out[start..start + head_dim], &dout[start..start + head_dim]);
        }
        let starts = &block.starts[..count];
        let lanes = |data| Lanes { data, starts, head_dim };
        let tiles = &mut self.tiles;
        pack_transposed(self.with.path, lanes(q), shape.scale(), block.width, &mut tiles.queries_transposed);
        pack_transposed(self.with.path, lanes(dout), 1.0, block.width, &mut tiles.dout_transposed);
        let view = |data: &'a [f32]| Rows { data: &data[starts[0]..], stride: shape.query_width(), head_dim };
        match &mut tiles.words {
            None => {
                view(q).pack(0, count, self.padded, &mut tiles.queries);
                view(dout).pack(0, count, self.padded, &mut tiles.dout);
            }
            Some(words) => {
                let columns = |data| Source { data, rows: head_dim, length: block.width, stride: block.width };
                interleaved(columns(&tiles.queries_transposed), block.width, &mut words.queries_transposed);
                interleaved(columns(&tiles.dout_transposed), block.width, &mut words.dout_transposed);
                interleaved(view(q).source(0, count), self.padded, &mut words.queries);
                interleaved(view(dout).source(0, count), self.padded, &mut words.dout);
            }
        }
        block
    }

    /// The tile of `count` keys from `first` on: adds its part to dq of the block and to dk and dv of the piece.
    fn tile(&mut self, block: &QueryBlock, first: usize, count: usize) {
        self.scores(block, first, count);
        let tile = block.limits.tile(first, count);
        let (with, padded, lanes, width) = (self.with, self.padded, block.queries.len(), tile.width);
        let Tiles { scores, gradients, words, queries, dout, keys, dq, .. } = &mut self.tiles;
        softmax_gradient(with.path, tile, &mut scores[..count * width], &mut gradients[..count * width], &block.lanes);
        let key_operand = match self.key_value_words {
            Some([_, _, (words, row)]) => Right { data: &words[first / 2 * row..], row },
            None => self.keys.right(first, count, keys),
        };
        let operands = match words {
            None => Operands { scores, gradients, gradients_of_keys: gradients, queries, dout, keys: key_operand },
            Some(words) => {
                let rows = |data| Source { data, rows: count, length: width, stride: width };
                neighbours(rows(scores), width / 2, &mut words.scores);
                neighbours(rows(gradients), width / 2, &mut words.gradients);
                interleaved(rows(gradients), width, &mut words.gradients_of_keys);
                Operands {
                    scores: &words.scores,
                    gradients: &words.gradients,
                    gradients_of_keys: &words.gradients_of_keys,
                    queries: &words.queries,
                    dout: &words.dout,
                    keys: key_operand,
                }
            }
        };
        let per_word = with.per_word;
        let before = if first < self.sums.rows { Before::Keep } else { Before::Drop };
        for (strip, lane) in tile.strips() {
            let size = Size { rows: strip.len(), columns: padded, depth: (lanes - lane).div_ceil(per_word) };
            let start = (strip.start * width + lane) / per_word;
            let sums = (first + strip.start) * padded..(first + strip.end) * padded;
            let across = lane / per_word * padded;
            let left = Left { data: &operands.scores[start..], row: width / per_word, step: 1 };
            let right = Right { data: &operands.dout[across..], row: padded };
            let target = Target { data: &mut self.sums.dv[sums.clone()], row: padded, before };
            product(with, size, left, right, target);
            let left = Left { data: &operands.gradients[start..], ..left };
            let right = Right { data: &operands.queries[across..], row: padded };
            let target = Target { data: &mut self.sums.dk[sums], row: padded, before };
            product(with, size, left, right, target);
        }
        let before = if first > 0 { Before::Keep } else { Before::Drop };
        for (lanes, count) in tile.columns(lanes) {
            let size = Size { rows: lanes.len(), columns: padded, depth: count.div_ceil(per_word) };
            let left = Left { data: &operands.gradients_of_keys[lanes.start..], row: 1, step: width };
            let target = Target { data: &mut dq[lanes.start * padded..], row: padded, before };
            product(with, size, left, operands.keys, target);
        }
    }

    /// Fills the tiles of scores and of do·v.
    fn scores(&mut self, block: &QueryBlock, first: usize, count: usize) {
        let tile = block.limits.tile(first, count);
        let (with, width) = (self.with, tile.width);
        let Tiles { scores, gradients, words, queries_transposed, dout_transposed, .. } = &mut self.tiles;
        let (keys, values) = match self.key_value_words {
            None => (self.keys.left(first), self.values.left(first)),
            Some([keys, values, _]) => {
                let left = |(words, row): (&'a [f32], usize)| Left { data: &words[first * row..], row, step: 1 };
                (left(keys), left(values))
            }
        };
        let (queries, dout): (&[f32], &[f32]) = match words {
            None => (queries_transposed, dout_transposed),
            Some(words) => (&words.queries_transposed, &words.dout_transposed),
        };
        let depth = self.problem.shape.head_dim.div_ceil(with.per_word);
        for (strip, lane) in tile.strips() {
            let size = Size { rows: strip.len(), columns: width - lane, depth };
            let start = strip.start * width + lane;
            let right = Right { data: &queries[lane..], row: width };
            let target = Target { data: &mut scores[start..], row: width, before: Before::Drop };
            product(with, size, keys.skip_rows(strip.start), right, target);
            let right = Right { data: &dout[lane..], row: width };
            let target = Target { data: &mut gradients[start..], row: width, before: Before::Drop };
            product(with, size, values.skip_rows(strip.start), right, target);
        }
    }
}

/// What the three gradients of a tile are products of, as f32 or as words.
struct Operands<'a> {
    /// p, and ds, `[keys, queries]`.
    scores: &'a [f32],
    gradients: &'a [f32],
    /// ds with its words along the keys.
    gradients_of_keys: &'a [f32],
    /// `[queries, padded]`.
    queries: &'a [f32],
    dout: &'a [f32],
    keys: Right<'a>,
}

/// Σ aᵢ bᵢ in eight interleaved sums.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; 8];
    let whole = a.len() / 8 * 8;
    for (a, b) in a[..whole].chunks_exact(8).zip(b[..whole].chunks_exact(8)) {
        for lane in 0..8 {
            sums[lane] += a[lane] * b[lane];
        }
    }
    let rest: f32 = a[whole..].iter().zip(&b[whole..]).map(|(a, b)| a * b).sum();
    let [a, b, c, d, e, f, g, h] = sums;
    ((a + e) + (c + g)) + ((b + f) + (d + h)) + rest
}
