//! Rows of a weight as words, and panels of any weight by way of them.

use super::kernel::{for_each_path, Kernels};
use super::panel::Panel;
use super::{pack_nf4, WeightRef};
use crate::device::{Compute, CpuPath};
use crate::quant::Scales;
use std::ops::Range;

/// Words of a strip beyond the longest row piece: room for whole groups of codes at both ends.
pub(super) const STRIP_MARGIN: usize = 32;

/// Columns of the widest panel of kernels with vectors of eight words.
pub(super) const NARROW: usize = 16;

/// Depth of a strip: 16 of them stay in the L1 cache.
const STRIP_DEPTH: usize = 256;

/// Words of working memory that the packers need besides the panel.
pub(super) const STRIPS: usize = 16 * (STRIP_DEPTH + STRIP_MARGIN);

/// Operand B of a product and how it is laid out in memory.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    /// The weight.
    pub weight: WeightRef<'a>,
    /// Depth runs along its rows (B = wᵀ) instead of down its columns (B = w).
    pub transposed: bool,
    /// Operand format.
    pub compute: Compute,
    /// Instructions to pack with.
    pub path: CpuPath,
}

impl Source<'_> {
    /// Where a panel already lies as the kernels read it, and the words from one depth to the next: f32 in whole vectors
    /// of columns, depth running down.
    pub fn in_place(
        &self,
        kernels: &Kernels,
        columns: &Range<usize>,
        depth: &Range<usize>,
    ) -> Option<(*const f32, usize)> {
        let WeightRef::F32(matrix) = self.weight else { return None };
        let fits = self.compute == Compute::F32 && !self.transposed && columns.len().is_multiple_of(kernels.width);
        fits.then(|| (matrix.data[depth.start * matrix.stride + columns.start..].as_ptr(), matrix.stride))
    }
}

for_each_path! {
    /// f16 bits to f32.
    fn widen_f16(from: &[u16], to: &mut [f32]) {
        for (to, &bits) in to.iter_mut().zip(from) {
            *to = f16_to_f32(bits);
        }
    }
}

for_each_path! {
    /// bf16 bits to f32.
    fn widen_bf16(from: &[u16], to: &mut [f32]) {
        for (to, &bits) in to.iter_mut().zip(from) {
            *to = f32::from_bits(u32::from(bits) << 16);
        }
    }
}

for_each_path! {
    /// The first columns of rows that lie `stride` apart, close together.
    fn stack_f32(from: &[f32], stride: usize, to: &mut [f32]) {
        for (from, to) in from.chunks(stride).zip(to.as_chunks_mut::<NARROW>().0) {
            to.copy_from_slice(&from[..NARROW]);
        }
    }
}

for_each_path! {
    /// The same of bf16 bits.
    fn stack_bf16(from: &[u16], stride: usize, to: &mut [f32]) {
        for (from, to) in from.chunks(stride).zip(to.as_chunks_mut::<NARROW>().0) {
            for (to, &bits) in to.iter_mut().zip(&from[..NARROW]) {
                *to = f32::from_bits(u32::from(bits) << 16);
            }
        }
    }
}

for_each_path! {
    /// Rounds to bf16, kept as f32.
    fn round_bf16(from: &[f32], to: &mut [f32]) {
        for (to, &value) in to.iter_mut().zip(from) {
            *to = f32::from_bits(bf16_bits(value) << 16);
        }
    }
}

/// bf16 bits of an f32, nearest even; the same as `half`'s, without a branch.
#[inline(always)]
pub(super) fn bf16_bits(value: f32) -> u32 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    let quiet = bits >> 16 | 0x40;
    if value.is_nan() {
        quiet
    } else {
        rounded
    }
}

/// f16 bits to f32 without a branch or a table, exact for every input.
#[inline(always)]
pub(super) fn f16_to_f32(bits: u16) -> f32 {
    let sign = u32::from(bits & 0x8000) << 16;
    let magnitude = u32::from(bits & 0x7fff) << 13;
    // 2^112 moves the exponent bias from 15 to 127 and normalises subnormal numbers exactly.
    let scaled = (f32::from_bits(magnitude) * f32::from_bits(0x7780_0000)).to_bits();
    let special = magnitude | 0x7f80_0000;
    f32::from_bits(sign | if bits & 0x7c00 == 0x7c00 { special } else { scaled })
}

/// Asks for the cache lines of `count` elements; an address beyond the data does no harm.
#[inline]
fn fetch<T>(data: &[T], start: usize, count: usize) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_mm_prefetch, _MM_HINT_T1};
        const LINE: usize = 64;
        let first = data.as_ptr().wrapping_add(start).cast::<i8>();
        let bytes = count * size_of::<T>() + first as usize % LINE;
        for offset in (0..bytes.max(1)).step_by(LINE) {
            // SAFETY: SSE is part of x86-64, and a prefetch never faults.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(first.wrapping_add(offset)) };
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (data, start, count);
}

