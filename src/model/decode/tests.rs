//! Token by token against the whole sequence at once, on one thread and on several.

use super::logits::MARGIN;
use crate::adapter::LoraConfig;
use crate::device::{cpu_path, Compute, CpuPath};
use crate::model::block::Block;
use crate::model::layer::{DenseDtype, Weight};
use crate::model::random::RandomWeights;
use crate::model::{self, KvCache, Llama, LoadOptions, Method, ModelConfig, Pass, Rows};
use crate::ops::testing::bits;
use crate::ops::{Arena, Bytes, ParamStore, RandomStream};
use crate::quant::{QuantConfig, SourceDtype};
use half::bf16;
use serde_json::{json, Value};

fn config(changes: &Value) -> ModelConfig {
    let mut json = json!({
        "model_type": "llama", "vocab_size": 131, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": false,
    });
    let fields = changes.as_object().unwrap();
    fields.iter().for_each(|(key, value)| json[key] = value.clone());
    ModelConfig::from_json(json).unwrap()
}

fn load(changes: &Value, method: Method, lora: &LoraConfig) -> (Llama, ParamStore) {
    let mut options = LoadOptions::training(method, QuantConfig::default(), lora, 3);
    options.positions = 512;
    let source = RandomWeights::new(1, 0.1);
    let (model, mut params) = model::load(&config(changes), &source, &options, &mut |_, _| {}).unwrap();
    // B starts at zero and the magnitude at the norm: give them values that count.
    for param in params.iter_mut().filter(|p| p.name.contains("lora_B") || p.name.contains("magnitude")) {
        let stream = RandomStream::derive(5, &param.name, &[]);
        param.value.iter_mut().enumerate().for_each(|(i, value)| *value += 0.05 * stream.normal(i as u64));
    }
    (model, params)
}

fn ids(count: usize) -> Vec<u32> {
    let stream = RandomStream::new(9, 9);
    (0..count as u64).map(|i| stream.word(i) % 131).collect()
}

/// Logits after each token: the first `prompt` at once, then one by one.
fn stepwise(threads: usize, model: &Llama, pass: &Pass<'_>, ids: &[u32], prompt: usize) -> Vec<Vec<f32>> {
    let mut cache = KvCache::new(model, ids.len() + 3);
    if prompt > 0 {
        model.next_logits(pass, &ids[..prompt], &mut cache);
    }
    let mut step = |&id| model.decode_on(threads, pass, id, &mut cache).to_vec();
    ids[prompt..].iter().map(&mut step).collect()
}

fn compare(name: &str, changes: &Value, method: Method, lora: &LoraConfig, compute: Compute, count: usize) {
    let (mut model, params) = load(changes, method, lora);
    let arena = Arena::new();
    let dora = model.dora_scales(&params, &arena);
    let pass = Pass { params: &params, dora: &dora, arena: &arena, compute, noise: None };
    let ids = ids(count);
    let positions: Vec<u32> = (0..count as u32).collect();
    let all = 0..count;
    // Fixed point is nearer to f32 than the sequence at once, whose operands are rounded to bf16, is to either.
    let fixed = compute == Compute::Bf16 && cpu_path() == CpuPath::Avx2;
    let reference = Pass { compute: if fixed { Compute::F32 } else { compute }, ..pass };
    let expected = model.logits(&reference, Rows { ids: &ids, positions: &positions, segments: &[all] });
    let pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    let prompt = count / 2 / 7 * 7;
    let found = stepwise(1, &model, &pass, &ids, prompt);
    let tolerance = if compute == Compute::F32 { 1e-5 } else { 2e-2 };
    let are_near = |what: &str, found: &[Vec<f32>]| {
        for (row, found) in (prompt..).zip(found) {
            let expected = expected.row(row);
            let largest = expected.iter().fold(0.0f32, |m, v| m.max(v.abs()));
            let worst = expected.iter().zip(found).fold(0.0f32, |m, (e, f)| m.max((e - f).abs()));
            assert!(worst <= tolerance * largest, "{name}{what}: row {row}: {worst:e} of {largest:e}");
        }
    };
    let threads_change_nothing = |model: &Llama, found: &[Vec<f32>]| {
        for threads in [2, 3, 5] {
            let others = pool(threads).install(|| stepwise(threads, model, &pass, &ids, prompt));
            let equal = found.iter().zip(&others).all(|(a, b)| bits(a) == bits(b));
            assert!(equal, "{name}: {threads} threads");
        }
    };
    are_near("", &found);
    threads_change_nothing(&model, &found);
    model.prepare_head(compute);
    let prepared = stepwise(1, &model, &pass, &ids, prompt);
    if model.coarse_head.is_some() {
        are_near(", the head in its own form", &prepared);
        threads_change_nothing(&model, &prepared);
    } else {
        assert!(found.iter().zip(&prepared).all(|(a, b)| bits(a) == bits(b)), "{name}: the head in its own form");
    }
}

/// A head of which a third of the rows differ from the one before by less than 8 bits can say.
fn head_of_near_rows(rows: usize, cols: usize) -> Weight {
    let stream = RandomStream::new(4, 4);
    let mut values: Vec<bf16> = (0..rows * cols).map(|i| bf16::from_f32(stream.normal(i as u64))).collect();
    for row in (1..rows).filter(|row| row % 3 == 1) {
        values.copy_within((row - 1) * cols..row * cols, row * cols);
        let value = &mut values[row * cols + row % cols];
        *value = bf16::from_bits(value.to_bits() ^ 1);
    }
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    Weight::Dense { dtype: DenseDtype::Bf16, bytes: Bytes::owned(&bytes), rows, cols }
}

