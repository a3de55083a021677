//! A model on a GPU: its weights there, the passes of a training step and of an evaluation, and new tokens of a sequence.
//!
//! Activations are bf16, statistics and sums f32. The order of the operations is that of `model/llama.rs`, so what the
//! CPU computes in bf16 the GPU computes too, up to the order of additions inside a product. Nothing in a pass waits for
//! the GPU: the losses of a micro-batch are read when the step has been asked for as a whole.

pub mod agreement;
mod block;
mod decode;
mod layer;
mod params;
mod stream;
#[cfg(test)]
mod tests;

pub use decode::{generation_bytes, linear_bytes, GpuKvCache};
pub(super) use layer::check_options;
pub use params::GpuParams;
pub(super) use stream::{with_linears, LinearStream};

use super::block::Keep;
use super::llama::{Batch, Llama};
use super::pass::{Noise, Rows};
use super::ModelConfig;
use crate::error::{Error, Result};
use crate::ops::attention::cuda::{check_shape, Tiles};
use crate::ops::attention::AttentionShape;
use crate::ops::cross_entropy::{cuda as cross_entropy, IGNORE};
use crate::ops::dropout::cuda as dropout;
use crate::ops::embedding::cuda as rows_by_index;
use crate::ops::gpu::{Buffer, Gpu};
use crate::ops::rms_norm::cuda as rms_norm;
use crate::ops::rope::cuda::GpuRopeTable;
use crate::ops::rope::RopeTable;
use crate::ops::{ParamStore, RandomStream};
use block::{GpuBlock, Saved};
use half::bf16;

/// Bytes of a chunk of logits.
const CHUNK_BYTES: usize = 128 << 20;

/// Rows whose logits are computed together.
pub fn head_chunk_rows(vocabulary: usize) -> usize {
    (CHUNK_BYTES / size_of::<f32>() / vocabulary / 16 * 16).max(16)
}

/// A model in GPU memory.
pub struct GpuLlama {
    gpu: Gpu,
    config: ModelConfig,
    shape: AttentionShape,
    embedding: Buffer<bf16>,
    /// None where the head is the embedding.
    head: Option<Buffer<bf16>>,
    norm: Buffer<f32>,
    blocks: Vec<GpuBlock>,
    rope: GpuRopeTable,
    /// Decoded weights, one at a time.
    scratch: Buffer<bf16>,
}

/// What all blocks of a pass share.
struct PassContext<'a> {
    params: &'a GpuParams,
    shape: AttentionShape,
    eps: f32,
    rope: &'a GpuRopeTable,
    positions: Buffer<u32>,
    tiles: Tiles,
    scratch: &'a Buffer<bf16>,
    noise: Option<Noise>,
    /// Whether gradients are wanted.
    training: bool,
}

/// Losses that the GPU may still be computing.
pub struct PendingLoss {
    /// The loss of each row with a target.
    losses: Buffer<f32>,
    /// Which rows these are.
    active: Vec<u32>,
    rows: usize,
}

impl PendingLoss {
    /// Waits, and gives the loss of each row, 0 where there is no target.
    pub fn of_rows(&self) -> Result<Vec<f32>> {
        let mut losses = vec![0.0; self.rows];
        if !self.active.is_empty() {
            for (&row, loss) in self.active.iter().zip(self.losses.read()?) {
                losses[row as usize] = loss;
            }
        }
        Ok(losses)
    }

    /// Waits, and gives the sum of the losses, in the order of the rows.
    pub fn sum(&self) -> Result<f64> {
        Ok(self.of_rows()?.into_iter().map(f64::from).sum())
    }

    /// Rows with a target.
    pub fn targets(&self) -> usize {
        self.active.len()
    }
}

