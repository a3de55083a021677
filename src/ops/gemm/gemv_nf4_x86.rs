//! The lookups of [`super::gemv_nf4_rows`] with AVX-512 and AVX-512 BF16.

use super::avx512::Avx512;
use super::avx512bf16::{narrow, Pairs};
use super::gemv_nf4::{Functions, Input, Rounding, RowsFn};
use super::gemv_nf4_rows::{batch, split, Format};
use super::kernel::{Dot, MOST_ROWS};
use super::pack_nf4_avx512;
use super::pack_nf4_bf16::before_bf16;
use crate::quant::SourceDtype;
use std::arch::x86_64::*;

fn prefetch_line(bytes: *const u8) {
    // SAFETY: SSE is part of x86-64, and a prefetch never faults.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(bytes.cast()) }
}

impl Format for Avx512 {
    const UNITS: usize = 2;
    const MOST_SUMS: usize = 16;
    type Table = __m512;

    #[inline(always)]
    unsafe fn table(scale: f32, rounding: Rounding) -> __m512 {
        // SAFETY: AVX-512 F by contract.
        unsafe {
            let values = pack_nf4_avx512::table(scale, rounding.dtype);
            let last = if rounding.narrow { SourceDtype::Bf16 } else { SourceDtype::F32 };
            pack_nf4_avx512::rounded(values, last)
        }
    }

    #[inline(always)]
    unsafe fn look_up(bytes: *const u8, table: __m512) -> [__m512; 2] {
        // SAFETY: 16 bytes by contract.
        unsafe {
            let odd = _mm512_cvtepu8_epi32(_mm_loadu_si128(bytes.cast()));
            [_mm512_permutexvar_ps(_mm512_srli_epi32::<4>(odd), table), _mm512_permutexvar_ps(odd, table)]
        }
    }

    #[inline(always)]
    fn prefetch(bytes: *const u8) {
        prefetch_line(bytes);
    }
}

impl Format for Pairs {
    const UNITS: usize = 1;
    const MOST_SUMS: usize = 16;
    /// Twice the same 16 bf16: a lookup of 16-bit words takes five bits, and the fifth is the neighbour's.
    type Table = __m512i;

    #[inline(always)]
    unsafe fn table(scale: f32, rounding: Rounding) -> __m512i {
        // SAFETY: AVX-512 BF16 by contract.
        unsafe {
            let values = pack_nf4_avx512::table(scale, before_bf16(rounding.dtype));
            narrow(values, values)
        }
    }

    #[inline(always)]
    unsafe fn look_up(bytes: *const u8, table: __m512i) -> [__m512; 2] {
        // SAFETY: 32 bytes by contract.
        unsafe {
            let odd = _mm512_cvtepu8_epi16(_mm256_loadu_si256(bytes.cast()));
            let even = _mm512_permutexvar_epi16(_mm512_srli_epi16::<4>(odd), table);
            [_mm512_castsi512_ps(even), _mm512_castsi512_ps(_mm512_permutexvar_epi16(odd, table))]
        }
    }

    #[inline(always)]
    fn prefetch(bytes: *const u8) {
        prefetch_line(bytes);
    }
}

/// A function for every number of rows of x.
macro_rules! rows {
    ($name:ident, $format:ty, $features:literal) => {{
        /// # Safety
        /// As [`RowsFn`]; the instruction set is available.
        #[target_feature(enable = $features)]
        unsafe fn $name<const T: usize>(
            codes: *const u8,
            scales: &[f32],
            rounding: Rounding,
            dot: &Dot,
            sums: &mut [[f32; MOST_ROWS]],
        ) {
            // SAFETY: passed on.
            unsafe { batch::<$format, T>(codes, scales, rounding, dot, sums) }
        }
        static ROWS: [RowsFn; MOST_ROWS] =
            [$name::<1>, $name::<2>, $name::<3>, $name::<4>, $name::<5>, $name::<6>, $name::<7>, $name::<8>];
        &ROWS
    }};
}

/// f32 words with AVX-512.
pub(super) static AVX512: Functions = Functions {
    rows: rows!(avx512, Avx512, "avx512f,avx512bw,avx512vl,avx512dq"),
    input: Input::Ordered(split::<32>),
    suits: |_| true,
};

/// Pairs of bf16 with AVX-512 BF16.
pub(super) static PAIRS: Functions = Functions {
    rows: rows!(pairs, Pairs, "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16"),
    input: Input::Ordered(split::<64>),
    suits: |_| true,
};
