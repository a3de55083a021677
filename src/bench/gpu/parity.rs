//! Every operation on the card against the CPU's, at shapes with odd sizes.
//!
//! A result's distance is given as a share of what is allowed: the rounding of bf16 (2⁻⁸ of the value) and some noise,
//! a share of the largest value. NF4 must agree bit for bit.

use super::{round, Rows};
use crate::device::Compute;
use crate::error::Result;
use crate::model::random::random_values;
use crate::ops::attention::{self, cuda as gpu_attention, AttentionShape};
use crate::ops::cross_entropy::cuda as gpu_cross_entropy;
use crate::ops::dropout::{self, cuda as gpu_dropout};
use crate::ops::embedding::cuda as gpu_embedding;
use crate::ops::gpu::{Buffer, Gpu};
use crate::ops::linear::cuda::{self as gpu_linear, GpuLinear, GpuWeight};
use crate::ops::rms_norm::{self, cuda as gpu_rms_norm};
use crate::ops::rope::cuda::{self as gpu_rope, GpuRopeTable};
use crate::ops::rope::{self, Direction, RopeConfig, RopeScaling, RopeTable};
use crate::ops::swiglu::{self, cuda as gpu_swiglu};
use crate::ops::{Arena, RandomStream};
use crate::quant::cuda::quantize;
use crate::quant::{self, QuantConfig, Values};
use half::bf16;
use serde_json::{json, Value};

/// Largest distance as a share of what is allowed; infinite where a value is not a number or lengths differ.
pub fn worst(actual: &[bf16], expected: &[f32], noise: f32) -> f64 {
    if actual.len() != expected.len() {
        return f64::INFINITY;
    }
    let largest = expected.iter().fold(1e-3f32, |largest, value| largest.max(value.abs()));
    let share = |(actual, expected): (&bf16, &f32)| {
        let error = (actual.to_f32() - expected).abs() / (expected.abs() / 256.0 + noise * largest);
        if error.is_nan() {
            f64::INFINITY
        } else {
            f64::from(error)
        }
    };
    actual.iter().zip(expected).map(share).fold(0.0, f64::max)
}

fn row(what: &str, case: &str, share: f64) -> Value {
    let shown = if share.is_finite() { json!(round(share)) } else { json!("not a number") };
    json!({ "what": what, "case": case, "share_of_allowed": shown, "passed": share <= 1.0 })
}

fn same(what: &str, case: &str, is_same: bool) -> Value {
    row(what, case, if is_same { 0.0 } else { f64::INFINITY })
}

/// Normal values rounded to bf16, here and on the card.
struct Pair {
    here: Vec<f32>,
    there: Buffer<bf16>,
}

fn pair(gpu: &Gpu, label: &str, rows: usize, cols: usize) -> Result<Pair> {
    let halves: Vec<bf16> = random_values(1, label, rows * cols, 1.0).iter().map(|&v| bf16::from_f32(v)).collect();
    Ok(Pair { here: halves.iter().map(|v| v.to_f32()).collect(), there: gpu.upload(&halves, rows, cols)? })
}

/// One row a result.
pub fn rows(gpu: &Gpu) -> Result<Rows> {
    let mut rows = Rows::new();
    norms(gpu, &mut rows)?;
    activations(gpu, &mut rows)?;
    rotations(gpu, &mut rows)?;
    masks(gpu, &mut rows)?;
    embeddings(gpu, &mut rows)?;
    losses(gpu, &mut rows)?;
    attentions(gpu, &mut rows)?;
    weights(gpu, &mut rows)?;
    products(gpu, &mut rows)?;
    Ok(rows)
}

fn norms(gpu: &Gpu, out: &mut Rows) -> Result<()> {
    for (rows, features) in [(1, 8), (5, 200), (3, 4104)] {
        let case = format!("[{rows},{features}]");
        let (x, dy, dx) =
            (pair(gpu, "x", rows, features)?, pair(gpu, "dy", rows, features)?, pair(gpu, "dx", rows, features)?);
        let weight = random_values(1, "weight", features, 1.0);
        let there = gpu.upload(&weight, 1, features)?;
        let (y, inverse) = (gpu.buffer(rows, features)?, gpu.buffer(rows, 1)?);
        gpu_rms_norm::forward(&x.there, None, &there, 1e-5, &y, &inverse)?;
        gpu_rms_norm::backward(&x.there, &inverse, &there, &dy.there, &dx.there)?;
        let (mut expected, mut inv_rms, mut gradient) = (vec![0.0; x.here.len()], vec![0.0; rows], dx.here);
        rms_norm::forward(&x.here, &weight, 1e-5, &mut expected, &mut inv_rms);
        let saved = rms_norm::Saved { x: &x.here, inv_rms: &inv_rms, weight: &weight };
        rms_norm::backward(saved, &dy.here, &mut gradient, None);
        out.push(row("norm, forward", &case, worst(&y.read()?, &expected, 1e-5)));
        out.push(row("norm, backward", &case, worst(&dx.there.read()?, &gradient, 1e-4)));
    }
    Ok(())
}

