//! `y[T,N] = x[T,K] · w[N,K]ᵀ` over NF4 codes in 16-bit fixed point, with AVX2: bf16 where a path has no instructions for
//! it. ([`super::gemv_nf4_fixed`] is the form for one row, [`super::fixed_avx2_nn`] the backward form.)
//!
//! Of each piece of 64 values along K, with the scale s of the codes c of a row of w:
//!
//! ```text
//! s · Σ c[i] · x[i] = s · u · Σ C[i] · X[i],   C[i] = 4095 c[i],   X[i] = 8191 x[i] / largest,   u = largest / (4095 · 8191)
//! ```
//!
//! where C and X are rounded to integers and `largest = max |x[i]|`. `64 · 4095 · 8191 < 2³¹`, so the sums are exact. Half a
//! unit of C and X is 2⁻¹³ of the largest code and 2⁻¹⁴ of the largest x of the piece; the products `c · s` are not rounded
//! to the dtype that was quantised. A multiply-add of 16-bit integers (`vpmaddwd`, then an addition) does two products in
//! each lane where one of f32 does one.
//!
//! A panel is 16 rows of w: words of two neighbouring integers, `[K / 2, 16]`, and scales `[K / 64, 16]`.
//!
//! Invariant: an element of y is one sum in the order of K. A piece of x that is not finite gives NaN.

use super::avx2::Avx2;
use super::coarse::{largest_bits, scale};
use super::driver::{for_each, threads_for};
use super::fixed::LowRank;
use super::fixed_avx2_low;
use super::kernel::Lanes;
use super::operand::Target;
use super::pack_dense::fetch_to_write;
use super::pack_nf4::ScaleReader;
use super::scratch::Scratch;
use crate::ops::matrix::{odd_stride, MatMut, MatRef};
use crate::quant::nf4::NF4_CODE;
use crate::quant::Nf4Matrix;
use std::arch::asm;
use std::arch::x86_64::*;
use std::ops::Range;

/// Values that share a scale.
pub(super) const PIECE: usize = 64;

/// Words of a piece.
pub(super) const WORDS: usize = PIECE / 2;

/// Largest integer of a code.
pub(super) const LARGEST_CODE: f32 = 4095.0;

/// Largest integer of x.
const LARGEST_OF_X: f32 = 8191.0;

/// Columns of a panel.
pub(super) const COLUMNS: usize = 16;

/// Rows of a tile.
pub(super) const ROWS: usize = 6;

/// Jobs for each thread, at least, by cutting the rows if there are too few panels.
const JOBS_PER_THREAD: usize = 4;

/// The two integers of a byte of codes: those of its high nibble below those of its low one.
static PAIRS: [u32; 256] = {
    let mut pairs = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        pairs[byte] = integer(byte >> 4) as u32 | (integer(byte & 15) as u32) << 16;
        byte += 1;
    }
    pairs
};

/// The integer of a code, in two's complement.
const fn integer(code: usize) -> u16 {
    let value = NF4_CODE[code] * LARGEST_CODE;
    // Half a unit away from zero: the conversion cuts off.
    (if value < 0.0 { value - 0.5 } else { value + 0.5 }) as i16 as u16
}

/// Whether a weight has whole pieces.
pub(super) fn applies(matrix: &Nf4Matrix) -> bool {
    matrix.cols.is_multiple_of(PIECE) && matrix.block >= PIECE && matrix.cols > 0 && matrix.rows > 0
}

/// Some pieces of x as words of two integers, and their units.
#[derive(Clone, Copy)]
pub(super) struct Left<'a> {
    /// `[rows, stride]`.
    pub words: &'a [f32],
    pub stride: usize,
    /// `[rows, unit_stride]`.
    pub units: &'a [f32],
    pub unit_stride: usize,
    pub pieces: usize,
}

