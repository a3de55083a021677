//! Packing: documents into windows of at most `sequence_length` rows.
//!
//! A document with more rows than a window is cut into pieces: piece i + 1 starts with the row after piece i's last, so
//! every token is still predicted once; what is lost is context, and positions start again at 0. Shorter documents are
//! never cut. Full pieces fill a window alone; the others are packed best-fit decreasing within buffers of
//! [`BUFFER_DOCUMENTS`] documents: the longest first, each into the fullest window that still takes it (Johnson 1973:
//! at most 11/9 of the optimum). No row is ever padding, so a window may be shorter than `sequence_length`.

/// Documents that are packed together. Larger buffers gain nothing measurable; smaller ones leave gaps.
pub const BUFFER_DOCUMENTS: usize = 8192;

/// Consecutive rows of one document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Which document.
    pub document: u32,
    /// Its first row.
    pub start: u32,
    /// How many.
    pub rows: u32,
}

/// Windows, each a list of pieces.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Windows {
    pieces: Vec<Piece>,
    ends: Vec<usize>,
}

impl Windows {
    /// Number of windows.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The pieces of a window.
    pub fn get(&self, window: usize) -> &[Piece] {
        let start = if window == 0 { 0 } else { self.ends[window - 1] };
        &self.pieces[start..self.ends[window]]
    }

    /// All windows in order.
    pub fn iter(&self) -> impl Iterator<Item = &[Piece]> {
        (0..self.len()).map(|window| self.get(window))
    }

    fn push(&mut self, pieces: &[Piece]) {
        self.pieces.extend_from_slice(pieces);
        self.ends.push(self.pieces.len());
    }
}

/// Documents to pack, by index and number of rows; those without rows are passed over.
pub trait Documents: Iterator<Item = (usize, usize)> {}
impl<I: Iterator<Item = (usize, usize)>> Documents for I {}

/// The pieces of a document.
fn cut(document: usize, rows: usize, length: usize) -> impl Iterator<Item = Piece> {
    let piece = move |start: usize| Piece {
        document: document as u32,
        start: start as u32,
        rows: (rows - start).min(length) as u32,
    };
    (0..rows).step_by(length).map(piece)
}

/// Packs documents for training, deterministically for a given order. `length` is at least 1.
pub fn pack(documents: impl Documents, length: usize) -> Windows {
    let mut windows = Windows::default();
    let mut packer = Packer::new(length);
    let mut buffered = 0;
    for (document, rows) in documents {
        for piece in cut(document, rows, length) {
            if piece.rows as usize == length {
                windows.push(&[piece]);
            } else {
                packer.pieces.push(piece);
            }
        }
        buffered += 1;
        if buffered == BUFFER_DOCUMENTS {
            packer.flush(&mut windows);
            buffered = 0;
        }
    }
    packer.flush(&mut windows);
    windows
}

/// One piece a window, in order.
pub fn one_by_one(documents: impl Documents, length: usize) -> Windows {
    let mut windows = Windows::default();
    for (document, rows) in documents {
        cut(document, rows, length).for_each(|piece| windows.push(&[piece]));
    }
    windows
}

/// Pieces in order, as many to a window as fit: for evaluation.
pub fn in_order(documents: impl Documents, length: usize) -> Windows {
    let mut windows = Windows::default();
    let mut open: Vec<Piece> = Vec::new();
    let mut filled = 0;
    for (document, rows) in documents {
        for piece in cut(document, rows, length) {
            if filled + piece.rows as usize > length {
                windows.push(&open);
                open.clear();
                filled = 0;
            }
            filled += piece.rows as usize;
            open.push(piece);
        }
    }
    if !open.is_empty() {
        windows.push(&open);
    }
    windows
}

/// Best-fit decreasing over one buffer.
struct Packer {
    length: usize,
    pieces: Vec<Piece>,
    /// Open windows by the rows they still take.
    by_space: Vec<Vec<usize>>,
    /// One bit for each space that has an open window.
    spaces: Vec<u64>,
}

impl Packer {
    fn new(length: usize) -> Packer {
        Packer { length, pieces: Vec::new(), by_space: vec![Vec::new(); length + 1], spaces: vec![0; length / 64 + 1] }
    }

