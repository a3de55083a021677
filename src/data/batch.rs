//! Micro-batches: what one forward and backward sees, and the cursor that says which comes next.
//!
//! Invariant: the micro-batch at a cursor is a function of corpus, settings and cursor alone. Documents are shuffled by
//! the seed and packed once, so that every epoch has the same number of micro-batches; the order of windows is drawn
//! again for each epoch. Resuming is [`Batches::seek`] with a saved cursor.

use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::corpus::TokenizedCorpus;
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

    fn push(&mut self, corpus: &TokenizedCorpus, piece: &Piece) {
        let (document, start, rows) = (piece.document as usize, piece.start as usize, piece.rows as usize);
        let first = self.rows();
        let mut fed = corpus.token(document, start).0;
        for position in 0..rows {
            let (target, text) = corpus.token(document, start + position + 1);
            self.ids.push(fed);
            // Ids are far below 2³¹: the tokenizer bounds them by the embedding.
            self.targets.push(target as i32);
            self.positions.push(position as u32);
            self.text_target.push(text);
            fed = target;
        }
        self.segments.push(first..first + rows);
        self.text_bytes += corpus.bytes_of(document, start + 1..start + rows + 1);
    }

    fn of<'a>(corpus: &TokenizedCorpus, windows: impl Iterator<Item = &'a [Piece]>) -> MicroBatch {
        let mut batch = MicroBatch::default();
        windows.flatten().for_each(|piece| batch.push(corpus, piece));
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
    windows: Windows,
    /// Order of windows in the cursor's epoch.
    order: Vec<usize>,
    cursor: BatchCursor,
}

impl Batches {
    /// Packs `corpus` and starts at epoch 0.
    ///
    /// # Errors
    /// A corpus without a single prediction; a window length or count of zero (usage).
    pub fn new(corpus: Arc<TokenizedCorpus>, settings: BatchSettings) -> Result<Batches> {
        if settings.sequence_length == 0 || settings.windows == 0 {
            return Err(Error::usage("a micro-batch needs at least one window of at least one row"));
        }
        let order = RandomStream::derive(settings.seed, "documents", &[]).permutation(corpus.len());
        let documents = order.into_iter().map(|document| (document, corpus.rows(document)));
        let windows = match settings.packing {
            true => pack(documents, settings.sequence_length),
            false => one_by_one(documents, settings.sequence_length),
        };
        if windows.is_empty() {
            return Err(Error::failed(format!(
                "nothing to train on: {} documents, none with a token to predict",
                corpus.len()
            )));
        }
        let mut batches = Batches { corpus, settings, windows, order: Vec::new(), cursor: BatchCursor::default() };
        batches.order = batches.epoch_order(0);
        Ok(batches)
    }

    fn epoch_order(&self, epoch: u64) -> Vec<usize> {
        RandomStream::derive(self.settings.seed, "windows", &[epoch]).permutation(self.windows.len())
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
        let count = self.micro_batches_per_epoch();
        if cursor.index >= count {
            return Err(Error::failed(format!(
                "the saved position is micro-batch {}, but an epoch of this data has {count}",
                cursor.index
            ))
            .hint("resume with the data and the settings the run was started with"));
        }
        if cursor.epoch != self.cursor.epoch {
            self.order = self.epoch_order(cursor.epoch);
        }
        self.cursor = cursor;
        Ok(())
    }

    /// The micro-batch at the cursor; moves the cursor on, into the next epoch after the last.
    pub fn next_micro_batch(&mut self) -> MicroBatch {
        let first = self.cursor.index as usize * self.settings.windows;
        let last = (first + self.settings.windows).min(self.windows.len());
        let windows = self.order[first..last].iter().map(|&window| self.windows.get(window));
        let batch = MicroBatch::of(&self.corpus, windows);
        self.cursor.index += 1;
        if self.cursor.index == self.micro_batches_per_epoch() {
            self.cursor = BatchCursor { epoch: self.cursor.epoch + 1, index: 0 };
            self.order = self.epoch_order(self.cursor.epoch);
        }
        batch
    }

    /// blake3 of everything that decides the batches; a checkpoint keeps it beside the cursor.
    pub fn fingerprint(&self) -> blake3::Hash {
        let BatchSettings { sequence_length, packing, windows, seed } = self.settings;
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.corpus.fingerprint().as_bytes());
        for number in [sequence_length as u64, u64::from(packing), windows as u64, seed] {
            hasher.update(&number.to_le_bytes());
        }
        hasher.finalize()
    }
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
    let packed = in_order((0..corpus.len()).map(|document| (document, corpus.rows(document))), sequence_length);
    (0..packed.len().div_ceil(windows)).map(move |index| {
        let last = ((index + 1) * windows).min(packed.len());
        MicroBatch::of(corpus, (index * windows..last).map(|window| packed.get(window)))
    })
}

#[cfg(test)]
mod tests;
