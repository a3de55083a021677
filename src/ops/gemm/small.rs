//! Single-threaded f32 products of small strided blocks, for operations that keep their tiles in the cache (attention).
//!
//! `C[M,N] (+)= alpha · A[M,K] · B[K,N]` with any strides of A and B and contiguous rows of C. Operand B is read where
//! it lies if its rows are contiguous; otherwise panels of it are copied into memory that the thread keeps.
//!
//! Invariant: an element is summed in the order of K, in blocks of [`DEPTH`], whatever the strides are.

use super::kernel::{Kernels, Tile};
use crate::device::{Compute, CpuPath};
use std::cell::RefCell;

/// Depth of a panel.
const DEPTH: usize = 512;

/// A strided operand: element `(i, j)` is `data[i · row + j · col]`.
#[derive(Clone, Copy)]
pub(crate) struct Strided<'a> {
    /// From element (0, 0) on.
    pub data: &'a [f32],
    /// From one row to the next.
    pub row: usize,
    /// From one column to the next.
    pub col: usize,
}

impl<'a> Strided<'a> {
    /// Rows `stride` apart.
    pub(crate) fn rows(data: &'a [f32], stride: usize) -> Strided<'a> {
        Strided { data, row: stride, col: 1 }
    }

    /// The transpose.
    pub(crate) fn transposed(self) -> Strided<'a> {
        Strided { data: self.data, row: self.col, col: self.row }
    }

    /// Whether a `[rows, cols]` operand lies inside the data.
    fn holds(&self, rows: usize, cols: usize) -> bool {
        rows == 0 || cols == 0 || self.data.len() > (rows - 1) * self.row + (cols - 1) * self.col
    }
}

/// One product.
#[derive(Clone, Copy)]
pub(crate) struct Small<'a> {
    /// `(M, N, K)`.
    pub shape: (usize, usize, usize),
    /// Operand A, `[M, K]`.
    pub a: Strided<'a>,
    /// Operand B, `[K, N]`.
    pub b: Strided<'a>,
    /// Factor of the product.
    pub alpha: f32,
    /// Add to C.
    pub accumulate: bool,
}

thread_local! {
    static PANEL: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// `C[M,N] (+)= alpha · A[M,K] · B[K,N]` on this thread; rows of C are `c_row ≥ N` apart.
pub(crate) fn gemm_f32(path: CpuPath, product: &Small<'_>, c: &mut [f32], c_row: usize) {
    let (m, n, k) = product.shape;
    if m == 0 || n == 0 {
        return;
    }
    assert!(product.a.holds(m, k) && product.b.holds(k, n), "an operand is shorter than its shape");
    assert!(c_row >= n || m == 1, "rows of C overlap");
    assert!(c.len() >= (m - 1) * c_row + n, "C is shorter than its shape");
    let kernels = Kernels::of(path, Compute::F32);
    PANEL.with_borrow_mut(|panel| {
        panel.resize(DEPTH * kernels.panel_columns(), 0.0);
        for first in (0..n).step_by(kernels.panel_columns()) {
            let columns = kernels.panel_columns().min(n - first);
            let mut start = 0;
            loop {
                let depth = DEPTH.min(k - start);
                let (b, b_depth) = operand_b(kernels, product, (start, depth), (first, columns), panel);
                let tile = Tile {
                    depth,
                    a: product.a.data[(start * product.a.col).min(product.a.data.len())..].as_ptr(),
                    a_row: product.a.row,
                    a_depth: product.a.col,
                    b,
                    b_depth,
                    c: c[first..].as_mut_ptr(),
                    c_row,
                    last: 0,
                    alpha: product.alpha,
                    accumulate: product.accumulate || start > 0,
                };
                // SAFETY: the assertions cover A and C, and `operand_b` returns whole vectors for `columns`.
                unsafe { kernels.run(tile, m, columns) };
                start += depth;
                if start >= k {
                    break;
                }
            }
        }
    });
}

/// A panel with whole vectors of columns and its stride: in B itself where that is readable, else copied.
fn operand_b(
    kernels: &Kernels,
    product: &Small<'_>,
    (start, depth): (usize, usize),
    (first, columns): (usize, usize),
    panel: &mut [f32],
) -> (*const f32, usize) {
    let b = product.b;
    let stride = columns.next_multiple_of(kernels.width);
    if depth == 0 {
        return (panel.as_ptr(), stride);
    }
    let origin = start * b.row + first * b.col;
    if b.col == 1 && b.data.len() >= origin + (depth - 1) * b.row + stride {
        return (b.data[origin..].as_ptr(), b.row);
    }
    if b.row == 1 {
        for column in (0..columns).step_by(kernels.width.min(16)) {
            let count = kernels.width.min(16).min(columns - column);
            let mut pointers = [std::ptr::null(); 16];
            for (i, pointer) in pointers[..count].iter_mut().enumerate() {
                *pointer = b.data[origin + (column + i) * b.col..][..depth].as_ptr();
            }
            let to = &mut panel[column..depth * stride];
            // SAFETY: each pointer has `depth` words; the panel has `depth` rows of `stride`.
            unsafe { (kernels.transpose)(&pointers[..count], depth, to.as_mut_ptr(), stride) };
        }
    } else {
        for (d, to) in panel.chunks_exact_mut(stride).enumerate().take(depth) {
            for (column, to) in to[..columns].iter_mut().enumerate() {
                *to = b.data[origin + d * b.row + column * b.col];
            }
        }
    }
    (panel.as_ptr(), stride)
}
