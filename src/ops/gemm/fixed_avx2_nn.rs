//! `dx[T,K] (+)= dy[T,N] · w[N,K]` over NF4 codes in 16-bit fixed point, with AVX2: the backward form of [`super::fixed_avx2`].
//!
//! The sum runs over the rows of w, whose scales differ from row to row, so they go into the integers of the codes. For each
//! block of 64 columns, where a row n has the scale s[n] and the codes c[n, k], of each piece of 64 rows:
//!
//! ```text
//! Σ dy[n] · s[n] · c[n, k] = u · S · Σ D[n] · C[n, k],   C[n, k] = 4095 c[n, k] s[n] / S,   D[n] = 8191 dy[n] / d
//! ```
//!
//! where C and D are rounded to integers, `S = max |s[n]|`, `d = max |dy[n]|` and `u = d / (4095 · 8191)`. The sums are exact
//! as they are there; half a unit of C is 2⁻¹³ of S, half a unit of D 2⁻¹⁴ of d. The integers of 16 codes with one scale are
//! made at once, and looked up by their two bytes.
//!
//! Invariant: an element of dx is one sum in the order of N. A piece of dy that is not finite gives NaN.

use super::coarse::largest_bits;
use super::driver::{for_each, threads_for};
use super::fixed::LowRank;
use super::fixed_avx2::{rounded, tile_of, Left};
use super::fixed_avx2::{COLUMNS, LARGEST_CODE, PIECE, ROWS, WORDS};
use super::fixed_avx2_low;
use super::operand::Target;
use super::pack_dense::{fetch_to_write, Source};
use super::pack_nf4::ScaleReader;
use super::plan::Cuts;
use super::scratch::Scratch;
use super::WeightRef;
use crate::device::{Compute, CpuPath};
use crate::ops::matrix::{MatMut, MatRef};
use crate::quant::nf4::NF4_CODE;
use crate::quant::Nf4Matrix;
use std::arch::x86_64::*;
use std::ops::Range;

/// Rows of w at a time: a panel of their integers takes half of an L1 cache of 32 KB.
const CHUNK: usize = 512;

/// Pieces of a chunk.
const PIECES: usize = CHUNK / PIECE;

/// Most rows of dy in a job: their integers in a chunk take half of an L2 cache of 512 KB.
const MOST_ROWS: usize = 258;

/// Tiles after which more of the codes that come next is asked for.
const TILES_AHEAD: usize = 4;

/// Panels of a block of columns.
const PANELS: usize = PIECE / COLUMNS;

/// Words of a panel.
const PANEL: usize = PIECES * WORDS * COLUMNS;

/// Scales of a chunk, once for each column of a panel.
const SCALES: usize = PIECES * COLUMNS;

/// The codes times the largest integer.
static CODES: [f32; 16] = {
    let mut codes = NF4_CODE;
    let mut code = 0;
    while code < 16 {
        codes[code] *= LARGEST_CODE;
        code += 1;
    }
    codes
};

/// Adds up the products of all terms in dx. The path has AVX2, and [`super::fixed_avx2::applies`] is true of all weights;
/// shapes were checked.
pub(super) fn matmul_nn(terms: &[(MatRef<'_>, &Nf4Matrix)], lows: &[LowRank<'_>], dx: MatMut<'_>, accumulate: bool) {
    let depth: usize = terms.iter().map(|(dy, _)| dy.cols).sum();
    let threads = threads_for(dx.rows * depth * dx.cols);
    let mut memory = None;
    let dys: Vec<MatRef<'_>> = terms.iter().map(|&(dy, _)| dy).collect();
    let left = Left::of(&dys, threads, &mut memory);
    let mut next = 0;
    let terms = terms.iter().map(|&(dy, matrix)| {
        let first_piece = next;
        next += dy.cols.div_ceil(PIECE);
        Term { matrix, first_piece }
    });
    let terms: Vec<Term<'_>> = terms.collect();
    let parts = Cuts::at_most(dx.rows, ROWS, MOST_ROWS);
    let target = Target(dx.data.as_mut_ptr());
    for_each(threads, dx.cols / PIECE * parts.count, |job| {
        let (block, rows) = (job / parts.count, parts.get(job % parts.count));
        let job = Job { terms: &terms, lows, left, first_column: block * PIECE, rows, target, stride: dx.stride };
        job.run(accumulate);
    });
}

/// One product of the sum.
struct Term<'a> {
    matrix: &'a Nf4Matrix,
    /// Its first piece among those of all terms.
    first_piece: usize,
}

/// Codes that will be packed soon.
struct Ahead<'a> {
    source: Source<'a>,
    columns: Range<usize>,
    depth: Range<usize>,
}

