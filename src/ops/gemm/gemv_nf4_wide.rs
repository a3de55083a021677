//! A row of x times rows of NF4 codes in f32, by products of 16-bit integers, with AVX2: single tokens.
//!
//! Of each piece of 64 values x[i] the integers X[i] are made once, and split:
//!
//! ```text
//! x[i] = u · X[i],   X[i] = 2¹⁴ · H[i] + L[i],   |H| ≤ 2¹²,   |L| ≤ 2¹³
//! Σ V[i] · x[i] = u · (2¹⁴ · Σ V[i] · H[i] + Σ V[i] · L[i])
//! ```
//!
//! where u is the power of two for which the largest |X[i]| lies between 2²⁵ and 2²⁶, so what X loses is at most 2⁻²⁶ of the
//! largest x of the piece, and nothing where x is at least a quarter of it. V are integers of 16 bits that are looked up by
//! their two bytes ([`super::gemv_nf4_fixed`]); a lane adds up eight products, `8 · 32767 · 2¹³ < 2³¹`, so sums are exact.
//!
//! Weights that were quantised from f16 have values that are such integers times a power of two
//! ([`super::row_tables_avx2`]). Those of f32 are `code · scale`, where the code has more bits than V:
//!
//! ```text
//! 32767 · code = V + F / 64,   Σ F[i] / 64 · H[i] ≈ Σ F[i] · B[i],   B[i] = round(H[i] / 64)
//! ```
//!
//! with bytes F and B (`vpmaddubsw`), four products a lane, `4 · 64 · 64 < 2¹⁵`. Half a unit of F and of B are 2⁻²² of the
//! largest code and the largest x. The products `code · scale` are not rounded to f32.
//!
//! Invariant: the order of a sum depends on its length alone. A piece of x with a value that is not finite gives NaN.

use super::avx2::Avx2;
use super::gemv_nf4::{Functions, Input, Rounding, PIECE};
use super::gemv_nf4_fixed::{in_halves, split, VECTORS};
use super::gemv_nf4_rows::AHEAD;
use super::kernel::{Dot, Lanes, MOST_ROWS};
use crate::quant::nf4::NF4_CODE;
use crate::quant::SourceDtype;
use std::arch::asm;
use std::arch::x86_64::*;

/// Bits of L.
const LOW: i32 = 14;

/// f32 words of the integers of a piece: H, L and the bytes B.
const WORDS: usize = (2 * VECTORS + VECTORS / 2) * 8;

/// The largest V of a code.
const LARGEST: f32 = 32767.0;

/// Bits of F, and of H that B lacks.
const BYTE: i32 = 6;

/// Units of F in one of V.
const FRACTIONS: i64 = 1 << BYTE;

/// By code: the lower bytes of V, the upper ones, F.
const PLANES: [[u8; 16]; 3] = {
    let mut planes = [[0; 16]; 3];
    let mut code = 0;
    while code < 16 {
        // Half a unit of F more, as the conversion cuts off, and a positive sum, which it cuts downwards.
        let one = LARGEST as i64 * FRACTIONS;
        let units = ((NF4_CODE[code] as f64 + 1.0) * one as f64 + 0.5) as i64 - one;
        [planes[0][code], planes[1][code]] = ((units >> BYTE) as i16).to_le_bytes();
        planes[2][code] = (units & (FRACTIONS - 1)) as u8;
        code += 1;
    }
    planes
};

/// Words of a piece of x, and in the end a unit u for each.
pub(super) const INPUT: Input = Input::Made { make: prepare, words: WORDS + 1 };

fn prepare(x: &[f32], to: &mut [f32]) {
    let pieces = x.len() / PIECE;
    let (integers, units) = to.split_at_mut(pieces * WORDS);
    for ((x, to), unit) in x.chunks_exact(PIECE).zip(integers.chunks_exact_mut(WORDS)).zip(&mut units[..pieces]) {
        // SAFETY: this function is chosen on a path with AVX2 alone; 64 values and the words for them are there.
        *unit = unsafe { to_integers(x.as_ptr(), to.as_mut_ptr().cast()) };
    }
}

