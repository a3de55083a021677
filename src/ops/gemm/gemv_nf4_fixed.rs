//! A row of x times rows of NF4 codes in 16-bit fixed point, with AVX2: single tokens in bf16 where a path has no
//! instructions for bf16.
//!
//! Of each piece of 64 values x[i], with the scale s of the codes c[i]:
//!
//! ```text
//! s · Σ c[i] · x[i] = s · u · Σ C[i] · X[i],   C[i] = M · c[i],   X[i] = M · x[i] / largest,   u = largest / M²
//! ```
//!
//! where C and X are rounded to integers, `M = 16383` and `largest = max |x[i]|`. Sums of integers are exact: a lane adds
//! up eight products, and `8 · M² < 2³¹`. So the only errors are half a unit of C and of X, 2⁻¹⁵ of the largest code and of
//! the largest x of the piece; bf16 rounds every operand by up to 2⁻⁸ of itself. The values `c · s` are not rounded to the
//! dtype that was quantised, which takes as long as all products.
//!
//! C is looked up by its two bytes, 32 codes at a time, and multiplied where it lies (`vpmaddwd`).
//!
//! Invariant: the order of a sum depends on its length alone. A piece of x with a value that is not finite gives NaN.

use super::avx2::Avx2;
use super::coarse::scale;
use super::gemv_nf4::{Functions, Input, Rounding, PIECE};
use super::gemv_nf4_rows::AHEAD;
use super::kernel::{Dot, Lanes, MOST_ROWS};
use crate::quant::nf4::NF4_CODE;
use std::arch::x86_64::*;

/// Largest integer of either operand.
const LARGEST: f32 = 16383.0;

/// Rows that are taken together.
const AT_ONCE: usize = 4;

/// Bytes that a prefetch brings.
const LINE: usize = 64;

/// Words of the integers of a piece.
const WORDS: usize = PIECE / 2;

/// Vectors of integers in a piece.
pub(super) const VECTORS: usize = PIECE / 16;

/// The codes as integers.
const INTEGERS: [i16; 16] = {
    let mut integers = [0; 16];
    let mut code = 0;
    while code < 16 {
        let value = NF4_CODE[code] * LARGEST;
        // Half a unit away from zero: the conversion cuts off.
        integers[code] = (if value < 0.0 { value - 0.5 } else { value + 0.5 }) as i16;
        code += 1;
    }
    integers
};

/// Bytes of the integers by code: the lower ones and the upper ones.
const PLANES: [[u8; 16]; 2] = {
    let mut planes = [[0; 16]; 2];
    let mut code = 0;
    while code < 16 {
        [planes[0][code], planes[1][code]] = INTEGERS[code].to_le_bytes();
        code += 1;
    }
    planes
};

/// A plane in both halves.
#[inline]
#[target_feature(enable = "avx2")]
fn plane(index: usize) -> __m256i {
    // SAFETY: 16 bytes.
    _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(PLANES[index].as_ptr().cast()) })
}

/// x as integers, in the order of lookups, and then a unit u for each piece: `cols / 2 + cols / 64` words.
fn prepare(x: &[f32], to: &mut [f32]) {
    let pieces = x.len() / PIECE;
    let (integers, units) = to.split_at_mut(pieces * WORDS);
    for ((x, to), unit) in x.chunks_exact(PIECE).zip(integers.chunks_exact_mut(WORDS)).zip(&mut units[..pieces]) {
        // SAFETY: these functions are chosen on paths with AVX2 alone; 64 values and the words for them are there.
        *unit = unsafe { to_integers(x.as_ptr(), to.as_mut_ptr().cast()) };
    }
}