fn activations(gpu: &Gpu, out: &mut Rows) -> Result<()> {
    for (rows, cols) in [(1, 2), (3, 172), (40, 66)] {
        let case = format!("[{rows},{cols}]");
        let (mut gate, mut up, mut gradient) =
            (pair(gpu, "gate", rows, cols)?, pair(gpu, "up", rows, cols)?, pair(gpu, "gradient", rows, cols)?);
        let activated = gpu.buffer(rows, cols)?;
        gpu_swiglu::forward(&gate.there, &up.there, &activated)?;
        let mut expected = vec![0.0; rows * cols];
        swiglu::forward(&gate.here, &up.here, &mut expected);
        out.push(row("swiglu, forward", &case, worst(&activated.read()?, &expected, 1e-5)));
        gpu_swiglu::backward_in_place(&gate.there, &up.there, &gradient.there)?;
        swiglu::backward_in_place(&mut gate.here, &mut up.here, &mut gradient.here);
        for (name, pair) in [("gate's gradient", &gate), ("up's gradient", &up), ("activation again", &gradient)] {
            out.push(row(&format!("swiglu, {name}"), &case, worst(&pair.there.read()?, &pair.here, 1e-5)));
        }
    }
    Ok(())
}

fn rotations(gpu: &Gpu, out: &mut Rows) -> Result<()> {
    for (rows, heads, head_dim) in [(1, 1, 16), (65, 4, 64)] {
        let config = RopeConfig { theta: 10_000.0, head_dim, scaling: RopeScaling::Default };
        let table = RopeTable::new(&config, 300);
        let positions: Vec<u32> = (0..rows as u32).map(|row| row * 37 % 300).collect();
        let (there, at) = (GpuRopeTable::new(gpu, &table)?, gpu.upload(&positions, rows, 1)?);
        for direction in [Direction::Forward, Direction::Backward] {
            let mut x = pair(gpu, "x", rows, heads * head_dim)?;
            gpu_rope::apply(&x.there, heads, &at, &there, direction)?;
            rope::apply(&mut x.here, heads, &positions, &table, direction);
            let case = format!("{rows} rows, {heads} heads of {head_dim}, {direction:?}");
            out.push(row("rotation", &case, worst(&x.there.read()?, &x.here, 1e-5)));
        }
    }
    Ok(())
}

fn masks(gpu: &Gpu, out: &mut Rows) -> Result<()> {
    let stream = RandomStream::derive(u64::MAX - 5, "mask", &[1, 2, 3]);
    for count in [1, 1027] {
        let x = pair(gpu, "x", 1, count)?;
        let dropped = gpu.buffer(1, count)?;
        gpu_dropout::apply(&x.there, &dropped, 0.3, stream)?;
        let mut expected = vec![0.0; count];
        dropout::apply(&x.here, &mut expected, 0.3, stream);
        let is_same = dropped.read()?.iter().zip(&expected).all(|(a, e)| *a == bf16::from_f32(*e));
        out.push(same("dropout", &count.to_string(), is_same));
        let noisy = x.there.duplicate()?;
        gpu_dropout::add_uniform(&noisy, 0.25, stream)?;
        let mut expected = x.here;
        dropout::add_uniform(&mut expected, 0.25, stream);
        out.push(row("noise of embeddings", &count.to_string(), worst(&noisy.read()?, &expected, 1e-5)));
    }
    Ok(())
}

fn embeddings(gpu: &Gpu, out: &mut Rows) -> Result<()> {
    let table = pair(gpu, "table", 9, 16)?;
    let ids = [8u32, 0, 3, 5];
    let (there, gathered) = (gpu.upload(&ids, 4, 1)?, gpu.buffer(4, 16)?);
    gpu_embedding::gather(&table.there, &there, &gathered)?;
    let back = gpu.zeros(9, 16)?;
    gpu_embedding::scatter(&gathered, &there, &back)?;
    let expected = |row: usize| &table.here[16 * row..16 * row + 16];
    let is_row = |row: &[bf16], expected: &[f32]| row.iter().zip(expected).all(|(a, e)| a.to_f32() == *e);
    let gathered = gathered.read()?;
    let all = gathered.chunks(16).zip(ids).all(|(row, id)| is_row(row, expected(id as usize)));
    out.push(same("rows by index", "4 of 9", all));
    let all = back.read()?.chunks(16).enumerate().all(|(id, row)| match ids.contains(&(id as u32)) {
        true => is_row(row, expected(id)),
        false => is_row(row, &[0.0; 16]),
    });
    out.push(same("rows to their places", "4 of 9", all));
    Ok(())
}

