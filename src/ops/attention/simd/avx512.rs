//! [`Vector`] on 512-bit AVX-512. Reference: Intel Intrinsics Guide.

use super::{Kernel, Vector};
use std::arch::x86_64::*;

/// Runs a kernel in a function that has AVX-512.
///
/// # Safety
/// The CPU has the features listed.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")]
pub(super) unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the caller vouches for the CPU.
    unsafe { kernel.run::<__m512>() }
}

// SAFETY (all blocks): the trait's contract gives the CPU features and valid pointers.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Vector for __m512 {
    const LANES: usize = 16;
    const TILE_ROWS: usize = 6;
    const TILE_COLUMNS: usize = 4;

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        unsafe { _mm512_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { _mm512_storeu_ps(to, self) }
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        unsafe { _mm512_set1_ps(value) }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        unsafe { _mm512_add_ps(self, other) }
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        unsafe { _mm512_sub_ps(self, other) }
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        unsafe { _mm512_mul_ps(self, other) }
    }
    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
        unsafe { _mm512_fmadd_ps(self, factor, addend) }
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        unsafe { _mm512_max_ps(self, other) }
    }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        unsafe { _mm512_min_ps(self, other) }
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self) }
    }
    #[inline(always)]
    unsafe fn scale_by_power(self, power: Self) -> Self {
        unsafe { _mm512_scalef_ps(self, power) }
    }
    #[inline(always)]
    unsafe fn select_less(self, bound: Self, yes: Self, no: Self) -> Self {
        unsafe { _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(self, bound), no, yes) }
    }
    #[inline(always)]
    unsafe fn transpose(rows: &mut [Self; 16]) {
        // Pairs of rows, then quads, then 128-bit quarters across rows four and eight apart.
        unsafe {
            let mut pairs = [_mm512_setzero_ps(); 16];
            for i in (0..16).step_by(2) {
                pairs[i] = _mm512_unpacklo_ps(rows[i], rows[i + 1]);
                pairs[i + 1] = _mm512_unpackhi_ps(rows[i], rows[i + 1]);
            }
            let mut quads = [_mm512_setzero_ps(); 16];
            for i in (0..16).step_by(4) {
                quads[i] = _mm512_shuffle_ps::<0x44>(pairs[i], pairs[i + 2]);
                quads[i + 1] = _mm512_shuffle_ps::<0xee>(pairs[i], pairs[i + 2]);
                quads[i + 2] = _mm512_shuffle_ps::<0x44>(pairs[i + 1], pairs[i + 3]);
                quads[i + 3] = _mm512_shuffle_ps::<0xee>(pairs[i + 1], pairs[i + 3]);
            }
            for i in 0..4 {
                let low_even = _mm512_shuffle_f32x4::<0x88>(quads[i], quads[i + 4]);
                let low_odd = _mm512_shuffle_f32x4::<0xdd>(quads[i], quads[i + 4]);
                let high_even = _mm512_shuffle_f32x4::<0x88>(quads[i + 8], quads[i + 12]);
                let high_odd = _mm512_shuffle_f32x4::<0xdd>(quads[i + 8], quads[i + 12]);
                rows[i] = _mm512_shuffle_f32x4::<0x88>(low_even, high_even);
                rows[i + 4] = _mm512_shuffle_f32x4::<0x88>(low_odd, high_odd);
                rows[i + 8] = _mm512_shuffle_f32x4::<0xdd>(low_even, high_even);
                rows[i + 12] = _mm512_shuffle_f32x4::<0xdd>(low_odd, high_odd);
            }
        }
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        unsafe { _mm512_reduce_add_ps(self) }
    }
}
