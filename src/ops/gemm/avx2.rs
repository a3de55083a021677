//! AVX2 kernels with FMA: 12 accumulators (6x16), transposition of 8x8 words, NF4 lookups in two half tables.

use super::kernel::{dot, dot_row, tile, tile_row, Dot, Kernels, Lanes, Tile, MOST_ROWS, ROWS_AT_ONCE};
use super::pack_nf4::ScaleReader;
use crate::quant::nf4::NF4_CODE;
use crate::quant::{Nf4Matrix, SourceDtype};
use std::arch::x86_64::*;
use std::ops::Range;

#[derive(Clone, Copy)]
pub(super) struct Avx2;

impl Lanes for Avx2 {
    type Vector = __m256;
    const WIDTH: usize = 8;

    #[inline(always)]
    unsafe fn zero() -> __m256 {
        // SAFETY: AVX2 and FMA are available by the contract of `Lanes` (also below).
        unsafe { _mm256_setzero_ps() }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m256 {
        // SAFETY: eight words are readable by contract.
        unsafe { _mm256_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn splat(from: *const f32) -> __m256 {
        // SAFETY: one word is readable by contract.
        unsafe { _mm256_broadcast_ss(&*from) }
    }

    #[inline(always)]
    unsafe fn multiply_add(a: __m256, b: __m256, sum: __m256) -> __m256 {
        // SAFETY: by contract.
        unsafe { _mm256_fmadd_ps(a, b, sum) }
    }

    #[inline(always)]
    unsafe fn put(to: *mut f32, count: usize, sum: __m256, alpha: f32, accumulate: bool) {
        // SAFETY: `count` words are readable and writable by contract; the mask keeps a partial access to them.
        unsafe {
            let factor = _mm256_set1_ps(alpha);
            let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            let mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(count as i32), lanes);
            let value = if accumulate {
                _mm256_fmadd_ps(factor, sum, _mm256_maskload_ps(to, mask))
            } else {
                _mm256_mul_ps(factor, sum)
            };
            if count == 8 {
                _mm256_storeu_ps(to, value);
            } else {
                _mm256_maskstore_ps(to, mask, value);
            }
        }
    }

    #[inline(always)]
    unsafe fn add(a: __m256, b: __m256) -> __m256 {
        // SAFETY: by contract.
        unsafe { _mm256_add_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn total(vector: __m256) -> f32 {
        // SAFETY: by contract.
        unsafe {
            let four = _mm_add_ps(_mm256_castps256_ps128(vector), _mm256_extractf128_ps::<1>(vector));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }
}

/// # Safety
/// As [`super::kernel::TileFn`].
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn tile_f32<const R: usize, const V: usize>(args: &Tile) {
    // SAFETY: passed on.
    unsafe { tile::<Avx2, R, V>(args) }
}

/// # Safety
/// As [`super::kernel::DotFn`].
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn dot_f32<const T: usize>(args: &Dot, sums: &mut [f32; MOST_ROWS]) {
    // SAFETY: passed on.
    unsafe { dot::<Avx2, T>(args, sums) }
}

/// Transposes 8 registers of 8 words.
#[inline]
#[target_feature(enable = "avx2")]
fn transpose_8x8(rows: [__m256; 8]) -> [__m256; 8] {
    let zero = _mm256_setzero_ps();
    let (mut by_two, mut by_four) = ([zero; 8], [zero; 8]);
    for i in 0..4 {
        by_two[2 * i] = _mm256_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
        by_two[2 * i + 1] = _mm256_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
    }
    for i in 0..2 {
        by_four[4 * i] = _mm256_shuffle_ps::<0b01_00_01_00>(by_two[4 * i], by_two[4 * i + 2]);
        by_four[4 * i + 1] = _mm256_shuffle_ps::<0b11_10_11_10>(by_two[4 * i], by_two[4 * i + 2]);
        by_four[4 * i + 2] = _mm256_shuffle_ps::<0b01_00_01_00>(by_two[4 * i + 1], by_two[4 * i + 3]);
        by_four[4 * i + 3] = _mm256_shuffle_ps::<0b11_10_11_10>(by_two[4 * i + 1], by_two[4 * i + 3]);
    }
    let mut columns = [zero; 8];
    for j in 0..4 {
        columns[j] = _mm256_permute2f128_ps::<0x20>(by_four[j], by_four[4 + j]);
        columns[4 + j] = _mm256_permute2f128_ps::<0x31>(by_four[j], by_four[4 + j]);
    }
    columns
}

/// # Safety
/// As [`super::kernel::TransposeFn`].
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn transpose(rows: &[*const f32], words: usize, to: *mut f32, stride: usize) {
    let mut done = 0;
    if let &[a, b, c, d, e, f, g, h] = rows {
        for w in (0..words / 8 * 8).step_by(8) {
            let mut block = [_mm256_setzero_ps(); 8];
            for (register, pointer) in block.iter_mut().zip([a, b, c, d, e, f, g, h]) {
                // SAFETY: w + 8 ≤ words.
                *register = unsafe { _mm256_loadu_ps(pointer.add(w)) };
            }
            for (i, &column) in transpose_8x8(block).iter().enumerate() {
                // SAFETY: all eight rows exist.
                unsafe { _mm256_storeu_ps(to.add((w + i) * stride), column) };
            }
        }
        done = words / 8 * 8;
    }
    for w in done..words {
        for (r, row) in rows.iter().enumerate() {
            // SAFETY: w < words is readable in each row, and the target is writable by contract.
            unsafe { *to.add(w * stride + r) = *row.add(w) };
        }
    }
}

/// f32 operands.
pub(super) static F32: Kernels = Kernels { codes_alone: Some(&super::gemv_nf4_wide::WIDE), ..KERNELS };

/// Operands that were rounded to bf16.
pub(super) static BF16: Kernels = Kernels { codes_alone: Some(&super::gemv_nf4_fixed::FIXED), ..KERNELS };

const KERNELS: Kernels = Kernels {
    width: 8,
    tiles: &[tile_row!(tile_f32, 1, [1, 2, 3, 4, 5, 6, 7, 8]), tile_row!(tile_f32, 2, [1, 2, 3, 4, 5, 6])],
    tiled: None,
    rows_at_once: ROWS_AT_ONCE,
    dots: dot_row!(dot_f32),
    pairs: None,
    transpose,
    codes: Some(&super::gemv_nf4_avx2::AVX2),
    codes_alone: None,
};

/// Rounds to the dtype that was quantised, nearest even.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn rounded(value: __m256, dtype: SourceDtype) -> __m256 {
    match dtype {
        SourceDtype::F32 => value,
        SourceDtype::F16 => _mm256_cvtph_ps(_mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(value)),
        SourceDtype::Bf16 => {
            let upper = _mm256_set1_epi32(0xffff_0000_u32 as i32);
            _mm256_castsi256_ps(_mm256_and_si256(round_to_upper_half(value), upper))
        }
    }
}

/// Bits of bf16, nearest even, in the upper halves; the lower ones hold anything.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn round_to_upper_half(value: __m256) -> __m256i {
    let bits = _mm256_castps_si256(value);
    let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
    _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)))
}

