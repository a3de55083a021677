//! Vectorised exp, shared by softmax, cross-entropy and SiLU.
//!
//! exp(x) = 2ⁿ · exp(r) with n = round(x / ln 2) and |r| ≤ ln 2 / 2; ln 2 is subtracted in two parts (the first has ten
//! significant bits, so n times it is exact). exp(r) = 1 + r Q(r), Q of degree 5 through (exp(r) - 1) / r at the Chebyshev
//! nodes; relative error of the polynomial 1.1e-8, a sixth of half an ulp.
//! Within 1.2 ulp of the true value over the whole range, subnormal results included; exp(-∞) = 0, exp(∞) = ∞, NaN stays
//! NaN, exp(0) = 1 exactly. The paths may differ in the last bit.

use super::simd::Vector;
#[cfg(test)]
use super::simd::{dispatch, Kernel};
#[cfg(test)]
use crate::device::CpuPath;

const LOG2_E: f32 = std::f32::consts::LOG2_E;
const LN2_HIGH: f32 = 0.693_359_4;
const LN2_LOW: f32 = -2.121_944_4e-4;
/// Coefficients of r⁵ … r⁰ of Q.
const COEFFICIENTS: [f32; 6] = [1.393_368_6e-3, 8.369_184e-3, 4.166_646_3e-2, 1.666_650_5e-1, 0.5, 1.0];

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
        polynomial.mul_add(r, V::splat(1.0)).scale_by_power(n)
    }
}

#[cfg(test)]
struct ExpInPlace<'a>(&'a mut [f32]);

#[cfg(test)]
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
#[cfg(test)]
pub(crate) fn exp_in_place(path: CpuPath, values: &mut [f32]) {
    dispatch(path, ExpInPlace(values));
}
