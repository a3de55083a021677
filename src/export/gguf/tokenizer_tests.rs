//! Tokenizers there and back: small ones made here, and real ones where they are at hand.

use super::*;
use crate::model::gguf::testing::{asset, Builder};
use crate::model::gguf::tokenizer::files;
use crate::model::gguf::{Gguf, GgufFile};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// LLaMA-like pieces, with every way to make one of two.
fn sentencepiece(scores: &[f32]) -> Builder {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(String::from).to_vec();
    tokens.extend((0..=255).map(|byte| format!("<0x{byte:02X}>")));
    let pieces = ["▁", "c", "i", "a", "o", "▁c", "ci", "▁ci", "ao", "▁ciao", "<user>", "è"];
    tokens.extend(pieces.map(String::from));
    let mut types = vec![2, 3, 3];
    types.extend([6; 256]);
    types.extend([1; 12]);
    types[3 + 256 + 10] = 4;
    let all: Vec<f32> = [0.0; 259].into_iter().chain(scores.iter().copied()).collect();
    let texts: Vec<&str> = tokens.iter().map(String::as_str).collect();
    let mut builder = Builder::new();
    builder.text("tokenizer.ggml.model", "llama").texts("tokenizer.ggml.tokens", &texts);
    builder.f32s("tokenizer.ggml.scores", &all).i32s("tokenizer.ggml.token_type", &types);
    builder
}

fn falling() -> Vec<f32> {
    (0..12).map(|i| -(i as f32)).collect()
}

/// The tokenizer of a GGUF file as a folder.
fn unpacked(path: &Path, rows: usize) -> tempfile::TempDir {
    let files = files(&GgufFile::open(path).unwrap(), rows).unwrap();
    let place = tempfile::tempdir().unwrap();
    let write = |name: &str, value: &Json| std::fs::write(place.path().join(name), value.to_string()).unwrap();
    write("tokenizer.json", &files.tokenizer);
    write("tokenizer_config.json", &files.tokenizer_config);
    write("generation_config.json", &files.generation_config);
    place
}

fn described(folder: &Path, rows: usize) -> (BTreeMap<String, Value>, Vec<String>) {
    let tokenizer = Tokenizer::load(folder, Some(rows)).unwrap();
    let described = describe(folder, &tokenizer, rows).unwrap();
    (described.metadata.into_iter().collect(), described.notes)
}

fn texts(value: &Value) -> &[String] {
    match value {
        Value::Texts(texts) => texts,
        other => panic!("{other:?}"),
    }
}

#[test]
fn pieces_get_scores_that_fall_as_their_merges_do() {
    // Not the order of the ids: "ao" before "ci" before "▁c".
    let given = [-50.0, -51.0, -52.0, -53.0, -54.0, -3.0, -2.0, -4.5, -1.0, -9.0, 0.0, -55.0];
    let (_place, path) = sentencepiece(&given).write();
    let rows = 280;
    let folder = unpacked(&path, rows);
    let (keys, notes) = described(folder.path(), rows);
    assert!(notes.is_empty(), "{notes:?}");
    let Value::F32s(scores) = &keys["tokenizer.ggml.scores"] else { panic!() };
    assert_eq!(scores.len(), rows);
    let id = |token: &str| texts(&keys["tokenizer.ggml.tokens"]).iter().position(|known| known == token).unwrap();
    let order = ["ao", "ci", "▁c", "▁ci", "▁ciao", "▁", "c", "i", "a", "o", "è"];
    assert!(order.iter().enumerate().all(|(rank, piece)| scores[id(piece)] == -(rank as f32)), "{scores:?}");
    let Value::I32s(types) = &keys["tokenizer.ggml.token_type"] else { panic!() };
    assert_eq!((types[0], types[1], types[3], types[id("<user>")], types[279]), (2, 3, 6, 4, 5));
    assert_eq!(texts(&keys["tokenizer.ggml.tokens"])[279], "[PAD279]");
    assert_eq!(keys["tokenizer.ggml.add_space_prefix"], Value::Flag(true));
    assert_eq!(keys["tokenizer.ggml.add_bos_token"], Value::Flag(true));
    assert_eq!(keys["tokenizer.ggml.add_eos_token"], Value::Flag(false));
    assert_eq!(
        (&keys["tokenizer.ggml.bos_token_id"], &keys["tokenizer.ggml.eos_token_id"]),
        (&Value::U32(1), &Value::U32(2))
    );
    assert_eq!(keys["tokenizer.ggml.unknown_token_id"], Value::U32(0));
}

/// Errors of `describe` after a change to the tokenizer's JSON.
fn refused(change: impl Fn(&mut Json)) -> String {
    let (_place, path) = sentencepiece(&falling()).write();
    let folder = unpacked(&path, 271);
    let file = folder.path().join("tokenizer.json");
    let mut json = read_json(&file).unwrap();
    change(&mut json);
    std::fs::write(&file, json.to_string()).unwrap();
    let tokenizer = Tokenizer::load(folder.path(), Some(271)).unwrap();
    describe(folder.path(), &tokenizer, 271).err().map(|error| error.message().to_string()).unwrap_or_default()
}

