//! Training steps of large shapes: tokens a second and their share of the bound, and memory against the plan.

use super::super::{step_operations, token_ids, ModelChoice, Shape};
use super::engine::{engine, planned_bytes, RANK};
use super::{round, Context, Rows, GIB};
use crate::data::batch::MicroBatch;
use crate::error::Result;
use crate::model::Keep;
use crate::ops::gpu::Gpu;
use crate::optim::LearningRates;
use crate::train::step::Engine;
use serde_json::{json, Value};
use std::time::Instant;

/// Median seconds of `count` steps after one that warms up; the upload and download of a step included.
fn step_seconds(engine: &mut Engine, sequence: usize, count: u64) -> Result<f64> {
    let vocabulary = engine.model.config.vocab_size;
    let mut times = Vec::new();
    for step in 0..=count {
        let batches = [MicroBatch::from_rows(&token_ids(step, 1, sequence, vocabulary))];
        let start = Instant::now();
        engine.step(step, &batches, &LearningRates::uniform(2e-4))?;
        if step > 0 {
            times.push(start.elapsed().as_secs_f64());
        }
    }
    Ok(super::super::median_of(&mut times))
}

fn keep_name(keep: Keep) -> &'static str {
    match keep {
        Keep::Light => "all",
        Keep::Input => "inputs",
    }
}

/// One row for each shape, sequence and policy; where one does not fit the row says so.
pub fn rows(context: &Context<'_>) -> Result<Rows> {
    let scale = context.options.scale;
    let mut rows = Rows::new();
    for &shape in scale.shapes() {
        let gpu = Gpu::new(context.gpu.driver_handle());
        let mut engine = engine(&ModelChoice::Random(shape), Some(&gpu), Keep::Light)?;
        for &sequence in scale.pick(&[16usize][..], &[512, 2048, 4096]) {
            for keep in [Keep::Light, Keep::Input] {
                engine.settings.keep.fill(keep);
                let operations = step_operations(&engine.model.config, sequence, RANK);
                let bound = context.bound.operations / operations;
                let figures = match step_seconds(&mut engine, sequence, scale.pick(1, 5)) {
                    Ok(seconds) => json!({
                        "step_s": round(seconds), "tokens_per_s": round(sequence as f64 / seconds),
                        "share_of_bound": round(sequence as f64 / seconds / bound),
                    }),
                    Err(error) => json!({ "error": error.to_string() }),
                };
                let mut row = json!({
                    "shape": shape.name(), "sequence": sequence, "kept": keep_name(keep),
                    "bound_tokens_per_s": round(bound), "asked_gib": round(gpu.allocated_bytes() as f64 / GIB),
                });
                if let (Value::Object(row), Value::Object(figures)) = (&mut row, figures) {
                    row.extend(figures);
                }
                rows.push(row);
            }
        }
    }
    Ok(rows)
}

/// Memory of steps against the plan: what the engine asks for must be the planned bytes exactly; what the card has less
/// afterwards is listed beside it.
pub fn memory_rows(context: &Context<'_>) -> Result<Rows> {
    let scale = context.options.scale;
    let (shape, sequence) = scale.pick((Shape::Tiny, 16), (Shape::B1, 2048));
    let mut rows = Rows::new();
    for keep in [Keep::Light, Keep::Input] {
        let gpu = Gpu::new(context.gpu.driver_handle());
        let before = gpu.driver().memory()?.free;
        let mut engine = engine(&ModelChoice::Random(shape), Some(&gpu), keep)?;
        step_seconds(&mut engine, sequence, 1)?;
        let (planned, asked) = (planned_bytes(shape, sequence, 1, keep)?, gpu.allocated_bytes() as u64);
        rows.push(json!({
            "shape": shape.name(), "sequence": sequence, "kept": keep_name(keep), "planned_bytes": planned,
            "asked_bytes": asked, "card_bytes": before.saturating_sub(gpu.driver().memory()?.free),
            "passed": planned == asked,
        }));
    }
    Ok(rows)
}
