//! `y[T,N] = x[T,K] · w[N,K]ᵀ` for a few rows of x (decoding): each row of the weight is read once, in the order of
//! memory, and multiplied with all rows of x. No panel is built, since packing would cost more than the products.
//!
//! Invariant: a sum is formed in the order of its row alone, in strips of [`STRIP`] words.

use super::driver::for_each;
use super::kernel::{Dot, Kernels, MOST_ROWS};
use super::operand::Target;
use super::pack_dense::{Source, STRIP_MARGIN};
use super::plan::ALONE;
use super::scratch::Scratch;
use super::{Store, WeightRef};
use crate::device::Compute;
use crate::ops::matrix::{MatMut, MatRef};
use std::ops::Range;

/// Words of a weight row that are converted at a time.
const STRIP: usize = 1024;

/// Rows of the weight whose sums are handed on together.
#[cfg(target_arch = "x86_64")]
const BATCH: usize = 16;

/// Bytes of the weight in a job.
const JOB_BYTES: usize = 128 << 10;

/// x as words in the order in which the weight is read, each row padded with zeros to whole vectors.
struct Inputs {
    words: Scratch,
    stride: usize,
}

/// How rows of the weight are read.
enum Reading<'a> {
    /// Codes are looked up in registers.
    #[cfg(target_arch = "x86_64")]
    Codes(super::gemv_nf4::Fused<'a>),
    /// The words are in the weight.
    Direct,
    /// Strips are converted first.
    Strips,
}

/// Computes `y (+)= alpha · x · wᵀ`.
pub(super) fn run(x: MatRef<'_>, source: Source<'_>, y: MatMut<'_>, store: Store) {
    let (count, depth) = (x.rows, x.cols);
    let rows = y.cols;
    if count == 0 || rows == 0 {
        return;
    }
    let kernels = Kernels::of(source.path, source.compute);
    let reading = reading(&source, kernels, count);
    let mut inputs = inputs(x, &source, kernels, &reading);
    let start = Target(inputs.words.words().as_mut_ptr());
    let target = Target(y.data.as_mut_ptr());
    let threads = if rows * depth * count < ALONE { 1 } else { rayon::current_num_threads() };
    let row_bytes = match source.weight {
        WeightRef::F32(_) => depth * 4,
        WeightRef::F16 { .. } | WeightRef::Bf16 { .. } => depth * 2,
        WeightRef::Nf4(_) => depth / 2,
    };
    let rows_per_job = (JOB_BYTES / row_bytes.max(1)).clamp(1, rows.div_ceil(threads)).max(1);
    for_each(threads, rows.div_ceil(rows_per_job), |job| {
        let job_rows = job * rows_per_job..rows.min((job + 1) * rows_per_job);
        let dot = Dot { a: std::ptr::null(), b: start.get(), b_row: inputs.stride, words: 0 };
        sums(&source, kernels, &reading, (job_rows, count), dot, |row, sums| {
            for (t, sum) in sums[..count].iter().enumerate() {
                // SAFETY: t < y.rows and row < y.cols; each row of the weight belongs to one job.
                let element = unsafe { &mut *target.get().add(t * y.stride + row) };
                *element = if store.accumulate { *element + store.alpha * sum } else { store.alpha * sum };
            }
        });
    });
}

fn reading<'a>(source: &Source<'a>, kernels: &Kernels, count: usize) -> Reading<'a> {
    match source.weight {
        #[cfg(target_arch = "x86_64")]
        WeightRef::Nf4(matrix) => match super::gemv_nf4::Fused::new(source, kernels, matrix, count) {
            Some(fused) => Reading::Codes(fused),
            None => Reading::Strips,
        },
        WeightRef::F32(_) if source.compute == Compute::F32 => Reading::Direct,
        WeightRef::Bf16 { cols, .. } if kernels.pairs.is_some() && cols.is_multiple_of(2) => Reading::Direct,
        _ => Reading::Strips,
    }
}

/// Brings x into the order of the weight's words.
fn inputs(x: MatRef<'_>, source: &Source<'_>, kernels: &Kernels, reading: &Reading<'_>) -> Inputs {
    let stride = x.cols.div_ceil(kernels.per_word()).next_multiple_of(16) + 16;
    let mut words = Scratch::take(x.rows * stride + x.cols);
    let (rows, ordered) = words.words().split_at_mut(x.rows * stride);
    for (t, to) in rows.chunks_exact_mut(stride).enumerate() {
        to.fill(0.0);
        let row = match reading {
            #[cfg(target_arch = "x86_64")]
            Reading::Codes(_) => {
                super::gemv_nf4::order_of_codes(x.row(t), kernels.pairs.is_some(), ordered);
                &ordered[..x.cols]
            }
            _ => x.row(t),
        };
        source.convert(kernels, row, to);
    }
    Inputs { words, stride }
}

/// Hands the sums of each row of the weight with all rows of x to `put`.
fn sums(
    source: &Source<'_>,
    kernels: &Kernels,
    reading: &Reading<'_>,
    (rows, count): (Range<usize>, usize),
    dot: Dot,
    mut put: impl FnMut(usize, &[f32; MOST_ROWS]),
) {
    #[cfg(target_arch = "x86_64")]
    if let Reading::Codes(fused) = reading {
        let mut scratch = super::gemv_nf4::FusedScratch::default();
        let mut sums = [[0.0; MOST_ROWS]; BATCH];
        for first in rows.clone().step_by(fused.rows_at_once().min(BATCH)) {
            let sums = &mut sums[..fused.rows_at_once().min(BATCH).min(rows.end - first)];
            // SAFETY: the functions were chosen for this weight, path and number of rows of x.
            unsafe { fused.rows(first, &dot, &mut scratch, sums) };
            sums.iter().enumerate().for_each(|(i, sums)| put(first + i, sums));
        }
        return;
    }
    let depth = source.weight.cols();
    let mut scratch = Scratch::take(3 * (2 * STRIP + STRIP_MARGIN));
    let (strip, values) = scratch.words().split_at_mut(2 * STRIP + STRIP_MARGIN);
    for row in rows {
        let mut sums = [0.0; MOST_ROWS];
        let step = if matches!(reading, Reading::Direct) { depth.max(1) } else { STRIP * kernels.per_word() };
        for start in (0..depth).step_by(step) {
            let end = depth.min(start + step);
            let words = (end - start).div_ceil(kernels.per_word());
            let a = match (reading, source.weight) {
                (Reading::Direct, WeightRef::F32(matrix)) => matrix.row(row).as_ptr(),
                (Reading::Direct, WeightRef::Bf16 { bits, cols, .. }) => bits[row * cols..][..cols].as_ptr().cast(),
                _ => source.row_words(kernels, row, start..end, strip, values),
            };
            // SAFETY: `a` has these words and so has each row of x, padded; count ≤ MOST_ROWS.
            unsafe {
                let b = dot.b.add(start / kernels.per_word());
                kernels.dots[count - 1](&Dot { a, b, words, ..dot }, &mut sums);
            }
        }
        put(row, &sums);
    }
}
