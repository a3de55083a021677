//! Keys and values of every head as words of two bf16, made once for all the queries that read them.
//!
//! Layout: `[kv_heads, T, width]` words. Row i of a segment is the row of its own number; where a word holds two rows, row j
//! from the segment's first on holds rows 2j and 2j + 1 of the segment, and what lies behind them is unspecified.

use super::block::row_words;
use super::pairs::{interleaved, neighbours, Source};
use super::parallel::{in_order, scratch};
use super::product::PADDING;
use super::rows::Shared;
use super::{AttentionShape, BLOCK};
use crate::ops::Matrix;
use std::ops::Range;

/// Which values share a word.
#[derive(Clone, Copy)]
pub(super) enum Form {
    /// Two neighbours of a row.
    Neighbours,
    /// The same column of two rows.
    Interleaved,
}

impl Form {
    /// Words of a row.
    fn width(self, head_dim: usize) -> usize {
        match self {
            Form::Neighbours => row_words(head_dim),
            Form::Interleaved => head_dim.next_multiple_of(PADDING),
        }
    }

    /// Rows in a word.
    fn rows(self) -> usize {
        match self {
            Form::Neighbours => 1,
            Form::Interleaved => 2,
        }
    }
}

/// Where the rows of keys or values lie.
#[derive(Clone, Copy)]
pub(super) struct Layout {
    /// Number of rows.
    pub rows: usize,
    /// Values from one row of a head to the next.
    pub row: usize,
    /// Values from one head to the next.
    pub head: usize,
}

impl Layout {
    /// `[rows, kv_heads * head_dim]`.
    pub fn row_by_row(shape: AttentionShape, rows: usize) -> Layout {
        Layout { rows, row: shape.kv_width(), head: shape.head_dim }
    }
}

/// One of k and v.
pub(super) struct HeadWords {
    /// Words of a row.
    pub width: usize,
    rows: usize,
    words: Matrix,
}

impl HeadWords {
    /// Rows of a head from a segment's first on.
    pub fn of(&self, kv_head: usize, segment: &Range<usize>) -> &[f32] {
        let start = (kv_head * self.rows + segment.start) * self.width;
        &self.words[start..start + segment.len() * self.width]
    }
}

/// Which of k and v the forward pass reads, in which forms.
pub(super) fn of_forward<T>(k: T, v: T) -> [(T, Form); 2] {
    [(k, Form::Neighbours), (v, Form::Interleaved)]
}

/// Which of k and v the backward pass reads, in which forms.
pub(super) fn of_backward<T>(k: T, v: T) -> [(T, Form); 3]
where
    T: Copy,
{
    [(k, Form::Neighbours), (v, Form::Neighbours), (k, Form::Interleaved)]
}

/// Bytes of all words of `rows` rows in the backward pass; the forward pass has fewer.
pub fn bytes(shape: AttentionShape, rows: usize) -> usize {
    let widths = of_backward((), ()).map(|((), form)| form.width(shape.head_dim));
    widths.iter().sum::<usize>() * shape.kv_heads * rows * size_of::<f32>()
}

/// Converts matrices like `k`, each to its form.
pub(super) fn convert<const N: usize>(
    shape: AttentionShape,
    layout: Layout,
    segments: &[Range<usize>],
    tensors: [(&[f32], Form); N],
) -> [HeadWords; N] {
    let mut converted = tensors.map(|(_, form)| {
        let (rows, width) = (layout.rows, form.width(shape.head_dim));
        HeadWords { width, rows, words: scratch().matrix(shape.kv_heads * rows, width) }
    });
    let shared = converted.each_mut().map(|words| (words.width, words.rows, Shared::new(&mut words.words)));
    let blocks = segments.iter().flat_map(|segment| {
        (0..segment.len()).step_by(BLOCK).map(move |first| (segment.start, first..segment.len().min(first + BLOCK)))
    });
    let blocks: Vec<(usize, Range<usize>)> = blocks.collect();
    in_order(blocks.len() * shape.kv_heads, |task| {
        let ((start, rows), kv_head) = (&blocks[task / shape.kv_heads], task % shape.kv_heads);
        for ((data, form), (width, all_rows, to)) in tensors.iter().zip(&shared) {
            let data = &data[(start + rows.start) * layout.row + kv_head * layout.head..];
            let source = Source { data, rows: rows.len(), length: shape.head_dim, stride: layout.row };
            let (first, count) = (rows.start / form.rows(), rows.len().div_ceil(form.rows()));
            // SAFETY: blocks start at even rows, so no other task has these rows of words.
            let to = unsafe { to.slice((kv_head * all_rows + start + first) * width, count * width) };
            match form {
                Form::Neighbours => neighbours(source, *width, to),
                Form::Interleaved => interleaved(source, *width, to),
            }
        }
    });
    converted
}
