//! NF4 on the card: quantising a weight that comes from the machine, and decoding it.

use super::{round, seconds, Context, Rows};
use crate::error::Result;
use crate::model::random::random_values;
use crate::quant::cuda::Quantizer;
use crate::quant::{QuantConfig, Values};
use half::bf16;
use serde_json::json;

/// Quantising with the copy to the card, and decoding; bytes are those of values and codes.
pub fn rows(context: &Context<'_>) -> Result<Rows> {
    let (gpu, scale) = (&context.gpu, context.options.scale);
    let (rows, cols) = scale.pick((16, 64), (4096, 11008));
    let count = rows * cols;
    let bits: Vec<u16> =
        random_values(0, "bench", count, 0.02).iter().map(|&value| bf16::from_f32(value).to_bits()).collect();
    let staging = gpu.buffer::<u8>(1, 2 * count)?;
    let mut quantizer = Quantizer::new(gpu);
    let mut quantize = || quantizer.quantize(Values::Bf16(&bits), [rows, cols], QuantConfig::default(), &staging);
    let repeats = scale.pick(1, 5);
    let weight = quantize()?;
    let quantising = seconds(gpu, repeats, || quantize().map(drop))?;
    let out = gpu.buffer(rows, cols)?;
    let decoding = seconds(gpu, repeats, || weight.dequantize(&out))?;
    let bytes = (2 * count + weight.bytes()) as f64;
    let row = |what: &str, seconds: f64| {
        json!({
            "what": what, "rows": rows, "cols": cols, "ms": round(1e3 * seconds), "gb_per_s": round(bytes / seconds / 1e9),
            "share_of_copy": round(bytes / seconds / context.bound.bytes),
        })
    };
    Ok(vec![row("quantise, from the machine's memory", quantising), row("decode", decoding)])
}