/// Of 32 neighbouring values, 16 in each half: `even` ones or odd ones, as 16-bit integers.
#[inline]
#[target_feature(enable = "avx2")]
fn every_second<const ODD: bool>([a, b, c, d]: [__m256i; 4]) -> __m256i {
    let (a, b) = (_mm256_castsi256_ps(a), _mm256_castsi256_ps(b));
    let (c, d) = (_mm256_castsi256_ps(c), _mm256_castsi256_ps(d));
    let (first, second) = match ODD {
        false => (_mm256_shuffle_ps::<0b10_00_10_00>(a, b), _mm256_shuffle_ps::<0b10_00_10_00>(c, d)),
        true => (_mm256_shuffle_ps::<0b11_01_11_01>(a, b), _mm256_shuffle_ps::<0b11_01_11_01>(c, d)),
    };
    _mm256_packs_epi32(_mm256_castps_si256(first), _mm256_castps_si256(second))
}

/// A piece of x as its codes lie in their bytes: four values of either half of the piece in each vector. And the bits of the
/// largest magnitude.
///
/// # Safety
/// 64 values are readable; AVX2 is available.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) unsafe fn in_halves(x: *const f32) -> ([__m256; 2 * VECTORS], u32) {
    let magnitude = _mm256_set1_epi32(0x7fff_ffff);
    let mut values = [_mm256_setzero_ps(); 2 * VECTORS];
    // By their bits magnitudes are ordered like integers, infinity and NaN behind all others.
    let mut largest = _mm256_setzero_si256();
    for (i, value) in values.iter_mut().enumerate() {
        // SAFETY: by contract.
        *value = unsafe { _mm256_loadu2_m128(x.add(PIECE / 2 + 4 * i), x.add(4 * i)) };
        largest = _mm256_max_epi32(largest, _mm256_and_si256(_mm256_castps_si256(*value), magnitude));
    }
    let four = _mm_max_epi32(_mm256_castsi256_si128(largest), _mm256_extracti128_si256::<1>(largest));
    let two = _mm_max_epi32(four, _mm_shuffle_epi32::<0b01_00_11_10>(four));
    let one = _mm_max_epi32(two, _mm_shuffle_epi32::<0b10_11_00_01>(two));
    (values, _mm_cvtsi128_si32(one) as u32)
}

/// Makes the integers of a piece and returns their unit.
///
/// # Safety
/// 64 values are readable and as many integers writable; AVX2 is available.
#[target_feature(enable = "avx2,fma")]
unsafe fn to_integers(x: *const f32, to: *mut __m256i) -> f32 {
    // SAFETY: by contract, and `VECTORS` vectors of 16 integers are those of a piece.
    unsafe {
        let (values, largest) = in_halves(x);
        let (factor, step) = scale(largest, LARGEST);
        let factor = _mm256_set1_ps(factor);
        let mut integers = [_mm256_setzero_si256(); 2 * VECTORS];
        for (integer, value) in integers.iter_mut().zip(values) {
            *integer = _mm256_cvtps_epi32(_mm256_mul_ps(value, factor));
        }
        for (i, words) in split(&integers).into_iter().enumerate() {
            to.add(i).write_unaligned(words);
        }
        step / LARGEST
    }
}

/// The integers of a piece in 16 bits each and the order of lookups: even ones, then odd ones.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn split(integers: &[__m256i; 2 * VECTORS]) -> [__m256i; VECTORS] {
    let [a, b, c, d, e, f, g, h] = *integers;
    let (first, second) = ([a, b, c, d], [e, f, g, h]);
    [
        every_second::<false>(first),
        every_second::<false>(second),
        every_second::<true>(first),
        every_second::<true>(second),
    ]
}

