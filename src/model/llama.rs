//! The stack: embedding, decoder blocks, final norm, head. Forward, loss, and the whole backward pass.
//!
//! The backward pass needs nothing but what each block kept: the loss hands out the gradient of the final hidden state
//! at once, and the blocks pass one gradient buffer down.

use super::block::{Block, BlockContext, Keep, Saved};
use super::hf_config::ModelConfig;
use super::layer::{LinearLayer, Vector, Weight};
use super::pass::{DoraColumns, DoraScales, Pass, Rows};
use crate::adapter::dora;
use crate::ops::attention::AttentionShape;
use crate::ops::cross_entropy::{self, Head, HeadGrads, Loss};
use crate::ops::gemm::{dense_format, matmul_nt, CoarseMatrix, Store};
use crate::ops::rope::RopeTable;
use crate::ops::{dropout, embedding, rms_norm, Arena, Gradients, Matrix, ParamStore, RandomStream};

/// A LLaMA-architecture model.
pub struct Llama {
    /// Shape and constants.
    pub config: ModelConfig,
    /// `[vocab, hidden]`.
    pub embedding: Weight,
    /// Decoder blocks.
    pub blocks: Vec<Block>,
    /// Norm before the head.
    pub norm: Vector,
    /// `[vocab, hidden]`; None where the head is the embedding.
    pub head: Option<Weight>,
    /// The head in 8 bits, if tokens are to be generated with it.
    pub coarse_head: Option<CoarseMatrix>,
    /// Rotations for every position up to the longest that was asked for.
    pub rope: RopeTable,
    /// `‖w‖²` of each output row of each DoRA layer, by the layer's index; empty without DoRA.
    pub row_norms: Vec<Option<Vec<f32>>>,
}

/// Result of the forward pass through all blocks.
pub struct Hidden {
    /// Output of the last block, before the final norm, `[T,H]`.
    pub last: Matrix,
    /// What each block kept; empty if nothing was asked for.
    pub saved: Vec<Saved>,
}

impl Llama {
    /// Heads and their size.
    pub fn attention_shape(&self) -> AttentionShape {
        AttentionShape { heads: self.config.heads, kv_heads: self.config.kv_heads, head_dim: self.config.head_dim }
    }

    /// All linears of the blocks, in the model's order.
    pub fn linears(&self) -> impl Iterator<Item = &LinearLayer> {
        self.blocks.iter().flat_map(Block::linears)
    }

    /// Bytes of all frozen weights.
    pub fn frozen_bytes(&self) -> usize {
        let linears: usize = self.linears().map(|layer| layer.weight.frozen_bytes()).sum();
        linears + self.embedding.frozen_bytes() + self.head.as_ref().map_or(0, Weight::frozen_bytes)
    }

    /// Weight of the head (the embedding where they are tied).
    pub fn head_weight(&self) -> &Weight {
        self.head.as_ref().unwrap_or(&self.embedding)
    }

    /// DoRA's column factors for the parameters' present values.
    pub fn dora_scales(&self, params: &ParamStore, arena: &Arena) -> DoraScales {
        let columns = |layer: &LinearLayer| {
            let lora = layer.lora.as_ref()?;
            let magnitude = params.value(lora.magnitude?);
            let squared = self.row_norms.get(layer.index)?.as_ref()?;
            let (a, b) = (params.get(lora.a), params.get(lora.b));
            let factors = dora::Factors { a: &a.value, b: &b.value, rank: a.rows, scale: lora.scale };
            let norm = dora::weight_norm(layer.weight.view(params), squared, factors, arena);
            let factor = magnitude.iter().zip(&norm).map(|(m, norm)| m / norm).collect();
            Some(DoraColumns { factor, norm })
        };
        if self.row_norms.is_empty() {
            return DoraScales::default();
        }
        DoraScales::new(self.linears().map(columns).collect())
    }

    pub(super) fn context<'a>(&'a self, pass: &'a Pass<'a>, rows: Rows<'a>) -> BlockContext<'a> {
        BlockContext {
            pass,
            shape: self.attention_shape(),
            eps: self.config.rms_norm_eps as f32,
            rope: &self.rope,
            positions: rows.positions,
            segments: rows.segments,
        }
    }

    pub(super) fn embed(&self, pass: &Pass<'_>, ids: &[u32]) -> Matrix {
        let mut x = pass.arena.matrix(ids.len(), self.config.hidden_size);
        embedding::forward(self.embedding.view(pass.params), ids, &mut x);
        if let Some(noise) = pass.noise.filter(|noise| noise.embedding_bound > 0.0) {
            let stream = RandomStream::derive(noise.seed, "neftune", &[noise.step, noise.micro_step]);
            dropout::add_uniform(&mut x, noise.embedding_bound, stream);
        }
        x
    }

