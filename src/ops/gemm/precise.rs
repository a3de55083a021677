//! Small products, accumulated in f64.
//!
//! A product below [`MOST_FLOPS`] is finished before its speed matters, and its error is then that of one rounding: a
//! small model agrees with an f64 computation to the last digits, which attention with large scores would otherwise
//! blow up. Larger products accumulate in f32 like those of every other tool. Which products are small follows from
//! the shape alone, so results depend on neither threads nor kernel path.

use super::{Source, Store, WeightRef};
use crate::device::{Compute, CpuPath};
use crate::ops::matrix::{MatMut, MatRef};
use crate::ops::vector::kernel;

/// Products with at most so many operations (2·T·N·K) come here.
const MOST_FLOPS: usize = 1 << 22;

/// Running sums of a dot product.
const LANES: usize = 16;

/// Whether a product of `[rows, depth]` with `[depth, cols]` is a small one of f32 operands.
pub(super) fn applies(rows: usize, depth: usize, cols: usize, store: Store) -> bool {
    let flops = 2usize.saturating_mul(rows).saturating_mul(depth).saturating_mul(cols);
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
            put(&mut y.data[t * y.stride + n], value, store);
        }
    }
}

/// `dx[T,K] (+)= alpha * dy[T,N] · w[N,K]`.
pub(super) fn matmul_nn(dy: MatRef<'_>, source: Source<'_>, dx: MatMut<'_>, store: Store) {
    let (rows, cols) = (dx.rows, dx.cols);
    let mut row = vec![0.0f32; cols];
    let mut sums = vec![0.0f64; rows * cols];
    for n in 0..source.weight.rows() {
        read_row(source.weight, n, &mut row);
        for (t, sums) in sums.chunks_exact_mut(cols).enumerate() {
            add_scaled(source.path, sums, dy.data[t * dy.stride + n], &row);
        }
    }
    put_all(&sums, dx, store);
}

/// `c[M,N] (+)= alpha * a[T,M]ᵀ · b[T,N]`.
pub(super) fn matmul_tn(path: CpuPath, a: MatRef<'_>, b: MatRef<'_>, c: MatMut<'_>, store: Store) {
    let mut sums = vec![0.0f64; c.rows * c.cols];
    for t in 0..a.rows {
        for (value, sums) in a.row(t).iter().zip(sums.chunks_exact_mut(c.cols)) {
            add_scaled(path, sums, *value, b.row(t));
        }
    }
    put_all(&sums, c, store);
}

fn put(target: &mut f32, value: f64, store: Store) {
    *target = (if store.accumulate { f64::from(*target) + value } else { value }) as f32;
}

fn put_all(sums: &[f64], target: MatMut<'_>, store: Store) {
    let (cols, stride) = (target.cols, target.stride);
    for (t, sums) in sums.chunks_exact(cols).enumerate() {
        let row = &mut target.data[t * stride..t * stride + cols];
        row.iter_mut().zip(sums).for_each(|(target, sum)| put(target, f64::from(store.alpha) * sum, store));
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
    /// sums += scale · row, in f64.
    fn add_scaled(sums: &mut [f64], scale: f32, row: &[f32]) {
        let scale = f64::from(scale);
        sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += scale * f64::from(*value));
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
