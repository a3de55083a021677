//! Tokenizers: small ones made here, and llama.cpp's own vectors where its vocabularies are at hand.

use super::*;
use crate::model::gguf::testing::{asset, Builder};
use std::path::Path;
use tokenizers::Tokenizer;

fn build(builder: &Builder) -> Result<TokenizerFiles> {
    let (_place, path) = builder.write();
    files(&GgufFile::open(&path).unwrap(), 1 << 20)
}

fn tokenizer(files: &TokenizerFiles) -> Tokenizer {
    Tokenizer::from_bytes(files.tokenizer.to_string()).unwrap()
}

fn ids(tokenizer: &Tokenizer, text: &str, special: bool) -> Vec<u32> {
    tokenizer.encode_fast(text, special).unwrap().get_ids().to_vec()
}

/// LLaMA-like: pieces with scores, byte tokens, a user-defined token.
fn sentencepiece() -> Builder {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(String::from).to_vec();
    tokens.extend((0..=255).map(|byte| format!("<0x{byte:02X}>")));
    // Score -i for the i-th: "▁c" before "ci", so "▁ciao" is made from the left.
    let pieces = ["▁", "c", "i", "a", "o", "▁c", "ci", "▁ci", "ao", "▁ciao", "<user>", "è"];
    tokens.extend(pieces.map(String::from));
    let mut types = vec![2, 3, 3];
    types.extend([6; 256]);
    types.extend([1; 12]);
    types[3 + 256 + 10] = 4;
    let scores: Vec<f32> = (0..tokens.len()).map(|id| if id < 259 { 0.0 } else { 259.0 - id as f32 }).collect();
    let texts: Vec<&str> = tokens.iter().map(String::as_str).collect();
    let mut builder = Builder::new();
    builder.text("tokenizer.ggml.model", "llama").texts("tokenizer.ggml.tokens", &texts);
    builder.f32s("tokenizer.ggml.scores", &scores).i32s("tokenizer.ggml.token_type", &types);
    builder
}

#[test]
fn pieces_are_joined_by_score_and_the_rest_falls_into_bytes() {
    let files = build(&sentencepiece()).unwrap();
    let tokenizer = tokenizer(&files);
    let id = |token: &str| tokenizer.token_to_id(token).unwrap();
    assert_eq!(ids(&tokenizer, "ciao", false), [id("▁ciao")]);
    assert_eq!(ids(&tokenizer, " ciao", false), [id("▁"), id("▁ciao")]);
    assert_eq!(ids(&tokenizer, "è🦙", false)[..2], [id("▁"), id("è")]);
    assert_eq!(ids(&tokenizer, "🦙", false)[1..], [0xf0, 0x9f, 0xa6, 0x99].map(|byte| 3 + byte));
    assert_eq!(ids(&tokenizer, "\n", false), [id("▁"), id("<0x0A>")]);
    let text = "ciao 🦙 è\n  ciao";
    assert_eq!(tokenizer.decode(&ids(&tokenizer, text, false), true).unwrap(), text);
}

#[test]
fn control_tokens_are_special_and_user_defined_ones_are_not() {
    let files = build(&sentencepiece()).unwrap();
    let tokenizer = tokenizer(&files);
    let added = files.tokenizer["added_tokens"].as_array().unwrap();
    let marks: Vec<_> =
        added.iter().map(|token| (token["content"].as_str().unwrap(), token["special"] == true)).collect();
    assert_eq!(marks, [("<unk>", true), ("<s>", true), ("</s>", true), ("<user>", false)]);
    assert_eq!(ids(&tokenizer, "</s>", false), [2]);
    assert_eq!(ids(&tokenizer, "ciao", true)[0], 1, "BOS goes before text by default");
    let config = &files.tokenizer_config;
    assert_eq!(
        (&config["bos_token"], &config["eos_token"], &config["unk_token"]),
        (&json!("<s>"), &json!("</s>"), &json!("<unk>"))
    );
    assert_eq!(files.generation_config, json!({"bos_token_id": 1, "eos_token_id": 2}));
    assert!(files.notes.is_empty());
}

#[test]
fn flags_of_the_file_are_followed() {
    let mut builder = sentencepiece();
    builder.flag("tokenizer.ggml.add_bos_token", false).flag("tokenizer.ggml.add_eos_token", true);
    builder.flag("tokenizer.ggml.add_space_prefix", false).text("tokenizer.chat_template", "{{ messages }}");
    let files = build(&builder).unwrap();
    let tokenizer = tokenizer(&files);
    let id = |token: &str| tokenizer.token_to_id(token).unwrap();
    assert_eq!(ids(&tokenizer, "ciao", true), [id("ci"), id("ao"), 2]);
    assert_eq!(ids(&tokenizer, " ciao", true), [id("▁ciao"), 2]);
    assert_eq!(tokenizer.decode(&[id("▁ciao")], true).unwrap(), " ciao");
    let config = &files.tokenizer_config;
    assert_eq!((&config["add_bos_token"], &config["add_eos_token"]), (&json!(false), &json!(true)));
    assert_eq!(config["chat_template"], "{{ messages }}");
}

