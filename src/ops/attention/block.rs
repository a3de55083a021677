//! A block of queries on its way over the keys: the inner loop of forward and of decoding.

use super::pairs::{interleaved, Arithmetic, Source};
use super::parallel::scratch;
use super::product::{product, Before, Left, Right, Size, Target, PADDING};
use super::rows::{pack_transposed, Lanes, Rows};
use super::softmax::{online_softmax, Running};
use super::visible::Limits;
use super::BLOCK;
use crate::ops::Matrix;
use std::ops::Range;

/// A block of up to [`BLOCK`] queries on its way over the keys.
pub(super) struct BlockState {
    pub head_dim: usize,
    /// Lanes of a score tile: queries, rounded up to whole registers.
    width: usize,
    /// Length of a row of outputs or values: `head_dim`, rounded up to whole registers.
    pub padded: usize,
    pub lanes: usize,
    arithmetic: Arithmetic,
    /// `[head_dim, width]`, scaled; with pairs, words of two rows.
    queries: Matrix,
    /// `[BLOCK, width]`.
    pub scores: Matrix,
    /// `[BLOCK, padded]`.
    pub values: Matrix,
    /// `[lanes, padded]`, to be divided by the running sum.
    pub outputs: Matrix,
    pub running: Running,
    /// `[BLOCK / 2, width]`: words of two keys' weights.
    weights: Option<Matrix>,
}

/// What a block goes over.
#[derive(Clone, Copy)]
pub(super) enum KeysValues<'a> {
    /// As they are.
    Rows(Rows<'a>, Rows<'a>),
    /// Keys in rows of [`row_words`] words, values in rows of `padded` words of two.
    Words(&'a [f32], &'a [f32]),
}

/// Words of a row of `head_dim` values.
pub(super) fn row_words(head_dim: usize) -> usize {
    head_dim.div_ceil(2).next_multiple_of(PADDING)
}

impl BlockState {
    pub fn new(arithmetic: Arithmetic, head_dim: usize, lanes: usize) -> BlockState {
        let arena = scratch();
        let (width, padded) = (lanes.next_multiple_of(PADDING), head_dim.next_multiple_of(PADDING));
        BlockState {
            head_dim,
            width,
            padded,
            lanes,
            arithmetic,
            queries: arena.matrix(head_dim, width),
            scores: arena.matrix(BLOCK, width),
            values: arena.matrix(BLOCK, padded),
            outputs: arena.zeros(lanes, padded),
            running: Running::new(),
            weights: arithmetic.is_pairs().then(|| arena.matrix(BLOCK / 2, width)),
        }
    }

    /// Takes the queries in, times `scale`.
    pub fn load_queries(&mut self, queries: Lanes<'_>, scale: f32) {
        let width = self.width;
        if !self.arithmetic.is_pairs() {
            return pack_transposed(self.arithmetic.path, queries, scale, width, &mut self.queries);
        }
        let mut transposed = scratch().matrix(self.head_dim, width);
        pack_transposed(self.arithmetic.path, queries, scale, width, &mut transposed);
        let rows = Source { data: &transposed, rows: self.head_dim, length: width, stride: width };
        interleaved(rows, width, &mut self.queries);
    }

    /// Goes over a range of keys, of which each lane sees those below its limit. They are words where the arithmetic is
    /// that of pairs; then the range starts at an even row.
    pub fn attend(&mut self, keys_values: KeysValues<'_>, range: Range<usize>, limits: &Limits) {
        let (width, padded, arithmetic) = (self.width, self.padded, self.arithmetic);
        for first in range.clone().step_by(BLOCK) {
            let tile = limits.tile(first, BLOCK.min(range.end - first));
            let scores = &mut self.scores[..tile.count * width];
            let left = match keys_values {
                KeysValues::Rows(keys, _) => keys.left(first),
                KeysValues::Words(keys, _) => {
                    let row = row_words(self.head_dim);
                    Left { data: &keys[first * row..], row, step: 1 }
                }
            };
            for (strip, lane) in tile.strips() {
                let depth = self.head_dim.div_ceil(arithmetic.per_word);
                let size = Size { rows: strip.len(), columns: width - lane, depth };
                let right = Right { data: &self.queries[lane..], row: width };
                let data = &mut scores[strip.start * width + lane..];
                let target = Target { data, row: width, before: Before::Drop };
                product(arithmetic, size, left.skip_rows(strip.start), right, target);
            }
            online_softmax(arithmetic.path, tile, scores, &mut self.running);
            let right = match keys_values {
                KeysValues::Rows(_, values) => values.right(first, tile.count, &mut self.values),
                KeysValues::Words(_, values) => Right { data: &values[first / 2 * padded..], row: padded },
            };
            let weights: &[f32] = match &mut self.weights {
                Some(weights) => {
                    let rows = Source { data: scores, rows: tile.count, length: width, stride: width };
                    interleaved(rows, width, weights);
                    weights
                }
                None => scores,
            };
            for (lanes, count) in tile.columns(self.lanes) {
                let size = Size { rows: lanes.len(), columns: padded, depth: count.div_ceil(arithmetic.per_word) };
                let left = Left { data: &weights[lanes.start..], row: 1, step: width };
                let before = Before::Scale(&self.running.decay[lanes.start..]);
                let data = &mut self.outputs[lanes.start * padded..];
                product(arithmetic, size, left, right, Target { data, row: padded, before });
            }
        }
    }

    /// Takes in what the same queries found among other keys.
    pub fn merge(&mut self, other: &BlockState) {
        for lane in 0..self.lanes {
            let maximum = self.running.maximum[lane].max(other.running.maximum[lane]);
            let own = (self.running.maximum[lane] - maximum).exp();
            let others = (other.running.maximum[lane] - maximum).exp();
            self.running.maximum[lane] = maximum;
            self.running.sum[lane] = own * self.running.sum[lane] + others * other.running.sum[lane];
            let row = lane * self.padded..(lane + 1) * self.padded;
            for (value, other) in self.outputs[row.clone()].iter_mut().zip(&other.outputs[row]) {
                *value = own * *value + others * other;
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
