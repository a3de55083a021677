//! Whole steps on the card against the CPU's in f32: the loss, the norm and the gradient of every adapter, with the bounds
//! that the tests of the GPU's model use ([`agreement`]).
//!
//! Packed documents of odd lengths; adapters that have been trained a little, since a fresh one passes no gradient to its A.

use super::super::{token_ids, ModelChoice, Shape};
use super::engine::{engine_of, Variant};
use super::{round, Context, Rows};
use crate::data::batch::MicroBatch;
use crate::device::Compute;
use crate::error::Result;
use crate::model::cuda::agreement;
use crate::model::Keep;
use crate::ops::gpu::Gpu;
use crate::ops::{Gradients, ParamStore};
use crate::optim::{clip, LearningRates};
use crate::train::step::Engine;
use serde_json::{json, Value};
use std::collections::BTreeMap;

/// Steps on the CPU before the one that is compared.
const TRAINED: u64 = 3;

/// Every way a step can run that takes other kernels or other masks.
fn variants() -> [(&'static str, Variant, f64); 4] {
    let plain = Variant { keep: Keep::Light, dropout: 0.0, cached: false };
    [
        ("all kept", plain, 0.0),
        ("computed again", Variant { keep: Keep::Input, ..plain }, 0.0),
        ("weights decoded once", Variant { cached: true, ..plain }, 0.0),
        ("dropout and noise", Variant { dropout: 0.1, ..plain }, 5.0),
    ]
}

/// A row for each variant's loss and norm, and one for the adapters of each kind of linear: the worst of all blocks.
pub fn rows(context: &Context<'_>) -> Result<Rows> {
    let choice = match &context.options.model {
        Some(model) => ModelChoice::Folder { model: model.clone(), adapter: None },
        None => ModelChoice::Random(Shape::Tiny),
    };
    let mut rows = Rows::new();
    for (case, variant, noise) in variants() {
        let gpu = Gpu::new(context.gpu.driver_handle());
        let (mut here, mut there) = (engine_of(&choice, None, variant)?, engine_of(&choice, Some(&gpu), variant)?);
        here.settings.compute = Compute::F32;
        for engine in [&mut here, &mut there] {
            (engine.settings.neftune_alpha, engine.settings.sequence_length) = (noise, 64);
        }
        rows.extend(compared(case, &mut here, &mut there, context.options.scale.pick(1, 4))?);
    }
    Ok(rows)
}

/// Rows of a step on documents that are `times` as long as the shortest that show something.
fn compared(case: &str, here: &mut Engine, there: &mut Engine, times: usize) -> Result<Rows> {
    let vocabulary = here.model.config.vocab_size;
    let documents = |step: u64| {
        let lengths = [1, 13, 5, 22].map(|length| length * times);
        let rows = lengths.map(|length| token_ids(100 * step + length as u64, 1, length, vocabulary).remove(0));
        MicroBatch::from_rows(&rows)
    };
    for step in 0..TRAINED {
        here.step(step, &[documents(step)], &LearningRates::uniform(2e-3))?;
    }
    there.params = here.params.clone();
    there.upload()?;
    let batches = [documents(TRAINED), documents(TRAINED + 1)];
    let targets = batches.iter().map(MicroBatch::target_count).sum();
    let [expected_loss, found_loss] =
        [&mut *here, &mut *there].map(|engine| engine.accumulate(TRAINED, &batches, targets));
    let (expected_loss, found_loss) = (expected_loss?, found_loss?);
    let (expected, found) = (here.gradients()?, there.gradients()?.clone());
    let norm = clip::global_norm(expected);
    let found_norm = there.gpu.as_ref().map(|gpu| gpu.norm()).transpose()?.flatten().unwrap_or(f64::NAN);
    let relative = |expected: f64, found: f64| (found / expected - 1.0).abs();
    let mut rows = vec![
        row(case, "loss", None, relative(expected_loss, found_loss), agreement::LOSS),
        row(case, "gradient norm", None, relative(norm, found_norm), f64::from(agreement::GRADIENT)),
    ];
    for (kind, (distance, worst)) in worst_of_kinds(&there.params, expected, &found) {
        rows.push(row(case, &kind, Some(worst), f64::from(distance), f64::from(agreement::GRADIENT)));
    }
    Ok(rows)
}

/// By kind of adapter the largest distance of its gradients, and where that is.
fn worst_of_kinds<'a>(
    params: &'a ParamStore,
    expected: &Gradients,
    found: &Gradients,
) -> BTreeMap<String, (f32, &'a str)> {
    let mut kinds: BTreeMap<String, (f32, &str)> = BTreeMap::new();
    for ((param, expected), found) in params.iter().zip(expected.iter()).zip(found.iter()) {
        let parts: Vec<&str> = param.name.split('.').filter(|part| part.parse::<usize>().is_err()).collect();
        let distance = agreement::distance(expected, found);
        let worst = kinds.entry(parts.join(".")).or_insert((0.0, &param.name));
        if distance >= worst.0 {
            *worst = (distance, &param.name);
        }
    }
    kinds
}

fn row(case: &str, what: &str, worst: Option<&str>, distance: f64, allowed: f64) -> Value {
    let shown = if distance.is_finite() { json!(round(distance)) } else { json!("not a number") };
    let mut row = json!({ "case": case, "what": what, "distance": shown, "allowed": round(allowed) });
    if let Some(worst) = worst {
        row["worst"] = worst.into();
    }
    row["passed"] = (distance <= allowed).into();
    row
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::{Param, ParamId, ParamKind};

    #[test]
    fn one_wrong_gradient_of_one_block_is_found_and_named() {
        let mut params = ParamStore::default();
        for block in 0..3 {
            let name = format!("model.layers.{block}.mlp.up_proj.lora_A.weight");
            params.add(Param { name, kind: ParamKind::LoraA, rows: 1, cols: 2, value: vec![0.0; 2] });
        }
        let expected = Gradients::zeros(&params);
        let mut found = expected.clone();
        let passes = |found: &Gradients| {
            let kinds = worst_of_kinds(&params, &expected, found);
            let [(kind, (distance, worst))] = &kinds.iter().collect::<Vec<_>>()[..] else { panic!("{kinds:?}") };
            assert_eq!(*kind, "model.layers.mlp.up_proj.lora_A.weight");
            let row = row("case", kind, Some(worst), f64::from(*distance), f64::from(agreement::GRADIENT));
            (row["passed"] == true, worst.to_string())
        };
        assert!(passes(&found).0);
        let second = ParamId(1);
        found.get_mut(second)[1] = f32::NAN;
        assert_eq!(passes(&found), (false, params.get(second).name.clone()));
    }
}