/// Every byte's stand-in, then some words.
fn byte_level(pre: Option<&str>) -> Builder {
    let mut tokens: Vec<String> =
        tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet().into_iter().map(String::from).collect();
    tokens.sort_unstable();
    tokens.extend(["12", "Ġ1", "Ġa", "ab", "abc", "<|end|>"].map(String::from));
    let mut types = vec![1; tokens.len()];
    types[tokens.len() - 1] = 3;
    let texts: Vec<&str> = tokens.iter().map(String::as_str).collect();
    let mut builder = Builder::new();
    builder.text("tokenizer.ggml.model", "gpt2").texts("tokenizer.ggml.tokens", &texts);
    builder.i32s("tokenizer.ggml.token_type", &types);
    builder.texts("tokenizer.ggml.merges", &["Ġ 1", "Ġ a", "a b", "1 2"]);
    builder.u32("tokenizer.ggml.eos_token_id", tokens.len() as u32 - 1);
    if let Some(pre) = pre {
        builder.text("tokenizer.ggml.pre", pre);
    }
    builder
}

fn pieces(tokenizer: &Tokenizer, text: &str) -> Vec<String> {
    tokenizer.encode(text, false).unwrap().get_tokens().to_vec()
}

#[test]
fn the_name_of_the_cut_decides_how_text_is_cut() {
    let cut = |pre: &str, text: &str| pieces(&tokenizer(&build(&byte_level(Some(pre))).unwrap()), text);
    assert_eq!(cut("gpt-2", " 12"), ["Ġ1", "2"]);
    assert_eq!(cut("smollm", " 12"), ["Ġ", "1", "2"]);
    assert_eq!(cut("llama-bpe", " 12"), ["Ġ", "12"]);
    assert_eq!(cut("qwen2", " 12"), ["Ġ", "1", "2"]);
    assert_eq!(cut("default", " 1234"), ["Ġ", "12", "3", "4"]);
    // A piece that is a token is taken whole, without merges that make it.
    assert_eq!(cut("llama-bpe", "abc"), ["abc"]);
    assert_eq!(cut("gpt-2", "abc"), ["ab", "c"]);
    assert_eq!(cut("tekken", "aA"), ["a", "A"]);
    for pre in ["gpt-2", "smollm", "llama-bpe", "qwen2", "default", "tekken", "minerva-7b", "dbrx"] {
        let tokenizer = tokenizer(&build(&byte_level(Some(pre))).unwrap());
        let text = "C'è 1 abc, perché\r\n\r\n\t 🦙 'LL x\u{a0}y  ";
        let ids = ids(&tokenizer, text, false);
        assert_eq!(tokenizer.decode(&ids, true).unwrap(), text, "{pre}");
    }
}

#[test]
fn an_unknown_cut_is_an_error_and_a_missing_one_a_note() {
    let error = build(&byte_level(Some("klingon"))).unwrap_err();
    assert!(error.message().contains("tokenizer.ggml.pre: expected default, gpt-2") && error.hint_text().is_some());
    let files = build(&byte_level(None)).unwrap();
    assert!(files.notes[0].contains("tokenizer.ggml.pre is missing"), "{:?}", files.notes);
}

#[test]
fn special_tokens_of_byte_level_vocabularies_are_one_token() {
    let mut builder = byte_level(Some("smollm"));
    let files = build(&builder).unwrap();
    let end = tokenizer(&files).token_to_id("<|end|>").unwrap();
    assert_eq!(ids(&tokenizer(&files), "a<|end|>", true).last(), Some(&end));
    assert_eq!(files.tokenizer_config["eos_token"], "<|end|>");
    assert!(files.tokenizer_config.get("bos_token").is_none());
    // Without types, the tokens with a role are still known.
    builder.without("tokenizer.ggml.token_type");
    let files = build(&builder).unwrap();
    assert_eq!(ids(&tokenizer(&files), "a<|end|>", true).last(), Some(&end));
    assert!(files.notes[0].contains("token_type is missing"));
}

