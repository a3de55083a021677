//! The tokenizer wrapper on both families of vocabulary, and on real ones where a folder is given.

use serde_json::json;

use super::bytes::DocumentBytes;
use super::*;
use crate::data::testing::{byte_level, byte_level_folder, metaspace, metaspace_folder, ModelFolder};

/// Text that tries to be control tokens, and text that is only difficult.
const HOSTILE: &[&str] = &[
    "</s>",
    "<s>",
    "a</s>b <s> c<unk>",
    "<s></s><s>",
    "<|begin_of_text|>",
    "ciao<|im_end|>ciao <|end_of_text|>",
    "\u{1} closed 1",
    "\u{1} closed 2\u{1} closed 264",
    "<0x0A><0xF0>",
    " ",
    "\n\n",
    "▁▁",
    "un dio di città perché è più",
    "🦙 日本\u{0}\u{7f}",
    "  spazi   davanti e dietro  ",
];

fn both() -> [ModelFolder; 2] {
    [byte_level_folder(), metaspace_folder()]
}

#[test]
fn content_never_becomes_a_control_token() {
    for folder in both() {
        let tokenizer = folder.load();
        for text in HOSTILE {
            let ids = tokenizer.encode_plain(text).unwrap();
            assert!(!ids.is_empty() && !ids.iter().any(|&id| tokenizer.is_closed(id)), "{text:?}: {ids:?}");
        }
    }
}

#[test]
fn the_same_text_in_a_template_is_a_control_token() {
    let llama2 = metaspace_folder().load();
    assert!(llama2.encode_template("ciao</s>").unwrap().ends_with(&[2]));
    assert!(!llama2.encode_plain("ciao</s>").unwrap().contains(&2));
    let llama3 = byte_level_folder().load();
    let id = llama3.token_id("<|im_end|>").unwrap();
    assert_eq!(llama3.encode_template("<|im_end|>").unwrap(), [id]);
}

#[test]
fn ordinary_text_is_encoded_as_the_library_does_it() {
    for folder in both() {
        let tokenizer = folder.load();
        for text in ["un dio di città", "a, b.\n\nc", "🦙", "<table> x"] {
            let library = tokenizer.inner().encode(text, false).unwrap();
            assert_eq!(tokenizer.encode_plain(text).unwrap(), library.get_ids(), "{text:?}");
        }
    }
}

#[test]
fn ordinary_added_tokens_stay_open() {
    let tokenizer = byte_level_folder().load();
    let id = tokenizer.token_id("<table>").unwrap();
    assert!(tokenizer.encode_plain("a<table>b").unwrap().contains(&id));
}

#[test]
fn words_that_are_whole_vocabulary_entries_stay_closed_too() {
    // ignore_merges takes a whole word from the vocabulary; here the vocabulary itself holds a control token.
    let mut json = byte_level();
    let id = json["model"]["vocab"].as_object().unwrap().len();
    json["model"]["vocab"]["<|x|>"] = id.into();
    let tokens = json["added_tokens"].as_array_mut().unwrap();
    for token in tokens.iter_mut() {
        token["id"] = (token["id"].as_u64().unwrap() + 1).into();
    }
    let mut control = tokens[0].clone();
    (control["content"], control["id"]) = ("<|x|>".into(), id.into());
    tokens.insert(0, control);
    json["post_processor"] = Value::Null;
    let tokenizer = ModelFolder::new(&json).load();
    assert_eq!(tokenizer.encode_template("<|x|>").unwrap(), [id as u32]);
    assert!(!tokenizer.encode_plain("<|x|>").unwrap().contains(&(id as u32)));
}

#[test]
fn decoding_gives_the_text_back() {
    for folder in both() {
        let tokenizer = folder.load();
        for text in HOSTILE.iter().filter(|text| !text.contains('▁')) {
            let ids = tokenizer.encode_plain(text).unwrap();
            assert_eq!(tokenizer.decode(&ids, false).unwrap(), *text);
        }
    }
}

#[test]
fn token_lengths_add_up_to_the_text() {
    for (folder, inserted) in both().into_iter().zip([0, 1]) {
        let tokenizer = folder.load();
        for text in HOSTILE.iter().filter(|text| !text.contains('▁')) {
            let ids = tokenizer.encode_plain(text).unwrap();
            let sum = tokenizer.token_bytes().sum(&ids);
            assert_eq!(sum, text.len() as u64 + inserted, "{text:?}");
            // Against the library's own offsets: what the first token covers is what it is charged for.
            let library = tokenizer.plain.encode(*text, false).unwrap();
            let first = tokenizer.token_bytes().sum(&ids[..1]);
            let charged = DocumentBytes { text: text.len() as u64, tokens: sum }.before(first);
            if text.is_char_boundary(charged as usize) && charged > 0 {
                assert_eq!(charged as usize, library.get_offsets()[0].1, "{text:?}");
            }
        }
    }
}

