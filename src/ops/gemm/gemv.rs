//! `y[T,N] = x[T,K] · w[N,K]ᵀ` for a few rows of x (decoding): each row of the weight is read once, in the order of
//! memory, and multiplied with all rows of x. No panel is built, since packing would cost more than the products.
//!
//! Invariant: a sum is formed in the order of its row alone, in strips of [`STRIP`] words.

use super::driver::for_each;
use super::gemv_half;
use super::gemv_nf4::{Fused, Input};
use super::kernel::{Dot, Kernels, MOST_ROWS};
use super::operand::Target;
use super::pack_dense::{Source, STRIP_MARGIN};
use super::plan::{Cuts, ALONE};
use super::scratch::Scratch;
use super::{Store, WeightRef};
use crate::device::Compute;
use crate::ops::matrix::{MatMut, MatRef};
use std::ops::Range;

/// Words of a weight row that are converted at a time.
const STRIP: usize = 1024;

/// Bytes of the weight in a job.
const JOB_BYTES: usize = 128 << 10;

/// Takes the sums of neighbouring rows of the weight, from a first one on, with a range of rows of x.
pub(super) type Put<'a> = &'a mut dyn FnMut(usize, Range<usize>, &[[f32; MOST_ROWS]]);

/// Brings a row of x into the order of the weight's words.
pub(super) type Order = fn(from: &[f32], to: &mut [f32]);

/// Most rows of x that this form serves; with more, panels are faster.
pub(super) const MOST_INPUTS: usize = 16;

/// Rows of x in groups that the dot products take at once.
pub(super) fn groups(count: usize) -> Cuts {
    Cuts::at_most(count, 1, MOST_ROWS)
}

/// Computes `y (+)= alpha · x · wᵀ`.
pub(super) fn run(x: MatRef<'_>, source: Source<'_>, y: MatMut<'_>, store: Store) {
    let count = x.rows;
    if count == 0 || y.cols == 0 {
        return;
    }
    let kernels = Kernels::of(source.path, source.compute);
    if let WeightRef::Nf4(matrix) = source.weight {
        if let Some(fused) = Fused::new(&source, kernels.codes, matrix, count) {
            let inputs = Inputs::new(x, &source, kernels, Some(fused.input()));
            // SAFETY: the functions were made for this weight, path and number of rows of x, which is as they want it.
            return share(&source, inputs, y, store, |rows, dot, put| unsafe { fused.sums(rows, dot, put) });
        }
    }
    let inputs = Inputs::new(x, &source, kernels, None);
    if count == 1 && gemv_half::applies(&source, kernels) {
        return share(&source, inputs, y, store, |rows, dot, put| {
            // SAFETY: a row of x has as many words.
            let x = unsafe { std::slice::from_raw_parts(dot.b, source.weight.cols()) };
            for row in rows {
                let mut sums = [0.0; MOST_ROWS];
                sums[0] = gemv_half::product(source.path, source.weight, row, x);
                put(row, 0..1, &[sums]);
            }
        });
    }
    share(&source, inputs, y, store, |rows, dot, put| sums(&source, kernels, (rows, count), dot, put));
}

impl Source<'_> {
    /// A row of x as the functions for this weight want it; `ordered` has room for it.
    pub fn take_in(&self, kernels: &Kernels, input: Option<Input>, x: &[f32], ordered: &mut [f32], to: &mut [f32]) {
        match input {
            Some(Input::Made { make, .. }) => make(x, to),
            Some(Input::Ordered(order)) => {
                order(x, ordered);
                self.convert(kernels, &ordered[..x.len()], to);
            }
            None => self.convert(kernels, x, to),
        }
    }
}

/// x as words, each row padded with zeros to whole vectors.
struct Inputs {
    words: Scratch,
    rows: usize,
    stride: usize,
}

impl Inputs {
    fn new(x: MatRef<'_>, source: &Source<'_>, kernels: &Kernels, input: Option<Input>) -> Inputs {
        let stride = x.cols.div_ceil(kernels.per_word()).next_multiple_of(16) + 16;
        let mut words = Scratch::take(x.rows * stride + x.cols);
        let (rows, ordered) = words.words().split_at_mut(x.rows * stride);
        for (t, to) in rows.chunks_exact_mut(stride).enumerate() {
            to.fill(0.0);
            source.take_in(kernels, input, x.row(t), ordered, to);
        }
        Inputs { words, rows: x.rows, stride }
    }
}

