//! NF4 codes to panels of bf16 pairs with AVX-512 BF16.
//!
//! `code · scale` is rounded once, straight to bf16, unless the weight was quantised from f16: then through f16, as
//! dequantising and converting would.

use super::avx512bf16::{interleave, narrow};
use super::pack_nf4::ScaleReader;
use super::pack_nf4_avx512::{codebook, gather_words, group_codes, nibble_order, rounded, step_of_rows, Piece};
use crate::quant::SourceDtype;
use std::arch::x86_64::*;

/// How many rows ahead of packing them their codes are asked for.
const AHEAD: usize = 16;

/// The dtype to round to before bf16.
pub(super) fn before_bf16(dtype: SourceDtype) -> SourceDtype {
    match dtype {
        SourceDtype::F16 => SourceDtype::F16,
        SourceDtype::F32 | SourceDtype::Bf16 => SourceDtype::F32,
    }
}

/// Rows of the weight become columns of the panel (B = wᵀ), for `cols % 32 == 0`.
///
/// # Safety
/// As [`super::pack_nf4_avx512::pack_rows_as_columns`], and AVX-512 BF16 is available.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
pub(super) unsafe fn pack_rows_as_columns(piece: &Piece<'_>) {
    let matrix = piece.matrix;
    let scales = ScaleReader::new(matrix);
    let shift = matrix.block.trailing_zeros();
    let step = step_of_rows(matrix);
    let dtype = before_bf16(matrix.dtype);
    let (code, order) = (codebook(), interleave());
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
            let depth = (column - piece.columns.start) / 2;
            for (i, &word) in words.iter().enumerate() {
                // SAFETY: four depths of the panel from 4 i on; the vector is one of those that were started.
                let to = unsafe { piece.to.to.add((depth + 4 * i) * piece.to.stride + 16 * vector) };
                macro_rules! byte {
                    ($($index:literal $even:literal $odd:literal),*) => {
                        $(
                            let (even, odd) = (_mm512_srli_epi32::<$even>(word), _mm512_srli_epi32::<$odd>(word));
                            let even = rounded(_mm512_mul_ps(_mm512_permutexvar_ps(even, code), scale), dtype);
                            let odd = rounded(_mm512_mul_ps(_mm512_permutexvar_ps(odd, code), scale), dtype);
                            let pairs = _mm512_permutexvar_epi16(order, narrow(even, odd));
                            // SAFETY: as above.
                            unsafe { _mm512_storeu_si512(to.add($index * piece.to.stride).cast(), pairs) };
                        )*
                    };
                }
                byte!(0 4 0, 1 12 8, 2 20 16, 3 28 24);
            }
        }
    }
}

/// Each two rows of the weight become one depth of the panel (B = w), for `cols % 16 == 0`.
///
/// One table of 32 bf16 holds the values of both rows' blocks, so that one lookup yields finished pairs.
///
/// # Safety
/// As [`super::pack_nf4_avx512::pack_rows_as_depth`], and AVX-512 BF16 is available.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512bf16")]
pub(super) unsafe fn pack_rows_as_depth(piece: &Piece<'_>) {
    let matrix = piece.matrix;
    let scales = ScaleReader::new(matrix);
    let shift = matrix.block.trailing_zeros();
    let groups = piece.columns.len() / 16;
    let dtype = before_bf16(matrix.dtype);
    let (code, order) = (codebook(), nibble_order());
    let nibbles = _mm512_set1_epi32(0x000f_000f);
    let second_half = _mm512_set1_epi32(0x0010_0000);
    // Nibbles of the odd row go to the third byte of each lane, which the upper half of the pair is looked up with.
    let odd_order = _mm512_slli_epi32::<16>(order);
    for (depth, even_row) in piece.rows.clone().step_by(2).enumerate() {
        let has_odd = even_row + 1 < piece.rows.end;
        let even_start = even_row * matrix.cols + piece.columns.start;
        let odd_start = if has_odd { even_start + matrix.cols } else { even_start };
        // The panels are a short piece of each row: nothing else asks for the next ones.
        for start in [even_start, odd_start] {
            let from = matrix.codes.as_ptr().wrapping_add((start + AHEAD * matrix.cols) / 2);
            for line in (0..piece.columns.len() / 2 + 63).step_by(64) {
                _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(line).cast());
            }
        }
        let mut blocks = (usize::MAX, usize::MAX);
        let mut values = nibbles;
        // Rows outside, panels inside: a row's codes are next to each other, and so are the columns of a block.
        for (group, to) in (0..groups).zip(piece.to.at(depth)) {
            let (even_at, odd_at) = (even_start + 16 * group, odd_start + 16 * group);
            let now = (even_at >> shift, odd_at >> shift);
            if now != blocks {
                blocks = now;
                // A missing odd row is zero.
                let odd_scale = if has_odd { scales.get(now.1) } else { 0.0 };
                let even = rounded(_mm512_mul_ps(code, _mm512_set1_ps(scales.get(now.0))), dtype);
                let odd = rounded(_mm512_mul_ps(code, _mm512_set1_ps(odd_scale)), dtype);
                values = narrow(even, odd);
            }
            // SAFETY: both groups lie in the matrix; the panels hold `groups` vectors at each depth.
            unsafe {
                let codes = matrix.codes.as_ptr();
                let even = _mm512_multishift_epi64_epi8(order, group_codes(codes, even_at));
                let odd = group_codes(codes, odd_at);
                let both = _mm512_mask_multishift_epi64_epi8(even, 0x4444_4444_4444_4444, odd_order, odd);
                // (both & nibbles) | second_half.
                let index = _mm512_ternarylogic_epi32::<0xea>(both, nibbles, second_half);
                _mm512_storeu_si512(to.cast(), _mm512_permutexvar_epi16(index, values));
            }
        }
    }
}
