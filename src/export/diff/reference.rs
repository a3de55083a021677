//! The bits that a tuned tensor is compared with: its base's, in its dtype.
//!
//! A reference is the flat beginning of a base tensor whose rows have the tuned tensor's length; elements beyond its
//! end (added rows) count as zero. Another dtype is converted by one rule on every machine: round to nearest even,
//! subnormals kept, every NaN the same one. Hardware conversions differ in NaN payloads only.

use crate::model::{RawTensor, StoredDtype};
use crate::quant::Values;
use half::{bf16, f16};
use std::ops::Range;

/// What a tuned tensor is compared with.
pub(super) struct Reference<'a> {
    base: Option<&'a RawTensor>,
    dtype: StoredDtype,
}

impl<'a> Reference<'a> {
    /// Elements of `base` in `dtype`; without a base all are zero.
    pub(super) fn new(base: Option<&'a RawTensor>, dtype: StoredDtype) -> Reference<'a> {
        Reference { base, dtype }
    }

    /// Bits of the elements `range`, little-endian.
    pub(super) fn bits(&self, range: Range<usize>) -> Vec<u8> {
        let size = self.dtype.size();
        let mut bits = Vec::with_capacity(range.len() * size);
        if let Some(base) = self.base {
            let there = range.start.min(base.elements())..range.end.min(base.elements());
            match base.dtype == self.dtype {
                true => bits.extend_from_slice(&base.bytes[there.start * size..there.end * size]),
                false => convert(base, there, self.dtype, &mut bits),
            }
        }
        bits.resize(range.len() * size, 0);
        bits
    }
}

/// Whether `base` can stand for the beginning of a tensor of this dtype and shape.
pub(super) fn is_alike(base: &RawTensor, dtype: StoredDtype, shape: &[usize]) -> bool {
    let floats = base.dtype != StoredDtype::U8 && dtype != StoredDtype::U8;
    let rows = base.shape.len() == shape.len() && base.shape.get(1..) == shape.get(1..);
    (base.dtype == dtype || floats) && rows
}

fn convert(base: &RawTensor, range: Range<usize>, dtype: StoredDtype, bits: &mut Vec<u8>) {
    let value = |index: usize| match base.values() {
        Some(Values::F32(values)) => values[index],
        Some(Values::F16(values)) => f16::from_bits(values[index]).to_f32_const(),
        Some(Values::Bf16(values)) => bf16::from_bits(values[index]).to_f32_const(),
        None => 0.0,
    };
    let values = range.map(|index| match value(index) {
        value if value.is_nan() => f32::NAN,
        value => value,
    });
    match dtype {
        StoredDtype::F32 => bits.extend(values.flat_map(f32::to_le_bytes)),
        StoredDtype::F16 => bits.extend(values.flat_map(|value| f16::from_f32_const(value).to_le_bytes())),
        StoredDtype::Bf16 => bits.extend(values.flat_map(|value| bf16::from_f32_const(value).to_le_bytes())),
        StoredDtype::U8 => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Bytes;

    #[test]
    fn converted_bits_are_rounded_to_even_and_rows_beyond_the_base_are_zero() {
        let values = [1.0f32, -2.5, 1.0 + 1.0 / 2048.0, 65520.0, 6e-8, f32::NAN, f32::from_bits(0xffc0_1234)];
        let bytes = Bytes::owned(&values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>());
        let base = RawTensor { dtype: StoredDtype::F32, shape: vec![7], bytes };
        let bits = Reference::new(Some(&base), StoredDtype::F16).bits(0..9);
        let halves: Vec<u16> = bits.as_chunks().0.iter().map(|b| u16::from_le_bytes(*b)).collect();
        assert_eq!(halves, [0x3c00, 0xc100, 0x3c00, 0x7c00, 0x0001, 0x7e00, 0x7e00, 0, 0]);
        let bits = Reference::new(Some(&base), StoredDtype::F32).bits(6..8);
        assert_eq!(bits, [0x34, 0x12, 0xc0, 0xff, 0, 0, 0, 0]);
        assert_eq!(Reference::new(None, StoredDtype::Bf16).bits(3..5), [0; 4]);
    }

    #[test]
    fn added_rows_are_alike_and_other_widths_are_not() {
        let tensor = |dtype: StoredDtype, shape: &[usize]| {
            let bytes = Bytes::owned(&vec![0; shape.iter().product::<usize>() * dtype.size()]);
            RawTensor { dtype, shape: shape.to_vec(), bytes }
        };
        let base = tensor(StoredDtype::F16, &[5, 4]);
        assert!(is_alike(&base, StoredDtype::F32, &[6, 4]) && is_alike(&base, StoredDtype::F16, &[2, 4]));
        assert!(!is_alike(&base, StoredDtype::F16, &[5, 5]) && !is_alike(&base, StoredDtype::F16, &[20]));
        assert!(!is_alike(&base, StoredDtype::U8, &[5, 4]));
        assert!(is_alike(&tensor(StoredDtype::U8, &[3]), StoredDtype::U8, &[9]));
    }
}
