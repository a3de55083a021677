//! A training step with sizes in the place of values: what the arena will hold, before there is an arena.
//!
//! Each function here is named after one of `model/block.rs`, `model/llama.rs` or `ops/*` and takes from a [`Ledger`], in
//! the same order and for as long, what that one takes from its arena. The ledger places the loans as an arena does, so
//! that holes are counted too. Invariant: on one thread, the step's own peak and this one are the same number of bytes
//! (`tests.rs`); with several threads the attention's backward pass may hold less at a time than is assumed here.

use crate::device::Compute;
use crate::model::Keep;
use crate::ops::attention::{self, AttentionShape};
use crate::ops::cross_entropy;
use crate::ops::half_matrix::HalfMatrix;
use crate::ops::matrix::odd_stride;
use crate::ops::space::{Place, Space};
use std::cell::RefCell;

/// A linear as far as memory goes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LinearSizes {
    /// Output features.
    pub rows: usize,
    /// Input features.
    pub cols: usize,
    /// Rank of its adapter, if it has one.
    pub rank: Option<usize>,
    /// Whether the adapter's input is dropped out in training.
    pub dropout: bool,
    /// Whether the adapter has a magnitude.
    pub dora: bool,
}

/// A model as far as memory goes.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelSizes {
    /// Width of the residual stream.
    pub hidden: usize,
    /// Rows of the head.
    pub vocab: usize,
    /// Heads and their size.
    pub attention: AttentionShape,
    /// The linears of each block, in the order q, k, v, o, gate, up, down.
    pub blocks: Vec<[LinearSizes; 7]>,
}

/// What goes through the model at once.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BatchSizes {
    /// Windows.
    pub windows: usize,
    /// Rows of each; one document fills it, which is what takes most memory.
    pub length: usize,
    /// Operand format.
    pub compute: Compute,
    /// Threads of the pool.
    pub threads: usize,
    /// Whether some rows have no target.
    pub ignored: bool,
}

impl BatchSizes {
    /// Rows in all.
    pub fn rows(&self) -> usize {
        self.windows * self.length
    }
}

/// Bytes of the arena in a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ArenaBytes {
    /// What the blocks keep for their backward passes, when all of them have run forward.
    pub saved: usize,
    /// The chunk of logits.
    pub logits: usize,
    /// The most that is on loan at a time.
    pub peak: usize,
    /// Memory behind the arena, holes included: what the process pays for.
    pub touched: usize,
}

/// Places loans as an arena does.
#[derive(Default)]
pub(super) struct Ledger(RefCell<Space>);

/// A matrix that is not there.
pub(super) struct Loan<'a> {
    ledger: &'a Ledger,
    place: Option<Place>,
}

impl Ledger {
    pub(super) fn bytes(&self, bytes: usize) -> Loan<'_> {
        let place = self.0.borrow_mut().take(bytes);
        Loan { ledger: self, place: Some(place) }
    }

    /// Bytes on loan.
    pub(super) fn live(&self) -> usize {
        self.0.borrow().live()
    }

    /// The most that was on loan at a time.
    pub(super) fn peak(&self) -> usize {
        self.0.borrow().peak()
    }

    /// Bytes of all regions.
    pub(super) fn allocated(&self) -> usize {
        self.0.borrow().region_sizes().sum()
    }

    fn matrix(&self, rows: usize, cols: usize) -> Loan<'_> {
        self.bytes(rows * cols * size_of::<f32>())
    }

    fn half(&self, rows: usize, cols: usize) -> Loan<'_> {
        self.matrix(1, HalfMatrix::word_count(rows, cols))
    }
}

impl Loan<'_> {
    /// Its bytes.
    pub(super) fn len(&self) -> usize {
        self.place.as_ref().map_or(0, |place| place.bytes)
    }
}

impl Drop for Loan<'_> {
    fn drop(&mut self) {
        if let Some(place) = self.place.take() {
            self.ledger.0.borrow_mut().give(place);
        }
    }
}

