//! `dx[T,K] (+)= dy[T,N] · w[N,K]` over NF4 codes in 16-bit fixed point, with AVX2: the backward form of [`super::fixed_avx2`].
//!
//! The sum runs over the rows of w, whose scales differ from row to row, so the scales go to dy. For each block of 64 columns,
//! where a row n has the scale s[n] and the codes c[n, k], of each piece of 64 rows:
//!
//! ```text
//! Σ dy[n] · s[n] · c[n, k] = u · Σ D[n] · C[n, k],   C = 4095 c,   D[n] = 8191 (dy[n] / d) (s[n] / S),   u = d S / (4095 · 8191)
//! ```
//!
//! where C and D are rounded to integers, `d = max |dy[n]|` and `S = max |s[n]|`. The sums are exact as they are there; half a
//! unit of D is 2⁻¹⁴ of `d S`.
//!
//! Invariant: an element of dx is one sum in the order of N. A piece of dy that is not finite gives NaN.

use super::coarse::{largest_bits, scale};
use super::driver::{for_each, threads_for};
use super::fixed_avx2::{integer, rounded, tile_of, Left};
use super::fixed_avx2::{COLUMNS, LARGEST_CODE, LARGEST_OF_X, PIECE, ROWS, WORDS};
use super::operand::Target;
use super::pack_dense::fetch_to_write;
use super::pack_nf4::ScaleReader;
use super::plan::Cuts;
use super::scratch::Scratch;
use crate::ops::matrix::{odd_stride, MatMut, MatRef};
use crate::quant::Nf4Matrix;
use std::arch::x86_64::*;
use std::ops::Range;

/// Rows of w at a time: with [`MOST_ROWS`] their integers take half of an L2 cache of 512 KB.
const CHUNK: usize = 512;

/// Pieces of a chunk.
const PIECES: usize = CHUNK / PIECE;

/// Most rows of dy in a job.
const MOST_ROWS: usize = 252;

/// Panels of a block of columns.
const PANELS: usize = PIECE / COLUMNS;

/// Words of a panel.
const PANEL: usize = PIECES * WORDS * COLUMNS;

/// The column scales that [`tile_of`] asks for.
static ONES: [f32; PIECES * COLUMNS] = [1.0; PIECES * COLUMNS];

/// The low and the high bytes of the integers of all codes.
static INTEGER_BYTES: [[u8; 16]; 2] = {
    let mut bytes = [[0; 16]; 2];
    let mut code = 0;
    while code < 16 {
        [bytes[0][code], bytes[1][code]] = integer(code).to_le_bytes();
        code += 1;
    }
    bytes
};

/// Adds up the products of all terms in dx. The path has AVX2, and [`super::fixed_avx2::applies`] is true of all weights;
/// shapes were checked.
pub(super) fn matmul_nn(terms: &[(MatRef<'_>, &Nf4Matrix)], dx: MatMut<'_>, accumulate: bool) {
    let depth: usize = terms.iter().map(|(dy, _)| dy.cols).sum();
    let threads = threads_for(dx.rows * depth * dx.cols);
    let all: usize = terms.iter().map(|(dy, _)| dy.cols.div_ceil(PIECE)).sum();
    let mut memory = Scratch::take(2 * dx.rows * all);
    let sizes = Target(memory.words().as_mut_ptr());
    for_each(threads, dx.rows, |row| {
        let pieces = terms.iter().flat_map(|(dy, _)| dy.row(row).chunks(PIECE));
        for (piece, values) in pieces.enumerate() {
            let (factor, step) = scale(largest_bits(values), LARGEST_OF_X);
            // SAFETY: the two numbers of this piece of this row, which is one job's.
            unsafe { sizes.get().cast::<[f32; 2]>().add(row * all + piece).write([factor, step / LARGEST_CODE]) };
        }
    });
    let sizes = memory.words()[..2 * dx.rows * all].as_chunks().0;
    let mut first_piece = 0;
    let terms = terms.iter().map(|&(dy, matrix)| {
        first_piece += dy.cols.div_ceil(PIECE);
        Term { dy, matrix, sizes, all, first_piece: first_piece - dy.cols.div_ceil(PIECE) }
    });
    let terms: Vec<Term<'_>> = terms.collect();
    let parts = Cuts::at_most(dx.rows, ROWS, MOST_ROWS);
    let target = Target(dx.data.as_mut_ptr());
    for_each(threads, dx.cols / PIECE * parts.count, |job| {
        let (block, rows) = (job / parts.count, parts.get(job % parts.count));
        Job { terms: &terms, first_column: block * PIECE, rows, target, stride: dx.stride }.run(accumulate);
    });
}

/// One product of the sum.
struct Term<'a> {
    dy: MatRef<'a>,
    matrix: &'a Nf4Matrix,
    /// `[rows, all]`: the factor to integers and the unit of each piece of dy, of all terms.
    sizes: &'a [[f32; 2]],
    all: usize,
    /// The first piece of this term.
    first_piece: usize,
}

/// Some rows of dx in a block of 64 columns.
struct Job<'a> {
    terms: &'a [Term<'a>],
    first_column: usize,
    rows: Range<usize>,
    target: Target,
    stride: usize,
}

