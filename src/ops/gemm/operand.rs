//! Operand A as rows of words that the micro-kernels broadcast from.
//!
//! f32 rows are read where they are (copying them out of strides that share cache sets was measured: it gains nothing).
//! For bf16, or a transposed operand, they are converted once, into padded rows that all threads share. Kernels on tile
//! registers want 16 rows as one tile after the other, each of 16 words of every row: so memory is read from end to end.

use super::driver::for_each;
use super::kernel::Kernels;
use super::pack_dense::round_bf16;
use super::scratch::Scratch;
use crate::device::{Compute, CpuPath};
use crate::ops::matrix::{odd_stride, MatRef};
use std::ops::Range;

/// Rows (or depths, if transposed) converted by one job: whole vectors.
const ROWS_PER_JOB: usize = 32;

/// Rows of a tile, and its words.
pub(super) const TILE: usize = 16;

/// Columns of a transposed operand converted at a time: 16 rows of them stay in the L1 cache.
const COLUMNS_AT_ONCE: usize = 512;

static ZEROS: [f32; COLUMNS_AT_ONCE] = [0.0; COLUMNS_AT_ONCE];

/// Operand A of a product.
#[derive(Clone, Copy)]
pub(super) struct Left<'a> {
    /// The values.
    pub matrix: MatRef<'a>,
    /// Depth runs down the columns (A = aᵀ).
    pub transposed: bool,
    /// Operand format.
    pub compute: Compute,
    /// Instructions to convert with.
    pub path: CpuPath,
}

/// Rows of words: the operand's own or in the buffer that [`prepare`] returned with them.
pub(super) struct Rows {
    /// First word.
    pub start: *const f32,
    /// Words from one row to the next; of tiles, to what the next row would be if they were none.
    pub stride: usize,
}

impl Rows {
    /// Row `row` from word `word` on; of tiles, both at the start of one.
    pub fn at(&self, kernels: &Kernels, row: usize, word: usize) -> *const f32 {
        let deep = if kernels.is_tiled() { word * TILE } else { word };
        self.start.wrapping_add(row * self.stride + deep)
    }
}

// SAFETY: the words are only read, by those who hold the operand and the buffer.
unsafe impl Sync for Rows {}

/// A pointer that jobs write disjoint parts through.
#[derive(Clone, Copy)]
pub(super) struct Target(pub *mut f32);

// SAFETY: the users write disjoint ranges, as each of them states.
unsafe impl Sync for Target {}
// SAFETY: as above.
unsafe impl Send for Target {}

impl Target {
    /// The pointer (a method, so that closures capture the wrapper).
    pub fn get(self) -> *mut f32 {
        self.0
    }
}

