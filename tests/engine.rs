//! Properties of the whole step that users rely on: packing, accumulation, randomness, recompute.

use llamantino::adapter::LoraConfig;
use llamantino::data::batch::{BatchSettings, Batches, MicroBatch};
use llamantino::data::corpus::part::{Kind, TokenizedDocument};
use llamantino::data::corpus::{Fit, TokenizedCorpus};
use llamantino::data::tokenize::Tokenizer;
use llamantino::device::Compute;
use llamantino::model::{self, Keep, Llama, LoadOptions, Method, ModelConfig, Noise, Pass, Rows};
use llamantino::ops::{Arena, Gradients, ParamStore};
use llamantino::optim::{LearningRates, OptimizerConfig};
use llamantino::quant::QuantConfig;
use llamantino::train::step::{Engine, StepSettings};
use llamantino::{model::random::RandomWeights, ops::RandomStream};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

fn config() -> ModelConfig {
    ModelConfig::from_json(serde_json::json!({
        "model_type": "llama", "vocab_size": 131, "hidden_size": 64, "intermediate_size": 112, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": false,
    }))
    .unwrap()
}

fn load(method: Method, lora: &LoraConfig) -> (Llama, ParamStore) {
    let mut options = LoadOptions::training(method, QuantConfig::default(), lora, 3);
    options.positions = 128;
    let (model, mut params) = model::load(&config(), &RandomWeights::new(1, 0.1), &options, &mut |_, _| {}).unwrap();
    // A fresh adapter has B = 0: give it values, so that every gradient counts.
    for param in params.iter_mut().filter(|param| param.name.ends_with("lora_B.weight")) {
        let stream = RandomStream::derive(5, &param.name, &[]);
        param.value.iter_mut().enumerate().for_each(|(i, value)| *value = 0.05 * stream.normal(i as u64));
    }
    (model, params)
}

fn document(seed: u64, length: usize) -> Vec<u32> {
    let stream = RandomStream::new(seed, 9);
    (0..length as u64).map(|i| stream.word(i) % 131).collect()
}

fn engine(method: Method, lora: &LoraConfig, change: impl Fn(&mut StepSettings)) -> Engine {
    let (model, params) = load(method, lora);
    let mut settings = StepSettings {
        compute: Compute::F32,
        keep: vec![Keep::Light; model.blocks.len()],
        max_grad_norm: 0.3,
        neftune_alpha: 0.0,
        sequence_length: 64,
        seed: 11,
    };
    change(&mut settings);
    let optimizer = OptimizerConfig::default().build(&params);
    let grads = Gradients::zeros(&params);
    Engine { model, params, grads, optimizer, arena: Arena::new(), settings, gpu: None }
}

fn gradients(engine: &mut Engine, batches: &[MicroBatch]) -> Vec<f32> {
    let targets = batches.iter().map(MicroBatch::target_count).sum();
    engine.accumulate(0, batches, targets).unwrap();
    engine.grads.iter().flatten().copied().collect()
}

fn assert_close(what: &str, expected: &[f32], found: &[f32], tolerance: f32) {
    assert_eq!(expected.len(), found.len(), "{what}");
    let largest = expected.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let worst = expected.iter().zip(found).fold(0.0f32, |m, (e, f)| m.max((e - f).abs()));
    assert!(worst <= tolerance * largest, "{what}: {worst:e} of {largest:e}");
}

#[test]
fn packed_documents_give_the_logits_of_separate_ones() {
    let (model, params) = load(Method::Qlora, &LoraConfig::default());
    let (arena, dora) = (Arena::new(), Default::default());
    let pass = Pass { params: &params, dora: &dora, arena: &arena, compute: Compute::F32, noise: None };
    let logits = |documents: &[Vec<u32>]| {
        let batch = MicroBatch::from_rows(documents);
        let rows = Rows { ids: &batch.ids, positions: &batch.positions, segments: &batch.segments };
        model.logits(&pass, rows).to_vec()
    };
    let documents: Vec<Vec<u32>> = [5, 1, 33, 64, 2, 17].iter().map(|&n| document(n as u64, n)).collect();
    let separate: Vec<f32> = documents.iter().flat_map(|d| logits(std::slice::from_ref(d))).collect();
    assert_close("packed", &separate, &logits(&documents), 1e-5);

    let order = [3, 0, 5, 1, 4, 2];
    let permuted: Vec<Vec<u32>> = order.iter().map(|&i| documents[i].clone()).collect();
    let expected: Vec<f32> = permuted.iter().flat_map(|d| logits(std::slice::from_ref(d))).collect();
    assert_close("permuted pack", &expected, &logits(&permuted), 1e-5);
}