impl GpuLlama {
    /// Copies a model's frozen weights to the GPU, but for those that are there already. `params` holds the values of its
    /// adapters.
    ///
    /// # Errors
    /// A model that the GPU's kernels cannot run or train (trained weights other than LoRA's A and B, DoRA, head sizes
    /// without a kernel); the GPU's memory.
    pub fn new(gpu: &Gpu, model: &Llama, params: &ParamStore) -> Result<GpuLlama> {
        layer::check_trainable(model, params)?;
        let shape = model.attention_shape();
        check_shape(shape)?;
        let config = model.config.clone();
        for (what, size) in [("hidden_size", config.hidden_size), ("intermediate_size", config.intermediate_size)] {
            if !size.is_multiple_of(8) {
                return Err(Error::failed(format!("{what} = {size}: the GPU's kernels need a multiple of 8"))
                    .hint("run this model with --device cpu"));
            }
        }
        let blocks = model.blocks.iter().map(|block| GpuBlock::new(gpu, block)).collect::<Result<Vec<_>>>()?;
        let largest = blocks.iter().flat_map(GpuBlock::weight_sizes).max().unwrap_or(0);
        Ok(GpuLlama {
            shape,
            embedding: layer::dense(gpu, &model.embedding)?,
            head: model.head.as_ref().map(|head| layer::dense(gpu, head)).transpose()?,
            norm: layer::vector(gpu, &model.norm)?,
            blocks,
            rope: GpuRopeTable::new(gpu, &model.rope)?,
            scratch: gpu.buffer(1, largest)?,
            gpu: gpu.clone(),
            config,
        })
    }

    /// Decodes the 4-bit weights of the first `blocks` blocks, which every pass would do otherwise. No result changes.
    ///
    /// # Errors
    /// The GPU's memory.
    pub fn cache_weights(&mut self, blocks: usize) -> Result<()> {
        let gpu = &self.gpu;
        let mut linears = self.blocks.iter_mut().take(blocks).flat_map(GpuBlock::linears_mut);
        linears.try_for_each(|layer| layer.cache_weight(gpu))
    }

    /// The GPU.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// Width of the residual stream.
    pub fn hidden(&self) -> usize {
        self.config.hidden_size
    }

    /// Takes over the positions of a table that has grown.
    pub fn ensure_positions(&mut self, table: &RopeTable) -> Result<()> {
        if table.positions() > self.rope.positions() {
            self.rope = GpuRopeTable::new(&self.gpu, table)?;
        }
        Ok(())
    }