/// Bytes of the arena after the first evaluation (if there is one) and some steps.
pub fn arena(model: &ModelSizes, batch: &BatchSizes, keep: &[Keep], evaluates: bool) -> ArenaBytes {
    let ledger = Ledger::default();
    let segments: Vec<_> = (0..batch.windows).map(|i| i * batch.length..(i + 1) * batch.length).collect();
    let pieces = attention::borrowed(model.attention, &segments, batch.threads);
    let replay = Replay { ledger: &ledger, model, batch, pieces };
    let mut bytes = ArenaBytes::default();
    if evaluates {
        replay.dora_scales();
        replay.loss();
    }
    for _ in 0..2 {
        replay.dora_scales();
        replay.loss_and_gradients(keep, &mut bytes);
    }
    let space = ledger.0.borrow();
    (bytes.peak, bytes.touched) = (space.peak(), space.touched());
    bytes
}

struct Replay<'a> {
    ledger: &'a Ledger,
    model: &'a ModelSizes,
    batch: &'a BatchSizes,
    /// `[rows, cols]` of what the attention's backward pass borrows.
    pieces: Vec<[usize; 2]>,
}

/// `block::Projected`; on a GPU the output of a linear and the low-rank values of its adapter.
pub(super) struct Projected<'a> {
    pub(super) y: Loan<'a>,
    pub(super) hidden: Option<Loan<'a>>,
}

/// `block::Attention`.
pub(super) struct Attention<'a> {
    pub(super) inv_rms: Loan<'a>,
    pub(super) q: Projected<'a>,
    pub(super) k: Projected<'a>,
    pub(super) v: Projected<'a>,
    pub(super) attended: Loan<'a>,
    pub(super) lse: Loan<'a>,
    pub(super) o_hidden: Option<Loan<'a>>,
}

/// `block::FeedForward`.
pub(super) struct FeedForward<'a> {
    pub(super) middle: Loan<'a>,
    pub(super) middle_inv_rms: Loan<'a>,
    pub(super) gate: Projected<'a>,
    pub(super) up: Projected<'a>,
}

/// `block::Saved`.
pub(super) struct Saved<'a> {
    pub(super) x: Loan<'a>,
    pub(super) light: Option<(Attention<'a>, FeedForward<'a>)>,
}

