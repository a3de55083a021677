//! The same run on a GPU, estimated: bf16 activations, one linear dequantised at a time, f32 adapters and state.
//!
//! Nothing here was compared with a measurement; it says which size of card to look for.

use super::job::Job;
use super::Parts;
use crate::model::{Keep, Method};

/// Context, kernels and libraries of a CUDA process.
const CONTEXT: u64 = 600 << 20;
/// Bytes of an activation.
const VALUE: usize = 2;

/// Parts of `job` on a GPU where all blocks keep the same.
pub fn parts(job: &Job, keep: Keep) -> Parts {
    let (rows, hidden) = (job.batch.rows(), job.model.hidden);
    let trained = job.trained_tensors();
    let trained_bytes = 4 * trained.iter().sum::<usize>() as u64;
    let full = job.method == Method::Full;
    let base = match job.quantization {
        _ if full => 0,
        Some(config) => job.linears().map(|linear| config.bytes(linear.rows * linear.cols)).sum(),
        None => job.linear_values() * VALUE,
    };
    let block = |linears: &[super::replay::LinearSizes; 7]| {
        let [q, k, v, _, gate, up, _] = linears;
        let outputs = 2 * q.rows + k.rows + v.rows + gate.rows + up.rows + hidden;
        let ranks: usize = linears.iter().filter_map(|linear| linear.rank).sum();
        rows * (VALUE * (outputs + ranks) + 4 * (job.model.attention.heads + 2))
    };
    let inputs = job.model.blocks.len() * rows * hidden * VALUE;
    let light: usize = match keep {
        Keep::Light => job.model.blocks.iter().map(block).sum(),
        Keep::Input => job.model.blocks.iter().map(block).max().unwrap_or(0),
    };
    // One linear in bf16, and a block's gradients.
    let scratch = job.linears().map(|linear| linear.rows * linear.cols * VALUE).max().unwrap_or(0);
    let gradients = job.model.blocks.iter().map(block).max().unwrap_or(0);
    let chunk = crate::ops::cross_entropy::chunk_rows(job.model.vocab, rows).min(rows);
    Parts {
        program: CONTEXT,
        base: base as u64,
        embeddings: if job.trains_embeddings { 0 } else { (job.embedding_values() * VALUE) as u64 },
        trained: trained_bytes,
        gradients: trained_bytes,
        optimizer: trained.iter().map(|&values| job.optimizer.state_bytes(values) as u64).sum(),
        saved: (inputs + light) as u64,
        work: (gradients + 4 * rows * hidden) as u64,
        logits: (chunk * job.model.vocab * 4) as u64,
        packing: scratch as u64,
    }
}
