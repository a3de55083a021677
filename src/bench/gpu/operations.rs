//! Every operation of a step against its bound, the slower of its bytes at the rate of a copy and its operations at the
//! rate of a large product; and these two rates.

use super::super::Shape;
use super::{round, seconds, Bound, Context, Rows, Scale};
use crate::error::Result;
use crate::model::random::random_values;
use crate::ops::attention::cuda::{self as attention, Tiles};
use crate::ops::attention::AttentionShape;
use crate::ops::cross_entropy::cuda as cross_entropy;
use crate::ops::dropout::cuda as dropout;
use crate::ops::gpu::{Buffer, Element, Gpu};
use crate::ops::linear::cuda::{self as linear, GpuLinear, GpuWeight};
use crate::ops::rms_norm::cuda as rms_norm;
use crate::ops::rope::cuda::{self as rope, GpuRopeTable};
use crate::ops::rope::{Direction, RopeConfig, RopeScaling, RopeTable};
use crate::ops::swiglu::cuda as swiglu;
use crate::ops::RandomStream;
use crate::quant::cuda::quantize;
use crate::quant::{QuantConfig, Values};
use half::bf16;
use serde_json::json;

/// Values uniform in [-1, 1), made on the card.
fn uniform(gpu: &Gpu, label: &str, rows: usize, cols: usize) -> Result<Buffer<bf16>> {
    let values = gpu.zeros(rows, cols)?;
    dropout::add_uniform(&values, 1.0, RandomStream::derive(0, label, &[]))?;
    Ok(values)
}

/// The rates of a large product and of a copy, with values that are not all zero.
///
/// # Errors
/// The card's.
pub fn bound(gpu: &Gpu, scale: Scale) -> Result<Bound> {
    let size = scale.pick(32, 8192);
    let (a, b) = (uniform(gpu, "a", size, size)?, uniform(gpu, "b", size, size)?);
    let c = gpu.buffer::<bf16>(size, size)?;
    let product = seconds(gpu, scale.pick(1, 10), || gpu.product(a.view(), b.view().t(), &c, 1.0, 0.0))?;
    let rows = scale.pick(32, 1 << 15);
    let from = uniform(gpu, "copy", rows, 1 << 14)?;
    let to = gpu.buffer(rows, 1 << 14)?;
    let copy = seconds(gpu, scale.pick(1, 10), || to.copy_from(&from))?;
    Ok(Bound { operations: 2.0 * (size as f64).powi(3) / product, bytes: 4.0 * from.len() as f64 / copy })
}

/// The rows so far, and how they are measured.
struct Table<'a> {
    context: &'a Context<'a>,
    rows: Rows,
}

impl Table<'_> {
    /// Times `work`, which at least moves so many bytes and does so many operations.
    fn add(&mut self, what: &str, [bytes, operations]: [usize; 2], work: impl FnMut() -> Result<()>) -> Result<()> {
        let Context { gpu, options, bound } = self.context;
        let time = seconds(gpu, options.scale.pick(1, 20), work)?;
        let least = (bytes as f64 / bound.bytes).max(operations as f64 / bound.operations);
        self.rows.push(json!({
            "what": what, "us": round(1e6 * time), "mib": round(bytes as f64 / f64::from(1 << 20)),
            "gflop": round(operations as f64 / 1e9), "bound_us": round(1e6 * least), "share_of_bound": round(least / time),
        }));
        Ok(())
    }
}

fn bytes<E: Element>(buffers: &[&Buffer<E>]) -> usize {
    buffers.iter().map(|buffer| buffer.len() * size_of::<E>()).sum()
}

/// One row an operation, at the widths of LLaMA 2 7B.
pub fn rows(context: &Context<'_>) -> Result<Rows> {
    let scale = context.options.scale;
    let config = scale.pick(Shape::Tiny, Shape::B7).config()?;
    let tokens = scale.pick(32, 2048);
    let mut table = Table { context, rows: Rows::new() };
    row_wise(&mut table, tokens, config.hidden_size, config.intermediate_size)?;
    let shape = AttentionShape { heads: config.heads, kv_heads: config.kv_heads, head_dim: config.head_dim };
    attention_rows(&mut table, tokens, shape)?;
    products(&mut table, tokens, config.hidden_size, config.intermediate_size)?;
    losses(&mut table, scale.pick(16, 1024), config.vocab_size)?;
    Ok(table.rows)
}

