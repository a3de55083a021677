//! The 16 values of an NF4 block as byte planes, in which AVX2 looks 32 codes up at a time.
//!
//! Plane i holds byte i of each value, by code. A `vpshufb` finds a byte of 32 codes, where a permutation finds eight f32 in
//! half a table; values come from their bytes by interleaving. Only the upper two bytes of bf16 values are not zero, so two
//! planes do. (Lookups in registers by bytes: André, Kermarrec, Le Scouarnec 2015.)
//!
//! Invariant: values are `code · scale`, rounded as [`Rounding`] says.

use super::avx2::{round_to_upper_half, rounded};
use super::gemv_nf4::Rounding;
use super::pack_nf4_bf16::before_bf16;
use crate::quant::nf4::NF4_CODE;
use std::arch::x86_64::*;

/// Codes of a lookup.
pub(super) const CODES: usize = 32;

/// `N` planes, the most significant last, each in both halves: four of f32, the upper two of bf16.
#[derive(Clone, Copy)]
pub(super) struct Planes<const N: usize>([__m256i; N]);

/// Planes as they are kept: two side by side.
pub(super) type Kept = __m256i;

/// What the kernels need of planes.
pub(super) trait Lookup: Copy {
    /// Of [`Kept`], how many.
    const KEPT: usize;

    /// The planes of a block.
    ///
    /// # Safety
    /// AVX2 and F16C are available; [`Lookup::KEPT`] are writable.
    unsafe fn make(scale: f32, rounding: Rounding, to: *mut Kept);

    /// What was made.
    ///
    /// # Safety
    /// AVX2 is available; [`Lookup::KEPT`] are readable.
    unsafe fn load(from: *const Kept) -> Self;

    /// The values of 32 codes, by their bytes' places in each half: 0, 2, 4, 6 in the first vector, 1, 3, 5, 7 in the
    /// second, then 8 to 15 likewise. The upper four bits of each byte are zero.
    ///
    /// # Safety
    /// AVX2 is available.
    unsafe fn look_up(self, codes: __m256i) -> [__m256; 4];
}

/// Values of four codes from `first` on, and in the upper half of four from `first + 8` on.
#[inline]
#[target_feature(enable = "avx2")]
fn eight(first: usize, scale: f32) -> __m256 {
    let (low, high) = (NF4_CODE[first..].as_ptr(), NF4_CODE[first + 8..].as_ptr());
    // SAFETY: NF4_CODE has 16 values, and `first` is 0 or 4.
    let values = unsafe { _mm256_loadu2_m128(high, low) };
    _mm256_mul_ps(values, _mm256_set1_ps(scale))
}

/// The same 16 places in both halves.
#[inline]
#[target_feature(enable = "avx2")]
fn places(bytes: [i8; 16]) -> __m256i {
    // SAFETY: 16 bytes.
    _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) })
}

/// Two planes side by side from double words of four codes each: of one plane in the lower double words of a half, of the
/// other in the upper, codes 0 and 4 in the lower half, 8 and 12 in the upper.
#[inline]
#[target_feature(enable = "avx2")]
fn side_by_side(words: __m256i) -> Kept {
    _mm256_permute4x64_epi64::<0b11_01_10_00>(words)
}

