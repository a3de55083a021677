//! AVX2 and AVX-512 forms of the NF4 loops.
//!
//! AVX-512 encoding: [-1, 1] is cut into 32 buckets by a monotone function of y, narrower than the distance between
//! midpoints, so that a bucket holds at most one: `code = base[bucket] + (y > midpoint[bucket])`. Both tables are two
//! registers each. AVX2 encoding: 16 buckets, cut by a function that rises by one between midpoints.

use super::{encode_portable, prefetch, Blocks, INFINITY_BITS, LEAST_ABSMAX, MIDPOINTS};
use crate::quant::nf4::{SourceDtype, NF4_CODE};
use crate::quant::quantize::Values;
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
    full_blocks_then_last(blocks, |Blocks { values, block, absmax, packed }| match values {
        Values::F32(values) => {
            // SAFETY: `full_blocks_avx512` asks for sixteen values inside the slice (as below).
            let load = |from: *const f32| unsafe { _mm512_loadu_ps(from) };
            full_blocks_avx512(values, block, (absmax, packed), &tables, load)
        }
        Values::F16(bits) => {
            // SAFETY: as above.
            let load = |from: *const u16| unsafe { _mm512_cvtph_ps(_mm256_loadu_epi16(from.cast())) };
            full_blocks_avx512(bits, block, (absmax, packed), &tables, load)
        }
        Values::Bf16(bits) => {
            let load = |from: *const u16| {
                // SAFETY: as above.
                let wide = _mm512_cvtepu16_epi32(unsafe { _mm256_loadu_epi16(from.cast()) });
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
            };
            full_blocks_avx512(bits, block, (absmax, packed), &tables, load)
        }
    })
}

/// Encodes full blocks with `encode_full`, and a short last one.
#[inline(always)]
fn full_blocks_then_last(blocks: Blocks<'_>, encode_full: impl FnOnce(Blocks<'_>) -> Option<usize>) -> Option<usize> {
    let Blocks { values, block, absmax, packed } = blocks;
    let (full, whole) = (values.len() / block, values.len() / block * block);
    let (absmax, last_absmax) = absmax.split_at_mut(full);
    let (packed, last_packed) = packed.split_at_mut(whole / 2);
    let last = Blocks { values: values.slice(whole, values.len()), block, absmax: last_absmax, packed: last_packed };
    // Portable: no block of it is full.
    let encode_last = || encode_portable(last).map(|within| whole + within);
    encode_full(Blocks { values: values.slice(0, whole), block, absmax, packed }).or_else(encode_last)
}

/// Full blocks of a multiple of 32 values, sixteen of which `load` reads as f32: once for the largest, once for the codes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
fn full_blocks_avx512<T>(
    values: &[T],
    block: usize,
    (absmax, packed): (&mut [f32], &mut [u8]),
    tables: &BucketRegisters,
    load: impl Fn(*const T) -> __m512,
) -> Option<usize> {
    let places = absmax.iter_mut().zip(packed.chunks_exact_mut(block / 2));
    for (i, (values, (absmax, packed))) in values.chunks_exact(block).zip(places).enumerate() {
        prefetch(values);
        let mut largest = _mm512_setzero_si512();
        for sixteen in values.chunks_exact(16) {
            // Magnitudes order as their bits do, and NaN and infinity come out on top.
            let bits = _mm512_castps_si512(load(sixteen.as_ptr()));
            largest = _mm512_max_epu32(largest, _mm512_and_si512(bits, _mm512_set1_epi32(0x7fff_ffff)));
        }
        let largest = _mm512_reduce_max_epu32(largest);
        if largest >= INFINITY_BITS {
            return Some(i * block + first_not_finite(values, &load));
        }
        *absmax = f32::from_bits(largest);
        let inverse = _mm512_set1_ps(1.0 / absmax.max(LEAST_ABSMAX));
        let codes = |sixteen: &[T]| sixteen_codes(_mm512_mul_ps(load(sixteen.as_ptr()), inverse), tables);
        let (values, rest) = values.as_chunks::<64>();
        let (packed, packed_rest) = packed.split_at_mut(32 * values.len());
        for (values, packed) in values.iter().zip(packed.chunks_exact_mut(32)) {
            // Written out: the closure of an array's `map` is not inlined here, and so loses the instruction set.
            let quarters = [codes(&values[..16]), codes(&values[16..32]), codes(&values[32..48]), codes(&values[48..])];
            // SAFETY: each chunk holds 32 bytes.
            unsafe { _mm256_storeu_si256(packed.as_mut_ptr().cast(), packed_codes(quarters)) };
        }
        if rest.len() == 32 {
            let zero = _mm512_setzero_si512();
            let bytes = packed_codes([codes(&rest[..16]), codes(&rest[16..]), zero, zero]);
            // SAFETY: half of 32 values are left, 16 bytes.
            unsafe { _mm_storeu_si128(packed_rest.as_mut_ptr().cast(), _mm256_castsi256_si128(bytes)) };
        }
    }
    None
}

