//! Stretches against whole documents.

use super::*;
use crate::device::Compute;
use crate::model::random::RandomWeights;
use crate::model::{self, DoraScales, LoadOptions, ModelConfig};
use crate::ops::ParamStore;
use serde_json::json;

fn small_model() -> (Llama, ParamStore) {
    let config = json!({"model_type": "llama", "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3,
        "num_attention_heads": 6, "num_key_value_heads": 2, "vocab_size": 101, "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5, "tie_word_embeddings": true});
    let config = ModelConfig::from_json(config).unwrap();
    model::load(&config, &RandomWeights::new(5, 0.3), &LoadOptions::frozen(128), &mut |_, _| {}).unwrap()
}

fn ids(seed: u32, count: usize) -> Vec<u32> {
    (0..count as u32).map(|i| (i * i * 7 + i * 13 + seed * 31) % 101).collect()
}

/// Hidden states of the last `count` tokens of a document, by the ordinary forward pass.
fn expected(model: &Llama, pass: &Pass<'_>, document: &[u32], count: usize) -> Vec<f32> {
    let positions: Vec<u32> = (0..document.len() as u32).collect();
    let whole = 0..document.len();
    let rows = Rows { ids: document, positions: &positions, segments: std::slice::from_ref(&whole) };
    let hidden = model.forward(pass, rows, &[]).last;
    hidden[(document.len() - count) * hidden.cols()..].to_vec()
}

#[test]
fn a_tree_and_a_batch_give_the_states_of_whole_documents() {
    let (model, params) = small_model();
    let (arena, dora) = (Arena::new(), DoraScales::default());
    let pass = Pass { params: &params, dora: &dora, arena: &arena, compute: Compute::F32, noise: None };
    let mut caches = [KvCache::new(&model, 64), KvCache::new(&model, 40)];
    let (trunk, other) = (ids(1, 19), ids(2, 7));
    let [item, left, right, more, tail] = [ids(3, 5), ids(4, 1), ids(5, 3), ids(6, 9), ids(7, 2)];
    let start = |ids, cache| Extension { ids, cache, past: 0 };
    model.extend(&pass, &[start(&trunk, 0), start(&other, 1)], &mut caches);
    assert_eq!((caches[0].len(), caches[1].len()), (19, 7));
    let extension = |ids, cache, past| Extension { ids, cache, past };
    let stretches = [
        extension(&item, 0, 19),
        extension(&left, 0, 24),
        extension(&right, 0, 24),
        extension(&tail, 1, 7),
        extension(&more, 0, 19),
        extension(&right, 0, 28),
    ];
    let hidden = model.extend(&pass, &stretches, &mut caches);
    assert_eq!((caches[0].len(), caches[1].len()), (31, 9));
    let beginnings: [&[&[u32]]; 6] =
        [&[&trunk], &[&trunk, &item], &[&trunk, &item], &[&other], &[&trunk], &[&trunk, &more]];
    let mut start = 0;
    for (stretch, beginning) in stretches.iter().zip(beginnings) {
        let document: Vec<u32> = beginning.concat().into_iter().chain(stretch.ids.iter().copied()).collect();
        let wanted = expected(&model, &pass, &document, stretch.ids.len());
        let found = &hidden[start..start + wanted.len()];
        let worst = found.iter().zip(&wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        let largest = wanted.iter().fold(0.0f32, |most, v| most.max(v.abs()));
        assert!(worst <= 1e-5 * largest, "{worst} of {largest}");
        start += wanted.len();
    }
}

#[test]
fn a_copied_beginning_is_continued_like_the_original() {
    let (model, params) = small_model();
    let (arena, dora) = (Arena::new(), DoraScales::default());
    let pass = Pass { params: &params, dora: &dora, arena: &arena, compute: Compute::F32, noise: None };
    let mut caches = [KvCache::new(&model, 30), KvCache::new(&model, 21)];
    let (trunk, item) = (ids(1, 16), ids(2, 4));
    model.extend(&pass, &[Extension { ids: &trunk, cache: 0, past: 0 }], &mut caches);
    let [first, second] = &mut caches;
    second.copy_beginning(first, 16);
    let stretches = [0, 1].map(|cache| Extension { ids: &item, cache, past: 16 });
    let hidden = model.extend(&pass, &stretches, &mut caches);
    let (left, right) = hidden.split_at(hidden.len() / 2);
    assert_eq!(left, right);
    assert_eq!(KvCache::bytes_per_token(&model), 2 * 3 * 16 * 4);
}

#[test]
fn losses_and_the_likeliest_token_follow_the_logits() {
    let (model, params) = small_model();
    let (arena, dora) = (Arena::new(), DoraScales::default());
    let pass = Pass { params: &params, dora: &dora, arena: &arena, compute: Compute::F32, noise: None };
    let document = ids(9, 12);
    let positions: Vec<u32> = (0..12).collect();
    let whole = 0..12;
    let rows = Rows { ids: &document, positions: &positions, segments: std::slice::from_ref(&whole) };
    let (hidden, logits) = (model.forward(&pass, rows, &[]).last, model.logits(&pass, rows));
    let mut targets = vec![IGNORE; 12];
    let best = model.likeliest(&pass, &hidden, &[3, 7]);
    (targets[3], targets[7]) = (best[0] as i32, (best[1] as i32 + 1) % 101);
    assert_eq!(model.greedy_hits(&pass, &hidden, &targets), [true, false]);
    let losses = model.token_losses(&pass, &hidden, &targets);
    for (row, &target) in targets.iter().enumerate() {
        let sum: f64 = logits.row(row).iter().map(|&z| f64::from(z).exp()).sum();
        let wanted = if target == IGNORE { 0.0 } else { sum.ln() - f64::from(logits.row(row)[target as usize]) };
        assert!((f64::from(losses[row]) - wanted).abs() < 1e-5);
    }
    assert_eq!(argmax(&[f32::NAN, 1.0, 3.0, 3.0]), 2);
}
