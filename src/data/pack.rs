//! Packing: documents into windows of at most `sequence_length` rows.
//!
//! A document with more rows than a window is cut into pieces: piece i + 1 starts with the row after piece i's last, so
//! every token is still predicted once; what is lost is context, and positions start again at 0. Shorter documents are
//! never cut. Full pieces fill a window alone; the others are packed best-fit decreasing within buffers of
//! [`BUFFER_DOCUMENTS`] documents: the longest first, each into the fullest window that still takes it (Johnson 1973:
//! at most 11/9 of the optimum). No row is ever padding, so a window may be shorter than `sequence_length`.
//!
//! What stays in memory is 8 bytes a piece and 4 a window; how long a piece is follows from its document.

use std::ops::Range;

/// Documents that are packed together. Larger buffers gain nothing measurable; smaller ones leave gaps.
pub const BUFFER_DOCUMENTS: usize = 1 << 16;

/// Consecutive rows of one document, as many as a window takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Which document.
    pub document: u32,
    /// Which stretch of it: its first row is this times the window's length.
    pub number: u32,
}

impl Piece {
    /// The rows of a piece, of a document with so many rows.
    pub fn rows(&self, of_document: usize, length: usize) -> Range<usize> {
        let start = self.number as usize * length;
        start..(start + length).min(of_document)
    }
}

/// Windows, each a list of pieces.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Windows {
    pieces: Vec<Piece>,
    /// Pieces up to the end of each window; none where every window has one.
    ends: Option<Vec<u32>>,
}

impl Windows {
    fn with_several_pieces() -> Windows {
        Windows { pieces: Vec::new(), ends: Some(Vec::new()) }
    }

    /// Number of windows.
    pub fn len(&self) -> usize {
        self.ends.as_ref().map_or(self.pieces.len(), Vec::len)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The pieces of a window.
    pub fn get(&self, window: usize) -> &[Piece] {
        let Some(ends) = &self.ends else { return &self.pieces[window..=window] };
        let start = if window == 0 { 0 } else { ends[window - 1] as usize };
        &self.pieces[start..ends[window] as usize]
    }

    /// All windows in order.
    pub fn iter(&self) -> impl Iterator<Item = &[Piece]> {
        (0..self.len()).map(|window| self.get(window))
    }

    fn push(&mut self, pieces: impl IntoIterator<Item = Piece>) {
        self.pieces.extend(pieces);
        if let Some(ends) = &mut self.ends {
            ends.push(self.pieces.len() as u32);
        }
    }
}

/// Documents to pack, by index and number of rows; those without rows are passed over.
pub trait Documents: Iterator<Item = (usize, usize)> {}
impl<I: Iterator<Item = (usize, usize)>> Documents for I {}

/// Whether some rows of a document predict anything. Asked only of documents that are cut.
pub type Useful<'a> = &'a dyn Fn(usize, Range<usize>) -> bool;

/// The pieces of a document with their number of rows.
fn cut<'a>(
    document: usize,
    rows: usize,
    length: usize,
    useful: Useful<'a>,
) -> impl Iterator<Item = (Piece, usize)> + 'a {
    let piece = move |number: usize| Piece { document: document as u32, number: number as u32 };
    let piece = move |number| (piece(number), piece(number).rows(rows, length));
    let kept = move |(_, range): &(Piece, Range<usize>)| rows <= length || useful(document, range.clone());
    (0..rows.div_ceil(length)).map(piece).filter(kept).map(|(piece, range)| (piece, range.len()))
}

