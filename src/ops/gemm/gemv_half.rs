//! One row of 16-bit floats times one row of f32, widened in registers: a head in its stored dtype is read at the speed
//! of the memory, and no value is rounded.
//!
//! Invariant: sums run over fixed lanes, with the same bits on every path (see `ops::vector`).

use super::kernel::Kernels;
use super::pack_dense::{f16_to_f32, Source};
use super::WeightRef;
use crate::device::{Compute, CpuPath};
use crate::ops::vector::{add_lanes, kernel, LANES};

/// Values ahead of those in use that are fetched: rows follow one another in memory.
const AHEAD: usize = 2 << 10;

/// Whether a weight is of 16-bit floats, none of them to be rounded, that meet f32 values.
pub(super) fn applies(source: &Source<'_>, kernels: &Kernels) -> bool {
    match source.weight {
        WeightRef::Bf16 { .. } => kernels.pairs.is_none(),
        WeightRef::F16 { .. } => source.compute == Compute::F32,
        _ => false,
    }
}

/// The product of row `row` of a weight of 16-bit floats with `x`.
pub(super) fn product(path: CpuPath, weight: WeightRef<'_>, row: usize, x: &[f32]) -> f32 {
    match weight {
        WeightRef::Bf16 { bits, cols, .. } => bf16(path, &bits[row * cols..(row + 1) * cols], x),
        WeightRef::F16 { bits, cols, .. } => f16(path, &bits[row * cols..(row + 1) * cols], x),
        // Not reached where `applies`; slow, but right.
        other => x.iter().enumerate().map(|(col, x)| other.at(row, col) * x).sum(),
    }
}

/// `Σ widen(bits[i]) · x[i]`, a cache line of bits at a time.
#[inline(always)]
fn sum(bits: &[u16], x: &[f32], widen: impl Fn(u16) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let (whole_bits, rest_bits) = bits.as_chunks::<LANES>();
    let (whole_x, rest_x) = x.as_chunks::<LANES>();
    for (bits, x) in whole_bits.iter().zip(whole_x) {
        prefetch(bits.as_ptr().wrapping_add(AHEAD));
        for lane in 0..LANES {
            lanes[lane] += widen(bits[lane]) * x[lane];
        }
    }
    for (lane, (&bits, x)) in lanes.iter_mut().zip(rest_bits.iter().zip(rest_x)) {
        *lane += widen(bits) * x;
    }
    add_lanes(lanes)
}

/// Asks for a cache line, which may lie anywhere.
#[inline(always)]
pub(super) fn prefetch<T>(place: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE is part of x86-64, and a prefetch never faults.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(place.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}

kernel! {
    fn bf16(bits: &[u16], x: &[f32]) -> f32 {
        sum(bits, x, |bits| f32::from_bits(u32::from(bits) << 16))
    }
}

kernel! {
    fn f16(bits: &[u16], x: &[f32]) -> f32 {
        sum(bits, x, f16_to_f32)
    }
}