fn row_wise(table: &mut Table<'_>, tokens: usize, hidden: usize, inner: usize) -> Result<()> {
    let gpu = &table.context.gpu.clone();
    let [x, y, dx] =
        [uniform(gpu, "x", tokens, hidden)?, uniform(gpu, "y", tokens, hidden)?, gpu.zeros(tokens, hidden)?];
    let (weight, inverse) = (gpu.upload(&vec![1.0f32; hidden], 1, hidden)?, gpu.buffer::<f32>(tokens, 1)?);
    table.add("norm, forward", [bytes(&[&x, &y]), 0], || rms_norm::forward(&x, None, &weight, 1e-5, &y, &inverse))?;
    let four = bytes(&[&x, &y, &dx, &dx]);
    table.add("norm, backward", [four, 0], || rms_norm::backward(&x, &inverse, &weight, &y, &dx))?;
    let stream = RandomStream::derive(0, "mask", &[]);
    table.add("dropout", [bytes(&[&x, &y]), 0], || dropout::apply(&x, &y, 0.1, stream))?;
    let [gate, up, out] =
        [uniform(gpu, "g", tokens, inner)?, uniform(gpu, "u", tokens, inner)?, gpu.zeros(tokens, inner)?];
    let three = bytes(&[&gate, &up, &out]);
    table.add("swiglu, forward", [three, 0], || swiglu::forward(&gate, &up, &out))?;
    table.add("swiglu, backward", [2 * three, 0], || swiglu::backward_in_place(&gate, &up, &out))
}

fn attention_rows(table: &mut Table<'_>, tokens: usize, shape: AttentionShape) -> Result<()> {
    let gpu = &table.context.gpu.clone();
    let (width, kv_width) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
    let [q, k, v] =
        [uniform(gpu, "q", tokens, width)?, uniform(gpu, "k", tokens, kv_width)?, uniform(gpu, "v", tokens, kv_width)?];
    let rope_config = RopeConfig { theta: 10_000.0, head_dim: shape.head_dim, scaling: RopeScaling::Default };
    let angles = GpuRopeTable::new(gpu, &RopeTable::new(&rope_config, tokens))?;
    let positions = gpu.upload(&(0..tokens as u32).collect::<Vec<_>>(), tokens, 1)?;
    let turn = || rope::apply(&q, shape.heads, &positions, &angles, Direction::Forward);
    table.add("rotation of q", [2 * bytes(&[&q]), 0], turn)?;
    let whole = 0..tokens;
    let tiles = Tiles::new(gpu, std::slice::from_ref(&whole), tokens)?;
    let (out, lse) = (gpu.buffer(tokens, width)?, gpu.buffer::<f32>(tokens, shape.heads)?);
    let inputs = attention::Inputs { q: &q, k: &k, v: &v };
    // A row sees half of the rows on average: two products forward, five backward.
    let product = tokens * tokens * width;
    let four = bytes(&[&q, &k, &v, &out]);
    table.add("attention, forward", [four, 2 * product], || attention::forward(shape, inputs, &tiles, &out, &lse))?;
    let saved = attention::Saved { inputs, out: &out, lse: &lse };
    let dout = uniform(gpu, "dout", tokens, width)?;
    table.add("attention, backward", [2 * four, 5 * product], || {
        attention::backward(shape, saved, &tiles, &dout).map(drop)
    })
}

fn products(table: &mut Table<'_>, tokens: usize, hidden: usize, inner: usize) -> Result<()> {
    let gpu = &table.context.gpu.clone();
    let bits: Vec<u16> =
        random_values(0, "weight", inner * hidden, 0.02).iter().map(|&value| bf16::from_f32(value).to_bits()).collect();
    let weight = quantize(gpu, Values::Bf16(&bits), inner, hidden, QuantConfig::default())?;
    let (stored, scratch) = (weight.bytes(), gpu.buffer(1, inner * hidden)?);
    table.add("decoding of a weight", [stored + bytes(&[&scratch]), 0], || weight.dequantize(&scratch))?;
    let weight = GpuWeight::Nf4(Box::new(weight));
    let layer = GpuLinear { weight: &weight, bias: None, adapter: None, scratch: &scratch, decoded: None };
    let (x, y) = (uniform(gpu, "x", tokens, hidden)?, gpu.buffer(tokens, inner)?);
    let operations = 2 * tokens * hidden * inner;
    let moved = stored + bytes(&[&x, &y]);
    table.add("4-bit linear, forward", [moved, operations], || linear::forward(&layer, &x, &y, false).map(drop))?;
    table.add("4-bit linear, input's gradient", [moved, operations], || {
        linear::backward_input(&layer, &y, &x, false).map(drop)
    })?;
    let (x, y) = (uniform(gpu, "row", 1, hidden)?, gpu.buffer(1, inner)?);
    table.add("4-bit linear, one row", [stored, 0], || linear::forward_row(&layer, &x, &y, false))
}

fn losses(table: &mut Table<'_>, rows: usize, vocabulary: usize) -> Result<()> {
    let gpu = &table.context.gpu.clone();
    let logits = gpu.zeros::<f32>(rows, vocabulary)?;
    let (targets, loss) = (gpu.zeros::<i32>(rows, 1)?, gpu.buffer::<f32>(rows, 1)?);
    let gradient = gpu.buffer(rows, vocabulary)?;
    let moved = bytes(&[&logits]) + bytes(&[&gradient]);
    table.add("cross-entropy", [moved, 0], || cross_entropy::rows(&logits, &targets, &loss, Some(&gradient), 1.0))
}
