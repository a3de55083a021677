//! Micro-batches: what one forward and backward sees, and the cursor that says which comes next.
//!
//! Invariant: the micro-batch at a cursor is a function of corpus, settings and cursor alone. Documents are shuffled by
//! the seed and packed once, so that every epoch has the same number of micro-batches; the order of windows is drawn
//! again for each epoch. Where sources have weights an epoch takes other documents than the one before ([`Mix`]), and
//! they are packed anew. Resuming is [`Batches::seek`] with a saved cursor.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::corpus::TokenizedCorpus;
use super::mix::Mix;
use super::pack::{in_order, one_by_one, pack, Piece, Windows};
use crate::error::{Error, Result};
use crate::ops::RandomStream;

/// Label of a row that has no target.
pub const IGNORE: i32 = -100;

/// The rows of some windows, one after the other. R = rows; there is no padding.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MicroBatch {
    /// Token fed at each row (R).
    pub ids: Vec<u32>,
    /// Token to predict at each row (R), [`IGNORE`] for none.
    pub targets: Vec<i32>,
    /// Position of each row in its segment, from 0 (R).
    pub positions: Vec<u32>,
    /// Rows that attend to each other: one range per document piece, in order, covering all rows.
    pub segments: Vec<Range<usize>>,
    /// Whether the row's target is text (R): false for EOS targets, which bits per byte leave out.
    pub text_target: Vec<bool>,
    /// UTF-8 bytes of the text that the rows predict.
    pub text_bytes: u64,
}

impl MicroBatch {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.ids.len()
    }

    /// Rows with a target.
    pub fn target_count(&self) -> usize {
        self.targets.iter().filter(|&&target| target != IGNORE).count()
    }

    /// Rows of ids, each a document of its own; every token but the first of a row is a target.
    pub fn from_rows(rows: &[Vec<u32>]) -> MicroBatch {
        let mut batch = MicroBatch::default();
        for row in rows {
            let start = batch.rows();
            batch.ids.extend(row);
            batch.positions.extend(0..row.len() as u32);
            batch.targets.extend(row.iter().skip(1).map(|&id| id as i32).chain([IGNORE]));
            batch.text_target.extend((0..row.len()).map(|position| position + 1 < row.len()));
            batch.segments.push(start..batch.rows());
        }
        batch
    }

    /// Rows of the longest segment.
    pub fn longest_segment(&self) -> usize {
        self.segments.iter().map(ExactSizeIterator::len).max().unwrap_or(0)
    }

    /// Rows whose target is text.
    pub fn text_target_count(&self) -> usize {
        self.text_target.iter().filter(|&&text| text).count()
    }

    fn push(&mut self, corpus: &TokenizedCorpus, piece: &Piece, length: usize) {
        let document = piece.document as usize;
        let (part, place) = corpus.place(document);
        let (ids, kind) = (part.ids(place), part.kind(place));
        let rows = piece.rows(corpus.fit().rows(part, place), length);
        let first = self.rows();
        self.ids.extend(&ids[rows.clone()]);
        self.positions.extend(0..rows.len() as u32);
        self.targets.resize(first + rows.len(), IGNORE);
        self.text_target.resize(first + rows.len(), false);
        for span in part.spans(place) {
            for token in span.start.max(rows.start + 1)..span.end.min(rows.end + 1) {
                let row = first + token - rows.start - 1;
                // Ids are far below 2³¹: the tokenizer bounds them by the embedding.
                self.targets[row] = ids[token] as i32;
                self.text_target[row] = corpus.is_text(kind, ids[token], token, ids.len());
            }
        }
        self.segments.push(first..first + rows.len());
        self.text_bytes += corpus.bytes_of(document, rows.start + 1..rows.end + 1);
    }

    fn of<'a>(corpus: &TokenizedCorpus, length: usize, windows: impl Iterator<Item = &'a [Piece]>) -> MicroBatch {
        let mut batch = MicroBatch::default();
        windows.flatten().for_each(|piece| batch.push(corpus, piece, length));
        batch
    }
}

/// How micro-batches are made of a corpus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchSettings {
    /// Most rows of a window.
    pub sequence_length: usize,
    /// Whether short documents share windows.
    pub packing: bool,
    /// Whether windows of like length come together.
    pub group_by_length: bool,
    /// Windows in a micro-batch.
    pub windows: usize,
    /// Seed of all shuffles.
    pub seed: u64,
}

/// Which micro-batch comes next.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchCursor {
    /// Epoch, from 0.
    pub epoch: u64,
    /// Micro-batch within the epoch, from 0.
    pub index: u64,
}

/// Micro-batches of a corpus, epoch after epoch.
#[derive(Debug, Clone)]
pub struct Batches {
    corpus: Arc<TokenizedCorpus>,
    settings: BatchSettings,
    mix: Option<Mix>,
    windows: Windows,
    /// Order of windows in the cursor's epoch.
    order: Vec<u32>,
    cursor: BatchCursor,
}

