//! The truth that attention is tested against: plain f64 loops for the forward, candle's autograd in f64 for gradients.

use super::AttentionShape;
use candle_core::{DType, Device, Result, Tensor, Var};
use std::ops::Range;

/// Output and lse of [`super::forward`], from the definition.
pub(super) fn forward(
    shape: AttentionShape,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    segments: &[Range<usize>],
) -> (Vec<f64>, Vec<f64>) {
    let AttentionShape { heads, kv_heads, head_dim } = shape;
    let rows = q.len() / (heads * head_dim);
    let (mut out, mut lse) = (vec![0.0; q.len()], vec![0.0; rows * heads]);
    for segment in segments {
        for row in segment.clone() {
            for head in 0..heads {
                let kv_head = head / (heads / kv_heads);
                let query = &q[(row * heads + head) * head_dim..][..head_dim];
                let at = |data: &'_ [f32], key: usize, d: usize| data[(key * kv_heads + kv_head) * head_dim + d] as f64;
                let score = |key: usize| {
                    let products = (0..head_dim).map(|d| query[d] as f64 * at(k, key, d));
                    products.sum::<f64>() / (head_dim as f64).sqrt()
                };
                let scores: Vec<f64> = (segment.start..=row).map(score).collect();
                let maximum = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = scores.iter().map(|score| (score - maximum).exp()).sum();
                lse[row * heads + head] = maximum + sum.ln();
                for d in 0..head_dim {
                    let weighted = scores
                        .iter()
                        .enumerate()
                        .map(|(i, score)| (score - maximum).exp() / sum * at(v, segment.start + i, d));
                    out[(row * heads + head) * head_dim + d] = weighted.sum();
                }
            }
        }
    }
    (out, lse)
}

/// Gradients of Σ out · dout: dq, dk, dv.
pub(super) fn gradients(
    shape: AttentionShape,
    inputs: [&[f32]; 3],
    dout: &[f32],
    segments: &[Range<usize>],
) -> Result<[Vec<f64>; 3]> {
    let AttentionShape { heads, kv_heads, head_dim } = shape;
    let rows = dout.len() / (heads * head_dim);
    let tensor = |data: &[f32], heads: usize| {
        let values: Vec<f64> = data.iter().map(|&x| x as f64).collect();
        Tensor::from_vec(values, (rows, heads, head_dim), &Device::Cpu)
    };
    let q = Var::from_tensor(&tensor(inputs[0], heads)?)?;
    let k = Var::from_tensor(&tensor(inputs[1], kv_heads)?)?;
    let v = Var::from_tensor(&tensor(inputs[2], kv_heads)?)?;
    let dout = tensor(dout, heads)?;
    let mut loss = Tensor::zeros((), DType::F64, &Device::Cpu)?;
    for segment in segments.iter().filter(|segment| !segment.is_empty()) {
        let length = segment.len();
        let mask: Vec<f64> =
            (0..length * length).map(|i| if i % length > i / length { f64::NEG_INFINITY } else { 0.0 }).collect();
        let mask = Tensor::from_vec(mask, (length, length), &Device::Cpu)?;
        for head in 0..heads {
            let one = |tensor: &Tensor, head: usize| {
                tensor.narrow(0, segment.start, length)?.narrow(1, head, 1)?.squeeze(1)?.contiguous()
            };
            let kv_head = head / (heads / kv_heads);
            let (q, k, v) = (one(&q, head)?, one(&k, kv_head)?, one(&v, kv_head)?);
            let scores = (q.matmul(&k.t()?.contiguous()?)? / (head_dim as f64).sqrt())?.broadcast_add(&mask)?;
            let out = candle_nn::ops::softmax(&scores, 1)?.matmul(&v)?;
            loss = (loss + (out * one(&dout, head)?)?.sum_all()?)?;
        }
    }
    let store = loss.backward()?;
    let gradient = |var: &Var| match store.get(var) {
        Some(gradient) => gradient.flatten_all()?.to_vec1::<f64>(),
        None => Ok(vec![0.0; var.elem_count()]),
    };
    Ok([gradient(&q)?, gradient(&k)?, gradient(&v)?])
}
