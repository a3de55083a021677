//! Matrix products of the step, over dense and NF4 weights.
//!
//! | function | computes | where |
//! |---|---|---|
//! | [`matmul_nt`] | `y[T,N] (+)= alpha * x[T,K] · w[N,K]ᵀ` | forward of a linear |
//! | [`matmul_nn`] | `dx[T,K] (+)= alpha * dy[T,N] · w[N,K]` | its input gradient |
//! | [`matmul_tn`] | `c[M,N] (+)= alpha * a[T,M]ᵀ · b[T,N]` | weight gradients |
//!
//! Results do not depend on the number of threads: work is split over output tiles, never over the reduction.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx512bf16;
pub mod batch;
mod coarse;
mod driver;
mod fixed;
#[cfg(target_arch = "x86_64")]
mod fixed_avx2;
#[cfg(target_arch = "x86_64")]
mod fixed_avx2_low;
#[cfg(target_arch = "x86_64")]
mod fixed_avx2_nn;
#[cfg(test)]
mod fixed_tests;
mod gemv;
mod gemv_half;
mod gemv_nf4;
#[cfg(target_arch = "x86_64")]
mod gemv_nf4_avx2;
#[cfg(target_arch = "x86_64")]
mod gemv_nf4_fixed;
#[cfg(target_arch = "x86_64")]
mod gemv_nf4_rows;
#[cfg(target_arch = "x86_64")]
mod gemv_nf4_wide;
#[cfg(target_arch = "x86_64")]
mod gemv_nf4_x86;
mod gemv_row;
mod kernel;
#[cfg(target_arch = "aarch64")]
mod neon;
mod operand;
mod pack_dense;
#[cfg(target_arch = "x86_64")]
mod pack_dense_avx512;
mod pack_nf4;
#[cfg(target_arch = "x86_64")]
mod pack_nf4_avx512;
#[cfg(target_arch = "x86_64")]
mod pack_nf4_bf16;
mod panel;
pub mod peak;
mod plan;
#[cfg(target_arch = "x86_64")]
mod planes_avx2;
mod portable;
mod precise;
#[cfg(test)]
mod reference;
mod row_tables;
#[cfg(target_arch = "x86_64")]
mod row_tables_avx2;
mod scratch;
#[cfg(test)]
mod tests;
mod turned;

use super::matrix::{MatMut, MatRef};
use crate::device::{cpu_path, Compute, CpuPath};
use crate::quant::{Nf4Matrix, Scales};
pub use coarse::{CoarseInput, CoarseMatrix};
use driver::Product;
pub(crate) use fixed::{FixedPoint, LowRank};
pub use gemv_row::{RowInput, RowProduct};
use kernel::Kernels;
use operand::Left;
use pack_dense::Source;
pub use row_tables::RowTables;

/// Products of such words on tile registers, for others than the driver.
#[cfg(target_arch = "x86_64")]
pub(in crate::ops) mod tiles {
    pub(in crate::ops) use super::amx::{blocks, Destination, Words, SUMS};
    pub(in crate::ops) use super::avx512::transpose;
}

