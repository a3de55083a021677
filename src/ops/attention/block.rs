//! A block of queries on its way over the keys: the inner loop of forward and of decoding.

use super::parallel::scratch;
use super::product::{product, Before, Left, Right, Size, Target, PADDING};
use super::rows::{pack_transposed, Lanes, Rows};
use super::softmax::{online_softmax, Running};
use super::visible::Limits;
use super::BLOCK;
use crate::device::CpuPath;
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
    /// `[head_dim, width]`, scaled.
    queries: Matrix,
    /// `[BLOCK, width]`.
    pub scores: Matrix,
    /// `[BLOCK, padded]`.
    pub values: Matrix,
    /// `[lanes, padded]`, to be divided by the running sum.
    pub outputs: Matrix,
    pub running: Running,
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
