//! One new token of one sequence through the model: the step of chat.
//!
//! The weights are read once and hardly anything is computed with them, so this runs at the speed of the memory, if
//! nothing else costs time: all threads go through the token side by side ([`team`]), each keeps its own copy of the
//! residual stream, computes the norms for itself, and takes a share of the rows of every weight. A block has four
//! phases: q, k, v | attention | o | gate, up | down. The logits come last ([`logits`]).
//!
//! Invariant: every value is computed by one thread in an order of its own, so the bits do not depend on the number of
//! threads; the logits are those of [`Llama::logits`](super::Llama::logits) up to the order of sums.

mod logits;
mod pace;
mod projection;

use super::block::{Block, BlockContext};
use super::cache::KvCache;
use super::layer::Weight;
use super::llama::Llama;
use super::pass::{Pass, Rows};
use crate::device::Compute;
use crate::ops::attention::{AttentionShape, CacheView, NewRow, RowAttention};
use crate::ops::gemm::{CoarseInput, RowTables, WeightRef};
use crate::ops::rope::{self, Direction};
use crate::ops::team::{self, Member, SharedValues};
use crate::ops::{embedding, rms_norm, swiglu, Matrix};
use pace::Pace;
use projection::Projection;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Instant;

/// Bytes of weights for which one more thread is worth waking.
const BYTES_PER_THREAD: usize = 1 << 20;

/// Working memory of a token: what the threads hand each other, and what each keeps to itself.
#[derive(Default)]
pub(super) struct Workspace {
    shared: Shared,
    members: Vec<Mutex<Private>>,
    pace: Pace,
}

/// Written by one thread each, read by all in the next phase.
#[derive(Default)]
struct Shared {
    /// `[heads * head_dim]`, before the rotation.
    queries: SharedValues,
    /// `[layers, kv_heads * head_dim]`: the new keys, in the end rotated.
    keys: SharedValues,
    /// `[layers, kv_heads * head_dim]`.
    values: SharedValues,
    /// Results of the parts of attention.
    parts: SharedValues,
    /// What attention or the feed-forward part adds to the residual stream, `[hidden]`.
    delta: SharedValues,
    /// `[intermediate]`.
    activated: SharedValues,
    /// Low-rank values of the adapters, `[3, rank]`.
    low_rank: SharedValues,
    /// `[vocab]`.
    logits: SharedValues,
    /// What is known of the logits before some are computed again.
    findings: SharedValues,
}

/// One thread's own memory.
#[derive(Default)]
struct Private {
    /// Residual stream, `[hidden]`.
    x: Vec<f32>,
    normed: Vec<f32>,
    delta: Vec<f32>,
    attended: Vec<f32>,
    activated: Vec<f32>,
    /// Queries of one group, a key, a value.
    row: Vec<f32>,
    /// Results of attention.
    parts: Vec<f32>,
    projection: projection::Scratch,
    /// The input of the head in 8 bits.
    coarse: CoarseInput,
}

impl Workspace {
    /// Makes room for a token behind `past` others.
    fn prepare(&mut self, model: &Llama, pass: &Pass<'_>, past: usize, threads: usize) {
        let (config, shape) = (&model.config, model.attention_shape());
        let layers = model.blocks.len();
        let shared = &mut self.shared;
        let parts = shape.kv_heads * RowAttention::most_parts(past) * RowAttention::result_len(shape);
        // More than needed now, so that not every token of a growing sequence asks for more.
        shared.parts.grow(parts, parts.next_power_of_two());
        let adapters = model.linears().filter_map(|layer| layer.lora.as_ref());
        let rank = adapters.map(|lora| pass.params.get(lora.a).rows).max().unwrap_or(0);
        for (values, len) in [
            (&mut shared.queries, config.query_width()),
            (&mut shared.keys, layers * config.kv_width()),
            (&mut shared.values, layers * config.kv_width()),
            (&mut shared.delta, config.hidden_size),
            (&mut shared.activated, config.intermediate_size),
            (&mut shared.low_rank, projection::MOST * rank),
            (&mut shared.logits, config.vocab_size),
            (&mut shared.findings, model.coarse_head.as_ref().map_or(0, logits::findings)),
        ] {
            values.grow(len, len);
        }
        self.members.resize_with(threads.max(self.members.len()), Default::default);
    }
}

