//! New tokens of one sequence on a GPU, against a key/value cache there: reading a prompt, and the step of chat.
//!
//! Keys and values are written into the cache by the products that make them, and turned in place. A prompt goes through
//! the kernels of training; a single token through those that read every weight once, as codes, and every cached row once.
//! The only wait is for the logits.
//!
//! Invariant: logits are those of the whole sequence at once, up to the rounding of bf16.

use super::block::GpuBlock;
use super::layer::GpuLayer;
use super::{GpuLlama, GpuParams, PassContext};
use crate::error::Result;
use crate::model::layer::Weight;
use crate::model::{Llama, ModelConfig};
use crate::ops::attention::cuda::{self as attention, Tiles};
use crate::ops::gpu::Buffer;
use crate::ops::linear::cuda::{self as linear, RowOutput, Tail};
use crate::ops::rms_norm::cuda as rms_norm;
use crate::ops::rope::{cuda as rope, Direction};
use crate::ops::swiglu::cuda as swiglu;
use crate::ops::ParamStore;
use crate::quant::QuantConfig;
use half::bf16;

/// Keys and values of every layer for one sequence, each `[capacity, kv_heads · D]` in bf16.
pub struct GpuKvCache {
    layers: Vec<LayerCache>,
    capacity: usize,
    len: usize,
}

struct LayerCache {
    keys: Buffer<bf16>,
    values: Buffer<bf16>,
}