impl<'a> Left<'a> {
    /// Matrices of as many rows side by side, each filled up with zeros to whole pieces.
    pub fn of(parts: &[MatRef<'_>], threads: usize, memory: &'a mut Option<Scratch>) -> Left<'a> {
        let rows = parts[0].rows;
        let pieces: usize = parts.iter().map(|part| part.cols.div_ceil(PIECE)).sum();
        let stride = odd_stride(pieces * WORDS);
        let count = rows * (stride + pieces);
        let (words, units) = memory.insert(Scratch::take(count)).words()[..count].split_at_mut(rows * stride);
        let (to, unit) = (Target(words.as_mut_ptr()), Target(units.as_mut_ptr()));
        for_each(threads, rows, |row| {
            let values = parts.iter().flat_map(|part| part.row(row).chunks(PIECE));
            for (piece, values) in values.enumerate() {
                let mut padded = [0.0; PIECE];
                let whole = <&[f32; PIECE]>::try_from(values).unwrap_or_else(|_| {
                    padded[..values.len()].copy_from_slice(values);
                    &padded
                });
                // SAFETY: row < rows, and each row belongs to one job, as does this piece of it; the path has AVX2.
                unsafe {
                    let step = to_integers(whole, to.get().add(row * stride + piece * WORDS).cast());
                    unit.get().add(row * pieces + piece).write(step);
                }
            }
        });
        Left { words, stride, units, unit_stride: pieces, pieces }
    }

    /// Some of the pieces.
    pub fn pieces_from(&self, first: usize, pieces: usize) -> Left<'a> {
        Left { words: &self.words[first * WORDS..], units: &self.units[first..], pieces, ..*self }
    }
}

/// Computes each y. The path has AVX2, and [`applies`] is true of all weights; shapes were checked.
pub(super) fn matmul_nt(x: MatRef<'_>, matrices: &[&Nf4Matrix], outputs: Vec<(MatMut<'_>, Option<LowRank<'_>>)>) {
    let rows = x.rows;
    assert!(matrices.len() == outputs.len());
    let threads = threads_for(rows * x.cols * matrices.iter().map(|matrix| matrix.rows).sum::<usize>());
    let mut memory = None;
    let left = Left::of(&[x], threads, &mut memory);
    let mut jobs = Vec::new();
    for (matrix, (y, low)) in matrices.iter().zip(outputs) {
        let (target, stride) = (Target(y.data.as_mut_ptr()), y.stride);
        let firsts = (0..matrix.rows).step_by(COLUMNS);
        jobs.extend(firsts.map(|first| Job {
            left: &left,
            matrix,
            low,
            columns: first..matrix.rows.min(first + COLUMNS),
            target,
            stride,
        }));
    }
    let parts = (JOBS_PER_THREAD * threads).div_ceil(jobs.len().max(1)).clamp(1, rows.div_ceil(ROWS));
    for_each(threads, jobs.len() * parts, |job| {
        let (job, part) = (&jobs[job / parts], job % parts);
        job.run(rows * part / parts..rows * (part + 1) / parts);
    });
}

/// A panel of a weight.
struct Job<'a> {
    left: &'a Left<'a>,
    matrix: &'a Nf4Matrix,
    low: Option<LowRank<'a>>,
    columns: Range<usize>,
    /// Where its y starts, and from one row of it to the next.
    target: Target,
    stride: usize,
}

impl Job<'_> {
    /// The panel times some rows of x.
    fn run(&self, rows: Range<usize>) {
        let (columns, pieces) = (self.columns.clone(), self.left.pieces);
        let lows = self.low.as_slice();
        let mut memory = Scratch::take(pieces * (WORDS + 1) * COLUMNS + fixed_avx2_low::words(lows));
        let (words, rest) = memory.words().split_at_mut(pieces * WORDS * COLUMNS);
        let (scales, low_panels) = rest.split_at_mut(pieces * COLUMNS);
        pack(self.matrix, columns.clone(), words, scales);
        fixed_avx2_low::pack(lows, true, columns.clone(), low_panels);
        for first in rows.clone().step_by(ROWS) {
            let count = ROWS.min(rows.end - first);
            let place = |row: usize| self.target.get().wrapping_add(row * self.stride + columns.start);
            // The lines come while the tile is computed.
            (first..first + count).for_each(|row| fetch_to_write(place(row), COLUMNS));
            let mut tile = [[0.0; COLUMNS]; ROWS];
            fixed_avx2_low::add(lows, low_panels, (first, count), &mut tile);
            // SAFETY: the path has AVX2, and these rows and the panel were made.
            unsafe { tile_of(count, self.left, first, (words.as_ptr(), scales.as_ptr()), &mut tile) };
            for (row, tile) in (first..).zip(&tile[..count]) {
                // SAFETY: these columns of this row exist and belong to this job alone.
                unsafe { std::slice::from_raw_parts_mut(place(row), columns.len()) }
                    .copy_from_slice(&tile[..columns.len()]);
            }
        }
    }
}