#[test]
fn a_coarse_head_leaves_the_likely_tokens_as_they_are() {
    // Several jobs, and a last one that is short.
    let vocab = 5003;
    let (mut model, params) = load(&json!({"vocab_size": vocab}), Method::Qlora, &LoraConfig::default());
    model.head = Some(head_of_near_rows(vocab, 64));
    let (arena, dora) = (Arena::new(), Default::default());
    let pass = Pass { params: &params, dora: &dora, arena: &arena, compute: Compute::F32, noise: None };
    let exact = stepwise(1, &model, &pass, &ids(40), 0);
    model.prepare_head(Compute::F32);
    let (mut likely, mut again) = (0, 0);
    for (exact, coarse) in exact.iter().zip(stepwise(1, &model, &pass, &ids(40), 0)) {
        let first =
            |logits: &[f32]| (0..vocab).fold(0, |first, row| if logits[row] > logits[first] { row } else { first });
        let largest = exact[first(exact)];
        assert_eq!(first(&coarse), first(exact));
        for (exact, coarse) in exact.iter().zip(&coarse).filter(|(exact, _)| **exact >= largest - MARGIN) {
            assert_eq!(exact.to_bits(), coarse.to_bits(), "{exact} below {largest}");
            likely += 1;
        }
        let worst = exact.iter().zip(&coarse).fold(0f32, |worst, (a, b)| worst.max((a - b).abs()));
        assert!(worst > 0.0 && worst < 1e-2 * largest, "{worst:e} of {largest:e}");
        again += exact.iter().zip(&coarse).filter(|(a, b)| a.to_bits() == b.to_bits()).count();
    }
    assert!(likely > 100 && again < 40 * vocab / 10, "{likely} likely, {again} computed again");
}

#[test]
fn tables_of_rows_leave_the_logits_as_they_are() {
    let (mut model, params) = load(&json!({}), Method::Qlora, &LoraConfig::default());
    for layer in model.blocks.iter_mut().flat_map(Block::linears_mut) {
        let Weight::Nf4(matrix) = &mut layer.weight else { panic!("{} is not in NF4", layer.name) };
        matrix.dtype = SourceDtype::Bf16;
    }
    let (arena, dora) = (Arena::new(), Default::default());
    let pass = Pass { params: &params, dora: &dora, arena: &arena, compute: Compute::F32, noise: None };
    let without = stepwise(1, &model, &pass, &ids(20), 0);
    model.prepare_rows(Compute::F32);
    assert!(model.linears().all(|layer| layer.row_tables.is_some() == (cpu_path() == CpuPath::Avx2)));
    let with = stepwise(1, &model, &pass, &ids(20), 0);
    for (without, with) in without.iter().zip(&with) {
        let largest = without.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        let worst = without.iter().zip(with).fold(0.0f32, |m, (a, b)| m.max((a - b).abs()));
        assert!(worst <= 1e-5 * largest, "{worst:e} of {largest:e}");
    }
    let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
    let together = pool.install(|| stepwise(3, &model, &pass, &ids(20), 0));
    assert!(with.iter().zip(&together).all(|(a, b)| bits(a) == bits(b)));
}

#[test]
fn token_by_token_gives_the_logits_of_the_sequence() {
    let lora = LoraConfig { r: 5, alpha: 10.0, ..LoraConfig::default() };
    let dora = LoraConfig { dora: true, ..lora.clone() };
    let (plain, tied) = (json!({}), json!({"tie_word_embeddings": true}));
    let odd =
        json!({"attention_bias": true, "mlp_bias": true, "head_dim": 6, "hidden_size": 36, "intermediate_size": 50});
    // 12 queries to a key-value head: more than the row kernel takes.
    let many = json!({"num_attention_heads": 12, "num_key_value_heads": 1, "head_dim": 16});
    for compute in [Compute::F32, Compute::Bf16] {
        compare("nf4 + lora", &plain, Method::Qlora, &lora, compute, 40);
        compare("nf4 + dora", &tied, Method::Qlora, &dora, compute, 20);
        compare("dense, biases, odd sizes", &odd, Method::Lora, &lora, compute, 20);
        compare("every weight trained", &tied, Method::Full, &lora, compute, 20);
        compare("one key-value head", &many, Method::Qlora, &lora, compute, 300);
    }
    // Several parts of attention.
    compare("a long sequence", &plain, Method::Qlora, &lora, Compute::F32, 400);
}

#[test]
fn forgotten_tokens_do_not_come_back() {
    let (model, params) = load(&json!({}), Method::Qlora, &LoraConfig::default());
    let (arena, dora) = (Arena::new(), Default::default());
    let pass = Pass { params: &params, dora: &dora, arena: &arena, compute: Compute::F32, noise: None };
    let ids = ids(12);
    let mut cache = KvCache::new(&model, 16);
    let first: Vec<Vec<f32>> = ids.iter().map(|&id| model.decode_on(1, &pass, id, &mut cache).to_vec()).collect();
    cache.truncate(5);
    assert_eq!(cache.len(), 5);
    let again: Vec<Vec<f32>> = ids[5..].iter().map(|&id| model.decode_on(1, &pass, id, &mut cache).to_vec()).collect();
    assert!(first[5..].iter().zip(&again).all(|(a, b)| bits(a) == bits(b)));
}