/// Two planes, each in both halves.
///
/// # Safety
/// AVX2 is available, and the planes are readable.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn in_both_halves(from: *const Kept) -> [__m256i; 2] {
    let from = from.cast::<__m128i>();
    // SAFETY: by contract.
    unsafe { [_mm256_broadcastsi128_si256(from.read()), _mm256_broadcastsi128_si256(from.add(1).read())] }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn planes_of_f32(scale: f32, rounding: Rounding) -> [Kept; 2] {
    let by_plane = places([0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15]);
    let first = _mm256_castps_si256(rounded(eight(0, scale), rounding.dtype));
    let second = _mm256_castps_si256(rounded(eight(4, scale), rounding.dtype));
    let (first, second) = (_mm256_shuffle_epi8(first, by_plane), _mm256_shuffle_epi8(second, by_plane));
    [side_by_side(_mm256_unpacklo_epi32(first, second)), side_by_side(_mm256_unpackhi_epi32(first, second))]
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn planes_of_bf16(scale: f32, rounding: Rounding) -> Kept {
    let before = before_bf16(rounding.dtype);
    let first = round_to_upper_half(rounded(eight(0, scale), before));
    let second = round_to_upper_half(rounded(eight(4, scale), before));
    let first = _mm256_shuffle_epi8(first, places([2, 6, 10, 14, -1, -1, -1, -1, 3, 7, 11, 15, -1, -1, -1, -1]));
    let second = _mm256_shuffle_epi8(second, places([-1, -1, -1, -1, 2, 6, 10, 14, -1, -1, -1, -1, 3, 7, 11, 15]));
    side_by_side(_mm256_or_si256(first, second))
}

/// f32 of even and of odd index from their lower and upper halves. Shifts, since there are few units for shuffles.
#[inline]
#[target_feature(enable = "avx2")]
fn whole(lower: __m256i, upper: __m256i) -> [__m256; 2] {
    let even = _mm256_blend_epi16::<0b1010_1010>(lower, _mm256_slli_epi32::<16>(upper));
    let odd = _mm256_blend_epi16::<0b1010_1010>(_mm256_srli_epi32::<16>(lower), upper);
    [_mm256_castsi256_ps(even), _mm256_castsi256_ps(odd)]
}

/// f32 of even and of odd index from bf16.
#[inline]
#[target_feature(enable = "avx2")]
fn widened(bits: __m256i) -> [__m256; 2] {
    let upper = _mm256_set1_epi32(0xffff_0000_u32 as i32);
    [_mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits)), _mm256_castsi256_ps(_mm256_and_si256(bits, upper))]
}

impl Lookup for Planes<4> {
    const KEPT: usize = 2;

    #[inline(always)]
    unsafe fn make(scale: f32, rounding: Rounding, to: *mut Kept) {
        // SAFETY: by contract.
        unsafe { to.cast::<[Kept; 2]>().write(planes_of_f32(scale, rounding)) }
    }

    #[inline(always)]
    unsafe fn load(from: *const Kept) -> Self {
        // SAFETY: by contract.
        let ([a, b], [c, d]) = unsafe { (in_both_halves(from), in_both_halves(from.add(1))) };
        Planes([a, b, c, d])
    }

    #[inline(always)]
    unsafe fn look_up(self, codes: __m256i) -> [__m256; 4] {
        let [a, b, c, d] = self.0;
        // SAFETY: AVX2 by contract.
        unsafe {
            let (a, b) = (_mm256_shuffle_epi8(a, codes), _mm256_shuffle_epi8(b, codes));
            let (c, d) = (_mm256_shuffle_epi8(c, codes), _mm256_shuffle_epi8(d, codes));
            let [even, odd] = whole(_mm256_unpacklo_epi8(a, b), _mm256_unpacklo_epi8(c, d));
            let [later_even, later_odd] = whole(_mm256_unpackhi_epi8(a, b), _mm256_unpackhi_epi8(c, d));
            [even, odd, later_even, later_odd]
        }
    }
}

impl Lookup for Planes<2> {
    const KEPT: usize = 1;

    #[inline(always)]
    unsafe fn make(scale: f32, rounding: Rounding, to: *mut Kept) {
        // SAFETY: by contract.
        unsafe { to.write(planes_of_bf16(scale, rounding)) }
    }

    #[inline(always)]
    unsafe fn load(from: *const Kept) -> Self {
        // SAFETY: by contract.
        Planes(unsafe { in_both_halves(from) })
    }

    #[inline(always)]
    unsafe fn look_up(self, codes: __m256i) -> [__m256; 4] {
        let [c, d] = self.0;
        // SAFETY: AVX2 by contract.
        unsafe {
            let (c, d) = (_mm256_shuffle_epi8(c, codes), _mm256_shuffle_epi8(d, codes));
            let [even, odd] = widened(_mm256_unpacklo_epi8(c, d));
            let [later_even, later_odd] = widened(_mm256_unpackhi_epi8(c, d));
            [even, odd, later_even, later_odd]
        }
    }
}
