//! bf16 kernels with `vdpbf16ps`: each lane adds two products of a pair of bf16 to an f32.
//!
//! The instruction flushes subnormal operands and results to zero and adds the odd product first, each with one
//! rounding; `vcvtne2ps2bf16` rounds to nearest even and flushes subnormal inputs.

use super::avx512::{first_lanes, transpose, Avx512};
use super::kernel::{dot, dot_row, tile, tile_row, Dot, Kernels, Lanes, PairFns, Tile, MOST_ROWS, ROWS_AT_ONCE};
use std::arch::x86_64::*;

/// Words are pairs of bf16; sums are f32.
#[derive(Clone, Copy)]
pub(super) struct Pairs;

impl Lanes for Pairs {
    type Vector = __m512;
    const WIDTH: usize = 16;

    #[inline(always)]
    unsafe fn zero() -> __m512 {
        // SAFETY: passed on.
        unsafe { Avx512::zero() }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m512 {
        // SAFETY: passed on.
        unsafe { Avx512::load(from) }
    }

    #[inline(always)]
    unsafe fn splat(from: *const f32) -> __m512 {
        // SAFETY: passed on.
        unsafe { Avx512::splat(from) }
    }

    #[inline(always)]
    unsafe fn multiply_add(a: __m512, b: __m512, sum: __m512) -> __m512 {
        // SAFETY: AVX-512 BF16 by the contract of `Lanes`; both types are 512 plain bits.
        unsafe {
            _mm512_dpbf16_ps(
                sum,
                std::mem::transmute::<__m512, __m512bh>(a),
                std::mem::transmute::<__m512, __m512bh>(b),
            )
        }
    }

    #[inline(always)]
    unsafe fn put(to: *mut f32, count: usize, sum: __m512, alpha: f32, accumulate: bool) {
        // SAFETY: passed on.
        unsafe { Avx512::put(to, count, sum, alpha, accumulate) }
    }

    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        // SAFETY: passed on.
        unsafe { Avx512::add(a, b) }
    }

    #[inline(always)]
    unsafe fn total(vector: __m512) -> f32 {
        // SAFETY: passed on.
        unsafe { Avx512::total(vector) }
    }
}

/// # Safety
/// As [`super::kernel::TileFn`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
unsafe fn tile_pairs<const R: usize, const V: usize>(args: &Tile) {
    // SAFETY: passed on.
    unsafe { tile::<Pairs, R, V>(args) }
}

/// # Safety
/// As [`super::kernel::DotFn`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
unsafe fn dot_pairs<const T: usize>(args: &Dot, sums: &mut [f32; MOST_ROWS]) {
    // SAFETY: passed on.
    unsafe { dot::<Pairs, T>(args, sums) }
}

/// Two registers of f32 to 32 bf16: `low` in words 0 to 15, `high` in 16 to 31.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
pub(in crate::ops) fn narrow(low: __m512, high: __m512) -> __m512i {
    let words = _mm512_cvtne2ps_pbh(high, low);
    // SAFETY: both types are 512 plain bits.
    unsafe { std::mem::transmute::<__m512bh, __m512i>(words) }
}

/// The order of 16-bit words that pairs word i with word i + 16.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(in crate::ops) fn interleave() -> __m512i {
    const ORDER: [u16; 32] = {
        let mut order = [0; 32];
        let mut i = 0;
        while i < 32 {
            order[i] = (i / 2 + i % 2 * 16) as u16;
            i += 1;
        }
        order
    };
    // SAFETY: ORDER has 64 bytes.
    unsafe { _mm512_loadu_si512(ORDER.as_ptr().cast()) }
}

/// # Safety
/// AVX-512 BF16 is available; see [`PairFns::neighbours`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
unsafe fn pair_neighbours(from: &[f32], to: &mut [f32]) {
    let to = &mut to[..from.len().div_ceil(2)];
    for (from, to) in from.chunks(32).zip(to.chunks_mut(16)) {
        let (low, high) = (first_lanes(from.len()), first_lanes(from.len().saturating_sub(16)));
        _mm_prefetch::<_MM_HINT_T0>(from.as_ptr().wrapping_add(1024).cast());
        _mm_prefetch::<_MM_HINT_T0>(from.as_ptr().wrapping_add(1040).cast());
        // SAFETY: the masks keep the accesses inside the chunks; the high address stays inside or one past the end.
        unsafe {
            let words = narrow(
                _mm512_maskz_loadu_ps(low, from.as_ptr()),
                _mm512_maskz_loadu_ps(high, from.as_ptr().wrapping_add(16)),
            );
            _mm512_mask_storeu_epi32(to.as_mut_ptr().cast(), first_lanes(to.len()), words);
        }
    }
}

/// # Safety
/// AVX-512 BF16 is available; see [`PairFns::rows`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
unsafe fn pair_rows(even: &[f32], odd: &[f32], to: &mut [f32]) {
    let order = interleave();
    for ((even, odd), to) in even.chunks(16).zip(odd.chunks(16)).zip(to.chunks_mut(16)) {
        let mask = first_lanes(even.len().min(odd.len()).min(to.len()));
        // SAFETY: the mask keeps the accesses inside the chunks.
        unsafe {
            let words = narrow(_mm512_maskz_loadu_ps(mask, even.as_ptr()), _mm512_maskz_loadu_ps(mask, odd.as_ptr()));
            _mm512_mask_storeu_epi32(to.as_mut_ptr().cast(), mask, _mm512_permutexvar_epi16(order, words));
        }
    }
}

/// bf16 operands.
pub(super) static BF16: Kernels = KERNELS;

/// The same, to be changed in parts.
pub(super) const KERNELS: Kernels = Kernels {
    width: 16,
    tiles: &[
        tile_row!(tile_pairs, 1, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]),
        tile_row!(tile_pairs, 2, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]),
        tile_row!(tile_pairs, 3, [1, 2, 3, 4, 5, 6, 7, 8]),
    ],
    tiled: None,
    rows_at_once: ROWS_AT_ONCE,
    dots: dot_row!(dot_pairs),
    pairs: Some(PairFns { neighbours: pair_neighbours, rows: pair_rows }),
    transpose,
    codes: Some(&super::gemv_nf4_x86::PAIRS),
    codes_alone: None,
};
