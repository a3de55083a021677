//! The micro-kernel `C[R, V·width] (+)= alpha · A[R, depth] · panel[depth, V·width]`, written once over [`Lanes`].
//!
//! Legend: R rows of a tile, V vectors across it. Operands are 32-bit *words*: one f32, or two bf16 of neighbouring
//! depth (even depth in the low half), which a dot-product instruction multiplies at once.
//!
//! Invariant: each element of C is one chain of multiply-adds in the order of depth, whatever R and V are, so that the
//! cutting into tiles never changes a bit.

use super::gemv_nf4::Functions;
use super::operand::TILE;
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
    /// Sum of two sums.
    ///
    /// # Safety
    /// As [`Lanes::zero`].
    unsafe fn add(a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// Sum of the f32 lanes, in an order of its own.
    ///
    /// # Safety
    /// As [`Lanes::zero`].
    unsafe fn total(vector: Self::Vector) -> f32;
}

/// Arguments of a micro-kernel. Strides are in words.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    /// Words along the reduction.
    pub depth: usize,
    /// First word of A. The words of a row lie one behind the other.
    pub a: *const f32,
    /// From one row of A to the next.
    pub a_row: usize,
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

impl Tile {
    /// No tile.
    pub const NOTHING: Tile = Tile {
        depth: 0,
        a: std::ptr::null(),
        a_row: 0,
        b: std::ptr::null(),
        b_depth: 0,
        c: std::ptr::null_mut(),
        c_row: 0,
        last: 0,
        alpha: 0.0,
        accumulate: false,
    };
}

/// A micro-kernel of fixed R and V.
///
/// # Safety
/// The pointers of the tile are good for R rows and V vectors, and the instruction set is available.
pub(super) type TileFn = unsafe fn(&Tile);

/// A kernel for any number of rows and the columns of a panel. Each of the tiles is added to the one C, in their order; the
/// depth of all is filled up with zeros to whole tiles.
///
/// # Safety
/// The pointers of the tiles are good for the rows, and for whole vectors of the panel; the instruction set is available.
pub(super) type WholeFn = unsafe fn(&[Tile], rows: usize, columns: usize);

/// Rows of f32, `stride` apart, to tiles of words of two bf16. The last tile of a row is filled up with zeros.
///
/// # Safety
/// As many rows (at most 16) and columns as `shape` says are readable, and whole tiles for them writable; the instruction
/// set is available.
pub(super) type RowsToTilesFn = unsafe fn(first: *const f32, stride: usize, shape: (usize, usize), to: *mut f32);

/// Most tiles that are added to one C together.
pub(super) const MOST_TERMS: usize = 8;

/// What kernels on tile registers have instead of [`Kernels::tiles`].
pub(super) struct TileFns {
    /// The products.
    pub whole: WholeFn,
    /// The operand A.
    pub from_rows: RowsToTilesFn,
}

/// [`Kernels::rows_at_once`] of kernels with tiles of 8 and 12 rows.
pub(super) const ROWS_AT_ONCE: usize = 24;

/// The body of every micro-kernel; the caller is a `#[target_feature]` function.
///
/// # Safety
/// As [`TileFn`].
#[inline(always)]
pub(super) unsafe fn tile<L: Lanes, const R: usize, const V: usize>(args: &Tile) {
    // SAFETY: the caller vouches for R rows, V vectors and `depth` steps behind the pointers.
    unsafe {
        let mut sums = [[L::zero(); V]; R];
        // Rows are reached from every third one: base, base + row and base + 2 row are addressing modes. The black box
        // keeps the compiler from deriving the bases from one another, one addition after the other at each depth.
        let mut bases = [args.a; 4];
        for (i, base) in bases.iter_mut().enumerate().take(R.div_ceil(3)) {
            *base = std::hint::black_box(args.a.wrapping_add(3 * i * args.a_row));
        }
        // The distances of a panel that was packed for this width are constants, which cost no instruction.
        if args.b_depth == V * L::WIDTH {
            steps::<L, R, V>(args, bases, V * L::WIDTH, &mut sums);
        } else {
            steps::<L, R, V>(args, bases, args.b_depth, &mut sums);
        }
        for (r, row) in sums.iter().enumerate() {
            for (v, &sum) in row.iter().enumerate() {
                let count = if v + 1 == V { args.last } else { L::WIDTH };
                L::put(args.c.add(r * args.c_row + v * L::WIDTH), count, sum, args.alpha, args.accumulate);
            }
        }
    }
}

/// Steps along the reduction between two jumps: where another program runs on the other half of a core, what limits a tile
/// is the number of its instructions.
const STEPS: usize = 4;

