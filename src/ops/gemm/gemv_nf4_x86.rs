//! The lookups of [`super::gemv_nf4`] with AVX2, AVX-512 and AVX-512 BF16.

use super::avx2::{self, half_tables, look_up, Avx2};
use super::avx512::Avx512;
use super::avx512bf16::{narrow, Pairs};
use super::gemv_nf4::{batch, split, Format, Functions, RowsFn, Table};
use super::kernel::{Dot, MOST_ROWS};
use super::pack_nf4_avx512;
use super::pack_nf4_bf16::before_bf16;
use crate::quant::SourceDtype;
use std::arch::x86_64::*;

fn prefetch_line(bytes: *const u8) {
    // SAFETY: SSE is part of x86-64, and a prefetch never faults.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(bytes.cast()) }
}

impl Format for Avx2 {
    const UNITS: usize = 4;
    const MOST_SUMS: usize = 8;

    #[inline(always)]
    unsafe fn look_up(bytes: *const u8, table: &Table) -> [__m256; 2] {
        // SAFETY: 8 bytes by contract; a table has 16 words.
        unsafe {
            let (low, high) = (_mm256_load_ps(table.0.as_ptr()), _mm256_load_ps(table.0.as_ptr().add(8)));
            let odd = _mm256_cvtepu8_epi32(_mm_loadl_epi64(bytes.cast()));
            [look_up(_mm256_srli_epi32::<4>(odd), low, high), look_up(odd, low, high)]
        }
    }

    #[inline(always)]
    fn prefetch(bytes: *const u8) {
        prefetch_line(bytes);
    }
}

impl Format for Avx512 {
    const UNITS: usize = 2;
    const MOST_SUMS: usize = 16;

    #[inline(always)]
    unsafe fn look_up(bytes: *const u8, table: &Table) -> [__m512; 2] {
        // SAFETY: 16 bytes by contract; a table has 16 words.
        unsafe {
            let table = _mm512_load_ps(table.0.as_ptr());
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

    #[inline(always)]
    unsafe fn look_up(bytes: *const u8, table: &Table) -> [__m512; 2] {
        // SAFETY: 32 bytes by contract; a table has 64 bytes.
        unsafe {
            let table = _mm512_load_si512(table.0.as_ptr().cast());
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
        unsafe fn $name<const T: usize>(codes: *const u8, tables: &[Table], dot: &Dot, sums: &mut [[f32; MOST_ROWS]]) {
            // SAFETY: passed on.
            unsafe { batch::<$format, T>(codes, tables, dot, sums) }
        }
        const ROWS: [RowsFn; MOST_ROWS] =
            [$name::<1>, $name::<2>, $name::<3>, $name::<4>, $name::<5>, $name::<6>, $name::<7>, $name::<8>];
        ROWS
    }};
}

/// # Safety
/// AVX2 is available.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn tables_avx2(scales: &[f32], dtype: SourceDtype, narrow: bool, tables: &mut [Table]) {
    for (&scale, to) in scales.iter().zip(tables) {
        let (low, high) = half_tables(scale, dtype);
        let last = if narrow { SourceDtype::Bf16 } else { SourceDtype::F32 };
        // SAFETY: a table has 16 words.
        unsafe {
            _mm256_store_ps(to.0.as_mut_ptr(), avx2::rounded(low, last));
            _mm256_store_ps(to.0.as_mut_ptr().add(8), avx2::rounded(high, last));
        }
    }
}

/// # Safety
/// AVX-512 F is available.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn tables_avx512(scales: &[f32], dtype: SourceDtype, narrow: bool, tables: &mut [Table]) {
    for (&scale, to) in scales.iter().zip(tables) {
        let values = pack_nf4_avx512::table(scale, dtype);
        let last = if narrow { SourceDtype::Bf16 } else { SourceDtype::F32 };
        // SAFETY: a table has 16 words.
        unsafe { _mm512_store_ps(to.0.as_mut_ptr(), pack_nf4_avx512::rounded(values, last)) };
    }
}

/// # Safety
/// AVX-512 BF16 is available.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
unsafe fn tables_of_pairs(scales: &[f32], dtype: SourceDtype, _: bool, tables: &mut [Table]) {
    for (&scale, to) in scales.iter().zip(tables) {
        let values = pack_nf4_avx512::table(scale, before_bf16(dtype));
        // SAFETY: a table has 64 bytes.
        unsafe { _mm512_store_si512(to.0.as_mut_ptr().cast(), narrow(values, values)) };
    }
}

/// f32 words with AVX2.
pub(super) static AVX2: Functions =
    Functions { tables: tables_avx2, rows: rows!(avx2, Avx2, "avx2,fma,f16c"), order: split::<16> };

/// f32 words with AVX-512.
pub(super) static AVX512: Functions = Functions {
    tables: tables_avx512,
    rows: rows!(avx512, Avx512, "avx512f,avx512bw,avx512vl,avx512dq"),
    order: split::<32>,
};

/// Pairs of bf16 with AVX-512 BF16.
pub(super) static PAIRS: Functions = Functions {
    tables: tables_of_pairs,
    rows: rows!(pairs, Pairs, "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16"),
    order: split::<64>,
};
