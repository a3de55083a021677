//! One new row against the keys: the inner loop of decoding token by token.
//!
//! With the few queries of one group, a tile with queries as lanes would be mostly empty. Here each score is a dot
//! product along the head's values, keys are the lanes of the softmax, and keys and values are each read once, in the
//! order in which they lie in memory: long caches run at the speed of the memory.

use super::block::BlockState;
use super::exp::exp;
use super::pairs::Arithmetic;
use super::product::{product, Before, Left, Size, Target};
use super::rows::Rows;
use super::simd::{dispatch, Kernel, Vector};
use super::softmax::Running;
use super::BLOCK;
use crate::device::CpuPath;
use std::ops::Range;

/// Most queries that this way is faster for.
pub(super) const LANES: usize = 8;

/// Keys of one tile: long runs of keys, then of values, are what the prefetchers of a CPU like.
const TILE: usize = 256;

/// Takes `queries`, `[lanes, head_dim]`, times a scale, over a range of keys, all of which they see.
pub(super) fn attend(
    path: CpuPath,
    state: &mut BlockState,
    (queries, scale): (&[f32], f32),
    (keys, values): (Rows<'_>, Rows<'_>),
    range: Range<usize>,
) {
    let (lanes, padded) = (state.lanes, state.padded);
    let mut scores = [0.0; LANES * TILE];
    for first in range.clone().step_by(TILE) {
        let count = TILE.min(range.end - first);
        let running = &mut state.running;
        dispatch(path, RowTile { queries, scale, keys, first, count, scores: &mut scores, running });
        // In the blocks that the tile for padded values has room for.
        for start in (0..count).step_by(BLOCK) {
            let depth = BLOCK.min(count - start);
            let size = Size { rows: lanes, columns: padded, depth };
            let left = Left { data: &scores[start..], row: TILE, step: 1 };
            let right = values.right(first + start, depth, &mut state.values);
            let before = if start == 0 { Before::Scale(&running.decay) } else { Before::Keep };
            product(Arithmetic::f32(path), size, left, right, Target { data: &mut state.outputs, row: padded, before });
        }
    }
}

/// Scores of `count` keys, `[lanes, TILE]`, and their softmax.
struct RowTile<'a> {
    queries: &'a [f32],
    scale: f32,
    keys: Rows<'a>,
    first: usize,
    count: usize,
    scores: &'a mut [f32; LANES * TILE],
    running: &'a mut Running,
}

impl Kernel for RowTile<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<V: Vector>(mut self) {
        let lanes = self.queries.len() / self.keys.head_dim;
        // SAFETY: the CPU is the caller's contract.
        unsafe {
            let mut key = 0;
            while key < self.count {
                // The last strip overlaps the one before it, unless there is only one.
                let strip = key.min(self.count.saturating_sub(V::LANES));
                for lane in 0..lanes {
                    if self.count < V::LANES {
                        self.few_scores(lane);
                    } else {
                        self.scores::<V>(lane, strip);
                    }
                }
                key += V::LANES;
            }
            (0..lanes).for_each(|lane| self.softmax::<V>(lane));
        }
    }
}

impl RowTile<'_> {
    fn query(&self, lane: usize) -> &[f32] {
        &self.queries[lane * self.keys.head_dim..(lane + 1) * self.keys.head_dim]
    }

    /// Scores of one query with all the keys, when they do not fill a register.
    fn few_scores(&mut self, lane: usize) {
        for key in 0..self.count {
            let products = self.query(lane).iter().zip(self.keys.row(self.first + key)).map(|(q, k)| q * k);
            self.scores[lane * TILE + key] = products.sum::<f32>() * self.scale;
        }
    }

    /// Scores of one query with `LANES` keys from `strip` on.
    ///
    /// # Safety
    /// The CPU has `V`.
    #[inline(always)]
    unsafe fn scores<V: Vector>(&mut self, lane: usize, strip: usize) {
        let (head_dim, stride, first) = (self.keys.head_dim, self.keys.stride, self.first + strip);
        let query = &self.queries[lane * head_dim..(lane + 1) * head_dim];
        let keys = &self.keys.data[first * stride..(first + V::LANES - 1) * stride + head_dim];
        let whole = head_dim / V::LANES * V::LANES;
        let scores = &mut self.scores[lane * TILE + strip..][..V::LANES];
        // SAFETY: d + LANES ≤ head_dim, the length of the query and of each row; `scores` has LANES values.
        unsafe {
            let mut sums = [V::splat(0.0); 16];
            if lane == 0 {
                // The keys come from memory now: in their order.
                for (i, sum) in sums[..V::LANES].iter_mut().enumerate() {
                    for d in (0..whole).step_by(V::LANES) {
                        let value = V::load(query.as_ptr().add(d));
                        *sum = value.mul_add(V::load(keys.as_ptr().add(i * stride + d)), *sum);
                    }
                }
            } else {
                for d in (0..whole).step_by(V::LANES) {
                    let value = V::load(query.as_ptr().add(d));
                    for (i, sum) in sums[..V::LANES].iter_mut().enumerate() {
                        *sum = value.mul_add(V::load(keys.as_ptr().add(i * stride + d)), *sum);
                    }
                }
            }
            V::transpose(&mut sums);
            for half in [8, 4, 2, 1] {
                if half < V::LANES {
                    for i in 0..half {
                        sums[i] = sums[i].add(sums[i + half]);
                    }
                }
            }
            sums[0].mul(V::splat(self.scale)).store(scores.as_mut_ptr());
        }
        if whole < head_dim {
            for (score, row) in scores.iter_mut().zip(keys.chunks(stride)) {
                for d in whole..head_dim {
                    *score += row[d] * query[d] * self.scale;
                }
            }
        }
    }

    /// Online softmax of one query.
    ///
    /// # Safety
    /// The CPU has `V`.
    #[inline(always)]
    unsafe fn softmax<V: Vector>(&mut self, lane: usize) {
        let scores = &mut self.scores[lane * TILE..(lane + 1) * TILE];
        let used = self.count.next_multiple_of(V::LANES);
        // As in the tiles: finite, NaN passes.
        scores[..self.count].iter_mut().for_each(|score| *score = score.clamp(-f32::MAX, f32::MAX));
        scores[self.count..used].fill(f32::NEG_INFINITY);
        let before = self.running.maximum[lane];
        // SAFETY: registers of `scores` lie within its TILE values, and TILE is a multiple of LANES.
        unsafe {
            let mut maximum = V::splat(before);
            for key in (0..used).step_by(V::LANES) {
                maximum = maximum.max(V::load(scores.as_ptr().add(key)));
            }
            let mut maxima = [-f32::MAX; 16];
            maximum.store(maxima.as_mut_ptr());
            let largest = maxima.into_iter().fold(before, f32::max);
            let mut sum = V::splat(0.0);
            for key in (0..used).step_by(V::LANES) {
                let place = scores.as_mut_ptr().add(key);
                let value = exp(V::load(place).sub(V::splat(largest)));
                value.store(place);
                sum = sum.add(value);
            }
            let decay = (before - largest).exp();
            self.running.maximum[lane] = largest;
            self.running.sum[lane] = self.running.sum[lane] * decay + sum.sum();
            self.running.decay[lane] = decay;
        }
    }
}
