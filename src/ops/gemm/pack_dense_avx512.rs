//! Panels of dense weights with AVX-512, for every storage and both word formats: no detour by strips.

use super::avx512::{first_lanes, transpose_16x16};
use super::avx512bf16::{interleave, narrow};
use super::kernel::Kernels;
use super::pack_dense::Source;
use super::panel::{Panel, Vectors, VECTOR};
use super::WeightRef;
use crate::device::{Compute, CpuPath};
use std::arch::x86_64::*;

/// How many rows ahead of packing them they are asked for.
const AHEAD: usize = 16;

/// A storage format.
trait Element {
    /// One stored value.
    type Raw;
    /// Whether values are bf16 already.
    const IS_BF16: bool = false;

    /// The first values of 16 as f32, zero beyond them.
    ///
    /// # Safety
    /// The values of the mask are readable; AVX-512 F, BW and VL are available.
    unsafe fn load(from: *const Self::Raw, mask: u16) -> __m512;
}

struct F32;
struct F16;
struct Bf16;

impl Element for F32 {
    type Raw = f32;

    #[inline(always)]
    unsafe fn load(from: *const f32, mask: u16) -> __m512 {
        // SAFETY: by contract.
        unsafe { _mm512_maskz_loadu_ps(mask, from) }
    }
}

impl Element for F16 {
    type Raw = u16;

    #[inline(always)]
    unsafe fn load(from: *const u16, mask: u16) -> __m512 {
        // SAFETY: by contract.
        unsafe { _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, from.cast())) }
    }
}

impl Element for Bf16 {
    type Raw = u16;
    const IS_BF16: bool = true;

    #[inline(always)]
    unsafe fn load(from: *const u16, mask: u16) -> __m512 {
        // SAFETY: by contract.
        unsafe {
            let bits = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, from.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))
        }
    }
}

/// Two pieces of 16 neighbours, or of two rows, as words: `low` in the first half.
///
/// # Safety
/// As [`Element::load`].
#[inline(always)]
unsafe fn halves<E: Element>(low: (*const E::Raw, u16), high: (*const E::Raw, u16)) -> __m512i {
    // SAFETY: by contract.
    unsafe {
        if E::IS_BF16 {
            // As they are: subnormal values, which rounding makes zero, count as zero in the products too.
            let load = |(from, mask): (*const E::Raw, u16)| _mm256_maskz_loadu_epi16(mask, from.cast());
            return _mm512_inserti64x4::<1>(_mm512_castsi256_si512(load(low)), load(high));
        }
        narrow(E::load(low.0, low.1), E::load(high.0, high.1))
    }
}

/// A piece of a weight on its way into a panel.
struct Piece<R> {
    /// First value.
    from: *const R,
    /// Values from one row of the weight to the next.
    from_stride: usize,
    /// Rows of the weight.
    rows: usize,
    /// Columns of the weight.
    columns: usize,
    /// Where its vectors go.
    to: Vectors,
}

/// B = w: a row, or two rows, become one depth.
///
/// # Safety
/// The piece is readable, the panel has a word for each column at each depth; the instruction set is available.
#[inline(always)]
unsafe fn rows_as_depth<E: Element, const PAIRS: bool>(piece: &Piece<E::Raw>) {
    // SAFETY: the masks keep every access inside the rows and columns that the caller vouches for.
    unsafe {
        let order = interleave();
        let per_word = if PAIRS { 2 } else { 1 };
        for depth in 0..piece.rows.div_ceil(per_word) {
            let row = piece.from.add(depth * per_word * piece.from_stride);
            // Rows outside, panels inside: what is next to each other is read together.
            for (column, to) in (0..piece.columns).step_by(VECTOR).zip(piece.to.at(depth)) {
                let mask = first_lanes(piece.columns - column);
                for ahead in 0..per_word {
                    // A panel is a short piece of each row: nothing else asks for the next ones.
                    let from = row.wrapping_add((AHEAD + ahead) * piece.from_stride + column);
                    _mm_prefetch::<_MM_HINT_T0>(from.cast());
                }
                if PAIRS {
                    let odd_mask = if 2 * depth + 1 < piece.rows { mask } else { 0 };
                    let odd = row.wrapping_add(piece.from_stride + column);
                    let words = halves::<E>((row.add(column), mask), (odd, odd_mask));
                    let words = _mm512_permutexvar_epi16(order, words);
                    _mm512_mask_storeu_epi32(to.cast(), mask, words);
                } else {
                    _mm512_mask_storeu_ps(to, mask, E::load(row.add(column), mask));
                }
            }
        }
    }
}