/// The two halves of the 16 values of a block.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn half_tables(scale: f32, dtype: SourceDtype) -> (__m256, __m256) {
    // SAFETY: NF4_CODE has 16 values.
    let (low, high) = unsafe { (_mm256_loadu_ps(NF4_CODE.as_ptr()), _mm256_loadu_ps(NF4_CODE.as_ptr().add(8))) };
    let scale = _mm256_set1_ps(scale);
    (rounded(_mm256_mul_ps(low, scale), dtype), rounded(_mm256_mul_ps(high, scale), dtype))
}

/// The values of eight codes: the low three bits choose in a half table, the fourth chooses the half.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn look_up(codes: __m256i, low: __m256, high: __m256) -> __m256 {
    let half = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(codes));
    _mm256_blendv_ps(_mm256_permutevar8x32_ps(low, codes), _mm256_permutevar8x32_ps(high, codes), half)
}

/// Writes groups of 16 values by flat index.
///
/// # Safety
/// AVX2 is available and `to` holds 16 values for each group.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn dequantise_groups(matrix: &Nf4Matrix, groups: Range<usize>, to: &mut [f32]) {
    let scales = ScaleReader::new(matrix);
    let shift = matrix.block.trailing_zeros();
    let mut block = usize::MAX;
    let (mut low, mut high) = (_mm256_setzero_ps(), _mm256_setzero_ps());
    for (group, to) in groups.zip(to.chunks_exact_mut(16)) {
        if (group * 16) >> shift != block {
            block = (group * 16) >> shift;
            (low, high) = half_tables(scales.get(block), matrix.dtype);
        }
        let bytes = super::pack_nf4::group_bytes(matrix, group);
        // SAFETY: `to` is a chunk of 16.
        unsafe { put_group(i64::from_le_bytes(bytes), (low, high), to.as_mut_ptr()) };
    }
}

/// Writes the values of the 16 codes in eight bytes.
///
/// # Safety
/// AVX2 is available and 16 values are writable.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn put_group(bytes: i64, (low, high): (__m256, __m256), to: *mut f32) {
    let odd = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(bytes));
    let even = look_up(_mm256_srli_epi32::<4>(odd), low, high);
    let odd = look_up(odd, low, high);
    let (first, second) = (_mm256_unpacklo_ps(even, odd), _mm256_unpackhi_ps(even, odd));
    // SAFETY: by contract.
    unsafe {
        _mm256_storeu_ps(to, _mm256_permute2f128_ps::<0x20>(first, second));
        _mm256_storeu_ps(to.add(8), _mm256_permute2f128_ps::<0x31>(first, second));
    }
}

/// Writes the group at one column of some rows, one behind the other.
///
/// # Safety
/// AVX2 is available, the column and the length of rows are multiples of 16, the rows and the group in them exist, and `to`
/// holds 16 values for each row.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn stack_groups(matrix: &Nf4Matrix, rows: Range<usize>, column: usize, to: &mut [f32]) {
    let scales = ScaleReader::new(matrix);
    let shift = matrix.block.trailing_zeros();
    let codes = matrix.codes.as_ptr();
    for (row, to) in rows.zip(to.as_chunks_mut::<16>().0) {
        let start = row * matrix.cols + column;
        let tables = half_tables(scales.get(start >> shift), matrix.dtype);
        // SAFETY: the eight bytes of a group that exists, and a chunk of 16.
        unsafe { put_group(codes.add(start / 2).cast::<i64>().read_unaligned(), tables, to.as_mut_ptr()) };
    }
}
