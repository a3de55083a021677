//! Rotary embedding of a GGUF model as the keys of `config.json`.
//!
//! Linear scaling is in the metadata. The scaling of LLaMA 3 is not: converters write a tensor `rope_freqs.weight` with
//! one divisor for each frequency, from which its four numbers are found again. They are defined by
//! `divisor(λ) = 1` below `λ = L/high`, `factor` above `L/low`, and `1 / ((1 - s)/factor + s)` with
//! `s = (L/λ - low) / (high - low)` between, for a wave length λ and an original context L. Reference: transformers
//! `modeling_rope_utils.py`, llama.cpp `convert_hf_to_gguf.py`.

use super::file::GgufFile;
use super::values::Form;
use crate::error::Result;
use crate::ops::rope::{RopeConfig, RopeScaling};
use crate::quant::SourceDtype;
use serde_json::{json, Value};

/// The tensor of divisors.
pub const FREQUENCIES: &str = "rope_freqs.weight";
/// What an f32 tensor may differ from the divisors computed here, relatively.
const TOLERANCE: f64 = 1e-4;

/// Base of the wave lengths.
pub fn theta(file: &GgufFile, prefix: &str) -> Result<f64> {
    let key = format!("{prefix}.rope.freq_base");
    let theta = file.number(&key)?.unwrap_or(10_000.0);
    match theta > 0.0 && theta.is_finite() {
        true => Ok(theta),
        false => Err(file.wrong(&key, "a number above 0")),
    }
}

/// `rope_scaling`, null for none. Errors: a scaling that the engine does not compute.
pub fn scaling(file: &GgufFile, prefix: &str, head_dim: usize) -> Result<Value> {
    let key = |name: &str| format!("{prefix}.rope.{name}");
    let kind = file.text(&key("scaling.type"))?;
    // Files of 2023 have the factor alone, under another name.
    let factor = match file.number(&key("scaling.factor"))? {
        Some(factor) => Some(factor),
        None => file.number(&key("scale_linear"))?,
    };
    let factor = factor.filter(|&factor| factor != 0.0 && factor != 1.0);
    let linear = match (kind, factor) {
        (Some("none"), _) | (None | Some("linear"), None) => None,
        (None | Some("linear"), Some(factor)) => Some(factor),
        _ => {
            return Err(file
                .wrong(&key("scaling.type"), "\"none\" or \"linear\"")
                .hint("yarn and longrope scaling are not computed; a model that uses one would give wrong numbers"));
        }
    };
    let divisors = divisors(file, head_dim)?;
    match (linear, divisors) {
        (None, None) => Ok(Value::Null),
        (Some(factor), None) => Ok(json!({"rope_type": "linear", "factor": factor})),
        (Some(_), Some(_)) => Err(file.error(format!("both linear scaling and {FREQUENCIES}: expected at most one"))),
        (None, Some(divisors)) => from_divisors(&divisors, theta(file, prefix)?, head_dim).ok_or_else(|| {
            file.error(format!("{FREQUENCIES}: the divisors are not those of a LLaMA 3 scaling"))
                .hint("start from the original model in safetensors, whose config.json says how it scales")
        }),
    }
}

/// The divisors that say a LLaMA 3 scaling, one for each frequency; none for another scaling.
pub fn llama3_divisors(rope: &RopeConfig) -> Option<Vec<f32>> {
    let RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } =
        rope.scaling
    else {
        return None;
    };
    let context = original_max_position_embeddings as f64;
    let llama3 = Llama3 { factor, low: low_freq_factor, high: high_freq_factor, context };
    let divisor = |i| llama3.divisor(wavelength(rope.theta, i, rope.head_dim)) as f32;
    Some((0..rope.head_dim / 2).map(divisor).collect())
}

fn wavelength(theta: f64, frequency: usize, head_dim: usize) -> f64 {
    std::f64::consts::TAU * theta.powf(2.0 * frequency as f64 / head_dim as f64)
}

fn divisors(file: &GgufFile, head_dim: usize) -> Result<Option<Vec<f64>>> {
    let Some(info) = file.tensor(FREQUENCIES) else { return Ok(None) };
    if info.shape != [head_dim / 2] {
        let found = format!("tensor {FREQUENCIES}: expected shape [{}], found {:?}", head_dim / 2, info.shape);
        return Err(file.error(found));
    }
    let form = Form { heads: 0, dtype: Some(SourceDtype::F32) };
    let tensor = file.values(FREQUENCIES, info, form)?;
    Ok(Some(tensor.bytes.as_f32().iter().map(|&value| f64::from(value)).collect()))
}

/// The scaling that gives these divisors.
fn from_divisors(divisors: &[f64], theta: f64, head_dim: usize) -> Option<Value> {
    let factor = divisors.iter().copied().fold(1.0, f64::max);
    if divisors.iter().any(|divisor| !(1.0 - TOLERANCE..=1e6).contains(divisor)) {
        return None;
    }
    if factor <= 1.0 + TOLERANCE {
        return Some(Value::Null);
    }
    let factor = rounded(factor);
    if divisors.iter().all(|divisor| (divisor / factor - 1.0).abs() < TOLERANCE) {
        return Some(json!({"rope_type": "linear", "factor": factor}));
    }
    // Only L/low and L/high act, so the numbers in use come first: every LLaMA 3 has 1, 4 and 8192.
    let contexts = std::iter::once(8192).chain((4..=20).map(|power| 1usize << power));
    contexts
        .filter_map(|context| {
            let llama3 = Llama3 { factor, low: 1.0, high: 4.0, context: context as f64 };
            let fits = (0..divisors.len())
                .all(|i| (divisors[i] / llama3.divisor(wavelength(theta, i, head_dim)) - 1.0).abs() < TOLERANCE);
            fits.then(|| {
                json!({
                    "rope_type": "llama3",
                    "factor": factor,
                    "low_freq_factor": llama3.low,
                    "high_freq_factor": llama3.high,
                    "original_max_position_embeddings": context,
                })
            })
        })
        .next()
}

/// The factor is a short number that went through f32.
fn rounded(factor: f64) -> f64 {
    let short = (factor * 1000.0).round() / 1000.0;
    if (short / factor - 1.0).abs() < 1e-6 {
        short
    } else {
        factor
    }
}

struct Llama3 {
    factor: f64,
    low: f64,
    high: f64,
    context: f64,
}

impl Llama3 {
    fn divisor(&self, wavelength: f64) -> f64 {
        if wavelength < self.context / self.high {
            return 1.0;
        }
        if wavelength > self.context / self.low {
            return self.factor;
        }
        let smooth = (self.context / wavelength - self.low) / (self.high - self.low);
        1.0 / ((1.0 - smooth) / self.factor + smooth)
    }
}
