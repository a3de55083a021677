//! The element-wise part of a score tile: masking, online softmax, and its gradient.
//!
//! Scores are held within ±`f32::MAX`, so that no difference of two of them is ∞ - ∞; NaN passes.

use super::exp::exp;
use super::simd::{dispatch, Kernel, Vector};
use super::visible::Tile;
use super::BLOCK;
use crate::device::CpuPath;

/// What the online softmax knows of each lane after the tiles so far.
pub(super) struct Running {
    /// Largest score.
    pub maximum: [f32; BLOCK],
    /// Σ exp(score - maximum).
    pub sum: [f32; BLOCK],
    /// exp(previous maximum - maximum): what the last tile made of earlier outputs.
    pub decay: [f32; BLOCK],
}

impl Running {
    pub fn new() -> Running {
        Running { maximum: [-f32::MAX; BLOCK], sum: [0.0; BLOCK], decay: [0.0; BLOCK] }
    }
}

/// Turns scores into exp(score - maximum), 0 where not visible, and updates `running`.
pub(super) fn online_softmax(path: CpuPath, tile: Tile<'_>, scores: &mut [f32], running: &mut Running) {
    assert!(tile.width <= BLOCK && scores.len() == tile.count * tile.width);
    dispatch(path, OnlineSoftmax { tile, scores, running });
}

struct OnlineSoftmax<'a> {
    tile: Tile<'a>,
    scores: &'a mut [f32],
    running: &'a mut Running,
}

/// `GROUP` registers side by side at `lane`: enough independent work to hide the latency of the maxima and sums.
fn registers_at<V: Vector>(tile: &Tile<'_>, lane: usize) -> usize {
    if !tile.masked && lane + 4 * V::LANES <= tile.width {
        4
    } else {
        1
    }
}

impl Kernel for OnlineSoftmax<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<V: Vector>(mut self) {
        let mut lane = 0;
        while lane < self.tile.width {
            let group = registers_at::<V>(&self.tile, lane);
            // SAFETY: `group` registers from `lane` on lie within the width; `online_softmax` has checked the rest.
            unsafe {
                match group {
                    4 => self.lanes::<V, 4>(lane),
                    _ => self.lanes::<V, 1>(lane),
                }
            }
            lane += group * V::LANES;
        }
    }
}

impl OnlineSoftmax<'_> {
    /// # Safety
    /// `lane + GROUP * LANES` is at most the width; the CPU has `V`.
    #[inline(always)]
    unsafe fn lanes<V: Vector, const GROUP: usize>(&mut self, lane: usize) {
        let Tile { width, limits, first, masked, .. } = self.tile;
        let rows = self.tile.keys_of(lane);
        // SAFETY: the tile has at least `rows` rows of `width` values, and `running` has BLOCK lanes.
        unsafe {
            let scores = self.scores.as_mut_ptr().add(lane);
            let place = |row: usize, register: usize| scores.add(row * width + register * V::LANES);
            let largest = V::splat(f32::MAX);
            let mut before = [largest; GROUP];
            for (i, before) in before.iter_mut().enumerate() {
                *before = V::load(self.running.maximum.as_ptr().add(lane + i * V::LANES));
            }
            let mut maximum = before;
            for row in 0..rows {
                for (i, maximum) in maximum.iter_mut().enumerate() {
                    let mut value = largest.min(V::splat(-f32::MAX).max(V::load(place(row, i))));
                    if masked {
                        let limit = V::load(limits.as_ptr().add(lane + i * V::LANES));
                        value = V::splat((first + row) as f32).select_less(limit, value, V::splat(f32::NEG_INFINITY));
                    }
                    value.store(place(row, i));
                    *maximum = maximum.max(value);
                }
            }
            let mut sum = [V::splat(0.0); GROUP];
            for row in 0..rows {
                for (i, sum) in sum.iter_mut().enumerate() {
                    let value = exp(V::load(place(row, i)).sub(maximum[i]));
                    value.store(place(row, i));
                    *sum = sum.add(value);
                }
            }
            for i in 0..GROUP {
                let at = lane + i * V::LANES;
                let decay = exp(before[i].sub(maximum[i]));
                let total = V::load(self.running.sum.as_ptr().add(at)).mul_add(decay, sum[i]);
                maximum[i].store(self.running.maximum.as_mut_ptr().add(at));
                total.store(self.running.sum.as_mut_ptr().add(at));
                decay.store(self.running.decay.as_mut_ptr().add(at));
            }
        }
    }
}

/// What the gradient of a tile needs of each lane.
pub(super) struct LaneGradient {
    /// ln Σ exp(score).
    pub lse: [f32; BLOCK],
    /// Δ, gradient of the output times output.
    pub delta: [f32; BLOCK],
    /// 1/√D.
    pub scale: f32,
}

/// Turns scores into probabilities p (in `scores`) and do·v into ds = p (do·v - Δ) · scale (in `gradients`).
pub(super) fn softmax_gradient(
    path: CpuPath,
    tile: Tile<'_>,
    scores: &mut [f32],
    gradients: &mut [f32],
    lanes: &LaneGradient,
) {
    assert!(tile.width <= BLOCK && scores.len() == tile.count * tile.width && scores.len() == gradients.len());
    dispatch(path, SoftmaxGradient { tile, scores, gradients, lanes });
}

struct SoftmaxGradient<'a> {
    tile: Tile<'a>,
    scores: &'a mut [f32],
    gradients: &'a mut [f32],
    lanes: &'a LaneGradient,
}

impl Kernel for SoftmaxGradient<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let SoftmaxGradient { tile, scores, gradients, lanes } = self;
        let width = tile.width;
        // SAFETY: lane + LANES ≤ width ≤ BLOCK, and both tiles have at least `keys_of(lane)` rows of `width` values.
        unsafe {
            let (zero, scale, largest) = (V::splat(0.0), V::splat(lanes.scale), V::splat(f32::MAX));
            for lane in (0..width).step_by(V::LANES) {
                let lse = V::load(lanes.lse.as_ptr().add(lane));
                let delta = V::load(lanes.delta.as_ptr().add(lane));
                let limit = V::load(tile.limits.as_ptr().add(lane));
                for row in 0..tile.keys_of(lane) {
                    let score = scores.as_mut_ptr().add(row * width + lane);
                    let gradient = gradients.as_mut_ptr().add(row * width + lane);
                    let value = largest.min(V::splat(-f32::MAX).max(V::load(score)));
                    let mut probability = exp(value.sub(lse));
                    let mut change = probability.mul(scale).mul(V::load(gradient).sub(delta));
                    if tile.masked {
                        let key = V::splat((tile.first + row) as f32);
                        probability = key.select_less(limit, probability, zero);
                        change = key.select_less(limit, change, zero);
                    }
                    probability.store(score);
                    change.store(gradient);
                }
            }
        }
    }
}