/// Makes a panel; columns that the weight lacks become zeros.
fn pack(matrix: &Nf4Matrix, columns: Range<usize>, words: &mut [f32], scales: &mut [f32]) {
    let pieces = matrix.cols / PIECE;
    let reader = ScaleReader::new(matrix);
    let (words, _) = words[..pieces * WORDS * COLUMNS].as_chunks_mut::<{ WORDS * COLUMNS }>();
    for lane in 0..COLUMNS {
        let row = columns.start + lane;
        if row >= columns.end {
            words
                .iter_mut()
                .for_each(|words| words.iter_mut().skip(lane).step_by(COLUMNS).for_each(|word| *word = 0.0));
            scales[..pieces * COLUMNS].iter_mut().skip(lane).step_by(COLUMNS).for_each(|scale| *scale = 0.0);
            continue;
        }
        let start = row * matrix.cols;
        let (codes, _) = matrix.codes[start / 2..(start + matrix.cols) / 2].as_chunks::<WORDS>();
        for ((piece, words), codes) in words.iter_mut().enumerate().zip(codes) {
            for (pair, &byte) in codes.iter().enumerate() {
                words[pair * COLUMNS + lane] = f32::from_bits(PAIRS[usize::from(byte)]);
            }
            scales[piece * COLUMNS + lane] = reader.get((start + piece * PIECE) / matrix.block);
        }
    }
}

/// Makes the integers of a piece of x and returns their unit.
///
/// # Safety
/// As many integers are writable; AVX2 is available.
#[target_feature(enable = "avx2,fma")]
unsafe fn to_integers(x: &[f32; PIECE], to: *mut __m256i) -> f32 {
    let (factor, step) = scale(largest_bits(x), LARGEST_OF_X);
    let factor = _mm256_set1_ps(factor);
    for (i, sixteen) in x.as_chunks::<16>().0.iter().enumerate() {
        // SAFETY: sixteen values, and the integers for them by contract.
        unsafe {
            let first = _mm256_mul_ps(Avx2::load(sixteen.as_ptr()), factor);
            let second = _mm256_mul_ps(Avx2::load(sixteen.as_ptr().add(8)), factor);
            to.add(i).write_unaligned(rounded(first, second));
        }
    }
    step / LARGEST_CODE
}

/// Sixteen values as integers.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn rounded(first: __m256, second: __m256) -> __m256i {
    // Packing works within halves.
    let packed = _mm256_packs_epi32(_mm256_cvtps_epi32(first), _mm256_cvtps_epi32(second));
    _mm256_permute4x64_epi64::<0b11_01_10_00>(packed)
}

/// `count` rows from `first` on times a panel.
///
/// # Safety
/// The rows exist, and the panel for as many pieces; AVX2 and FMA are available.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn tile_of(
    count: usize,
    left: &Left<'_>,
    first: usize,
    panel: (*const f32, *const f32),
    tile: &mut [[f32; COLUMNS]; ROWS],
) {
    // SAFETY: passed on.
    unsafe {
        match count {
            1 => rows_at_once::<1>(left, first, panel, tile),
            2 => rows_at_once::<2>(left, first, panel, tile),
            3 => rows_at_once::<3>(left, first, panel, tile),
            4 => rows_at_once::<4>(left, first, panel, tile),
            5 => rows_at_once::<5>(left, first, panel, tile),
            _ => whole_tile(left, first, panel, tile),
        }
    }
}

