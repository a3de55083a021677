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
//!
//! With bf16 operands, q, k, v, the attention's output, gate and up are rounded to bf16 as soon as they exist, which is
//! what makes it exact to keep them in two bytes each: every [`Keep`] gives the same bits. The residual stream and the
//! statistics stay f32. With f32 operands nothing is rounded.
//!
//! The memory planner walks the same lines with sizes instead of values (`train/memory/replay.rs`): what is taken from
//! the arena here, and how long it is held, must change there too; a test compares the two byte for byte.

use super::layer::{LinearLayer, Vector};
use super::pass::Pass;
use crate::device::Compute;
use crate::ops::attention::{self, AttentionShape};
use crate::ops::linear::{group, Operands};
use crate::ops::profile;
use crate::ops::rope::{self, Direction, RopeTable};
use crate::ops::{half_matrix, rms_norm, swiglu, Arena, Gradients, HalfMatrix, MatRef, Matrix};
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
    light: Option<(Attention, FeedForward<Kept>)>,
}

impl Saved {
    /// The block's input, `[T,H]`.
    pub fn input(&self) -> &Matrix {
        &self.x
    }
}

/// Values of the attention half.
struct Attention {
    inv_rms: Matrix,
    q: Projected<Kept>,
    k: Projected<Kept>,
    v: Projected<Kept>,
    attended: Kept,
    lse: Matrix,
    o_hidden: Option<Matrix>,
}

/// Values of the feed-forward half.
struct FeedForward<M = Matrix> {
    middle: Matrix,
    middle_inv_rms: Matrix,
    gate: Projected<M>,
    up: Projected<M>,
}

impl FeedForward {
    /// With gate and up in halves, if there are any.
    fn kept(self, halves: Option<[HalfMatrix; 2]>) -> FeedForward<Kept> {
        let FeedForward { middle, middle_inv_rms, gate, up } = self;
        let (gate_half, up_half) = halves.map_or((None, None), |[gate, up]| (Some(gate), Some(up)));
        FeedForward { middle, middle_inv_rms, gate: gate.holding(gate_half), up: up.holding(up_half) }
    }
}

/// Output of a linear and the low-rank values of its adapter.
pub(super) struct Projected<M = Matrix> {
    pub y: M,
    hidden: Option<Matrix>,
}

/// A matrix that waits for the backward pass.
enum Kept {
    Whole(Matrix),
    Half(HalfMatrix),
}

impl Kept {
    fn matrix(self, arena: &Arena) -> Matrix {
        match self {
            Kept::Whole(matrix) => matrix,
            Kept::Half(half) => half.widen(arena),
        }
    }
}

