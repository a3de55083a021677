//! A real model, SmolLM2-135M-Instruct out of a GGUF file, against what others compute from that file: token ids by
//! llama.cpp, losses and perplexity by transformers in f32. `LLAMANTINO_SMOLLM2` names the file (`scripts/assets.sh`
//! fetches it); `scripts/golden_tokens.mjs` and `scripts/golden_perplexity.py` made the numbers.

mod support;

use llamantino::data::tokenize::Tokenizer;
use llamantino::device::Compute;
use llamantino::model::{self, DoraScales, LoadOptions, OpenModel, Pass, Rows};
use llamantino::ops::Arena;
use serde::de::DeserializeOwned;
use serde::Deserialize;
use std::path::{Path, PathBuf};
use support::{skip, succeed};

#[derive(Deserialize)]
struct Texts {
    texts: Vec<String>,
    files: Vec<String>,
}

#[derive(Deserialize)]
struct Tokens {
    ids: Vec<Vec<u32>>,
}

#[derive(Deserialize)]
struct Perplexity {
    predicted: usize,
    perplexity: f64,
    loss_sums: Vec<f64>,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn golden<T: DeserializeOwned>(name: &str) -> T {
    let text = std::fs::read_to_string(root().join("tests/golden/smollm2").join(name)).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// The texts that the golden numbers are about.
fn texts() -> Vec<String> {
    let Texts { mut texts, files } = golden("texts.json");
    texts.extend(files.iter().map(|file| std::fs::read_to_string(root().join(file)).unwrap()));
    texts
}

fn smollm2(test: &str) -> Option<PathBuf> {
    let path = std::env::var_os("LLAMANTINO_SMOLLM2").filter(|value| !value.is_empty()).map(PathBuf::from);
    if path.is_none() {
        skip(test, "LLAMANTINO_SMOLLM2 to the SmolLM2-135M GGUF file");
    }
    path
}

/// Every text gives llama.cpp's ids, and its ids give the text.
fn assert_same_ids(tokenizer: &Tokenizer) {
    let (texts, Tokens { ids }) = (texts(), golden("tokens.json"));
    assert!(texts.len() >= 50 && texts.len() == ids.len());
    for (text, expected) in texts.iter().zip(&ids) {
        assert_eq!(&tokenizer.encode_plain(text).unwrap(), expected, "{text:?}");
        assert_eq!(&tokenizer.decode(expected, false).unwrap(), text);
    }
}

#[test]
fn token_ids_are_those_of_llama_cpp_from_the_file_and_from_the_folder() {
    let Some(gguf) = smollm2("token_ids_are_those_of_llama_cpp_from_the_file_and_from_the_folder") else { return };
    assert_same_ids(&OpenModel::open(&gguf).unwrap().tokenizer().unwrap());
    let place = tempfile::tempdir().unwrap();
    succeed(place.path(), &["import", gguf.to_str().unwrap(), "--out", "smollm2"]);
    assert_same_ids(&Tokenizer::load(&place.path().join("smollm2"), None).unwrap());
}

#[test]
fn losses_and_perplexity_are_those_of_transformers() {
    let Some(gguf) = smollm2("losses_and_perplexity_are_those_of_transformers") else { return };
    let opened = OpenModel::open(&gguf).unwrap();
    let options = LoadOptions::frozen(2048);
    let (mut model, params) = model::load(&opened.config, opened.source(), &options, &mut |_, _| {}).unwrap();
    let (arena, dora) = (Arena::default(), DoraScales::default());
    let pass = Pass { params: &params, dora: &dora, arena: &arena, compute: Compute::F32, noise: None };
    let (expected, Tokens { ids }): (Perplexity, _) = (golden("perplexity.json"), golden("tokens.json"));
    let (mut sum, mut predicted) = (0.0, 0);
    for (text, (ids, expected)) in ids.iter().zip(&expected.loss_sums).enumerate() {
        model.rope.ensure(ids.len());
        let positions: Vec<u32> = (0..ids.len() as u32).collect();
        let targets: Vec<i32> = ids[1..].iter().map(|&id| id as i32).chain([-100]).collect();
        let segment = 0..ids.len();
        let rows = Rows { ids, positions: &positions, segments: std::slice::from_ref(&segment) };
        let loss = model.loss(&pass, rows, &targets, None);
        assert_eq!(loss.targets, ids.len() - 1);
        let difference = (loss.sum - expected).abs();
        assert!(difference <= 1e-4 * expected.abs(), "text {text}: expected {expected}, found {}", loss.sum);
        sum += loss.sum;
        predicted += loss.targets;
    }
    assert_eq!(predicted, expected.predicted);
    let perplexity = (sum / predicted as f64).exp();
    let relative = (perplexity / expected.perplexity - 1.0).abs();
    println!("perplexity {perplexity:.6}, transformers {:.6}: relative {relative:.1e}", expected.perplexity);
    assert!(relative < 1e-4, "the requirement is 1e-3");
}

#[test]
fn the_capital_of_italy_is_rome() {
    let Some(gguf) = smollm2("the_capital_of_italy_is_rome") else { return };
    let place = tempfile::tempdir().unwrap();
    // The model was made for English: an Italian system prompt, which a chat starts with, is not for it.
    let chat = ["chat", "--model", gguf.to_str().unwrap(), "--system", "", "--temperature", "0"];
    for compute in ["f32", "bf16"] {
        let question = ["--prompt", "What is the capital of Italy?", "--compute", compute];
        let answer = succeed(place.path(), &[&chat[..], &question].concat());
        assert_eq!(answer, "The capital of Italy is Rome.\n", "{compute}");
    }
}
