//! Where the matrices of an [`Arena`](super::Arena) lie: addresses alone, without the memory behind them.
//!
//! Memory comes in regions. A request gets the lowest free range that holds it in the first region that has one; a
//! returned range joins its free neighbours. Pages that were never lent out cost nothing, so what a process pays for is
//! how far up each region was ever used.
//!
//! Invariant: lent ranges never overlap, and the same requests in the same order get the same places. So the memory
//! planner replays a training step on a `Space` and learns the bytes that the step itself will take.
//! Reference: address-ordered first fit (Knuth, "The Art of Computer Programming", volume 1, §2.5).

use std::collections::BTreeMap;
use std::ops::Range;

/// Every range starts and ends at a multiple of this: a page, which is also any alignment that a kernel wants.
const UNIT: usize = 4096;

/// Regions of at least this size are multiples of it, so that the system can back them with huge pages.
pub(super) const HUGE_PAGE: usize = 2 << 20;

/// Smallest region, for arenas that hold a few tiles only.
const SMALLEST_REGION: usize = 1 << 20;

/// Regions grow with the arena up to this size.
const LARGEST_REGION: usize = 64 << 20;

/// A range on loan.
#[derive(Debug, PartialEq, Eq)]
pub struct Place {
    /// Which region.
    pub region: usize,
    /// First byte within it.
    pub start: usize,
    /// Length.
    pub bytes: usize,
}

/// The addresses of an arena.
#[derive(Debug, Default)]
pub struct Space {
    regions: Vec<Region>,
    live: usize,
    peak: usize,
}

#[derive(Debug)]
struct Region {
    size: usize,
    /// Free ranges: start to length; no two touch.
    free: BTreeMap<usize, usize>,
    /// End of the highest range ever lent out.
    top: usize,
}

impl Space {
    /// Lends a range of at least `bytes` bytes. Opens a region (the last one of [`Space::region_sizes`]) if need be.
    pub fn take(&mut self, bytes: usize) -> Place {
        let bytes = bytes.max(1).next_multiple_of(UNIT);
        let found = self.regions.iter_mut().enumerate().find_map(|(i, region)| Some((i, region.take(bytes)?)));
        let (region, start) = found.unwrap_or_else(|| {
            let size = self.next_size(bytes);
            let rest = if size > bytes { BTreeMap::from([(bytes, size - bytes)]) } else { BTreeMap::new() };
            self.regions.push(Region { size, free: rest, top: bytes });
            (self.regions.len() - 1, 0)
        });
        self.live += bytes;
        self.peak = self.peak.max(self.live);
        Place { region, start, bytes }
    }

    /// Forgets the last region, for which no memory was to be had. Nothing of it is on loan.
    pub fn forget_region(&mut self) {
        self.regions.pop();
    }

    /// Takes a range back.
    pub fn give(&mut self, place: Place) {
        self.live -= place.bytes;
        self.regions[place.region].give(place.start, place.bytes);
    }

    /// As large as all before it together, within limits.
    fn next_size(&self, bytes: usize) -> usize {
        let total: usize = self.regions.iter().map(|region| region.size).sum();
        let size = total.clamp(SMALLEST_REGION, LARGEST_REGION).max(bytes);
        if size >= HUGE_PAGE {
            size.next_multiple_of(HUGE_PAGE)
        } else {
            size
        }
    }

    /// Sizes of all regions.
    pub fn region_sizes(&self) -> impl ExactSizeIterator<Item = usize> + '_ {
        self.regions.iter().map(|region| region.size)
    }

    /// Bytes on loan.
    pub fn live(&self) -> usize {
        self.live
    }

    /// Largest value that [`Space::live`] has had.
    pub fn peak(&self) -> usize {
        self.peak
    }

    /// Bytes of memory that were ever used: up to the highest place of each region.
    pub fn touched(&self) -> usize {
        self.regions.iter().map(|region| region.top).sum()
    }

    /// Calls `release` for each free range that was used, and counts it as never used where it lies above all others.
    pub fn trim(&mut self, mut release: impl FnMut(usize, Range<usize>)) {
        for (index, region) in self.regions.iter_mut().enumerate() {
            for (&start, &length) in region.free.range(..region.top) {
                release(index, start..(start + length).min(region.top));
            }
            if let Some((&start, &length)) = region.free.last_key_value() {
                if start + length >= region.top {
                    region.top = region.top.min(start);
                }
            }
        }
    }
}

