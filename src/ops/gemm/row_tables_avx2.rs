//! One row of x times NF4 rows of f16 or bf16, in f32 with AVX2: the values of a block out of a list of all that there are.
//!
//! A scale is `± m · 2^e` with m in [1, 2), and `round(code · scale) = ± 2^e · round(code · m)`: rounding does not see signs
//! and powers of two. `round(code · m)` is a step function of m, and the steps of all codes cut [1, 2) into 1793 intervals
//! for bf16, 14325 for f16. So a block of such a weight is one of as many tables of 16 values, times `± 2^e`: what would
//! take as long as half of the products is a load.
//!
//! bf16 is the upper half of an f32, so the values become words of f32 by their two bytes ([`super::planes_avx2`]). f16 has
//! more bits than that, and its values become integers ([`super::gemv_nf4_wide`]): the smallest code is above 2⁻⁴ and f16 has
//! 11 bits, so `2¹⁴ · round(code · m)` is one, as `2¹³ · round(code · m)` is where m is above 1.6; and both stay below 2¹⁵.
//! The power of two is part of the block's *factor*. f16 rounds values below 2⁻¹⁴ to multiples of 2⁻²⁴: blocks that have such
//! values get tables of their own, `2²⁴ · round(code · scale)`.
//!
//! A word for each 64 values says both: the factor with its mantissa replaced by the number of its table.
//!
//! Invariant: values are those of the weight. The order of a sum depends on its length alone.

use super::avx2::Avx2;
use super::gemv_nf4::{Input, PIECE};
use super::gemv_nf4_avx2;
use super::gemv_nf4_rows::AHEAD;
use super::gemv_nf4_wide::{self, Wide};
use super::kernel::Lanes;
use super::planes_avx2::{Lookup, Planes, CODES};
use crate::quant::nf4::NF4_CODE;
use crate::quant::SourceDtype;
use std::arch::x86_64::*;
use std::sync::LazyLock;

/// Bits of the mantissa of f32.
const MANTISSA: u32 = 23;

/// Bits of a word that number a table; the others are sign and exponent of an f32.
const TABLE: u32 = (1 << MANTISSA) - 1;

/// Mantissas that share an entry of [`Tables::near`].
const NEAR: u32 = 1 << 11;

/// From this value of the largest code on, integers of f16 are half as large, so that they fit into 16 bits.
const LARGE: f32 = 1.75;

/// Values of tables are those of the dtype times 2 to this power, but for the large ones of f16.
const fn shift_of(dtype: SourceDtype) -> u32 {
    match dtype {
        SourceDtype::F16 => 14,
        _ => 0,
    }
}

/// The same of own tables.
const OWN_SHIFT: u32 = 24;

/// Words ahead whose tables are asked for: all tables of f16 are larger than the L1 cache.
const TABLES_AHEAD: usize = 24;

/// The lower bytes of 16 values, then the upper ones: of the upper half of an f32, or of an integer.
pub(super) type Table = [u8; 32];

fn table(words: [u16; 16]) -> Table {
    let mut table = [0; 32];
    for (code, word) in words.into_iter().enumerate() {
        [table[code], table[16 + code]] = word.to_le_bytes();
    }
    table
}

/// All tables of a dtype, ascending by the mantissas that have them.
pub(super) struct Tables {
    dtype: SourceDtype,
    /// Exponents of scales, biased, for which rounding does not see them.
    exponents: std::ops::RangeInclusive<u32>,
    /// The least mantissa of each, and behind the last more than there are.
    pub borders: Vec<u32>,
    /// By number.
    pub tables: Vec<Table>,
    /// The number of the first one whose values are times half as much.
    large: u32,
    /// The table of every [`NEAR`]th mantissa.
    near: Vec<u16>,
}

/// Of the smallest scale, the smallest code is still normal; of the largest, 1 may be rounded up.
static BF16: LazyLock<Tables> = LazyLock::new(|| Tables::new(SourceDtype::Bf16, 5..=253));

/// The same, of f16: from 2⁻¹⁰ to 2¹⁵.
static F16: LazyLock<Tables> = LazyLock::new(|| Tables::new(SourceDtype::F16, 117..=141));

