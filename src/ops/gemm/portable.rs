//! Kernels in plain Rust, for machines without a better path; the compiler vectorises the four-lane arrays.
//!
//! Products and sums are rounded apart: a fused multiply-add would be a library call on machines without one.

use super::kernel::{dot, dot_row, tile, tile_row, Dot, Kernels, Lanes, Tile, MOST_ROWS, ROWS_AT_ONCE};

#[derive(Clone, Copy)]
struct Portable;

impl Lanes for Portable {
    type Vector = [f32; 4];
    const WIDTH: usize = 4;

    #[inline(always)]
    unsafe fn zero() -> [f32; 4] {
        [0.0; 4]
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> [f32; 4] {
        // SAFETY: four words are readable by the contract of `load`.
        unsafe { from.cast::<[f32; 4]>().read() }
    }

    #[inline(always)]
    unsafe fn splat(from: *const f32) -> [f32; 4] {
        // SAFETY: one word is readable by the contract of `splat`.
        [unsafe { *from }; 4]
    }

    #[inline(always)]
    unsafe fn multiply_add(a: [f32; 4], b: [f32; 4], sum: [f32; 4]) -> [f32; 4] {
        [sum[0] + a[0] * b[0], sum[1] + a[1] * b[1], sum[2] + a[2] * b[2], sum[3] + a[3] * b[3]]
    }

    #[inline(always)]
    unsafe fn put(to: *mut f32, count: usize, sum: [f32; 4], alpha: f32, accumulate: bool) {
        // SAFETY: `count` words are readable and writable by the contract of `put`.
        let to = unsafe { std::slice::from_raw_parts_mut(to, count) };
        for (target, value) in to.iter_mut().zip(sum) {
            *target = if accumulate { *target + alpha * value } else { alpha * value };
        }
    }

    #[inline(always)]
    unsafe fn add(a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        [a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] + b[3]]
    }

    #[inline(always)]
    unsafe fn total(vector: [f32; 4]) -> f32 {
        (vector[0] + vector[2]) + (vector[1] + vector[3])
    }
}

/// # Safety
/// As [`super::kernel::DotFn`].
unsafe fn dot_f32<const T: usize>(args: &Dot, sums: &mut [f32; MOST_ROWS]) {
    // SAFETY: passed on.
    unsafe { dot::<Portable, T>(args, sums) }
}

/// # Safety
/// As [`super::kernel::TileFn`].
unsafe fn tile_f32<const R: usize, const V: usize>(args: &Tile) {
    // SAFETY: passed on.
    unsafe { tile::<Portable, R, V>(args) }
}

/// # Safety
/// As [`super::kernel::TransposeFn`].
pub(super) unsafe fn transpose(rows: &[*const f32], words: usize, to: *mut f32, stride: usize) {
    for w in 0..words {
        for (r, row) in rows.iter().enumerate() {
            // SAFETY: w < words is readable in each row, and the target is writable by contract.
            unsafe { *to.add(w * stride + r) = *row.add(w) };
        }
    }
}

/// f32 operands.
pub(super) static F32: Kernels = Kernels {
    width: 4,
    tiles: &[tile_row!(tile_f32, 1, [1, 2, 3, 4]), tile_row!(tile_f32, 2, [1, 2, 3, 4])],
    tiled: None,
    rows_at_once: ROWS_AT_ONCE,
    dots: dot_row!(dot_f32),
    pairs: None,
    transpose,
    codes: None,
    codes_alone: None,
};