impl Job<'_> {
    fn run(&self, accumulate: bool) {
        let (count, stride) = (self.rows.len(), odd_stride(CHUNK / 2));
        let mut memory = Scratch::take(PANELS * PANEL + count * (stride + PIECES));
        let (panels, rest) = memory.words().split_at_mut(PANELS * PANEL);
        let (words, units) = rest.split_at_mut(count * stride);
        let mut started = accumulate;
        for term in self.terms {
            for first in (0..term.matrix.rows).step_by(CHUNK) {
                let depth = first..term.matrix.rows.min(first + CHUNK);
                let pieces = depth.len().div_ceil(PIECE);
                self.take_in(term, depth.clone(), (&mut *words, stride), units);
                self.pack(term.matrix, depth, panels);
                let left = Left { words: &*words, stride, units: &*units, pieces };
                for (panel, words) in panels.chunks_exact(PANEL).enumerate() {
                    self.multiply(&left, panel, words, started);
                }
                started = true;
            }
        }
    }

    /// The integers of dy times the scales of this block of columns, in whole pieces filled up with zeros, and their units.
    fn take_in(
        &self,
        &Term { dy, matrix, sizes, all, first_piece }: &Term<'_>,
        depth: Range<usize>,
        (words, stride): (&mut [f32], usize),
        units: &mut [f32],
    ) {
        let (pieces, first) = (depth.len().div_ceil(PIECE), first_piece + depth.start / PIECE);
        let (mut scales, mut largest) = ([0f32; CHUNK], [0f32; PIECES]);
        let reader = ScaleReader::new(matrix);
        for (scale, row) in scales.iter_mut().zip(depth.clone()) {
            *scale = reader.get((row * matrix.cols + self.first_column) / matrix.block);
        }
        let scales = scales.as_chunks_mut::<PIECE>().0;
        for (scales, largest) in scales.iter_mut().zip(&mut largest) {
            *largest = f32::from_bits(largest_bits(scales));
            let divisor = largest.max(f32::MIN_POSITIVE);
            scales.iter_mut().for_each(|scale| *scale /= divisor);
        }
        let rows = words.chunks_exact_mut(stride).zip(units.chunks_exact_mut(pieces));
        for (row, (words, units)) in self.rows.clone().zip(rows) {
            let values = dy.row(row)[depth.clone()].chunks(PIECE);
            let words = words.as_chunks_mut::<WORDS>().0;
            for (piece, ((values, unit), words)) in values.zip(units).zip(words).enumerate() {
                let [factor, step] = sizes[row * all + first + piece];
                *unit = step * largest[piece];
                let mut padded = [0.0; PIECE];
                let whole = <&[f32; PIECE]>::try_from(values).unwrap_or_else(|_| {
                    padded[..values.len()].copy_from_slice(values);
                    &padded
                });
                // SAFETY: the path has AVX2.
                unsafe { scaled(whole, factor, &scales[piece], words) };
            }
        }
    }

    /// The integers of the codes of some rows as words of two neighbouring rows: panels of 16 columns.
    fn pack(&self, matrix: &Nf4Matrix, depth: Range<usize>, panels: &mut [f32]) {
        let start = |row: usize| (row * matrix.cols + self.first_column) / 2;
        for (word, row) in depth.clone().step_by(2).enumerate() {
            // The last row again where there is no other: its factors are zero.
            let odd = (row + 1).min(depth.end - 1);
            let [even, odd] = [row, odd].map(|row| &matrix.codes[start(row)..start(row) + PIECE / 2]);
            for (panel, (even, odd)) in even.as_chunks().0.iter().zip(odd.as_chunks().0).enumerate() {
                let to = &mut panels[panel * PANEL + word * COLUMNS..][..COLUMNS];
                // SAFETY: the path has AVX2.
                unsafe { pairs(even, odd, to) };
            }
        }
    }

    /// All rows times a panel.
    fn multiply(&self, left: &Left<'_>, panel: usize, words: &[f32], accumulate: bool) {
        for first in (0..self.rows.len()).step_by(ROWS) {
            let count = ROWS.min(self.rows.len() - first);
            let start = (self.rows.start + first) * self.stride + self.first_column + panel * COLUMNS;
            let place = |row: usize| self.target.get().wrapping_add(start + row * self.stride);
            // The lines of the next tile come while this one is computed.
            (ROWS..2 * ROWS).for_each(|row| fetch_to_write(place(row), COLUMNS));
            let mut tile = [[0.0; COLUMNS]; ROWS];
            if accumulate {
                for (row, tile) in tile.iter_mut().enumerate().take(count) {
                    // SAFETY: these columns of this row exist and belong to this job alone.
                    tile.copy_from_slice(unsafe { std::slice::from_raw_parts(place(row), COLUMNS) });
                }
            }
            // SAFETY: the path has AVX2; these rows and the panel were made, and there is a one for each column of each piece.
            unsafe { tile_of(count, left, first, (words.as_ptr(), ONES.as_ptr()), &mut tile) };
            for (row, tile) in tile.iter().enumerate().take(count) {
                // SAFETY: as above.
                unsafe { std::slice::from_raw_parts_mut(place(row), COLUMNS) }.copy_from_slice(tile);
            }
        }
    }
}

