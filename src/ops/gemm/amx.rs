//! bf16 kernels on AMX's tile registers: `tdpbf16ps` multiplies 16 rows by 32 deep with 32 deep by 16 columns.
//!
//! Panels are those of the `vdpbf16ps` kernels: sixteen words of each of sixteen depths are a tile as they lie. The rows of
//! A lie as tiles too. 32 rows by 32 columns of C are held in four tiles.
//!
//! Invariant: an element of C is one chain over the depth: for each 32 of it, the even products and the odd ones are
//! summed, each in their order, and both sums are added to C's. Where a product is added to C unscaled, in whole tiles of
//! columns, the chain begins with what was there, otherwise with zero. The cutting of rows never changes a bit, and that of
//! columns follows from the shape. Subnormal operands and results count as zero, whatever the thread's rounding mode is.
//!
//! Reference: Intel's Architecture Instruction Set Extensions, chapter 3. The compiler neither knows nor touches the
//! tiles, so they keep their contents from one block of assembly to the next.

use super::avx512::{first_lanes, Avx512};
use super::avx512bf16::{narrow, KERNELS as WITHOUT_TILES};
use super::kernel::{Kernels, Lanes, Tile, TileFns, MOST_TERMS};
use std::arch::asm;
use std::arch::x86_64::{_mm512_maskz_loadu_ps, _mm512_storeu_si512, _mm_prefetch, _MM_HINT_T0};
use std::cell::Cell;
use std::mem::MaybeUninit;

/// Rows of a tile, and its columns in words.
const SIDE: usize = super::operand::TILE;