/// What a chunk adds to.
struct Begin<'a> {
    /// What is in dx.
    accumulate: bool,
    /// What adapters add, and their panels.
    lows: &'a [LowRank<'a>],
    panels: &'a [f32],
}

/// Some rows of dx in a block of 64 columns.
struct Job<'a> {
    terms: &'a [Term<'a>],
    lows: &'a [LowRank<'a>],
    /// dy of all terms side by side.
    left: Left<'a>,
    first_column: usize,
    rows: Range<usize>,
    target: Target,
    stride: usize,
}

impl Job<'_> {
    fn run(&self, mut accumulate: bool) {
        let low_words = fixed_avx2_low::words(self.lows);
        let mut memory = Scratch::take(PANELS * (PANEL + low_words));
        let (panels, low_panels) = memory.words()[..PANELS * (PANEL + low_words)].split_at_mut(PANELS * PANEL);
        for panel in 0..PANELS {
            let first = self.first_column + panel * COLUMNS;
            fixed_avx2_low::pack(self.lows, false, first..first + COLUMNS, &mut low_panels[panel * low_words..]);
        }
        let mut scales = [0.0; SCALES];
        let mut chunks = self.chunks().peekable();
        // With the first chunk alone.
        let mut lows = self.lows;
        while let Some((term, depth)) = chunks.next() {
            let pieces = depth.len().div_ceil(PIECE);
            self.pack(term.matrix, depth.clone(), panels, &mut scales);
            let left = self.left.pieces_from(term.first_piece + depth.start / PIECE, pieces);
            let ahead = self.ahead(chunks.peek().cloned());
            for (panel, words) in panels.chunks_exact(PANEL).enumerate() {
                let begin = Begin { accumulate, lows, panels: &low_panels[panel * low_words..] };
                self.multiply(&left, panel, (words, &scales), (begin, &ahead));
            }
            (accumulate, lows) = (true, &[]);
        }
    }

    fn chunks(&self) -> impl Iterator<Item = (&Term<'_>, Range<usize>)> {
        self.terms.iter().flat_map(|term| {
            let rows = term.matrix.rows;
            (0..rows).step_by(CHUNK).map(move |first| (term, first..rows.min(first + CHUNK)))
        })
    }

    /// What is packed after this chunk: the next one, or the first one of the next columns. Its rows are far from each other
    /// in memory, so the cache does not see them coming.
    fn ahead<'a>(&'a self, next: Option<(&'a Term<'a>, Range<usize>)>) -> Option<Ahead<'a>> {
        let (first_column, (term, depth)) = match next {
            Some(next) => (self.first_column, next),
            None => (self.first_column + PIECE, self.chunks().next()?),
        };
        let columns = first_column..first_column + PIECE;
        let weight = WeightRef::Nf4(term.matrix);
        let source = Source { weight, transposed: false, compute: Compute::Bf16, path: CpuPath::Avx2 };
        (columns.end <= term.matrix.cols).then_some(Ahead { source, columns, depth })
    }

    /// The integers of the codes of some rows as words of two neighbouring rows: panels of 16 columns. Also S of each piece,
    /// once for each column.
    fn pack(&self, matrix: &Nf4Matrix, depth: Range<usize>, panels: &mut [f32], scales: &mut [f32; SCALES]) {
        let reader = ScaleReader::new(matrix);
        let start = |row: usize| (row * matrix.cols + self.first_column) / 2;
        let codes = |row: usize| &matrix.codes[start(row)..start(row) + PIECE / 2];
        for (piece, first) in depth.clone().step_by(PIECE).enumerate() {
            // Rows that there are not have the factor zero.
            let (mut factors, rows) = ([0f32; PIECE], first..depth.end.min(first + PIECE));
            for (factor, row) in factors.iter_mut().zip(rows.clone()) {
                *factor = reader.get((row * matrix.cols + self.first_column) / matrix.block);
            }
            let largest = f32::from_bits(largest_bits(&factors));
            let divisor = largest.max(f32::MIN_POSITIVE);
            factors.iter_mut().for_each(|factor| *factor /= divisor);
            scales[piece * COLUMNS..(piece + 1) * COLUMNS].fill(largest);
            for (pair, factors) in factors.as_chunks().0.iter().enumerate() {
                let row = (first + 2 * pair).min(rows.end - 1);
                let odd = (row + 1).min(rows.end - 1);
                let to = &mut panels[(piece * WORDS + pair) * COLUMNS..];
                // SAFETY: the path has AVX2.
                unsafe { pack_pair([codes(row), codes(odd)], *factors, to) };
            }
        }
    }

    /// All rows times a panel.
    fn multiply(
        &self,
        left: &Left<'_>,
        panel: usize,
        (words, scales): (&[f32], &[f32]),
        (begin, ahead): (Begin<'_>, &Option<Ahead<'_>>),
    ) {
        let tiles = self.rows.len().div_ceil(ROWS);
        for (tile, first) in self.rows.clone().step_by(ROWS).enumerate() {
            if let (Some(Ahead { source, columns, depth }), 0) = (ahead, tile % TILES_AHEAD) {
                let parts = tiles.div_ceil(TILES_AHEAD);
                source.fetch(columns.clone(), depth.clone(), panel * parts + tile / TILES_AHEAD, PANELS * parts);
            }
            let count = ROWS.min(self.rows.end - first);
            let start = first * self.stride + self.first_column + panel * COLUMNS;
            let place = |row: usize| self.target.get().wrapping_add(start + row * self.stride);
            // The lines of the next tile come while this one is computed.
            (ROWS..2 * ROWS).for_each(|row| fetch_to_write(place(row), COLUMNS));
            let mut tile = [[0.0; COLUMNS]; ROWS];
            if begin.accumulate {
                for (row, tile) in tile.iter_mut().enumerate().take(count) {
                    // SAFETY: these columns of this row exist and belong to this job alone.
                    tile.copy_from_slice(unsafe { std::slice::from_raw_parts(place(row), COLUMNS) });
                }
            }
            fixed_avx2_low::add(begin.lows, begin.panels, (first, count), &mut tile);
            // SAFETY: the path has AVX2; these rows and the panel were made.
            unsafe { tile_of(count, left, first, (words.as_ptr(), scales.as_ptr()), &mut tile) };
            for (row, tile) in tile.iter().enumerate().take(count) {
                // SAFETY: as above.
                unsafe { std::slice::from_raw_parts_mut(place(row), COLUMNS) }.copy_from_slice(tile);
            }
        }
    }
}

