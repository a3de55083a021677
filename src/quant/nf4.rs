//! NF4: 4-bit codes of a fixed 16-value codebook with one scale a block, bit for bit as bitsandbytes stores it.

use crate::ops::bytes::Bytes;
use half::{bf16, f16};

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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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

    /// The value at flat index `index`.
    #[inline]
    pub fn value(&self, index: usize) -> f32 {
        let byte = self.codes[index / 2];
        let code = if index.is_multiple_of(2) { byte >> 4 } else { byte & 15 };
        self.dtype.round(NF4_CODE[code as usize] * self.scale(index / self.block))
    }
}
