//! NF4: 4-bit codes of a fixed 16-value codebook with one scale a block, bit for bit as bitsandbytes stores it.
//!
//! Layout: values are taken flat, row-major, in blocks of `block` values (the last may be short); rows play no part.
//! `value = round_to_dtype(NF4_CODE[code] * scale(block))`, the product in f32. Quantisation is [`super::quantize()`].
//! Reference: Dettmers et al., "QLoRA" (2023), §3 and appendix E; the golden vectors made with bitsandbytes.

use super::kernels;
use crate::ops::bytes::Bytes;
use half::{bf16, f16};
use rayon::prelude::*;

/// The codebook (Dettmers et al., QLoRA, appendix E), ascending.
pub const NF4_CODE: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// dtype of the tensor that was quantised: dequantised values are rounded to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SourceDtype {
    /// No rounding.
    F32,
    /// Round to nearest even, 11 bits.
    F16,
    /// Round to nearest even, 8 bits.
    Bf16,
}

impl SourceDtype {
    /// Rounds an f32 to this dtype.
    #[inline]
    pub fn round(self, value: f32) -> f32 {
        match self {
            SourceDtype::F32 => value,
            SourceDtype::F16 => f16::from_f32(value).to_f32(),
            SourceDtype::Bf16 => bf16::from_f32(value).to_f32(),
        }
    }
}

/// The scale (absmax) of each block of codes.
#[derive(Clone)]
pub enum Scales {
    /// One f32 a block.
    Plain(Bytes),
    /// Double quantisation: `scale[b] = map[codes[b]] * nested_absmax[b / nested_block] + offset`.
    Double {
        /// One u8 code a block.
        codes: Bytes,
        /// One f32 for each `nested_block` codes.
        nested_absmax: Vec<f32>,
        /// The 256-value codebook of the scales.
        map: Box<[f32; 256]>,
        /// Mean of the scales.
        offset: f32,
        /// Codes that share a nested absmax (256).
        nested_block: usize,
    },
}

/// A `[rows, cols]` weight in NF4. Values are taken flat, row-major; rows play no part in the blocks.
#[derive(Clone)]
pub struct Nf4Matrix {
    /// Output features.
    pub rows: usize,
    /// Input features.
    pub cols: usize,
    /// Values that share a scale (a power of two, 32 to 4096).
    pub block: usize,
    /// Two codes a byte: even flat index in the high nibble.
    pub codes: Bytes,
    /// Scale of each block.
    pub scales: Scales,
    /// dtype that dequantised values are rounded to.
    pub dtype: SourceDtype,
}

/// Values a parallel task takes: 64 KiB of f32, which stays in a core's second-level cache.
pub(super) const TASK_VALUES: usize = 16 * 1024;

impl Nf4Matrix {
    /// The f32 scale of block `index`.
    #[inline]
    pub fn scale(&self, index: usize) -> f32 {
        match &self.scales {
            Scales::Plain(values) => values.as_f32()[index],
            Scales::Double { codes, nested_absmax, map, offset, nested_block } => {
                map[codes[index] as usize] * nested_absmax[index / nested_block] + offset
            }
        }
    }

    /// Number of values, `rows * cols`.
    pub fn len(&self) -> usize {
        self.rows * self.cols
    }

    /// Whether there is no value at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of the codes and the scales.
    pub fn stored_bytes(&self) -> usize {
        let scales = match &self.scales {
            Scales::Plain(values) => values.len(),
            Scales::Double { codes, nested_absmax, .. } => codes.len() + 4 * nested_absmax.len(),
        };
        self.codes.len() + scales
    }

    /// All values into `out` (`rows * cols`, row-major), in parallel.
    pub fn dequantize(&self, out: &mut [f32]) {
        assert_eq!(out.len(), self.len());
        // Whole blocks a task, so that every task but the last one starts and ends on a byte.
        let task = TASK_VALUES.next_multiple_of(self.block);
        out.par_chunks_mut(task).enumerate().for_each(|(i, out)| self.dequantize_range(i * task, out));
    }

    /// The values of one row into `out` (`cols`).
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows && out.len() == self.cols);
        self.dequantize_range(row * self.cols, out);
    }

    /// The values from flat index `start` on into `out`: the rest of a block, whole blocks, the start of another.
    fn dequantize_range(&self, start: usize, out: &mut [f32]) {
        let head = out.len().min(start.next_multiple_of(self.block) - start);
        let (head, out) = out.split_at_mut(head);
        self.dequantize_part(start, head);
        let mut at = start + head.len();
        let mut scales = [0.0; 256];
        let whole = out.len() / self.block * self.block;
        let (whole, tail) = out.split_at_mut(whole);
        for out in whole.chunks_mut(self.block * scales.len()) {
            let scales = &mut scales[..out.len() / self.block];
            self.scales_from(at / self.block, scales);
            kernels::decode_blocks(&self.codes[at / 2..][..out.len() / 2], self.block, scales, self.dtype, out);
            at += out.len();
        }
        self.dequantize_part(at, tail);
    }

    /// Values of one block.
    fn dequantize_part(&self, start: usize, out: &mut [f32]) {
        if !out.is_empty() {
            kernels::decode_part(&self.codes, start, &self.value_table(start / self.block), out);
        }
    }

    /// The scales of block `first` and those after it.
    pub fn scales_from(&self, first: usize, out: &mut [f32]) {
        match &self.scales {
            Scales::Plain(values) => out.copy_from_slice(&values.as_f32()[first..first + out.len()]),
            Scales::Double { codes, nested_absmax, map, offset, nested_block } => {
                for (i, (scale, &code)) in out.iter_mut().zip(&codes[first..]).enumerate() {
                    *scale = map[usize::from(code)] * nested_absmax[(first + i) / nested_block] + offset;
                }
            }
        }
    }

    /// The 16 values that block `index` can hold: rounding the table once equals rounding each value.
    #[inline]
    pub fn value_table(&self, index: usize) -> [f32; 16] {
        kernels::value_table(self.scale(index), self.dtype)
    }

    /// The value at flat index `index`.
    #[inline]
    pub fn value(&self, index: usize) -> f32 {
        let byte = self.codes[index / 2];
        let code = if index.is_multiple_of(2) { byte >> 4 } else { byte & 15 };
        self.dtype.round(NF4_CODE[code as usize] * self.scale(index / self.block))
    }
}
