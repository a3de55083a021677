//! Tiles as words of two bf16, which `vdpbf16ps` multiplies at twice the rate of f32.
//!
//! A word holds two values that are neighbours along the reduction of the product it goes into: two of one row
//! ([`neighbours`]) or the same column of two rows ([`interleaved`]). Values are rounded to nearest even. Only a path that
//! has the instruction computes so; on the others bf16 operands are multiplied as the f32 that they are.

use crate::device::{Compute, CpuPath};

/// How the products of attention are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Arithmetic {
    /// Instructions.
    pub path: CpuPath,
    /// Values in a word along a reduction: 1 (f32) or 2 (bf16).
    pub per_word: usize,
}

impl Arithmetic {
    pub fn new(path: CpuPath, compute: Compute) -> Arithmetic {
        #[cfg(target_arch = "x86_64")]
        let has_pairs = path >= CpuPath::Avx512Bf16;
        #[cfg(not(target_arch = "x86_64"))]
        let has_pairs = false;
        Arithmetic { path, per_word: if compute == Compute::Bf16 && has_pairs { 2 } else { 1 } }
    }

    /// f32 operands.
    pub fn f32(path: CpuPath) -> Arithmetic {
        Arithmetic { path, per_word: 1 }
    }

    /// Whether products of words run on tile registers.
    #[cfg(target_arch = "x86_64")]
    pub fn has_tiles(self) -> bool {
        self.is_pairs() && self.path == CpuPath::Amx
    }

    /// Whether operands are words of two.
    pub fn is_pairs(self) -> bool {
        self.per_word == 2
    }
}

/// Rows of `length` values, one every `stride`.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    pub data: &'a [f32],
    pub rows: usize,
    pub length: usize,
    pub stride: usize,
}

impl Source<'_> {
    fn row(&self, row: usize) -> &[f32] {
        &self.data[row * self.stride..][..self.length]
    }
}

/// `to[r * width + i] = (row r [2i], row r [2i + 1])`, zero beyond the row.
pub(super) fn neighbours(source: Source<'_>, width: usize, to: &mut [f32]) {
    assert!(source.length <= 2 * width);
    for (row, to) in to.chunks_exact_mut(width).enumerate().take(source.rows) {
        // SAFETY: pairs are made where `Arithmetic` has found the instructions.
        #[cfg(target_arch = "x86_64")]
        unsafe {
            x86::neighbours(source.row(row), to);
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = (row, to);
    }
}

/// `to[j * width + i] = (row 2j [i], row 2j + 1 [i])`, zero beyond the rows.
pub(super) fn interleaved(source: Source<'_>, width: usize, to: &mut [f32]) {
    assert!(source.length <= width);
    for (pair, to) in to.chunks_exact_mut(width).enumerate().take(source.rows.div_ceil(2)) {
        let odd = 2 * pair + 1;
        let odd = if odd < source.rows { source.row(odd) } else { &[] };
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        unsafe {
            x86::interleaved(source.row(2 * pair), odd, to);
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = (odd, to);
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use crate::ops::gemm::bf16_words::{first_lanes, interleave, narrow};
    use std::arch::x86_64::*;

    /// Up to 16 values from `start` on, then zeros.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn sixteen(values: &[f32], start: usize) -> __m512 {
        let mask = first_lanes(values.len().saturating_sub(start));
        // SAFETY: the mask keeps the access inside the slice.
        unsafe { _mm512_maskz_loadu_ps(mask, values.as_ptr().wrapping_add(start)) }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn store(to: &mut [f32], start: usize, words: __m512i) {
        let mask = first_lanes(to.len() - start);
        // SAFETY: the mask keeps the access inside the slice.
        unsafe { _mm512_mask_storeu_epi32(to.as_mut_ptr().add(start).cast(), mask, words) };
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    pub(super) fn neighbours(from: &[f32], to: &mut [f32]) {
        for start in (0..to.len()).step_by(16) {
            store(to, start, narrow(sixteen(from, 2 * start), sixteen(from, 2 * start + 16)));
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    pub(super) fn interleaved(even: &[f32], odd: &[f32], to: &mut [f32]) {
        let order = interleave();
        for start in (0..to.len()).step_by(16) {
            let words = narrow(sixteen(even, start), sixteen(odd, start));
            store(to, start, _mm512_permutexvar_epi16(order, words));
        }
    }
}