impl GpuKvCache {
    /// Room for `capacity` tokens of `model`.
    ///
    /// # Errors
    /// The GPU has no memory for it.
    pub fn new(model: &GpuLlama, capacity: usize) -> Result<GpuKvCache> {
        let width = model.shape.kv_heads * model.shape.head_dim;
        let rows = || model.gpu.buffer(capacity, width);
        let layer = |_: &GpuBlock| Ok(LayerCache { keys: rows()?, values: rows()? });
        Ok(GpuKvCache { layers: model.blocks.iter().map(layer).collect::<Result<_>>()?, capacity, len: 0 })
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
}

/// Bytes of GPU memory that `model` with its adapter takes, and the cache of `context` tokens; a few buffers of a pass
/// come on top.
pub fn generation_bytes(model: &Llama, params: &ParamStore, context: usize) -> usize {
    const HALF: usize = size_of::<bf16>();
    let bytes = |weight: &Weight| match weight {
        Weight::Nf4(matrix) => matrix.stored_bytes(),
        Weight::Dense { rows, cols, .. } => HALF * rows * cols,
        // Nothing more than what is there.
        Weight::OnGpu(_) | Weight::Trained(_) => 0,
    };
    let linears: usize = model.linears().map(|layer| bytes(&layer.weight)).sum();
    let scratch = model.config.hidden_size * model.config.intermediate_size.max(model.config.query_width()) * HALF;
    let tables = bytes(&model.embedding) + model.head.as_ref().map_or(0, bytes);
    let adapter: usize = params.iter().map(|param| HALF * param.value.len()).sum();
    linears + scratch + tables + adapter + 2 * model.blocks.len() * context * model.config.kv_width() * HALF
}

/// Bytes of GPU memory that the blocks' linears of a model take, quantised if asked, without loading them.
pub fn linear_bytes(config: &ModelConfig, quantize: Option<QuantConfig>) -> usize {
    let quantize = quantize.or(config.quantized.then(QuantConfig::default));
    let bytes = |values: usize| quantize.map_or(size_of::<bf16>() * values, |config| config.bytes(values));
    (0..config.layers).flat_map(|layer| config.linear_shapes(layer)).map(|(_, [rows, cols])| bytes(rows * cols)).sum()
}

impl GpuLlama {
    /// Appends `ids` to the cached sequence and returns the logits of its last token, `[vocab]`.
    ///
    /// The caller keeps `cache.len() + ids.len()` within the capacity and the rotation table.
    ///
    /// # Errors
    /// The GPU's memory; what the driver says. The cache is then as before.
    pub fn next_logits(&self, params: &GpuParams, ids: &[u32], cache: &mut GpuKvCache) -> Result<Vec<f32>> {
        let past = cache.len;
        let end = past + ids.len();
        assert!(!ids.is_empty() && end <= cache.capacity && end <= self.rope.positions(), "{end} rows are too many");
        let positions: Vec<u32> = (past as u32..end as u32).collect();
        let tiles = Tiles::behind(&self.gpu, past, ids.len())?;
        let context = self.context(params, &positions, tiles, None)?;
        let mut x = self.embed(ids, None)?;
        for (block, layer) in self.blocks.iter().zip(&cache.layers) {
            x = block.forward_cached(&context, &x, layer, past)?;
        }
        let (normed, _) = self.final_norm(&x.row_part(ids.len() - 1, 1))?;
        let head = self.head.as_ref().unwrap_or(&self.embedding);
        let logits = self.gpu.buffer::<f32>(1, head.rows())?;
        linear::dense_row(head, &normed, RowOutput::Floats(&logits), Tail::default())?;
        let logits = logits.read()?;
        cache.len = end;
        Ok(logits)
    }
}

impl GpuBlock {
    /// The block on new rows `x [n,H]`, whose keys and values become rows `past .. past + n` of the cache.
    fn forward_cached(
        &self,
        context: &PassContext<'_>,
        x: &Buffer<bf16>,
        cache: &LayerCache,
        past: usize,
    ) -> Result<Buffer<bf16>> {
        let (gpu, rows, shape) = (x.gpu(), x.rows(), context.shape);
        let (normed, unused) = (gpu.buffer(rows, x.cols())?, gpu.buffer(rows, 1)?);
        rms_norm::forward(x, None, &self.input_norm, context.eps, &normed, &unused)?;
        let q = project(&self.q, context, &normed)?;
        let (k, v) = (cache.keys.row_part(past, rows), cache.values.row_part(past, rows));
        multiply(&self.k, context, &normed, &k, false)?;
        multiply(&self.v, context, &normed, &v, false)?;
        rope::apply(&q, shape.heads, &context.positions, context.rope, Direction::Forward)?;
        rope::apply(&k, shape.kv_heads, &context.positions, context.rope, Direction::Forward)?;

        let attended = gpu.buffer(rows, q.cols())?;
        let inputs = attention::Inputs { q: &q, k: &cache.keys, v: &cache.values };
        if rows == 1 {
            attention::forward_row(shape, inputs, past + 1, &attended)?;
        } else {
            let lse = gpu.buffer(rows, shape.heads)?;
            attention::forward(shape, inputs, &context.tiles, &attended, &lse)?;
        }
        let y = gpu.buffer(rows, x.cols())?;
        multiply(&self.o, context, &attended, &y, false)?;
        rms_norm::forward(&y, Some(x), &self.post_norm, context.eps, &normed, &unused)?;
        let (gate, up) = (project(&self.gate, context, &normed)?, project(&self.up, context, &normed)?);
        let activated = gpu.buffer(rows, gate.cols())?;
        swiglu::forward(&gate, &up, &activated)?;
        multiply(&self.down, context, &activated, &y, true)?;
        Ok(y)
    }
}

fn project(layer: &GpuLayer, context: &PassContext<'_>, x: &Buffer<bf16>) -> Result<Buffer<bf16>> {
    let y = x.gpu().buffer(x.rows(), layer.rows())?;
    multiply(layer, context, x, &y, false)?;
    Ok(y)
}

fn multiply(
    layer: &GpuLayer,
    context: &PassContext<'_>,
    x: &Buffer<bf16>,
    y: &Buffer<bf16>,
    accumulate: bool,
) -> Result<()> {
    let view = layer.view(context);
    match x.rows() {
        1 => linear::forward_row(&view, x, y, accumulate),
        _ => linear::forward(&view, x, y, accumulate).map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{golden, tiny};
    use super::*;
    use crate::device::Compute;
    use crate::model::{self, Checkpoint, KvCache, LoadOptions, ModelConfig, Pass};
    use crate::ops::gpu::Gpu;
    use crate::ops::testing::emulated_gpu;
    use crate::ops::{Arena, RandomStream};

    fn ids(count: usize) -> Vec<u32> {
        let stream = RandomStream::derive(9, "ids", &[]);
        (0..count as u64).map(|i| stream.word(i) % 128).collect()
    }

    /// Logits behind each chunk of the sequence, on the CPU in f32.
    fn on_cpu(model: &Llama, params: &ParamStore, ids: &[u32], chunks: &[usize]) -> Vec<Vec<f32>> {
        let (arena, dora) = (Arena::new(), Default::default());
        let pass = Pass { params, dora: &dora, arena: &arena, compute: Compute::F32, noise: None };
        let mut cache = KvCache::new(model, ids.len());
        let mut rest = ids;
        let mut next = |&count: &usize| {
            let (chunk, behind) = rest.split_at(count);
            rest = behind;
            model.next_logits(&pass, chunk, &mut cache).to_vec()
        };
        chunks.iter().map(&mut next).collect()
    }

    fn on_gpu(gpu: &Gpu, model: &Llama, params: &ParamStore, ids: &[u32], chunks: &[usize]) -> Vec<Vec<f32>> {
        let (model, params) = (GpuLlama::new(gpu, model, params).unwrap(), GpuParams::frozen(gpu, params).unwrap());
        let mut cache = GpuKvCache::new(&model, ids.len()).unwrap();
        let mut rest = ids;
        let mut next = |&count: &usize| {
            let (chunk, behind) = rest.split_at(count);
            rest = behind;
            model.next_logits(&params, chunk, &mut cache).unwrap()
        };
        chunks.iter().map(&mut next).collect()
    }

    fn compare(gpu: &Gpu, what: &str, model: &Llama, params: &ParamStore) {
        let chunks = [70, 1, 1, 1, 40, 3, 1];
        let ids = ids(chunks.iter().sum());
        let expected = on_cpu(model, params, &ids, &chunks);
        let found = on_gpu(gpu, model, params, &ids, &chunks);
        for (chunk, (expected, found)) in expected.iter().zip(&found).enumerate() {
            let largest = expected.iter().fold(0f32, |largest, value| largest.max(value.abs()));
            let worst = expected.iter().zip(found).fold(0f32, |worst, (e, f)| worst.max((e - f).abs()));
            // bf16 has 2^-9 of rounding at each of about ten places of a block: the bound of the CPU's own bf16 pass.
            assert!(worst <= 2e-2 * largest, "{what}, chunk {chunk}: {worst} of {largest}");
        }
    }

    #[test]
    fn logits_behind_prompt_and_tokens_are_those_of_the_cpu() {
        let Some(gpu) = emulated_gpu() else { return };
        for quantize in [false, true] {
            let (model, params) = tiny(0.1, quantize);
            compare(&gpu, &format!("4 bits {quantize}"), &model, &params);
        }
    }

    #[test]
    fn biases_and_tied_embeddings_work() {
        let Some(gpu) = emulated_gpu() else { return };
        for variant in ["variant_headdim_bias_mqa", "variant_tied_theta500k_llama3rope"] {
            let folder = golden("llama").join(variant);
            let config = ModelConfig::from_folder(&folder).unwrap();
            let options = LoadOptions { quantize: Some(Default::default()), ..LoadOptions::frozen(128) };
            let (model, params) =
                model::load(&config, &Checkpoint::open(&folder).unwrap(), &options, &mut |_, _| {}).unwrap();
            if attention::check_shape(model.attention_shape()).is_ok() {
                compare(&gpu, variant, &model, &params);
            }
        }
    }

    #[test]
    fn forgotten_tokens_do_not_come_back_and_memory_does_not_grow() {
        let Some(gpu) = emulated_gpu() else { return };
        let (host, store) = tiny(0.0, true);
        let (model, params) = (GpuLlama::new(&gpu, &host, &store).unwrap(), GpuParams::frozen(&gpu, &store).unwrap());
        let mut cache = GpuKvCache::new(&model, 16).unwrap();
        assert!(generation_bytes(&host, &store, 16) <= gpu.live_bytes());
        let ids = ids(12);
        let run = |cache: &mut GpuKvCache, from: usize| -> Vec<Vec<f32>> {
            ids[from..].iter().map(|&id| model.next_logits(&params, &[id], cache).unwrap()).collect()
        };
        let first = run(&mut cache, 0);
        let live = gpu.live_bytes();
        cache.truncate(5);
        assert_eq!(cache.len(), 5);
        let again = run(&mut cache, 5);
        assert!(first[5..] == again[..]);
        assert_eq!(gpu.live_bytes(), live);
    }
}