impl Llama {
    /// Makes what single tokens are multiplied with, for `compute` operands.
    pub fn prepare_rows(&mut self, compute: Compute) {
        for layer in self.blocks.iter_mut().flat_map(Block::linears_mut) {
            if let Weight::Nf4(matrix) = &layer.weight {
                layer.row_tables = RowTables::new(WeightRef::Nf4(matrix), compute);
            }
        }
    }

    /// Appends one token to the cached sequence and returns the logits after it, `[1, vocab]`.
    pub(super) fn decode(&self, pass: &Pass<'_>, id: u32, cache: &mut KvCache) -> Matrix {
        let bytes = self.frozen_bytes() + size_of::<f32>() * pass.params.numel();
        let threads = cache.workspace.pace.threads((bytes / BYTES_PER_THREAD).min(cores()));
        self.decode_on(threads, pass, id, cache)
    }

    /// [`Llama::decode`] on at most so many threads of the pool.
    fn decode_on(&self, threads: usize, pass: &Pass<'_>, id: u32, cache: &mut KvCache) -> Matrix {
        let threads = threads.clamp(1, rayon::current_num_threads());
        let mut workspace = std::mem::take(&mut cache.workspace);
        workspace.prepare(self, pass, cache.len(), threads);
        let (position, ids) = ([cache.len() as u32], [id]);
        let rows = Rows { ids: &ids, positions: &position, segments: &[] };
        let step = Step {
            model: self,
            context: self.context(pass, rows),
            cache,
            attention: RowAttention::new(self.attention_shape(), cache.len()),
            shared: &workspace.shared,
        };
        let start = Instant::now();
        let held_up = team::run(threads, |mut member| {
            let mut private = workspace.members[member.index()].lock().unwrap_or_else(PoisonError::into_inner);
            step.run(&mut member, &mut private, id);
        });
        workspace.pace.took(threads, held_up, start.elapsed());
        let width = self.config.kv_width();
        let mut row = pass.arena.matrix(1, width);
        for layer in 0..self.blocks.len() {
            workspace.shared.keys.read(layer * width, &mut row);
            cache.store_key(layer, &row, self.config.kv_heads);
            workspace.shared.values.read(layer * width, &mut row);
            cache.store_value(layer, &row, self.config.kv_heads);
        }
        cache.advance(1);
        let mut logits = pass.arena.matrix(1, self.config.vocab_size);
        workspace.shared.logits.read(0, &mut logits);
        cache.workspace = workspace;
        logits
    }
}

/// Cores that this process may use: more threads than these would wait for each other's turn in every phase.
fn cores() -> usize {
    static CORES: OnceLock<usize> = OnceLock::new();
    *CORES.get_or_init(|| std::thread::available_parallelism().map_or(1, usize::from))
}

/// What all threads see of a token.
struct Step<'a> {
    model: &'a Llama,
    context: BlockContext<'a>,
    cache: &'a KvCache,
    attention: RowAttention,
    shared: &'a Shared,
}

