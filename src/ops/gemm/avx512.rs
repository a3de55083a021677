//! AVX-512 kernels: 24 accumulators (8x48, 12x32), transposition of 16x16 words.

use super::kernel::{dot, dot_row, tile, tile_row, Dot, Kernels, Lanes, Tile, MOST_ROWS, ROWS_AT_ONCE};
use std::arch::x86_64::*;

#[derive(Clone, Copy)]
pub(super) struct Avx512;

impl Lanes for Avx512 {
    type Vector = __m512;
    const WIDTH: usize = 16;

    #[inline(always)]
    unsafe fn zero() -> __m512 {
        // SAFETY: AVX-512 F is available by the contract of `Lanes` (also below).
        unsafe { _mm512_setzero_ps() }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m512 {
        // SAFETY: 16 words are readable by contract.
        unsafe { _mm512_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn splat(from: *const f32) -> __m512 {
        // SAFETY: one word is readable by contract.
        unsafe { _mm512_set1_ps(*from) }
    }

    #[inline(always)]
    unsafe fn multiply_add(a: __m512, b: __m512, sum: __m512) -> __m512 {
        // SAFETY: AVX-512 F by contract.
        unsafe { _mm512_fmadd_ps(a, b, sum) }
    }

    #[inline(always)]
    unsafe fn put(to: *mut f32, count: usize, sum: __m512, alpha: f32, accumulate: bool) {
        // SAFETY: the mask keeps the access to `count` words, which are readable and writable by contract.
        unsafe {
            let mask = first_lanes(count);
            let factor = _mm512_set1_ps(alpha);
            let value = if accumulate {
                _mm512_fmadd_ps(factor, sum, _mm512_maskz_loadu_ps(mask, to))
            } else {
                _mm512_mul_ps(factor, sum)
            };
            _mm512_mask_storeu_ps(to, mask, value);
        }
    }

    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        // SAFETY: AVX-512 F by contract.
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn total(vector: __m512) -> f32 {
        // SAFETY: AVX-512 F by contract.
        unsafe { _mm512_reduce_add_ps(vector) }
    }
}

/// The mask of the first `count` of 16 lanes.
#[inline(always)]
pub(in crate::ops) fn first_lanes(count: usize) -> u16 {
    if count >= 16 {
        u16::MAX
    } else {
        (1 << count) - 1
    }
}

/// # Safety
/// As [`super::kernel::TileFn`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn tile_f32<const R: usize, const V: usize>(args: &Tile) {
    // SAFETY: passed on.
    unsafe { tile::<Avx512, R, V>(args) }
}

/// # Safety
/// As [`super::kernel::DotFn`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn dot_f32<const T: usize>(args: &Dot, sums: &mut [f32; MOST_ROWS]) {
    // SAFETY: passed on.
    unsafe { dot::<Avx512, T>(args, sums) }
}

/// Transposes 16 registers of 16 words.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn transpose_16x16(rows: [__m512i; 16]) -> [__m512i; 16] {
    let zero = _mm512_setzero_si512();
    let (mut by_two, mut by_four) = ([zero; 16], [zero; 16]);
    for i in 0..8 {
        by_two[2 * i] = _mm512_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
        by_two[2 * i + 1] = _mm512_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
    }
    for i in 0..4 {
        by_four[4 * i] = _mm512_unpacklo_epi64(by_two[4 * i], by_two[4 * i + 2]);
        by_four[4 * i + 1] = _mm512_unpackhi_epi64(by_two[4 * i], by_two[4 * i + 2]);
        by_four[4 * i + 2] = _mm512_unpacklo_epi64(by_two[4 * i + 1], by_two[4 * i + 3]);
        by_four[4 * i + 3] = _mm512_unpackhi_epi64(by_two[4 * i + 1], by_two[4 * i + 3]);
    }
    // by_four[4 g + j], lane l of 128 bits: word 4 l + j of rows 4 g to 4 g + 3.
    let mut columns = [zero; 16];
    for j in 0..4 {
        let low_even = _mm512_shuffle_i32x4::<0b10_00_10_00>(by_four[j], by_four[4 + j]);
        let low_odd = _mm512_shuffle_i32x4::<0b11_01_11_01>(by_four[j], by_four[4 + j]);
        let high_even = _mm512_shuffle_i32x4::<0b10_00_10_00>(by_four[8 + j], by_four[12 + j]);
        let high_odd = _mm512_shuffle_i32x4::<0b11_01_11_01>(by_four[8 + j], by_four[12 + j]);
        columns[j] = _mm512_shuffle_i32x4::<0b10_00_10_00>(low_even, high_even);
        columns[8 + j] = _mm512_shuffle_i32x4::<0b11_01_11_01>(low_even, high_even);
        columns[4 + j] = _mm512_shuffle_i32x4::<0b10_00_10_00>(low_odd, high_odd);
        columns[12 + j] = _mm512_shuffle_i32x4::<0b11_01_11_01>(low_odd, high_odd);
    }
    columns
}

/// # Safety
/// As [`super::kernel::TransposeFn`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
pub(in crate::ops) unsafe fn transpose(rows: &[*const f32], words: usize, to: *mut f32, stride: usize) {
    assert!((1..=16).contains(&rows.len()));
    // Rows beyond the last repeat it: their lanes are masked away at the store.
    let pointers: [*const f32; 16] = std::array::from_fn(|r| rows[r.min(rows.len() - 1)]);
    let row_mask = first_lanes(rows.len());
    for w in (0..words).step_by(16) {
        let word_mask = first_lanes(words - w);
        let mut block = [_mm512_setzero_si512(); 16];
        for (register, pointer) in block.iter_mut().zip(pointers) {
            // SAFETY: the mask keeps the load below `words`.
            *register = unsafe { _mm512_maskz_loadu_epi32(word_mask, pointer.add(w).cast()) };
        }
        let block = transpose_16x16(block);
        for (i, &column) in block.iter().enumerate().take(words - w) {
            // SAFETY: w + i < words and the mask keeps the store to the rows that exist.
            unsafe { _mm512_mask_storeu_epi32(to.add((w + i) * stride).cast(), row_mask, column) };
        }
    }
}

/// f32 operands.
pub(super) static F32: Kernels = Kernels {
    width: 16,
    tiles: &[
        tile_row!(tile_f32, 1, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]),
        tile_row!(tile_f32, 2, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]),
        tile_row!(tile_f32, 3, [1, 2, 3, 4, 5, 6, 7, 8]),
    ],
    tiled: None,
    rows_at_once: ROWS_AT_ONCE,
    dots: dot_row!(dot_f32),
    pairs: None,
    transpose,
    codes: Some(&super::gemv_nf4_x86::AVX512),
    codes_alone: None,
};
