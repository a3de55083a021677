//! Quantisation to NF4, bit for bit as bitsandbytes does it on a CPU.
//!
//! Block b: `absmax = max |x|`; the code of x is the number of midpoints `(c[i] + c[i+1]) / 2` that are below
//! `y = clamp(x * (1 / absmax), -1, 1)`, all in f32: a tie takes the lower code. Borders of the format:
//! - a short last block divides (`x / absmax`) instead of multiplying, and its absmax is at least 1e-38;
//! - a full block takes the reciprocal of `max(absmax, 1e-38)` and stores absmax as it is (0 for a block of zeros);
//! - an odd count leaves the last low nibble at 7, the code of zero.
//!
//! Results do not depend on the number of threads: blocks are independent.

use super::double::{double_quantize, NESTED_BLOCK};
use super::kernels;
use super::nf4::{Nf4Matrix, Scales, SourceDtype, TASK_VALUES};
use crate::error::{Error, Result};
use crate::ops::bytes::Bytes;
use rayon::prelude::*;

/// How to quantise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct QuantConfig {
    /// Values that share a scale: a power of two from 32 to 4096.
    pub block: usize,
    /// Whether the scales are quantised to 8 bits as well (0.37 bits a weight less at block 64).
    pub double: bool,
}

impl Default for QuantConfig {
    fn default() -> Self {
        QuantConfig { block: 64, double: true }
    }
}

impl QuantConfig {
    /// Bytes of the codes and scales of so many weights.
    pub fn bytes(&self, values: usize) -> usize {
        let blocks = values.div_ceil(self.block);
        values.div_ceil(2) + if self.double { blocks + 4 * blocks.div_ceil(NESTED_BLOCK) } else { 4 * blocks }
    }

    /// Refuses block sizes that the format does not have.
    pub fn check(&self) -> Result<()> {
        if self.block.is_power_of_two() && (32..=4096).contains(&self.block) {
            return Ok(());
        }
        Err(Error::usage(format!("block = {}: expected a power of two from 32 to 4096", self.block))
            .hint("64 is what QLoRA uses"))
    }
}

/// Weights to quantise, row-major.
#[derive(Clone, Copy)]
pub enum Values<'a> {
    /// f32.
    F32(&'a [f32]),
    /// IEEE half precision bits.
    F16(&'a [u16]),
    /// bfloat16 bits.
    Bf16(&'a [u16]),
}

impl Values<'_> {
    /// Number of values.
    pub fn len(&self) -> usize {
        match self {
            Values::F32(values) => values.len(),
            Values::F16(bits) | Values::Bf16(bits) => bits.len(),
        }
    }

    /// Whether there is no value.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// dtype of the values.
    pub fn dtype(&self) -> SourceDtype {
        match self {
            Values::F32(_) => SourceDtype::F32,
            Values::F16(_) => SourceDtype::F16,
            Values::Bf16(_) => SourceDtype::Bf16,
        }
    }

    /// The values as they are stored.
    pub(super) fn bytes(&self) -> &[u8] {
        let (pointer, bytes) = match self {
            Values::F32(values) => (values.as_ptr().cast(), size_of_val(*values)),
            Values::F16(bits) | Values::Bf16(bits) => (bits.as_ptr().cast(), size_of_val(*bits)),
        };
        // SAFETY: the slice's own memory; numbers have no padding and u8 no demands.
        unsafe { std::slice::from_raw_parts(pointer, bytes) }
    }

    /// Values `start .. stop`.
    pub(super) fn slice(&self, start: usize, stop: usize) -> Values<'_> {
        match self {
            Values::F32(values) => Values::F32(&values[start..stop]),
            Values::F16(bits) => Values::F16(&bits[start..stop]),
            Values::Bf16(bits) => Values::Bf16(&bits[start..stop]),
        }
    }
}

/// Quantises a `[rows, cols]` weight.
///
/// Errors: a block size outside the format, a wrong number of values, a value that is not finite (its index named).
pub fn quantize(values: Values<'_>, rows: usize, cols: usize, config: QuantConfig) -> Result<Nf4Matrix> {
    config.check()?;
    let count = values.len();
    if count == 0 || rows.checked_mul(cols) != Some(count) {
        crate::bail!("expected the {rows} x {cols} values of a weight, found {count} values");
    }
    let mut absmax = vec![0.0f32; count.div_ceil(config.block)];
    let mut encoded = Ok(());
    let codes = Bytes::filled(count.div_ceil(2), |packed| {
        encoded = encode(values, cols, config.block, (packed, &mut absmax));
    });
    encoded?;
    let scales = if config.double { double_quantize(&absmax) } else { Scales::Plain(f32_bytes(&absmax)) };
    Ok(Nf4Matrix { rows, cols, block: config.block, codes, scales, dtype: values.dtype() })
}

/// The codes (two to a byte) and the absmax of each block of `values`, rows of `cols`, into memory of their size.
///
/// Errors: a value that is not finite (its index named).
pub fn encode(values: Values<'_>, cols: usize, block: usize, (packed, absmax): (&mut [u8], &mut [f32])) -> Result<()> {
    let count = values.len();
    assert!(packed.len() == count.div_ceil(2) && absmax.len() == count.div_ceil(block));
    let task = TASK_VALUES.next_multiple_of(block);
    let tasks = packed.par_chunks_mut(task / 2).zip(absmax.par_chunks_mut(task / block)).enumerate();
    let encode = |(i, (packed, absmax)): (usize, (&mut [u8], &mut [f32]))| {
        let start = i * task;
        let values = values.slice(start, count.min(start + task));
        kernels::encode(kernels::Blocks { values, block, absmax, packed }).map(|within| start + within)
    };
    match tasks.filter_map(encode).min() {
        None => Ok(()),
        Some(index) => Err(Error::failed(format!(
            "the value at flat index {index} (row {}, column {}) is not finite",
            index / cols,
            index % cols
        ))
        .hint("the weights are damaged: fetch the model again")),
    }
}

/// The little-endian bytes of f32 values.
pub(super) fn f32_bytes(values: &[f32]) -> Bytes {
    Bytes::filled(4 * values.len(), |bytes| {
        for (bytes, value) in bytes.chunks_exact_mut(4).zip(values) {
            bytes.copy_from_slice(&value.to_le_bytes());
        }
    })
}
