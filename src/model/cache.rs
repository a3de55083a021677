//! Decoding with a key/value cache: new tokens of one sequence run through the blocks against what is cached. One new
//! token alone has a step of its own, [`super::decode`].
//!
//! Invariant: logits equal those of [`Llama::logits`](super::Llama::logits) over the whole sequence.

use super::block::{add_in_place, Block, BlockContext};
use super::decode::Workspace;
use super::layer::LinearLayer;
use super::llama::Llama;
use super::pass::{Pass, Rows};
use crate::ops::attention::{self, CacheView, RowAttention};
use crate::ops::rope::{self, Direction};
use crate::ops::{rms_norm, swiglu, Matrix};

/// Keys and values of every layer for one sequence; each layer is laid out `[kv_heads, capacity, head_dim]`.
pub struct KvCache {
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
    /// Key-value heads of a layer.
    heads: usize,
    capacity: usize,
    len: usize,
    pub(super) workspace: Workspace,
}

impl KvCache {
    /// Room for `capacity` tokens of `model`.
    pub fn new(model: &Llama, capacity: usize) -> KvCache {
        let shape = model.attention_shape();
        let size = shape.kv_heads * capacity * shape.head_dim;
        let layers = model.blocks.len();
        let empty = || vec![vec![0.0; size]; layers];
        let (keys, values) = (empty(), empty());
        KvCache { keys, values, heads: shape.kv_heads, capacity, len: 0, workspace: Workspace::default() }
    }

    /// Tokens in the cache.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is cached.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Tokens that fit.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Forgets all but the first `len` tokens.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Keys and values of a layer.
    pub(super) fn layer(&self, layer: usize) -> (&[f32], &[f32]) {
        (&self.keys[layer], &self.values[layer])
    }

    /// Writes the key of the next row, `[kv_heads*head_dim]`; [`KvCache::advance`] makes it count.
    pub(super) fn store_key(&mut self, layer: usize, key: &Matrix, kv_heads: usize) {
        KvCache::store(&mut self.keys[layer], key, kv_heads, self.capacity, self.len);
    }

    /// As [`KvCache::store_key`].
    pub(super) fn store_value(&mut self, layer: usize, value: &Matrix, kv_heads: usize) {
        KvCache::store(&mut self.values[layer], value, kv_heads, self.capacity, self.len);
    }

    /// Counts rows that were stored.
    pub(super) fn advance(&mut self, rows: usize) {
        self.len += rows;
    }

    /// Cached attention of one layer: the rows `k`, `v` `[n, kv_heads*head_dim]` are written behind the first `past`
    /// ones, and the queries `q` `[n, heads*head_dim]` attend to all of these; `out` is like `q`.
    pub(super) fn attend(
        &mut self,
        context: &BlockContext<'_>,
        (layer, past): (usize, usize),
        [q, k, v]: [&[f32]; 3],
        out: &mut [f32],
    ) {
        let (shape, compute) = (context.shape, context.pass.compute);
        let (keys, values) = (&mut self.keys[layer], &mut self.values[layer]);
        KvCache::store(keys, k, shape.kv_heads, self.capacity, past);
        KvCache::store(values, v, shape.kv_heads, self.capacity, past);
        let cache = CacheView { keys, values, capacity: self.capacity, past };
        attention::cached_forward(shape, compute, q, cache, out);
    }

    /// Writes the rows of `source [n, kv_heads*head_dim]` behind the first `past` rows of each head.
    fn store(target: &mut [f32], source: &[f32], kv_heads: usize, capacity: usize, past: usize) {
        let head_dim = target.len() / kv_heads / capacity;
        for (head, target) in target.chunks_mut(capacity * head_dim).enumerate() {
            for (row, source) in source.chunks(kv_heads * head_dim).enumerate() {
                let from = &source[head * head_dim..(head + 1) * head_dim];
                target[(past + row) * head_dim..(past + row + 1) * head_dim].copy_from_slice(from);
            }
        }
    }