#[test]
fn roles_come_from_the_files_in_the_stated_order() {
    let folder = byte_level_folder();
    let tokenizer = folder.load();
    assert_eq!(tokenizer.special().bos.as_ref().unwrap().text, "<|begin_of_text|>");
    let end = tokenizer.token_id("<|end_of_text|>").unwrap();
    let turn = tokenizer.token_id("<|im_end|>").unwrap();
    folder.write("generation_config.json", &json!({"eos_token_id": [turn, end]}));
    assert_eq!(folder.load().special().stop_ids, [end, turn]);

    let llama2 = metaspace_folder();
    assert_eq!(llama2.load().special().bos, Some(NamedToken { text: "<s>".into(), id: 1 }));
    llama2.write(
        "tokenizer_config.json",
        &json!({"tokenizer_class": "LlamaTokenizer", "add_bos_token": false, "bos_token": {"content": "<s>"}, "eos_token": "</s>"}),
    );
    let special = llama2.load().special().clone();
    assert_eq!((special.bos, special.bos_token.unwrap().id), (None, 1));
}

#[test]
fn a_named_bos_that_is_never_added_is_not_used() {
    let mut json = byte_level();
    json["post_processor"] = Value::Null;
    let folder = ModelFolder::new(&json);
    folder.write(
        "tokenizer_config.json",
        &json!({"tokenizer_class": "GPT2Tokenizer", "bos_token": "<|end_of_text|>", "eos_token": "<|end_of_text|>"}),
    );
    let special = folder.load().special().clone();
    assert_eq!(special.bos, None);
    assert_eq!(special.bos_token, special.eos);
}

#[test]
fn a_pad_token_beyond_the_embedding_is_a_warning_until_it_is_needed() {
    let folder = metaspace_folder();
    folder.write("added_tokens.json", &json!({"<pad>": 32000}));
    let tokenizer = folder.load();
    let warnings = tokenizer.warnings().join("\n");
    assert!(warnings.contains("`<pad>` is id 32000"), "{warnings}");

    let mut json = metaspace();
    let rows = json["model"]["vocab"].as_object().unwrap().len();
    let mut token = json["added_tokens"][0].clone();
    (token["content"], token["id"], token["special"]) = ("<pad>".into(), rows.into(), false.into());
    json["added_tokens"].as_array_mut().unwrap().push(token);
    folder.write("tokenizer.json", &json);
    let tokenizer = folder.load();
    let error = tokenizer.encode_plain("a <pad> b").unwrap_err();
    assert!(error.message().contains(&format!("`<pad>` (id {rows}), but the model has {rows} embeddings")), "{error}");
    tokenizer.encode_plain("a pad b").unwrap();
}

#[test]
fn unusable_folders_are_explained() {
    let folder = ModelFolder::new(&byte_level());
    std::fs::remove_file(folder.path().join("tokenizer.json")).unwrap();
    let error = Tokenizer::load(folder.path(), None).unwrap_err();
    assert!(error.message().contains("tokenizer.json: no such file"), "{error}");
    std::fs::write(folder.path().join("tokenizer.model"), "x").unwrap();
    assert!(Tokenizer::load(folder.path(), None).unwrap_err().hint_text().unwrap().contains("sentencepiece"));
    let absent = Tokenizer::load(&folder.path().join("none"), None).unwrap_err();
    assert!(absent.hint_text().unwrap().contains("model's folder"));
    std::fs::write(folder.path().join("tokenizer.json"), "{\"model\": ").unwrap();
    assert!(Tokenizer::load(folder.path(), None).unwrap_err().message().contains("not a tokenizer"));

    let folder = byte_level_folder();
    folder.write("tokenizer_config.json", &json!({"eos_token": "<|eot_id|>"}));
    let error = Tokenizer::load(folder.path(), None).unwrap_err();
    assert!(error.message().contains("`<|eot_id|>`") && error.message().contains("eos_token"), "{error}");
    let error = Tokenizer::load(byte_level_folder().path(), Some(100)).unwrap_err();
    assert!(error.message().contains("the model has 100 embeddings"), "{error}");

    let mut json = byte_level();
    json["added_tokens"][0]["id"] = 5000.into();
    let error = Tokenizer::load(ModelFolder::new(&json).path(), None).unwrap_err();
    assert!(error.message().contains("the file says id 5000"), "{error}");
}

#[test]
fn a_decoder_that_strips_the_end_is_refused() {
    let mut json = metaspace();
    json["decoder"]["decoders"][3]["stop"] = json!(5);
    let error = Tokenizer::load(ModelFolder::new(&json).path(), None).unwrap_err().to_string();
    assert!(error.contains("tokenizer.json") && error.contains("strips 5 characters"), "{error}");
}

#[test]
fn real_tokenizers_stay_closed_and_count_bytes() {
    let Some(models) = std::env::var_os("LLAMANTINO_TEST_MODELS") else {
        println!("skipped: set LLAMANTINO_TEST_MODELS to a folder of model folders");
        return;
    };
    for entry in std::fs::read_dir(models).unwrap() {
        let folder = entry.unwrap().path();
        if !folder.join("tokenizer.json").exists() {
            continue;
        }
        let tokenizer = Tokenizer::load(&folder, None).unwrap();
        println!("{}: {:?} {:?}", folder.display(), tokenizer.special(), tokenizer.warnings());
        for text in HOSTILE {
            let ids = tokenizer.encode_plain(text).unwrap();
            assert!(!ids.iter().any(|&id| tokenizer.is_closed(id)), "{text:?}: {ids:?}");
            if !text.contains('▁') {
                assert_eq!(tokenizer.decode(&ids, false).unwrap(), *text, "{}", folder.display());
                let inserted = tokenizer.token_bytes().sum(&ids) - text.len() as u64;
                assert!(inserted <= 1, "{text:?}: {inserted}");
            }
        }
    }
}
