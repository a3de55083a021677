//! NF4 on a GPU: quantising weights there, and a weight in GPU memory; see `nf4.cu`.
//!
//! Invariant: codes, scales and values equal those of the CPU bit for bit. The table by which scales are quantised a
//! second time is the CPU's; their mean is the CPU's sum, in its order.

use super::double::{code_table, dynamic_map_signed_8bit, NESTED_BLOCK, PART};
use super::{Nf4Matrix, QuantConfig, Scales, SourceDtype, Values};
use crate::device::cuda::Argument;
use crate::error::{Error, Result};
use crate::ops::bytes::Bytes;
use crate::ops::gpu::{Buffer, Gpu, THREADS};
use half::bf16;

/// Scales of blocks in GPU memory.
enum GpuScales {
    Plain(Buffer<f32>),
    Double { codes: Buffer<u8>, nested: Buffer<f32>, map: Buffer<f32>, offset: f32 },
}

/// A `[rows, cols]` weight in NF4 in GPU memory.
pub struct GpuNf4 {
    rows: usize,
    cols: usize,
    block: usize,
    codes: Buffer<u8>,
    scales: GpuScales,
    dtype: SourceDtype,
}

/// A dtype as the kernels number it.
pub(crate) fn stored(dtype: SourceDtype) -> i32 {
    match dtype {
        SourceDtype::F32 => 0,
        SourceDtype::F16 => 1,
        SourceDtype::Bf16 => 2,
    }
}

impl GpuNf4 {
    /// Copies a quantised weight to the GPU.
    pub fn new(gpu: &Gpu, matrix: &Nf4Matrix) -> Result<GpuNf4> {
        let codes = gpu.upload(&matrix.codes[..], 1, matrix.codes.len())?;
        let scales = GpuScales::new(gpu, &matrix.scales)?;
        Ok(GpuNf4 { rows: matrix.rows, cols: matrix.cols, block: matrix.block, codes, scales, dtype: matrix.dtype })
    }

    /// Bytes that it takes.
    pub fn bytes(&self) -> usize {
        let scales = match &self.scales {
            GpuScales::Plain(absmax) => 4 * absmax.len(),
            GpuScales::Double { codes, nested, map, .. } => codes.len() + 4 * (nested.len() + map.len()),
        };
        self.codes.len() + scales
    }

    /// Output features.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input features.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// What kernels read it by: codes, the plain scales, the scales' codes, nested scales and map, their offset, and the
    /// logarithm of the block's size.
    pub(crate) fn arguments(&self) -> [Argument; 7] {
        let none = || 0u64.into();
        let [absmax, codes, nested, map, offset] = match &self.scales {
            GpuScales::Plain(absmax) => [absmax.pointer(), none(), none(), none(), 0.0.into()],
            GpuScales::Double { codes, nested, map, offset } => {
                [none(), codes.pointer(), nested.pointer(), map.pointer(), (*offset).into()]
            }
        };
        [self.codes.pointer(), absmax, codes, nested, map, offset, (self.block.trailing_zeros() as i32).into()]
    }

    /// The values in bf16 into the first `rows · cols` elements of `out`, which must hold as many.
    pub fn dequantize(&self, out: &Buffer<bf16>) -> Result<()> {
        let count = self.rows * self.cols;
        assert!(out.len() >= count, "a buffer of {} for {count} values", out.len());
        let [codes, scales @ .., shift] = self.arguments();
        let [absmax, scale_codes, nested, map, offset] = scales;
        let (count_argument, dtype) = ((count as i64).into(), stored(self.dtype).into());
        let arguments = [codes, absmax, scale_codes, nested, map, offset, count_argument, shift, dtype, out.pointer()];
        out.gpu().each("nf4_dequantize", count.div_ceil(8), &arguments)
    }
}

impl GpuScales {
    /// Double quantised scales with this offset.
    fn around(self, value: f32) -> GpuScales {
        match self {
            GpuScales::Double { codes, nested, map, .. } => GpuScales::Double { codes, nested, map, offset: value },
            plain => plain,
        }
    }

    fn new(gpu: &Gpu, scales: &Scales) -> Result<GpuScales> {
        Ok(match scales {
            Scales::Plain(absmax) => GpuScales::Plain(gpu.upload(absmax.as_f32(), 1, absmax.len() / 4)?),
            Scales::Double { codes, nested_absmax, map, offset, nested_block } => {
                assert_eq!(*nested_block, 256, "the kernel's nested block");
                GpuScales::Double {
                    codes: gpu.upload(&codes[..], 1, codes.len())?,
                    nested: gpu.upload(nested_absmax, 1, nested_absmax.len())?,
                    map: gpu.upload(&map[..], 1, 256)?,
                    offset: *offset,
                }
            }
        })
    }
}

/// Quantises weights on a GPU, one after the other.
pub struct Quantizer {
    gpu: Gpu,
    /// [`code_table`], once it was needed.
    table: Option<Buffer<u8>>,
}

