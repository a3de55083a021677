//! Matrix products of the step, over dense and NF4 weights.
//!
//! | function | computes | where |
//! |---|---|---|
//! | [`matmul_nt`] | `y[T,N] (+)= alpha * x[T,K] · w[N,K]ᵀ` | forward of a linear |
//! | [`matmul_nn`] | `dx[T,K] (+)= alpha * dy[T,N] · w[N,K]` | its input gradient |
//! | [`matmul_tn`] | `c[M,N] (+)= alpha * a[T,M]ᵀ · b[T,N]` | weight gradients |
//!
//! Results do not depend on the number of threads: work is split over output tiles, never over the reduction.

use super::matrix::{MatMut, MatRef};
use crate::device::Compute;
use crate::quant::Nf4Matrix;

/// A `[N, K]` weight in any storage, row-major.
#[derive(Clone, Copy)]
pub enum WeightRef<'a> {
    /// f32 values.
    F32(MatRef<'a>),
    /// IEEE half precision bits, contiguous.
    F16 {
        /// `rows * cols` values.
        bits: &'a [u16],
        /// N.
        rows: usize,
        /// K.
        cols: usize,
    },
    /// bfloat16 bits, contiguous.
    Bf16 {
        /// `rows * cols` values.
        bits: &'a [u16],
        /// N.
        rows: usize,
        /// K.
        cols: usize,
    },
    /// 4-bit codes.
    Nf4(&'a Nf4Matrix),
}

impl WeightRef<'_> {
    /// N, the output features.
    pub fn rows(&self) -> usize {
        match self {
            WeightRef::F32(matrix) => matrix.rows,
            WeightRef::F16 { rows, .. } | WeightRef::Bf16 { rows, .. } => *rows,
            WeightRef::Nf4(matrix) => matrix.rows,
        }
    }

    /// K, the input features.
    pub fn cols(&self) -> usize {
        match self {
            WeightRef::F32(matrix) => matrix.cols,
            WeightRef::F16 { cols, .. } | WeightRef::Bf16 { cols, .. } => *cols,
            WeightRef::Nf4(matrix) => matrix.cols,
        }
    }

    /// One element.
    #[inline]
    pub fn at(&self, row: usize, col: usize) -> f32 {
        match self {
            WeightRef::F32(matrix) => matrix.data[row * matrix.stride + col],
            WeightRef::F16 { bits, cols, .. } => half::f16::from_bits(bits[row * cols + col]).to_f32(),
            WeightRef::Bf16 { bits, cols, .. } => f32::from_bits(u32::from(bits[row * cols + col]) << 16),
            WeightRef::Nf4(matrix) => matrix.value(row * matrix.cols + col),
        }
    }
}

/// How a product is written to its destination.
#[derive(Debug, Clone, Copy)]
pub struct Store {
    /// Factor of the product.
    pub alpha: f32,
    /// Add to what is there instead of overwriting it.
    pub accumulate: bool,
    /// Operand format.
    pub compute: Compute,
}

impl Store {
    /// `y = product`.
    pub fn set(compute: Compute) -> Store {
        Store { alpha: 1.0, accumulate: false, compute }
    }

    /// `y += product`.
    pub fn add(compute: Compute) -> Store {
        Store { alpha: 1.0, accumulate: true, compute }
    }

    /// The same with the product scaled.
    pub fn scaled(self, alpha: f32) -> Store {
        Store { alpha, ..self }
    }
}

/// `y[T,N] (+)= alpha * x[T,K] · w[N,K]ᵀ`.
pub fn matmul_nt(x: MatRef<'_>, w: WeightRef<'_>, y: MatMut<'_>, store: Store) {
    assert!(x.cols == w.cols() && y.rows == x.rows && y.cols == w.rows());
    let stride = y.stride;
    for t in 0..x.rows {
        for n in 0..w.rows() {
            let sum: f32 = (0..x.cols).map(|k| x.data[t * x.stride + k] * w.at(n, k)).sum();
            put(&mut y.data[t * stride + n], sum, store);
        }
    }
}

/// `dx[T,K] (+)= alpha * dy[T,N] · w[N,K]`.
pub fn matmul_nn(dy: MatRef<'_>, w: WeightRef<'_>, dx: MatMut<'_>, store: Store) {
    assert!(dy.cols == w.rows() && dx.rows == dy.rows && dx.cols == w.cols());
    let stride = dx.stride;
    for t in 0..dy.rows {
        for k in 0..w.cols() {
            let sum: f32 = (0..dy.cols).map(|n| dy.data[t * dy.stride + n] * w.at(n, k)).sum();
            put(&mut dx.data[t * stride + k], sum, store);
        }
    }
}

/// `c[M,N] (+)= alpha * a[T,M]ᵀ · b[T,N]`.
pub fn matmul_tn(a: MatRef<'_>, b: MatRef<'_>, c: MatMut<'_>, store: Store) {
    assert!(a.rows == b.rows && c.rows == a.cols && c.cols == b.cols);
    let stride = c.stride;
    for m in 0..a.cols {
        for n in 0..b.cols {
            let sum: f32 = (0..a.rows).map(|t| a.data[t * a.stride + m] * b.data[t * b.stride + n]).sum();
            put(&mut c.data[m * stride + n], sum, store);
        }
    }
}

fn put(target: &mut f32, sum: f32, store: Store) {
    let value = store.alpha * sum;
    *target = if store.accumulate { *target + value } else { value };
}
