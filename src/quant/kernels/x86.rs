//! AVX2 and AVX-512 forms of the NF4 loops.
//!
//! AVX-512 encoding: [-1, 1] is cut into 32 buckets by a monotone function of y, narrower than the distance between
//! midpoints, so that a bucket holds at most one: `code = base[bucket] + (y > midpoint[bucket])`. Both tables are two
//! registers each. AVX2 encoding: a binary search over the 15 midpoints, four permuted comparisons.

use super::{encode_with, Blocks, MIDPOINTS};
use crate::quant::nf4::{SourceDtype, NF4_CODE};
use std::arch::x86_64::*;
use std::sync::LazyLock;

/// Number of midpoints below each bucket, and the midpoint inside it (infinity where there is none).
struct Buckets {
    base: [i32; 32],
    midpoint: [f32; 32],
}

/// `bucket(y) = trunc(y * HALF + HALF)`: 0 at -1, 31 at 1, 0.0626 wide (midpoints are 0.08 apart at least).
const HALF: f32 = 15.99;

static BUCKETS: LazyLock<Buckets> = LazyLock::new(|| {
    let bucket = |y: f32| y.mul_add(HALF, HALF) as usize;
    let mut buckets = Buckets { base: [0; 32], midpoint: [f32::INFINITY; 32] };
    for midpoint in MIDPOINTS {
        let inside = bucket(midpoint);
        buckets.midpoint[inside] = midpoint;
        buckets.base.iter_mut().skip(inside + 1).for_each(|base| *base += 1);
    }
    buckets
});