/// The integers of two rows of 64 codes with these factors, as words: 16 columns in each panel.
///
/// # Safety
/// AVX2 is available.
#[target_feature(enable = "avx2,fma")]
unsafe fn pack_pair(rows: [&[u8]; 2], [even, odd]: [f32; 2], panels: &mut [f32]) {
    let planes = [planes(even), planes(odd)];
    let [even, odd] = rows.map(|codes| codes.as_chunks::<8>().0);
    for (panel, codes) in even.iter().zip(odd).enumerate() {
        let to = &mut panels[panel * PANEL..][..COLUMNS];
        // SAFETY: passed on.
        unsafe { pairs(codes, planes, to) };
    }
}

/// The low and the high bytes of the integers of all codes with a factor of at most 1.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn planes(factor: f32) -> [__m128i; 2] {
    let factor = _mm256_set1_ps(factor);
    // SAFETY: the table has 16 values.
    let [first, second] = unsafe { [_mm256_loadu_ps(CODES.as_ptr()), _mm256_loadu_ps(CODES.as_ptr().add(8))] };
    let integers = rounded(_mm256_mul_ps(first, factor), _mm256_mul_ps(second, factor));
    let apart = _mm256_setr_epi8(
        0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15, 0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15,
    );
    let bytes = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_shuffle_epi8(integers, apart));
    [_mm256_castsi256_si128(bytes), _mm256_extracti128_si256::<1>(bytes)]
}

/// The integers of 16 codes of two rows, as words.
///
/// # Safety
/// AVX2 is available.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn pairs((even, odd): (&[u8; 8], &[u8; 8]), planes: [[__m128i; 2]; 2], to: &mut [f32]) {
    let to = to.as_chunks_mut::<4>().0;
    let nibble = _mm_set1_epi8(15);
    let mut halves = [[_mm_setzero_si128(); 2]; 2];
    for ((halves, bytes), [low, high]) in halves.iter_mut().zip([even, odd]).zip(planes) {
        let bytes = _mm_cvtsi64_si128(i64::from_le_bytes(*bytes));
        // The even index is in the high nibble.
        let first = _mm_and_si128(_mm_srli_epi16::<4>(bytes), nibble);
        let codes = _mm_unpacklo_epi8(first, _mm_and_si128(bytes, nibble));
        let (low, high) = (_mm_shuffle_epi8(low, codes), _mm_shuffle_epi8(high, codes));
        *halves = [_mm_unpacklo_epi8(low, high), _mm_unpackhi_epi8(low, high)];
    }
    for half in 0..2 {
        let (even, odd) = (halves[0][half], halves[1][half]);
        // SAFETY: each store fills four words.
        unsafe {
            _mm_storeu_si128(to[2 * half].as_mut_ptr().cast(), _mm_unpacklo_epi16(even, odd));
            _mm_storeu_si128(to[2 * half + 1].as_mut_ptr().cast(), _mm_unpackhi_epi16(even, odd));
        }
    }
}
