//! `aᵀ · b` for a wide `a` and a narrow `b` (the gradient of LoRA's B): as `(bᵀ · a)ᵀ`.
//!
//! The left operand of the driver is transposed into rows of words, the right one is packed as it lies. So the narrow
//! one should be on the left: the wide one is then read once and never transposed. What has to be transposed instead
//! is the product, which has no depth.

use super::driver::{self, for_each, threads_for, Product};
use super::kernel::Kernels;
use super::operand::{Left, Target};
use super::pack_dense::Source;
use super::scratch::Scratch;
use super::{Store, WeightRef};
use crate::device::{Compute, CpuPath};
use crate::ops::matrix::{MatMut, MatRef};

/// Columns of `a` that one job brings home.
const COLUMNS_PER_JOB: usize = 256;

/// Whether the product is faster this way; depends on the shape alone.
pub(super) fn is_better(a: MatRef<'_>, b: MatRef<'_>) -> bool {
    b.cols <= 32 && a.cols >= 2 * b.cols && a.rows >= 32
}

/// `c[M,N] (+)= alpha · a[T,M]ᵀ · b[T,N]`.
pub(super) fn matmul_tn(path: CpuPath, a: MatRef<'_>, b: MatRef<'_>, c: MatMut<'_>, store: Store) {
    let (rows, columns) = (b.cols, a.cols);
    if rows == 0 {
        return;
    }
    let mut scratch = Scratch::take(rows * columns);
    let product = &mut scratch.words()[..rows * columns];
    driver::run(Product {
        left: Left { matrix: b, transposed: true, compute: store.compute, path },
        source: Source { weight: WeightRef::F32(a), transposed: false, compute: store.compute, path },
        target: MatMut::new(product, rows, columns),
        store: Store { accumulate: false, ..store },
    });
    add_transposed(path, MatRef::new(product, rows, columns), c, store.accumulate);
}

/// `c (+)= productᵀ`.
pub(super) fn add_transposed(path: CpuPath, product: MatRef<'_>, c: MatMut<'_>, accumulate: bool) {
    let (rows, columns) = (product.rows, product.cols);
    let kernels = Kernels::of(path, Compute::F32);
    let target = Target(c.data.as_mut_ptr());
    // Moving a value takes about as long as sixteen multiply-adds.
    for_each(threads_for(16 * rows * columns), columns.div_ceil(COLUMNS_PER_JOB), |job| {
        let height = kernels.width.min(16);
        let mut block = [0.0f32; 16 * COLUMNS_PER_JOB];
        let first = job * COLUMNS_PER_JOB;
        let count = COLUMNS_PER_JOB.min(columns - first);
        for row in (0..rows).step_by(height) {
            let rows = height.min(rows - row);
            let mut pointers = [std::ptr::null(); 16];
            for (i, pointer) in pointers[..rows].iter_mut().enumerate() {
                *pointer = product.row(row + i)[first..][..count].as_ptr();
            }
            // SAFETY: `rows` pointers with `count` values each; the block holds 16 for each of them.
            unsafe { (kernels.transpose)(&pointers[..rows], count, block.as_mut_ptr(), 16) };
            for (m, values) in block.chunks_exact(16).enumerate().take(count) {
                // SAFETY: row `first + m` of C is this job's and has `row + rows` columns.
                let to =
                    unsafe { std::slice::from_raw_parts_mut(target.get().add((first + m) * c.stride + row), rows) };
                for (to, value) in to.iter_mut().zip(values) {
                    *to = if accumulate { *to + value } else { *value };
                }
            }
        }
    });
}
