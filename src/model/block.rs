//! One decoder block, forward and backward.
//!
//! ```text
//! n1 = norm(x)       q,k,v = linears(n1), rope(q,k)     a = attention(q,k,v)     m = x + o(a)
//! n2 = norm(m)       gate,up = linears(n2)              y = m + down(silu(gate)∘up)
//! ```
//!
//! The backward pass walks up the same lines. The gradient of the residual stream lives in one buffer that is updated
//! in place. With [`Keep::Input`] everything up to gate and up is computed again first; the block's output is never
//! needed, so `down_proj` is not. Normalised inputs and the activation are always recomputed: they are cheap.

use super::layer::{LinearLayer, Vector};
use super::pass::Pass;
use crate::ops::attention::{self, AttentionShape};
use crate::ops::linear::{self, Operands};
use crate::ops::rope::{self, Direction, RopeTable};
use crate::ops::{rms_norm, swiglu, Gradients, MatRef, Matrix};
use std::ops::Range;

/// Weights of one decoder block.
pub struct Block {
    /// Norm before attention.
    pub input_norm: Vector,
    /// Query projection.
    pub q: LinearLayer,
    /// Key projection.
    pub k: LinearLayer,
    /// Value projection.
    pub v: LinearLayer,
    /// Output projection.
    pub o: LinearLayer,
    /// Norm before the feed-forward part.
    pub post_norm: Vector,
    /// Gate projection.
    pub gate: LinearLayer,
    /// Up projection.
    pub up: LinearLayer,
    /// Down projection.
    pub down: LinearLayer,
}

/// What is the same for all blocks of a model in one pass.
#[derive(Clone, Copy)]
pub struct BlockContext<'a> {
    /// Parameters, memory, number format, randomness.
    pub pass: &'a Pass<'a>,
    /// Heads and their size.
    pub shape: AttentionShape,
    /// Epsilon of the norms.
    pub eps: f32,
    /// Rotations, long enough for every position.
    pub rope: &'a RopeTable,
    /// Position of each row.
    pub positions: &'a [u32],
    /// Documents.
    pub segments: &'a [Range<usize>],
}

/// What the forward pass of a block keeps for its backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Keep {
    /// The block's input only; everything else is computed again. Least memory.
    Input,
    /// Everything that a matrix product or attention made; only cheap operations run again. Fastest.
    #[default]
    Light,
}

/// Kept values of one block.
pub struct Saved {
    x: Matrix,
    light: Option<Light>,
}

impl Saved {
    /// The block's input, `[T,H]`.
    pub fn input(&self) -> &Matrix {
        &self.x
    }
}

/// Everything up to gate and up.
struct Light {
    inv_rms: Matrix,
    q: Projected,
    k: Projected,
    v: Projected,
    attended: Matrix,
    lse: Matrix,
    o_hidden: Option<Matrix>,
    middle: Matrix,
    middle_inv_rms: Matrix,
    gate: Projected,
    up: Projected,
}

/// Output of a linear and the low-rank values of its adapter.
struct Projected {
    y: Matrix,
    hidden: Option<Matrix>,
}

impl Block {
    /// All linears, in the model's order.
    pub fn linears(&self) -> [&LinearLayer; 7] {
        [&self.q, &self.k, &self.v, &self.o, &self.gate, &self.up, &self.down]
    }

    /// All linears, to change.
    pub fn linears_mut(&mut self) -> [&mut LinearLayer; 7] {
        [&mut self.q, &mut self.k, &mut self.v, &mut self.o, &mut self.gate, &mut self.up, &mut self.down]
    }

    /// `y [T,H]` from `x [T,H]`, and what `keep` asks to keep.
    pub fn forward(&self, context: &BlockContext<'_>, x: Matrix, keep: Option<Keep>) -> (Matrix, Option<Saved>) {
        let arena = context.pass.arena;
        let light = self.forward_to_gate(context, &x);
        let mut y = arena.matrix(x.rows(), x.cols());
        {
            let mut activated = arena.matrix(light.gate.y.rows(), light.gate.y.cols());
            swiglu::forward(&light.gate.y, &light.up.y, &mut activated);
            linear::forward(&self.down.view(context.pass), activated.view(), &mut y, arena);
        }
        add_in_place(&mut y, &light.middle);
        let saved = keep.map(|keep| Saved { x, light: (keep == Keep::Light).then_some(light) });
        (y, saved)
    }