/// Makes the integers of a piece and returns their unit.
///
/// # Safety
/// 64 values are readable and the words of a piece writable; AVX2 is available.
#[target_feature(enable = "avx2,fma")]
unsafe fn to_integers(x: *const f32, to: *mut __m256i) -> f32 {
    // SAFETY: by contract.
    unsafe {
        let (values, largest) = in_halves(x);
        let (factor, unit) = scale(largest);
        let factor = _mm256_set1_ps(factor);
        let (mut low, mut high) = ([_mm256_setzero_si256(); 2 * VECTORS], [_mm256_setzero_si256(); 2 * VECTORS]);
        for (value, (low, high)) in values.into_iter().zip(low.iter_mut().zip(&mut high)) {
            let integer = _mm256_cvtps_epi32(_mm256_mul_ps(value, factor));
            *low = _mm256_srai_epi32::<{ 32 - LOW }>(_mm256_slli_epi32::<{ 32 - LOW }>(integer));
            *high = _mm256_srai_epi32::<LOW>(_mm256_sub_epi32(integer, *low));
        }
        let (high, low) = (split(&high), split(&low));
        let half = _mm256_set1_epi16(FRACTIONS as i16 / 2);
        for (i, (high, low)) in high.into_iter().zip(low).enumerate() {
            to.add(i).write_unaligned(high);
            to.add(VECTORS + i).write_unaligned(low);
        }
        for (i, &[first, second]) in high.as_chunks::<2>().0.iter().enumerate() {
            let [first, second] = [_mm256_add_epi16(first, half), _mm256_add_epi16(second, half)];
            let bytes = _mm256_packs_epi16(_mm256_srai_epi16::<BYTE>(first), _mm256_srai_epi16::<BYTE>(second));
            to.add(2 * VECTORS + i).write_unaligned(bytes);
        }
        unit
    }
}

/// The factor to integers and the unit, for a piece whose largest magnitude has these bits.
fn scale(largest: u32) -> (f32, f32) {
    const BIAS: u32 = 127;
    let exponent = largest >> 23;
    if exponent == 255 {
        return (0.0, f32::NAN);
    }
    // 2²⁵ is what the leading bit of the largest becomes. The unit of smaller ones would not be normal.
    let exponent = exponent.max(26);
    (f32::from_bits((2 * BIAS + 25 - exponent) << 23), f32::from_bits((exponent - 25) << 23))
}

/// The codes of a piece, one a byte: `even` and `odd` ones.
macro_rules! codes {
    () => {
        concat!(
            "prefetcht0 [{codes} + {ahead}]\n vmovdqu {odd}, [{codes}]\n vpsrlw {even}, {odd}, 4\n",
            "vpand {even}, {even}, {nibble}\n vpand {odd}, {odd}, {nibble}"
        )
    };
}

/// `2¹⁴ · (Σ V · H + more) + Σ V · L`, times the unit of the piece, in `even`. Where there is `more`, it is added to `b`.
macro_rules! products {
    ($($more:literal)?) => {
        concat!(
            "vpshufb {a}, {low}, {even}\n vpshufb {b}, {high}, {even}\n",
            "vpshufb {c}, {low}, {odd}\n vpshufb {d}, {high}, {odd}\n",
            "vpunpcklbw {even}, {a}, {b}\n vpunpckhbw {a}, {a}, {b}\n",
            "vpunpcklbw {odd}, {c}, {d}\n vpunpckhbw {c}, {c}, {d}\n",
            "vpmaddwd {b}, {even}, [{x}]\n vpmaddwd {d}, {a}, [{x} + 32]\n vpaddd {b}, {b}, {d}\n",
            "vpmaddwd {d}, {odd}, [{x} + 64]\n vpmaddwd {e}, {c}, [{x} + 96]\n vpaddd {d}, {d}, {e}\n",
            "vpaddd {b}, {b}, {d}\n",
            $($more,)?
            "vpmaddwd {even}, {even}, [{x} + 128]\n vpmaddwd {a}, {a}, [{x} + 160]\n vpaddd {even}, {even}, {a}\n",
            "vpmaddwd {odd}, {odd}, [{x} + 192]\n vpmaddwd {c}, {c}, [{x} + 224]\n vpaddd {odd}, {odd}, {c}\n",
            "vpaddd {even}, {even}, {odd}\n vcvtdq2ps {b}, {b}\n vcvtdq2ps {even}, {even}\n",
            "vfmadd231ps {even}, {b}, {weight}\n vbroadcastss {b}, [{unit}]\n vmulps {even}, {even}, {b}"
        )
    };
}

/// What a row of pieces is multiplied with.
#[derive(Clone, Copy)]
pub(super) struct Wide {
    x: *const f32,
    units: *const f32,
    nibble: __m256i,
    weight: __m256,
}

