//! Which entries of a score tile exist, and which squares of it are worth computing.

use super::BLOCK;
use std::ops::Range;

/// Side of the squares that are computed or skipped as a whole.
const SQUARE: usize = 16;

/// For each lane of a block of queries, the number of keys it sees.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    /// Ascending; in f32, where key numbers are exact below 2²⁴.
    keys: [f32; BLOCK],
    width: usize,
}

impl Limits {
    /// `lanes` queries of which lane m sees `keys(m)` keys, ascending.
    ///
    /// Lanes without a query see what the last query sees: they hold zeros, and no tile is masked on their account.
    pub fn new(lanes: usize, keys: impl Fn(usize) -> usize) -> Limits {
        let keys = std::array::from_fn(|lane| keys(lane.min(lanes - 1)) as f32);
        Limits { keys, width: lanes.next_multiple_of(SQUARE) }
    }

    /// The part of the tile of `count` keys from `first` on that some lane sees.
    pub fn tile(&self, first: usize, count: usize) -> Tile<'_> {
        let seen = std::array::from_fn(|group| {
            let limit = self.keys[group * SQUARE + SQUARE - 1] as usize;
            limit.saturating_sub(first).next_multiple_of(SQUARE).min(count)
        });
        let masked = (first + count) as f32 > self.keys[0];
        Tile { limits: &self.keys, first, count, width: self.width, seen, masked }
    }
}

/// A tile: one row per key, one lane per query, `width` lanes.
///
/// Invariant: products, softmax and gradients of a tile touch exactly the squares that hold a visible entry; entries of
/// these squares that are not visible are 0 after the softmax.
#[derive(Clone, Copy)]
pub(super) struct Tile<'a> {
    /// Lane m sees the keys below `limits[m]`.
    pub limits: &'a [f32; BLOCK],
    /// Number of the first key.
    pub first: usize,
    /// Number of keys.
    pub count: usize,
    /// Lanes, in whole squares.
    pub width: usize,
    /// Whether some entry is not visible.
    pub masked: bool,
    /// For each group of lanes, how many keys from the first on are computed.
    seen: [usize; BLOCK / SQUARE],
}

impl Tile<'_> {
    /// How many keys from the first on are computed for a lane.
    pub fn keys_of(&self, lane: usize) -> usize {
        self.seen[lane / SQUARE]
    }

    /// The squares as strips along the lanes: (keys, first lane that sees one of them), which all later lanes do.
    pub fn strips(&self) -> impl Iterator<Item = (Range<usize>, usize)> + '_ {
        let step = if self.masked { SQUARE } else { self.count };
        (0..self.count).step_by(step).map(move |key| {
            let hidden = self.seen.iter().filter(|&&seen| seen <= key).count();
            (key..self.count.min(key + step), hidden * SQUARE)
        })
    }

    /// The squares as strips along the keys: (lanes, number of keys, not 0), among the first `lanes`.
    pub fn columns(&self, lanes: usize) -> impl Iterator<Item = (Range<usize>, usize)> + '_ {
        let step = if self.masked { SQUARE } else { lanes };
        let strips = (0..lanes).step_by(step).map(move |lane| (lane..lanes.min(lane + step), self.keys_of(lane)));
        strips.filter(|(_, keys)| *keys > 0)
    }
}