/// B = wᵀ: a row becomes a column.
///
/// # Safety
/// As [`rows_as_depth`], with a word for each row at each depth.
#[inline(always)]
unsafe fn rows_as_columns<E: Element, const PAIRS: bool>(piece: &Piece<E::Raw>) {
    // SAFETY: as above; rows beyond the last repeat it and are not stored.
    unsafe {
        let per_word = if PAIRS { 2 } else { 1 };
        for first in (0..piece.rows).step_by(16) {
            let row_mask = first_lanes(piece.rows - first);
            for column in (0..piece.columns).step_by(16 * per_word) {
                let mask = first_lanes(piece.columns - column);
                let second_mask = first_lanes((piece.columns - column).saturating_sub(16));
                let mut block = [_mm512_setzero_si512(); 16];
                for (r, register) in block.iter_mut().enumerate() {
                    let row = (first + r).min(piece.rows - 1);
                    let from = piece.from.add(row * piece.from_stride + column);
                    *register = if PAIRS {
                        halves::<E>((from, mask), (from.wrapping_add(16), second_mask))
                    } else {
                        _mm512_castps_si512(E::load(from, mask))
                    };
                }
                let words = (piece.columns - column).div_ceil(per_word);
                let to = piece.to.to.add(column / per_word * piece.to.stride + first);
                for (i, &word) in transpose_16x16(block).iter().enumerate().take(words) {
                    _mm512_mask_storeu_epi32(to.add(i * piece.to.stride).cast(), row_mask, word);
                }
            }
        }
    }
}

/// Compiles both packers for a storage and a word format.
macro_rules! packer {
    ($name:ident, $element:ty, $pairs:literal, $features:literal) => {
        /// # Safety
        /// As [`rows_as_depth`] and [`rows_as_columns`].
        #[target_feature(enable = $features)]
        unsafe fn $name(piece: &Piece<<$element as Element>::Raw>, transposed: bool) {
            // SAFETY: passed on.
            unsafe {
                if transposed {
                    rows_as_columns::<$element, $pairs>(piece);
                } else {
                    rows_as_depth::<$element, $pairs>(piece);
                }
            }
        }
    };
}
packer!(words_of_f32, F32, false, "avx512f,avx512bw,avx512vl,avx512dq");
packer!(words_of_f16, F16, false, "avx512f,avx512bw,avx512vl,avx512dq");
packer!(words_of_bf16, Bf16, false, "avx512f,avx512bw,avx512vl,avx512dq");
packer!(pairs_of_f32, F32, true, "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16");
packer!(pairs_of_f16, F16, true, "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16");
packer!(pairs_of_bf16, Bf16, true, "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16");

/// Packs a panel of a dense weight if the path is one of these; false if not. Panels side by side (`apart` words from one to
/// the next) are packed at once where that is faster, of which false says too that it is not.
pub(super) fn pack(source: &Source<'_>, kernels: &Kernels, panel: &mut Panel<'_>, apart: Option<usize>) -> bool {
    let pairs = kernels.pairs.is_some();
    if source.path < CpuPath::Avx512 || (source.compute == Compute::Bf16 && !pairs) {
        return false;
    }
    // Rows that become columns are read from end to end anyway.
    if apart.is_some() && source.transposed {
        return false;
    }
    let to = panel.vectors(kernels, apart);
    let (rows, columns) = if source.transposed {
        (panel.columns.clone(), panel.depth.clone())
    } else {
        (panel.depth.clone(), panel.columns.clone())
    };
    assert!(rows.end <= source.weight.rows() && columns.end <= source.weight.cols());
    if rows.is_empty() || columns.is_empty() {
        return true;
    }
    macro_rules! run {
        ($data:expr, $stride:expr, $words:ident, $pairs:ident) => {{
            let piece = Piece {
                from: $data[rows.start * $stride + columns.start..].as_ptr(),
                from_stride: $stride,
                rows: rows.len(),
                columns: columns.len(),
                to,
            };
            // SAFETY: the path is available, `vectors` covers the panel, and a weight was checked against its
            // shape when it came in.
            unsafe {
                if pairs {
                    $pairs(&piece, source.transposed);
                } else {
                    $words(&piece, source.transposed);
                }
            }
            true
        }};
    }
    match source.weight {
        WeightRef::F32(matrix) => run!(matrix.data, matrix.stride, words_of_f32, pairs_of_f32),
        WeightRef::F16 { bits, cols, .. } => run!(bits, cols, words_of_f16, pairs_of_f16),
        WeightRef::Bf16 { bits, cols, .. } => run!(bits, cols, words_of_bf16, pairs_of_bf16),
        WeightRef::Nf4(_) => false,
    }
}