impl<'a> Replay<'a> {
    fn matrix(&self, cols: usize) -> Loan<'a> {
        self.ledger.matrix(self.batch.rows(), cols)
    }

    fn half(&self, cols: usize) -> Loan<'a> {
        self.ledger.half(self.batch.rows(), cols)
    }

    fn is_bf16(&self) -> bool {
        self.batch.compute == Compute::Bf16
    }

    /// `Llama::dora_scales`.
    fn dora_scales(&self) {
        let adapted = self.model.blocks.iter().flatten().filter(|linear| linear.dora);
        for (linear, rank) in adapted.filter_map(|linear| Some((linear, linear.rank?))) {
            let _cross = self.ledger.matrix(rank, linear.rows);
            let _gram = self.ledger.matrix(rank, rank);
            let _inner = self.ledger.matrix(linear.rows, rank);
        }
    }

    /// `Llama::loss`.
    fn loss(&self) {
        let mut x = self.matrix(self.model.hidden);
        for linears in &self.model.blocks {
            (x, _) = self.forward(linears, x, None, false);
        }
        let (_normed, _inv_rms) = (self.matrix(self.model.hidden), self.matrix(1));
        self.cross_entropy();
        drop(x);
    }

    /// `Llama::loss_and_gradients`.
    fn loss_and_gradients(&self, keep: &[Keep], bytes: &mut ArenaBytes) {
        let mut x = self.matrix(self.model.hidden);
        let mut saved = Vec::new();
        for (linears, keep) in self.model.blocks.iter().zip(keep) {
            let (y, kept) = self.forward(linears, x, Some(*keep), true);
            saved.extend(kept);
            x = y;
        }
        let last = x;
        bytes.saved = self.ledger.live() - last.len();
        let gradient = self.backward_head(bytes);
        drop(last);
        for linears in self.model.blocks.iter().rev() {
            let Some(kept) = saved.pop() else { break };
            self.backward(linears, kept);
        }
        drop(gradient);
    }

    fn backward_head(&self, bytes: &mut ArenaBytes) -> Loan<'a> {
        let (normed, _inv_rms) = (self.matrix(self.model.hidden), self.matrix(1));
        let _dnormed = self.matrix(self.model.hidden);
        bytes.logits = self.cross_entropy();
        drop(normed);
        self.matrix(self.model.hidden)
    }

    /// `cross_entropy::Problem::run`; returns the bytes of the logits.
    fn cross_entropy(&self) -> usize {
        let most = cross_entropy::chunk_rows(self.model.vocab, self.batch.rows()).min(self.batch.rows());
        let logits = self.ledger.matrix(most, odd_stride(self.model.vocab));
        let _scratch = self.batch.ignored.then(|| self.ledger.matrix(most, self.model.hidden));
        logits.len()
    }

    /// `Block::forward`.
    fn forward(
        &self,
        linears: &[LinearSizes; 7],
        x: Loan<'a>,
        keep: Option<Keep>,
        trains: bool,
    ) -> (Loan<'a>, Option<Saved<'a>>) {
        let [.., gate, _, down] = linears;
        let is_light = keep == Some(Keep::Light);
        let (attention, mut feed_forward) = self.forward_to_gate(linears, is_light, trains);
        let y = self.matrix(self.model.hidden);
        let activated = self.matrix(gate.rows);
        let halves = (self.is_bf16() && is_light).then(|| [self.half(gate.rows), self.half(gate.rows)]);
        drop(self.linear_forward(down, trains));
        drop(activated);
        if let Some([gate, up]) = halves {
            (feed_forward.gate.y, feed_forward.up.y) = (gate, up);
        }
        let light = is_light.then_some((attention, feed_forward));
        (y, keep.map(|_| Saved { x, light }))
    }

    /// `Block::forward_to_gate`.
    fn forward_to_gate(
        &self,
        linears: &[LinearSizes; 7],
        halve: bool,
        trains: bool,
    ) -> (Attention<'a>, FeedForward<'a>) {
        let [q, k, v, o, gate, up, _] = linears;
        let halve = halve && self.is_bf16();
        let (normed, inv_rms) = (self.matrix(self.model.hidden), self.matrix(1));
        let widths = [q.rows, k.rows, v.rows];
        let [mut q, mut k, mut v] = self.project([q, k, v], trains);
        let halves = halve.then(|| widths.map(|width| self.half(width)));
        let width = widths[0];
        let attended = self.matrix(width);
        let lse = self.matrix(self.model.attention.heads);
        if let Some([q_half, k_half, v_half]) = halves {
            (q.y, k.y, v.y) = (q_half, k_half, v_half);
        }
        let attended_half = halve.then(|| self.half(width));
        let middle = self.matrix(self.model.hidden);
        let o_hidden = self.linear_forward(o, trains);
        let attended = attended_half.unwrap_or(attended);
        let middle_inv_rms = self.matrix(1);
        let [gate, up] = self.project([gate, up], trains);
        drop(normed);
        let attention = Attention { inv_rms, q, k, v, attended, lse, o_hidden };
        (attention, FeedForward { middle, middle_inv_rms, gate, up })
    }

    fn project<const N: usize>(&self, linears: [&LinearSizes; N], trains: bool) -> [Projected<'a>; N] {
        let ys = linears.map(|linear| self.matrix(linear.rows));
        let mut hidden = linears.map(|linear| self.linear_forward(linear, trains)).into_iter();
        ys.map(|y| Projected { y, hidden: hidden.next().flatten() })
    }

    /// `linear::forward`.
    fn linear_forward(&self, linear: &LinearSizes, trains: bool) -> Option<Loan<'a>> {
        let rank = linear.rank?;
        let dropped = (linear.dropout && trains).then(|| self.matrix(linear.cols));
        let hidden = self.matrix(rank);
        let _part = (linear.dora && dropped.is_some()).then(|| self.matrix(linear.rows));
        Some(hidden)
    }

    /// `linear::backward_input`.
    fn backward_input(&self, linear: &LinearSizes) -> Option<Loan<'a>> {
        let rank = linear.rank?;
        let _scaled = linear.dora.then(|| self.matrix(linear.rows));
        let hidden_gradient = self.matrix(rank);
        let _part = linear.dropout.then(|| self.matrix(linear.cols));
        let _rest = (linear.dropout && linear.dora).then(|| self.matrix(linear.rows));
        Some(hidden_gradient)
    }

    /// `linear::backward_params`; `hidden`: whether u of the forward pass is still there.
    fn backward_params(&self, linear: &LinearSizes, hidden: bool) {
        let Some(rank) = linear.rank else { return };
        let _dropped = linear.dropout.then(|| self.matrix(linear.cols));
        let _scaled = linear.dora.then(|| self.matrix(linear.rows));
        let _computed = (!hidden).then(|| self.matrix(rank));
        let _product = linear.dora.then(|| self.matrix(linear.rows));
    }

    /// `Block::backward`.
    fn backward(&self, linears: &[LinearSizes; 7], saved: Saved<'a>) {
        let Saved { x, light } = saved;
        let is_kept = light.is_some();
        let (attention, feed_forward) = light.unwrap_or_else(|| self.forward_to_gate(linears, false, true));
        self.backward_feed_forward(linears, feed_forward, is_kept);
        self.backward_attention(linears, attention, is_kept);
        drop(x);
    }

    fn backward_feed_forward(&self, linears: &[LinearSizes; 7], saved: FeedForward<'a>, is_kept: bool) {
        let [.., gate, up, down] = linears;
        let FeedForward { middle, middle_inv_rms, gate: mut kept_gate, up: mut kept_up } = saved;
        let activated = self.matrix(down.cols);
        let down_gradient = self.backward_input(down);
        if is_kept && self.is_bf16() {
            (kept_gate.y, kept_up.y) = (self.matrix(gate.rows), self.matrix(up.rows));
        }
        self.backward_params(down, false);
        drop(activated);
        let (_normed, _unused) = (self.matrix(self.model.hidden), self.matrix(1));
        let _normed_gradient = self.matrix(self.model.hidden);
        self.backward_group(&[gate, up]);
        drop((middle, middle_inv_rms, down_gradient, kept_gate, kept_up));
    }

    fn backward_attention(&self, linears: &[LinearSizes; 7], saved: Attention<'a>, is_kept: bool) {
        let [q, k, v, o, ..] = linears;
        let Attention { inv_rms, q: kept_q, k: kept_k, v: kept_v, mut attended, lse, o_hidden } = saved;
        let widens = is_kept && self.is_bf16();
        if widens {
            attended = self.matrix(q.rows);
        }
        let attended_gradient = self.matrix(q.rows);
        let o_gradient = self.backward_input(o);
        self.backward_params(o, true);
        let hidden = [kept_q.hidden, kept_k.hidden, kept_v.hidden];
        let mut kept = [kept_q.y, kept_k.y, kept_v.y];
        if widens {
            kept.iter_mut().zip([q, k, v]).for_each(|(kept, linear)| *kept = self.matrix(linear.rows));
        }
        let gradients = [q, k, v].map(|linear| self.matrix(linear.rows));
        drop(self.pieces.iter().map(|[rows, cols]| self.ledger.matrix(*rows, *cols)).collect::<Vec<_>>());
        drop((kept, attended, attended_gradient, lse));
        let (_normed, _) = (self.matrix(self.model.hidden), self.matrix(1));
        let _normed_gradient = self.matrix(self.model.hidden);
        self.backward_group(&[q, k, v]);
        drop((inv_rms, o_hidden, o_gradient, hidden, gradients));
    }

    fn backward_group(&self, group: &[&LinearSizes]) {
        let _gradients: Vec<_> = group.iter().map(|linear| self.backward_input(linear)).collect();
        group.iter().for_each(|linear| self.backward_params(linear, true));
    }
}