/// Index of the first value of a block that is not finite.
#[cold]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
fn first_not_finite<T>(values: &[T], load: &impl Fn(*const T) -> __m512) -> usize {
    for (i, sixteen) in values.chunks_exact(16).enumerate() {
        let magnitude = _mm512_abs_ps(load(sixteen.as_ptr()));
        // Not below infinity: infinity itself, or NaN.
        let bad = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(magnitude, _mm512_set1_ps(f32::INFINITY));
        if bad != 0 {
            return 16 * i + bad.trailing_zeros() as usize;
        }
    }
    0
}

/// One code in each 32-bit lane. `y` may be an ulp beyond ±1, which still falls into the first or last bucket.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
fn sixteen_codes(y: __m512, tables: &BucketRegisters) -> __m512i {
    let half = _mm512_set1_ps(HALF);
    let bucket = _mm512_cvttps_epi32(_mm512_fmadd_ps(y, half, half));
    let base = _mm512_permutex2var_epi32(tables.base[0], bucket, tables.base[1]);
    let midpoint = _mm512_permutex2var_ps(tables.midpoint[0], bucket, tables.midpoint[1]);
    // The sign of midpoint - y: set where y is above, and not where they are equal.
    let above = _mm512_srli_epi32::<31>(_mm512_castps_si512(_mm512_sub_ps(midpoint, y)));
    _mm512_add_epi32(base, above)
}

/// 64 codes, one in each 32-bit lane, to 16 * even + odd in 32 bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
fn packed_codes([a, b, c, d]: [__m512i; 4]) -> __m256i {
    // Within each 128-bit lane: four bytes of a, of b, of c, of d.
    let codes = _mm512_packus_epi16(_mm512_packus_epi32(a, b), _mm512_packus_epi32(c, d));
    let bytes = _mm512_cvtepi16_epi8(_mm512_maddubs_epi16(codes, _mm512_set1_epi16(0x0110)));
    // Two bytes of each in four lanes become eight bytes of each.
    let order = _mm256_setr_epi16(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    _mm256_permutexvar_epi16(order, bytes)
}

/// Values that are read twice, once for the largest of their blocks, once for the codes: the many steps to a scale of one
/// block are hidden behind others.
const AT_ONCE: usize = 1024;

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn encode_avx2(blocks: Blocks<'_>) -> Option<usize> {
    full_blocks_then_last(blocks, |Blocks { values, block, absmax, packed }| match values {
        Values::F32(values) => {
            // SAFETY: `full_blocks_avx2` asks for eight values inside the slice (as below).
            let load = |from: *const f32| unsafe { _mm256_loadu_ps(from) };
            full_blocks_avx2(values, block, (absmax, packed), load)
        }
        Values::F16(bits) => {
            // SAFETY: as above.
            let load = |from: *const u16| unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) };
            full_blocks_avx2(bits, block, (absmax, packed), load)
        }
        Values::Bf16(bits) => {
            let load = |from: *const u16| {
                // SAFETY: as above.
                let wide = _mm256_cvtepu16_epi32(unsafe { _mm_loadu_si128(from.cast()) });
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
            };
            full_blocks_avx2(bits, block, (absmax, packed), load)
        }
    })
}