impl Tables {
    /// Those of a dtype that has some.
    pub fn of(dtype: SourceDtype) -> Option<&'static Tables> {
        match dtype {
            SourceDtype::F32 => None,
            SourceDtype::F16 => Some(&F16),
            SourceDtype::Bf16 => Some(&BF16),
        }
    }

    fn new(dtype: SourceDtype, exponents: std::ops::RangeInclusive<u32>) -> Tables {
        const LAST: u32 = TABLE;
        let value = |code: f32, mantissa: u32| dtype.round(code * f32::from_bits(1f32.to_bits() | mantissa));
        let mut borders = vec![0];
        for code in NF4_CODE {
            let mut from = 0;
            while value(code, from) != value(code, LAST) {
                // The first mantissa with another value: values are monotone in it.
                let (mut same, mut other) = (from, LAST);
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
        let large = match dtype {
            SourceDtype::F16 => borders.partition_point(|&border| value(1.0, border) < LARGE),
            _ => borders.len(),
        };
        let of_border = |(number, &border): (usize, &u32)| {
            let unit = (1 << (shift_of(dtype) - u32::from(number >= large))) as f32;
            table(NF4_CODE.map(|code| match dtype {
                SourceDtype::F16 => (value(code, border) * unit) as i16 as u16,
                _ => (value(code, border).to_bits() >> 16) as u16,
            }))
        };
        let tables = borders.iter().enumerate().map(of_border).collect();
        let last_before = |mantissa| borders.partition_point(|&border| border <= mantissa) - 1;
        let near = (0..=LAST / NEAR).map(|at| last_before(at * NEAR) as u16).collect();
        borders.push(u32::MAX);
        Tables { dtype, exponents, borders, tables, large: large as u32, near }
    }

    /// The word of a scale; None where rounding sees its exponent.
    pub fn word(&self, scale: f32) -> Option<u32> {
        let (bits, mantissa) = (scale.to_bits(), scale.to_bits() & TABLE);
        if scale == 0.0 {
            return Some(0);
        }
        if !self.exponents.contains(&(bits >> MANTISSA & 0xff)) {
            return None;
        }
        let mut number = u32::from(self.near[(mantissa / NEAR) as usize]);
        while self.borders[number as usize + 1] <= mantissa {
            number += 1;
        }
        let shift = shift_of(self.dtype) - u32::from(number >= self.large);
        Some((bits - (shift << MANTISSA)) & !TABLE | number)
    }

    /// The table of a scale that has no word; None if it cannot have one.
    pub fn own(&self, scale: f32) -> Option<Table> {
        let is_small = (scale.to_bits() >> MANTISSA & 0xff) < *self.exponents.start();
        let value = |code: f32| (self.dtype.round(code * scale) * (1 << OWN_SHIFT) as f32) as i16 as u16;
        (self.dtype == SourceDtype::F16 && is_small).then(|| table(NF4_CODE.map(value)))
    }

    /// The word of the own table with that number; None if there are too many.
    pub fn word_of_own(&self, number: usize) -> Option<u32> {
        let number = u32::try_from(self.tables.len() + number).ok().filter(|&number| number <= TABLE)?;
        Some((1.0 / (1 << OWN_SHIFT) as f32).to_bits() | number)
    }
}

/// What a weight is multiplied by.
#[derive(Clone, Copy)]
pub(super) struct Words<'a> {
    /// Of all pieces of some rows.
    pub words: &'a [u32],
    /// The tables of the dtype.
    pub shared: &'a [Table],
    /// Those that are numbered behind them.
    pub own: &'a [Table],
}

impl Words<'_> {
    #[inline(always)]
    fn table(&self, word: u32) -> *const Table {
        let number = (word & TABLE) as usize;
        let own = self.own.as_ptr().wrapping_sub(self.shared.len());
        let first = if number < self.shared.len() { self.shared.as_ptr() } else { own };
        first.wrapping_add(number)
    }
}

/// Products of a row of x with neighbouring rows of codes, as many as there are sums.
///
/// # Safety
/// The words are those of all pieces of all rows, whose codes are readable, and number tables that there are; x is as
/// [`Tables::input`] makes it of a row; AVX2, FMA and F16C are available.
pub(super) type RowsFn = unsafe fn(codes: *const u8, words: Words<'_>, x: *const f32, sums: &mut [f32]);

impl Tables {
    /// What x must have become.
    pub fn input(&self) -> Input {
        match self.dtype {
            SourceDtype::F16 => gemv_nf4_wide::INPUT,
            _ => gemv_nf4_avx2::INPUT,
        }
    }

    /// The kernel.
    pub fn rows(&self) -> RowsFn {
        match self.dtype {
            SourceDtype::F16 => rows_of_f16,
            _ => rows_of_bf16,
        }
    }
}

/// The bits of a word that are its factor.
#[inline]
#[target_feature(enable = "avx2")]
fn factor_bits() -> __m256 {
    _mm256_castsi256_ps(_mm256_set1_epi32(!TABLE as i32))
}

/// [`RowsFn`] for tables of f16.
///
/// # Safety
/// As there.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn rows_of_f16(codes: *const u8, words: Words<'_>, x: *const f32, sums: &mut [f32]) {
    let (pieces, last) = (words.words.len() / sums.len().max(1), words.words.len().saturating_sub(1));
    let (wide, factor_bits) = (Wide::new(x, pieces), factor_bits());
    for (row, sum) in sums.iter_mut().enumerate() {
        let mut total = _mm256_setzero_ps();
        for piece in 0..pieces {
            let at = row * pieces + piece;
            // SAFETY: by contract; a prefetch never faults.
            unsafe {
                let next = *words.words.get_unchecked((at + TABLES_AHEAD).min(last));
                _mm_prefetch::<_MM_HINT_T0>(words.table(next).cast());
                let word = words.words.as_ptr().add(at);
                let table = words.table(*word).cast();
                total = wide.add(piece, codes.add(at * PIECE / 2), table, (word, factor_bits), total);
            }
        }
        // SAFETY: AVX2 by contract.
        *sum = unsafe { Avx2::total(total) };
    }
}

/// [`RowsFn`] for tables of bf16: x is as [`super::gemv_nf4_avx2`] wants it. No weight has its own.
///
/// # Safety
/// As there.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn rows_of_bf16(codes: *const u8, words: Words<'_>, x: *const f32, sums: &mut [f32]) {
    let (tables, words) = (words.shared, words.words);
    let pieces = words.len() / sums.len().max(1);
    let factor_bits = factor_bits();
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
