//! Column-wise helpers of a linear layer: bias, DoRA factors, and sums over rows in a fixed order.

use crate::ops::{Arena, Matrix};
use rayon::prelude::*;

/// Rows that one task of a reduction takes: fixed, so that sums do not depend on the number of threads.
const ROWS: usize = 64;

/// `y[t,n] += bias[n]`.
pub fn add_bias(y: &mut Matrix, bias: &[f32]) {
    for_rows(y, |row| row.iter_mut().zip(bias).for_each(|(y, b)| *y += b));
}

/// `y[t,n] *= factor[n]`.
pub fn scale(y: &mut Matrix, factor: &[f32]) {
    scale_by(y, factor, 0.0);
}

/// `y[t,n] *= factor[n] + shift`.
pub fn scale_by(y: &mut Matrix, factor: &[f32], shift: f32) {
    for_rows(y, |row| row.iter_mut().zip(factor).for_each(|(y, f)| *y *= f + shift));
}

/// A copy of `y` with column n multiplied by `factor[n] + shift`.
pub fn scaled_copy(y: &Matrix, factor: &[f32], shift: f32, arena: &Arena) -> Matrix {
    let mut copy = arena.matrix(y.rows(), y.cols());
    copy.copy_from_slice(y);
    scale_by(&mut copy, factor, shift);
    copy
}

/// `y += other`.
pub fn add(y: &mut Matrix, other: &Matrix) {
    let chunk = ROWS * y.cols().max(1);
    y.par_chunks_mut(chunk).zip(other.par_chunks(chunk)).for_each(|(y, other)| {
        y.iter_mut().zip(other).for_each(|(y, o)| *y += o);
    });
}

/// `sums[n] += Σ_t y[t,n]`.
pub fn add_column_sums(y: &Matrix, sums: &mut [f32]) {
    reduce_rows(y.rows(), sums, |t, sums| sums.iter_mut().zip(y.row(t)).for_each(|(s, y)| *s += y));
}

/// `gradient[n] += Σ_t dy[t,n]·product[t,n] / norm[n]`.
pub fn add_magnitude_gradient(dy: &Matrix, product: &Matrix, norm: &[f32], gradient: &mut [f32]) {
    reduce_rows(dy.rows(), gradient, |t, sums| {
        let row = dy.row(t).iter().zip(product.row(t)).zip(norm);
        sums.iter_mut().zip(row).for_each(|(sum, ((dy, product), norm))| *sum += dy * product / norm);
    });
}

fn for_rows(y: &mut Matrix, change: impl Fn(&mut [f32]) + Sync) {
    let cols = y.cols().max(1);
    y.par_chunks_mut(ROWS * cols).for_each(|rows| rows.chunks_mut(cols).for_each(&change));
}

/// Adds `accumulate(t, partial)` over all rows: partial sums of [`ROWS`] rows, combined in order.
fn reduce_rows(rows: usize, total: &mut [f32], accumulate: impl Fn(usize, &mut [f32]) + Sync) {
    let partial: Vec<Vec<f32>> = (0..rows.div_ceil(ROWS))
        .into_par_iter()
        .map(|chunk| {
            let mut sums = vec![0.0f32; total.len()];
            (chunk * ROWS..((chunk + 1) * ROWS).min(rows)).for_each(|t| accumulate(t, &mut sums));
            sums
        })
        .collect();
    partial.iter().for_each(|sums| total.iter_mut().zip(sums).for_each(|(t, s)| *t += s));
}
