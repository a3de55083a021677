//! Small forward products, accumulated in f64.
//!
//! A product below [`MOST_FLOPS`] is finished before its speed matters, and its error is then that of one rounding: a
//! small model agrees with an f64 computation to the last digits, which attention with large scores would otherwise
//! blow up. Larger products accumulate in f32 like those of every other tool. Which products are small follows from
//! the shape alone, so results depend on neither threads nor kernel path.

use super::{Source, Store, WeightRef};
use crate::device::Compute;
use crate::ops::matrix::{MatMut, MatRef};
use crate::ops::vector::kernel;

/// Products with at most so many operations (2·T·N·K) come here.
const MOST_FLOPS: usize = 1 << 23;

/// Running sums of a dot product.
const LANES: usize = 16;

/// Whether `x·wᵀ` with these sizes is a small product of f32 operands.
pub(super) fn applies(x: MatRef<'_>, w: WeightRef<'_>, store: Store) -> bool {
    let flops = 2usize.saturating_mul(x.rows).saturating_mul(x.cols).saturating_mul(w.rows());
    store.compute == Compute::F32 && flops <= MOST_FLOPS
}

/// `y[T,N] (+)= alpha * x[T,K] · w[N,K]ᵀ`.
pub(super) fn matmul_nt(x: MatRef<'_>, source: Source<'_>, y: MatMut<'_>, store: Store) {
    let mut row = vec![0.0f32; x.cols];
    let mut wide = vec![0.0f64; x.cols];
    for n in 0..source.weight.rows() {
        read_row(source.weight, n, &mut row);
        wide.iter_mut().zip(&row).for_each(|(wide, value)| *wide = f64::from(*value));
        for t in 0..x.rows {
            let value = f64::from(store.alpha) * dot(source.path, x.row(t), &wide);
            let target = &mut y.data[t * y.stride + n];
            *target = (if store.accumulate { f64::from(*target) + value } else { value }) as f32;
        }
    }
}

fn read_row(w: WeightRef<'_>, row: usize, out: &mut [f32]) {
    match w {
        WeightRef::F32(matrix) => out.copy_from_slice(matrix.row(row)),
        WeightRef::Nf4(matrix) => matrix.dequantize_row(row, out),
        WeightRef::F16 { .. } | WeightRef::Bf16 { .. } => {
            out.iter_mut().enumerate().for_each(|(col, value)| *value = w.at(row, col));
        }
    }
}

kernel! {
    /// Σ x·w in f64.
    fn dot(x: &[f32], w: &[f64]) -> f64 {
        let mut sums = [0.0f64; LANES];
        let (x_groups, x_rest) = x.as_chunks::<LANES>();
        let (w_groups, w_rest) = w.as_chunks::<LANES>();
        for (x, w) in x_groups.iter().zip(w_groups) {
            for lane in 0..LANES {
                sums[lane] += f64::from(x[lane]) * w[lane];
            }
        }
        let rest: f64 = x_rest.iter().zip(w_rest).map(|(x, w)| f64::from(*x) * w).sum();
        sums.iter().sum::<f64>() + rest
    }
}