/// Adds up all steps.
///
/// # Safety
/// As [`TileFn`]; row r starts `r % 3` rows behind base `r / 3`.
#[inline(always)]
unsafe fn steps<L: Lanes, const R: usize, const V: usize>(
    args: &Tile,
    mut bases: [*const f32; 4],
    b_depth: usize,
    sums: &mut [[L::Vector; V]; R],
) {
    let mut b = args.b;
    // SAFETY: R rows, V vectors and `depth` steps are behind the pointers by contract.
    unsafe {
        for _ in 0..args.depth / STEPS {
            for i in 0..STEPS {
                step::<L, R, V>((&bases, args.a_row), i, b.add(i * b_depth), sums);
            }
            for base in bases.iter_mut().take(R.div_ceil(3)) {
                *base = base.wrapping_add(STEPS);
            }
            b = b.add(STEPS * b_depth);
        }
        for i in 0..args.depth % STEPS {
            step::<L, R, V>((&bases, args.a_row), i, b.add(i * b_depth), sums);
        }
    }
}

/// Adds one step.
///
/// # Safety
/// As [`steps`], and that step of the rows exists.
#[inline(always)]
unsafe fn step<L: Lanes, const R: usize, const V: usize>(
    (bases, a_row): (&[*const f32; 4], usize),
    at: usize,
    b: *const f32,
    sums: &mut [[L::Vector; V]; R],
) {
    // SAFETY: by contract.
    unsafe {
        let mut panel = [L::zero(); V];
        for (v, vector) in panel.iter_mut().enumerate() {
            *vector = L::load(b.add(v * L::WIDTH));
        }
        for (r, row) in sums.iter_mut().enumerate() {
            let factor = L::splat(bases[r / 3].add(r % 3 * a_row + at));
            for (sum, &vector) in row.iter_mut().zip(&panel) {
                *sum = L::multiply_add(factor, vector, *sum);
            }
        }
    }
}

/// Transposes 32-bit words: `to[w · stride + r] = rows[r][w]` for `w < words`.
///
/// # Safety
/// Each of the rows (at most 16) has `words` readable words, `to` is writable, and the instruction set is available.
pub(super) type TransposeFn = unsafe fn(rows: &[*const f32], words: usize, to: *mut f32, stride: usize);

/// Arguments of a dot product of one row of words with a few others.
#[derive(Clone, Copy)]
pub(super) struct Dot {
    /// The one row.
    pub a: *const f32,
    /// First of the others, readable up to the next whole vector.
    pub b: *const f32,
    /// From one of the others to the next.
    pub b_row: usize,
    /// Words in a row.
    pub words: usize,
}

/// Most rows that [`DotFn`] takes.
pub(super) const MOST_ROWS: usize = 8;

/// A dot product with a fixed number of rows, added to the sums.
///
/// # Safety
/// The pointers of the dot product are good for its rows, and the instruction set is available.
pub(super) type DotFn = unsafe fn(&Dot, &mut [f32; MOST_ROWS]);

/// The body of every [`DotFn`]; the caller is a `#[target_feature]` function.
///
/// # Safety
/// As [`DotFn`].
#[inline(always)]
pub(super) unsafe fn dot<L: Lanes, const T: usize>(args: &Dot, sums: &mut [f32; MOST_ROWS]) {
    // With few rows, more chains hide the latency of the multiply-add.
    let chains = match T {
        1 => 4,
        2 => 2,
        _ => 1,
    };
    // SAFETY: the caller vouches for `words` behind `a` and for whole vectors behind `b`; a partial vector of `a` is
    // copied out first.
    unsafe {
        let mut parts = [[L::zero(); 4]; T];
        let mut at = 0;
        while at + chains * L::WIDTH <= args.words {
            for chain in 0..chains {
                let a = L::load(args.a.add(at + chain * L::WIDTH));
                for (t, parts) in parts.iter_mut().enumerate() {
                    let b = L::load(args.b.add(t * args.b_row + at + chain * L::WIDTH));
                    parts[chain] = L::multiply_add(a, b, parts[chain]);
                }
            }
            at += chains * L::WIDTH;
        }
        while at < args.words {
            let mut rest = [0.0f32; 16];
            let count = (args.words - at).min(L::WIDTH);
            // By bytes: pairs that lie in a weight need not be aligned like words.
            std::ptr::copy_nonoverlapping(args.a.add(at).cast::<u8>(), rest.as_mut_ptr().cast(), count * 4);
            let a = L::load(rest.as_ptr());
            for (t, parts) in parts.iter_mut().enumerate() {
                parts[0] = L::multiply_add(a, L::load(args.b.add(t * args.b_row + at)), parts[0]);
            }
            at += count;
        }
        for (sum, parts) in sums.iter_mut().zip(parts) {
            *sum += L::total(L::add(L::add(parts[0], parts[1]), L::add(parts[2], parts[3])));
        }
    }
}

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
    /// All rows of a panel at once, on tile registers: then the rows of A lie as tiles.
    pub tiled: Option<TileFns>,
    /// Rows multiplied between two fetches for the next panel: whole tiles of every height that the kernels prefer.
    pub rows_at_once: usize,
    /// Dot products by rows - 1.
    pub dots: [DotFn; MOST_ROWS],
    /// Words are pairs of bf16 instead of one f32; how to make them.
    pub pairs: Option<PairFns>,
    /// Transposition of up to 16 rows.
    pub transpose: TransposeFn,
    /// Products of NF4 codes with few rows, without panels.
    pub codes: Option<&'static Functions>,
    /// The same with a single row alone, where there is something better for it.
    pub codes_alone: Option<&'static Functions>,
}

