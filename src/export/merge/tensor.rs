//! One merged tensor: a weight widened to f32 a few rows at a time, changed, and rounded once.
//!
//! Invariant: rows come out the same whatever part of the tensor is asked for, as long as parts begin at multiples of
//! [`Merged::rows_of_task`].

use crate::adapter::delta::Delta;
use crate::adapter::dora::read_row;
use crate::bail;
use crate::device::cpu_path;
use crate::error::{Error, Result};
use crate::model::RawTensor;
use crate::ops::half_matrix::rounded;
use crate::ops::vector::kernel;
use crate::ops::{Bytes, MatRef, WeightRef};
use crate::quant::{SourceDtype, Values};
use half::f16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;
use std::ops::Range;

/// f32 values of a task: 512 KiB, which stay in a core's second-level cache while they are widened, changed and rounded.
const TASK_VALUES: usize = 1 << 17;

/// Rows of a task at least: each reads the whole of A.
const FEWEST_ROWS: usize = 32;

/// A weight with what is done to it.
pub(in crate::export) struct Merged<'a> {
    pub(super) weight: WeightRef<'a>,
    pub(super) delta: Option<Delta<'a>>,
    /// Of the result.
    pub(super) dtype: SourceDtype,
}

impl Merged<'_> {
    /// Bytes of a row of the result.
    pub(super) fn row_bytes(&self) -> usize {
        self.weight.cols() * bytes_of(self.dtype)
    }

    /// Rows that are computed at a time.
    pub(super) fn rows_of_task(&self) -> usize {
        (TASK_VALUES / self.weight.cols().max(1)).max(FEWEST_ROWS)
    }

    /// Some rows of the result.
    ///
    /// # Errors
    /// A value that is not finite, or that the dtype cannot hold.
    pub(super) fn rows(&self, range: Range<usize>, bytes: &mut [u8]) -> Result<()> {
        let (cols, row_bytes) = (self.weight.cols(), self.row_bytes());
        assert_eq!(bytes.len(), range.len() * row_bytes);
        if bytes.is_empty() {
            return Ok(());
        }
        let tasks = bytes.par_chunks_mut(self.rows_of_task() * row_bytes).enumerate();
        let bad = tasks.map_init(Vec::new, |values: &mut Vec<f32>, (task, bytes)| {
            let (start, count) = (range.start + task * self.rows_of_task(), bytes.len() / row_bytes);
            values.resize(count * cols, 0.0);
            let rows = values.chunks_exact_mut(cols).enumerate();
            rows.for_each(|(row, values)| read_row(self.weight, start + row, values));
            if let Some(delta) = &self.delta {
                delta.apply(start..start + count, values);
            }
            round(values, self.dtype, bytes)
        });
        match bad.find_map_first(|bad| bad) {
            None => Ok(()),
            Some(value) if value.is_finite() => {
                let name = super::dtype_name(self.dtype);
                let error = Error::failed(format!("the value {value} does not fit into {name}"));
                Err(error.hint("write the merged model in f32 or bf16 (--dtype)"))
            }
            Some(value) => bail!("a merged value is not finite ({value})"),
        }
    }

    /// The whole result.
    ///
    /// # Errors
    /// As [`Merged::rows`].
    pub(super) fn whole(&self) -> Result<RawTensor> {
        let (rows, cols) = (self.weight.rows(), self.weight.cols());
        let mut done = Ok(());
        let bytes = Bytes::filled(rows * self.row_bytes(), |bytes| done = self.rows(0..rows, bytes));
        done.map(|()| RawTensor { dtype: self.dtype.into(), shape: vec![rows, cols], bytes })
    }
}

/// A tensor of the base in another dtype, of any shape.
pub(super) fn convert(tensor: &RawTensor, dtype: SourceDtype) -> Result<RawTensor> {
    let len = tensor.elements();
    let weight = match tensor.values() {
        None => return Ok(tensor.clone()),
        Some(values) if values.dtype() == dtype || len == 0 => return Ok(tensor.clone()),
        // Rows of any length, so that threads share the work and no row is long.
        Some(values) => match len.is_multiple_of(CONVERTED_ROW) {
            true => weight_ref(values, len / CONVERTED_ROW, CONVERTED_ROW),
            false => weight_ref(values, 1, len),
        },
    };
    let converted = Merged { weight, delta: None, dtype }.whole()?;
    Ok(RawTensor { shape: tensor.shape.clone(), ..converted })
}

/// Values of a row where rows mean nothing.
const CONVERTED_ROW: usize = 64;

/// Values as a `[rows, cols]` weight.
pub(super) fn weight_ref(values: Values<'_>, rows: usize, cols: usize) -> WeightRef<'_> {
    match values {
        Values::F32(values) => WeightRef::F32(MatRef::new(values, rows, cols)),
        Values::F16(bits) => WeightRef::F16 { bits, rows, cols },
        Values::Bf16(bits) => WeightRef::Bf16 { bits, rows, cols },
    }
}

fn bytes_of(dtype: SourceDtype) -> usize {
    match dtype {
        SourceDtype::F32 => 4,
        SourceDtype::F16 | SourceDtype::Bf16 => 2,
    }
}

/// Rounds values; gives the first that is not finite afterwards, as it was before.
fn round(values: &[f32], dtype: SourceDtype, bytes: &mut [u8]) -> Option<f32> {
    let bad = |finite: &dyn Fn(f32) -> bool| values.iter().copied().find(|&value| !finite(value));
    match dtype {
        SourceDtype::F32 => match copy_f32(cpu_path(), values, bytes) {
            true => None,
            false => bad(&|value| value.is_finite()),
        },
        SourceDtype::F16 => {
            let mut halves = vec![f16::ZERO; values.len()];
            halves.convert_from_f32_slice(values);
            bytes.as_chunks_mut().0.iter_mut().zip(&halves).for_each(|(bytes, value)| *bytes = value.to_le_bytes());
            match halves.iter().all(|value| value.is_finite()) {
                true => None,
                false => bad(&|value| f16::from_f32(value).is_finite()),
            }
        }
        SourceDtype::Bf16 => match round_bf16(cpu_path(), values, bytes) {
            true => None,
            false => bad(&|value| rounded(value).is_finite()),
        },
    }
}

kernel! {
    /// Little-endian bytes of the values; whether all are finite.
    fn copy_f32(values: &[f32], bytes: &mut [u8]) -> bool {
        let mut largest = 0;
        for (bytes, value) in bytes.as_chunks_mut().0.iter_mut().zip(values) {
            *bytes = value.to_le_bytes();
            largest = largest.max(value.to_bits() & 0x7fff_ffff);
        }
        f32::from_bits(largest).is_finite()
    }
}

kernel! {
    /// Little-endian bytes of the nearest bf16 of the values; whether all are finite.
    fn round_bf16(values: &[f32], bytes: &mut [u8]) -> bool {
        let mut largest = 0;
        for (bytes, &value) in bytes.as_chunks_mut().0.iter_mut().zip(values) {
            let bits = rounded(value).to_bits();
            *bytes = ((bits >> 16) as u16).to_le_bytes();
            largest = largest.max(bits & 0x7fff_ffff);
        }
        f32::from_bits(largest).is_finite()
    }
}
