//! Operand A as rows of words that the micro-kernels broadcast from.
//!
//! f32 rows are read where they are, unless their distance would put them all into one set of the L1 cache. Otherwise
//! (bf16, or a transposed operand) they are converted once, into padded rows that all threads share.

use super::driver::for_each;
use super::kernel::Kernels;
use super::pack_dense::round_bf16;
use super::scratch::Scratch;
use crate::device::{Compute, CpuPath};
use crate::ops::matrix::MatRef;

/// Rows whose distance is a multiple of this many words share cache sets.
const CONFLICT: usize = 512;

/// Words of a cache line.
const LINE: usize = 16;

/// Rows (or depths, if transposed) converted by one job: whole vectors.
const ROWS_PER_JOB: usize = 32;

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

    /// The rows as words. `reuse`: how many tiles will read each of them.
    pub fn prepare(&self, kernels: &Kernels, threads: usize, reuse: usize) -> Rows {
        let conflict = self.matrix.stride.is_multiple_of(CONFLICT) && self.rows() > 8 && reuse > 8;
        if self.compute == Compute::F32 && !self.transposed && !conflict {
            return Rows { start: self.matrix.data.as_ptr(), stride: self.matrix.stride, _memory: None };
        }
        let words = self.depth().div_ceil(kernels.per_word());
        // An odd number of cache lines.
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
    fn transpose(&self, kernels: &Kernels, depths: std::ops::Range<usize>, to: Target, stride: usize) {
        let width = self.rows();
        let step = kernels.per_word();
        let direct = self.compute == Compute::F32;
        let mut strips = Scratch::take(if direct { 0 } else { 16 * (width + 16) });
        let mut zeros = Vec::new();
        let mut pointers = [std::ptr::null(); 16];
        let mut count = 0;
        for (depth, strip) in depths.clone().step_by(step).zip(strips.words().chunks_mut(width + 16)) {
            let even = self.matrix.row(depth);
            pointers[count] = if direct {
                even.as_ptr()
            } else if let Some(pairs) = &kernels.pairs {
                let odd = if depth + 1 < depths.end {
                    self.matrix.row(depth + 1)
                } else {
                    zeros.resize(width, 0.0);
                    &zeros
                };
                // SAFETY: the kernels are of this machine's path.
                unsafe { (pairs.rows)(even, odd, strip) };
                strip.as_ptr()
            } else {
                round_bf16(self.path, even, strip);
                strip.as_ptr()
            };
            count += 1;
        }
        // SAFETY: the pointers have `width` words each; column `depths.start / step` on of the rows is this job's.
        unsafe { (kernels.transpose)(&pointers[..count], width, to.get().add(depths.start / step), stride) };
    }
}