#[test]
fn lists_that_do_not_fit_are_errors() {
    let wrong = |builder: &Builder| build(builder).unwrap_err().message().to_string();
    let change = |start: fn() -> Builder, key: &str, set: &dyn Fn(&mut Builder)| {
        let mut builder = start();
        builder.without(key);
        set(&mut builder);
        wrong(&builder)
    };
    let gpt2 = || byte_level(Some("gpt-2"));
    assert!(wrong(&Builder::new()).contains("tokenizer.ggml.model: expected \"gpt2\" or \"llama\", found nothing"));
    let none = |_: &mut Builder| {};
    assert!(change(gpt2, "tokenizer.ggml.tokens", &none).contains("a list of texts, found nothing"));
    assert!(change(gpt2, "tokenizer.ggml.merges", &none).contains("a list of texts, found nothing"));
    assert!(change(sentencepiece, "tokenizer.ggml.scores", &none).contains("a list of numbers, found nothing"));
    let scores = change(sentencepiece, "tokenizer.ggml.scores", &|b| {
        b.f32s("tokenizer.ggml.scores", &[1.0]);
    });
    assert!(scores.contains("271 scores, one for each token, found a list of 1"), "{scores}");
    let nan = change(sentencepiece, "tokenizer.ggml.scores", &|b| {
        b.f32s("tokenizer.ggml.scores", &[f32::NAN; 271]);
    });
    assert!(nan.contains("entry 0: expected a finite number, found NaN"));
    let types = change(gpt2, "tokenizer.ggml.token_type", &|b| {
        b.i32s("tokenizer.ggml.token_type", &[1; 3]);
    });
    assert!(types.contains("262 types, one for each token, found a list of 3"), "{types}");
    let type_9 = change(gpt2, "tokenizer.ggml.token_type", &|b| {
        b.i32s("tokenizer.ggml.token_type", &[9; 262]);
    });
    assert!(type_9.contains("types from 1 to 6"));
    for merge in ["a", "a  b", "a x", "zz b", " a", ""] {
        let text = change(gpt2, "tokenizer.ggml.merges", &|b| {
            b.texts("tokenizer.ggml.merges", &["a b", merge]);
        });
        assert!(text.contains("entry 1: expected two tokens that make one"), "{merge:?}: {text}");
    }
    let (_place, path) = gpt2().write();
    let error = files(&GgufFile::open(&path).unwrap(), 10).unwrap_err();
    assert!(error.message().contains("at most 10, the rows of the embedding, found a list of 262"));
    let long = "x".repeat(600);
    let mut builder = Builder::new();
    builder.text("tokenizer.ggml.model", "llama").texts("tokenizer.ggml.tokens", &["x", &long]);
    builder.f32s("tokenizer.ggml.scores", &[0.0; 2]);
    assert!(wrong(&builder).contains("pieces of at most 512 bytes, found 600"));
}

#[test]
fn a_text_that_occurs_twice_is_its_first_id() {
    let mut builder = Builder::new();
    builder.text("tokenizer.ggml.model", "gpt2").text("tokenizer.ggml.pre", "gpt-2");
    builder.texts("tokenizer.ggml.tokens", &["a", "b", "a"]).texts("tokenizer.ggml.merges", &[]);
    let files = build(&builder).unwrap();
    assert_eq!(files.tokenizer["model"]["vocab"], json!({"a": 0, "b": 1}));
    assert!(files.notes.iter().any(|note| note.starts_with("1 tokens have the text of an earlier one")));
}

/// Texts and ids of a vocabulary of llama.cpp: `.inp` has texts between `__ggml_vocab_test__` lines, `.out` a line of
/// ids for each (tokenised without BOS and with special tokens as text).
fn vectors(vocabulary: &Path) -> Vec<(String, Vec<u32>)> {
    let read = |ending: &str| {
        let mut path = vocabulary.as_os_str().to_owned();
        path.push(ending);
        String::from_utf8(std::fs::read(path).unwrap()).unwrap()
    };
    let texts = read(".inp");
    let texts = texts.split("\n__ggml_vocab_test__\n");
    let ids = read(".out");
    let ids = ids.lines().map(|line| line.split_whitespace().map(|id| id.parse().unwrap()).collect());
    texts.map(str::to_string).zip(ids).collect()
}

#[test]
fn vocabularies_of_llama_cpp_give_its_ids() {
    let Some(folder) = asset("LLAMANTINO_GGUF_VOCABS", "vocabularies_of_llama_cpp_give_its_ids") else { return };
    for name in ["llama-spm", "llama-bpe", "gpt-2", "starcoder", "refact", "command-r", "qwen2"] {
        let path = folder.join(format!("ggml-vocab-{name}.gguf"));
        let files = files(&GgufFile::open(&path).unwrap(), 1 << 20).unwrap();
        let tokenizer = tokenizer(&files);
        let vectors = vectors(&path);
        assert!(vectors.len() >= 40, "{name}: {} vectors", vectors.len());
        let wrong: Vec<_> =
            vectors.iter().filter(|(text, expected)| ids(&tokenizer, text, false) != *expected).collect();
        let first = wrong.first().map(|(text, expected)| (text, expected, ids(&tokenizer, text, false)));
        assert!(wrong.is_empty(), "{name}: {} of {} differ, the first: {first:?}", wrong.len(), vectors.len());
    }
}
