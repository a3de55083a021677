//! The products of words of two bf16 on AMX's tile registers, up to 32 rows and columns at a time.
//!
//! A left operand whose words do not lie along its rows is transposed first. Sums go on from what the result had before;
//! where that is to be scaled, it is added at the end, in registers.

use super::product::{Before, Left, Product, Size};
use crate::ops::gemm::tiles::{blocks, transpose, Destination, Words, SUMS};
use std::arch::x86_64::*;
use std::mem::MaybeUninit;

/// Rows and words of a left operand that is transposed; tiles of attention have no more.
const SIDE: usize = 64;

/// `c (+)= a · b`, for sizes that were checked, on a machine with AMX.
pub(super) fn product(product: Product<'_>) {
    let Size { rows, depth, .. } = product.size;
    let mut turned = MaybeUninit::<[f32; SIDE * SIDE]>::uninit();
    // SAFETY: this is called on machines with AMX only, with operands that hold all rows, depths and columns.
    unsafe {
        if product.a.step == 1 {
            let (a, a_row) = (product.a.data.as_ptr(), product.a.row);
            run(product, a, a_row);
        } else {
            assert!(product.a.row == 1 && rows <= SIDE && depth <= SIDE);
            turn(product.a, rows, depth, turned.as_mut_ptr().cast());
            run(product, turned.as_ptr().cast(), SIDE);
        }
    }
}

/// Words of one depth after the other, to rows of [`SIDE`] words.
///
/// # Safety
/// The target holds [`SIDE`] rows; AVX-512 is available.
unsafe fn turn(a: Left<'_>, rows: usize, depth: usize, to: *mut f32) {
    for first in (0..depth).step_by(16) {
        let count = (depth - first).min(16);
        let mut pointers = [std::ptr::null(); 16];
        for (i, pointer) in pointers[..count].iter_mut().enumerate() {
            *pointer = a.data[(first + i) * a.step..][..rows].as_ptr();
        }
        // SAFETY: each pointer has `rows` words behind it; the rest by contract.
        unsafe { transpose(&pointers[..count], rows, to.add(first), SIDE) };
    }
}

/// With rows of `a` so many words apart.
///
/// # Safety
/// As [`product`]; all rows and depths of `a` are readable.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
unsafe fn run(product: Product<'_>, a: *const f32, a_row: usize) {
    let Product { size: Size { rows, columns, depth }, b, c, .. } = product;
    for column in (0..columns).step_by(SUMS) {
        let count = (columns - column).min(SUMS);
        // SAFETY: the operands hold all rows, depths and columns, which are whole registers.
        unsafe {
            let b_start = b.data.as_ptr().add(column);
            let words = Words { a, a_row, a_step: 16, a_rows: 16 * a_row, b: b_start, b_depth: b.row, depth };
            let to = c.data.as_mut_ptr().add(column);
            let to = match c.before {
                Before::Drop => Destination::Memory { to, row: c.row, accumulate: false },
                Before::Keep => Destination::Memory { to, row: c.row, accumulate: true },
                Before::Scale(factors) => Destination::Function(|first: usize, sums: &[f32]| {
                    scale_and_add(to.add(first * c.row), (c.row, count), &factors[first..], sums);
                }),
            };
            blocks(&[words], (rows, count), to);
        }
    }
}

/// Adds rows of sums to what was there before, each row times its factor.
///
/// # Safety
/// The rows have so many columns, whole registers; AVX-512 is available.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
unsafe fn scale_and_add(to: *mut f32, (stride, columns): (usize, usize), factors: &[f32], sums: &[f32]) {
    for (row, (sums, &factor)) in sums.chunks_exact(SUMS).zip(factors).enumerate() {
        for column in (0..columns).step_by(16) {
            // SAFETY: by contract; a row of sums has as many columns.
            unsafe {
                let to = to.add(row * stride + column);
                let sum = _mm512_loadu_ps(sums[column..].as_ptr());
                _mm512_storeu_ps(to, _mm512_fmadd_ps(_mm512_set1_ps(factor), _mm512_loadu_ps(to), sum));
            }
        }
    }
}
