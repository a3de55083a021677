//! How a product is cut: columns into panels, the reduction into depth blocks, rows into tiles, all into jobs.
//!
//! Invariant: panels, tiles and jobs only say who computes an element; the depth blocks, which set its order of
//! summation, follow from the depth and the operand format alone. So the number of threads never changes a bit.

/// Deepest block of a panel, in words: a 48-wide panel of it stays in half of a 256 KB share of the L2 cache.
const BLOCK_WORDS: usize = 768;

/// Words of depth beside a block: an adapter of rank 16.
const SMALL_WORDS: usize = 16;

/// The same of panels for tile registers, of which a job has up to 1 MB: two blocks that together are 2048 deep.
const TILED_WORDS: usize = 1024 + 4 * SMALL_WORDS;

/// Depth blocks start at multiples of this: whole groups of NF4 codes, whole pairs.
const BLOCK_STEP: usize = 64;

/// Below this many multiply-adds a product stays on the calling thread: waking the pool takes 15 to 30 µs.
pub(super) const ALONE: usize = 2_500_000;

/// A range cut into pieces of almost equal size, each a multiple of a unit (the last one excepted).
#[derive(Clone, Copy)]
pub(super) struct Cuts {
    total: usize,
    unit: usize,
    /// Number of pieces.
    pub count: usize,
}

impl Cuts {
    /// Pieces of at most `longest` (a multiple of `unit`).
    pub fn at_most(total: usize, unit: usize, longest: usize) -> Cuts {
        let units = total.div_ceil(unit);
        Cuts { total, unit, count: units.div_ceil(longest / unit).max(1) }
    }

    /// `count` pieces; some are empty if there is not enough.
    pub fn into(total: usize, unit: usize, count: usize) -> Cuts {
        Cuts { total, unit, count: count.max(1) }
    }

    /// One piece.
    pub fn get(&self, index: usize) -> std::ops::Range<usize> {
        let units = self.total.div_ceil(self.unit);
        let at = |i: usize| (units * i / self.count * self.unit).min(self.total);
        at(index)..at(index + 1)
    }
}

/// The depth blocks of a reduction of `depth` elements; at least one, so that an empty product still writes zeros.
pub(super) fn depth_blocks(depth: usize, per_word: usize) -> Cuts {
    Cuts::at_most(depth, BLOCK_STEP, BLOCK_WORDS * per_word)
}

/// Words of depth that are packed before they are multiplied: the deepest block and an adapter's, or several small ones.
pub(super) const fn packed_words(is_tiled: bool) -> usize {
    if is_tiled {
        TILED_WORDS
    } else {
        BLOCK_WORDS + SMALL_WORDS
    }
}