fn losses(gpu: &Gpu, out: &mut Rows) -> Result<()> {
    for (rows, vocabulary) in [(1, 1), (3, 40), (2, 2500), (2, 32000)] {
        let logits = random_values(1, "logits", rows * vocabulary, 8.0);
        let targets: Vec<i32> = (0..rows).map(|row| (row * 1237 % vocabulary) as i32).collect();
        let (loss, gradient) = (gpu.buffer::<f32>(rows, 1)?, gpu.buffer(rows, vocabulary)?);
        let (there, wanted) = (gpu.upload(&logits, rows, vocabulary)?, gpu.upload(&targets, rows, 1)?);
        gpu_cross_entropy::rows(&there, &wanted, &loss, Some(&gradient), 0.125)?;
        let (mut losses, mut gradients) = (Vec::new(), Vec::new());
        for (z, &target) in logits.chunks(vocabulary).zip(&targets) {
            let top = z.iter().copied().fold(f32::MIN, f32::max);
            let sum: f64 = z.iter().map(|z| f64::from(z - top).exp()).sum();
            losses.push(sum.ln() + f64::from(top - z[target as usize]));
            gradients.extend(z.iter().enumerate().map(|(class, z)| {
                let wanted = f64::from(u8::from(class == target as usize));
                ((f64::from(z - top).exp() / sum - wanted) * 0.125) as f32
            }));
        }
        let case = format!("[{rows},{vocabulary}]");
        let share = loss.read()?.iter().zip(&losses).map(|(a, e)| (f64::from(*a) - e).abs() / 1e-4).fold(0.0, f64::max);
        out.push(row("cross-entropy", &case, share));
        out.push(row("cross-entropy, gradient", &case, worst(&gradient.read()?, &gradients, 1e-5)));
    }
    Ok(())
}

fn attentions(gpu: &Gpu, out: &mut Rows) -> Result<()> {
    let segments = [0..1, 1..66, 66..150];
    for (heads, kv_heads, head_dim) in [(1, 1, 16), (4, 2, 32), (3, 1, 64), (2, 2, 96), (2, 1, 128)] {
        let (shape, rows) = (AttentionShape { heads, kv_heads, head_dim }, 150);
        let case = format!("{rows} rows in 3 documents, {heads}/{kv_heads} heads of {head_dim}");
        let values = |label: &str, heads: usize| pair(gpu, label, rows, heads * head_dim);
        let (q, k, v, dout) =
            (values("q", heads)?, values("k", kv_heads)?, values("v", kv_heads)?, values("dout", heads)?);
        let tiles = gpu_attention::Tiles::new(gpu, &segments, rows)?;
        let (attended, lse) = (gpu.zeros(rows, heads * head_dim)?, gpu.zeros::<f32>(rows, heads)?);
        let inputs = gpu_attention::Inputs { q: &q.there, k: &k.there, v: &v.there };
        gpu_attention::forward(shape, inputs, &tiles, &attended, &lse)?;
        let saved = gpu_attention::Saved { inputs, out: &attended, lse: &lse };
        let found = gpu_attention::backward(shape, saved, &tiles, &dout.there)?;

        let (mut expected, mut cpu_lse) = (vec![0.0; rows * heads * head_dim], vec![0.0; rows * heads]);
        let inputs = attention::Inputs { q: &q.here, k: &k.here, v: &v.here, segments: &segments };
        attention::forward(shape, Compute::F32, inputs, &mut expected, &mut cpu_lse);
        out.push(row("attention, forward", &case, worst(&attended.read()?, &expected, 4e-3)));
        let [mut dq, mut dk, mut dv] = [heads, kv_heads, kv_heads].map(|heads| vec![0.0; rows * heads * head_dim]);
        let saved = attention::Saved { inputs, out: &expected, lse: &cpu_lse };
        let grads = attention::Grads { dq: &mut dq, dk: &mut dk, dv: &mut dv };
        attention::backward(shape, Compute::F32, saved, &dout.here, &Arena::new(), grads);
        for ((name, found), expected) in ["dq", "dk", "dv"].iter().zip(&found).zip([&dq, &dk, &dv]) {
            out.push(row(&format!("attention, {name}"), &case, worst(&found.read()?, expected, 1e-2)));
        }
        let last = gpu.upload(&q.there.read()?[(rows - 1) * heads * head_dim..], 1, heads * head_dim)?;
        let single = gpu.buffer(1, heads * head_dim)?;
        gpu_attention::forward_row(shape, gpu_attention::Inputs { q: &last, k: &k.there, v: &v.there }, rows, &single)?;
        let whole = 0..rows;
        let inputs = attention::Inputs { segments: std::slice::from_ref(&whole), ..inputs };
        attention::forward(shape, Compute::F32, inputs, &mut expected, &mut cpu_lse);
        let expected = &expected[(rows - 1) * heads * head_dim..];
        out.push(row("attention of one row", &case, worst(&single.read()?, expected, 4e-3)));
    }
    Ok(())
}

