//! [`Vector`] in plain Rust: eight lanes as an array, which the compiler maps to whatever the target has.
//!
//! Invariant: products and sums are rounded separately, so the path gives the same bits on every architecture.

use super::Vector;

/// Eight f32 lanes.
#[derive(Clone, Copy)]
pub(super) struct Portable([f32; 8]);

/// Adding and subtracting this rounds to an integer; the sum's low bits are the integer.
const ROUNDING: f32 = 12_582_912.0;

impl Portable {
    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        let mut out = self;
        for (a, b) in out.0.iter_mut().zip(other.0) {
            *a = f(*a, b);
        }
        out
    }
}

impl Vector for Portable {
    const LANES: usize = 8;
    const TILE_ROWS: usize = 4;
    const TILE_COLUMNS: usize = 1;

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the trait's contract: valid for LANES values.
        Portable(unsafe { from.cast::<[f32; 8]>().read() })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the trait's contract: valid for LANES values.
        unsafe { to.cast::<[f32; 8]>().write(self.0) }
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Portable([value; 8])
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
        self.zip(factor, |a, b| a * b).zip(addend, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        self.zip(other, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        self.zip(other, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        Portable(self.0.map(|a| (a + ROUNDING) - ROUNDING))
    }
    #[inline(always)]
    unsafe fn scale_by_power(self, power: Self) -> Self {
        // In two steps, because 2^power alone leaves the range of normal numbers at both ends.
        self.zip(power, |value, power| {
            let power = (power + ROUNDING).to_bits() as i32 - ROUNDING.to_bits() as i32;
            let half = power >> 1;
            let first = f32::from_bits(((half + 127) << 23) as u32);
            let second = f32::from_bits(((power - half + 127) << 23) as u32);
            value * first * second
        })
    }
    #[inline(always)]
    unsafe fn select_less(self, bound: Self, yes: Self, no: Self) -> Self {
        let mut out = no;
        for lane in 0..8 {
            out.0[lane] = if self.0[lane] < bound.0[lane] { yes.0[lane] } else { no.0[lane] };
        }
        out
    }
    #[inline(always)]
    unsafe fn transpose(rows: &mut [Self; 16]) {
        for i in 0..8 {
            for j in 0..i {
                let upper = rows[j].0[i];
                rows[j].0[i] = rows[i].0[j];
                rows[i].0[j] = upper;
            }
        }
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        let [a, b, c, d, e, f, g, h] = self.0;
        ((a + e) + (c + g)) + ((b + f) + (d + h))
    }
}