/// Examples with trained stretches in them, each its own sequence of ids.
fn examples() -> TokenizedCorpus {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/quickstart/model");
    let tokenizer = Tokenizer::load(&folder, None).unwrap();
    let example = |length: usize| TokenizedDocument {
        ids: document(length as u64, length),
        spans: vec![length / 3 + 1..length / 2 + 1, length - length / 4 - 1..length],
        kind: Kind::Example,
        text_bytes: length as u64,
        hash: length as u64,
        line: 1,
    };
    let examples: Vec<TokenizedDocument> = [5, 40, 33, 65, 9, 17, 26, 12, 52, 7, 30].map(example).into();
    TokenizedCorpus::of_documents(&tokenizer, Fit::ALL, &examples)
}

/// All micro-batches of an epoch.
fn epoch(corpus: &Arc<TokenizedCorpus>, packing: bool, seed: u64) -> Vec<MicroBatch> {
    let settings = BatchSettings { sequence_length: 64, packing, group_by_length: false, windows: 2, seed };
    let mut batches = Batches::new(corpus.clone(), settings).unwrap();
    (0..batches.micro_batches_per_epoch()).map(|_| batches.next_micro_batch()).collect()
}

#[test]
fn examples_packed_in_any_order_give_the_logits_and_gradients_of_separate_ones() {
    let corpus = Arc::new(examples());
    let mut engine = engine(Method::Qlora, &LoraConfig::default(), |_| {});
    let (arena, dora) = (Arena::new(), Default::default());
    // The logits of each document, by its fed ids.
    let logits = |engine: &Engine, batches: &[MicroBatch]| {
        let pass = Pass { params: &engine.params, dora: &dora, arena: &arena, compute: Compute::F32, noise: None };
        let mut found = BTreeMap::new();
        for batch in batches {
            let rows = Rows { ids: &batch.ids, positions: &batch.positions, segments: &batch.segments };
            let logits = engine.model.logits(&pass, rows).to_vec();
            let width = logits.len() / batch.rows();
            for segment in &batch.segments {
                let values = logits[segment.start * width..segment.end * width].to_vec();
                assert!(found.insert(batch.ids[segment.clone()].to_vec(), values).is_none());
            }
        }
        found
    };
    let separate = epoch(&corpus, false, 1);
    assert!(separate.iter().all(|batch| batch.segments.len() <= 2));
    let expected = logits(&engine, &separate);
    assert_eq!(expected.len(), corpus.len());
    let largest = expected.values().flatten().fold(0.0f32, |most, value| most.max(value.abs()));
    let gradient = gradients(&mut engine, &separate);
    let mut orders = BTreeSet::new();
    for seed in 0..6 {
        let packed = epoch(&corpus, true, seed);
        assert!(packed.iter().any(|batch| batch.segments.len() > 4), "short documents share windows");
        orders.insert(packed.iter().flat_map(|batch| batch.ids.clone()).collect::<Vec<u32>>());
        for (document, found) in logits(&engine, &packed) {
            let pairs = expected[&document].iter().zip(&found);
            let worst = pairs.fold(0.0f32, |worst, (a, b)| worst.max((a - b).abs()));
            assert!(worst <= 1e-5 * largest, "{} rows, seed {seed}: {worst:e} of {largest:e}", document.len());
        }
        assert_close(&format!("gradient, seed {seed}"), &gradient, &gradients(&mut engine, &packed), 1e-5);
    }
    assert!(orders.len() > 3, "the seeds give {} orders", orders.len());
}

#[test]
fn accumulation_equals_the_big_batch() {
    for method in [Method::Qlora, Method::Full] {
        let mut engine = engine(method, &LoraConfig::default(), |_| {});
        let documents: Vec<Vec<u32>> = (0..8).map(|i| document(i, 10 + 13 * i as usize % 50)).collect();
        let split =
            |parts: usize| -> Vec<MicroBatch> { documents.chunks(8 / parts).map(MicroBatch::from_rows).collect() };
        let whole = gradients(&mut engine, &split(1));
        for parts in [2, 4, 8] {
            let found = gradients(&mut engine, &split(parts));
            assert_close(&format!("{method:?} in {parts} parts"), &whole, &found, 1e-6);
        }
    }
}

