//! The micro-kernel `C[R, V·width] (+)= alpha · A[R, depth] · panel[depth, V·width]`, written once over [`Lanes`].
//!
//! Legend: R rows of a tile, V vectors across it. Operands are 32-bit *words*: one f32, or two bf16 of neighbouring
//! depth (even depth in the low half), which a dot-product instruction multiplies at once.
//!
//! Invariant: each element of C is one chain of multiply-adds in the order of depth, whatever R and V are, so that the
//! cutting into tiles never changes a bit.

use crate::device::{Compute, CpuPath};

/// A vector register of one instruction set.
pub(super) trait Lanes: Copy {
    /// The register.
    type Vector: Copy;
    /// Words it holds.
    const WIDTH: usize;
    /// All zero.
    ///
    /// # Safety
    /// The instruction set must be available (also below).
    unsafe fn zero() -> Self::Vector;
    /// `WIDTH` words.
    ///
    /// # Safety
    /// `WIDTH` words are readable.
    unsafe fn load(from: *const f32) -> Self::Vector;
    /// One word in every lane.
    ///
    /// # Safety
    /// One word is readable.
    unsafe fn splat(from: *const f32) -> Self::Vector;
    /// `a · b + sum`, where `a` and `b` are words and `sum` is f32.
    ///
    /// # Safety
    /// As [`Lanes::zero`].
    unsafe fn multiply_add(a: Self::Vector, b: Self::Vector, sum: Self::Vector) -> Self::Vector;
    /// `alpha · sum`, plus what is in memory if `accumulate`, to the first `count` lanes in memory.
    ///
    /// # Safety
    /// `count ≤ WIDTH` words are readable and writable.
    unsafe fn put(to: *mut f32, count: usize, sum: Self::Vector, alpha: f32, accumulate: bool);
}

/// Arguments of a micro-kernel. Strides are in words.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    /// Words along the reduction.
    pub depth: usize,
    /// First word of A.
    pub a: *const f32,
    /// From one row of A to the next.
    pub a_row: usize,
    /// From one depth of A to the next.
    pub a_depth: usize,
    /// First word of the panel: V·width words are read at each depth.
    pub b: *const f32,
    /// From one depth of the panel to the next.
    pub b_depth: usize,
    /// First element of C.
    pub c: *mut f32,
    /// From one row of C to the next.
    pub c_row: usize,
    /// Columns of C in the last vector, 1 to width.
    pub last: usize,
    /// Factor of the product.
    pub alpha: f32,
    /// Add to C.
    pub accumulate: bool,
}

/// A micro-kernel of fixed R and V.
///
/// # Safety
/// The pointers of the tile are good for R rows and V vectors, and the instruction set is available.
pub(super) type TileFn = unsafe fn(&Tile);

/// The body of every micro-kernel; the caller is a `#[target_feature]` function.
///
/// # Safety
/// As [`TileFn`].
#[inline(always)]
pub(super) unsafe fn tile<L: Lanes, const R: usize, const V: usize>(args: &Tile) {
    // SAFETY: the caller vouches for R rows, V vectors and `depth` steps behind the pointers.
    unsafe {
        let mut sums = [[L::zero(); V]; R];
        let (mut a, mut b) = (args.a, args.b);
        for _ in 0..args.depth {
            let mut panel = [L::zero(); V];
            for (v, vector) in panel.iter_mut().enumerate() {
                *vector = L::load(b.add(v * L::WIDTH));
            }
            for (r, row) in sums.iter_mut().enumerate() {
                let factor = L::splat(a.add(r * args.a_row));
                for (sum, &vector) in row.iter_mut().zip(&panel) {
                    *sum = L::multiply_add(factor, vector, *sum);
                }
            }
            a = a.add(args.a_depth);
            b = b.add(args.b_depth);
        }
        for (r, row) in sums.iter().enumerate() {
            for (v, &sum) in row.iter().enumerate() {
                let count = if v + 1 == V { args.last } else { L::WIDTH };
                L::put(args.c.add(r * args.c_row + v * L::WIDTH), count, sum, args.alpha, args.accumulate);
            }
        }
    }
}

/// Transposes 32-bit words: `to[w · stride + r] = rows[r][w]` for `w < words`.
///
/// # Safety
/// Each of the rows (at most 16) has `words` readable words, `to` is writable, and the instruction set is available.
pub(super) type TransposeFn = unsafe fn(rows: &[*const f32], words: usize, to: *mut f32, stride: usize);

/// f32 values to words of two bf16, nearest even. The functions are unsafe because they need their instruction set.
pub(super) struct PairFns {
    /// Neighbours of one row: `to[i] = (from[2i], from[2i+1])`, with zero after an odd end.
    pub neighbours: unsafe fn(from: &[f32], to: &mut [f32]),
    /// Two rows of one length: `to[i] = (even[i], odd[i])`.
    pub rows: unsafe fn(even: &[f32], odd: &[f32], to: &mut [f32]),
}

/// What a kernel path offers for one operand format.
pub(super) struct Kernels {
    /// Columns in a vector.
    pub width: usize,
    /// Kernels by vectors - 1, then by rows - 1.
    pub tiles: &'static [&'static [TileFn]],
    /// Words are pairs of bf16 instead of one f32; how to make them.
    pub pairs: Option<PairFns>,
    /// Transposition of up to 16 rows.
    pub transpose: TransposeFn,
}

impl Kernels {
    /// The kernels of a path for an operand format. Where a path has no bf16 kernel, f32 kernels serve it on
    /// operands that were rounded to bf16.
    pub fn of(path: CpuPath, compute: Compute) -> &'static Kernels {
        match (path, compute) {
            #[cfg(target_arch = "x86_64")]
            (CpuPath::Avx512Bf16, Compute::Bf16) => &super::avx512bf16::BF16,
            #[cfg(target_arch = "x86_64")]
            (CpuPath::Avx512 | CpuPath::Avx512Bf16, _) => &super::avx512::F32,
            _ => &super::portable::F32,
        }
    }

    /// Elements of the reduction in a word.
    pub fn per_word(&self) -> usize {
        if self.pairs.is_some() {
            2
        } else {
            1
        }
    }

    /// Columns of the widest panel.
    pub fn panel_columns(&self) -> usize {
        self.width * self.tiles.len()
    }
}

/// The functions `$kernel::<R, V>` for R in the list, as a static slice.
macro_rules! tile_row {
    ($kernel:ident, $vectors:literal, [$($rows:literal),*]) => {
        &[$($kernel::<$rows, $vectors> as $crate::ops::gemm::kernel::TileFn),*]
    };
}
pub(super) use tile_row;

/// Compiles one body for every instruction set and picks by path: the body is plain Rust that the compiler vectorises.
macro_rules! for_each_path {
    ($(#[$meta:meta])* fn $name:ident($($arg:ident: $kind:ty),* $(,)?) $body:block) => {
        $(#[$meta])*
        pub(super) fn $name(path: $crate::device::CpuPath, $($arg: $kind),*) {
            #[inline(always)]
            fn body($($arg: $kind),*) $body
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            fn avx2($($arg: $kind),*) {
                body($($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
            fn avx512($($arg: $kind),*) {
                body($($arg),*)
            }
            match path {
                // SAFETY: a path is only ever asked for where the machine has it.
                #[cfg(target_arch = "x86_64")]
                $crate::device::CpuPath::Avx2 => unsafe { avx2($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::device::CpuPath::Avx512 | $crate::device::CpuPath::Avx512Bf16 => unsafe { avx512($($arg),*) },
                _ => body($($arg),*),
            }
        }
    };
}
pub(super) use for_each_path;
