//! Vectorised exp, shared by softmax, cross-entropy and SiLU.
//!
//! exp(x) = 2ⁿ · exp(r) with n = round(x / ln 2) and |r| ≤ ln 2 / 2; ln 2 is subtracted in two parts (the first has ten
//! significant bits, so n times it is exact), exp(r) is the degree-7 minimax polynomial of Cephes `expf`.
//! Within 2 ulp of the true value over the whole range, subnormal results included; exp(-∞) = 0, exp(∞) = ∞, NaN stays
//! NaN, exp(0) = 1 exactly. The paths may differ in the last bit.

use super::simd::{dispatch, Kernel, Vector};
use crate::device::CpuPath;

const LOG2_E: f32 = std::f32::consts::LOG2_E;
const LN2_HIGH: f32 = 0.693_359_4;
const LN2_LOW: f32 = -2.121_944_4e-4;
/// Coefficients of r⁷ … r² of the polynomial.
#[allow(clippy::excessive_precision)] // As published.
const COEFFICIENTS: [f32; 6] = [
    1.987_569_150_0e-4,
    1.398_199_950_7e-3,
    8.333_451_907_3e-3,
    4.166_579_589_4e-2,
    1.666_666_545_9e-1,
    5.000_000_120_1e-1,
];

/// exp of every lane.
///
/// # Safety
/// The contract of [`Vector`].
#[inline(always)]
pub(crate) unsafe fn exp<V: Vector>(x: V) -> V {
    // SAFETY: the caller's contract.
    unsafe {
        // Beyond these bounds the result is 0 or infinity; the constants come first so that NaN passes.
        let x = V::splat(89.0).min(V::splat(-105.0).max(x));
        let n = x.mul(V::splat(LOG2_E)).round();
        let r = n.mul_add(V::splat(-LN2_HIGH), x);
        let r = n.mul_add(V::splat(-LN2_LOW), r);
        let mut polynomial = V::splat(COEFFICIENTS[0]);
        for &coefficient in &COEFFICIENTS[1..] {
            polynomial = polynomial.mul_add(r, V::splat(coefficient));
        }
        let value = polynomial.mul_add(r.mul(r), r).add(V::splat(1.0));
        value.scale_by_power(n)
    }
}

struct ExpInPlace<'a>(&'a mut [f32]);

impl Kernel for ExpInPlace<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let mut chunks = self.0.chunks_exact_mut(V::LANES);
        for chunk in &mut chunks {
            // SAFETY: the chunk has LANES values; the CPU is the caller's contract.
            unsafe { exp(V::load(chunk.as_ptr())).store(chunk.as_mut_ptr()) };
        }
        let rest = chunks.into_remainder();
        let mut padded = [0.0f32; 16];
        padded[..rest.len()].copy_from_slice(rest);
        // SAFETY: sixteen values are at least LANES.
        unsafe { exp(V::load(padded.as_ptr())).store(padded.as_mut_ptr()) };
        rest.copy_from_slice(&padded[..rest.len()]);
    }
}

/// `values[i] = exp(values[i])`, each value's result independent of its place.
#[allow(dead_code)] // Its callers are other ops.
pub(crate) fn exp_in_place(path: CpuPath, values: &mut [f32]) {
    dispatch(path, ExpInPlace(values));
}