/// Shares the rows of the weight out and writes what `sums` finds.
fn share(
    source: &Source<'_>,
    mut inputs: Inputs,
    y: MatMut<'_>,
    store: Store,
    sums: impl Fn(Range<usize>, Dot, Put<'_>) + Sync,
) {
    let (rows, depth, count) = (y.cols, source.weight.cols(), inputs.rows);
    let start = Target(inputs.words.words().as_mut_ptr());
    let target = Target(y.data.as_mut_ptr());
    let threads = if rows * depth * count < ALONE { 1 } else { rayon::current_num_threads() };
    let rows_per_job = (JOB_BYTES / row_bytes(source.weight).max(1)).clamp(1, rows.div_ceil(threads));
    for_each(threads, rows.div_ceil(rows_per_job), |job| {
        let job_rows = job * rows_per_job..rows.min((job + 1) * rows_per_job);
        let dot = Dot { a: std::ptr::null(), b: start.get(), b_row: inputs.stride, words: 0 };
        sums(job_rows, dot, &mut |first, inputs, sums| {
            for (t, i) in inputs.zip(0..) {
                for (row, sums) in (first..).zip(sums) {
                    // SAFETY: t < y.rows and row < y.cols: each row of the weight belongs to one job.
                    let element = unsafe { &mut *target.get().add(t * y.stride + row) };
                    let value = store.alpha * sums[i];
                    *element = if store.accumulate { *element + value } else { value };
                }
            }
        });
    });
}

/// Bytes of a row of the weight, scales left out.
pub(super) fn row_bytes(weight: WeightRef<'_>) -> usize {
    match weight {
        WeightRef::F32(matrix) => matrix.cols * 4,
        WeightRef::F16 { cols, .. } | WeightRef::Bf16 { cols, .. } => cols * 2,
        WeightRef::Nf4(matrix) => matrix.cols / 2,
    }
}

/// Sums of rows of the weight with `count` rows of x: from the weight itself where its words are those of the kernels,
/// else from strips that are converted first.
pub(super) fn sums(
    source: &Source<'_>,
    kernels: &Kernels,
    (rows, count): (Range<usize>, usize),
    dot: Dot,
    put: Put<'_>,
) {
    let (depth, groups) = (source.weight.cols(), groups(count));
    let direct = match source.weight {
        WeightRef::F32(_) => source.compute == Compute::F32,
        WeightRef::Bf16 { cols, .. } => kernels.pairs.is_some() && cols.is_multiple_of(2),
        _ => false,
    };
    let step = if direct { depth.max(1) } else { STRIP * kernels.per_word() };
    let mut scratch = Scratch::take(2 * (2 * STRIP + STRIP_MARGIN));
    let (strip, spare) = scratch.words().split_at_mut(2 * STRIP + STRIP_MARGIN);
    for row in rows {
        let mut sums = [[0.0; MOST_ROWS]; MOST_INPUTS / MOST_ROWS];
        for start in (0..depth).step_by(step) {
            let end = depth.min(start + step);
            let words = (end - start).div_ceil(kernels.per_word());
            let a = match source.weight {
                WeightRef::F32(matrix) if direct => matrix.row(row).as_ptr(),
                WeightRef::Bf16 { bits, cols, .. } if direct => bits[row * cols..][..cols].as_ptr().cast(),
                _ => source.row_words(kernels, row, start..end, strip, spare),
            };
            for (group, sums) in sums.iter_mut().enumerate().take(groups.count) {
                let inputs = groups.get(group);
                // SAFETY: `a` has these words and so has each row of x, padded; a group has at most MOST_ROWS.
                unsafe {
                    let b = dot.b.add(inputs.start * dot.b_row + start / kernels.per_word());
                    kernels.dots[inputs.len() - 1](&Dot { a, b, words, ..dot }, sums);
                }
            }
        }
        for (group, sums) in sums.iter().enumerate().take(groups.count) {
            put(row, groups.get(group), std::slice::from_ref(sums));
        }
    }
}
