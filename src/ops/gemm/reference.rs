//! The truth that the kernels are tested against: three loops, accumulated in f64.
//!
//! Operands of [`Compute::Bf16`] are rounded to bf16 (nearest even) first, so that what remains is the error of the
//! accumulation.

use super::{Store, WeightRef};
use crate::device::Compute;
use crate::ops::matrix::{MatMut, MatRef};

fn operand(value: f32, compute: Compute) -> f64 {
    f64::from(match compute {
        Compute::F32 => value,
        Compute::Bf16 => half::bf16::from_f32(value).to_f32(),
    })
}

fn put(target: &mut f32, sum: f64, store: Store) {
    let value = f64::from(store.alpha) * sum;
    *target = if store.accumulate { (f64::from(*target) + value) as f32 } else { value as f32 };
}

/// `y[T,N] (+)= alpha * x[T,K] · w[N,K]ᵀ`.
pub fn matmul_nt(x: MatRef<'_>, w: WeightRef<'_>, y: MatMut<'_>, store: Store) {
    for t in 0..x.rows {
        for n in 0..w.rows() {
            let product = |k| operand(x.data[t * x.stride + k], store.compute) * operand(w.at(n, k), store.compute);
            put(&mut y.data[t * y.stride + n], (0..x.cols).map(product).sum(), store);
        }
    }
}

/// `dx[T,K] (+)= alpha * dy[T,N] · w[N,K]`.
pub fn matmul_nn(dy: MatRef<'_>, w: WeightRef<'_>, dx: MatMut<'_>, store: Store) {
    for t in 0..dy.rows {
        for k in 0..w.cols() {
            let product = |n| operand(dy.data[t * dy.stride + n], store.compute) * operand(w.at(n, k), store.compute);
            put(&mut dx.data[t * dx.stride + k], (0..dy.cols).map(product).sum(), store);
        }
    }
}

/// `c[M,N] (+)= alpha * a[T,M]ᵀ · b[T,N]`.
pub fn matmul_tn(a: MatRef<'_>, b: MatRef<'_>, c: MatMut<'_>, store: Store) {
    for m in 0..a.cols {
        for n in 0..b.cols {
            let product =
                |t| operand(a.data[t * a.stride + m], store.compute) * operand(b.data[t * b.stride + n], store.compute);
            put(&mut c.data[m * c.stride + n], (0..a.rows).map(product).sum(), store);
        }
    }
}
