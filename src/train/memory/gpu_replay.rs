//! A training step on a GPU with sizes in the place of values: what its memory will hold, before there is a GPU.
//!
//! Each function here is named after one of `model/cuda/*` or `ops/*/cuda.rs` and takes, in the same order and for as long,
//! what that one takes from the GPU. Invariant: the GPU's own peak and this one are the same number of bytes
//! (`gpu_tests.rs`), for models without biases; these are counted together, to within a page each.

use super::job::Job;
use super::replay::{Attention, FeedForward, Ledger, LinearSizes, Loan, Projected, Saved};
use crate::model::cuda::head_chunk_rows;
use crate::model::Keep;
use crate::optim::cuda::{FACTORS, PIECE, PIECE_WORDS};
use crate::optim::OptimizerKind;
use crate::quant::double::{PART, STEPS};
use crate::quant::QuantConfig;

/// Bytes of a bf16 and of an f32 value.
const HALF: usize = 2;
const FLOAT: usize = 4;
/// Rows of a tile of attention, and bytes that describe one.
const TILE: usize = 64;
const TILE_BYTES: usize = 16;
/// Values of the map of a double quantised weight.
const MAP: usize = 256;

/// Bytes in GPU memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct GpuBytes {
    /// Linears of the blocks.
    pub base: usize,
    /// Embedding, head, norms, biases, rotation table.
    pub embeddings: usize,
    /// Trained values: bf16 copies, and the f32 masters of an optimizer that is there.
    pub trained: usize,
    /// Their gradients.
    pub gradients: usize,
    /// Moments of an optimizer that is there, and its tables.
    pub optimizer: usize,
    /// Decoded weights: those that stay, and one.
    pub scratch: usize,
    /// What the blocks keep, when all have run forward.
    pub saved: usize,
    /// The chunk of logits and its gradient.
    pub logits: usize,
    /// The most that is on loan while the linears are loaded.
    pub loading: usize,
    /// The most that is on loan at a time.
    pub peak: usize,
    /// What the driver is asked for: whole regions, holes included.
    pub allocated: usize,
}

/// Bytes after an evaluation (if there is one) and some steps, with the weights of the first `cached` blocks decoded.
pub fn step(job: &Job, keep: &[Keep], cached: usize) -> GpuBytes {
    let ledger = Ledger::default();
    let replay = Replay { ledger: &ledger, job };
    let mut bytes = GpuBytes::default();
    let (_state, first_angles) = replay.state(cached, &mut bytes);
    // The table for one position is still there when the one for all is made.
    let _angles = replay.rope(job.batch.length);
    drop(first_angles);
    bytes.embeddings += FLOAT * job.rope_values;
    if job.evaluates {
        replay.loss();
    }
    for _ in 0..2 {
        replay.loss_and_gradients(keep, &mut bytes);
    }
    (bytes.peak, bytes.allocated) = (ledger.peak(), ledger.allocated());
    bytes
}

struct Replay<'a> {
    ledger: &'a Ledger,
    job: &'a Job,
}

