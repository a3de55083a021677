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

#[cfg(target_arch = "x86_64")]
use super::gemv_nf4::PIECE;
#[cfg(target_arch = "x86_64")]
use super::pack_nf4::ScaleReader;
use super::WeightRef;
use crate::device::{cpu_path, Compute, CpuPath};
#[cfg(target_arch = "x86_64")]
use crate::quant::nf4::NF4_CODE;
use crate::quant::Nf4Matrix;
#[cfg(target_arch = "x86_64")]
use crate::quant::{Scales, SourceDtype};
#[cfg(target_arch = "x86_64")]
use rayon::prelude::*;
use std::ops::Range;
#[cfg(target_arch = "x86_64")]
use std::sync::LazyLock;

/// What a model that generates keeps of the scales of a weight: which table each 64 values have, and their factors; or, where
/// there are no tables, scales that were decoded.
pub struct RowTables(Kept);

enum Kept {
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "never made there"))]
    Words(Vec<u32>),
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "never made there"))]
    Scales(Vec<f32>),
}

impl RowTables {
    /// For products of single rows of x with this weight; None where nothing is kept for them.
    pub fn new(weight: WeightRef<'_>, compute: Compute) -> Option<RowTables> {
        RowTables::on(cpu_path(), weight, compute)
    }

    /// [`RowTables::new`] on one kernel path.
    pub(super) fn on(path: CpuPath, weight: WeightRef<'_>, compute: Compute) -> Option<RowTables> {
        match weight {
            WeightRef::Nf4(matrix) if path == CpuPath::Avx2 => kept_of(matrix, compute).map(RowTables),
            _ => None,
        }
    }

    /// The scale of each 64 values, if that is what there is.
    pub(super) fn scales(&self) -> Option<&[f32]> {
        match &self.0 {
            Kept::Scales(scales) => Some(scales),
            Kept::Words(_) => None,
        }
    }

