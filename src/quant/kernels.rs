//! The two inner loops of NF4 on a CPU: values to codes, codes to values. Every path gives the same bits.
//!
//! Encoding must equal "the number of midpoints below y". The AVX-512 path finds it with one table look-up: [-1, 1] is
//! cut into 32 buckets by a monotone function of y, narrower than the distance between midpoints, so that a bucket
//! holds at most one midpoint: `code = base[bucket] + (y > midpoint[bucket])`. The other paths compare with all 15.

use super::nf4::NF4_CODE;
use crate::device::{cpu_path, CpuPath};

/// Bits of the smallest f32 magnitude that is not finite.
const INFINITY_BITS: u32 = 0x7f80_0000;
/// The least absmax that is divided by.
const LEAST_ABSMAX: f32 = 1e-38;

/// Middle of each pair of neighbouring code values.
pub(super) const MIDPOINTS: [f32; 15] = {
    let mut midpoints = [0.0; 15];
    let mut i = 0;
    while i < 15 {
        midpoints[i] = (NF4_CODE[i] + NF4_CODE[i + 1]) / 2.0;
        i += 1;
    }
    midpoints
};

/// Consecutive blocks of values and where their codes go. The last block may be short.
pub(super) struct Blocks<'a> {
    pub values: &'a [f32],
    /// Values a block, even.
    pub block: usize,
    /// One a block.
    pub absmax: &'a mut [f32],
    /// `ceil(values / 2)` bytes.
    pub packed: &'a mut [u8],
}

/// Fills absmax and codes; gives the index of the first value that is not finite, if there is one.
pub(super) fn encode(blocks: Blocks<'_>) -> Option<usize> {
    encode_on(cpu_path(), blocks)
}