/// Shapes of the tiles: 0 to 3 are C (by rows, then columns), 4 and 5 rows of A, 6 and 7 columns of a panel.
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Shapes {
    /// `upper` and `lower` rows of A (the lower ones may be none), `words` deep; all between 0 and 16.
    fn new(upper: usize, lower: usize, words: usize) -> Shapes {
        let (upper, lower, line) = (upper as u8, lower.max(1) as u8, 4 * words as u16);
        let mut shapes = Shapes { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        shapes.row_bytes[..8].copy_from_slice(&[64, 64, 64, 64, line, line, 64, 64]);
        shapes.rows[..8].copy_from_slice(&[upper, upper, lower, lower, upper, lower, words as u8, words as u8]);
        shapes
    }

    /// Gives this thread's tiles these shapes, unless they have them; those of C are zero then.
    ///
    /// # Safety
    /// AMX may be used.
    #[inline(always)]
    unsafe fn load(upper: usize, lower: usize, words: usize) {
        thread_local! {
            /// What was loaded last: nobody else touches the tiles, which stay in use until the thread ends.
            static LOADED: Cell<(usize, usize, usize)> = const { Cell::new((0, 0, 0)) };
        }
        let wanted = (upper, lower, words);
        // SAFETY: the 64 bytes are a valid configuration by construction; loading takes about as long as ten products.
        unsafe {
            if LOADED.replace(wanted) != wanted {
                let shapes = Shapes::new(upper, lower, words);
                asm!("ldtilecfg [{}]", in(reg) &shapes, options(nostack, readonly, preserves_flags));
            } else {
                asm!(
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "tilezero tmm2",
                    "tilezero tmm3",
                    options(nostack, nomem, preserves_flags)
                );
            }
        }
    }
}

/// Room for the sums of 32 rows and columns: whole tiles go there, so it is never written for nothing.
#[repr(C, align(64))]
struct Sums(MaybeUninit<[f32; 4 * SIDE * SIDE]>);

/// From one row of [`Sums`] to the next, in bytes.
const SUMS_ROW: usize = SUMS * size_of::<f32>();

/// Bytes of a row of a tile, which is a cache line.
const LINE: usize = SIDE * size_of::<f32>();

/// `steps` times: the tiles of A and of the panel, and what they add to C. The pointers move on.
macro_rules! multiply {
    ($steps:expr, $a:expr, $b:expr, $a_row:expr, $b_depth:expr; $($line:literal),*) => {
        asm!(
            "2:", $($line,)*
            "add {a}, {a_step}", "add {lower}, {a_step}", "add {b}, {b_step}", "sub {steps}, 1", "jnz 2b",
            steps = inout(reg) $steps => _,
            a = inout(reg) $a.0 => _,
            lower = inout(reg) $a.1 => _,
            b = inout(reg) $b => _,
            a_row = in(reg) $a_row.0,
            a_step = in(reg) $a_row.1,
            b_depth = in(reg) $b_depth,
            b_step = in(reg) SIDE * $b_depth,
            options(nostack, readonly),
        )
    };
}

/// Up to 32 rows and columns of C.
struct Block {
    /// Two tiles of rows.
    lower: bool,
    /// Two tiles of columns.
    right: bool,
}

impl Block {
    /// Adds `steps` (at least one) tiles of depth from word `from` on to the tiles of C, which begin at row `first`.
    ///
    /// # Safety
    /// The tiles have shapes that fit, and A and the panel are readable in them; AMX may be used.
    #[inline(always)]
    unsafe fn multiply(&self, words: &Words, first: usize, (from, steps): (usize, usize)) {
        const WORD: usize = size_of::<f32>();
        let a_row = (words.a_row * WORD, words.a_step * WORD);
        let b_depth = words.b_depth * WORD;
        let at = |row: usize| words.a.wrapping_add(row / SIDE * words.a_rows).wrapping_byte_add(from / SIDE * a_row.1);
        let (a, b) = ((at(first), at(first + SIDE)), words.b.wrapping_byte_add(from * b_depth));
        // Whether the rows of A lie as tiles, one after the other.
        let lies_as_tiles = a_row == (LINE, SIDE * LINE);
        // SAFETY: by contract.
        unsafe {
            match (self.lower, self.right) {
                // The tiles of A after the next: a thread that shares its core waits for each load, one after the other.
                (true, true) if lies_as_tiles => multiply!(steps, a, b, a_row, b_depth;
                    "tileloadd tmm6, [{b} + {b_depth}]", "tileloadd tmm7, [{b} + {b_depth} + 64]",
                    "tileloadd tmm4, [{a} + {a_row}]", "tileloadd tmm5, [{lower} + {a_row}]",
                    ".irp line, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15",
                    "prefetcht0 [{a} + 2048 + 64 * \\line]", "prefetcht0 [{lower} + 2048 + 64 * \\line]", ".endr",
                    "tdpbf16ps tmm0, tmm4, tmm6", "tdpbf16ps tmm1, tmm4, tmm7",
                    "tdpbf16ps tmm2, tmm5, tmm6", "tdpbf16ps tmm3, tmm5, tmm7"),
                (true, true) => multiply!(steps, a, b, a_row, b_depth;
                    "tileloadd tmm6, [{b} + {b_depth}]", "tileloadd tmm7, [{b} + {b_depth} + 64]",
                    "tileloadd tmm4, [{a} + {a_row}]", "tileloadd tmm5, [{lower} + {a_row}]",
                    "tdpbf16ps tmm0, tmm4, tmm6", "tdpbf16ps tmm1, tmm4, tmm7",
                    "tdpbf16ps tmm2, tmm5, tmm6", "tdpbf16ps tmm3, tmm5, tmm7"),
                (true, false) => multiply!(steps, a, b, a_row, b_depth;
                    "tileloadd tmm6, [{b} + {b_depth}]", "tileloadd tmm4, [{a} + {a_row}]",
                    "tileloadd tmm5, [{lower} + {a_row}]", "tdpbf16ps tmm0, tmm4, tmm6", "tdpbf16ps tmm2, tmm5, tmm6"),
                (false, true) => multiply!(steps, a, b, a_row, b_depth;
                    "tileloadd tmm6, [{b} + {b_depth}]", "tileloadd tmm7, [{b} + {b_depth} + 64]",
                    "tileloadd tmm4, [{a} + {a_row}]", "tdpbf16ps tmm0, tmm4, tmm6", "tdpbf16ps tmm1, tmm4, tmm7"),
                (false, false) => multiply!(steps, a, b, a_row, b_depth;
                    "tileloadd tmm6, [{b} + {b_depth}]", "tileloadd tmm4, [{a} + {a_row}]", "tdpbf16ps tmm0, tmm4, tmm6"),
            }
        }
    }

    /// The tiles of C to memory, rows `row` bytes apart.
    ///
    /// # Safety
    /// As [`Block::multiply`]; the rows and columns of the block are writable.
    #[inline(always)]
    unsafe fn store(&self, to: *mut f32, row: usize) {
        let lower = to.wrapping_byte_add(SIDE * row);
        // SAFETY: by contract.
        unsafe {
            asm!("tilestored [{to} + {row}], tmm0", to = in(reg) to, row = in(reg) row, options(nostack, preserves_flags));
            if self.right {
                asm!("tilestored [{to} + {row} + 64], tmm1", to = in(reg) to, row = in(reg) row,
                    options(nostack, preserves_flags));
            }
            if self.lower {
                asm!("tilestored [{to} + {row}], tmm2", to = in(reg) lower, row = in(reg) row,
                    options(nostack, preserves_flags));
            }
            if self.lower && self.right {
                asm!("tilestored [{to} + {row} + 64], tmm3", to = in(reg) lower, row = in(reg) row,
                    options(nostack, preserves_flags));
            }
        }
    }

    /// The tiles of C from where [`Block::store`] has put them.
    ///
    /// # Safety
    /// As [`Block::store`].
    #[inline(always)]
    unsafe fn restore(&self, from: *const f32, row: usize) {
        let lower = from.wrapping_byte_add(SIDE * row);
        // SAFETY: by contract.
        unsafe {
            asm!("tileloadd tmm0, [{from} + {row}]", from = in(reg) from, row = in(reg) row,
                options(nostack, readonly, preserves_flags));
            if self.right {
                asm!("tileloadd tmm1, [{from} + {row} + 64]", from = in(reg) from, row = in(reg) row,
                    options(nostack, readonly, preserves_flags));
            }
            if self.lower {
                asm!("tileloadd tmm2, [{from} + {row}]", from = in(reg) lower, row = in(reg) row,
                    options(nostack, readonly, preserves_flags));
            }
            if self.lower && self.right {
                asm!("tileloadd tmm3, [{from} + {row} + 64]", from = in(reg) lower, row = in(reg) row,
                    options(nostack, readonly, preserves_flags));
            }
        }
    }
}

/// Operands of a product of words.
#[derive(Clone, Copy)]
pub(in crate::ops) struct Words {
    /// First word of A.
    pub a: *const f32,
    /// From one row of A to the next.
    pub a_row: usize,
    /// From 16 words of a row to the next 16.
    pub a_step: usize,
    /// From 16 rows to the next 16.
    pub a_rows: usize,
    /// First word of the panel.
    pub b: *const f32,
    /// From one depth of the panel to the next.
    pub b_depth: usize,
    /// Words along the reduction.
    pub depth: usize,
}

impl Words {
    const NOTHING: Words =
        Words { a: std::ptr::null(), a_row: 0, a_step: 0, a_rows: 0, b: std::ptr::null(), b_depth: 0, depth: 0 };
}

/// Where sums go.
pub(in crate::ops) enum Destination<F> {
    /// To memory as they are, or on top of what is there: whole tiles of columns, rows so many words apart.
    Memory { to: *mut f32, row: usize, accumulate: bool },
    /// To a function: the first of up to 32 rows, and these rows, of [`SUMS`] columns each.
    Function(F),
}

/// Columns of a row of sums that a function gets.
pub(in crate::ops) const SUMS: usize = 2 * SIDE;

/// The sum of the products of `rows` rows with `columns` (at most 32), up to 32 rows at a time. Only the last product may
/// end in the middle of a tile.
///
/// # Safety
/// The rows and, at each depth, whole vectors for the columns are readable, and memory for the sums is writable; AMX may
/// be used.
#[inline(always)]
pub(in crate::ops) unsafe fn blocks(
    products: &[Words],
    (rows, columns): (usize, usize),
    mut to: Destination<impl FnMut(usize, &[f32])>,
) {
    debug_assert!(columns <= 2 * SIDE);
    let whole = products.iter().any(|words| words.depth >= SIDE);
    let rest = products.last().map_or(0, |words| words.depth % SIDE);
    debug_assert!(products.iter().rev().skip(1).all(|words| words.depth.is_multiple_of(SIDE)));
    let mut sums = Sums(MaybeUninit::uninit());
    let sums = sums.0.as_mut_ptr().cast::<f32>();
    for first in (0..rows).step_by(2 * SIDE) {
        let height = (rows - first).min(2 * SIDE);
        let (upper, lower) = (height.min(SIDE), height.saturating_sub(SIDE));
        let block = Block { lower: lower > 0, right: columns > SIDE };
        // SAFETY: the shapes are those of the block; rows, depths and columns are the caller's.
        unsafe {
            Shapes::load(upper, lower, if whole { SIDE } else { rest });
            if let Destination::Memory { to, row, accumulate: true } = to {
                block.restore(to.add(first * row), row * size_of::<f32>());
            }
            for words in products.iter().filter(|words| words.depth >= SIDE) {
                block.multiply(words, first, (0, words.depth / SIDE));
            }
            if let Some(words) = products.last().filter(|_| rest > 0) {
                if whole {
                    block.store(sums, SUMS_ROW);
                    Shapes::load(upper, lower, rest);
                    block.restore(sums, SUMS_ROW);
                }
                block.multiply(words, first, (words.depth - rest, 1));
            }
            match &mut to {
                Destination::Memory { to, row, .. } => block.store(to.add(first * *row), *row * size_of::<f32>()),
                Destination::Function(finish) => {
                    if !block.right {
                        // The right half of each row, so that all of it is something.
                        asm!("tilestored [{to} + {row} + 64], tmm0", to = in(reg) sums, row = in(reg) SUMS_ROW,
                            options(nostack, preserves_flags));
                        if block.lower {
                            asm!("tilestored [{to} + {row} + 64], tmm2",
                                to = in(reg) sums.wrapping_byte_add(SIDE * SUMS_ROW), row = in(reg) SUMS_ROW,
                                options(nostack, preserves_flags));
                        }
                    }
                    block.store(sums, SUMS_ROW);
                    finish(first, std::slice::from_raw_parts(sums, height * SUMS));
                }
            }
        }
    }
}

/// `rows` rows of C and the `columns` (at most 32) of the panels.
///
/// # Safety
/// The tiles' pointers are good for these rows and for whole vectors of the panels; AMX may be used.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
unsafe fn rows_of_panels(tiles: &[Tile], rows: usize, columns: usize) {
    // Whole tiles of columns that are added unscaled go to memory as they are, and several terms together.
    let as_they_are = |tile: &Tile| columns.is_multiple_of(SIDE) && tile.alpha == 1.0;
    for tiles in tiles.chunk_by(|one, next| as_they_are(one) && as_they_are(next)) {
        let mut products = [Words::NOTHING; MOST_TERMS];
        for (words, tile) in products.iter_mut().zip(tiles) {
            let Tile { a, a_row, b, b_depth, depth, .. } = *tile;
            *words = Words { a, a_row: SIDE, a_step: SIDE * SIDE, a_rows: SIDE * a_row, b, b_depth, depth };
        }
        let tile = &tiles[0];
        let finish = |first, sums: &[f32]| {
            // SAFETY: passed on.
            unsafe { put(tile, first, columns, sums) };
        };
        let to = match as_they_are(tile) {
            true => Destination::Memory { to: tile.c, row: tile.c_row, accumulate: tile.accumulate },
            false => Destination::Function(finish),
        };
        // SAFETY: passed on.
        unsafe { blocks(&products[..tiles.len()], (rows, columns), to) };
    }
}

/// Rows of sums to their rows of C.
///
/// # Safety
/// As [`rows_of_panels`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
unsafe fn put(tile: &Tile, first: usize, columns: usize, sums: &[f32]) {
    let (left, right) = (columns.min(SIDE), columns.saturating_sub(SIDE));
    for (row, values) in sums.chunks_exact(SUMS).enumerate() {
        // SAFETY: the row is one of C with so many columns; there are 32 values.
        unsafe {
            let to = tile.c.add((first + row) * tile.c_row);
            Avx512::put(to, left, Avx512::load(values.as_ptr()), tile.alpha, tile.accumulate);
            if right > 0 {
                let sum = Avx512::load(values.as_ptr().add(SIDE));
                Avx512::put(to.add(SIDE), right, sum, tile.alpha, tile.accumulate);
            }
        }
    }
}

/// How far ahead of the conversion its rows are asked for, in f32: they come from beyond the L2 cache.
const AHEAD: usize = 256;

/// # Safety
/// As [`super::kernel::RowsToTilesFn`]; AVX-512 BF16 is available.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
unsafe fn tiles_of_rows(first: *const f32, stride: usize, (rows, columns): (usize, usize), to: *mut f32) {
    for (tile, column) in (0..columns).step_by(2 * SIDE).enumerate() {
        let (low, high) = (first_lanes(columns - column), first_lanes((columns - column).saturating_sub(SIDE)));
        for row in 0..rows {
            let from = first.wrapping_add(row * stride + column);
            _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(AHEAD).cast());
            _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(AHEAD + SIDE).cast());
            // SAFETY: the masks keep the loads inside the row; the word goes to a row of a tile.
            unsafe {
                let (low, high) =
                    (_mm512_maskz_loadu_ps(low, from), _mm512_maskz_loadu_ps(high, from.wrapping_add(SIDE)));
                _mm512_storeu_si512(to.add((tile * SIDE + row) * SIDE).cast(), narrow(low, high));
            }
        }
    }
}

/// bf16 operands.
pub(super) static BF16: Kernels = Kernels {
    tiles: &[WITHOUT_TILES.tiles[0], WITHOUT_TILES.tiles[1]],
    tiled: Some(TileFns { whole: rows_of_panels, from_rows: tiles_of_rows }),
    rows_at_once: 4 * SIDE,
    ..WITHOUT_TILES
};

/// Operations of a loop of products on registers: the peak of this thread.
///
/// # Safety
/// AMX may be used.
pub(super) unsafe fn register_loop(rounds: usize) -> f64 {
    // SAFETY: by contract; whole tiles that nothing else uses.
    unsafe {
        Shapes::load(SIDE, SIDE, SIDE);
        asm!("2:", "tdpbf16ps tmm0, tmm4, tmm6", "tdpbf16ps tmm1, tmm4, tmm7", "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7", "sub {rounds}, 1", "jnz 2b",
            rounds = inout(reg) rounds => _, options(nostack, nomem));
    }
    (rounds * 4 * 2 * SIDE * SIDE * 2 * SIDE) as f64
}
