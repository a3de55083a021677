//! One row of x times NF4 rows of bf16, in f32 with AVX2: the values of a block out of a list of all that there are.
//!
//! A scale is `± m · 2^e` with m in [1, 2), and `round(code · scale) = ± 2^e · round(code · m)`: rounding to bf16 does not see
//! signs and powers of two. `round(code · m)` is a step function of m, and the steps of all codes cut [1, 2) into 1793
//! intervals. So a block of a weight that was quantised from bf16 is one of 1793 tables of 16 values, times `± 2^e`, which is
//! its *factor*: what would take as long as half of the products is a load.
//!
//! A word for each 64 values says both: the scale with its mantissa replaced by the number of its table.
//!
//! Invariant: values are those of [`super::planes_avx2`]. The order of a sum depends on its length alone.

use super::avx2::Avx2;
use super::gemv_nf4::PIECE;
use super::gemv_nf4_rows::AHEAD;
use super::kernel::Lanes;
use super::planes_avx2::{Lookup, Planes, CODES};
use crate::quant::nf4::NF4_CODE;
use std::arch::x86_64::*;
use std::sync::LazyLock;

/// Bits of a word that number a table; the others are sign and exponent of an f32.
const TABLE: u32 = (1 << 11) - 1;

/// Mantissas that share an entry of [`Tables::near`].
const NEAR: u32 = 1 << 11;

/// All tables, ascending by the mantissas that have them.
pub(super) struct Tables {
    /// The least mantissa of each, 23 bits, and behind the last more than there are.
    pub borders: Vec<u32>,
    /// The lower bytes of the 16 values, then the upper ones.
    pub planes: Vec<[u8; 32]>,
    /// The table of every [`NEAR`]th mantissa.
    near: Vec<u16>,
}

pub(super) static TABLES: LazyLock<Tables> = LazyLock::new(|| {
    const MANTISSAS: u32 = 1 << 23;
    let value =
        |code: f32, mantissa: u32| half::bf16::from_f32(code * f32::from_bits(1f32.to_bits() | mantissa)).to_bits();
    let mut borders = vec![0];
    for code in NF4_CODE {
        let mut from = 0;
        while value(code, from) != value(code, MANTISSAS - 1) {
            // The first mantissa with another value: values are monotone in it.
            let (mut same, mut other) = (from, MANTISSAS - 1);
            while other - same > 1 {
                let middle = same.midpoint(other);
                if value(code, middle) == value(code, from) {
                    same = middle;
                } else {
                    other = middle;
                }
            }
            borders.push(other);
            from = other;
        }
    }
    borders.sort_unstable();
    borders.dedup();
    let planes = borders.iter().map(|&mantissa| {
        let mut planes = [0; 32];
        for (code, value) in NF4_CODE.map(|code| value(code, mantissa)).into_iter().enumerate() {
            [planes[code], planes[16 + code]] = value.to_le_bytes();
        }
        planes
    });
    let planes = planes.collect();
    let near =
        (0..MANTISSAS / NEAR).map(|at| (borders.partition_point(|&border| border <= at * NEAR) - 1) as u16).collect();
    borders.push(u32::MAX);
    Tables { borders, planes, near }
});

impl Tables {
    /// The word of a scale; None where products would be too small or too large to be rounded as others are.
    pub fn word(&self, scale: f32) -> Option<u32> {
        let (bits, mantissa) = (scale.to_bits(), scale.to_bits() & 0x7f_ffff);
        if scale == 0.0 {
            return Some(0);
        }
        // The smallest code is above 2⁻⁴, and 1 · m may be rounded up to 2.
        if !(5..=253).contains(&(bits >> 23 & 0xff)) {
            return None;
        }
        let mut table = usize::from(self.near[(mantissa / NEAR) as usize]);
        while self.borders[table + 1] <= mantissa {
            table += 1;
        }
        Some(bits & 0xff80_0000 | table as u32)
    }
}

/// Neighbouring rows of codes, as many as there are sums.
///
/// # Safety
/// The words are those of all pieces of all rows, whose codes are readable, and x has 64 words for each piece of a row;
/// AVX2 and FMA are available.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn rows(codes: *const u8, words: &[u32], x: *const f32, sums: &mut [f32]) {
    let tables = TABLES.planes.as_slice();
    let pieces = words.len() / sums.len().max(1);
    let factor_bits = _mm256_castsi256_ps(_mm256_set1_epi32(!0x7f_ffff));
    for (row, sum) in sums.iter_mut().enumerate() {
        // SAFETY: by contract; words number tables that there are.
        unsafe {
            let mut parts = [Avx2::zero(); 2];
            for piece in 0..pieces {
                let at = row * pieces + piece;
                let word = *words.get_unchecked(at);
                let planes = Planes::<2>::load(tables.as_ptr().add((word & TABLE) as usize).cast());
                let factor = _mm256_and_ps(_mm256_set1_ps(f32::from_bits(word)), factor_bits);
                let products = multiply(planes, codes.add(at * PIECE / 2), x.add(piece * PIECE));
                parts[0] = Avx2::multiply_add(products[0], factor, parts[0]);
                parts[1] = Avx2::multiply_add(products[1], factor, parts[1]);
            }
            *sum = Avx2::total(Avx2::add(parts[0], parts[1]));
        }
    }
}

/// The products of a piece, in two chains.
///
/// # Safety
/// The piece is readable, and 64 words of x; AVX2 and FMA are available.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn multiply(planes: Planes<2>, piece: *const u8, x: *const f32) -> [__m256; 2] {
    // SAFETY: by contract; a prefetch never faults.
    unsafe {
        _mm_prefetch::<_MM_HINT_T0>(piece.wrapping_add(AHEAD).cast());
        let bytes = _mm256_loadu_si256(piece.cast());
        let low = _mm256_set1_epi8(15);
        let [a, b, c, d] = planes.look_up(_mm256_and_si256(_mm256_srli_epi16::<4>(bytes), low));
        let mut sums = [_mm256_mul_ps(a, Avx2::load(x)), _mm256_mul_ps(b, Avx2::load(x.add(8)))];
        sums[0] = Avx2::multiply_add(c, Avx2::load(x.add(16)), sums[0]);
        sums[1] = Avx2::multiply_add(d, Avx2::load(x.add(24)), sums[1]);
        let [a, b, c, d] = planes.look_up(_mm256_and_si256(bytes, low));
        let x = x.add(CODES);
        sums[0] = Avx2::multiply_add(a, Avx2::load(x), sums[0]);
        sums[1] = Avx2::multiply_add(b, Avx2::load(x.add(8)), sums[1]);
        sums[0] = Avx2::multiply_add(c, Avx2::load(x.add(16)), sums[0]);
        sums[1] = Avx2::multiply_add(d, Avx2::load(x.add(24)), sums[1]);
        sums
    }
}
