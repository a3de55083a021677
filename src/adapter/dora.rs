//! DoRA's weight norm: ‖W + s·B·A‖ of each output row, without ever forming the sum.
//!
//! ```text
//! norm²[n] = |W[n]|² + 2s·Σ_j B[n,j]·(W·Aᵀ)[n,j] + s²·Σ_j B[n,j]·(B·A·Aᵀ)[n,j]
//! ```
//!
//! |W[n]|² never changes while W is frozen, so it is computed once. Products run in f32 through the GEMM, the sums over j
//! in f64. In the backward pass the norm counts as a constant. Reference: PEFT `tuners/lora/dora.py`.

use crate::device::Compute;
use crate::ops::gemm::{matmul_nt, Store};
use crate::ops::{Arena, MatRef, WeightRef};
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use half::{bf16, f16};
use rayon::prelude::*;

/// The factors of an adapter's product.
#[derive(Debug, Clone, Copy)]
pub struct Factors<'a> {
    /// `[R, K]`.
    pub a: &'a [f32],
    /// `[N, R]`.
    pub b: &'a [f32],
    /// R.
    pub rank: usize,
    /// s.
    pub scale: f32,
}

/// |W[n]|² of each row, summed in f64.
pub fn row_norms_squared(w: WeightRef<'_>) -> Vec<f32> {
    let cols = w.cols();
    let row_norm = |buffer: &mut Vec<f32>, row: usize| {
        read_row(w, row, buffer);
        sum_of_products(buffer, buffer) as f32
    };
    (0..w.rows()).into_par_iter().map_init(|| vec![0.0; cols], row_norm).collect()
}

/// ‖W + s·B·A‖ of each row. `w_norm_squared` comes from [`row_norms_squared`].
pub fn weight_norm(w: WeightRef<'_>, w_norm_squared: &[f32], factors: Factors<'_>, arena: &Arena) -> Vec<f32> {
    let Factors { a, b, rank, scale } = factors;
    let (rows, cols) = (w.rows(), w.cols());
    assert_eq!(w_norm_squared.len(), rows);
    let (a, b) = (MatRef::new(a, rank, cols), MatRef::new(b, rows, rank));
    let set = Store::set(Compute::F32);
    // The products with W and with A itself in the order that reads each row of A once a row of W.
    let mut cross = arena.matrix(rank, rows);
    matmul_nt(a, w, cross.view_mut(), set);
    let mut gram = arena.matrix(rank, rank);
    matmul_nt(a, WeightRef::F32(a), gram.view_mut(), set);
    // A·Aᵀ is symmetric, so its rows are its columns.
    let mut inner = arena.matrix(rows, rank);
    matmul_nt(b, WeightRef::F32(gram.view()), inner.view_mut(), set);
    let scale = f64::from(scale);
    let norm = |row: usize| {
        let b = b.row(row);
        let first: f64 = (0..rank).map(|j| f64::from(b[j]) * f64::from(cross[j * rows + row])).sum();
        let second = sum_of_products(b, inner.row(row));
        let squared = f64::from(w_norm_squared[row]) + 2.0 * scale * first + scale * scale * second;
        squared.max(0.0).sqrt() as f32
    };
    (0..rows).into_par_iter().with_min_len(256).map(norm).collect()
}

/// One row of a weight as f32.
pub(crate) fn read_row(w: WeightRef<'_>, row: usize, out: &mut [f32]) {
    let range = row * out.len()..(row + 1) * out.len();
    match w {
        WeightRef::F32(matrix) => out.copy_from_slice(matrix.row(row)),
        WeightRef::F16 { bits, .. } => bits[range].reinterpret_cast::<f16>().convert_to_f32_slice(out),
        WeightRef::Bf16 { bits, .. } => bits[range].reinterpret_cast::<bf16>().convert_to_f32_slice(out),
        WeightRef::Nf4(matrix) => matrix.dequantize_row(row, out),
    }
}

/// Σ x·y in f64, in 8 running sums.
pub(super) fn sum_of_products(x: &[f32], y: &[f32]) -> f64 {
    let mut sums = [0.0f64; 8];
    let (x_groups, x_rest) = x.as_chunks::<8>();
    let (y_groups, y_rest) = y.as_chunks::<8>();
    for (x, y) in x_groups.iter().zip(y_groups) {
        for i in 0..8 {
            sums[i] += f64::from(x[i]) * f64::from(y[i]);
        }
    }
    let rest: f64 = x_rest.iter().zip(y_rest).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum();
    sums.iter().sum::<f64>() + rest
}