    fn flush(&mut self, windows: &mut Windows) {
        self.by_space.iter_mut().for_each(Vec::clear);
        self.spaces.fill(0);
        let mut pieces = std::mem::take(&mut self.pieces);
        // Stable: pieces of equal length keep the order in which they came.
        pieces.sort_by_key(|piece| std::cmp::Reverse(piece.rows));
        let mut bins: Vec<Vec<Piece>> = Vec::new();
        for piece in pieces.drain(..) {
            let rows = piece.rows as usize;
            let (bin, space) = self.take(rows).unwrap_or_else(|| {
                bins.push(Vec::new());
                (bins.len() - 1, self.length)
            });
            bins[bin].push(piece);
            self.put(bin, space - rows);
        }
        bins.iter().for_each(|bin| windows.push(bin));
        self.pieces = pieces;
    }

    /// Takes out the window with the least space of at least `rows`.
    fn take(&mut self, rows: usize) -> Option<(usize, usize)> {
        let mut word = rows / 64;
        let mut bits = self.spaces[word] & (u64::MAX << (rows % 64));
        while bits == 0 {
            word += 1;
            bits = *self.spaces.get(word)?;
        }
        let space = word * 64 + bits.trailing_zeros() as usize;
        let bin = self.by_space[space].pop()?;
        if self.by_space[space].is_empty() {
            self.spaces[word] &= !(1 << (space % 64));
        }
        Some((bin, space))
    }

    fn put(&mut self, bin: usize, space: usize) {
        self.by_space[space].push(bin);
        self.spaces[space / 64] |= 1 << (space % 64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::RandomStream;

    /// Documents of 0 to 700 rows, most of them short.
    fn documents(count: usize) -> Vec<(usize, usize)> {
        let random = RandomStream::new(3, 1);
        (0..count).map(|i| (i, (random.uniform(i as u64).powi(3) * 700.0) as usize)).collect()
    }

    fn rows(pieces: &[Piece]) -> usize {
        pieces.iter().map(|piece| piece.rows as usize).sum()
    }

    #[test]
    fn every_row_is_in_exactly_one_window() {
        let documents = documents(3000);
        for length in [1, 7, 64, 128, 1024] {
            for windows in [
                pack(documents.iter().copied(), length),
                one_by_one(documents.iter().copied(), length),
                in_order(documents.iter().copied(), length),
            ] {
                let mut seen: Vec<Vec<u8>> = documents.iter().map(|&(_, rows)| vec![0; rows]).collect();
                for window in windows.iter() {
                    assert!(!window.is_empty() && rows(window) <= length);
                    for piece in window {
                        let (start, end) = (piece.start as usize, (piece.start + piece.rows) as usize);
                        seen[piece.document as usize][start..end].iter_mut().for_each(|count| *count += 1);
                    }
                }
                assert!(seen.iter().flatten().all(|&count| count == 1), "length {length}");
            }
        }
    }

    #[test]
    fn documents_that_fit_are_never_cut() {
        for windows in [pack(documents(3000).into_iter(), 256), in_order(documents(3000).into_iter(), 256)] {
            for piece in windows.iter().flatten() {
                let whole = documents(3000)[piece.document as usize].1;
                assert!(whole > 256 || (piece.start, piece.rows as usize) == (0, whole));
            }
        }
    }

    #[test]
    fn packing_is_close_to_full() {
        let windows = pack(documents(20_000).into_iter(), 512);
        let total: usize = windows.iter().map(rows).sum();
        assert!(windows.len() <= total.div_ceil(512) + 3, "{} windows for {total} rows", windows.len());
    }

    #[test]
    fn the_smallest_gap_that_fits_is_taken() {
        let windows = pack([(0, 6), (1, 7), (2, 3), (3, 4)].into_iter(), 10);
        let of = |window: usize| windows.get(window).iter().map(|piece| piece.document).collect::<Vec<_>>();
        assert_eq!((windows.len(), of(0), of(1)), (2, vec![1, 2], vec![0, 3]));
    }
}