impl Kernels {
    /// The kernels of a path for an operand format. Where a path has no bf16 kernel, f32 kernels serve it on
    /// operands that were rounded to bf16.
    pub fn of(path: CpuPath, compute: Compute) -> &'static Kernels {
        match (path, compute) {
            #[cfg(target_arch = "x86_64")]
            (CpuPath::Amx, Compute::Bf16) => &super::amx::BF16,
            #[cfg(target_arch = "x86_64")]
            (CpuPath::Avx512Bf16, Compute::Bf16) => &super::avx512bf16::BF16,
            #[cfg(target_arch = "x86_64")]
            (CpuPath::Avx512 | CpuPath::Avx512Bf16 | CpuPath::Amx, _) => &super::avx512::F32,
            #[cfg(target_arch = "x86_64")]
            (CpuPath::Avx2, Compute::Bf16) => &super::avx2::BF16,
            #[cfg(target_arch = "x86_64")]
            (CpuPath::Avx2, Compute::F32) => &super::avx2::F32,
            #[cfg(target_arch = "aarch64")]
            (CpuPath::Neon, _) => &super::neon::F32,
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

    /// Words of so many elements of the reduction, whole tiles of them where the kernels have tiles.
    pub fn words_of(&self, elements: usize) -> usize {
        elements.div_ceil(self.per_word()).next_multiple_of(if self.is_tiled() { TILE } else { 1 })
    }

    /// Zeros for the depth of a panel that fills up its last tile.
    pub fn fill_up(&self, panel: &mut [f32], elements: usize, stride: usize) {
        panel[elements.div_ceil(self.per_word()) * stride..self.words_of(elements) * stride].fill(0.0);
    }

    /// Runs a micro-kernel over all of `rows` rows and the `columns` columns of panels with one C; the tiles describe the
    /// first rows.
    ///
    /// # Safety
    /// The pointers of the tiles are good for all rows, and B for whole vectors; the instruction set is available.
    pub unsafe fn run(&self, tiles: &[Tile], rows: usize, columns: usize) {
        // SAFETY: passed on.
        unsafe {
            match &self.tiled {
                Some(tiled) => (tiled.whole)(tiles, rows, columns),
                None => tiles.iter().for_each(|&tile| self.run_one(tile, rows, columns)),
            }
        }
    }

    /// # Safety
    /// As [`Kernels::run`].
    unsafe fn run_one(&self, mut tile: Tile, rows: usize, columns: usize) {
        let vectors = columns.div_ceil(self.width);
        let kernels = self.tiles[vectors - 1];
        tile.last = columns - (vectors - 1) * self.width;
        let mut left = rows;
        for tiles in (1..=rows.div_ceil(kernels.len())).rev() {
            // Tiles of almost the same height: a short last one would run at a fraction of the speed.
            let height = left.div_ceil(tiles);
            // SAFETY: passed on; `height` rows are left.
            unsafe {
                kernels[height - 1](&tile);
                tile.a = tile.a.wrapping_add(height * tile.a_row);
                tile.c = tile.c.wrapping_add(height * tile.c_row);
            }
            left -= height;
        }
    }

    /// Whether the rows of A lie as tiles.
    pub fn is_tiled(&self) -> bool {
        self.tiled.is_some()
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

/// The functions `$dot::<T>` for every number of rows.
macro_rules! dot_row {
    ($dot:ident) => {
        [$dot::<1>, $dot::<2>, $dot::<3>, $dot::<4>, $dot::<5>, $dot::<6>, $dot::<7>, $dot::<8>]
    };
}
pub(super) use dot_row;

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
                path if path >= $crate::device::CpuPath::Avx512 => unsafe { avx512($($arg),*) },
                _ => body($($arg),*),
            }
        }
    };
}
pub(super) use for_each_path;
