//! The values of a GGUF tensor in the form of a Hugging Face checkpoint.
//!
//! llama.cpp rotates neighbouring pairs of a head's dimensions, transformers the two halves, so converters to GGUF
//! interleave the rows of the query and key projections. Here they are put back: with P = head_dim / 2, row
//! `h·2P + half·P + pair` of the checkpoint is row `h·2P + 2·pair + half` of the file. Values are copied only where rows
//! move, blocks are dequantised or another dtype is asked for; otherwise they stay in the mapping.

use super::header::{Flaw, TensorInfo};
use crate::ops::bytes::Bytes;
use crate::quant::file::{RawTensor, StoredDtype};
use crate::quant::SourceDtype;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use memmap2::Mmap;
use rayon::prelude::*;
use std::sync::Arc;

/// Values of a task.
const TASK_VALUES: usize = 1 << 16;

/// How a tensor is to be handed out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Form {
    /// Heads whose rows are put back in the order of the halves; 0 leaves the rows as they are.
    pub heads: usize,
    /// Round to this dtype; none keeps plain floats as they are stored, and gives blocks as f32.
    pub dtype: Option<SourceDtype>,
}

impl Form {
    /// dtype of the result.
    pub fn dtype_of(self, info: &TensorInfo) -> SourceDtype {
        self.dtype.or(info.kind.plain()).unwrap_or(SourceDtype::F32)
    }
}

/// Reads a tensor. The shape must suit `form.heads`: an even number of rows for each head.
///
/// Errors: a value that the dtype has no room for.
pub fn read(map: &Arc<Mmap>, info: &TensorInfo, form: Form) -> Result<RawTensor, Flaw> {
    let dtype = form.dtype_of(info);
    let stored = StoredDtype::from(dtype);
    let file = &map[info.span.clone()];
    let shape = info.shape.clone();
    if form.heads == 0 && info.kind.plain() == Some(dtype) {
        return Ok(RawTensor { dtype: stored, shape, bytes: Bytes::mapped(map, file, stored.size()) });
    }
    let rows = Rows::of(info, form.heads);
    let task_rows = (TASK_VALUES / rows.cols).max(1);
    let mut flaw = None;
    let bytes = Bytes::filled(rows.count * rows.cols * stored.size(), |out| {
        let tasks = out.par_chunks_mut(task_rows * rows.cols * stored.size()).enumerate();
        flaw = tasks
            .map(|(task, out)| {
                let first = task * task_rows;
                let source = rows.source(file, first, (first + task_rows).min(rows.count));
                if info.kind.plain() == Some(dtype) {
                    out.copy_from_slice(&source);
                    return Ok(());
                }
                write(&info.kind.to_f32(&source)?, dtype, out)
            })
            .find_map_first(|result| result.err());
    });
    // What was copied is not read again soon: a file larger than memory passes through it.
    Bytes::mapped(map, file, 1).release();
    match flaw {
        Some(flaw) => Err(flaw),
        None => Ok(RawTensor { dtype: stored, shape, bytes }),
    }
}

/// The rows of a tensor and where each lies.
struct Rows {
    count: usize,
    cols: usize,
    bytes: usize,
    /// Rows of a head; 0 where rows do not move.
    head: usize,
}

/// Bytes of some rows.
enum Source<'a> {
    Mapped(&'a [u8]),
    Gathered(Bytes),
}

impl std::ops::Deref for Source<'_> {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            Source::Mapped(bytes) => bytes,
            Source::Gathered(bytes) => bytes,
        }
    }
}

impl Rows {
    fn of(info: &TensorInfo, heads: usize) -> Rows {
        let values: usize = info.shape.iter().product();
        // The rows of a bias are its values.
        let cols = if heads > 0 && info.shape.len() == 1 { 1 } else { info.shape.last().copied().unwrap_or(1) };
        let count = values / cols;
        let head = count.checked_div(heads).unwrap_or(0);
        assert!(heads == 0 || head * heads == count && head.is_multiple_of(2), "rows of whole, even heads");
        Rows { count, cols, bytes: info.kind.bytes_of(cols), head }
    }

    /// Bytes of the checkpoint's rows `start .. end`.
    fn source<'a>(&self, file: &'a [u8], start: usize, end: usize) -> Source<'a> {
        if self.head == 0 {
            return Source::Mapped(&file[start * self.bytes..end * self.bytes]);
        }
        Source::Gathered(Bytes::filled((end - start) * self.bytes, |out| {
            for (row, out) in (start..end).zip(out.chunks_exact_mut(self.bytes)) {
                let from = file_row(row, self.head) * self.bytes;
                out.copy_from_slice(&file[from..from + self.bytes]);
            }
        }))
    }
}

/// Where the checkpoint's row lies in the file, for heads of `head` rows.
fn file_row(row: usize, head: usize) -> usize {
    let (first, within) = (row / head * head, row % head);
    let pairs = head / 2;
    first + 2 * (within % pairs) + within / pairs
}

/// Which row of the checkpoint is the file's `row`, for heads of `head` rows.
pub fn checkpoint_row(row: usize, head: usize) -> usize {
    let (first, within) = (row / head * head, row % head);
    first + within / 2 + within % 2 * (head / 2)
}

/// Writes f32 values as little-endian `dtype`.
pub(super) fn write(values: &[f32], dtype: SourceDtype, out: &mut [u8]) -> Result<(), Flaw> {
    match dtype {
        SourceDtype::F32 => {
            for (out, value) in out.chunks_exact_mut(4).zip(values) {
                out.copy_from_slice(&value.to_le_bytes());
            }
            Ok(())
        }
        SourceDtype::F16 => {
            let mut narrow = vec![f16::ZERO; values.len()];
            narrow.convert_from_f32_slice(values);
            copy_words(&narrow, f16::to_le_bytes, out);
            overflow(values, narrow.iter().map(|value| value.is_finite()), "F16")
        }
        SourceDtype::Bf16 => {
            let mut narrow = vec![bf16::ZERO; values.len()];
            narrow.convert_from_f32_slice(values);
            copy_words(&narrow, bf16::to_le_bytes, out);
            overflow(values, narrow.iter().map(|value| value.is_finite()), "BF16")
        }
    }
}

fn copy_words<T: Copy>(values: &[T], bytes: impl Fn(T) -> [u8; 2], out: &mut [u8]) {
    for (out, &value) in out.chunks_exact_mut(2).zip(values) {
        out.copy_from_slice(&bytes(value));
    }
}

/// An error if a finite value became infinite.
fn overflow(values: &[f32], finite: impl Iterator<Item = bool>, name: &str) -> Result<(), Flaw> {
    match values.iter().zip(finite).find(|(value, finite)| value.is_finite() && !finite) {
        Some((value, _)) => Err(format!("the value {value} does not fit in {name}")),
        None => Ok(()),
    }
}

#[cfg(test)]
#[path = "values_tests.rs"]
mod tests;