/// Windows that are sorted by length together, in micro-batches: as transformers' `group_by_length` has it.
const GROUP: usize = 50;

impl Batches {
    /// Packs `corpus` and starts at epoch 0.
    ///
    /// # Errors
    /// A corpus without a single prediction; a window length or count of zero (usage).
    pub fn new(corpus: Arc<TokenizedCorpus>, settings: BatchSettings) -> Result<Batches> {
        if settings.sequence_length == 0 || settings.windows == 0 {
            return Err(Error::usage("a micro-batch needs at least one window of at least one row"));
        }
        let mix = Mix::of(&corpus, settings.seed)?;
        let (windows, order) = (Windows::default(), Vec::new());
        let mut batches = Batches { corpus, settings, mix, windows, order, cursor: BatchCursor::default() };
        batches.windows = batches.pack_epoch(0);
        if batches.windows.is_empty() {
            let count = batches.corpus.len();
            return Err(Error::failed(format!("nothing to train on: {count} documents, none with a token to predict")));
        }
        batches.order = batches.epoch_order(&batches.windows, 0);
        Ok(batches)
    }

    /// The windows of an epoch; without weights those of every other epoch too.
    fn pack_epoch(&self, epoch: u64) -> Windows {
        let BatchSettings { sequence_length: length, packing, seed, .. } = self.settings;
        let corpus = &*self.corpus;
        let order = match &self.mix {
            Some(mix) => mix.documents(epoch).into_iter().map(|document| document as u32).collect(),
            None => shuffled(corpus.len(), &RandomStream::derive(seed, "documents", &[])),
        };
        let documents = order.into_iter().map(|document| (document as usize, corpus.rows(document as usize)));
        let useful = |document, rows| corpus.trained_rows(document, rows) > 0;
        match packing {
            true => pack(documents, length, &useful),
            false => one_by_one(documents, length, &useful),
        }
    }

    /// The order of an epoch's windows.
    fn epoch_order(&self, windows: &Windows, epoch: u64) -> Vec<u32> {
        let order = shuffled(windows.len(), &RandomStream::derive(self.settings.seed, "windows", &[epoch]));
        match self.settings.group_by_length {
            true => self.grouped(windows, order, epoch),
            false => order,
        }
    }

    /// `order` with windows of like length in one micro-batch, the micro-batches in random order.
    fn grouped(&self, windows: &Windows, mut order: Vec<u32>, epoch: u64) -> Vec<u32> {
        let size = self.settings.windows;
        for group in order.chunks_mut(size * GROUP) {
            group.sort_by_key(|&window| std::cmp::Reverse(self.rows_of(windows.get(window as usize))));
        }
        // The last micro-batch may be smaller; it stays the last, so that all others are full.
        let full = order.len() / size;
        let shuffled = RandomStream::derive(self.settings.seed, "groups", &[epoch]).permutation(full);
        let mut grouped: Vec<u32> = Vec::with_capacity(order.len());
        shuffled.into_iter().for_each(|group| grouped.extend(&order[group * size..(group + 1) * size]));
        grouped.extend(&order[full * size..]);
        grouped
    }

    fn rows_of(&self, window: &[Piece]) -> usize {
        let rows = |piece: &Piece| piece.rows(self.corpus.rows(piece.document as usize), self.settings.sequence_length);
        window.iter().map(|piece| rows(piece).len()).sum()
    }

    /// Goes to an epoch.
    fn enter(&mut self, epoch: u64) {
        if self.mix.is_some() {
            self.windows = self.pack_epoch(epoch);
        }
        self.order = self.epoch_order(&self.windows, epoch);
        self.cursor = BatchCursor { epoch, index: 0 };
    }

    /// Optimizer steps until at least `rows` rows were seen, from the first epoch on.
    pub fn steps_for_rows(&self, rows: u64, micro_batches_per_step: u64) -> u64 {
        let windows_per_step = self.settings.windows * micro_batches_per_step.max(1) as usize;
        let (mut seen, mut steps, mut epoch) = (0, 0, 0);
        while seen < rows {
            let windows = match self.mix {
                Some(_) => Cow::Owned(self.pack_epoch(epoch)),
                None => Cow::Borrowed(&self.windows),
            };
            // A step never crosses the end of an epoch.
            for step in self.epoch_order(&windows, epoch).chunks(windows_per_step) {
                if seen >= rows {
                    break;
                }
                seen += step.iter().map(|&window| self.rows_of(windows.get(window as usize)) as u64).sum::<u64>();
                steps += 1;
            }
            epoch += 1;
        }
        steps
    }

