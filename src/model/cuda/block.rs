//! One decoder block on a GPU, forward and backward; the lines are those of `model/block.rs`.
//!
//! ```text
//! n1 = norm(x)       q,k,v = linears(n1), rope(q,k)     a = attention(q,k,v)     m = x + o(a)
//! n2 = norm(m)       gate,up = linears(n2)              y = m + down(silu(gate)∘up)
//! ```
//!
//! The gradient of the residual stream lives in one bf16 buffer that is updated in place. With [`Keep::Input`] everything
//! up to gate and up is computed again; normalised inputs and the activation always are.

use super::layer::{vector, GpuLayer};
use super::PassContext;
use crate::error::Result;
use crate::model::block::{Block, Keep};
use crate::ops::attention::cuda as attention;
use crate::ops::gpu::{Buffer, Gpu};
use crate::ops::linear::cuda as linear;
use crate::ops::rms_norm::cuda as rms_norm;
use crate::ops::rope::{cuda as rope, Direction};
use crate::ops::swiglu::cuda as swiglu;
use half::bf16;

/// Weights of one decoder block in GPU memory.
pub(super) struct GpuBlock {
    pub(super) input_norm: Buffer<f32>,
    pub(super) q: GpuLayer,
    pub(super) k: GpuLayer,
    pub(super) v: GpuLayer,
    pub(super) o: GpuLayer,
    pub(super) post_norm: Buffer<f32>,
    pub(super) gate: GpuLayer,
    pub(super) up: GpuLayer,
    pub(super) down: GpuLayer,
}

/// What the forward pass of a block keeps for its backward pass.
pub(super) struct Saved {
    x: Buffer<bf16>,
    light: Option<(Attention, FeedForward)>,
}

/// Output of a linear and the low-rank values of its adapter.
struct Projected {
    y: Buffer<bf16>,
    hidden: Option<Buffer<bf16>>,
}

/// Values of the attention half.
struct Attention {
    inv_rms: Buffer<f32>,
    q: Projected,
    k: Projected,
    v: Projected,
    attended: Buffer<bf16>,
    lse: Buffer<f32>,
    o_hidden: Option<Buffer<bf16>>,
}

/// Values of the feed-forward half.
struct FeedForward {
    middle: Buffer<bf16>,
    middle_inv_rms: Buffer<f32>,
    gate: Projected,
    up: Projected,
}

impl GpuBlock {
    /// Copies a block's frozen weights.
    pub(super) fn new(gpu: &Gpu, block: &Block) -> Result<GpuBlock> {
        let layer = |layer| GpuLayer::new(gpu, layer);
        Ok(GpuBlock {
            input_norm: vector(gpu, &block.input_norm)?,
            q: layer(&block.q)?,
            k: layer(&block.k)?,
            v: layer(&block.v)?,
            o: layer(&block.o)?,
            post_norm: vector(gpu, &block.post_norm)?,
            gate: layer(&block.gate)?,
            up: layer(&block.up)?,
            down: layer(&block.down)?,
        })
    }

    /// Number of values of each linear.
    pub(super) fn weight_sizes(&self) -> [usize; 7] {
        let linears = [&self.q, &self.k, &self.v, &self.o, &self.gate, &self.up, &self.down];
        linears.map(|layer| layer.rows() * layer.cols())
    }

    /// The linears, in the model's order.
    pub(super) fn linears_mut(&mut self) -> [&mut GpuLayer; 7] {
        [&mut self.q, &mut self.k, &mut self.v, &mut self.o, &mut self.gate, &mut self.up, &mut self.down]
    }

    /// `y [T,H]` from `x [T,H]`, and what `keep` asks to keep.
    pub(super) fn forward(
        &self,
        context: &PassContext<'_>,
        x: Buffer<bf16>,
        keep: Option<Keep>,
    ) -> Result<(Buffer<bf16>, Option<Saved>)> {
        let (attention, feed_forward) = self.forward_to_gate(context, &x)?;
        let FeedForward { middle, gate, up, .. } = &feed_forward;
        let activated = x.gpu().buffer(gate.y.rows(), gate.y.cols())?;
        swiglu::forward(&gate.y, &up.y, &activated)?;
        let y = middle.duplicate()?;
        linear::forward(&self.down.view(context), &activated, &y, true)?;
        let light = (keep == Some(Keep::Light)).then_some((attention, feed_forward));
        Ok((y, keep.map(|_| Saved { x, light })))
    }

    /// Everything up to gate and up.
    fn forward_to_gate(&self, context: &PassContext<'_>, x: &Buffer<bf16>) -> Result<(Attention, FeedForward)> {
        let (gpu, rows) = (x.gpu(), x.rows());
        let (normed, inv_rms) = (gpu.buffer(rows, x.cols())?, gpu.buffer(rows, 1)?);
        rms_norm::forward(x, None, &self.input_norm, context.eps, &normed, &inv_rms)?;
        let [q, k, v] = [&self.q, &self.k, &self.v].map(|layer| project(layer, context, &normed));
        let (q, k, v) = (q?, k?, v?);
        let shape = context.shape;
        rope::apply(&q.y, shape.heads, &context.positions, context.rope, Direction::Forward)?;
        rope::apply(&k.y, shape.kv_heads, &context.positions, context.rope, Direction::Forward)?;

        let (attended, lse) = (gpu.buffer(rows, q.y.cols())?, gpu.buffer(rows, shape.heads)?);
        let inputs = attention::Inputs { q: &q.y, k: &k.y, v: &v.y };
        attention::forward(shape, inputs, &context.tiles, &attended, &lse)?;
        let middle = gpu.buffer(rows, x.cols())?;
        let o_hidden = linear::forward(&self.o.view(context), &attended, &middle, false)?;
        let middle_inv_rms = gpu.buffer(rows, 1)?;
        rms_norm::forward(&middle, Some(x), &self.post_norm, context.eps, &normed, &middle_inv_rms)?;

        let (gate, up) = (project(&self.gate, context, &normed)?, project(&self.up, context, &normed)?);
        let attention = Attention { inv_rms, q, k, v, attended, lse, o_hidden };
        Ok((attention, FeedForward { middle, middle_inv_rms, gate, up }))
    }