impl Quantizer {
    /// One without memory of its own yet.
    pub fn new(gpu: &Gpu) -> Quantizer {
        Quantizer { gpu: gpu.clone(), table: None }
    }

    /// Quantises a `[rows, cols]` weight. Its values pass through the first bytes of `staging` in their own dtype.
    ///
    /// # Errors
    /// As [`super::quantize()`]: a block size outside the format, a wrong number of values, a value that is not finite;
    /// and the GPU's.
    pub fn quantize(
        &mut self,
        values: Values<'_>,
        [rows, cols]: [usize; 2],
        config: QuantConfig,
        staging: &Buffer<u8>,
    ) -> Result<GpuNf4> {
        config.check()?;
        let (count, gpu) = (values.len(), &self.gpu);
        if count == 0 || rows.checked_mul(cols) != Some(count) {
            crate::bail!("expected the {rows} x {cols} values of a weight, found {count} values");
        }
        let source = staging.part(0, values.bytes().len());
        source.write(values.bytes())?;
        let blocks = count.div_ceil(config.block);
        let (codes, absmax) = (gpu.buffer(1, count.div_ceil(2))?, gpu.buffer::<f32>(1, blocks)?);
        let first_bad = gpu.upload(&[u64::MAX], 1, 1)?;
        let arguments = [
            source.pointer(),
            stored(values.dtype()).into(),
            (count as i64).into(),
            (config.block as i32).into(),
            codes.pointer(),
            absmax.pointer(),
            first_bad.pointer(),
        ];
        gpu.rows("nf4_quantize", blocks.div_ceil(THREADS as usize / 32), THREADS, &arguments)?;
        let (scales, offset) = match config.double {
            false => (GpuScales::Plain(absmax), None),
            true => self.double_quantize(&absmax).map(|(scales, offset)| (scales, Some(offset)))?,
        };
        // The only wait: everything else of the next weight may be asked for while this one is worked on.
        let bad = first_bad.read()?[0];
        if bad != u64::MAX {
            let (row, column) = (bad as usize / cols, bad as usize % cols);
            let place = format!("flat index {bad} (row {row}, column {column})");
            return Err(Error::failed(format!("the value at {place} is not finite"))
                .hint("the weights are damaged: fetch the model again"));
        }
        let scales = match offset {
            Some(offset) => scales.around(offset.read()?[0]),
            None => scales,
        };
        Ok(GpuNf4 { rows, cols, block: config.block, codes, scales, dtype: values.dtype() })
    }

    /// The scales in 8 bits, and the offset that their kernels are still computing.
    fn double_quantize(&mut self, absmax: &Buffer<f32>) -> Result<(GpuScales, Buffer<f32>)> {
        let (gpu, count) = (&self.gpu, absmax.len());
        let table = match self.table.take() {
            Some(table) => table,
            None => gpu.upload(code_table(), 1, code_table().len())?,
        };
        let parts = count.div_ceil(PART);
        let (sums, offset) = (gpu.buffer::<f64>(1, parts)?, gpu.buffer::<f32>(1, 1)?);
        let count_argument = Argument::from(count as i64);
        gpu.rows("nf4_scale_sums", parts.div_ceil(32), 32, &[absmax.pointer(), count_argument, sums.pointer()])?;
        let arguments = [sums.pointer(), (parts as i64).into(), count_argument, offset.pointer()];
        gpu.rows("nf4_scale_mean", 1, 32, &arguments)?;
        let blocks = count.div_ceil(NESTED_BLOCK);
        let (codes, nested) = (gpu.buffer::<u8>(1, count)?, gpu.buffer::<f32>(1, blocks)?);
        let map = gpu.upload(dynamic_map_signed_8bit(), 1, 256)?;
        let arguments =
            [absmax.pointer(), count_argument, offset.pointer(), table.pointer(), codes.pointer(), nested.pointer()];
        gpu.rows("nf4_scale_codes", blocks, NESTED_BLOCK as u32, &arguments)?;
        self.table = Some(table);
        Ok((GpuScales::Double { codes, nested, map, offset: 0.0 }, offset))
    }
}

/// Quantises one `[rows, cols]` weight on the GPU, with memory for its values that is given back.
///
/// # Errors
/// As [`Quantizer::quantize`].
pub fn quantize(gpu: &Gpu, values: Values<'_>, rows: usize, cols: usize, config: QuantConfig) -> Result<GpuNf4> {
    let staging = gpu.buffer(1, values.bytes().len())?;
    Quantizer::new(gpu).quantize(values, [rows, cols], config, &staging)
}