/// [`Buckets`] in registers.
struct BucketRegisters {
    base: [__m512i; 2],
    midpoint: [__m512; 2],
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
pub(super) fn encode_avx512(blocks: Blocks<'_>) -> Option<usize> {
    let (base, midpoint) = (BUCKETS.base.as_ptr(), BUCKETS.midpoint.as_ptr());
    // SAFETY: the tables hold 32 values, two vectors each.
    let tables = unsafe {
        BucketRegisters {
            base: [_mm512_loadu_epi32(base), _mm512_loadu_epi32(base.add(16))],
            midpoint: [_mm512_loadu_ps(midpoint), _mm512_loadu_ps(midpoint.add(16))],
        }
    };
    encode_with(
        blocks,
        |bits, out| widen_f16_avx512(bits, out),
        |values, inverse, packed| codes_avx512(values, inverse, packed, &tables),
    )
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
fn widen_f16_avx512(bits: &[u16], out: &mut [f32]) {
    let whole = bits.len() / 16 * 16;
    for (bits, out) in bits.chunks_exact(16).zip(out.chunks_exact_mut(16)) {
        // SAFETY: each chunk holds 16 values.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), _mm512_cvtph_ps(_mm256_loadu_epi16(bits.as_ptr().cast()))) };
    }
    super::widen_f16_portable(&bits[whole..], &mut out[whole..]);
}

/// A full block: a multiple of 32 values.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
fn codes_avx512(values: &[f32], inverse: f32, packed: &mut [u8], tables: &BucketRegisters) {
    let inverse = _mm512_set1_ps(inverse);
    for (values, packed) in values.chunks_exact(32).zip(packed.chunks_exact_mut(16)) {
        let values = values.as_ptr();
        // SAFETY: each chunk holds 32 values.
        let (first, second) = unsafe { (_mm512_loadu_ps(values), _mm512_loadu_ps(values.add(16))) };
        let first = sixteen_codes(_mm512_mul_ps(first, inverse), tables);
        let second = sixteen_codes(_mm512_mul_ps(second, inverse), tables);
        let codes = _mm256_set_m128i(_mm512_cvtepi32_epi8(second), _mm512_cvtepi32_epi8(first));
        // 16 * even + odd in each 16-bit lane, then the low byte of each.
        let bytes = _mm256_cvtepi16_epi8(_mm256_maddubs_epi16(codes, _mm256_set1_epi16(0x0110)));
        // SAFETY: each chunk holds 16 bytes.
        unsafe { _mm_storeu_si128(packed.as_mut_ptr().cast(), bytes) };
    }
}

/// One code in each 32-bit lane.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
fn sixteen_codes(y: __m512, tables: &BucketRegisters) -> __m512i {
    // Rounding of 1 / absmax can carry y past 1 by an ulp: the bucket must not follow it.
    let y = _mm512_max_ps(_mm512_min_ps(y, _mm512_set1_ps(1.0)), _mm512_set1_ps(-1.0));
    let half = _mm512_set1_ps(HALF);
    let bucket = _mm512_cvttps_epi32(_mm512_fmadd_ps(y, half, half));
    let base = _mm512_permutex2var_epi32(tables.base[0], bucket, tables.base[1]);
    let midpoint = _mm512_permutex2var_ps(tables.midpoint[0], bucket, tables.midpoint[1]);
    let above = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(y, midpoint);
    _mm512_mask_add_epi32(base, above, base, _mm512_set1_epi32(1))
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn encode_avx2(blocks: Blocks<'_>) -> Option<usize> {
    let m = MIDPOINTS;
    // Level k of the search compares with the middle of each of 2^k intervals.
    let tables = [
        _mm256_set1_ps(m[7]),
        _mm256_setr_ps(m[3], m[11], 0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
        _mm256_setr_ps(m[1], m[5], m[9], m[13], 0.0, 0.0, 0.0, 0.0),
        _mm256_setr_ps(m[0], m[2], m[4], m[6], m[8], m[10], m[12], m[14]),
    ];
    encode_with(
        blocks,
        |bits, out| widen_f16_avx2(bits, out),
        |values, inverse, packed| codes_avx2(values, inverse, packed, &tables),
    )
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn widen_f16_avx2(bits: &[u16], out: &mut [f32]) {
    let whole = bits.len() / 8 * 8;
    for (bits, out) in bits.chunks_exact(8).zip(out.chunks_exact_mut(8)) {
        // SAFETY: each chunk holds 8 values.
        unsafe { _mm256_storeu_ps(out.as_mut_ptr(), _mm256_cvtph_ps(_mm_loadu_si128(bits.as_ptr().cast()))) };
    }
    super::widen_f16_portable(&bits[whole..], &mut out[whole..]);
}

/// A full block: a multiple of 32 values.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn codes_avx2(values: &[f32], inverse: f32, packed: &mut [u8], tables: &[__m256; 4]) {
    let inverse = _mm256_set1_ps(inverse);
    // Pairs of 16-bit lanes to 16 * even + odd.
    let pair = _mm256_set1_epi32(0x0001_0010);
    for (values, packed) in values.chunks_exact(32).zip(packed.chunks_exact_mut(16)) {
        let mut codes = [_mm256_setzero_si256(); 4];
        for (codes, values) in codes.iter_mut().zip(values.chunks_exact(8)) {
            // SAFETY: each chunk holds 8 values.
            *codes = eight_codes(_mm256_mul_ps(unsafe { _mm256_loadu_ps(values.as_ptr()) }, inverse), tables);
        }
        // Packing works within 128-bit lanes: the low one gets bytes 0, 1 of each group of 8 codes, the high one 2, 3.
        let first = _mm256_madd_epi16(_mm256_packs_epi32(codes[0], codes[1]), pair);
        let second = _mm256_madd_epi16(_mm256_packs_epi32(codes[2], codes[3]), pair);
        let words = _mm256_packs_epi32(first, second);
        let bytes = _mm256_packus_epi16(words, words);
        let (low, high) = (_mm256_castsi256_si128(bytes), _mm256_extracti128_si256::<1>(bytes));
        // SAFETY: each chunk holds 16 bytes.
        unsafe { _mm_storeu_si128(packed.as_mut_ptr().cast(), _mm_unpacklo_epi16(low, high)) };
    }
}

/// One code in each 32-bit lane.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn eight_codes(y: __m256, tables: &[__m256; 4]) -> __m256i {
    let mut code = _mm256_setzero_si256();
    for table in tables {
        let midpoint = _mm256_permutevar8x32_ps(*table, code);
        let above = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_GT_OQ>(y, midpoint));
        // `above` is -1 where true.
        code = _mm256_sub_epi32(_mm256_add_epi32(code, code), above);
    }
    code
}

/// 32 codes of 16 bytes, one a byte, in order.
#[inline]
#[target_feature(enable = "avx2")]
fn unpacked(packed: &[u8]) -> __m256i {
    assert!(packed.len() == 16);
    // SAFETY: 16 bytes.
    let bytes = _mm256_cvtepu8_epi16(unsafe { _mm_loadu_si128(packed.as_ptr().cast()) });
    let low = _mm256_and_si256(bytes, _mm256_set1_epi16(15));
    _mm256_or_si256(_mm256_srli_epi16::<4>(bytes), _mm256_slli_epi16::<8>(low))
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
pub(super) fn decode_avx512(packed: &[u8], block: usize, scales: &[f32], dtype: SourceDtype, out: &mut [f32]) {
    // SAFETY: the codebook holds 16 values.
    let code = unsafe { _mm512_loadu_ps(NF4_CODE.as_ptr()) };
    let blocks = packed.chunks_exact(block / 2).zip(out.chunks_exact_mut(block));
    for ((packed, out), &scale) in blocks.zip(scales) {
        let table = _mm512_mul_ps(code, _mm512_set1_ps(scale));
        let table = rounded_avx512(table, dtype);
        for (packed, out) in packed.chunks_exact(16).zip(out.chunks_exact_mut(32)) {
            let codes = unpacked(packed);
            let first = _mm512_cvtepu8_epi32(_mm256_castsi256_si128(codes));
            let second = _mm512_cvtepu8_epi32(_mm256_extracti128_si256::<1>(codes));
            // SAFETY: each chunk holds 32 values.
            unsafe {
                _mm512_storeu_ps(out.as_mut_ptr(), _mm512_permutexvar_ps(first, table));
                _mm512_storeu_ps(out.as_mut_ptr().add(16), _mm512_permutexvar_ps(second, table));
            }
        }
    }
}

/// Rounded to nearest even.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
fn rounded_avx512(values: __m512, dtype: SourceDtype) -> __m512 {
    match dtype {
        SourceDtype::F32 => values,
        SourceDtype::F16 => _mm512_cvtph_ps(_mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(values)),
        SourceDtype::Bf16 => {
            // Add just under half a unit, and the last kept bit.
            let bits = _mm512_castps_si512(values);
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
            _mm512_castsi512_ps(_mm512_and_si512(rounded, _mm512_set1_epi32(!0xffff)))
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn decode_avx2(packed: &[u8], block: usize, scales: &[f32], dtype: SourceDtype, out: &mut [f32]) {
    // SAFETY: the codebook holds 16 values.
    let codebook = unsafe { [_mm256_loadu_ps(NF4_CODE.as_ptr()), _mm256_loadu_ps(NF4_CODE.as_ptr().add(8))] };
    let blocks = packed.chunks_exact(block / 2).zip(out.chunks_exact_mut(block));
    for ((packed, out), &scale) in blocks.zip(scales) {
        let scale = _mm256_set1_ps(scale);
        let [low, high] = codebook.map(|code| rounded_avx2(_mm256_mul_ps(code, scale), dtype));
        for (packed, out) in packed.chunks_exact(16).zip(out.chunks_exact_mut(32)) {
            let codes = unpacked(packed);
            let halves = [_mm256_castsi256_si128(codes), _mm256_extracti128_si256::<1>(codes)];
            for (half, out) in halves.into_iter().zip(out.chunks_exact_mut(16)) {
                for (eight, out) in [half, _mm_srli_si128::<8>(half)].into_iter().zip(out.chunks_exact_mut(8)) {
                    let codes = _mm256_cvtepu8_epi32(eight);
                    let from_low = _mm256_permutevar8x32_ps(low, codes);
                    let from_high = _mm256_permutevar8x32_ps(high, codes);
                    // Bit 3 of the code becomes the sign that blendv reads.
                    let select = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(codes));
                    // SAFETY: each chunk holds 8 values.
                    unsafe { _mm256_storeu_ps(out.as_mut_ptr(), _mm256_blendv_ps(from_low, from_high, select)) };
                }
            }
        }
    }
}

/// Rounded to nearest even.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn rounded_avx2(values: __m256, dtype: SourceDtype) -> __m256 {
    match dtype {
        SourceDtype::F32 => values,
        SourceDtype::F16 => _mm256_cvtph_ps(_mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(values)),
        SourceDtype::Bf16 => {
            // Add just under half a unit, and the last kept bit.
            let bits = _mm256_castps_si256(values);
            let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
            let rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
            _mm256_castsi256_ps(_mm256_and_si256(rounded, _mm256_set1_epi32(!0xffff)))
        }
    }
}