    fn forward_to_gate(&self, context: &BlockContext<'_>, x: &Matrix) -> Light {
        let (pass, arena) = (context.pass, context.pass.arena);
        let (mut normed, inv_rms) = self.normed(context, &self.input_norm, x);
        let (mut q, mut k) = (self.project(&self.q, pass, &normed), self.project(&self.k, pass, &normed));
        let v = self.project(&self.v, pass, &normed);
        rope::apply(&mut q.y, context.shape.heads, context.positions, context.rope, Direction::Forward);
        rope::apply(&mut k.y, context.shape.kv_heads, context.positions, context.rope, Direction::Forward);

        let mut attended = arena.matrix(q.y.rows(), q.y.cols());
        let mut lse = arena.matrix(q.y.rows(), context.shape.heads);
        attention::forward(context.shape, &q.y, &k.y, &v.y, context.segments, &mut attended, &mut lse);
        let mut middle = arena.matrix(x.rows(), x.cols());
        let o_hidden = linear::forward(&self.o.view(pass), attended.view(), &mut middle, arena);
        let mut middle_inv_rms = arena.matrix(x.rows(), 1);
        let weight = self.post_norm.view(pass.params);
        rms_norm::add_forward(&mut middle, x, weight, context.eps, &mut normed, &mut middle_inv_rms);

        let gate = self.project(&self.gate, pass, &normed);
        let up = self.project(&self.up, pass, &normed);
        Light { inv_rms, q, k, v, attended, lse, o_hidden, middle, middle_inv_rms, gate, up }
    }

    fn normed(&self, context: &BlockContext<'_>, norm: &Vector, x: &Matrix) -> (Matrix, Matrix) {
        let arena = context.pass.arena;
        let (mut y, mut inv_rms) = (arena.matrix(x.rows(), x.cols()), arena.matrix(x.rows(), 1));
        rms_norm::forward(x, norm.view(context.pass.params), context.eps, &mut y, &mut inv_rms);
        (y, inv_rms)
    }

    fn project(&self, layer: &LinearLayer, pass: &Pass<'_>, x: &Matrix) -> Projected {
        let view = layer.view(pass);
        let mut y = pass.arena.matrix(x.rows(), view.weight.rows());
        let hidden = linear::forward(&view, x.view(), &mut y, pass.arena);
        Projected { y, hidden }
    }

    /// Turns `gradient [T,H]` from that of the block's output into that of its input, in place; adds the parameters'
    /// gradients to `grads`.
    pub fn backward(&self, context: &BlockContext<'_>, saved: Saved, gradient: &mut Matrix, grads: &mut Gradients) {
        let Saved { x, light } = saved;
        let light = light.unwrap_or_else(|| self.forward_to_gate(context, &x));
        let Light { inv_rms, q, k, v, attended, lse, o_hidden, middle, middle_inv_rms, gate, up } = light;
        self.backward_feed_forward(context, FeedForward { middle, middle_inv_rms, gate, up }, gradient, grads);
        self.backward_attention(context, Attention { x, inv_rms, q, k, v, attended, lse, o_hidden }, gradient, grads);
    }

    fn backward_feed_forward(
        &self,
        context: &BlockContext<'_>,
        saved: FeedForward,
        gradient: &mut Matrix,
        grads: &mut Gradients,
    ) {
        let (pass, arena) = (context.pass, context.pass.arena);
        let FeedForward { middle, middle_inv_rms, mut gate, mut up } = saved;
        let mut activated = arena.matrix(gate.y.rows(), gate.y.cols());
        let down = self.down.view(pass);
        let down_gradient = linear::backward_input(&down, gradient, &mut activated, false, arena);
        // Holds the activation's gradient until here, the activation itself from here on.
        swiglu::backward_in_place(&mut gate.y, &mut up.y, &mut activated);
        let operands =
            Operands { x: activated.view(), dy: gradient, hidden: None, hidden_gradient: down_gradient.as_ref() };
        linear::backward_params(&down, operands, grads, arena);
        drop(activated);

        let mut normed = arena.matrix(middle.rows(), middle.cols());
        let mut unused = arena.matrix(middle.rows(), 1);
        let weight = self.post_norm.view(pass.params);
        rms_norm::forward(&middle, weight, context.eps, &mut normed, &mut unused);
        let mut normed_gradient = arena.matrix(middle.rows(), middle.cols());
        let group = [(&self.gate, &gate), (&self.up, &up)];
        self.backward_group(pass, &group, normed.view(), &mut normed_gradient, grads);
        let saved = rms_norm::Saved { x: &middle, inv_rms: &middle_inv_rms, weight };
        let dweight = self.post_norm.id().map(|id| grads.get_mut(id));
        rms_norm::backward(saved, &normed_gradient, gradient, dweight);
    }

