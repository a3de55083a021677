//! [`Vector`] for words of two bf16: AVX-512, with `vdpbf16ps` as the multiply-add.
//!
//! `load`, `store` and `splat` move 32-bit words, and sums are f32; so a product written for f32 multiplies words whose
//! halves are neighbours along the reduction. Everything but `mul_add` is that of f32.

use super::{Kernel, Vector};
use std::arch::x86_64::*;

/// Sixteen words, or sixteen f32 sums.
#[derive(Clone, Copy)]
pub(super) struct Pairs(__m512);

/// Runs a kernel in a function that has AVX-512 BF16.
///
/// # Safety
/// The CPU has the features listed.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma")]
pub(super) unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the caller vouches for the CPU.
    unsafe { kernel.run::<Pairs>() }
}

/// Methods that do to the register what those of f32 do.
macro_rules! as_f32 {
    ($(fn $name:ident(self $(, $other:ident: Self)*) -> Self;)*) => {
        $(
            #[inline(always)]
            unsafe fn $name(self $(, $other: Self)*) -> Self {
                // SAFETY: the trait's contract is the same.
                Pairs(unsafe { Vector::$name(self.0 $(, $other.0)*) })
            }
        )*
    };
}

impl Vector for Pairs {
    const LANES: usize = <__m512 as Vector>::LANES;
    const TILE_ROWS: usize = <__m512 as Vector>::TILE_ROWS;
    const TILE_COLUMNS: usize = <__m512 as Vector>::TILE_COLUMNS;

    as_f32! {
        fn add(self, other: Self) -> Self;
        fn sub(self, other: Self) -> Self;
        fn mul(self, other: Self) -> Self;
        fn max(self, other: Self) -> Self;
        fn min(self, other: Self) -> Self;
        fn round(self) -> Self;
        fn scale_by_power(self, power: Self) -> Self;
        fn select_less(self, bound: Self, yes: Self, no: Self) -> Self;
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: passed on.
        Pairs(unsafe { __m512::load(from) })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: passed on.
        unsafe { self.0.store(to) }
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: passed on.
        Pairs(unsafe { __m512::splat(value) })
    }
    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
        // SAFETY: AVX-512 BF16 by the trait's contract; all types are 512 plain bits.
        Pairs(unsafe {
            _mm512_dpbf16_ps(
                addend.0,
                std::mem::transmute::<__m512, __m512bh>(self.0),
                std::mem::transmute::<__m512, __m512bh>(factor.0),
            )
        })
    }
    #[inline(always)]
    unsafe fn transpose(rows: &mut [Self; 16]) {
        let mut words = rows.map(|row| row.0);
        // SAFETY: passed on.
        unsafe { <__m512 as Vector>::transpose(&mut words) };
        *rows = words.map(Pairs);
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        // SAFETY: passed on.
        unsafe { self.0.sum() }
    }
}
