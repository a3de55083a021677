//! The element-wise part of a score tile: masking, online softmax, and its gradient.
//!
//! A tile has one row per key and `width` lanes, one per query. Lane m may see the keys below `limits[m]`.

use super::exp::exp;
use super::simd::{dispatch, Kernel, Vector};
use super::BLOCK;
use crate::device::CpuPath;

/// Which entries of a tile exist.
#[derive(Clone, Copy)]
pub(super) struct Mask<'a> {
    /// Number of the tile's first key.
    pub first_key: usize,
    /// Number of keys that each lane sees. Exact in f32 below 2²⁴ keys.
    pub limits: &'a [f32; BLOCK],
}

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
        Running { maximum: [f32::NEG_INFINITY; BLOCK], sum: [0.0; BLOCK], decay: [0.0; BLOCK] }
    }
}

/// Turns scores into exp(score - maximum), 0 where masked, and updates `running`.
///
/// Each lane sees at least one key of the first tile, so `maximum` is finite from then on.
pub(super) fn online_softmax(path: CpuPath, tile: &mut [f32], width: usize, mask: Option<Mask>, running: &mut Running) {
    assert!(width <= BLOCK && tile.len().is_multiple_of(width));
    dispatch(path, OnlineSoftmax { tile, width, mask, running });
}

struct OnlineSoftmax<'a> {
    tile: &'a mut [f32],
    width: usize,
    mask: Option<Mask<'a>>,
    running: &'a mut Running,
}

impl Kernel for OnlineSoftmax<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let OnlineSoftmax { tile, width, mask, running } = self;
        let rows = tile.len() / width;
        for lane in (0..width).step_by(V::LANES) {
            // SAFETY: lane + LANES ≤ width ≤ BLOCK, and the tile has `rows` rows of `width` values.
            unsafe {
                let first = tile.as_mut_ptr().add(lane);
                let score = |row: usize| first.add(row * width);
                let largest = V::splat(f32::MAX);
                let before = V::load(running.maximum.as_ptr().add(lane));
                let mut maximum = before;
                for row in 0..rows {
                    // Finite, so that no difference below is ∞ - ∞; NaN passes.
                    let mut value = largest.min(V::splat(-f32::MAX).max(V::load(score(row))));
                    if let Some(mask) = mask {
                        let key = V::splat((mask.first_key + row) as f32);
                        let limit = V::load(mask.limits.as_ptr().add(lane));
                        value = key.select_less(limit, value, V::splat(f32::NEG_INFINITY));
                    }
                    value.store(score(row));
                    maximum = maximum.max(value);
                }
                let decay = exp(before.sub(maximum));
                let mut sum = V::splat(0.0);
                for row in 0..rows {
                    let value = exp(V::load(score(row)).sub(maximum));
                    value.store(score(row));
                    sum = sum.add(value);
                }
                let total = V::load(running.sum.as_ptr().add(lane)).mul_add(decay, sum);
                maximum.store(running.maximum.as_mut_ptr().add(lane));
                total.store(running.sum.as_mut_ptr().add(lane));
                decay.store(running.decay.as_mut_ptr().add(lane));
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
    scores: &mut [f32],
    gradients: &mut [f32],
    width: usize,
    mask: Option<Mask<'_>>,
    lanes: &LaneGradient,
) {
    assert!(width <= BLOCK && scores.len().is_multiple_of(width) && scores.len() == gradients.len());
    dispatch(path, SoftmaxGradient { scores, gradients, width, mask, lanes });
}

struct SoftmaxGradient<'a> {
    scores: &'a mut [f32],
    gradients: &'a mut [f32],
    width: usize,
    mask: Option<Mask<'a>>,
    lanes: &'a LaneGradient,
}

impl Kernel for SoftmaxGradient<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let SoftmaxGradient { scores, gradients, width, mask, lanes } = self;
        let rows = scores.len() / width;
        // SAFETY: lane + LANES ≤ width ≤ BLOCK, and both tiles have `rows` rows of `width` values.
        unsafe {
            let (zero, scale, largest) = (V::splat(0.0), V::splat(lanes.scale), V::splat(f32::MAX));
            for lane in (0..width).step_by(V::LANES) {
                let lse = V::load(lanes.lse.as_ptr().add(lane));
                let delta = V::load(lanes.delta.as_ptr().add(lane));
                for row in 0..rows {
                    let score = scores.as_mut_ptr().add(row * width + lane);
                    let gradient = gradients.as_mut_ptr().add(row * width + lane);
                    // Clamped as in forward.
                    let value = largest.min(V::splat(-f32::MAX).max(V::load(score)));
                    let mut probability = exp(value.sub(lse));
                    let mut change = probability.mul(scale).mul(V::load(gradient).sub(delta));
                    if let Some(mask) = mask {
                        let key = V::splat((mask.first_key + row) as f32);
                        let limit = V::load(mask.limits.as_ptr().add(lane));
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