/// How f32 registers become words of two bf16, for other products of such words.
#[cfg(target_arch = "x86_64")]
pub(in crate::ops) mod bf16_words {
    pub(in crate::ops) use super::avx512::first_lanes;
    pub(in crate::ops) use super::avx512bf16::{interleave, narrow};
}

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

    /// Stops a weight whose memory is shorter than its shape.
    fn check(&self) {
        match self {
            WeightRef::F32(view) => {
                assert!(view.stride >= view.cols || view.rows <= 1, "rows overlap");
                let needed = view.rows.saturating_sub(1) * view.stride + view.cols;
                assert!(view.rows == 0 || view.cols == 0 || view.data.len() >= needed);
            }
            WeightRef::F16 { bits, rows, cols } | WeightRef::Bf16 { bits, rows, cols } => {
                assert!(bits.len() >= rows * cols);
            }
            WeightRef::Nf4(matrix) => {
                let values = matrix.rows * matrix.cols;
                let blocks = values.div_ceil(matrix.block);
                assert!(matrix.block.is_power_of_two() && matrix.block >= 32);
                assert!(matrix.codes.len() >= values.div_ceil(2));
                assert!(match &matrix.scales {
                    Scales::Plain(scales) => scales.as_f32().len() >= blocks,
                    Scales::Double { codes, .. } => codes.len() >= blocks,
                });
            }
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
    matmul_nt_on(cpu_path(), x, w, y, store);
}

/// `y[T,N] = x[T,K] · w[N,K]ᵀ` for a frozen weight: where a path has no instructions for bf16, in fixed point or f32.
pub fn forward_nt(x: MatRef<'_>, w: WeightRef<'_>, y: MatMut<'_>, compute: Compute) {
    forward_nt_on(cpu_path(), x, w, y, compute);
}

/// `dx[T,K] (+)= dy[T,N] · w[N,K]` for a frozen weight, as [`forward_nt`].
pub fn backward_nn(dy: MatRef<'_>, w: WeightRef<'_>, dx: MatMut<'_>, accumulate: bool, compute: Compute) {
    backward_nn_on(cpu_path(), dy, w, dx, accumulate, compute);
}

/// [`forward_nt`] on one kernel path, which the machine must have.
pub(crate) fn forward_nt_on(path: CpuPath, x: MatRef<'_>, w: WeightRef<'_>, y: MatMut<'_>, compute: Compute) {
    match FixedPoint::on(path, x.rows, [w].into_iter(), compute) {
        Some(fixed) => fixed.forward(x, vec![(y, None)]),
        None => matmul_nt_on(path, x, w, y, Store::set(dense_format_on(path, compute))),
    }
}

/// [`backward_nn`] on one kernel path, which the machine must have.
pub(crate) fn backward_nn_on(
    path: CpuPath,
    dy: MatRef<'_>,
    w: WeightRef<'_>,
    dx: MatMut<'_>,
    accumulate: bool,
    compute: Compute,
) {
    match FixedPoint::on(path, dy.rows, [w].into_iter(), compute) {
        Some(fixed) => fixed.backward(&[dy], &[], dx, accumulate),
        None => matmul_nn_on(path, dy, w, dx, Store { accumulate, ..Store::set(dense_format_on(path, compute)) }),
    }
}

/// `dx[T,K] (+)= alpha * dy[T,N] · w[N,K]`.
pub fn matmul_nn(dy: MatRef<'_>, w: WeightRef<'_>, dx: MatMut<'_>, store: Store) {
    matmul_nn_on(cpu_path(), dy, w, dx, store);
}

/// `c[M,N] (+)= alpha * a[T,M]ᵀ · b[T,N]`.
pub fn matmul_tn(a: MatRef<'_>, b: MatRef<'_>, c: MatMut<'_>, store: Store) {
    matmul_tn_on(cpu_path(), a, b, c, store);
}

/// [`matmul_nt`] on one kernel path, which the machine must have.
pub(crate) fn matmul_nt_on(path: CpuPath, x: MatRef<'_>, w: WeightRef<'_>, y: MatMut<'_>, store: Store) {
    assert!(x.cols == w.cols() && y.rows == x.rows && y.cols == w.rows());
    check(x, &y);
    w.check();
    let source = Source { weight: w, transposed: true, compute: store.compute, path };
    if x.rows > 1 && precise::applies(x.rows, x.cols, w.rows(), store) {
        return precise::matmul_nt(x, source, y, store);
    }
    if x.rows <= gemv::MOST_INPUTS {
        return gemv::run(x, source, y, store);
    }
    let left = Left { matrix: x, transposed: false, compute: store.compute, path };
    driver::run(Product { left, source, target: y, store });
}

/// [`matmul_nn`] on one kernel path, which the machine must have.
pub(crate) fn matmul_nn_on(path: CpuPath, dy: MatRef<'_>, w: WeightRef<'_>, dx: MatMut<'_>, store: Store) {
    assert!(dy.cols == w.rows() && dx.rows == dy.rows && dx.cols == w.cols());
    check(dy, &dx);
    w.check();
    let source = Source { weight: w, transposed: false, compute: store.compute, path };
    if dx.cols > 0 && precise::applies(dy.rows, dy.cols, w.cols(), store) {
        return precise::matmul_nn(dy, source, dx, store);
    }
    let left = Left { matrix: dy, transposed: false, compute: store.compute, path };
    driver::run(Product { left, source, target: dx, store });
}

/// [`matmul_tn`] on one kernel path, which the machine must have.
pub(crate) fn matmul_tn_on(path: CpuPath, a: MatRef<'_>, b: MatRef<'_>, c: MatMut<'_>, store: Store) {
    assert!(a.rows == b.rows && c.rows == a.cols && c.cols == b.cols);
    check(a, &c);
    WeightRef::F32(b).check();
    if c.cols > 0 && precise::applies(a.cols, a.rows, b.cols, store) {
        return precise::matmul_tn(path, a, b, c, store);
    }
    if turned::is_better(a, b) {
        return turned::matmul_tn(path, a, b, c, store);
    }
    let left = Left { matrix: a, transposed: true, compute: store.compute, path };
    let source = Source { weight: WeightRef::F32(b), transposed: false, compute: store.compute, path };
    driver::run(Product { left, source, target: c, store });
}

/// Whether a product of `rows` rows runs on the driver: neither a small one in f64 nor one of few rows.
pub(crate) fn is_large(rows: usize, depth: usize, cols: usize, compute: Compute) -> bool {
    rows > gemv::MOST_INPUTS && !precise::applies(rows, depth, cols, Store::set(compute))
}

/// Operand format of products with dense operands where `compute` is asked for: rounding them to bf16 for a path without
/// instructions for it would cost time and digits and gain nothing.
pub(crate) fn dense_format(compute: Compute) -> Compute {
    dense_format_on(cpu_path(), compute)
}

fn dense_format_on(path: CpuPath, compute: Compute) -> Compute {
    match Kernels::of(path, compute).pairs {
        Some(_) => compute,
        None => Compute::F32,
    }
}

/// Operand format for a product of few rows with wide f32 operands where `compute` is asked for: making bf16 of the
/// operands takes as long as multiplying them as they are, which is more exact, unless the machine has tile registers.
pub(crate) fn format_of_narrow(compute: Compute) -> Compute {
    match cpu_path() {
        CpuPath::Amx => compute,
        _ => Compute::F32,
    }
}

/// Bytes of working memory that the products hold: panels of each thread, and the left operand of the largest product
/// so far if it had to be converted (bf16) or transposed.
pub fn scratch_bytes() -> usize {
    scratch::bytes()
}

/// The kernels work on pointers: a view that promises more than its slice holds must stop here.
fn check(input: MatRef<'_>, output: &MatMut<'_>) {
    for view in [input, output.as_ref()] {
        assert!(view.stride >= view.cols || view.rows <= 1, "rows overlap");
        assert!(view.rows == 0 || view.cols == 0 || view.data.len() >= (view.rows - 1) * view.stride + view.cols);
    }
}