impl Region {
    fn take(&mut self, bytes: usize) -> Option<usize> {
        let (&start, &length) = self.free.iter().find(|(_, length)| **length >= bytes)?;
        self.free.remove(&start);
        if length > bytes {
            self.free.insert(start + bytes, length - bytes);
        }
        self.top = self.top.max(start + bytes);
        Some(start)
    }

    fn give(&mut self, mut start: usize, mut bytes: usize) {
        if let Some((&before, &length)) = self.free.range(..start).next_back() {
            if before + length == start {
                self.free.remove(&before);
                (start, bytes) = (before, length + bytes);
            }
        }
        if let Some(after) = self.free.remove(&(start + bytes)) {
            bytes += after;
        }
        self.free.insert(start, bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    #[test]
    fn a_returned_range_joins_its_neighbours_and_is_lent_again() {
        let mut space = Space::default();
        let [a, b, c] = [(); 3].map(|()| space.take(UNIT));
        assert_eq!([a.start, b.start, c.start], [0, UNIT, 2 * UNIT]);
        space.give(a);
        space.give(c);
        space.give(b);
        assert_eq!(space.live(), 0);
        assert_eq!(space.take(3 * UNIT), Place { region: 0, start: 0, bytes: 3 * UNIT });
        assert_eq!((space.touched(), space.region_sizes().len()), (3 * UNIT, 1));
    }

    #[test]
    fn the_lowest_hole_that_holds_a_request_is_filled() {
        let mut space = Space::default();
        let mut places: Vec<Place> = [1, 2, 1, 3, 1].iter().map(|units| space.take(units * UNIT)).collect();
        space.give(places.remove(3));
        space.give(places.remove(1));
        assert_eq!(space.take(3 * UNIT).start, 4 * UNIT);
        assert_eq!(space.take(1).start, UNIT);
        assert_eq!(space.take(UNIT).start, 2 * UNIT);
        assert_eq!(space.touched(), 8 * UNIT);
    }

    #[test]
    fn a_request_larger_than_a_region_gets_its_own() {
        let mut space = Space::default();
        space.take(UNIT);
        let large = space.take(100 * MIB + 1);
        assert_eq!((large.region, large.start), (1, 0));
        assert_eq!(space.region_sizes().collect::<Vec<_>>(), [MIB, 102 * MIB]);
        assert_eq!(space.take(UNIT).region, 0);
        assert_eq!(space.touched(), 100 * MIB + UNIT + 2 * UNIT);
    }

    #[test]
    fn requests_of_changing_size_reuse_the_same_memory() {
        let mut space = Space::default();
        for rows in [400, 512, 37, 511, 500, 480] {
            let places: Vec<Place> = (0..40).map(|i| space.take(rows * (1 + i % 3) * 1024)).collect();
            places.into_iter().for_each(|place| space.give(place));
        }
        let largest: usize = (0..40).map(|i| 512 * (1 + i % 3) * 1024).sum();
        assert_eq!(space.peak(), largest);
        assert!(space.touched() <= largest + largest / 10, "{} of {largest}", space.touched());
    }

    #[test]
    fn trimming_releases_every_used_range_that_is_free() {
        let mut space = Space::default();
        let mut places: Vec<Place> = (0..4).map(|_| space.take(UNIT)).collect();
        space.give(places.remove(3));
        space.give(places.remove(1));
        let mut released = Vec::new();
        space.trim(|region, range| released.push((region, range)));
        assert_eq!(released, [(0, UNIT..2 * UNIT), (0, 3 * UNIT..4 * UNIT)]);
        assert_eq!((space.live(), space.touched()), (2 * UNIT, 3 * UNIT));
    }
}