/// Asks for the cache lines of `count` words that will be written.
#[inline]
pub(super) fn fetch_to_write(at: *const f32, count: usize) {
    #[cfg(target_arch = "x86_64")]
    for offset in (0..count).step_by(16) {
        use std::arch::x86_64::{_mm_prefetch, _MM_HINT_ET0};
        // SAFETY: SSE is part of x86-64, and a prefetch never faults; where there is none for writing, it does nothing.
        unsafe { _mm_prefetch::<_MM_HINT_ET0>(at.wrapping_add(offset).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (at, count);
}

/// Rounds to f16, nearest even, kept as f32; the same as `half`'s, without a branch.
#[inline(always)]
pub(super) fn round_f16(value: f32) -> f32 {
    let magnitude = value.to_bits() & 0x7fff_ffff;
    let normal = magnitude.wrapping_add(0xfff + (magnitude >> 13 & 1)) & !0x1fff;
    // From 65520 on; everything that is NaN already stays as it is.
    let normal = if normal >= 0x4780_0000 { magnitude.max(0x7f80_0000) } else { normal };
    // Below 2^-14 the spacing is 2^-24, which is that of f32 between 1/2 and 1.
    let subnormal = ((f32::from_bits(magnitude) + 0.5) - 0.5).to_bits();
    let rounded = if magnitude < 0x3880_0000 { subnormal } else { normal };
    f32::from_bits(rounded | value.to_bits() & 0x8000_0000)
}

impl<'a> Source<'a> {
    /// Columns `columns` of row `row` of the weight as f32: borrowed from it or written to `strip`.
    fn row<'s>(&self, row: usize, columns: Range<usize>, strip: &'s mut [f32]) -> &'s [f32]
    where
        'a: 's,
    {
        let count = columns.len();
        match self.weight {
            WeightRef::F32(matrix) => &matrix.data[row * matrix.stride..][columns],
            WeightRef::F16 { bits, cols, .. } => {
                widen_f16(self.path, &bits[row * cols..][columns], strip);
                &strip[..count]
            }
            WeightRef::Bf16 { bits, cols, .. } => {
                widen_bf16(self.path, &bits[row * cols..][columns], strip);
                &strip[..count]
            }
            WeightRef::Nf4(matrix) => {
                let start = row * matrix.cols + columns.start;
                let offset = pack_nf4::dequantise(self.path, matrix, start, count, strip);
                &strip[offset..offset + count]
            }
        }
    }

    /// Fetches part `index` of `count` of the memory behind a panel into the L2 cache.
    pub fn fetch(&self, columns: Range<usize>, depth: Range<usize>, index: usize, count: usize) {
        let (rows, cols) = if self.transposed { (columns, depth) } else { (depth, columns) };
        let part = |i: usize| rows.start + rows.len() * i / count;
        for row in part(index)..part(index + 1) {
            match self.weight {
                WeightRef::F32(matrix) => fetch(matrix.data, row * matrix.stride + cols.start, cols.len()),
                WeightRef::F16 { bits, cols: stride, .. } | WeightRef::Bf16 { bits, cols: stride, .. } => {
                    fetch(bits, row * stride + cols.start, cols.len());
                }
                WeightRef::Nf4(matrix) => {
                    let start = row * matrix.cols + cols.start;
                    fetch(&matrix.codes, start / 2, cols.len() / 2);
                    match &matrix.scales {
                        Scales::Plain(bytes) => fetch(bytes, start / matrix.block * 4, cols.len() / matrix.block * 4),
                        Scales::Double { codes, .. } => fetch(codes, start / matrix.block, cols.len() / matrix.block),
                    }
                }
            }
        }
    }

    /// Packs one panel.
    pub fn pack(&self, kernels: &Kernels, mut panel: Panel<'_>) {
        if let WeightRef::Nf4(matrix) = self.weight {
            if pack_nf4::pack_fast(self, matrix, kernels, &mut panel, None) {
                return;
            }
        }
        #[cfg(target_arch = "x86_64")]
        if super::pack_dense_avx512::pack(self, kernels, &mut panel, None) {
            return;
        }
        if self.transposed {
            self.pack_rows_as_columns(kernels, panel);
        } else {
            self.pack_rows_as_depth(kernels, panel);
        }
    }

    /// Packs panels of [`Kernels::panel_columns`] columns (the last may have fewer) at once, `apart` words from one to the
    /// next, if that is faster than one after the other; false if not.
    pub fn pack_beside(&self, kernels: &Kernels, mut panels: Panel<'_>, apart: usize) -> bool {
        match self.weight {
            WeightRef::Nf4(matrix) => pack_nf4::pack_fast(self, matrix, kernels, &mut panels, Some(apart)),
            #[cfg(target_arch = "x86_64")]
            _ => super::pack_dense_avx512::pack(self, kernels, &mut panels, Some(apart)),
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }

    /// B = wᵀ: each row of the weight becomes a column of the panel.
    fn pack_rows_as_columns(&self, kernels: &Kernels, panel: Panel<'_>) {
        let mut spare = [0.0; STRIP_DEPTH + STRIP_MARGIN];
        let mut start = panel.depth.start;
        while start < panel.depth.end {
            let end = panel.depth.end.min(start + STRIP_DEPTH);
            let words = (end - start).div_ceil(kernels.per_word());
            let first_word = (start - panel.depth.start) / kernels.per_word();
            for first in panel.columns.clone().step_by(kernels.width) {
                let count = kernels.width.min(panel.columns.end - first);
                let mut pointers = [std::ptr::null(); 16];
                let strips = panel.strips.chunks_exact_mut(STRIP_DEPTH + STRIP_MARGIN);
                for ((row, strip), pointer) in (first..first + count).zip(strips).zip(&mut pointers) {
                    *pointer = self.row_words(kernels, row, start..end, strip, &mut spare);
                }
                let at = first_word * panel.stride + first - panel.columns.start;
                let to = &mut panel.to[at..];
                assert!(to.len() >= (words - 1) * panel.stride + count);
                // SAFETY: each pointer has `words` words behind it and the assertion covers the target.
                unsafe { (kernels.transpose)(&pointers[..count], words, to.as_mut_ptr(), panel.stride) };
            }
            start = end;
        }
    }

    /// A row piece as words of the operand format: in the weight itself or in `strip`, by way of `spare`.
    pub fn row_words(
        &self,
        kernels: &Kernels,
        row: usize,
        columns: Range<usize>,
        strip: &mut [f32],
        spare: &mut [f32],
    ) -> *const f32 {
        // Values of bf16 are rounded already.
        let is_bf16 = matches!(self.weight, WeightRef::Bf16 { .. }) && kernels.pairs.is_none();
        if self.compute == Compute::F32 || is_bf16 {
            return self.row(row, columns, strip).as_ptr();
        }
        let values = self.row(row, columns, spare);
        self.convert(kernels, values, strip);
        strip.as_ptr()
    }

    /// f32 values to words of the operand format.
    pub fn convert(&self, kernels: &Kernels, from: &[f32], to: &mut [f32]) {
        if let Some(pairs) = &kernels.pairs {
            // SAFETY: the kernels are of this machine's path.
            unsafe { (pairs.neighbours)(from, to) };
        } else if self.compute == Compute::Bf16 {
            round_bf16(self.path, from, to);
        } else {
            to[..from.len()].copy_from_slice(from);
        }
    }

    /// Packs panels of [`NARROW`] columns whose values go where they belong as they are; false if this is no such panel.
    fn pack_narrow(&self, kernels: &Kernels, panel: &mut Panel<'_>) -> bool {
        if kernels.pairs.is_some() || panel.columns.len() != NARROW || panel.stride != NARROW || panel.depth.is_empty()
        {
            return false;
        }
        let to = &mut panel.to[..panel.depth.len() * NARROW];
        match self.weight {
            WeightRef::F32(matrix) if self.compute == Compute::F32 => {
                let from = &matrix.data[panel.depth.start * matrix.stride + panel.columns.start..];
                stack_f32(self.path, from, matrix.stride, to);
            }
            WeightRef::Bf16 { bits, cols, .. } => {
                stack_bf16(self.path, &bits[panel.depth.start * cols + panel.columns.start..], cols, to);
            }
            _ => return false,
        }
        true
    }

    /// B = w: each row of the weight (each two rows, for pairs) becomes one depth of the panel.
    fn pack_rows_as_depth(&self, kernels: &Kernels, mut panel: Panel<'_>) {
        if self.pack_narrow(kernels, &mut panel) {
            return;
        }
        let count = panel.columns.len();
        let (even_strip, odd_strip) = panel.strips.split_at_mut(STRIPS / 2);
        let rows = panel.depth.clone().step_by(kernels.per_word());
        for (row, to) in rows.zip(panel.to.chunks_mut(panel.stride)) {
            let even = self.row(row, panel.columns.clone(), even_strip);
            if let Some(pairs) = &kernels.pairs {
                let odd = if row + 1 < panel.depth.end {
                    self.row(row + 1, panel.columns.clone(), odd_strip)
                } else {
                    odd_strip[..count].fill(0.0);
                    &odd_strip[..count]
                };
                // SAFETY: the kernels are of this machine's path.
                unsafe { (pairs.rows)(even, odd, to) };
            } else if self.compute == Compute::Bf16 {
                round_bf16(self.path, even, to);
            } else {
                to[..count].copy_from_slice(even);
            }
        }
    }
}