    /// Turns `gradient [T,H]` from that of the block's output into that of its input, in place; adds the gradients of
    /// the adapters.
    pub(super) fn backward(&self, context: &PassContext<'_>, saved: Saved, gradient: &Buffer<bf16>) -> Result<()> {
        let Saved { x, light } = saved;
        let (attention, feed_forward) = match light {
            Some(light) => light,
            None => self.forward_to_gate(context, &x)?,
        };
        self.backward_feed_forward(context, feed_forward, gradient)?;
        self.backward_attention(context, &x, attention, gradient)
    }

    fn backward_feed_forward(
        &self,
        context: &PassContext<'_>,
        saved: FeedForward,
        gradient: &Buffer<bf16>,
    ) -> Result<()> {
        let gpu = gradient.gpu();
        let FeedForward { middle, middle_inv_rms, gate, up } = saved;
        let down = self.down.view(context);
        let activated = gpu.buffer(middle.rows(), self.down.cols())?;
        let down_gradient = linear::backward_input(&down, gradient, &activated, false)?;
        // Holds the activation's gradient until here, the activation itself from here on.
        swiglu::backward_in_place(&gate.y, &up.y, &activated)?;
        linear::backward_params(&down, &activated, gradient, None, down_gradient.as_ref())?;
        drop(activated);

        let (normed, unused) = (gpu.buffer(middle.rows(), middle.cols())?, gpu.buffer(middle.rows(), 1)?);
        rms_norm::forward(&middle, None, &self.post_norm, context.eps, &normed, &unused)?;
        let dnormed = gpu.buffer(middle.rows(), middle.cols())?;
        backward_group(context, &[(&self.gate, &gate), (&self.up, &up)], &normed, &dnormed)?;
        rms_norm::backward(&middle, &middle_inv_rms, &self.post_norm, &dnormed, gradient)
    }

    fn backward_attention(
        &self,
        context: &PassContext<'_>,
        x: &Buffer<bf16>,
        saved: Attention,
        gradient: &Buffer<bf16>,
    ) -> Result<()> {
        let gpu = gradient.gpu();
        let Attention { inv_rms, q, k, v, attended, lse, o_hidden } = saved;
        let o = self.o.view(context);
        let dattended = gpu.buffer(attended.rows(), attended.cols())?;
        let o_gradient = linear::backward_input(&o, gradient, &dattended, false)?;
        linear::backward_params(&o, &attended, gradient, o_hidden.as_ref(), o_gradient.as_ref())?;

        let inputs = attention::Inputs { q: &q.y, k: &k.y, v: &v.y };
        let kept = attention::Saved { inputs, out: &attended, lse: &lse };
        let [dq, dk, dv] = attention::backward(context.shape, kept, &context.tiles, &dattended)?;
        drop((attended, dattended, lse));
        rope::apply(&dq, context.shape.heads, &context.positions, context.rope, Direction::Backward)?;
        rope::apply(&dk, context.shape.kv_heads, &context.positions, context.rope, Direction::Backward)?;

        let (normed, unused) = (gpu.buffer(x.rows(), x.cols())?, gpu.buffer(x.rows(), 1)?);
        rms_norm::forward(x, None, &self.input_norm, context.eps, &normed, &unused)?;
        let dnormed = gpu.buffer(x.rows(), x.cols())?;
        let [q, k, v] = [(dq, q.hidden), (dk, k.hidden), (dv, v.hidden)].map(|(y, hidden)| Projected { y, hidden });
        backward_group(context, &[(&self.q, &q), (&self.k, &k), (&self.v, &v)], &normed, &dnormed)?;
        rms_norm::backward(x, &inv_rms, &self.input_norm, &dnormed, gradient)
    }
}

fn project(layer: &GpuLayer, context: &PassContext<'_>, x: &Buffer<bf16>) -> Result<Projected> {
    let y = x.gpu().buffer(x.rows(), layer.rows())?;
    let hidden = linear::forward(&layer.view(context), x, &y, false)?;
    Ok(Projected { y, hidden })
}

/// Linears that share an input: their input gradients add up in `dx`. Each `y` holds the gradient of its output.
fn backward_group(
    context: &PassContext<'_>,
    group: &[(&GpuLayer, &Projected)],
    x: &Buffer<bf16>,
    dx: &Buffer<bf16>,
) -> Result<()> {
    for (index, (layer, output)) in group.iter().enumerate() {
        let view = layer.view(context);
        let gradient = linear::backward_input(&view, &output.y, dx, index > 0)?;
        linear::backward_params(&view, x, &output.y, output.hidden.as_ref(), gradient.as_ref())?;
    }
    Ok(())
}