/// The integers of `values · factor · scales`, which 16 bits hold.
///
/// # Safety
/// AVX2 is available.
#[target_feature(enable = "avx2,fma")]
unsafe fn scaled(values: &[f32; PIECE], factor: f32, scales: &[f32; PIECE], to: &mut [f32; WORDS]) {
    let factor = _mm256_set1_ps(factor);
    let sixteens = values.as_chunks::<16>().0.iter().zip(scales.as_chunks::<16>().0);
    for ((values, scales), to) in sixteens.zip(to.as_chunks_mut::<8>().0) {
        // SAFETY: sixteen values and scales, and the words of as many integers.
        unsafe {
            let load = |values: &[f32; 16], at: usize| _mm256_loadu_ps(values[at..].as_ptr());
            let (first, second) = (_mm256_mul_ps(load(values, 0), factor), _mm256_mul_ps(load(values, 8), factor));
            let (first, second) = (_mm256_mul_ps(first, load(scales, 0)), _mm256_mul_ps(second, load(scales, 8)));
            _mm256_storeu_si256(to.as_mut_ptr().cast(), rounded(first, second));
        }
    }
}

/// The integers of 16 codes of two rows, as words.
///
/// # Safety
/// AVX2 is available.
#[target_feature(enable = "avx2")]
unsafe fn pairs(even: &[u8; 8], odd: &[u8; 8], to: &mut [f32]) {
    let to = to.as_chunks_mut::<4>().0;
    // SAFETY: tables of 16 bytes; each store fills four words.
    unsafe {
        let [low, high] = [0, 1].map(|byte| _mm_loadu_si128(INTEGER_BYTES[byte].as_ptr().cast()));
        let nibble = _mm_set1_epi8(15);
        let mut halves = [[_mm_setzero_si128(); 2]; 2];
        for (halves, bytes) in halves.iter_mut().zip([even, odd]) {
            let bytes = _mm_cvtsi64_si128(i64::from_le_bytes(*bytes));
            // The even index is in the high nibble.
            let first = _mm_and_si128(_mm_srli_epi16::<4>(bytes), nibble);
            let codes = _mm_unpacklo_epi8(first, _mm_and_si128(bytes, nibble));
            let (low, high) = (_mm_shuffle_epi8(low, codes), _mm_shuffle_epi8(high, codes));
            *halves = [_mm_unpacklo_epi8(low, high), _mm_unpackhi_epi8(low, high)];
        }
        for half in 0..2 {
            let (even, odd) = (halves[0][half], halves[1][half]);
            _mm_storeu_si128(to[2 * half].as_mut_ptr().cast(), _mm_unpacklo_epi16(even, odd));
            _mm_storeu_si128(to[2 * half + 1].as_mut_ptr().cast(), _mm_unpackhi_epi16(even, odd));
        }
    }
}