/// # Safety
/// As [`tile_of`].
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn rows_at_once<const R: usize>(
    left: &Left<'_>,
    first: usize,
    (words, scales): (*const f32, *const f32),
    tile: &mut [[f32; COLUMNS]; ROWS],
) {
    assert!(left.units.len() >= (first + R - 1) * left.unit_stride + left.pieces);
    // SAFETY: by contract.
    unsafe {
        let a = left.words[first * left.stride..].as_ptr();
        let units = left.units[first * left.unit_stride..].as_ptr();
        for piece in 0..left.pieces {
            let b = words.add(piece * WORDS * COLUMNS);
            let (scales, units) = (scales.add(piece * COLUMNS), units.add(piece));
            let mut sums = [[_mm256_setzero_si256(); 2]; R];
            for word in 0..WORDS {
                let b = b.add(word * COLUMNS);
                let right = [_mm256_loadu_si256(b.cast()), _mm256_loadu_si256(b.add(8).cast())];
                for (r, sums) in sums.iter_mut().enumerate() {
                    let pair = _mm256_castps_si256(Avx2::splat(a.add(piece * WORDS + r * left.stride + word)));
                    sums[0] = _mm256_add_epi32(sums[0], _mm256_madd_epi16(pair, right[0]));
                    sums[1] = _mm256_add_epi32(sums[1], _mm256_madd_epi16(pair, right[1]));
                }
            }
            let scales = [Avx2::load(scales), Avx2::load(scales.add(8))];
            for (r, (sums, tile)) in sums.iter().zip(&mut *tile).enumerate() {
                let unit = Avx2::splat(units.add(r * left.unit_stride));
                for ((&sum, scale), tile) in sums.iter().zip(scales).zip(tile.as_chunks_mut::<8>().0) {
                    let total = Avx2::load(tile.as_ptr());
                    let total = Avx2::multiply_add(_mm256_cvtepi32_ps(sum), _mm256_mul_ps(scale, unit), total);
                    _mm256_storeu_ps(tile.as_mut_ptr(), total);
                }
            }
        }
    }
}

/// Two sums and what is added to them: the panel is in the registers 12 and 13, a pair of x goes to 14.
macro_rules! row {
    ($pair:expr, $first:literal, $second:literal) => {
        concat!(
            "vpbroadcastd ymm14, [",
            $pair,
            "]\n",
            "vpmaddwd ymm15, ymm14, ymm12\n",
            "vpmaddwd ymm14, ymm14, ymm13\n",
            "vpaddd ymm",
            $first,
            ", ymm",
            $first,
            ", ymm15\n",
            "vpaddd ymm",
            $second,
            ", ymm",
            $second,
            ", ymm14\n",
        )
    };
}

/// A word of each of six rows, from some step on, times the panel's.
macro_rules! step {
    ($at:literal) => {
        concat!(
            "vmovdqu ymm12, [{b} + 64 * ",
            $at,
            "]\n",
            "vmovdqu ymm13, [{b} + 64 * ",
            $at,
            " + 32]\n",
            row!(concat!("{upper} + 4 * ", $at), "0", "1"),
            row!(concat!("{upper} + {row} + 4 * ", $at), "2", "3"),
            row!(concat!("{upper} + 2 * {row} + 4 * ", $at), "4", "5"),
            row!(concat!("{lower} + 4 * ", $at), "6", "7"),
            row!(concat!("{lower} + {row} + 4 * ", $at), "8", "9"),
            row!(concat!("{lower} + 2 * {row} + 4 * ", $at), "10", "11"),
        )
    };
}

/// Two sums as f32, times their scales, which are in the registers 12 and 13, and their row's unit, added to the tile.
macro_rules! total {
    ($unit:expr, $row:literal, $first:literal, $second:literal) => {
        concat!(
            "vbroadcastss ymm14, [",
            $unit,
            "]\n",
            concat!("vcvtdq2ps ymm", $first, ", ymm", $first, "\n"),
            concat!("vcvtdq2ps ymm", $second, ", ymm", $second, "\n"),
            "vmulps ymm15, ymm14, ymm12\n",
            "vmulps ymm14, ymm14, ymm13\n",
            concat!("vfmadd213ps ymm", $first, ", ymm15, [{tile} + 64 * ", $row, "]\n"),
            concat!("vfmadd213ps ymm", $second, ", ymm14, [{tile} + 64 * ", $row, " + 32]\n"),
            concat!("vmovups [{tile} + 64 * ", $row, "], ymm", $first, "\n"),
            concat!("vmovups [{tile} + 64 * ", $row, " + 32], ymm", $second, "\n"),
        )
    };
}