#[test]
fn recompute_changes_no_bit() {
    let lora = LoraConfig { dropout: 0.1, ..LoraConfig::default() };
    let batches = [MicroBatch::from_rows(&[document(1, 40), document(2, 25)])];
    let noisy = |settings: &mut StepSettings| settings.neftune_alpha = 5.0;
    let mut light = engine(Method::Qlora, &lora, noisy);
    let mut input = engine(Method::Qlora, &lora, |settings| {
        noisy(settings);
        settings.keep = vec![Keep::Input; 3];
    });
    let mut mixed = engine(Method::Qlora, &lora, |settings| {
        noisy(settings);
        settings.keep = vec![Keep::Input, Keep::Light, Keep::Input];
    });
    let expected = gradients(&mut light, &batches);
    assert_eq!(expected, gradients(&mut input, &batches));
    assert_eq!(expected, gradients(&mut mixed, &batches));
}

#[test]
fn steps_give_the_same_bits_with_one_and_with_three_threads() {
    let lora = LoraConfig { dropout: 0.1, dora: true, ..LoraConfig::default() };
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let mut engine = engine(Method::Qlora, &lora, |settings| settings.neftune_alpha = 5.0);
            for step in 0..3 {
                let batches = [
                    MicroBatch::from_rows(&[document(step, 60), document(step + 9, 33)]),
                    MicroBatch::from_rows(&[document(step + 20, 50)]),
                ];
                engine.step(step, &batches, &LearningRates::uniform(1e-2)).unwrap();
            }
            engine.params.iter().flat_map(|p| p.value.iter().map(|v| v.to_bits())).collect::<Vec<u32>>()
        })
    };
    assert_eq!(run(1), run(3));
}

#[test]
fn masks_differ_between_steps_and_micro_steps_and_repeat_with_the_seed() {
    let lora = LoraConfig { dropout: 0.5, ..LoraConfig::default() };
    let mut engine = engine(Method::Qlora, &lora, |_| {});
    let batch = MicroBatch::from_rows(&[document(1, 40)]);
    let targets = batch.target_count();
    let mut losses = |step: u64, batches: usize| {
        let batches = vec![batch.clone(); batches];
        engine.accumulate(step, &batches, targets).unwrap()
    };
    assert_eq!(losses(0, 1), losses(0, 1));
    assert_ne!(losses(0, 1), losses(1, 1));
    assert_ne!(losses(0, 2), 2.0 * losses(0, 1));
}

#[test]
fn neftune_noise_is_bounded_uniform_and_absent_in_evaluation() {
    let (model, params) = load(Method::Qlora, &LoraConfig::default());
    let (arena, dora) = (Arena::new(), Default::default());
    let batch = MicroBatch::from_rows(&[document(1, 120)]);
    let rows = Rows { ids: &batch.ids, positions: &batch.positions, segments: &batch.segments };
    let embedded = |noise: Option<Noise>| {
        let pass = Pass { params: &params, dora: &dora, arena: &arena, compute: Compute::F32, noise };
        model.forward(&pass, rows, &[Keep::Input; 3]).saved[0].input().to_vec()
    };
    let bound = (5.0 / (64.0f64 * 64.0).sqrt()) as f32;
    let noise = Noise { seed: 1, step: 2, micro_step: 0, embedding_bound: bound };
    let (clean, noisy) = (embedded(None), embedded(Some(noise)));
    let differences: Vec<f64> = clean.iter().zip(&noisy).map(|(c, n)| f64::from(n - c)).collect();
    let worst = differences.iter().fold(0.0f64, |m, d| m.max(d.abs()));
    let std = (differences.iter().map(|d| d * d).sum::<f64>() / differences.len() as f64).sqrt();
    assert!(worst <= f64::from(bound) * 1.0001 && worst > 0.99 * f64::from(bound), "{worst}");
    assert!((std / (f64::from(bound) / 3f64.sqrt()) - 1.0).abs() < 0.02, "{std}");
}

#[test]
fn a_step_without_a_finite_gradient_changes_nothing() {
    let mut engine = engine(Method::Qlora, &LoraConfig::default(), |_| {});
    if let Some(param) = engine.params.iter_mut().next() {
        param.value[0] = f32::INFINITY;
    }
    let before: Vec<u32> = engine.params.iter().flat_map(|p| p.value.iter().map(|v| v.to_bits())).collect();
    let report = engine.step(0, &[MicroBatch::from_rows(&[document(1, 20)])], &LearningRates::uniform(1e-3)).unwrap();
    let after: Vec<u32> = engine.params.iter().flat_map(|p| p.value.iter().map(|v| v.to_bits())).collect();
    assert!(!report.updated);
    assert_eq!(before, after);
}
