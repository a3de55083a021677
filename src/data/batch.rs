//! A micro-batch: the rows that go through the model at once.
use std::ops::Range;

/// Tokens of any number of documents, one row a token, no padding.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct MicroBatch {
    /// Token ids, `[T]`.
    pub ids: Vec<u32>,
    /// The token that each row must predict, -100 for none, `[T]`.
    pub targets: Vec<i32>,
    /// Position of each row in its document (window), `[T]`.
    pub positions: Vec<u32>,
    /// Row ranges of the documents, ascending and disjoint.
    pub segments: Vec<Range<usize>>,
    /// UTF-8 bytes of the predicted text tokens.
    pub text_bytes: u64,
    /// Whether a row's target is text (not end-of-text), `[T]`.
    pub text_target: Vec<bool>,
}

impl MicroBatch {
    /// Rows of ids, each a document of its own; every token but the first of a row is a target.
    pub fn from_rows(rows: &[Vec<u32>]) -> MicroBatch {
        let mut batch = MicroBatch::default();
        for row in rows {
            let start = batch.ids.len();
            batch.ids.extend(row);
            batch.positions.extend(0..row.len() as u32);
            batch.targets.extend(row.iter().skip(1).map(|id| *id as i32).chain([-100]));
            batch.text_target.extend((0..row.len()).map(|t| t + 1 < row.len()));
            batch.segments.push(start..batch.ids.len());
        }
        batch
    }

    /// Rows that have a target.
    pub fn target_count(&self) -> usize {
        self.targets.iter().filter(|target| **target != -100).count()
    }

    /// Rows of the longest document.
    pub fn longest_segment(&self) -> usize {
        self.segments.iter().map(|segment| segment.len()).max().unwrap_or(0)
    }
}