impl GpuNf4 {
    /// The weight as the CPU keeps it.
    pub fn to_host(&self) -> Result<Nf4Matrix> {
        let scales = match &self.scales {
            GpuScales::Plain(absmax) => Scales::Plain(super::quantize::f32_bytes(&absmax.read()?)),
            GpuScales::Double { codes, nested, map, offset } => {
                let mut values = Box::new([0.0; 256]);
                values.copy_from_slice(&map.read()?);
                let (codes, nested_absmax) = (Bytes::owned(&codes.read()?), nested.read()?);
                Scales::Double { codes, nested_absmax, map: values, offset: *offset, nested_block: 256 }
            }
        };
        let codes = Bytes::owned(&self.codes.read()?);
        Ok(Nf4Matrix { rows: self.rows, cols: self.cols, block: self.block, codes, scales, dtype: self.dtype })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{emulated_gpu, normal};
    use crate::quant;
    use crate::quant::double::double_quantize;
    use half::f16;

    /// Normal values with the borders of the format: zeros, a block of zeros, ties, tiny and huge ones.
    fn values(count: usize) -> Vec<f32> {
        let mut values = normal("weights", count);
        for (i, value) in values.iter_mut().enumerate() {
            match i % 97 {
                3 => *value = 0.0,
                5 => *value = -0.0,
                7 => *value = 1e-40,
                11 => *value *= 100.0,
                13 => *value = 0.5 * (quant::nf4::NF4_CODE[i % 15] + quant::nf4::NF4_CODE[i % 15 + 1]),
                _ => {}
            }
        }
        if count > 200 {
            values[64..128].fill(0.0);
        }
        values
    }

    fn assert_same(gpu: &Gpu, values: Values<'_>, cols: usize, config: QuantConfig) {
        let rows = values.len() / cols;
        let expected = quant::quantize(values, rows, cols, config).unwrap();
        let quantized = quantize(gpu, values, rows, cols, config).unwrap();
        let host = quantized.to_host().unwrap();
        assert_eq!(&host.codes[..], &expected.codes[..], "codes");
        let blocks = values.len().div_ceil(config.block);
        let bits = |matrix: &Nf4Matrix| (0..blocks).map(|block| matrix.scale(block).to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&host), bits(&expected), "scales");

        for weight in [quantized, GpuNf4::new(gpu, &expected).unwrap()] {
            let out = gpu.buffer::<bf16>(1, values.len()).unwrap();
            weight.dequantize(&out).unwrap();
            let plain: Vec<bf16> = (0..values.len()).map(|i| bf16::from_f32(expected.value(i))).collect();
            assert_eq!(out.read().unwrap(), plain, "values");
        }
    }

    #[test]
    fn equals_the_cpu_bit_for_bit() {
        let Some(gpu) = emulated_gpu() else { return };
        for (count, cols) in [(1, 1), (33, 33), (64, 8), (1000, 10), (40_000, 200), (777, 7)] {
            let plain = values(count);
            let halves: Vec<u16> = plain.iter().map(|&value| f16::from_f32(value).to_bits()).collect();
            let brains: Vec<u16> = plain.iter().map(|&value| bf16::from_f32(value).to_bits()).collect();
            for config in [(64, true), (64, false), (32, false), (128, true), (4096, false)] {
                let config = QuantConfig { block: config.0, double: config.1 };
                for values in [Values::F32(&plain), Values::F16(&halves), Values::Bf16(&brains)] {
                    assert_same(&gpu, values, cols, config);
                }
            }
        }
    }

    #[test]
    fn scales_of_several_parts_equal_the_cpu_bit_for_bit() {
        let Some(gpu) = emulated_gpu() else { return };
        let mut scales: Vec<f32> = normal("scales", 2 * PART + 300).iter().map(|value| 0.05 * value.abs()).collect();
        let even = vec![0.25; 257];
        scales[256..512].fill(0.0);
        for (i, count) in [1, 255, 256, 257, PART, 2 * PART + 300, 257].into_iter().enumerate() {
            let scales = if i == 6 { &even } else { &scales[..count] };
            let absmax = gpu.upload(scales, 1, count).unwrap();
            let (GpuScales::Double { codes, nested, .. }, offset) =
                Quantizer::new(&gpu).double_quantize(&absmax).unwrap()
            else {
                panic!("plain scales")
            };
            let Scales::Double { codes: expected, nested_absmax, offset: mean, .. } = double_quantize(scales) else {
                panic!("plain scales")
            };
            assert_eq!(offset.read().unwrap()[0].to_bits(), mean.to_bits(), "mean of {count}");
            assert_eq!(nested.read().unwrap(), nested_absmax, "{count}");
            assert!(codes.read().unwrap() == expected[..], "codes of {count}");
        }
    }

    #[test]
    fn names_the_first_value_that_is_not_finite() {
        let Some(gpu) = emulated_gpu() else { return };
        let mut values = normal("weights", 600);
        values[411] = f32::NAN;
        values[333] = f32::NEG_INFINITY;
        let config = QuantConfig::default();
        let error = quantize(&gpu, Values::F32(&values), 6, 100, config).err().expect("not finite");
        let expected = quant::quantize(Values::F32(&values), 6, 100, config).err().expect("not finite");
        assert_eq!(error.message(), expected.message());
    }
}
