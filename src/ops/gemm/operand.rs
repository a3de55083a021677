//! Operand A as rows of words that the micro-kernels broadcast from.
//!
//! f32 rows are read where they are (copying them out of strides that share cache sets was measured: it gains nothing).
//! For bf16, or a transposed operand, they are converted once, into padded rows that all threads share.

use super::driver::for_each;
use super::kernel::Kernels;
use super::pack_dense::round_bf16;
use super::scratch::Scratch;
use crate::device::{Compute, CpuPath};
use crate::ops::matrix::MatRef;
use std::ops::Range;

/// Words of a cache line.
const LINE: usize = 16;

/// Rows (or depths, if transposed) converted by one job: whole vectors.
const ROWS_PER_JOB: usize = 32;

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

/// Rows of words.
pub(super) struct Rows {
    /// First word.
    pub start: *const f32,
    /// Words from one row to the next.
    pub stride: usize,
    _memory: Option<Scratch>,
}

// SAFETY: the words are only read while the rows exist; their owner is the operand or the scratch memory held here.
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

    /// The rows as words.
    pub fn prepare(&self, kernels: &Kernels, threads: usize) -> Rows {
        if self.compute == Compute::F32 && !self.transposed {
            return Rows { start: self.matrix.data.as_ptr(), stride: self.matrix.stride, _memory: None };
        }
        let words = self.depth().div_ceil(kernels.per_word());
        // An odd number of cache lines, so that rows of a tile fall into different sets.
        let stride = (words.div_ceil(LINE) | 1) * LINE;
        let mut memory = Scratch::take(self.rows() * stride);
        let target = memory.words();
        let to = Target(target.as_mut_ptr());
        if self.transposed {
            let per_word = kernels.per_word();
            let jobs = self.depth().div_ceil(ROWS_PER_JOB);
            for_each(threads, jobs, |job| {
                let depths = job * ROWS_PER_JOB..self.depth().min((job + 1) * ROWS_PER_JOB);
                for first in depths.clone().step_by(kernels.width.min(16) * per_word) {
                    let end = depths.end.min(first + kernels.width.min(16) * per_word);
                    self.transpose(kernels, first..end, to, stride);
                }
            });
        } else {
            let jobs = self.rows().div_ceil(ROWS_PER_JOB);
            for_each(threads, jobs, |job| {
                for row in job * ROWS_PER_JOB..self.rows().min((job + 1) * ROWS_PER_JOB) {
                    // SAFETY: rows · stride words were taken, and each row belongs to one job.
                    let to = unsafe { std::slice::from_raw_parts_mut(to.get().add(row * stride), words) };
                    self.convert(kernels, self.matrix.row(row), to);
                }
            });
        }
        Rows { start: to.get(), stride, _memory: Some(memory) }
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
            // SAFETY: the pointers have a word for each of the columns; these columns of the rows from `first_word` on
            // are this job's.
            unsafe {
                let to = to.get().add(columns.start * stride + first_word);
                (kernels.transpose)(&pointers[..count], columns.len(), to, stride);
            }
        }
    }
}
