//! NF4 codes to f32 panels with AVX-512: about seven instructions for 16 values.
//!
//! A code is looked up with `vpermps` in the 16-entry codebook, whose index is the low four bits of each lane, so
//! nibbles need a shift but no mask. Bytes hold the even flat index in the high nibble: the eight nibbles of a
//! little-endian 32-bit word are reached by the shifts 4, 0, 12, 8, 20, 16, 28, 24.

use super::pack_nf4::ScaleReader;
use super::panel::Vectors;
use crate::quant::nf4::NF4_CODE;
use crate::quant::{Nf4Matrix, SourceDtype};
use std::arch::x86_64::*;
use std::ops::Range;

/// A piece of a weight on its way into panels: rows and columns of the *weight*.
pub(super) struct Piece<'a> {
    pub matrix: &'a Nf4Matrix,
    pub rows: Range<usize>,
    pub columns: Range<usize>,
    pub to: Vectors,
}

/// Rounds to the dtype that was quantised, nearest even.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn rounded(value: __m512, dtype: SourceDtype) -> __m512 {
    match dtype {
        SourceDtype::F32 => value,
        SourceDtype::F16 => {
            _mm512_cvtph_ps(_mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(value))
        }
        SourceDtype::Bf16 => {
            let bits = _mm512_castps_si512(value);
            let odd = _mm512_test_epi32_mask(bits, _mm512_set1_epi32(0x1_0000));
            let biased = _mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff));
            let biased = _mm512_mask_add_epi32(biased, odd, biased, _mm512_set1_epi32(1));
            _mm512_castsi512_ps(_mm512_and_epi32(biased, _mm512_set1_epi32(0xffff_0000_u32 as i32)))
        }
    }
}

/// The codebook.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn codebook() -> __m512 {
    // SAFETY: NF4_CODE has 16 values.
    unsafe { _mm512_loadu_ps(NF4_CODE.as_ptr()) }
}

/// The 16 values of a block.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn table(scale: f32, dtype: SourceDtype) -> __m512 {
    rounded(_mm512_mul_ps(codebook(), _mm512_set1_ps(scale)), dtype)
}

/// Control of `vpmultishiftqb` that puts code i of a group, whose 8 bytes fill each 64-bit lane, into the low bits of
/// 32-bit lane i. (The upper bytes of the lanes hold other codes.)
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn nibble_order() -> __m512i {
    const ORDER: [u32; 16] = {
        let mut order = [0; 16];
        let mut i = 0;
        while i < 16 {
            // The even index is in the high nibble.
            order[i] = (i / 2 * 8 + if i % 2 == 0 { 4 } else { 0 }) as u32;
            i += 1;
        }
        order
    };
    // SAFETY: 16 words.
    unsafe { _mm512_loadu_si512(ORDER.as_ptr().cast()) }
}

/// The 8 bytes of the group at a flat index in each 64-bit lane. Nothing beyond them is touched: a wider load would
/// wait for the next cache line.
///
/// # Safety
/// The group is readable.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn group_codes(codes: *const u8, start: usize) -> __m512i {
    // SAFETY: by contract.
    _mm512_set1_epi64(unsafe { codes.add(start / 2).cast::<i64>().read_unaligned() })
}

/// Writes groups of 16 values by flat index.
///
/// # Safety
/// AVX-512 F is available and `to` holds 16 values for each group.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi")]
pub(super) unsafe fn dequantise_groups(matrix: &Nf4Matrix, groups: Range<usize>, to: &mut [f32]) {
    let scales = ScaleReader::new(matrix);
    let shift = matrix.block.trailing_zeros();
    let order = nibble_order();
    let mut block = usize::MAX;
    let mut values = codebook();
    for (group, to) in groups.zip(to.chunks_exact_mut(16)) {
        if (group * 16) >> shift != block {
            block = (group * 16) >> shift;
            values = table(scales.get(block), matrix.dtype);
        }
        let bytes = super::pack_nf4::group_bytes(matrix, group);
        let codes = _mm512_multishift_epi64_epi8(order, _mm512_set1_epi64(i64::from_le_bytes(bytes)));
        // SAFETY: `to` is a chunk of 16.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), _mm512_permutexvar_ps(codes, values)) };
    }
}