    /// Hands `put` each row of a range with its sum.
    ///
    /// # Safety
    /// The words were made for this matrix, and x lies as [`super::gemv_nf4_avx2`] wants it.
    pub(super) unsafe fn sums(
        &self,
        matrix: &Nf4Matrix,
        x: *const f32,
        rows: Range<usize>,
        put: &mut dyn FnMut(usize, f32),
    ) {
        #[cfg(target_arch = "x86_64")]
        if let Kept::Words(words) = &self.0 {
            let pieces = matrix.cols / PIECE;
            let mut sums = [0.0; 16];
            for first in rows.clone().step_by(sums.len()) {
                let sums = &mut sums[..(rows.end - first).min(16)];
                let count = sums.len();
                let words = &words[first * pieces..(first + count) * pieces];
                let codes = &matrix.codes[first * pieces * PIECE / 2..(first + count) * pieces * PIECE / 2];
                // SAFETY: there are tables on a path with AVX2 alone; words and codes are those of as many rows as sums, and
                // the caller vouches for x.
                unsafe { avx2::rows(codes.as_ptr(), words, x, sums) };
                (first..).zip(&*sums).for_each(|(row, &sum)| put(row, sum));
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = (matrix, x, rows, put);
    }
}

/// Bits of a word that number a table; the others are sign and exponent of an f32.
#[cfg(target_arch = "x86_64")]
const TABLE: u32 = (1 << 11) - 1;

/// Mantissas that share an entry of [`Tables::near`].
#[cfg(target_arch = "x86_64")]
const NEAR: u32 = 1 << 11;

/// All tables, ascending by the mantissas that have them.
#[cfg(target_arch = "x86_64")]
struct Tables {
    /// The least mantissa of each, 23 bits, and behind the last more than there are.
    borders: Vec<u32>,
    /// The lower bytes of the 16 values, then the upper ones.
    planes: Vec<[u8; 32]>,
    /// The table of every [`NEAR`]th mantissa.
    near: Vec<u16>,
}

#[cfg(target_arch = "x86_64")]
static TABLES: LazyLock<Tables> = LazyLock::new(|| {
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

#[cfg(target_arch = "x86_64")]
impl Tables {
    /// The word of a scale; None where products would be too small or too large to be rounded as others are.
    fn word(&self, scale: f32) -> Option<u32> {
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

/// What is kept of a matrix.
#[cfg(target_arch = "x86_64")]
fn kept_of(matrix: &Nf4Matrix, compute: Compute) -> Option<Kept> {
    if !matrix.cols.is_multiple_of(PIECE) || matrix.block < PIECE {
        return None;
    }
    WeightRef::Nf4(matrix).check();
    let words = match compute {
        Compute::F32 if matrix.dtype == SourceDtype::Bf16 => {
            of_pieces(matrix, |scale| TABLES.word(scale)).map(Kept::Words)
        }
        _ => None,
    };
    words.or_else(|| match matrix.scales {
        Scales::Double { .. } => of_pieces(matrix, Some).map(Kept::Scales),
        Scales::Plain(_) => None,
    })
}

/// What becomes of the scale of each 64 values; None if it is that for one of them.
#[cfg(target_arch = "x86_64")]
fn of_pieces<T: Copy + Default + Send>(matrix: &Nf4Matrix, make: impl Fn(f32) -> Option<T> + Sync) -> Option<Vec<T>> {
    const AT_ONCE: usize = 4096;
    let reader = ScaleReader::new(matrix);
    let mut all = vec![T::default(); matrix.len() / PIECE];
    let chunks = all.par_chunks_mut(AT_ONCE).enumerate().map(|(chunk, made)| {
        let mut scales = [0.0; AT_ONCE];
        let scales = &mut scales[..made.len()];
        reader.fill(chunk * AT_ONCE * PIECE, PIECE, matrix.block, scales);
        made.iter_mut().zip(scales).all(|(to, scale)| make(*scale).map(|made| *to = made).is_some())
    });
    chunks.reduce(|| true, |one, other| one && other).then_some(all)
}

#[cfg(not(target_arch = "x86_64"))]
fn kept_of(_: &Nf4Matrix, _: Compute) -> Option<Kept> {
    None
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use super::super::avx2::Avx2;
    use super::super::gemv_nf4::PIECE;
    use super::super::gemv_nf4_rows::AHEAD;
    use super::super::kernel::Lanes;
    use super::super::planes_avx2::{Lookup, Planes, CODES};
    use super::{TABLE, TABLES};
    use std::arch::x86_64::*;

    /// Neighbouring rows of codes, as many as there are sums.
    ///
    /// # Safety
    /// The words are those of all pieces of all rows, whose codes are readable, and x has 64 words for each piece of a row;
    /// AVX2 and FMA are available.
    #[target_feature(enable = "avx2,fma,f16c")]
    pub unsafe fn rows(codes: *const u8, words: &[u32], x: *const f32, sums: &mut [f32]) {
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
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;
    use crate::ops::gemm::{RowInput, RowProduct};
    use crate::ops::Bytes;
    use crate::quant::double::double_quantize;

    fn matrix(scales: &[f32], cols: usize) -> Nf4Matrix {
        let values = scales.len() * PIECE;
        // Every code in each block, in another order in each.
        let codes: Vec<u8> = (0..values / 2).map(|i| (i * 37 + i / 32 * 11) as u8).collect();
        let bytes: Vec<u8> = scales.iter().flat_map(|scale| scale.to_le_bytes()).collect();
        let scales = Scales::Plain(Bytes::owned(&bytes));
        let codes = Bytes::owned(&codes);
        Nf4Matrix { rows: values / cols, cols, block: PIECE, codes, scales, dtype: SourceDtype::Bf16 }
    }

    fn sums(matrix: &Nf4Matrix, tables: Option<&RowTables>, compute: Compute, x: &[f32]) -> Vec<f32> {
        let product = RowProduct::on(CpuPath::Avx2, WeightRef::Nf4(matrix), compute).reading(tables);
        let mut input = RowInput::default();
        input.load(x, [product].into_iter());
        let mut sums = vec![f32::NAN; matrix.rows];
        for rows in [0..matrix.rows / 3, matrix.rows / 3..matrix.rows] {
            product.sums(&input, rows, &mut |row, sum| sums[row] = sum);
        }
        sums
    }

    /// Scales on both sides of each border, of different size and sign.
    fn borders() -> Vec<f32> {
        let each = TABLES.borders[1..TABLES.planes.len()].iter().enumerate();
        let scale = |at: usize, mantissa: u32| {
            let scale = f32::from_bits(1f32.to_bits() | mantissa) * (((at % 90) as f32) - 60.0).exp2();
            if at % 7 == 3 {
                -scale
            } else {
                scale
            }
        };
        each.flat_map(|(at, &border)| [scale(at, border - 1), scale(at, border)]).collect()
    }

    #[test]
    fn values_are_those_of_the_matrix_at_every_border() {
        if !CpuPath::available().contains(&CpuPath::Avx2) {
            return;
        }
        assert_eq!(TABLES.planes.len(), 1793);
        let mut scales = borders();
        scales.extend([0.0, -0.0, 1.0, 2f32.powi(-122)]);
        scales.resize(scales.len().next_multiple_of(3), 0.5);
        let matrix = matrix(&scales, 192);
        let tables = RowTables::on(CpuPath::Avx2, WeightRef::Nf4(&matrix), Compute::F32).expect("tables");
        for col in 0..192 {
            let x: Vec<f32> = (0..192).map(|at| f32::from(u8::from(at == col))).collect();
            let found = sums(&matrix, Some(&tables), Compute::F32, &x);
            for (row, found) in found.into_iter().enumerate() {
                // An equal comparison: the sign of a zero is that of the sum.
                assert_eq!(found, matrix.value(row * 192 + col), "row {row}, column {col}");
            }
        }
    }

    #[test]
    fn sums_are_those_without_tables() {
        if !CpuPath::available().contains(&CpuPath::Avx2) {
            return;
        }
        let scales: Vec<f32> = (0..9 * 35).map(|i| 0.02 + 0.001 * ((i * 37) % 101) as f32).collect();
        let matrix = matrix(&scales, 576);
        let tables = RowTables::on(CpuPath::Avx2, WeightRef::Nf4(&matrix), Compute::F32).expect("tables");
        let x: Vec<f32> = (0..576).map(|i| ((i * 29) % 64) as f32 / 32.0 - 1.0).collect();
        for (with, without) in
            sums(&matrix, Some(&tables), Compute::F32, &x).iter().zip(sums(&matrix, None, Compute::F32, &x))
        {
            assert!((with - without).abs() <= 1e-5, "{with} and {without}");
        }
        let mut bad = x;
        bad[70] = f32::INFINITY;
        assert!(sums(&matrix, Some(&tables), Compute::F32, &bad).iter().all(|sum| !sum.is_finite()));
    }

    #[test]
    fn there_are_no_tables_where_rounding_is_another() {
        let on = |matrix: &Nf4Matrix, compute| RowTables::on(CpuPath::Avx2, WeightRef::Nf4(matrix), compute).is_some();
        // Scales are kept where they would have to be decoded.
        let fits = matrix(&[1.0; 6], 192);
        assert!(on(&fits, Compute::F32) && !on(&fits, Compute::Bf16));
        assert!(RowTables::on(CpuPath::Portable, WeightRef::Nf4(&fits), Compute::F32).is_none());
        assert!(!on(&Nf4Matrix { dtype: SourceDtype::F32, ..fits.clone() }, Compute::F32));
        assert!(!on(&Nf4Matrix { rows: 12, cols: 32, ..fits }, Compute::F32));
        for bad in [1e-37, 3e38, f32::INFINITY, f32::NAN] {
            assert!(!on(&matrix(&[1.0, bad, 1.0], 192), Compute::F32), "{bad}");
        }
    }

    #[test]
    fn scales_that_are_kept_change_no_bit() {
        if !CpuPath::available().contains(&CpuPath::Avx2) {
            return;
        }
        let scales: Vec<f32> = (0..9 * 35).map(|i| 0.02 + 0.001 * ((i * 37) % 101) as f32).collect();
        let double = Nf4Matrix { scales: double_quantize(&scales), ..matrix(&scales, 576) };
        let x: Vec<f32> = (0..576).map(|i| ((i * 29) % 64) as f32 / 32.0 - 1.0).collect();
        for (dtype, compute) in [(SourceDtype::F32, Compute::F32), (SourceDtype::Bf16, Compute::Bf16)] {
            let double = Nf4Matrix { dtype, ..double.clone() };
            let tables = RowTables::on(CpuPath::Avx2, WeightRef::Nf4(&double), compute).expect("scales");
            assert!(tables.scales().is_some());
            let with = sums(&double, Some(&tables), compute, &x);
            assert!(with.iter().zip(sums(&double, None, compute, &x)).all(|(a, b)| a.to_bits() == b.to_bits()));
        }
    }
}
