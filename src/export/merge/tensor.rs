//! One merged tensor: a weight widened to f32 a few rows at a time, changed, and rounded once.

use crate::adapter::delta::Delta;
use crate::adapter::dora::read_row;
use crate::bail;
use crate::error::{Error, Result};
use crate::model::RawTensor;
use crate::ops::{Bytes, MatRef, WeightRef};
use crate::quant::{SourceDtype, Values};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rayon::prelude::*;

/// f32 values in flight: 8 MiB, a few rows of any model, enough for every thread to work on.
const IN_FLIGHT: usize = 2 << 20;

/// `w` with `delta`, in `dtype`.
///
/// # Errors
/// A value that is not finite, or that `dtype` cannot hold.
pub(super) fn merge(w: WeightRef<'_>, delta: Option<Delta<'_>>, dtype: SourceDtype) -> Result<RawTensor> {
    let (rows, cols) = (w.rows(), w.cols());
    let at_once = (IN_FLIGHT / cols).max(1);
    let size = bytes_of(dtype);
    let mut values = vec![0.0f32; at_once.min(rows) * cols];
    let mut failed = None;
    let bytes = Bytes::filled(rows * cols * size, |bytes| {
        for (index, bytes) in bytes.chunks_mut(at_once * cols * size).enumerate() {
            let start = index * at_once;
            let count = bytes.len() / (cols * size);
            let values = &mut values[..count * cols];
            values.par_chunks_mut(cols).enumerate().for_each(|(row, values)| read_row(w, start + row, values));
            if let Some(delta) = &delta {
                delta.apply(start..start + count, values);
            }
            let rounded = values.par_chunks(cols).zip(bytes.par_chunks_mut(cols * size));
            let bad = rounded.map(|(values, bytes)| round(values, dtype, bytes)).find_map_first(|bad| bad);
            failed = failed.or(bad);
        }
    });
    match failed {
        None => Ok(RawTensor { dtype: dtype.into(), shape: vec![rows, cols], bytes }),
        Some(value) if value.is_finite() => {
            let error = Error::failed(format!("the value {value} does not fit into {}", super::dtype_name(dtype)));
            Err(error.hint("write the merged model in f32 or bf16 (--dtype)"))
        }
        Some(value) => bail!("a merged value is not finite ({value})"),
    }
}

/// A tensor of the base in another dtype, of any shape.
pub(super) fn convert(tensor: &RawTensor, dtype: SourceDtype) -> Result<RawTensor> {
    let len = tensor.elements();
    let view = match tensor.values() {
        None => return Ok(tensor.clone()),
        Some(values) if values.dtype() == dtype || len == 0 => return Ok(tensor.clone()),
        Some(values) => weight_ref(values, 1, len),
    };
    Ok(RawTensor { shape: tensor.shape.clone(), ..merge(view, None, dtype)? })
}

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

/// Rounds a row; gives the first value that is not finite afterwards, as it was before.
fn round(values: &[f32], dtype: SourceDtype, bytes: &mut [u8]) -> Option<f32> {
    let bad = |finite: &dyn Fn(usize) -> bool| (0..values.len()).find(|&i| !finite(i)).map(|i| values[i]);
    match dtype {
        SourceDtype::F32 => {
            bytes.as_chunks_mut().0.iter_mut().zip(values).for_each(|(bytes, value)| *bytes = value.to_le_bytes());
            bad(&|i| values[i].is_finite())
        }
        SourceDtype::F16 => {
            let mut rounded = vec![f16::ZERO; values.len()];
            rounded.convert_from_f32_slice(values);
            bytes.as_chunks_mut().0.iter_mut().zip(&rounded).for_each(|(bytes, value)| *bytes = value.to_le_bytes());
            bad(&|i| rounded[i].is_finite())
        }
        SourceDtype::Bf16 => {
            let mut rounded = vec![bf16::ZERO; values.len()];
            rounded.convert_from_f32_slice(values);
            bytes.as_chunks_mut().0.iter_mut().zip(&rounded).for_each(|(bytes, value)| *bytes = value.to_le_bytes());
            bad(&|i| rounded[i].is_finite())
        }
    }
}