/// Rows of the weight become columns of the panel (B = wᵀ), for `cols % 32 == 0`.
///
/// # Safety
/// AVX-512 F is available; the piece lies inside the matrix, its first column is a multiple of 32, and the panel
/// holds 16 words for each started vector of rows at each depth.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
pub(super) unsafe fn pack_rows_as_columns(piece: &Piece<'_>) {
    let matrix = piece.matrix;
    let scales = ScaleReader::new(matrix);
    let shift = matrix.block.trailing_zeros();
    let step = step_of_rows(matrix);
    let code = codebook();
    for (vector, first) in piece.rows.clone().step_by(16).enumerate() {
        // Rows beyond the last repeat it.
        let starts: [usize; 16] = std::array::from_fn(|r| (first + r).min(piece.rows.end - 1) * matrix.cols);
        let mut scale = code;
        for column in piece.columns.clone().step_by(32) {
            if column.is_multiple_of(step) || column == piece.columns.start {
                let values: [f32; 16] = std::array::from_fn(|r| scales.get((starts[r] + column) >> shift));
                // SAFETY: 16 values.
                scale = unsafe { _mm512_loadu_ps(values.as_ptr()) };
            }
            // SAFETY: 32 codes from `column` on lie inside each row.
            let words = unsafe { gather_words(matrix.codes.as_ptr(), &starts, column) };
            let depth = column - piece.columns.start;
            for (i, &word) in words.iter().enumerate() {
                // SAFETY: eight depths of the panel from 8 i on; the vector is one of those that were started.
                let to = unsafe { piece.to.to.add((depth + 8 * i) * piece.to.stride + 16 * vector) };
                macro_rules! nibble {
                    ($($index:literal $bits:literal),*) => {
                        $(
                            let codes = _mm512_srli_epi32::<$bits>(word);
                            let values = _mm512_mul_ps(_mm512_permutexvar_ps(codes, code), scale);
                            // SAFETY: as above.
                            unsafe { _mm512_storeu_ps(to.add($index * piece.to.stride), rounded(values, matrix.dtype)) };
                        )*
                    };
                }
                nibble!(0 4, 1 0, 2 12, 3 8, 4 20, 5 16, 6 28, 7 24);
            }
        }
    }
}

/// Columns after which rows may change block: every row starts at a multiple of it in the flat order.
pub(super) fn step_of_rows(matrix: &Nf4Matrix) -> usize {
    matrix.block.min(1 << matrix.cols.trailing_zeros().min(16))
}

/// 32 codes of each of 16 rows as four registers of 8 codes a row: lane r of register j is 32-bit word j of row r.
///
/// # Safety
/// 16 bytes from `(starts[r] + column) / 2` on are readable for every row.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn gather_words(codes: *const u8, starts: &[usize; 16], column: usize) -> [__m512i; 4] {
    let mut lines = [_mm512_setzero_si512(); 4];
    for (i, line) in lines.iter_mut().enumerate() {
        // SAFETY: by contract.
        let load = |r: usize| unsafe { _mm_loadu_si128(codes.add((starts[r] + column) / 2).cast()) };
        let four = _mm512_castsi128_si512(load(i));
        let four = _mm512_inserti32x4::<1>(four, load(4 + i));
        let four = _mm512_inserti32x4::<2>(four, load(8 + i));
        *line = _mm512_inserti32x4::<3>(four, load(12 + i));
    }
    // A 4x4 transposition of words inside each 128-bit lane.
    let low_even = _mm512_unpacklo_epi32(lines[0], lines[1]);
    let high_even = _mm512_unpackhi_epi32(lines[0], lines[1]);
    let low_odd = _mm512_unpacklo_epi32(lines[2], lines[3]);
    let high_odd = _mm512_unpackhi_epi32(lines[2], lines[3]);
    [
        _mm512_unpacklo_epi64(low_even, low_odd),
        _mm512_unpackhi_epi64(low_even, low_odd),
        _mm512_unpacklo_epi64(high_even, high_odd),
        _mm512_unpackhi_epi64(high_even, high_odd),
    ]
}

/// Rows of the weight become depths of the panel (B = w), for `cols % 16 == 0`.
///
/// # Safety
/// AVX-512 F is available; the piece lies inside the matrix, its columns start and end at multiples of 16, and the
/// panel holds them at each depth.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi")]
pub(super) unsafe fn pack_rows_as_depth(piece: &Piece<'_>) {
    let matrix = piece.matrix;
    let scales = ScaleReader::new(matrix);
    let shift = matrix.block.trailing_zeros();
    let groups = piece.columns.len() / 16;
    let order = nibble_order();
    for (depth, row) in piece.rows.clone().enumerate() {
        let start = row * matrix.cols + piece.columns.start;
        let mut block = usize::MAX;
        let mut values = _mm512_setzero_ps();
        for group in 0..groups {
            let at = start + 16 * group;
            if at >> shift != block {
                block = at >> shift;
                values = table(scales.get(block), matrix.dtype);
            }
            // SAFETY: the group lies in the matrix; the panel holds `groups` vectors at each depth.
            unsafe {
                let codes = _mm512_multishift_epi64_epi8(order, group_codes(matrix.codes.as_ptr(), at));
                let to = piece.to.to.add(depth * piece.to.stride + 16 * group);
                _mm512_storeu_ps(to, _mm512_permutexvar_ps(codes, values));
            }
        }
    }
}
