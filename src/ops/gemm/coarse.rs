//! A head in 8 bits beside itself: `y[N] = w[N,K] · x[K]` for one row of x, roughly, with how rough it may be.
//!
//! Each piece of 64 values of a row of w becomes integers `Q[i] = round(w[i] / s)` of at most 127, each piece of x integers
//! `X[i] = round(x[i] / u)` of at most 16383. Sums of integers are exact, so
//!
//! ```text
//! |Σ w·x − Σ s·u·Σ Q·X| ≤ Σ s · reach,   reach = ½ · Σ |x[i]| + 64 · 127 · ½ · u
//! ```
//!
//! over the pieces. A row whose product can be the largest is known without reading the others in full: half the bytes of
//! bf16 decide.
//!
//! Invariant: the same bits on every path. What is not finite gives NaN, and a NaN bound.

use super::gemv_half::prefetch;
use crate::device::CpuPath;
use crate::ops::vector::kernel;
use rayon::prelude::*;

/// Values that share a scale.
const PIECE: usize = 64;

/// Largest integer of w.
const LARGEST_OF_W: f32 = 127.0;

/// Largest integer of x.
const LARGEST_OF_X: f32 = 16383.0;

/// Half a unit, and what the roundings of f32 in a product and in its bound may add.
const HALF: f32 = 0.505;

/// Bytes ahead of those in use that are fetched: rows follow one another in memory.
const AHEAD: usize = 4 << 10;

/// Rows that one task makes.
const ROWS: usize = 64;

/// A matrix `[N,K]` in 8 bits, each row padded to whole pieces.
pub struct CoarseMatrix {
    rows: usize,
    cols: usize,
    codes: Vec<i8>,
    /// One for each piece of each row.
    scales: Vec<f32>,
    /// The largest scale of any row, by piece.
    widest: Vec<f32>,
}

/// A row of x for a [`CoarseMatrix`].
#[derive(Default)]
pub struct CoarseInput {
    integers: Vec<i16>,
    units: Vec<f32>,
    reach: Vec<f32>,
}

impl CoarseMatrix {
    /// From `[rows, cols]` values, which `read` gives row by row.
    pub fn new(path: CpuPath, [rows, cols]: [usize; 2], read: impl Fn(usize, &mut [f32]) + Sync) -> CoarseMatrix {
        let pieces = cols.div_ceil(PIECE);
        let (mut codes, mut scales) = (vec![0; rows * pieces * PIECE], vec![0.0; rows * pieces]);
        let tasks = codes.par_chunks_mut(ROWS * pieces.max(1) * PIECE).zip(scales.par_chunks_mut(ROWS * pieces.max(1)));
        tasks.enumerate().for_each(|(task, (codes, scales))| {
            let mut values = vec![0.0; cols];
            let rows = codes.chunks_exact_mut(pieces * PIECE).zip(scales.chunks_exact_mut(pieces));
            rows.enumerate().for_each(|(row, (codes, scales))| {
                read(task * ROWS + row, &mut values);
                quantise(path, &values, codes, scales);
            });
        });
        let mut widest = vec![0f32; pieces];
        for row in scales.chunks_exact(pieces.max(1)) {
            widest.iter_mut().zip(row).for_each(|(widest, scale)| *widest = widest.max(*scale));
        }
        CoarseMatrix { rows, cols, codes, scales, widest }
    }

    /// N.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Bytes that a product reads.
    pub fn bytes(&self) -> usize {
        self.codes.len() + size_of_val(&self.scales[..])
    }

    /// Bytes of a row.
    pub fn row_bytes(&self) -> usize {
        self.bytes() / self.rows.max(1)
    }

    /// Takes in another row of x, `[K]`.
    pub fn load(&self, path: CpuPath, x: &[f32], input: &mut CoarseInput) {
        assert!(x.len() == self.cols);
        let pieces = self.widest.len();
        input.integers.resize(pieces * PIECE, 0);
        input.units.resize(pieces, 0.0);
        input.reach.resize(pieces, 0.0);
        take_in(path, x, &mut input.integers, &mut input.units, &mut input.reach);
    }

    /// The product of one row, roughly.
    pub fn product(&self, path: CpuPath, row: usize, input: &CoarseInput) -> f32 {
        let pieces = self.widest.len();
        let codes = &self.codes[row * pieces * PIECE..(row + 1) * pieces * PIECE];
        product(path, codes, &self.scales[row * pieces..(row + 1) * pieces], input)
    }

    /// How far [`CoarseMatrix::product`] of this row may be from the product.
    pub fn error(&self, row: usize, input: &CoarseInput) -> f32 {
        let pieces = self.widest.len();
        sum_of_products(&self.scales[row * pieces..(row + 1) * pieces], &input.reach)
    }

    /// How far that of any row may be.
    pub fn widest_error(&self, input: &CoarseInput) -> f32 {
        sum_of_products(&self.widest, &input.reach)
    }
}

