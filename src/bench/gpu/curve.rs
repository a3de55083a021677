//! Training steps on the GPU beside the same steps on the CPU: the losses must agree and fall.

use super::super::{token_ids, ModelChoice, Shape};
use super::engine::engine;
use super::{round, Context, Rows};
use crate::data::batch::MicroBatch;
use crate::error::Result;
use crate::model::Keep;
use crate::optim::LearningRates;
use serde_json::json;

/// Largest relative distance of two losses. Both round operands to bf16, the GPU its activations too.
const ALLOWED: f64 = 2e-2;
/// Batches that come round again, so that the losses fall.
const BATCHES: u64 = 2;

/// One row a step.
pub fn rows(context: &Context<'_>) -> Result<Rows> {
    let choice = match &context.options.model {
        Some(model) => ModelChoice::Folder { model: model.clone(), adapter: None },
        None => ModelChoice::Random(Shape::Tiny),
    };
    let (steps, sequence) = (context.options.scale.pick(4, 50), context.options.scale.pick(24, 256));
    let mut there = engine(&choice, Some(&context.gpu), Keep::Light)?;
    let mut here = engine(&choice, None, Keep::Light)?;
    let mut rows = Rows::new();
    let mut losses = Vec::new();
    for step in 0..steps {
        let ids = token_ids(step % BATCHES, 1, sequence, here.model.config.vocab_size);
        let batches = [MicroBatch::from_rows(&ids)];
        let rates = LearningRates::uniform(2e-3);
        let expected = here.step(step, &batches, &rates)?.loss;
        let found = there.step(step, &batches, &rates)?.loss;
        let distance = (found / expected - 1.0).abs();
        losses.push(found);
        rows.push(json!({
            "step": step, "gpu": round(found), "cpu": round(expected), "distance": round(distance),
            "allowed": ALLOWED, "passed": distance <= ALLOWED,
        }));
    }
    let (first, last) = (losses[0], losses[losses.len() - BATCHES as usize]);
    rows.push(json!({ "step": "falls", "gpu": round(last), "cpu": round(first), "passed": last < first }));
    Ok(rows)
}