impl Wide {
    /// x as [`prepare`] makes it of so many pieces.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    pub fn new(x: *const f32, pieces: usize) -> Wide {
        let units = x.wrapping_add(pieces * WORDS);
        Wide { x, units, nibble: _mm256_set1_epi8(15), weight: _mm256_set1_ps((1 << LOW) as f32) }
    }

    /// `total + factor · Σ V · x` of a piece, in eight parts: V are looked up in 16 lower and 16 upper bytes, the factor is
    /// those bits of a word that are in the mask. Written out, because the compiler moves loads to where it lacks registers.
    ///
    /// # Safety
    /// The codes of the piece, the bytes and the word are readable, and x has the piece; AVX2 and FMA are available.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    pub unsafe fn add(
        &self,
        piece: usize,
        codes: *const u8,
        table: *const u8,
        (word, mask): (*const u32, __m256),
        mut total: __m256,
    ) -> __m256 {
        // SAFETY: by contract; a prefetch never faults.
        unsafe {
            asm!(
                "vbroadcasti128 {low}, [{table}]",
                "vbroadcasti128 {high}, [{table} + 16]",
                codes!(),
                products!(),
                "vbroadcastss {b}, [{word}]",
                "vandps {b}, {b}, {mask}",
                "vfmadd231ps {total}, {even}, {b}",
                ahead = const AHEAD, codes = in(reg) codes, table = in(reg) table, word = in(reg) word,
                x = in(reg) self.x.add(piece * WORDS), unit = in(reg) self.units.add(piece),
                nibble = in(ymm_reg) self.nibble, weight = in(ymm_reg) self.weight, mask = in(ymm_reg) mask,
                total = inout(ymm_reg) total, low = out(ymm_reg) _, high = out(ymm_reg) _, even = out(ymm_reg) _,
                odd = out(ymm_reg) _, a = out(ymm_reg) _, b = out(ymm_reg) _, c = out(ymm_reg) _, d = out(ymm_reg) _,
                e = out(ymm_reg) _, options(pure, readonly, nostack, preserves_flags),
            );
        }
        total
    }

    /// `total + scale · Σ (V + F / 64) · x` of a piece, in eight parts.
    ///
    /// # Safety
    /// The codes of the piece and the scale are readable, and x has the piece; AVX2 and FMA are available.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn add_f32(&self, piece: usize, codes: *const u8, scale: *const f32, mut total: __m256) -> __m256 {
        let [low, high, fractions] = [plane(0), plane(1), plane(2)];
        // SAFETY: as above.
        unsafe {
            asm!(
                codes!(),
                "vpshufb {a}, {fractions}, {even}",
                "vpmaddubsw {a}, {a}, [{x} + 256]",
                "vpshufb {b}, {fractions}, {odd}",
                "vpmaddubsw {b}, {b}, [{x} + 288]",
                "vpaddw {a}, {a}, {b}",
                "vpmaddwd {more}, {a}, {ones}",
                products!("vpaddd {b}, {b}, {more}\n"),
                "vbroadcastss {b}, [{scale}]",
                "vfmadd231ps {total}, {even}, {b}",
                ahead = const AHEAD, codes = in(reg) codes, scale = in(reg) scale,
                x = in(reg) self.x.add(piece * WORDS), unit = in(reg) self.units.add(piece),
                nibble = in(ymm_reg) self.nibble, weight = in(ymm_reg) self.weight, low = in(ymm_reg) low,
                high = in(ymm_reg) high, fractions = in(ymm_reg) fractions, ones = in(ymm_reg) _mm256_set1_epi16(1),
                total = inout(ymm_reg) total, more = out(ymm_reg) _, even = out(ymm_reg) _, odd = out(ymm_reg) _,
                a = out(ymm_reg) _, b = out(ymm_reg) _, c = out(ymm_reg) _, d = out(ymm_reg) _, e = out(ymm_reg) _,
                options(pure, readonly, nostack, preserves_flags),
            );
        }
        total
    }
}

/// Rows of codes of f32 times one row of x.
///
/// # Safety
/// As [`super::gemv_nf4::RowsFn`], with x from [`prepare`]; AVX2 and FMA are available.
#[target_feature(enable = "avx2,fma")]
unsafe fn rows(codes: *const u8, scales: &[f32], _: Rounding, dot: &Dot, sums: &mut [[f32; MOST_ROWS]]) {
    let pieces = scales.len() / sums.len().max(1);
    let wide = Wide::new(dot.b, pieces);
    for (row, sums) in sums.iter_mut().enumerate() {
        let mut total = _mm256_setzero_ps();
        for piece in 0..pieces {
            let at = row * pieces + piece;
            // SAFETY: the caller vouches for the words of x, and for a piece of codes for each scale.
            unsafe { total = wide.add_f32(piece, codes.add(at * PIECE / 2), scales.as_ptr().add(at), total) };
        }
        // SAFETY: AVX2 by contract.
        sums[0] = unsafe { Avx2::total(total) } / LARGEST;
    }
}

/// A plane in both halves.
#[inline]
#[target_feature(enable = "avx2")]
fn plane(index: usize) -> __m256i {
    // SAFETY: 16 bytes.
    _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(PLANES[index].as_ptr().cast()) })
}

/// One row of x alone, with weights that were f32.
pub(super) static WIDE: Functions = Functions { rows: &[rows], input: INPUT, suits: |dtype| dtype == SourceDtype::F32 };
