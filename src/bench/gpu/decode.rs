//! Single tokens against the bytes that each must read, and reading a prompt.

use super::super::{prompt_operations, token_ids, ModelChoice};
use super::engine::engine;
use super::{round, Context, Rows};
use crate::error::Result;
use crate::model::cuda::{GpuKvCache, GpuLlama, GpuParams};
use crate::model::Keep;
use crate::ops::gpu::Gpu;
use serde_json::json;
use std::time::Instant;

/// One row for each shape: medians of tokens after a prompt.
pub fn rows(context: &Context<'_>) -> Result<Rows> {
    let scale = context.options.scale;
    let (prompt, tokens) = (scale.pick(9, 512), scale.pick(3, 64));
    let mut rows = Rows::new();
    for &shape in scale.shapes() {
        let gpu = Gpu::new(context.gpu.driver_handle());
        let mut engine = engine(&ModelChoice::Random(shape), Some(&gpu), Keep::Light)?;
        // The gradients' memory is not needed here.
        engine.gpu = None;
        engine.model.rope.ensure(prompt + tokens);
        let (model, params) =
            (GpuLlama::new(&gpu, &engine.model, &engine.params)?, GpuParams::frozen(&gpu, &engine.params)?);
        let mut cache = GpuKvCache::new(&model, prompt + tokens)?;
        let config = &engine.model.config;
        let ids = &token_ids(0, 1, prompt, config.vocab_size)[0];
        // Twice, the second time without what a first use costs.
        model.next_logits(&params, ids, &mut cache)?;
        cache.truncate(0);
        let start = Instant::now();
        model.next_logits(&params, ids, &mut cache)?;
        let prompt_seconds = start.elapsed().as_secs_f64();
        let mut times = Vec::new();
        for token in 0..tokens as u32 {
            let start = Instant::now();
            model.next_logits(&params, &[3 + token], &mut cache)?;
            times.push(start.elapsed().as_secs_f64());
        }
        let seconds = super::super::median_of(&mut times);
        let linears: usize = engine.model.linears().map(|layer| layer.weight.frozen_bytes()).sum();
        let adapter: usize = engine.params.iter().map(|param| 2 * param.value.len()).sum();
        let bytes = (linears + adapter + 2 * config.vocab_size * config.hidden_size) as f64;
        let bound = context.bound.bytes / bytes;
        let prompt_bound = context.bound.operations / prompt_operations(config, prompt);
        rows.push(json!({
            "shape": shape.name(), "prompt": prompt, "tokens": tokens, "tokens_per_s": round(1.0 / seconds),
            "bytes_per_token": bytes, "bound_tokens_per_s": round(bound), "share_of_bound": round(1.0 / seconds / bound),
            "prompt_tokens_per_s": round(prompt as f64 / prompt_seconds),
            "prompt_share_of_bound": round(prompt as f64 / prompt_seconds / prompt_bound),
        }));
    }
    Ok(rows)
}