    /// The windows of the micro-batch at the cursor.
    fn at_cursor(&self) -> impl Iterator<Item = usize> + '_ {
        let first = self.cursor.index as usize * self.settings.windows;
        let last = (first + self.settings.windows).min(self.windows.len());
        self.order[first..last].iter().map(|&window| window as usize)
    }

    /// Moves the cursor on, into the next epoch after the last micro-batch.
    fn advance(&mut self) {
        self.cursor.index += 1;
        if self.cursor.index == self.micro_batches_per_epoch() {
            self.enter(self.cursor.epoch + 1);
        }
    }

    /// Rows of the present epoch that predict a trained token.
    pub fn trained_rows(&self) -> u64 {
        let length = self.settings.sequence_length;
        let trained = |piece: &Piece| {
            let document = piece.document as usize;
            self.corpus.trained_rows(document, piece.rows(self.corpus.rows(document), length)) as u64
        };
        self.windows.iter().flatten().map(trained).sum()
    }

    /// Rows of the windows of the present epoch, by window.
    pub fn rows_by_window(&self) -> impl Iterator<Item = usize> + '_ {
        self.windows.iter().map(|window| self.rows_of(window))
    }

    /// The corpus.
    pub fn corpus(&self) -> &TokenizedCorpus {
        &self.corpus
    }

    /// Number of windows of an epoch.
    pub fn windows(&self) -> usize {
        self.windows.len()
    }

    /// Micro-batches of an epoch; the last may have fewer windows.
    pub fn micro_batches_per_epoch(&self) -> u64 {
        self.windows.len().div_ceil(self.settings.windows) as u64
    }

    /// Optimizer steps of an epoch with so many micro-batches a step. A step never crosses the end of an epoch: its
    /// last step may have fewer micro-batches ([`Batches::left_in_epoch`]).
    pub fn steps_per_epoch(&self, micro_batches_per_step: u64) -> u64 {
        self.micro_batches_per_epoch().div_ceil(micro_batches_per_step.max(1))
    }

    /// Micro-batches of the cursor's epoch that are still to come; never 0.
    pub fn left_in_epoch(&self) -> u64 {
        self.micro_batches_per_epoch() - self.cursor.index
    }

    /// Which micro-batch [`Batches::next_micro_batch`] will give.
    pub fn cursor(&self) -> BatchCursor {
        self.cursor
    }

    /// Goes to a saved cursor.
    ///
    /// # Errors
    /// A cursor beyond the epoch: it was saved with other data or settings.
    pub fn seek(&mut self, cursor: BatchCursor) -> Result<()> {
        if cursor.epoch != self.cursor.epoch {
            self.enter(cursor.epoch);
        }
        let count = self.micro_batches_per_epoch();
        if cursor.index >= count {
            return Err(Error::failed(format!(
                "the saved position is micro-batch {}, but an epoch of this data has {count}",
                cursor.index
            ))
            .hint("resume with the data and the settings the run was started with"));
        }
        self.cursor = cursor;
        Ok(())
    }

    /// The micro-batch at the cursor; moves the cursor on, into the next epoch after the last.
    pub fn next_micro_batch(&mut self) -> MicroBatch {
        let windows = self.at_cursor().map(|window| self.windows.get(window));
        let batch = MicroBatch::of(&self.corpus, self.settings.sequence_length, windows);
        self.advance();
        batch
    }

    /// blake3 of everything that decides the batches; a checkpoint keeps it beside the cursor.
    pub fn fingerprint(&self) -> blake3::Hash {
        let BatchSettings { sequence_length, packing, group_by_length, windows, seed } = self.settings;
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.corpus.fingerprint().as_bytes());
        let flags = u64::from(packing) | u64::from(group_by_length) << 1;
        for number in [sequence_length as u64, flags, windows as u64, seed] {
            hasher.update(&number.to_le_bytes());
        }
        hasher.finalize()
    }
}

/// The numbers below `count`, shuffled: half the memory of a permutation in `usize`.
fn shuffled(count: usize, stream: &RandomStream) -> Vec<u32> {
    let mut order: Vec<u32> = (0..count as u32).collect();
    stream.shuffle(&mut order);
    order
}

/// Every document once, in order, for measuring: micro-batches of `windows` windows of at most `sequence_length` rows
/// (both at least 1).
///
/// Bits per byte = Σ NLL of rows with `text_target` / ln 2 / Σ `text_bytes`.
pub fn evaluation_batches(
    corpus: &TokenizedCorpus,
    sequence_length: usize,
    windows: usize,
) -> impl ExactSizeIterator<Item = MicroBatch> + '_ {
    assert!(sequence_length > 0 && windows > 0, "evaluation needs windows of at least one row");
    let documents = (0..corpus.len()).map(|document| (document, corpus.rows(document)));
    let packed = in_order(documents, sequence_length, &|document, rows| corpus.trained_rows(document, rows) > 0);
    (0..packed.len().div_ceil(windows)).map(move |index| {
        let last = ((index + 1) * windows).min(packed.len());
        MicroBatch::of(corpus, sequence_length, (index * windows..last).map(|window| packed.get(window)))
    })
}

#[cfg(test)]
mod tests;
