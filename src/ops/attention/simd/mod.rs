//! One vocabulary for the vector units, so that each kernel is written once and compiled for every CPU path.
//!
//! A kernel is a struct that implements [`Kernel`]; [`dispatch`] runs it inside a function compiled with the path's
//! instructions, where the methods of its [`Vector`] inline to single instructions. Invariant: a `Vector` method is
//! only ever called below [`dispatch`].

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx512bf16;
mod portable;

use crate::device::CpuPath;

/// A register of f32 lanes.
///
/// # Safety
/// Every method requires that the running CPU has the vector's instructions; pointers must be valid for `LANES` values.
#[allow(clippy::missing_safety_doc)] // One contract for all methods, above.
pub(crate) trait Vector: Copy {
    /// Values in one register.
    const LANES: usize;
    /// Rows of the register tile of a product: with `TILE_COLUMNS`, as many accumulators as the register file takes.
    const TILE_ROWS: usize;
    /// Registers across the register tile of a product.
    const TILE_COLUMNS: usize;

    unsafe fn load(from: *const f32) -> Self;
    unsafe fn store(self, to: *mut f32);
    unsafe fn splat(value: f32) -> Self;
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    /// `self * factor + addend`, rounded once where the path has such an instruction.
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self;
    /// The larger value; `other` where either is NaN.
    unsafe fn max(self, other: Self) -> Self;
    /// The smaller value; `other` where either is NaN.
    unsafe fn min(self, other: Self) -> Self;
    /// Nearest integer, ties to even, for magnitudes below 2²².
    unsafe fn round(self) -> Self;
    /// `self * 2^power` for integral powers in -300..=300, gradual underflow and overflow included.
    unsafe fn scale_by_power(self, power: Self) -> Self;
    /// `if self < bound { yes } else { no }` in each lane.
    unsafe fn select_less(self, bound: Self, yes: Self, no: Self) -> Self;
    /// Transposes `LANES` registers in place.
    unsafe fn transpose(rows: &mut [Self; 16]);
    /// Sum of all lanes, in an order fixed by the path.
    unsafe fn sum(self) -> f32;
}

/// A computation written once for every [`Vector`].
pub(crate) trait Kernel {
    /// What it returns.
    type Output;
    /// Does the work. Implementations are `#[inline(always)]`, so that they take on the caller's instructions.
    ///
    /// # Safety
    /// The running CPU has the instructions of `V`.
    unsafe fn run<V: Vector>(self) -> Self::Output;
}

/// Runs a kernel with the instructions of `path`, which must be one of [`CpuPath::available`].
pub(crate) fn dispatch<K: Kernel>(path: CpuPath, kernel: K) -> K::Output {
    match path {
        // SAFETY: callers pass paths that device.rs has found on this machine.
        #[cfg(target_arch = "x86_64")]
        CpuPath::Avx512 | CpuPath::Avx512Bf16 | CpuPath::Amx => unsafe { avx512::run(kernel) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        CpuPath::Avx2 => unsafe { avx2::run(kernel) },
        // SAFETY: the portable vector is plain Rust.
        _ => unsafe { kernel.run::<portable::Portable>() },
    }
}

/// Runs a kernel on words of two bf16, on the path that has an instruction for them.
pub(crate) fn dispatch_pairs<K: Kernel>(path: CpuPath, kernel: K) -> K::Output {
    #[cfg(target_arch = "x86_64")]
    if path >= CpuPath::Avx512Bf16 {
        // SAFETY: callers pass paths that device.rs has found on this machine.
        return unsafe { avx512bf16::run(kernel) };
    }
    let _ = kernel;
    unreachable!("{path:?} has no product of bf16 words")
}