/// [`rows_at_once`] of six rows, the same bits. Written out because the compiler orders additions of integers anew, as it
/// may, and then lacks registers: this is a tenth faster where the other half of the core is busy.
///
/// # Safety
/// As [`tile_of`].
#[target_feature(enable = "avx2,fma")]
unsafe fn whole_tile(
    left: &Left<'_>,
    first: usize,
    (mut words, mut scales): (*const f32, *const f32),
    tile: &mut [[f32; COLUMNS]; ROWS],
) {
    const STEPS: usize = 4;
    assert!(left.units.len() >= (first + ROWS - 1) * left.unit_stride + left.pieces);
    // As in the tiles of f32, rows are reached from every third one; so are their units.
    let every_third = |row: *const f32, stride: usize| [row, row.wrapping_add(3 * stride)];
    let [mut upper, mut lower] = every_third(left.words[first * left.stride..].as_ptr(), left.stride);
    let [mut upper_unit, mut lower_unit] =
        every_third(left.units[first * left.unit_stride..].as_ptr(), left.unit_stride);
    for _ in 0..left.pieces {
        // SAFETY: reads what is readable by contract, writes the tile, and changes the registers that it names.
        unsafe {
            asm!(
                "vpxor xmm0, xmm0, xmm0", "vpxor xmm1, xmm1, xmm1", "vpxor xmm2, xmm2, xmm2",
                "vpxor xmm3, xmm3, xmm3", "vpxor xmm4, xmm4, xmm4", "vpxor xmm5, xmm5, xmm5",
                "vpxor xmm6, xmm6, xmm6", "vpxor xmm7, xmm7, xmm7", "vpxor xmm8, xmm8, xmm8",
                "vpxor xmm9, xmm9, xmm9", "vpxor xmm10, xmm10, xmm10", "vpxor xmm11, xmm11, xmm11",
                "2:",
                step!("0"), step!("1"), step!("2"), step!("3"),
                "add {upper}, 16", "add {lower}, 16", "add {b}, 256", "sub {left}, 1", "jnz 2b",
                "vmovups ymm12, [{scales}]", "vmovups ymm13, [{scales} + 32]",
                total!("{upper_unit}", "0", "0", "1"),
                total!("{upper_unit} + {unit}", "1", "2", "3"),
                total!("{upper_unit} + 2 * {unit}", "2", "4", "5"),
                total!("{lower_unit}", "3", "6", "7"),
                total!("{lower_unit} + {unit}", "4", "8", "9"),
                total!("{lower_unit} + 2 * {unit}", "5", "10", "11"),
                upper = inout(reg) upper,
                lower = inout(reg) lower,
                b = inout(reg) words,
                row = in(reg) left.stride * size_of::<f32>(),
                left = inout(reg) WORDS / STEPS => _,
                scales = in(reg) scales,
                upper_unit = in(reg) upper_unit,
                lower_unit = in(reg) lower_unit,
                unit = in(reg) left.unit_stride * size_of::<f32>(),
                tile = in(reg) tile.as_mut_ptr(),
                out("ymm0") _, out("ymm1") _, out("ymm2") _, out("ymm3") _, out("ymm4") _, out("ymm5") _,
                out("ymm6") _, out("ymm7") _, out("ymm8") _, out("ymm9") _, out("ymm10") _, out("ymm11") _,
                out("ymm12") _, out("ymm13") _, out("ymm14") _, out("ymm15") _,
                options(nostack),
            );
        }
        scales = scales.wrapping_add(COLUMNS);
        (upper_unit, lower_unit) = (upper_unit.wrapping_add(1), lower_unit.wrapping_add(1));
    }
}
