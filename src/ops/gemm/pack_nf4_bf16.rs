//! NF4 codes to panels of bf16 pairs with AVX-512 BF16.
//!
//! `code · scale` is rounded once, straight to bf16, unless the weight was quantised from f16: then through f16, as
//! dequantising and converting would.

use super::avx512bf16::{interleave, narrow};
use super::pack_nf4::ScaleReader;
use super::pack_nf4_avx512::{codebook, gather_words, rounded, step_of_rows, word_of_lane, Piece};
use crate::quant::SourceDtype;
use std::arch::x86_64::*;

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
                let to = unsafe { piece.to.add((depth + 4 * i) * piece.stride + 16 * vector) };
                macro_rules! byte {
                    ($($index:literal $even:literal $odd:literal),*) => {
                        $(
                            let (even, odd) = (_mm512_srli_epi32::<$even>(word), _mm512_srli_epi32::<$odd>(word));
                            let even = rounded(_mm512_mul_ps(_mm512_permutexvar_ps(even, code), scale), dtype);
                            let odd = rounded(_mm512_mul_ps(_mm512_permutexvar_ps(odd, code), scale), dtype);
                            let pairs = _mm512_permutexvar_epi16(order, narrow(even, odd));
                            // SAFETY: as above.
                            unsafe { _mm512_storeu_si512(to.add($index * piece.stride).cast(), pairs) };
                        )*
                    };
                }
                byte!(0 4 0, 1 12 8, 2 20 16, 3 28 24);
            }
        }
    }
}

/// Rotations that put nibble `lane % 8` of each 32-bit word at bit 16 of its lane.
#[inline]
#[target_feature(enable = "avx512f")]
fn nibble_rotations() -> __m512i {
    const ROTATIONS: [i32; 8] = [20, 16, 28, 24, 4, 0, 12, 8];
    // SAFETY: eight words.
    unsafe { _mm512_broadcast_i64x4(_mm256_loadu_si256(ROTATIONS.as_ptr().cast())) }
}

/// Each two rows of the weight become one depth of the panel (B = w), for `cols % 16 == 0`.
///
/// One table of 32 bf16 holds the values of both rows' blocks, so that one lookup yields finished pairs.
///
/// # Safety
/// As [`super::pack_nf4_avx512::pack_rows_as_depth`], and AVX-512 BF16 is available.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
pub(super) unsafe fn pack_rows_as_depth(piece: &Piece<'_>) {
    let matrix = piece.matrix;
    let scales = ScaleReader::new(matrix);
    let shift = matrix.block.trailing_zeros();
    let groups = piece.columns.len() / 16;
    let dtype = before_bf16(matrix.dtype);
    let code = codebook();
    let (even_shifts, odd_rotations) = (super::pack_nf4_avx512::nibble_shifts(), nibble_rotations());
    let nibbles = _mm512_set1_epi32(0x000f_000f);
    let second_half = _mm512_set1_epi32(0x0010_0000);
    let mask = ((1u16 << groups) - 1) as u8;
    for (depth, even_row) in piece.rows.clone().step_by(2).enumerate() {
        let has_odd = even_row + 1 < piece.rows.end;
        let even_start = even_row * matrix.cols + piece.columns.start;
        let odd_start = if has_odd { even_start + matrix.cols } else { even_start };
        // SAFETY: the mask keeps the loads to the 8 bytes of each group.
        let [even_words, odd_words] = [even_start, odd_start]
            .map(|start| unsafe { _mm512_maskz_loadu_epi64(mask, matrix.codes.as_ptr().add(start / 2).cast()) });
        let mut blocks = (usize::MAX, usize::MAX);
        let mut values = nibbles;
        for group in 0..groups {
            let now = ((even_start + 16 * group) >> shift, (odd_start + 16 * group) >> shift);
            if now != blocks {
                blocks = now;
                // A missing odd row is zero.
                let odd_scale = if has_odd { scales.get(now.1) } else { 0.0 };
                let even = rounded(_mm512_mul_ps(code, _mm512_set1_ps(scales.get(now.0))), dtype);
                let odd = rounded(_mm512_mul_ps(code, _mm512_set1_ps(odd_scale)), dtype);
                values = narrow(even, odd);
            }
            let lanes = word_of_lane(group as i32);
            let even = _mm512_srlv_epi32(_mm512_permutexvar_epi32(lanes, even_words), even_shifts);
            let odd = _mm512_rorv_epi32(_mm512_permutexvar_epi32(lanes, odd_words), odd_rotations);
            // Low half of each lane from `even`, high half from `odd`; then (both & nibbles) | second_half.
            let both = _mm512_mask_blend_epi16(0xaaaa_aaaa, even, odd);
            let index = _mm512_ternarylogic_epi32::<0xea>(both, nibbles, second_half);
            // SAFETY: the panel holds `groups` vectors at each depth.
            unsafe {
                let to = piece.to.add(depth * piece.stride + 16 * group);
                _mm512_storeu_si512(to.cast(), _mm512_permutexvar_epi16(index, values));
            }
        }
    }
}