/// The rows of some operands as words, and the one buffer that holds those which had to be converted.
pub(super) fn prepare(kernels: &Kernels, lefts: &[Left<'_>], threads: usize) -> (Vec<Rows>, Option<Scratch>) {
    // Each starts at a cache line: strides are whole lines.
    let mut total = 0;
    let places: Vec<Option<(usize, usize)>> = lefts
        .iter()
        .map(|left| {
            let stride = left.stride(kernels)?;
            let words = left.rows().next_multiple_of(if kernels.is_tiled() { TILE } else { 1 }) * stride;
            total += words;
            Some((total - words, stride))
        })
        .collect();
    let mut memory = (total > 0).then(|| Scratch::take(total));
    let start = memory.as_mut().map_or(std::ptr::null_mut(), |memory| memory.words().as_mut_ptr());
    let mut jobs = Vec::new();
    let mut rows = Vec::with_capacity(lefts.len());
    for (left, place) in lefts.iter().zip(places) {
        rows.push(match place {
            None => Rows { start: left.matrix.data.as_ptr(), stride: left.matrix.stride },
            Some((offset, stride)) => {
                let to = Target(start.wrapping_add(offset));
                jobs.extend((0..left.jobs()).map(|job| (left, job, to, stride)));
                Rows { start: to.get(), stride }
            }
        });
    }
    for_each(threads, jobs.len(), |index| {
        let (left, job, to, stride) = jobs[index];
        left.run(kernels, job, to, stride);
    });
    (rows, memory)
}

/// Where the first words of a row are.
fn place(kernels: &Kernels, row: usize, stride: usize) -> usize {
    match kernels.is_tiled() {
        true => row / TILE * TILE * stride + row % TILE * TILE,
        false => row * stride,
    }
}

impl Left<'_> {
    /// Rows of C.
    pub fn rows(&self) -> usize {
        if self.transposed {
            self.matrix.cols
        } else {
            self.matrix.rows
        }
    }

    /// Elements along the reduction.
    pub fn depth(&self) -> usize {
        if self.transposed {
            self.matrix.rows
        } else {
            self.matrix.cols
        }
    }

    /// Words from one row to the next once converted; None where the rows are read where they are.
    fn stride(&self, kernels: &Kernels) -> Option<usize> {
        if self.compute == Compute::F32 && !self.transposed {
            return None;
        }
        Some(odd_stride(self.depth().div_ceil(kernels.per_word())))
    }

    /// Jobs of a conversion: ranges of rows, or of depths if transposed.
    fn jobs(&self) -> usize {
        self.matrix.rows.div_ceil(ROWS_PER_JOB)
    }

    /// One job of a conversion.
    fn run(&self, kernels: &Kernels, job: usize, to: Target, stride: usize) {
        let range = job * ROWS_PER_JOB..self.matrix.rows.min((job + 1) * ROWS_PER_JOB);
        if self.transposed {
            let step = kernels.width.min(16) * kernels.per_word();
            for first in range.clone().step_by(step) {
                self.transpose(kernels, first..range.end.min(first + step), to, stride);
            }
        } else if let Some(tiled) = &kernels.tiled {
            for first in range.clone().step_by(TILE) {
                let shape = (TILE.min(range.end - first), self.matrix.cols);
                // SAFETY: the kernels are of this machine's path; the words of all rows were taken, and each row belongs to
                // one job.
                unsafe {
                    let to = to.get().add(place(kernels, first, stride));
                    (tiled.from_rows)(self.matrix.row(first).as_ptr(), self.matrix.stride, shape, to);
                }
            }
        } else {
            let words = self.depth().div_ceil(kernels.per_word());
            for row in range {
                // SAFETY: the words of all rows were taken, and each row belongs to one job.
                let to = unsafe { std::slice::from_raw_parts_mut(to.get().add(place(kernels, row, stride)), words) };
                self.convert(kernels, self.matrix.row(row), to);
            }
        }
    }

    fn convert(&self, kernels: &Kernels, from: &[f32], to: &mut [f32]) {
        if let Some(pairs) = &kernels.pairs {
            // SAFETY: the kernels are of this machine's path.
            unsafe { (pairs.neighbours)(from, to) };
        } else if self.compute == Compute::Bf16 {
            round_bf16(self.path, from, to);
        } else {
            to.copy_from_slice(from);
        }
    }

    /// One vector of depths (or of pairs of depths) to the rows of words.
    fn transpose(&self, kernels: &Kernels, depths: Range<usize>, to: Target, stride: usize) {
        let first_word = depths.start / kernels.per_word();
        let mut strips = [[0.0f32; COLUMNS_AT_ONCE]; 16];
        for first in (0..self.rows()).step_by(COLUMNS_AT_ONCE) {
            let columns = first..self.rows().min(first + COLUMNS_AT_ONCE);
            let row = |depth: usize| &self.matrix.row(depth)[columns.clone()];
            let mut pointers = [std::ptr::null(); 16];
            let mut count = 0;
            for (depth, strip) in depths.clone().step_by(kernels.per_word()).zip(&mut strips) {
                pointers[count] = if let Some(pairs) = &kernels.pairs {
                    let odd = if depth + 1 < depths.end { row(depth + 1) } else { &ZEROS[..columns.len()] };
                    // SAFETY: the kernels are of this machine's path.
                    unsafe { (pairs.rows)(row(depth), odd, strip) };
                    strip.as_ptr()
                } else if self.compute == Compute::Bf16 {
                    round_bf16(self.path, row(depth), strip);
                    strip.as_ptr()
                } else {
                    row(depth).as_ptr()
                };
                count += 1;
            }
            if kernels.is_tiled() {
                // The last tile is filled up.
                pointers[count..].fill(ZEROS.as_ptr());
                count = TILE;
            }
            let (piece, row) = if kernels.is_tiled() { (TILE, TILE) } else { (COLUMNS_AT_ONCE, stride) };
            let deep = if kernels.is_tiled() { first_word * TILE } else { first_word };
            for first in columns.clone().step_by(piece) {
                // SAFETY: the pointers have a word for each of the columns; these columns of the rows from `first_word`
                // on are this job's.
                unsafe {
                    let to = to.get().add(first * stride + deep);
                    (kernels.transpose)(&pointers[..count], piece.min(columns.end - first), to, row);
                }
                pointers[..count].iter_mut().for_each(|pointer| *pointer = pointer.wrapping_add(piece));
            }
        }
    }
}