    fn backward_attention(
        &self,
        context: &BlockContext<'_>,
        saved: Attention,
        gradient: &mut Matrix,
        grads: &mut Gradients,
    ) {
        let (pass, arena) = (context.pass, context.pass.arena);
        let Attention { x, inv_rms, mut q, mut k, mut v, attended, lse, o_hidden } = saved;
        let o = self.o.view(pass);
        let mut attended_gradient = arena.matrix(attended.rows(), attended.cols());
        let o_gradient = linear::backward_input(&o, gradient, &mut attended_gradient, false, arena);
        let operands = Operands {
            x: attended.view(),
            dy: gradient,
            hidden: o_hidden.as_ref(),
            hidden_gradient: o_gradient.as_ref(),
        };
        linear::backward_params(&o, operands, grads, arena);

        let mut dq = arena.matrix(q.y.rows(), q.y.cols());
        let mut dk = arena.matrix(k.y.rows(), k.y.cols());
        let mut dv = arena.matrix(v.y.rows(), v.y.cols());
        let kept = attention::Saved { q: &q.y, k: &k.y, v: &v.y, out: &attended, lse: &lse };
        let outputs = attention::Grads { dq: &mut dq, dk: &mut dk, dv: &mut dv };
        attention::backward(context.shape, kept, &attended_gradient, context.segments, arena, outputs);
        drop((attended, attended_gradient, lse));
        rope::apply(&mut dq, context.shape.heads, context.positions, context.rope, Direction::Backward);
        rope::apply(&mut dk, context.shape.kv_heads, context.positions, context.rope, Direction::Backward);
        (q.y, k.y, v.y) = (dq, dk, dv);

        let (normed, _) = self.normed(context, &self.input_norm, &x);
        let mut normed_gradient = arena.matrix(x.rows(), x.cols());
        let group = [(&self.q, &q), (&self.k, &k), (&self.v, &v)];
        self.backward_group(pass, &group, normed.view(), &mut normed_gradient, grads);
        let weight = self.input_norm.view(pass.params);
        let dweight = self.input_norm.id().map(|id| grads.get_mut(id));
        rms_norm::backward(rms_norm::Saved { x: &x, inv_rms: &inv_rms, weight }, &normed_gradient, gradient, dweight);
    }

    /// Linears that share an input: their input gradients add up in `dx`. Each `y` holds the gradient of its output.
    fn backward_group(
        &self,
        pass: &Pass<'_>,
        group: &[(&LinearLayer, &Projected)],
        x: MatRef<'_>,
        dx: &mut Matrix,
        grads: &mut Gradients,
    ) {
        for (index, (layer, output)) in group.iter().enumerate() {
            let view = layer.view(pass);
            let gradient = linear::backward_input(&view, &output.y, dx, index > 0, pass.arena);
            let hidden = output.hidden.as_ref();
            let operands = Operands { x, dy: &output.y, hidden, hidden_gradient: gradient.as_ref() };
            linear::backward_params(&view, operands, grads, pass.arena);
        }
    }
}

/// Kept values of the feed-forward half.
struct FeedForward {
    middle: Matrix,
    middle_inv_rms: Matrix,
    gate: Projected,
    up: Projected,
}

/// Kept values of the attention half.
struct Attention {
    x: Matrix,
    inv_rms: Matrix,
    q: Projected,
    k: Projected,
    v: Projected,
    attended: Matrix,
    lse: Matrix,
    o_hidden: Option<Matrix>,
}

/// `y += x`.
fn add_in_place(y: &mut Matrix, x: &Matrix) {
    use rayon::prelude::*;
    const CHUNK: usize = 1 << 14;
    y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(y, x)| y.iter_mut().zip(x).for_each(|(y, x)| *y += x));
}