/// Rows of codes times one row of x.
///
/// # Safety
/// As [`super::gemv_nf4::RowsFn`], with x from [`prepare`]; AVX2 and FMA are available.
#[target_feature(enable = "avx2,fma")]
unsafe fn rows(codes: *const u8, scales: &[f32], _: Rounding, dot: &Dot, sums: &mut [[f32; MOST_ROWS]]) {
    let pieces = scales.len() / sums.len().max(1);
    for (chunk, sums) in sums.chunks_mut(AT_ONCE).enumerate() {
        let row = chunk * AT_ONCE;
        let scales = &scales[row * pieces..(row + sums.len()) * pieces];
        // SAFETY: the caller vouches for the words of x, and for a piece of codes for each scale.
        unsafe {
            let codes = codes.add(row * pieces * PIECE / 2);
            match sums {
                [_, _, _, _] => rows_at_once::<AT_ONCE>(codes, scales, dot.b, sums),
                _ => {
                    for (i, sums) in sums.chunks_mut(1).enumerate() {
                        let codes = codes.add(i * pieces * PIECE / 2);
                        rows_at_once::<1>(codes, &scales[i * pieces..(i + 1) * pieces], dot.b, sums);
                    }
                }
            }
        }
    }
}

/// `R` neighbouring rows.
///
/// # Safety
/// As [`rows`], for as many rows and sums.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn rows_at_once<const R: usize>(codes: *const u8, scales: &[f32], x: *const f32, sums: &mut [[f32; MOST_ROWS]]) {
    let pieces = scales.len() / R;
    let planes = [plane(0), plane(1)];
    // What lies ahead is fetched in its own order, whatever the rows do.
    let mut ahead = codes.wrapping_add(AHEAD);
    // SAFETY: by contract; a prefetch never faults.
    unsafe {
        let units = x.add(pieces * WORDS);
        let mut parts = [Avx2::zero(); R];
        for piece in 0..pieces {
            let unit = Avx2::splat(units.add(piece));
            let x = x.add(piece * WORDS).cast();
            for (r, part) in parts.iter_mut().enumerate() {
                let at = r * pieces + piece;
                let scale = _mm256_mul_ps(Avx2::splat(scales.as_ptr().add(at)), unit);
                *part = Avx2::multiply_add(multiply(planes, codes.add(at * PIECE / 2), x), scale, *part);
            }
            for line in 0..R.div_ceil(2) {
                _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(line * LINE).cast());
            }
            ahead = ahead.wrapping_add(R * PIECE / 2);
        }
        for (sums, part) in sums.iter_mut().zip(parts) {
            sums[0] = Avx2::total(part);
        }
    }
}

/// `Σ C · X` of a piece, in eight parts.
///
/// # Safety
/// The piece and its integers of x are readable; AVX2 is available.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn multiply([low, high]: [__m256i; 2], piece: *const u8, x: *const __m256i) -> __m256 {
    let nibble = _mm256_set1_epi8(15);
    // SAFETY: by contract.
    unsafe {
        let bytes = _mm256_loadu_si256(piece.cast());
        let (even, odd) = (_mm256_and_si256(_mm256_srli_epi16::<4>(bytes), nibble), _mm256_and_si256(bytes, nibble));
        // No closure: it would not inherit the instruction set.
        let (a, b) = (_mm256_shuffle_epi8(low, even), _mm256_shuffle_epi8(high, even));
        let (c, d) = (_mm256_shuffle_epi8(low, odd), _mm256_shuffle_epi8(high, odd));
        let first = _mm256_madd_epi16(_mm256_unpacklo_epi8(a, b), _mm256_loadu_si256(x));
        let second = _mm256_madd_epi16(_mm256_unpackhi_epi8(a, b), _mm256_loadu_si256(x.add(1)));
        let third = _mm256_madd_epi16(_mm256_unpacklo_epi8(c, d), _mm256_loadu_si256(x.add(2)));
        let fourth = _mm256_madd_epi16(_mm256_unpackhi_epi8(c, d), _mm256_loadu_si256(x.add(3)));
        let sum = _mm256_add_epi32(_mm256_add_epi32(first, second), _mm256_add_epi32(third, fourth));
        _mm256_cvtepi32_ps(sum)
    }
}

/// One row of x alone.
pub(super) static FIXED: Functions =
    Functions { rows: &[rows], input: Input::Made { make: prepare, words: WORDS + 1 }, suits: |_| true };
