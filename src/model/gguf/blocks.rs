//! Element and block types of GGUF tensors, and the values that blocks stand for.
//!
//! A block holds 32 or 256 consecutive values of a row as small integers q with a scale d, often a minimum m
//! (x = d·q, x = d·q + m, or two levels of scales in the K types). The arithmetic is candle's, in f32. Reference: ggml's
//! `ggml-common.h`.

use super::values;
use crate::quant::SourceDtype;
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{CpuStorage, Device, Tensor};
use std::borrow::Cow;

/// A type that tensors are stored in and that can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlockType(GgmlDType);

impl BlockType {
    /// Plain floats.
    pub const F32: BlockType = BlockType(GgmlDType::F32);
    /// IEEE half precision.
    pub const F16: BlockType = BlockType(GgmlDType::F16);
    /// bfloat16.
    pub const BF16: BlockType = BlockType(GgmlDType::BF16);
    /// 32 values in 4 bits with one scale.
    pub const Q4_0: BlockType = BlockType(GgmlDType::Q4_0);
    /// 32 values in 5 bits with one scale.
    pub const Q5_0: BlockType = BlockType(GgmlDType::Q5_0);
    /// 32 values in 5 bits with scale and minimum.
    pub const Q5_1: BlockType = BlockType(GgmlDType::Q5_1);
    /// 32 values in 8 bits with one scale.
    pub const Q8_0: BlockType = BlockType(GgmlDType::Q8_0);
    /// 256 values in 4 bits, scales and minima in 6.
    pub const Q4_K: BlockType = BlockType(GgmlDType::Q4K);
    /// 256 values in 5 bits, scales and minima in 6.
    pub const Q5_K: BlockType = BlockType(GgmlDType::Q5K);
    /// 256 values in 6 bits, scales in 8.
    pub const Q6_K: BlockType = BlockType(GgmlDType::Q6K);

    /// The type of this number in the format.
    pub fn of(number: u32) -> Result<BlockType, String> {
        use GgmlDType::*;
        Ok(BlockType(match number {
            0 => F32,
            1 => F16,
            2 => Q4_0,
            3 => Q4_1,
            6 => Q5_0,
            7 => Q5_1,
            8 => Q8_0,
            10 => Q2K,
            11 => Q3K,
            12 => Q4K,
            13 => Q5K,
            14 => Q6K,
            15 => Q8K,
            30 => BF16,
            _ => {
                let name = unread_name(number).map_or_else(|| format!("number {number}"), str::to_string);
                return Err(format!(
                    "type {name}, expected F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 or one of Q2_K to Q8_K"
                ));
            }
        }))
    }

    /// The number of the type in the format.
    pub fn number(self) -> u32 {
        use GgmlDType::*;
        match self.0 {
            F32 => 0,
            F16 => 1,
            Q4_0 => 2,
            Q4_1 => 3,
            Q5_0 => 6,
            Q5_1 => 7,
            Q8_0 => 8,
            Q8_1 => 9,
            Q2K => 10,
            Q3K => 11,
            Q4K => 12,
            Q5K => 13,
            Q6K => 14,
            Q8K => 15,
            BF16 => 30,
        }
    }

    /// The dtype of values that are stored one by one, as floats; `None` for blocks.
    pub fn plain(self) -> Option<SourceDtype> {
        match self.0 {
            GgmlDType::F32 => Some(SourceDtype::F32),
            GgmlDType::F16 => Some(SourceDtype::F16),
            GgmlDType::BF16 => Some(SourceDtype::Bf16),
            _ => None,
        }
    }

    /// Values of a block; 1 for plain floats.
    pub fn values(self) -> usize {
        self.0.block_size()
    }

    /// Bytes of a block.
    pub fn bytes(self) -> usize {
        self.0.type_size()
    }

    /// Bytes of `values` values, which must be whole blocks.
    pub fn bytes_of(self, values: usize) -> usize {
        values / self.values() * self.bytes()
    }

    /// The name in ggml.
    pub fn name(self) -> &'static str {
        use GgmlDType::*;
        match self.0 {
            F32 => "F32",
            F16 => "F16",
            BF16 => "BF16",
            Q4_0 => "Q4_0",
            Q4_1 => "Q4_1",
            Q5_0 => "Q5_0",
            Q5_1 => "Q5_1",
            Q8_0 => "Q8_0",
            Q8_1 => "Q8_1",
            Q2K => "Q2_K",
            Q3K => "Q3_K",
            Q4K => "Q4_K",
            Q5K => "Q5_K",
            Q6K => "Q6_K",
            Q8K => "Q8_K",
        }
    }

    /// The f32 values of whole blocks. The bytes must be aligned: to 4 where the type is F32 or Q8_K, else to 2.
    pub fn to_f32(self, bytes: &[u8]) -> Result<Vec<f32>, String> {
        let alignment = if matches!(self.0, GgmlDType::F32 | GgmlDType::Q8K) { 4 } else { 2 };
        assert!(bytes.len().is_multiple_of(self.bytes()) && bytes.as_ptr().addr().is_multiple_of(alignment));
        let count = bytes.len() / self.bytes() * self.values();
        match self.0.from_data(Cow::Borrowed(bytes)).dequantize(count) {
            Ok(CpuStorage::F32(values)) => Ok(values),
            Ok(_) => Err(format!("{}: the values are not f32", self.name())),
            Err(error) => Err(format!("{}: {error}", self.name())),
        }
    }

    /// Writes f32 values as whole blocks of this type into `out`, which has their length.
    ///
    /// Errors: a value that the type has no room for.
    pub fn from_f32(self, values: &[f32], out: &mut [u8]) -> Result<(), String> {
        assert!(values.len().is_multiple_of(self.values()) && out.len() == self.bytes_of(values.len()));
        if let Some(dtype) = self.plain() {
            return values::write(values, dtype, out);
        }
        // Scales are half floats and at most the largest value.
        if let Some(value) = values.iter().find(|value| value.abs() > f32::from(half::f16::MAX)) {
            return Err(format!("the value {value} does not fit in {}", self.name()));
        }
        let quantised = Tensor::from_slice(values, values.len(), &Device::Cpu)
            .and_then(|values| QTensor::quantize(&values, self.0))
            .map_err(|error| format!("{}: {error}", self.name()))?;
        let bytes = quantised.data().map_err(|error| format!("{}: {error}", self.name()))?;
        out.copy_from_slice(&bytes);
        Ok(())
    }
}

/// Types that exist in the format and are not read here.
fn unread_name(number: u32) -> Option<&'static str> {
    Some(match number {
        4 => "Q4_2",
        5 => "Q4_3",
        9 => "Q8_1",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        _ => return None,
    })
}