pub(super) fn encode_on(path: CpuPath, blocks: Blocks<'_>) -> Option<usize> {
    match path {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the path is only chosen where the CPU has AVX-512 F, BW, VL and DQ.
        CpuPath::Avx512 | CpuPath::Avx512Bf16 => unsafe { x86::encode_avx512(blocks) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the path is only chosen where the CPU has AVX2.
        CpuPath::Avx2 => unsafe { x86::encode_avx2(blocks) },
        _ => encode_with(blocks, codes_portable),
    }
}

/// The loop over blocks around an inner loop `codes(values, 1 / absmax, packed)`.
#[inline(always)]
fn encode_with(blocks: Blocks<'_>, codes: impl Fn(&[f32], f32, &mut [u8])) -> Option<usize> {
    let Blocks { values, block, absmax, packed } = blocks;
    let parts = values.chunks(block).zip(packed.chunks_mut(block / 2)).zip(absmax);
    for (i, ((values, packed), absmax)) in parts.enumerate() {
        // Magnitudes order as their bits do, and NaN and infinity come out on top.
        let bits = values.iter().fold(0, |max, value| max.max(value.to_bits() & 0x7fff_ffff));
        if bits >= INFINITY_BITS {
            let within = values.iter().position(|value| !value.is_finite()).unwrap_or(0);
            return Some(i * block + within);
        }
        let largest = f32::from_bits(bits);
        if values.len() == block {
            *absmax = largest;
            codes(values, 1.0 / largest.max(LEAST_ABSMAX), packed);
        } else {
            *absmax = largest.max(LEAST_ABSMAX);
            codes_of_short_block(values, *absmax, packed);
        }
    }
    None
}

/// The short last block: divides, and an odd count is padded with the code of zero.
fn codes_of_short_block(values: &[f32], absmax: f32, packed: &mut [u8]) {
    for (byte, pair) in packed.iter_mut().zip(values.chunks(2)) {
        let high = code_of(pair[0] / absmax);
        let low = pair.get(1).map_or(7, |value| code_of(value / absmax));
        *byte = (high << 4) | low;
    }
}

/// Number of midpoints below the clamped value. (The clamp cannot change a code: no midpoint lies outside.)
#[inline(always)]
fn code_of(y: f32) -> u8 {
    MIDPOINTS.iter().fold(0, |code, &midpoint| code + u8::from(y > midpoint))
}

/// A full block, in a form that compilers vectorise: 16 sums of comparisons side by side.
#[inline(always)]
fn codes_portable(values: &[f32], inverse: f32, packed: &mut [u8]) {
    for (values, packed) in values.chunks_exact(16).zip(packed.chunks_exact_mut(8)) {
        let mut codes = [0u32; 16];
        for (code, value) in codes.iter_mut().zip(values) {
            let y = value * inverse;
            *code = MIDPOINTS.iter().fold(0, |code, &midpoint| code + u32::from(y > midpoint));
        }
        for (byte, pair) in packed.iter_mut().zip(codes.chunks_exact(2)) {
            *byte = ((pair[0] << 4) | pair[1]) as u8;
        }
    }
}

/// `out[i] = table[code at flat index start + i]`.
pub(super) fn decode(packed: &[u8], start: usize, table: &[f32; 16], out: &mut [f32]) {
    decode_on(cpu_path(), packed, start, table, out);
}

pub(super) fn decode_on(path: CpuPath, packed: &[u8], start: usize, table: &[f32; 16], out: &mut [f32]) {
    if out.is_empty() {
        return;
    }
    let mut out = out;
    let mut at = start;
    if !at.is_multiple_of(2) {
        out[0] = table[usize::from(packed[at / 2] & 15)];
        out = &mut out[1..];
        at += 1;
    }
    let packed = &packed[at / 2..(at + out.len()).div_ceil(2)];
    // Whole vectors of 32 values, then the rest.
    let (bulk, rest) = out.split_at_mut(out.len() / 32 * 32);
    let (packed, packed_rest) = packed.split_at(bulk.len() / 2);
    match path {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the path is only chosen where the CPU has AVX-512 F, BW, VL and DQ.
        CpuPath::Avx512 | CpuPath::Avx512Bf16 => unsafe { x86::values_avx512(packed, table, bulk) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the path is only chosen where the CPU has AVX2.
        CpuPath::Avx2 => unsafe { x86::values_avx2(packed, table, bulk) },
        _ => values_portable(packed, table, bulk),
    }
    values_portable(packed_rest, table, rest);
}

fn values_portable(packed: &[u8], table: &[f32; 16], out: &mut [f32]) {
    for (pair, &byte) in out.chunks_mut(2).zip(packed) {
        pair[0] = table[usize::from(byte >> 4)];
        if let Some(low) = pair.get_mut(1) {
            *low = table[usize::from(byte & 15)];
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{codes_portable, encode_with, Blocks, MIDPOINTS};
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

    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn encode_avx2(blocks: Blocks<'_>) -> Option<usize> {
        encode_with(blocks, codes_portable)
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    pub(super) fn encode_avx512(blocks: Blocks<'_>) -> Option<usize> {
        let buckets = &*BUCKETS;
        // SAFETY: the tables hold 32 values, two vectors each; unaligned loads.
        let (base, midpoint) = unsafe {
            let (base, midpoint) = (buckets.base.as_ptr(), buckets.midpoint.as_ptr());
            (
                [_mm512_loadu_epi32(base), _mm512_loadu_epi32(base.add(16))],
                [_mm512_loadu_ps(midpoint), _mm512_loadu_ps(midpoint.add(16))],
            )
        };
        let tables = Tables { base, midpoint };
        encode_with(blocks, |values, inverse, packed| codes_avx512(values, inverse, packed, &tables))
    }

    struct Tables {
        base: [__m512i; 2],
        midpoint: [__m512; 2],
    }

    /// A full block: a multiple of 32 values.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    fn codes_avx512(values: &[f32], inverse: f32, packed: &mut [u8], tables: &Tables) {
        let inverse = _mm512_set1_ps(inverse);
        for (values, packed) in values.chunks_exact(32).zip(packed.chunks_exact_mut(16)) {
            // SAFETY: each chunk holds 32 values.
            let (first, second) =
                unsafe { (_mm512_loadu_ps(values.as_ptr()), _mm512_loadu_ps(values.as_ptr().add(16))) };
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
    fn sixteen_codes(y: __m512, tables: &Tables) -> __m512i {
        let one = _mm512_set1_ps(1.0);
        let y = _mm512_max_ps(_mm512_min_ps(y, one), _mm512_sub_ps(_mm512_setzero_ps(), one));
        let half = _mm512_set1_ps(HALF);
        let bucket = _mm512_cvttps_epi32(_mm512_fmadd_ps(y, half, half));
        let base = _mm512_permutex2var_epi32(tables.base[0], bucket, tables.base[1]);
        let midpoint = _mm512_permutex2var_ps(tables.midpoint[0], bucket, tables.midpoint[1]);
        let above = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(y, midpoint);
        _mm512_mask_add_epi32(base, above, base, _mm512_set1_epi32(1))
    }

    /// 32 codes of 16 bytes, one a byte, in order.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn unpacked(packed: &[u8]) -> __m256i {
        debug_assert!(packed.len() == 16);
        // SAFETY: 16 bytes.
        let bytes = _mm256_cvtepu8_epi16(unsafe { _mm_loadu_si128(packed.as_ptr().cast()) });
        let low = _mm256_and_si256(bytes, _mm256_set1_epi16(15));
        _mm256_or_si256(_mm256_srli_epi16::<4>(bytes), _mm256_slli_epi16::<8>(low))
    }

    /// `out.len() == 2 * packed.len()`, a multiple of 32.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    pub(super) fn values_avx512(packed: &[u8], table: &[f32; 16], out: &mut [f32]) {
        // SAFETY: the table holds 16 values.
        let table = unsafe { _mm512_loadu_ps(table.as_ptr()) };
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

    /// `out.len() == 2 * packed.len()`, a multiple of 32.
    #[target_feature(enable = "avx2")]
    pub(super) fn values_avx2(packed: &[u8], table: &[f32; 16], out: &mut [f32]) {
        // SAFETY: the table holds 16 values.
        let (low, high) = unsafe { (_mm256_loadu_ps(table.as_ptr()), _mm256_loadu_ps(table.as_ptr().add(8))) };
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