    /// Runs the blocks. `keep` names what each block keeps for a backward pass; empty: nothing.
    pub fn forward(&self, pass: &Pass<'_>, rows: Rows<'_>, keep: &[Keep]) -> Hidden {
        let context = self.context(pass, rows);
        let mut x = self.embed(pass, rows.ids);
        let mut saved = Vec::with_capacity(keep.len());
        for (index, block) in self.blocks.iter().enumerate() {
            let (y, kept) = block.forward(&context, x, keep.get(index).copied());
            saved.extend(kept);
            x = y;
        }
        Hidden { last: x, saved }
    }

    /// The final norm: normalised hidden states `[T,H]` and the inverse root mean squares `[T,1]`.
    pub(super) fn final_norm(&self, pass: &Pass<'_>, last: &Matrix) -> (Matrix, Matrix) {
        let mut normed = pass.arena.matrix(last.rows(), last.cols());
        let mut inv_rms = pass.arena.matrix(last.rows(), 1);
        let eps = self.config.rms_norm_eps as f32;
        rms_norm::forward(last, self.norm.view(pass.params), eps, &mut normed, &mut inv_rms);
        (normed, inv_rms)
    }

    pub(super) fn head_view<'a>(&'a self, pass: &'a Pass<'_>) -> Head<'a> {
        Head { weight: self.head_weight().view(pass.params), compute: dense_format(pass.compute) }
    }

    /// Logits of every row, `[T, vocab]`.
    pub fn logits(&self, pass: &Pass<'_>, rows: Rows<'_>) -> Matrix {
        let hidden = self.forward(pass, rows, &[]);
        self.logits_of(pass, &hidden.last)
    }

    /// Logits of hidden states before the final norm, `[T, vocab]`.
    pub(super) fn logits_of(&self, pass: &Pass<'_>, last: &Matrix) -> Matrix {
        let (normed, _) = self.final_norm(pass, last);
        let mut logits = pass.arena.matrix(last.rows(), self.config.vocab_size);
        let head = self.head_view(pass);
        matmul_nt(normed.view(), head.weight, logits.view_mut(), Store::set(head.compute));
        logits
    }

    /// Sum of the token losses of rows whose target is not -100; `token_loss [T]` gets each of them.
    pub fn loss(&self, pass: &Pass<'_>, rows: Rows<'_>, targets: &[i32], token_loss: Option<&mut [f32]>) -> Loss {
        let hidden = self.forward(pass, rows, &[]);
        let (normed, _) = self.final_norm(pass, &hidden.last);
        cross_entropy::forward(self.head_view(pass), normed.view(), targets, pass.arena, token_loss)
    }

    /// Forward and backward: adds the gradients of `scale · Σ token losses` to `grads`.
    pub fn loss_and_gradients(&self, pass: &Pass<'_>, batch: Batch<'_>, keep: &[Keep], grads: &mut Gradients) -> Loss {
        assert_eq!(keep.len(), self.blocks.len(), "one keep policy for each block");
        let context = self.context(pass, batch.rows);
        let Hidden { last, mut saved } = self.forward(pass, batch.rows, keep);
        let (loss, mut gradient) = self.backward_head(pass, &last, batch, grads);
        drop(last);
        for block in self.blocks.iter().rev() {
            let Some(kept) = saved.pop() else { break };
            block.backward(&context, kept, &mut gradient, grads);
        }
        if let Some(id) = self.embedding.id() {
            embedding::backward(batch.rows.ids, &gradient, grads.get_mut(id));
        }
        loss
    }

    /// Loss, and the gradient of the last block's output.
    fn backward_head(&self, pass: &Pass<'_>, last: &Matrix, batch: Batch<'_>, grads: &mut Gradients) -> (Loss, Matrix) {
        let (normed, inv_rms) = self.final_norm(pass, last);
        let mut dnormed = pass.arena.matrix(last.rows(), last.cols());
        let dweight = self.head_weight().id().map(|id| grads.get_mut(id));
        let outputs = HeadGrads { dhidden: &mut dnormed, dweight, token_loss: None };
        let head = self.head_view(pass);
        let loss =
            cross_entropy::forward_backward(head, normed.view(), batch.targets, batch.scale, pass.arena, outputs);
        drop(normed);
        let mut gradient = pass.arena.zeros(last.rows(), last.cols());
        let dweight = self.norm.id().map(|id| grads.get_mut(id));
        let saved = rms_norm::Saved { x: last, inv_rms: &inv_rms, weight: self.norm.view(pass.params) };
        rms_norm::backward(saved, &dnormed, &mut gradient, dweight);
        (loss, gradient)
    }
}

/// A micro-batch with its targets.
#[derive(Clone, Copy)]
pub struct Batch<'a> {
    /// Tokens.
    pub rows: Rows<'a>,
    /// The token that each row must predict, -100 for none, `[T]`.
    pub targets: &'a [i32],
    /// Factor of the loss in the gradients: 1 / target tokens of the whole optimizer step.
    pub scale: f32,
}