/// Full blocks of a multiple of 32 values, eight of which `load` reads as f32.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn full_blocks_avx2<T>(
    values: &[T],
    block: usize,
    (absmax, packed): (&mut [f32], &mut [u8]),
    load: impl Fn(*const T) -> __m256,
) -> Option<usize> {
    let magnitude = _mm256_set1_ps(f32::from_bits(0x7fff_ffff));
    let at_once = (AT_ONCE / block).max(1);
    let groups = absmax.chunks_mut(at_once).zip(packed.chunks_mut(at_once * block / 2));
    for (group, (values, (absmax, packed))) in values.chunks(at_once * block).zip(groups).enumerate() {
        for (i, (values, absmax)) in values.chunks_exact(block).zip(&mut *absmax).enumerate() {
            let mut largest = _mm256_setzero_si256();
            for eight in values.chunks_exact(8) {
                // Magnitudes order as their bits do, and NaN and infinity come out on top.
                let bits = _mm256_castps_si256(_mm256_and_ps(load(eight.as_ptr()), magnitude));
                largest = _mm256_max_epu32(largest, bits);
            }
            let four = _mm_max_epu32(_mm256_castsi256_si128(largest), _mm256_extracti128_si256::<1>(largest));
            let two = _mm_max_epu32(four, _mm_shuffle_epi32::<0b01_00_11_10>(four));
            let largest = _mm_cvtsi128_si32(_mm_max_epu32(two, _mm_shuffle_epi32::<0b10_11_00_01>(two))) as u32;
            if largest >= INFINITY_BITS {
                return Some((group * at_once + i) * block + first_not_finite_avx2(values, &load));
            }
            *absmax = f32::from_bits(largest);
        }
        let blocks = values.chunks_exact(block).zip(packed.chunks_exact_mut(block / 2));
        for ((values, packed), &absmax) in blocks.zip(&*absmax) {
            let inverse = _mm256_set1_ps(1.0 / absmax.max(LEAST_ABSMAX));
            for (values, packed) in values.chunks_exact(32).zip(packed.chunks_exact_mut(16)) {
                prefetch(values);
                let mut codes = [_mm256_setzero_si256(); 4];
                for (codes, eight) in codes.iter_mut().zip(values.chunks_exact(8)) {
                    *codes = eight_codes(_mm256_mul_ps(load(eight.as_ptr()), inverse));
                }
                // SAFETY: each chunk holds 16 bytes.
                unsafe { _mm_storeu_si128(packed.as_mut_ptr().cast(), packed_codes_avx2(codes)) };
            }
        }
    }
    None
}

/// Index of the first value of a block that is not finite.
#[cold]
#[target_feature(enable = "avx2,fma,f16c")]
fn first_not_finite_avx2<T>(values: &[T], load: &impl Fn(*const T) -> __m256) -> usize {
    for (i, eight) in values.chunks_exact(8).enumerate() {
        let magnitude = _mm256_and_ps(load(eight.as_ptr()), _mm256_set1_ps(f32::from_bits(0x7fff_ffff)));
        // Not below infinity: infinity itself, or NaN.
        let bad = _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_NLT_UQ>(magnitude, _mm256_set1_ps(f32::INFINITY)));
        if bad != 0 {
            return 8 * i + bad.trailing_zeros() as usize;
        }
    }
    0
}

/// A growing function of y that is between i and i + 1 at midpoint i: `RISE[0] + y · (RISE[1] - RISE[2] · |y|)`.
const RISE: [f32; 3] = [7.3, 13.54, 5.74];

/// Midpoint i, and none behind the last.
const MIDPOINT_OF: [f32; 16] = {
    let mut midpoints = [f32::INFINITY; 16];
    let mut i = 0;
    while i < MIDPOINTS.len() {
        midpoints[i] = MIDPOINTS[i];
        i += 1;
    }
    midpoints
};

/// One code in each 32-bit lane: [`RISE`] tells the only midpoint that matters. `y` may be an ulp beyond ±1.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn eight_codes(y: __m256) -> __m256i {
    // SAFETY: the table has 16 values.
    let [low, high] = unsafe { [_mm256_loadu_ps(MIDPOINT_OF.as_ptr()), _mm256_loadu_ps(MIDPOINT_OF.as_ptr().add(8))] };
    let [start, slope, bend] = [_mm256_set1_ps(RISE[0]), _mm256_set1_ps(RISE[1]), _mm256_set1_ps(RISE[2])];
    let size = _mm256_andnot_ps(_mm256_set1_ps(-0.0), y);
    let below = _mm256_cvttps_epi32(_mm256_fmadd_ps(y, _mm256_fnmadd_ps(bend, size, slope), start));
    let half = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(below));
    let (low, high) = (_mm256_permutevar8x32_ps(low, below), _mm256_permutevar8x32_ps(high, below));
    let above = _mm256_cmp_ps::<_CMP_GT_OQ>(y, _mm256_blendv_ps(low, high, half));
    // `above` is -1 where true.
    _mm256_sub_epi32(below, _mm256_castps_si256(above))
}

/// 32 codes, one in each 32-bit lane, to 16 * even + odd in 16 bytes.
#[inline]
#[target_feature(enable = "avx2")]
fn packed_codes_avx2([a, b, c, d]: [__m256i; 4]) -> __m128i {
    let pair = _mm256_set1_epi32(0x0001_0010);
    // Packing works within 128-bit lanes: the low one gets bytes 0, 1 of each group of 8 codes, the high one 2, 3.
    let first = _mm256_madd_epi16(_mm256_packs_epi32(a, b), pair);
    let second = _mm256_madd_epi16(_mm256_packs_epi32(c, d), pair);
    let words = _mm256_packs_epi32(first, second);
    let bytes = _mm256_packus_epi16(words, words);
    _mm_unpacklo_epi16(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256::<1>(bytes))
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