fn sum_of_products(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The bits of the largest magnitude; those of a NaN are larger than all others.
#[inline(always)]
pub(super) fn largest_bits(values: &[f32]) -> u32 {
    values.iter().fold(0, |largest, value| largest.max(value.to_bits() & 0x7fff_ffff))
}

/// The factor to integers and the step back, for a piece whose largest magnitude has these bits: bits order magnitudes
/// like integers, infinity and NaN behind all others.
#[inline(always)]
pub(super) fn scale(bits: u32, integer: f32) -> (f32, f32) {
    let largest = f32::from_bits(bits);
    if !largest.is_finite() {
        return (0.0, f32::NAN);
    }
    // The factor of smaller ones would not be finite: they become zero, which is half of such a step away.
    match largest >= f32::MIN_POSITIVE * integer {
        true => (integer / largest, largest / integer),
        false => (0.0, 2.0 * largest),
    }
}

kernel! {
    /// A row of w.
    fn quantise(values: &[f32], codes: &mut [i8], scales: &mut [f32]) {
        for ((values, codes), step) in values.chunks(PIECE).zip(codes.chunks_exact_mut(PIECE)).zip(scales) {
            let (factor, back) = scale(largest_bits(values), LARGEST_OF_W);
            *step = back;
            for (code, value) in codes.iter_mut().zip(values) {
                *code = (value * factor).round_ties_even() as i8;
            }
        }
    }
}

kernel! {
    /// A row of x.
    fn take_in(x: &[f32], integers: &mut [i16], units: &mut [f32], reach: &mut [f32]) {
        let steps = units.iter_mut().zip(reach);
        for ((x, integers), (unit, reach)) in x.chunks(PIECE).zip(integers.chunks_exact_mut(PIECE)).zip(steps) {
            let largest = largest_bits(x);
            let (factor, back) = scale(largest, LARGEST_OF_X);
            *unit = back;
            let mut sum = 0.0;
            integers.fill(0);
            for (integer, &x) in integers.iter_mut().zip(x) {
                *integer = (x * factor).round_ties_even() as i16;
                sum += x.abs();
            }
            *reach = HALF * (sum + PIECE as f32 * LARGEST_OF_W * back);
        }
    }
}

kernel! {
    fn product(codes: &[i8], scales: &[f32], input: &CoarseInput) -> f32 {
        let (codes, _) = codes.as_chunks::<PIECE>();
        let (integers, _) = input.integers.as_chunks::<PIECE>();
        let mut total = 0.0;
        for ((codes, integers), (scale, unit)) in codes.iter().zip(integers).zip(scales.iter().zip(&input.units)) {
            prefetch(codes.as_ptr().wrapping_add(AHEAD));
            let mut sum = 0i32;
            for i in 0..PIECE {
                sum += i32::from(codes[i]) * i32::from(integers[i]);
            }
            total += sum as f32 * (scale * unit);
        }
        total
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::random::RandomStream;

    /// Values of very different magnitude.
    fn uneven(seed: u64, count: usize) -> Vec<f32> {
        let stream = RandomStream::new(seed, 1);
        let value = |i: u64| stream.normal(2 * i) * (4.0 * stream.normal(2 * i + 1)).exp2();
        (0..count as u64).map(value).collect()
    }

    fn matrix(path: CpuPath, values: &[f32], rows: usize, cols: usize) -> CoarseMatrix {
        CoarseMatrix::new(path, [rows, cols], |row, to| to.copy_from_slice(&values[row * cols..(row + 1) * cols]))
    }

    fn input(matrix: &CoarseMatrix, x: &[f32], path: CpuPath) -> CoarseInput {
        let mut input = CoarseInput::default();
        // What is left of a longer row must not matter.
        input.integers.resize(5000, 7);
        matrix.load(path, x, &mut input);
        input
    }

    #[test]
    fn no_product_is_farther_off_than_its_error_says() {
        for (rows, cols) in [(70, 576), (130, 64), (9, 100), (3, 1), (65, 2049)] {
            let mut weights = uneven(3, rows * cols);
            weights[..cols.min(64)].fill(0.0);
            weights[cols - 1] = f32::from_bits(3 << 16);
            for seed in 0..5 {
                let mut x = uneven(10 + seed, cols);
                if seed == 1 {
                    x.iter_mut().take(64).for_each(|x| *x = 1e-42);
                }
                for path in CpuPath::available() {
                    let matrix = matrix(path, &weights, rows, cols);
                    let input = input(&matrix, &x, path);
                    for row in 0..rows {
                        let weights = &weights[row * cols..(row + 1) * cols];
                        let exact: f64 = weights.iter().zip(&x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
                        let (found, error) = (matrix.product(path, row, &input), matrix.error(row, &input));
                        let off = (f64::from(found) - exact).abs();
                        // f32 holds nothing smaller.
                        assert!(off <= f64::from(error) + 1e-38, "{rows}x{cols} row {row}: {off:e}, said {error:e}");
                        assert!(error <= matrix.widest_error(&input) * 1.0001);
                        let plain = matrix.product(CpuPath::Portable, row, &input);
                        assert_eq!(found.to_bits(), plain.to_bits(), "{}", path.name());
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_not_finite_is_not_a_number() {
        let path = crate::device::cpu_path();
        let mut values = vec![1.0; 3 * 70];
        let ones = matrix(path, &values, 3, 70);
        for bad in [f32::NAN, f32::INFINITY] {
            let mut x = vec![1.0; 70];
            x[69] = bad;
            let input = input(&ones, &x, path);
            assert!(ones.product(path, 1, &input).is_nan() && ones.error(1, &input).is_nan());
        }
        values[70] = f32::INFINITY;
        let matrix = matrix(path, &values, 3, 70);
        let input = input(&matrix, &[1.0; 70], path);
        assert!(matrix.product(path, 1, &input).is_nan());
        assert!((matrix.product(path, 2, &input) - 70.0).abs() <= matrix.error(2, &input));
    }
}
