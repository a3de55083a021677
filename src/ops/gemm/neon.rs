//! NEON kernels for aarch64, where the instruction set is part of the baseline: 24 accumulators (8x12).

use super::kernel::{dot, dot_row, tile, tile_row, Dot, Kernels, Lanes, Tile, MOST_ROWS, ROWS_AT_ONCE};
use std::arch::aarch64::*;

#[derive(Clone, Copy)]
struct Neon;

impl Lanes for Neon {
    type Vector = float32x4_t;
    const WIDTH: usize = 4;

    #[inline(always)]
    unsafe fn zero() -> float32x4_t {
        // SAFETY: NEON is part of aarch64 (also below).
        unsafe { vdupq_n_f32(0.0) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> float32x4_t {
        // SAFETY: four words are readable by contract.
        unsafe { vld1q_f32(from) }
    }

    #[inline(always)]
    unsafe fn splat(from: *const f32) -> float32x4_t {
        // SAFETY: one word is readable by contract.
        unsafe { vld1q_dup_f32(from) }
    }

    #[inline(always)]
    unsafe fn multiply_add(a: float32x4_t, b: float32x4_t, sum: float32x4_t) -> float32x4_t {
        // SAFETY: NEON.
        unsafe { vfmaq_f32(sum, a, b) }
    }

    #[inline(always)]
    unsafe fn put(to: *mut f32, count: usize, sum: float32x4_t, alpha: f32, accumulate: bool) {
        // SAFETY: `count` words are readable and writable by contract; a partial vector goes through an array.
        unsafe {
            let mut partial = [0.0f32; 4];
            let target = if count == 4 { to } else { partial.as_mut_ptr() };
            if count < 4 && accumulate {
                std::ptr::copy_nonoverlapping(to, target, count);
            }
            let old = if accumulate { vld1q_f32(target) } else { vdupq_n_f32(0.0) };
            let value = if accumulate { vfmaq_n_f32(old, sum, alpha) } else { vmulq_n_f32(sum, alpha) };
            vst1q_f32(target, value);
            if count < 4 {
                std::ptr::copy_nonoverlapping(target, to, count);
            }
        }
    }

    #[inline(always)]
    unsafe fn add(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: NEON.
        unsafe { vaddq_f32(a, b) }
    }

    #[inline(always)]
    unsafe fn total(vector: float32x4_t) -> f32 {
        // SAFETY: NEON.
        unsafe { vaddvq_f32(vector) }
    }
}

/// # Safety
/// As [`super::kernel::TileFn`].
unsafe fn tile_f32<const R: usize, const V: usize>(args: &Tile) {
    // SAFETY: passed on.
    unsafe { tile::<Neon, R, V>(args) }
}

/// # Safety
/// As [`super::kernel::DotFn`].
unsafe fn dot_f32<const T: usize>(args: &Dot, sums: &mut [f32; MOST_ROWS]) {
    // SAFETY: passed on.
    unsafe { dot::<Neon, T>(args, sums) }
}

/// f32 operands.
pub(super) static F32: Kernels = Kernels {
    width: 4,
    tiles: &[
        tile_row!(tile_f32, 1, [1, 2, 3, 4, 5, 6, 7, 8]),
        tile_row!(tile_f32, 2, [1, 2, 3, 4, 5, 6, 7, 8]),
        tile_row!(tile_f32, 3, [1, 2, 3, 4, 5, 6, 7, 8]),
    ],
    tiled: None,
    rows_at_once: ROWS_AT_ONCE,
    dots: dot_row!(dot_f32),
    pairs: None,
    transpose: super::portable::transpose,
    codes: None,
    codes_alone: None,
};