impl Projected {
    fn holding(self, half: Option<HalfMatrix>) -> Projected<Kept> {
        Projected { y: half.map_or(Kept::Whole(self.y), Kept::Half), hidden: self.hidden }
    }
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
        let (pass, arena) = (context.pass, context.pass.arena);
        let is_light = keep == Some(Keep::Light);
        let (attention, feed_forward) = self.forward_to_gate(context, &x, is_light);
        let mut y = arena.matrix(x.rows(), x.cols());
        let (gate, up) = (&feed_forward.gate.y, &feed_forward.up.y);
        let mut activated = arena.matrix(gate.rows(), gate.cols());
        let halves = match (pass.compute, is_light) {
            (Compute::F32, _) => {
                swiglu::forward(gate, up, &mut activated);
                None
            }
            (Compute::Bf16, true) => Some(swiglu::forward_keeping(gate, up, &mut activated, arena)),
            (Compute::Bf16, false) => {
                swiglu::forward_rounding(gate, up, &mut activated);
                None
            }
        };
        group::forward(&[self.down.view(pass)], activated.view(), vec![&mut y], arena);
        drop(activated);
        add_in_place(&mut y, &feed_forward.middle);
        let light = is_light.then(|| (attention, feed_forward.kept(halves)));
        (y, keep.map(|_| Saved { x, light }))
    }

    /// Everything up to gate and up. With `halve` and bf16 operands, what can be kept in bf16 is.
    fn forward_to_gate(&self, context: &BlockContext<'_>, x: &Matrix, halve: bool) -> (Attention, FeedForward) {
        let (pass, arena) = (context.pass, context.pass.arena);
        let (mut normed, inv_rms) = self.normed(context, &self.input_norm, x);
        let [mut q, mut k, mut v] = self.project([&self.q, &self.k, &self.v], pass, &normed);
        rope::apply(&mut q.y, context.shape.heads, context.positions, context.rope, Direction::Forward);
        rope::apply(&mut k.y, context.shape.kv_heads, context.positions, context.rope, Direction::Forward);
        let [q_half, k_half, v_half] = [&mut q.y, &mut k.y, &mut v.y].map(|matrix| rounded(pass, matrix, halve));

        let mut attended = arena.matrix(q.y.rows(), q.y.cols());
        let mut lse = arena.matrix(q.y.rows(), context.shape.heads);
        let inputs = attention::Inputs { q: &q.y, k: &k.y, v: &v.y, segments: context.segments };
        attention::forward(context.shape, pass.compute, inputs, &mut attended, &mut lse);
        let (q, k, v) = (q.holding(q_half), k.holding(k_half), v.holding(v_half));
        let attended_half = rounded(pass, &mut attended, halve);
        let mut middle = arena.matrix(x.rows(), x.cols());
        let o_hidden = group::forward(&[self.o.view(pass)], attended.view(), vec![&mut middle], arena).pop().flatten();
        let attended = attended_half.map_or(Kept::Whole(attended), Kept::Half);
        let mut middle_inv_rms = arena.matrix(x.rows(), 1);
        let weight = self.post_norm.view(pass.params);
        rms_norm::add_forward(&mut middle, x, weight, context.eps, &mut normed, &mut middle_inv_rms);

        let [gate, up] = self.project([&self.gate, &self.up], pass, &normed);
        let attention = Attention { inv_rms, q, k, v, attended, lse, o_hidden };
        (attention, FeedForward { middle, middle_inv_rms, gate, up })
    }

    fn normed(&self, context: &BlockContext<'_>, norm: &Vector, x: &Matrix) -> (Matrix, Matrix) {
        let arena = context.pass.arena;
        let (mut y, mut inv_rms) = (arena.matrix(x.rows(), x.cols()), arena.matrix(x.rows(), 1));
        rms_norm::forward(x, norm.view(context.pass.params), context.eps, &mut y, &mut inv_rms);
        (y, inv_rms)
    }

    /// Linears that share the input `x`.
    pub(super) fn project<const N: usize>(
        &self,
        layers: [&LinearLayer; N],
        pass: &Pass<'_>,
        x: &Matrix,
    ) -> [Projected; N] {
        let views = layers.map(|layer| layer.view(pass));
        let mut ys = views.each_ref().map(|view| pass.arena.matrix(x.rows(), view.weight.rows()));
        let hidden = group::forward(&views, x.view(), ys.each_mut().into_iter().collect(), pass.arena);
        let mut hidden = hidden.into_iter();
        ys.map(|y| Projected { y, hidden: hidden.next().flatten() })
    }

    /// Turns `gradient [T,H]` from that of the block's output into that of its input, in place; adds the parameters'
    /// gradients to `grads`.
    pub fn backward(&self, context: &BlockContext<'_>, saved: Saved, gradient: &mut Matrix, grads: &mut Gradients) {
        let Saved { x, light } = saved;
        let (attention, feed_forward) = light.unwrap_or_else(|| {
            let (attention, mut feed_forward) = self.forward_to_gate(context, &x, false);
            for matrix in [&mut feed_forward.gate.y, &mut feed_forward.up.y] {
                rounded(context.pass, matrix, false);
            }
            (attention, feed_forward.kept(None))
        });
        self.backward_feed_forward(context, feed_forward, gradient, grads);
        self.backward_attention(context, &x, attention, gradient, grads);
    }

    fn backward_feed_forward(
        &self,
        context: &BlockContext<'_>,
        saved: FeedForward<Kept>,
        gradient: &mut Matrix,
        grads: &mut Gradients,
    ) {
        let (pass, arena) = (context.pass, context.pass.arena);
        let FeedForward { middle, middle_inv_rms, gate, up } = saved;
        let down = self.down.view(pass);
        let mut activated = arena.matrix(middle.rows(), down.weight.cols());
        let down_gradient = group::backward_input(&[down], &[gradient], &mut activated, arena).pop().flatten();
        // Holds the activation's gradient until here, the activation itself from here on.
        let [dgate, dup] = match (gate.y, up.y) {
            (Kept::Half(gate), Kept::Half(up)) => swiglu::backward_kept([gate, up], &mut activated, arena),
            (gate, up) => {
                let (mut gate, mut up) = (gate.matrix(arena), up.matrix(arena));
                swiglu::backward_in_place(&mut gate, &mut up, &mut activated);
                [gate, up]
            }
        };
        let (gate, up) = (Projected { y: dgate, hidden: gate.hidden }, Projected { y: dup, hidden: up.hidden });
        let operands =
            Operands { x: activated.view(), dy: gradient, hidden: None, hidden_gradient: down_gradient.as_ref() };
        group::backward_params(&[down], &[operands], grads, arena);
        drop(activated);

        let mut normed = arena.matrix(middle.rows(), middle.cols());
        let mut unused = arena.matrix(middle.rows(), 1);
        let weight = self.post_norm.view(pass.params);
        rms_norm::forward(&middle, weight, context.eps, &mut normed, &mut unused);
        let mut normed_gradient = arena.matrix(middle.rows(), middle.cols());
        let (layers, outputs) = ([&self.gate, &self.up], [gate, up]);
        self.backward_group(pass, (layers, outputs), normed.view(), &mut normed_gradient, grads);
        let saved = rms_norm::Saved { x: &middle, inv_rms: &middle_inv_rms, weight };
        let dweight = self.post_norm.id().map(|id| grads.get_mut(id));
        rms_norm::backward(saved, &normed_gradient, gradient, dweight);
    }

    fn backward_attention(
        &self,
        context: &BlockContext<'_>,
        x: &Matrix,
        saved: Attention,
        gradient: &mut Matrix,
        grads: &mut Gradients,
    ) {
        let (pass, arena) = (context.pass, context.pass.arena);
        let Attention { inv_rms, q, k, v, attended, lse, o_hidden } = saved;
        let attended = attended.matrix(arena);
        let o = self.o.view(pass);
        let mut attended_gradient = arena.matrix(attended.rows(), attended.cols());
        let o_gradient = group::backward_input(&[o], &[gradient], &mut attended_gradient, arena).pop().flatten();
        let operands = Operands {
            x: attended.view(),
            dy: gradient,
            hidden: o_hidden.as_ref(),
            hidden_gradient: o_gradient.as_ref(),
        };
        group::backward_params(&[o], &[operands], grads, arena);

        let [q_hidden, k_hidden, v_hidden] = [q.hidden, k.hidden, v.hidden];
        let (q, k, v) = (q.y.matrix(arena), k.y.matrix(arena), v.y.matrix(arena));
        let [mut dq, mut dk, mut dv] = [&q, &k, &v].map(|matrix| arena.matrix(matrix.rows(), matrix.cols()));
        let inputs = attention::Inputs { q: &q, k: &k, v: &v, segments: context.segments };
        let kept = attention::Saved { inputs, out: &attended, lse: &lse };
        let outputs = attention::Grads { dq: &mut dq, dk: &mut dk, dv: &mut dv };
        attention::backward(context.shape, pass.compute, kept, &attended_gradient, arena, outputs);
        drop((q, k, v, attended, attended_gradient, lse));
        rope::apply(&mut dq, context.shape.heads, context.positions, context.rope, Direction::Backward);
        rope::apply(&mut dk, context.shape.kv_heads, context.positions, context.rope, Direction::Backward);

        let (normed, _) = self.normed(context, &self.input_norm, x);
        let mut normed_gradient = arena.matrix(x.rows(), x.cols());
        let outputs = [(dq, q_hidden), (dk, k_hidden), (dv, v_hidden)].map(|(y, hidden)| Projected { y, hidden });
        let layers = [&self.q, &self.k, &self.v];
        self.backward_group(pass, (layers, outputs), normed.view(), &mut normed_gradient, grads);
        let weight = self.input_norm.view(pass.params);
        let dweight = self.input_norm.id().map(|id| grads.get_mut(id));
        rms_norm::backward(rms_norm::Saved { x, inv_rms: &inv_rms, weight }, &normed_gradient, gradient, dweight);
    }

    /// Linears that share an input: their input gradients add up in `dx`. Each `y` holds the gradient of its output.
    fn backward_group<const N: usize>(
        &self,
        pass: &Pass<'_>,
        (layers, outputs): ([&LinearLayer; N], [Projected; N]),
        x: MatRef<'_>,
        dx: &mut Matrix,
        grads: &mut Gradients,
    ) {
        let views = layers.map(|layer| layer.view(pass));
        let gradients = group::backward_input(&views, &outputs.each_ref().map(|output| &output.y), dx, pass.arena);
        let operands = std::array::from_fn::<_, N, _>(|i| {
            let hidden_gradient = gradients[i].as_ref();
            Operands { x, dy: &outputs[i].y, hidden: outputs[i].hidden.as_ref(), hidden_gradient }
        });
        group::backward_params(&views, &operands, grads, pass.arena);
    }
}

/// Where the operands of products are bf16, rounds the values to it; with `halve` returns them as they will be kept.
fn rounded(pass: &Pass<'_>, matrix: &mut Matrix, halve: bool) -> Option<HalfMatrix> {
    match (pass.compute, halve) {
        (Compute::F32, _) => None,
        (Compute::Bf16, true) => Some(HalfMatrix::rounding(matrix, pass.arena)),
        (Compute::Bf16, false) => {
            half_matrix::round(matrix);
            None
        }
    }
}

/// `y += x`.
pub(super) fn add_in_place(y: &mut Matrix, x: &Matrix) {
    let _span = profile::span("residual", 0.0);
    use rayon::prelude::*;
    const CHUNK: usize = 1 << 14;
    y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(y, x)| y.iter_mut().zip(x).for_each(|(y, x)| *y += x));
}