impl Step<'_> {
    fn shape(&self) -> AttentionShape {
        self.context.shape
    }

    fn run(&self, member: &mut Member<'_>, private: &mut Private, id: u32) {
        let (model, pass) = (self.model, self.context.pass);
        let hidden = model.config.hidden_size;
        for values in [&mut private.x, &mut private.normed, &mut private.delta] {
            values.resize(hidden, 0.0);
        }
        private.activated.resize(model.config.intermediate_size, 0.0);
        private.attended.resize(model.config.query_width(), 0.0);
        embedding::forward(model.embedding.view(pass.params), &[id], &mut private.x);
        for (layer, block) in model.blocks.iter().enumerate() {
            self.block(member, private, layer, block);
        }
        self.norm(model.norm.view(pass.params), private);
        self.logits(member, private);
    }

    fn norm(&self, weight: &[f32], private: &mut Private) {
        rms_norm::forward(&private.x, weight, self.context.eps, &mut private.normed, &mut [0.0]);
    }

    fn block(&self, member: &mut Member<'_>, private: &mut Private, layer: usize, block: &Block) {
        let (pass, shared) = (self.context.pass, self.shared);
        self.norm(block.input_norm.view(pass.params), private);
        let width = self.model.config.kv_width();
        let outputs = [(&shared.queries, 0), (&shared.keys, layer * width), (&shared.values, layer * width)];
        let qkv = Projection::new([&block.q, &block.k, &block.v], pass);
        qkv.each(member, &mut private.projection, &private.normed, &shared.low_rank, outputs);

        member.share(self.attention.tasks(), |task| self.attend(task, layer, private));
        self.merge(private);
        let o = Projection::new([&block.o], pass);
        o.each(member, &mut private.projection, &private.attended, &shared.low_rank, [(&shared.delta, 0)]);
        self.add_delta(private);

        self.norm(block.post_norm.view(pass.params), private);
        let gate_up = Projection::new([&block.gate, &block.up], pass);
        gate_up.together(
            member,
            &mut private.projection,
            &private.normed,
            &shared.low_rank,
            |first, [gate, up], act| {
                swiglu::forward(gate, up, act);
                shared.activated.write(first, act);
            },
        );
        shared.activated.read(0, &mut private.activated);
        let down = Projection::new([&block.down], pass);
        down.each(member, &mut private.projection, &private.activated, &shared.low_rank, [(&shared.delta, 0)]);
        self.add_delta(private);
    }

    fn add_delta(&self, private: &mut Private) {
        self.shared.delta.read(0, &mut private.delta);
        private.x.iter_mut().zip(&private.delta).for_each(|(x, delta)| *x += delta);
    }

    /// One part of attention. Its queries are rotated here; the new key by the part that sees it.
    fn attend(&self, task: usize, layer: usize, private: &mut Private) {
        let (shape, shared) = (self.shape(), self.shared);
        let (head, head_dim) = (self.attention.head(task), shape.head_dim);
        let group = shape.group() * head_dim;
        let Private { row, parts, .. } = private;
        row.resize(group + 2 * head_dim, 0.0);
        let (queries, new) = row.split_at_mut(group);
        let (key, value) = new.split_at_mut(head_dim);
        shared.queries.read(head * group, queries);
        rope::apply(queries, shape.group(), self.context.positions, self.context.rope, Direction::Forward);
        if self.attention.is_last(task) {
            let at = layer * self.model.config.kv_width() + head * head_dim;
            shared.keys.read(at, key);
            rope::apply(key, 1, self.context.positions, self.context.rope, Direction::Forward);
            shared.keys.write(at, key);
            shared.values.read(at, value);
        }
        let len = RowAttention::result_len(shape);
        parts.resize(len, 0.0);
        self.attention.attend(task, NewRow { queries, key, value }, self.cache.view(layer), parts);
        shared.parts.write(task * len, parts);
    }

    /// The whole output of attention, from its parts.
    fn merge(&self, private: &mut Private) {
        let shape = self.shape();
        let (tasks, len) = (self.attention.tasks(), RowAttention::result_len(shape));
        private.parts.resize(tasks * len, 0.0);
        self.shared.parts.read(0, &mut private.parts);
        let outputs = private.attended.chunks_exact_mut(shape.group() * shape.head_dim);
        for (head, out) in outputs.enumerate() {
            self.attention.merge(private.parts.chunks_exact(len).skip(head).step_by(shape.kv_heads), out);
        }
    }
}

/// The keys and values of one layer.
impl KvCache {
    fn view(&self, layer: usize) -> CacheView<'_> {
        let (keys, values) = self.layer(layer);
        CacheView { keys, values, capacity: self.capacity(), past: self.len() }
    }
}

#[cfg(test)]
mod tests;