impl<'a> Replay<'a> {
    fn halves(&self, values: usize) -> Loan<'a> {
        self.ledger.bytes(HALF * values)
    }

    fn floats(&self, values: usize) -> Loan<'a> {
        self.ledger.bytes(FLOAT * values)
    }

    /// A bf16 activation of so many columns.
    fn rows(&self, cols: usize) -> Loan<'a> {
        self.halves(self.job.batch.rows() * cols)
    }

    fn hidden(&self) -> Loan<'a> {
        self.rows(self.job.model.hidden)
    }

    /// So many f32 values of each row.
    fn statistics(&self, values: usize) -> Loan<'a> {
        self.floats(self.job.batch.rows() * values)
    }

    /// `LinearStream`, `GpuLlama::new`, `GpuLlama::cache_weights` and `GpuParams::new`; the rotation table of the one
    /// position that a model is loaded with by itself.
    fn state(&self, cached: usize, bytes: &mut GpuBytes) -> (Vec<Loan<'a>>, [Loan<'a>; 2]) {
        let (job, hidden) = (self.job, self.job.model.hidden);
        let largest = job.linears().map(|linear| linear.rows * linear.cols).max().unwrap_or(0);
        let mut loans = self.linears(largest);
        bytes.loading = self.ledger.peak();
        let layers = job.model.blocks.len().max(1);
        let biases = (job.vector_values.saturating_sub(hidden) / layers).saturating_sub(2 * hidden);
        for _ in &job.model.blocks {
            loans.extend([self.floats(hidden), self.floats(hidden)]);
            if biases > 0 {
                loans.push(self.floats(biases));
            }
        }
        bytes.base = self.ledger.live();
        let before = self.ledger.live();
        let tables = if job.tied { 1 } else { 2 };
        (0..tables).for_each(|_| loans.push(self.dense(job.model.vocab * hidden)));
        loans.push(self.floats(hidden));
        bytes.embeddings = self.ledger.live() - before;
        let angles = self.rope(1);
        loans.push(self.halves(largest));
        let before = self.ledger.live();
        let decoded = job.model.blocks[..cached].iter().flatten();
        loans.extend(decoded.map(|linear| self.halves(linear.rows * linear.cols)));
        bytes.scratch = HALF * largest + self.ledger.live() - before;

        let trained = job.trained_tensors();
        let before = self.ledger.live();
        loans.extend(trained.iter().map(|&values| self.floats(values)));
        bytes.gradients = self.ledger.live() - before;
        loans.extend(trained.iter().map(|&values| self.halves(values)));
        drop(self.floats(trained.iter().copied().max().unwrap_or(0)));
        bytes.trained = self.ledger.live() - before - bytes.gradients;
        if job.optimizer == OptimizerKind::AdamW {
            self.optimizer(&trained, &mut loans, bytes);
        }
        (loans, angles)
    }

    /// `GpuAdamW::new`.
    fn optimizer(&self, trained: &[usize], loans: &mut Vec<Loan<'a>>, bytes: &mut GpuBytes) {
        let (before, mut masters) = (self.ledger.live(), 0);
        for &values in trained {
            let three = [(); 3].map(|()| self.floats(values));
            masters += three[0].len();
            loans.extend(three);
        }
        bytes.trained += masters;
        let pieces: usize = trained.iter().map(|values| values.div_ceil(PIECE)).sum();
        loans.push(self.ledger.bytes(8 * PIECE_WORDS * pieces));
        // A and B have rates of their own.
        loans.push(self.floats(2 * FACTORS));
        loans.push(self.ledger.bytes(8 * pieces));
        bytes.optimizer = self.ledger.live() - before - masters;
    }

    /// `GpuRopeTable::new`: cosines and sines.
    fn rope(&self, positions: usize) -> [Loan<'a>; 2] {
        let values = positions * self.job.model.attention.head_dim / 2;
        [self.floats(values), self.floats(values)]
    }

    /// `with_linears`: what stays of each linear.
    fn linears(&self, largest: usize) -> Vec<Loan<'a>> {
        let Job { quantization, is_quantized, stored_bytes, .. } = self.job;
        let sizes = self.job.linears().map(|linear| linear.rows * linear.cols);
        let (mut loans, mut table) = (Vec::new(), None);
        if let Some(config) = quantization.filter(|_| *is_quantized) {
            sizes.for_each(|values| loans.extend(self.nf4(values, &config)));
            return loans;
        }
        let _staging = self.ledger.bytes(stored_bytes * largest);
        for values in sizes {
            match quantization {
                Some(config) => loans.extend(self.quantize(values, *config, &mut table)),
                None => loans.push(self.halves(values)),
            }
        }
        loans
    }

    /// `GpuNf4::new`.
    fn nf4(&self, values: usize, config: &QuantConfig) -> Vec<Loan<'a>> {
        let blocks = values.div_ceil(config.block);
        let codes = self.ledger.bytes(values.div_ceil(2));
        match config.double {
            false => vec![codes, self.floats(blocks)],
            true => vec![codes, self.ledger.bytes(blocks), self.floats(blocks.div_ceil(MAP)), self.floats(MAP)],
        }
    }

    /// `Quantizer::quantize`; its table of codes stays in `table`.
    fn quantize(&self, values: usize, config: QuantConfig, table: &mut Option<Loan<'a>>) -> Vec<Loan<'a>> {
        let blocks = values.div_ceil(config.block);
        let (codes, absmax) = (self.ledger.bytes(values.div_ceil(2)), self.floats(blocks));
        let _first_bad = self.ledger.bytes(2 * FLOAT);
        if !config.double {
            return vec![codes, absmax];
        }
        table.get_or_insert_with(|| self.ledger.bytes(STEPS));
        let sums = self.ledger.bytes(2 * FLOAT * blocks.div_ceil(PART));
        let _offset = self.floats(1);
        let scales = [self.ledger.bytes(blocks), self.floats(blocks.div_ceil(MAP)), self.floats(MAP)];
        drop(sums);
        std::iter::once(codes).chain(scales).collect()
    }

    /// A weight that passes through GPU memory in its own dtype.
    fn dense(&self, values: usize) -> Loan<'a> {
        let _source = self.ledger.bytes(self.job.stored_bytes * values);
        self.halves(values)
    }

    /// `GpuLlama::packed`: tiles and positions.
    fn context(&self) -> [Loan<'a>; 2] {
        let tiles = self.job.batch.windows * self.job.batch.length.div_ceil(TILE);
        [self.ledger.bytes(TILE_BYTES * tiles), self.statistics(1)]
    }

    fn embed(&self) -> Loan<'a> {
        let x = self.hidden();
        drop(self.statistics(1));
        x
    }

    fn loss(&self) {
        let _context = self.context();
        let mut x = self.embed();
        for linears in &self.job.model.blocks {
            (x, _) = self.forward(linears, x, None, false);
        }
        let _normed = self.hidden();
        drop(self.statistics(1));
        drop(self.run_head(false, &mut GpuBytes::default()));
        drop(x);
    }

    fn loss_and_gradients(&self, keep: &[Keep], bytes: &mut GpuBytes) {
        let _context = self.context();
        let before = self.ledger.live();
        let mut x = self.embed();
        let mut saved = Vec::new();
        for (linears, keep) in self.job.model.blocks.iter().zip(keep) {
            let (y, kept) = self.forward(linears, x, Some(*keep), true);
            saved.extend(kept);
            x = y;
        }
        bytes.saved = self.ledger.live() - before - x.len();
        let last = x;
        let (normed, inv_rms) = (self.hidden(), self.statistics(1));
        let dnormed = self.hidden();
        let _losses = self.run_head(true, bytes);
        drop(normed);
        let _gradient = self.hidden();
        drop((last, inv_rms, dnormed));
        for linears in self.job.model.blocks.iter().rev() {
            let Some(kept) = saved.pop() else { break };
            self.backward(linears, kept);
        }
    }

    /// Returns the losses.
    fn run_head(&self, backward: bool, bytes: &mut GpuBytes) -> Loan<'a> {
        let (batch, vocab) = (&self.job.batch, self.job.model.vocab);
        // The last row of a document has no target.
        let active = batch.rows().saturating_sub(batch.windows).max(1);
        let losses = self.floats(active);
        let rows = head_chunk_rows(vocab).min(active);
        let _ids = self.floats(rows);
        let _gathered = self.halves(rows * self.job.model.hidden);
        let logits = self.floats(rows * vocab);
        let _wanted = self.floats(rows);
        let gradient = backward.then(|| self.halves(rows * vocab));
        bytes.logits = logits.len() + gradient.as_ref().map_or(0, Loan::len);
        losses
    }

    fn forward(
        &self,
        linears: &[LinearSizes; 7],
        x: Loan<'a>,
        keep: Option<Keep>,
        trains: bool,
    ) -> (Loan<'a>, Option<Saved<'a>>) {
        let (attention, feed_forward) = self.forward_to_gate(linears, trains);
        let _activated = self.rows(linears[4].rows);
        let y = self.hidden();
        drop(self.linear_forward(&linears[6], trains));
        let light = (keep == Some(Keep::Light)).then_some((attention, feed_forward));
        (y, keep.map(|_| Saved { x, light }))
    }

    fn forward_to_gate(&self, linears: &[LinearSizes; 7], trains: bool) -> (Attention<'a>, FeedForward<'a>) {
        let [q, k, v, o, gate, up, _] = linears;
        let (_normed, inv_rms) = (self.hidden(), self.statistics(1));
        let [q, k, v] = [q, k, v].map(|linear| self.project(linear, trains));
        let attended = self.rows(linears[0].rows);
        let lse = self.statistics(self.job.model.attention.heads);
        let middle = self.hidden();
        let o_hidden = self.linear_forward(o, trains);
        let middle_inv_rms = self.statistics(1);
        let [gate, up] = [gate, up].map(|linear| self.project(linear, trains));
        let attention = Attention { inv_rms, q, k, v, attended, lse, o_hidden };
        (attention, FeedForward { middle, middle_inv_rms, gate, up })
    }

    fn project(&self, linear: &LinearSizes, trains: bool) -> Projected<'a> {
        let y = self.rows(linear.rows);
        Projected { y, hidden: self.linear_forward(linear, trains) }
    }

    fn linear_forward(&self, linear: &LinearSizes, trains: bool) -> Option<Loan<'a>> {
        let rank = linear.rank?;
        let _dropped = (linear.dropout && trains).then(|| self.rows(linear.cols));
        Some(self.rows(rank))
    }

    fn backward_input(&self, linear: &LinearSizes) -> Option<Loan<'a>> {
        let gradient = self.rows(linear.rank?);
        let _part = linear.dropout.then(|| self.rows(linear.cols));
        Some(gradient)
    }

    /// `hidden`: whether u of the forward pass is still there.
    fn backward_params(&self, linear: &LinearSizes, hidden: bool) {
        let Some(rank) = linear.rank else { return };
        let _dropped = linear.dropout.then(|| self.rows(linear.cols));
        let _computed = (!hidden).then(|| self.rows(rank));
    }

    fn backward(&self, linears: &[LinearSizes; 7], saved: Saved<'a>) {
        let Saved { x, light } = saved;
        let (attention, feed_forward) = light.unwrap_or_else(|| self.forward_to_gate(linears, true));
        self.backward_feed_forward(linears, feed_forward);
        self.backward_attention(linears, attention);
        drop(x);
    }

    fn backward_feed_forward(&self, linears: &[LinearSizes; 7], saved: FeedForward<'a>) {
        let [.., gate, up, down] = linears;
        let FeedForward { middle, middle_inv_rms, gate: kept_gate, up: kept_up } = saved;
        let activated = self.rows(down.cols);
        let _down_gradient = self.backward_input(down);
        self.backward_params(down, false);
        drop(activated);
        let _normed = (self.hidden(), self.statistics(1), self.hidden());
        self.backward_group(&[gate, up]);
        drop((middle, middle_inv_rms, kept_gate, kept_up));
    }

    fn backward_attention(&self, linears: &[LinearSizes; 7], saved: Attention<'a>) {
        let [q, k, v, o, ..] = linears;
        let Attention { inv_rms, q: kept_q, k: kept_k, v: kept_v, attended, lse, o_hidden } = saved;
        let dattended = self.rows(q.rows);
        let _o_gradient = self.backward_input(o);
        self.backward_params(o, true);
        let delta = self.statistics(self.job.model.attention.heads);
        let _gradients = [q, k, v].map(|linear| self.rows(linear.rows));
        drop(delta);
        drop((attended, dattended, lse));
        let _normed = (self.hidden(), self.statistics(1), self.hidden());
        self.backward_group(&[q, k, v]);
        drop((inv_rms, o_hidden, kept_q, kept_k, kept_v));
    }

    fn backward_group(&self, group: &[&LinearSizes]) {
        for linear in group {
            let _gradient = self.backward_input(linear);
            self.backward_params(linear, true);
        }
    }
}