    /// Takes over the first `len` rows of another cache of the same model.
    pub fn copy_beginning(&mut self, from: &KvCache, len: usize) {
        assert!(len <= from.len && len <= self.capacity, "{len} of {} rows, {} fit", from.len, self.capacity);
        let layers = self.keys.iter_mut().zip(&from.keys).chain(self.values.iter_mut().zip(&from.values));
        for (target, source) in layers {
            let (to_head, from_head) = (target.len() / self.heads, source.len() / self.heads);
            let rows = to_head / self.capacity * len;
            for (target, source) in target.chunks_mut(to_head).zip(source.chunks(from_head)) {
                target[..rows].copy_from_slice(&source[..rows]);
            }
        }
        self.len = len;
    }

    /// Bytes that a token takes in a cache of `model`.
    pub fn bytes_per_token(model: &Llama) -> usize {
        2 * model.blocks.len() * model.config.kv_width() * size_of::<f32>()
    }

    /// Says that the first `len` rows are those of the sequence.
    pub(super) fn set_len(&mut self, len: usize) {
        assert!(len <= self.capacity, "{len} rows, {} fit", self.capacity);
        self.len = len;
    }
}

impl Llama {
    /// Appends `ids` to the cached sequence and returns the logits of its last token, `[1, vocab]`.
    ///
    /// The caller keeps `cache.len() + ids.len()` within the capacity and the rotation table.
    pub fn next_logits(&self, pass: &Pass<'_>, ids: &[u32], cache: &mut KvCache) -> Matrix {
        assert!(!ids.is_empty() && cache.len + ids.len() <= cache.capacity, "the cache is too small");
        match ids {
            &[id] if self.attention_shape().group() <= RowAttention::MOST_QUERIES => {
                return self.decode(pass, id, cache)
            }
            _ => {}
        }
        let positions: Vec<u32> = (cache.len..cache.len + ids.len()).map(|p| p as u32).collect();
        let context = self.context(pass, Rows { ids, positions: &positions, segments: &[] });
        let mut x = self.embed(pass, ids);
        for (layer, block) in self.blocks.iter().enumerate() {
            block.forward_cached(&context, &mut x, &mut |rows, out| {
                cache.attend(&context, (layer, cache.len), rows, out);
            });
        }
        cache.len += ids.len();
        let mut last = pass.arena.matrix(1, x.cols());
        last.copy_from_slice(x.row(x.rows() - 1));
        self.logits_of(pass, &last)
    }
}

/// Attention of one layer: given the queries, keys and values of new rows, it fills in what they attend to.
pub(super) type Attend<'a> = dyn FnMut([&[f32]; 3], &mut [f32]) + 'a;

impl Block {
    /// The block on new rows `x [n,H]`, in place. `attend` is given their queries, keys and values.
    pub(super) fn forward_cached(&self, context: &BlockContext<'_>, x: &mut Matrix, attend: &mut Attend<'_>) {
        let (pass, arena, shape) = (context.pass, context.pass.arena, context.shape);
        let rows = x.rows();
        let mut normed = arena.matrix(rows, x.cols());
        let mut inv_rms = arena.matrix(rows, 1);
        rms_norm::forward(x, self.input_norm.view(pass.params), context.eps, &mut normed, &mut inv_rms);
        let [mut q, mut k, v] = self.outputs([&self.q, &self.k, &self.v], pass, &normed);
        rope::apply(&mut q, shape.heads, context.positions, context.rope, Direction::Forward);
        rope::apply(&mut k, shape.kv_heads, context.positions, context.rope, Direction::Forward);

        let mut attended = arena.matrix(rows, q.cols());
        attend([&q, &k, &v], &mut attended);
        let [delta] = self.outputs([&self.o], pass, &attended);
        let weight = self.post_norm.view(pass.params);
        rms_norm::add_forward(x, &delta, weight, context.eps, &mut normed, &mut inv_rms);
        let [gate, up] = self.outputs([&self.gate, &self.up], pass, &normed);
        let mut activated = arena.matrix(rows, gate.cols());
        swiglu::forward(&gate, &up, &mut activated);
        let [delta] = self.outputs([&self.down], pass, &activated);
        add_in_place(x, &delta);
    }

    /// Linears that share the input `x`, of which no gradient will be asked.
    fn outputs<const N: usize>(&self, layers: [&LinearLayer; N], pass: &Pass<'_>, x: &Matrix) -> [Matrix; N] {
        self.project(layers, pass, x).map(|projected| projected.y)
    }
}