/// Packs documents for training, deterministically for a given order. `length` is at least 1.
pub fn pack(documents: impl Documents, length: usize, useful: Useful) -> Windows {
    let mut windows = Windows::with_several_pieces();
    windows.pieces.reserve_exact(documents.size_hint().0);
    let mut packer = Packer::new(length);
    let mut buffered = 0;
    for (document, rows) in documents {
        for (piece, rows) in cut(document, rows, length, useful) {
            if rows == length {
                windows.push([piece]);
            } else {
                packer.pieces.push((piece, rows));
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
pub fn one_by_one(documents: impl Documents, length: usize, useful: Useful) -> Windows {
    let mut windows = Windows::default();
    for (document, rows) in documents {
        windows.pieces.extend(cut(document, rows, length, useful).map(|(piece, _)| piece));
    }
    windows
}

/// Pieces in order, as many to a window as fit: for evaluation.
pub fn in_order(documents: impl Documents, length: usize, useful: Useful) -> Windows {
    let mut windows = Windows::with_several_pieces();
    let mut open: Vec<Piece> = Vec::new();
    let mut filled = 0;
    for (document, rows) in documents {
        for (piece, rows) in cut(document, rows, length, useful) {
            if filled + rows > length {
                windows.push(open.drain(..));
                filled = 0;
            }
            filled += rows;
            open.push(piece);
        }
    }
    if !open.is_empty() {
        windows.push(open);
    }
    windows
}

/// Best-fit decreasing over one buffer.
struct Packer {
    length: usize,
    pieces: Vec<(Piece, usize)>,
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
        pieces.sort_by_key(|(_, rows)| std::cmp::Reverse(*rows));
        let mut bins: Vec<Vec<Piece>> = Vec::new();
        for (piece, rows) in pieces.drain(..) {
            let (bin, space) = self.take(rows).unwrap_or_else(|| {
                bins.push(Vec::new());
                (bins.len() - 1, self.length)
            });
            bins[bin].push(piece);
            self.put(bin, space - rows);
        }
        bins.into_iter().for_each(|bin| windows.push(bin));
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

    const ALL: Useful = &|_, _| true;

    fn rows(documents: &[(usize, usize)], window: &[Piece], length: usize) -> usize {
        window.iter().map(|piece| piece.rows(documents[piece.document as usize].1, length).len()).sum()
    }

    #[test]
    fn every_row_is_in_exactly_one_window() {
        let documents = documents(3000);
        for length in [1, 7, 64, 128, 1024] {
            for windows in [
                pack(documents.iter().copied(), length, ALL),
                one_by_one(documents.iter().copied(), length, ALL),
                in_order(documents.iter().copied(), length, ALL),
            ] {
                let mut seen: Vec<Vec<u8>> = documents.iter().map(|&(_, rows)| vec![0; rows]).collect();
                for window in windows.iter() {
                    assert!(!window.is_empty() && rows(&documents, window, length) <= length);
                    for piece in window {
                        let rows = piece.rows(documents[piece.document as usize].1, length);
                        seen[piece.document as usize][rows].iter_mut().for_each(|count| *count += 1);
                    }
                }
                assert!(seen.iter().flatten().all(|&count| count == 1), "length {length}");
            }
        }
    }

    #[test]
    fn documents_that_fit_are_never_cut() {
        let documents = documents(3000);
        for windows in [pack(documents.iter().copied(), 256, ALL), in_order(documents.iter().copied(), 256, ALL)] {
            for piece in windows.iter().flatten() {
                let whole = documents[piece.document as usize].1;
                assert!(whole > 256 || piece.rows(whole, 256) == (0..whole));
            }
        }
    }

    #[test]
    fn packing_is_close_to_full() {
        let documents = documents(20_000);
        let windows = pack(documents.iter().copied(), 512, ALL);
        let total: usize = windows.iter().map(|window| rows(&documents, window, 512)).sum();
        assert!(windows.len() <= total.div_ceil(512) + 3, "{} windows for {total} rows", windows.len());
    }

    #[test]
    fn the_smallest_gap_that_fits_is_taken() {
        let windows = pack([(0, 6), (1, 7), (2, 3), (3, 4)].into_iter(), 10, ALL);
        let of = |window: usize| windows.get(window).iter().map(|piece| piece.document).collect::<Vec<_>>();
        assert_eq!((windows.len(), of(0), of(1)), (2, vec![1, 2], vec![0, 3]));
    }

    #[test]
    fn useless_pieces_of_documents_that_are_cut_are_left_out() {
        let answers_late = |document: usize, rows: Range<usize>| document != 1 || rows.end > 20;
        let windows = pack([(0, 4), (1, 25), (2, 9)].into_iter(), 10, &answers_late);
        let mut numbers: Vec<_> = windows.iter().flatten().map(|piece| (piece.document, piece.number)).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, [(0, 0), (1, 2), (2, 0)]);
    }
}
