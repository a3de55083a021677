//! The kernel of [`super::gemv_nf4`] with AVX2: values are looked up by their bytes ([`super::planes_avx2`]).
//!
//! The planes of some pieces are made first and kept in the L1 cache, from which loads bring them to both halves of a
//! register: the few units for shuffles are left to the lookups. Of each piece come first the high nibbles of its bytes,
//! the values of even index, then the low ones; x lies in the order in which the lookups find them.
//!
//! Invariant: the chains of a sum depend on the number of rows of x alone.

use super::avx2::Avx2;
use super::gemv_nf4::{Functions, Input, Rounding, PIECE};
use super::gemv_nf4_rows::{chains, total, AHEAD};
use super::kernel::{dot_row, Dot, Lanes, MOST_ROWS};
use super::planes_avx2::{Kept, Lookup, Planes, CODES};
use std::arch::x86_64::*;
use std::mem::MaybeUninit;

/// Pieces whose planes are made at a time: 4 KiB of planes of f32.
const AT_ONCE: usize = 64;

/// Vectors that a lookup gives.
const VECTORS: usize = CODES / 8;

/// Where the values of a piece come from, in the order of lookups.
static PLACES: [u8; PIECE] = {
    let mut places = [0; PIECE];
    let mut place = 0;
    while place < PIECE {
        let (nibble, vector, lane) = (place / CODES, place / 8 % VECTORS, place % 8);
        let byte = lane / 4 * 16 + vector / 2 * 8 + lane % 4 * 2 + vector % 2;
        places[place] = (2 * byte + nibble) as u8;
        place += 1;
    }
    places
};

/// Brings each 64 values to the order of lookups.
fn order(from: &[f32], to: &mut [f32]) {
    for (from, to) in from.as_chunks::<PIECE>().0.iter().zip(to.as_chunks_mut::<PIECE>().0) {
        for (to, &place) in to.iter_mut().zip(&PLACES) {
            *to = from[usize::from(place)];
        }
    }
}

/// Rows of codes times `T` rows of x.
///
/// # Safety
/// As [`super::gemv_nf4::RowsFn`]; AVX2, FMA and F16C are available.
#[inline(always)]
unsafe fn rows<P: Lookup, const T: usize>(
    codes: *const u8,
    scales: &[f32],
    rounding: Rounding,
    dot: &Dot,
    sums: &mut [[f32; MOST_ROWS]],
) {
    let pieces = scales.len() / sums.len().max(1);
    let mut kept = [MaybeUninit::<Kept>::uninit(); 2 * AT_ONCE];
    let kept: *mut Kept = kept.as_mut_ptr().cast();
    // Pieces of all rows with planes.
    let (mut first, mut end) = (0, 0);
    for (row, sums) in sums.iter_mut().enumerate() {
        // SAFETY: the caller vouches for a piece of codes for each scale, and for `pieces` pieces of each row of x; planes
        // are made for `first..end`, at most AT_ONCE.
        unsafe {
            let mut parts = [[Avx2::zero(); 4]; T];
            let mut piece = 0;
            while piece < pieces {
                let at = row * pieces + piece;
                if at == end {
                    (first, end) = (at, scales.len().min(at + AT_ONCE));
                    for (i, &scale) in scales[first..end].iter().enumerate() {
                        P::make(scale, rounding, kept.add(i * P::KEPT));
                    }
                }
                let until = pieces.min(piece + end - at);
                while piece < until {
                    let at = row * pieces + piece;
                    let planes = P::load(kept.add((at - first) * P::KEPT));
                    let x = dot.b.add(piece * PIECE);
                    multiply(planes, codes.add(at * PIECE / 2), (x, dot.b_row), &mut parts);
                    piece += 1;
                }
            }
            for (sum, &parts) in sums.iter_mut().zip(&parts) {
                *sum = total::<Avx2>(parts, T);
            }
        }
    }
}

/// Adds the products of a piece with rows of x, so many words apart.
///
/// # Safety
/// The piece is readable, and 64 words of each row of x; AVX2 and FMA are available.
#[inline(always)]
unsafe fn multiply<P: Lookup, const T: usize>(
    planes: P,
    piece: *const u8,
    (x, x_row): (*const f32, usize),
    parts: &mut [[__m256; 4]; T],
) {
    // SAFETY: by contract; a prefetch never faults.
    unsafe {
        _mm_prefetch::<_MM_HINT_T0>(piece.wrapping_add(AHEAD).cast());
        let bytes = _mm256_loadu_si256(piece.cast());
        let low = _mm256_set1_epi8(15);
        let codes = [_mm256_and_si256(_mm256_srli_epi16::<4>(bytes), low), _mm256_and_si256(bytes, low)];
        for (nibble, codes) in codes.into_iter().enumerate() {
            let values = planes.look_up(codes);
            for (t, parts) in parts.iter_mut().enumerate() {
                for (vector, value) in values.into_iter().enumerate() {
                    let x = Avx2::load(x.add(t * x_row + nibble * CODES + vector * 8));
                    let part = &mut parts[vector % chains(T)];
                    *part = Avx2::multiply_add(value, x, *part);
                }
            }
        }
    }
}

/// # Safety
/// As [`super::gemv_nf4::RowsFn`]; AVX2, FMA and F16C are available.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn products<const T: usize>(
    codes: *const u8,
    scales: &[f32],
    rounding: Rounding,
    dot: &Dot,
    sums: &mut [[f32; MOST_ROWS]],
) {
    // SAFETY: passed on.
    unsafe {
        match rounding.is_bf16() {
            true => rows::<Planes<2>, T>(codes, scales, rounding, dot, sums),
            false => rows::<Planes<4>, T>(codes, scales, rounding, dot, sums),
        }
    }
}

/// How x lies.
pub(super) const INPUT: Input = Input::Ordered(order);

/// f32 words with AVX2.
pub(super) static AVX2: Functions = Functions { rows: &dot_row!(products), input: INPUT, suits: |_| true };
