//! Products with frozen NF4 weights in 16-bit fixed point: where operands are to be bf16 and the path has no instructions for
//! it, that is nearer to the values than bf16, and faster. ([`super::fixed_avx2`] has the formulas.)

use super::WeightRef;
#[cfg(target_arch = "x86_64")]
use super::{fixed_avx2, fixed_avx2_nn};
use crate::device::{cpu_path, Compute, CpuPath};
use crate::ops::matrix::{MatMut, MatRef};
use crate::quant::Nf4Matrix;

/// What an adapter adds to such a product, in f32: `u [T,R]` times its second factor.
#[derive(Clone, Copy)]
pub(crate) struct LowRank<'a> {
    /// `u [T,R]`.
    pub hidden: MatRef<'a>,
    /// Forward `b [N,R]`, of which the transpose is meant; backward `a [R,K]`.
    pub factor: MatRef<'a>,
}

impl LowRank<'_> {
    fn check(&self, rows: usize) {
        assert!(self.hidden.rows == rows);
        WeightRef::F32(self.hidden).check();
        WeightRef::F32(self.factor).check();
    }
}

/// Weights that are multiplied so.
pub(crate) struct FixedPoint<'w>(Vec<&'w Nf4Matrix>);

impl<'w> FixedPoint<'w> {
    /// If products of `rows` rows with all of these weights are computed so: a function of shapes, settings and machine.
    pub fn of(rows: usize, weights: impl Iterator<Item = WeightRef<'w>>, compute: Compute) -> Option<FixedPoint<'w>> {
        FixedPoint::on(cpu_path(), rows, weights, compute)
    }

    /// [`FixedPoint::of`] on one kernel path.
    pub fn on(
        path: CpuPath,
        rows: usize,
        mut weights: impl Iterator<Item = WeightRef<'w>>,
        compute: Compute,
    ) -> Option<FixedPoint<'w>> {
        let mut matrices = Vec::new();
        let all = weights.all(|weight| {
            let fits = matches!(weight, WeightRef::Nf4(matrix) if is_fixed(path, rows, matrix, compute));
            if let (true, WeightRef::Nf4(matrix)) = (fits, weight) {
                weight.check();
                matrices.push(matrix);
            }
            fits
        });
        (all && !matrices.is_empty()).then_some(FixedPoint(matrices))
    }

    /// `y[T,N] = x[T,K] · w[N,K]ᵀ` with each of the weights, plus `u · bᵀ` where there is an adapter.
    pub fn forward(&self, x: MatRef<'_>, outputs: Vec<(MatMut<'_>, Option<LowRank<'_>>)>) {
        assert!(outputs.len() == self.0.len());
        for (matrix, (y, low)) in self.0.iter().zip(&outputs) {
            assert!(x.cols == matrix.cols && y.rows == x.rows && y.cols == matrix.rows);
            super::check(x, y);
            if let Some(low) = low {
                low.check(x.rows);
                assert!(low.factor.rows == y.cols && low.factor.cols == low.hidden.cols);
            }
        }
        #[cfg(target_arch = "x86_64")]
        fixed_avx2::matmul_nt(x, &self.0, outputs);
    }

    /// `dx[T,K] (+)= Σ dy[T,N] · w[N,K]` over the weights, plus `Σ u · a` over the adapters.
    pub fn backward(&self, dys: &[MatRef<'_>], lows: &[LowRank<'_>], dx: MatMut<'_>, accumulate: bool) {
        assert!(dys.len() == self.0.len());
        for low in lows {
            low.check(dx.rows);
            assert!(low.factor.rows == low.hidden.cols && low.factor.cols == dx.cols);
        }
        for (matrix, dy) in self.0.iter().zip(dys) {
            assert!(dy.cols == matrix.rows && dx.rows == dy.rows && dx.cols == matrix.cols);
            super::check(*dy, &dx);
        }
        #[cfg(target_arch = "x86_64")]
        {
            let terms: Vec<_> = dys.iter().copied().zip(self.0.iter().copied()).collect();
            fixed_avx2_nn::matmul_nn(&terms, lows, dx, accumulate);
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = accumulate;
    }
}

/// Whether a path multiplies these codes so. (No processor but those of x86-64 has such a path.)
fn is_fixed(path: CpuPath, rows: usize, matrix: &Nf4Matrix, compute: Compute) -> bool {
    #[cfg(target_arch = "x86_64")]
    return path == CpuPath::Avx2 && compute == Compute::Bf16 && rows > 1 && fixed_avx2::applies(matrix);
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = (path, rows, matrix, compute);
        false
    }
}