    fn context<'a>(
        &'a self,
        params: &'a GpuParams,
        positions: &[u32],
        tiles: Tiles,
        noise: Option<Noise>,
    ) -> Result<PassContext<'a>> {
        Ok(PassContext {
            params,
            shape: self.shape,
            eps: self.config.rms_norm_eps as f32,
            rope: &self.rope,
            positions: self.gpu.upload(positions, positions.len(), 1)?,
            tiles,
            scratch: &self.scratch,
            noise,
            training: noise.is_some(),
        })
    }

    /// What the blocks share in a pass over packed documents.
    fn packed<'a>(&'a self, params: &'a GpuParams, rows: Rows<'_>, noise: Option<Noise>) -> Result<PassContext<'a>> {
        self.context(params, rows.positions, Tiles::new(&self.gpu, rows.segments, rows.ids.len())?, noise)
    }

    fn embed(&self, ids: &[u32], noise: Option<Noise>) -> Result<Buffer<bf16>> {
        let x = self.gpu.buffer(ids.len(), self.config.hidden_size)?;
        rows_by_index::gather(&self.embedding, &self.gpu.upload(ids, ids.len(), 1)?, &x)?;
        if let Some(noise) = noise.filter(|noise| noise.embedding_bound > 0.0) {
            let stream = RandomStream::derive(noise.seed, "neftune", &[noise.step, noise.micro_step]);
            dropout::add_uniform(&x, noise.embedding_bound, stream)?;
        }
        Ok(x)
    }

    fn forward(&self, context: &PassContext<'_>, ids: &[u32], keep: &[Keep]) -> Result<(Buffer<bf16>, Vec<Saved>)> {
        let mut x = self.embed(ids, context.noise)?;
        let mut saved = Vec::with_capacity(keep.len());
        for (index, block) in self.blocks.iter().enumerate() {
            let (y, kept) = block.forward(context, x, keep.get(index).copied())?;
            saved.extend(kept);
            x = y;
        }
        Ok((x, saved))
    }

    /// The loss of `targets [T]` (-100 for none), without gradients.
    pub fn loss(&self, params: &GpuParams, rows: Rows<'_>, targets: &[i32]) -> Result<PendingLoss> {
        let context = self.packed(params, rows, None)?;
        let (last, _) = self.forward(&context, rows.ids, &[])?;
        let (normed, _) = self.final_norm(&last)?;
        self.run_head(&normed, targets, None)
    }

    /// Forward and backward: adds the gradients of `scale · Σ token losses` to those of `params`.
    pub fn loss_and_gradients(
        &self,
        params: &GpuParams,
        batch: Batch<'_>,
        keep: &[Keep],
        noise: Noise,
    ) -> Result<PendingLoss> {
        assert_eq!(keep.len(), self.blocks.len(), "one keep policy for each block");
        let context = self.packed(params, batch.rows, Some(noise))?;
        let (last, mut saved) = self.forward(&context, batch.rows.ids, keep)?;
        let (normed, inv_rms) = self.final_norm(&last)?;
        let dnormed = self.gpu.zeros(last.rows(), last.cols())?;
        let loss = self.run_head(&normed, batch.targets, Some((batch.scale, &dnormed)))?;
        drop(normed);
        let gradient = self.gpu.zeros(last.rows(), last.cols())?;
        rms_norm::backward(&last, &inv_rms, &self.norm, &dnormed, &gradient)?;
        drop((last, inv_rms, dnormed));
        for block in self.blocks.iter().rev() {
            let Some(kept) = saved.pop() else { break };
            block.backward(&context, kept, &gradient)?;
        }
        Ok(loss)
    }

    fn final_norm(&self, last: &Buffer<bf16>) -> Result<(Buffer<bf16>, Buffer<f32>)> {
        let (normed, inv_rms) = (self.gpu.buffer(last.rows(), last.cols())?, self.gpu.buffer(last.rows(), 1)?);
        rms_norm::forward(last, None, &self.norm, self.config.rms_norm_eps as f32, &normed, &inv_rms)?;
        Ok((normed, inv_rms))
    }

    /// Head and cross-entropy over the rows with a target, in chunks: logits never exist whole. With a gradient's scale
    /// and place, the gradient of `normed` goes there; rows without a target stay as they are (zero).
    fn run_head(
        &self,
        normed: &Buffer<bf16>,
        targets: &[i32],
        backward: Option<(f32, &Buffer<bf16>)>,
    ) -> Result<PendingLoss> {
        let gpu = &self.gpu;
        let head = self.head.as_ref().unwrap_or(&self.embedding);
        let (vocabulary, hidden) = (head.rows(), head.cols());
        let active: Vec<u32> = (0..targets.len() as u32).filter(|&row| targets[row as usize] != IGNORE).collect();
        let losses = gpu.buffer::<f32>(active.len().max(1), 1)?;
        let chunk_rows = head_chunk_rows(vocabulary);
        for (index, chunk) in active.chunks(chunk_rows).enumerate() {
            let rows = chunk.len();
            let ids = gpu.upload(chunk, rows, 1)?;
            let gathered = gpu.buffer(rows, hidden)?;
            rows_by_index::gather(normed, &ids, &gathered)?;
            let logits = gpu.buffer::<f32>(rows, vocabulary)?;
            gpu.product(gathered.view(), head.view().t(), &logits, 1.0, 0.0)?;
            let wanted: Vec<i32> = chunk.iter().map(|&row| targets[row as usize]).collect();
            let wanted = gpu.upload(&wanted, rows, 1)?;
            let loss = losses.part(index * chunk_rows, rows);
            let gradient = backward.map(|_| gpu.buffer(rows, vocabulary)).transpose()?;
            let scale = backward.map_or(0.0, |(scale, _)| scale);
            cross_entropy::rows(&logits, &wanted, &loss, gradient.as_ref(), scale)?;
            if let (Some((_, dnormed)), Some(gradient)) = (backward, &gradient) {
                gpu.product(gradient.view(), head.view(), &gathered, 1.0, 0.0)?;
                rows_by_index::scatter(&gathered, &ids, dnormed)?;
            }
        }
        Ok(PendingLoss { losses, active, rows: targets.len() })
    }
}