fn weights(gpu: &Gpu, out: &mut Rows) -> Result<()> {
    for (rows, cols) in [(1, 1), (33, 1), (111, 7), (200, 200)] {
        let values = random_values(1, "weight", rows * cols, 0.02);
        for (block, double) in [(64, true), (64, false), (128, true), (4096, false)] {
            let config = QuantConfig { block, double };
            let expected = quant::quantize(Values::F32(&values), rows, cols, config)?;
            let weight = quantize(gpu, Values::F32(&values), rows, cols, config)?;
            let found = weight.to_host()?;
            let blocks = values.len().div_ceil(block);
            let scales = (0..blocks).all(|block| found.scale(block).to_bits() == expected.scale(block).to_bits());
            let case = format!("[{rows},{cols}] in blocks of {block}, double {double}");
            out.push(same("NF4, codes and scales", &case, scales && found.codes[..] == expected.codes[..]));
            let decoded = gpu.buffer::<bf16>(1, values.len())?;
            weight.dequantize(&decoded)?;
            let all = decoded.read()?.iter().enumerate().all(|(i, v)| *v == bf16::from_f32(expected.value(i)));
            out.push(same("NF4, decoded", &case, all));
        }
    }
    Ok(())
}

/// Products of a 4-bit linear with many rows, with one row, and for the input's gradient.
fn products(gpu: &Gpu, out: &mut Rows) -> Result<()> {
    for (rows, cols, tokens) in [(40, 32, 5), (24, 40, 3), (96, 1056, 17)] {
        let values = random_values(1, "weight", rows * cols, 1.0);
        let config = QuantConfig::default();
        let matrix = quant::quantize(Values::F32(&values), rows, cols, config)?;
        let weight = GpuWeight::Nf4(Box::new(quantize(gpu, Values::F32(&values), rows, cols, config)?));
        let scratch = gpu.buffer(1, rows * cols)?;
        let layer = GpuLinear { weight: &weight, bias: None, adapter: None, scratch: &scratch, decoded: None };
        let (x, dy) = (pair(gpu, "x", tokens, cols)?, pair(gpu, "dy", tokens, rows)?);
        let (y, dx) = (gpu.buffer(tokens, rows)?, gpu.buffer(tokens, cols)?);
        gpu_linear::forward(&layer, &x.there, &y, false)?;
        gpu_linear::backward_input(&layer, &dy.there, &dx, false)?;
        let at = |row: usize, col: usize| bf16::from_f32(matrix.value(row * cols + col)).to_f32();
        let sum = |len: usize, term: &dyn Fn(usize) -> f32| (0..len).map(|i| f64::from(term(i))).sum::<f64>() as f32;
        let forward: Vec<f32> =
            (0..tokens * rows).map(|i| sum(cols, &|col| x.here[i / rows * cols + col] * at(i % rows, col))).collect();
        let backward: Vec<f32> =
            (0..tokens * cols).map(|i| sum(rows, &|row| dy.here[i / cols * rows + row] * at(row, i % cols))).collect();
        let case = format!("[{tokens},{cols}] by [{rows},{cols}]");
        out.push(row("4-bit linear, forward", &case, worst(&y.read()?, &forward, 1e-3)));
        out.push(row("4-bit linear, input's gradient", &case, worst(&dx.read()?, &backward, 1e-3)));
        let (first, single) = (gpu.upload(&x.there.read()?[..cols], 1, cols)?, gpu.buffer(1, rows)?);
        gpu_linear::forward_row(&layer, &first, &single, false)?;
        out.push(row("4-bit linear, one row", &case, worst(&single.read()?, &forward[..rows], 4e-3)));
    }
    Ok(())
}