#[test]
fn a_tokenizer_without_an_equal_is_refused() {
    // One way less to make "▁ci": tokens would differ where only that way is open.
    let cut = |json: &mut Json| drop(json["model"]["merges"].as_array_mut().unwrap().remove(0));
    assert!(refused(cut).contains("ways to make a piece of two, found"));
    let lower = |json: &mut Json| json["normalizer"] = json!({"type": "Lowercase"});
    assert!(refused(lower).contains("expected spaces as ▁ and nothing else"));
    let words = |json: &mut Json| {
        json["added_tokens"] = json!([]);
        json["model"] = json!({"type": "WordLevel", "vocab": {"<unk>": 0, "<s>": 1, "</s>": 2}, "unk_token": "<unk>"});
    };
    assert!(refused(words).contains("expected \"BPE\""));
    assert_eq!(refused(|_| {}), "");
}

#[test]
fn metaspace_is_a_spelling_of_the_prefix() {
    for (scheme, prefix) in [("always", true), ("first", true), ("never", false)] {
        let json = json!({"normalizer": null, "pre_tokenizer":
            {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": false}});
        let mut notes = Vec::new();
        assert_eq!(super::sentencepiece::puts_space_before(&json, &mut notes).unwrap(), prefix);
        assert_eq!(notes.len(), usize::from(scheme == "first"));
    }
}

#[test]
fn tokens_beyond_the_embedding_are_left_out_and_empty_rows_filled() {
    let (_place, path) = sentencepiece(&falling()).write();
    let folder = unpacked(&path, 271);
    let (keys, notes) = described(folder.path(), 269);
    assert_eq!(texts(&keys["tokenizer.ggml.tokens"]).len(), 269);
    assert!(notes[0].starts_with("2 token(s) beyond the 269 rows"), "{notes:?}");
}

fn models(test: &str) -> Option<PathBuf> {
    asset("LLAMANTINO_TEST_MODELS", test)
}

/// LLaMA-2's own scores fall with the id, but for the runs of spaces, which come last.
#[test]
fn llama_2_gets_scores_in_the_order_of_its_own() {
    let Some(models) = models("llama_2_gets_scores_in_the_order_of_its_own") else { return };
    let folder = models.join("llama2-tokenizer");
    let (keys, notes) = described(&folder, 32000);
    assert!(notes.is_empty(), "{notes:?}");
    let Value::F32s(scores) = &keys["tokenizer.ggml.scores"] else { panic!() };
    let tokens = texts(&keys["tokenizer.ggml.tokens"]);
    let is_run = |id: &usize| tokens[*id].chars().count() > 1 && tokens[*id].chars().all(|c| c == '▁');
    let (runs, others): (Vec<usize>, Vec<usize>) = (259..32000).partition(is_run);
    assert!(others.windows(2).all(|pair| scores[pair[0]] > scores[pair[1]]));
    assert!(runs.len() == 15 && runs.iter().all(|&run| scores[run] < scores[29870]));
}

#[test]
fn a_real_sentencepiece_vocabulary_comes_back() {
    let Some(models) = models("a_real_sentencepiece_vocabulary_comes_back") else { return };
    let (keys, _) = described(&models.join("stories260K"), 512);
    assert_eq!(keys["tokenizer.ggml.model"], Value::Text("llama".into()));
    let json = read_json(&models.join("stories260K/tokenizer.json")).unwrap();
    let merges = json["model"]["merges"].as_array().unwrap().len();
    assert!(merges > 100 && texts(&keys["tokenizer.ggml.tokens"]).len() == 512);
}

#[test]
fn smollm2_comes_back_as_its_file_says_it() {
    let Some(path) = asset("LLAMANTINO_SMOLLM2", "smollm2_comes_back_as_its_file_says_it") else { return };
    let gguf = Gguf::open(&path, None).unwrap();
    let rows = gguf.config().vocab_size;
    let folder = unpacked(&path, rows);
    let (keys, notes) = described(folder.path(), rows);
    assert!(notes.is_empty(), "{notes:?}");
    let file = GgufFile::open(&path).unwrap();
    for key in ["tokenizer.ggml.tokens", "tokenizer.ggml.merges"] {
        assert!(file.texts(key).unwrap().unwrap() == texts(&keys[key]), "{key}");
    }
    let Value::I32s(types) = &keys["tokenizer.ggml.token_type"] else { panic!() };
    let stored = file.numbers("tokenizer.ggml.token_type").unwrap().unwrap();
    assert!(types.iter().map(|&kind| f64::from(kind)).eq(stored));
    assert_eq!(keys["tokenizer.ggml.pre"], Value::Text("smollm".into()));
    for key in ["bos", "eos", "padding"] {
        let key = format!("tokenizer.ggml.{key}_token_id");
        assert_eq!(keys[&key], Value::U32(file.whole(&key).unwrap().unwrap() as u32), "{key}");
    }
    assert_eq!(keys["tokenizer.ggml.add_bos_token"], Value::Flag(false));
}
