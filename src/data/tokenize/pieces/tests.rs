//! Pieces against the whole: the same ids, on all families of tokenizers, with texts made to meet at the cuts.

use super::*;
use crate::data::testing::{byte_level, byte_level_folder, metaspace, metaspace_folder, ModelFolder};
use crate::ops::RandomStream;

const WORDS: &[&str] = &[
    "dio",
    "di",
    "città",
    "perché",
    "l'amico",
    "a",
    "🦙",
    "日本",
    "12",
    "3.5",
    "<s>",
    "</s>",
    "▁",
    "\u{1} closed 2",
    "io",
    "x>",
    "o",
    "È",
    "ŉß",
    "e\u{301}",
    "2×",
    "ɏ",
    "supercalifragilistichespiralidosamente",
];
const BETWEEN: &[&str] = &[" ", " ", " ", "  ", "\n", "\n\n", " \n ", "\t", "", ", ", "'s ", "\u{a0}", "."];

fn text(seed: u64, words: usize) -> String {
    let random = RandomStream::new(seed, 9);
    let pick = |list: &[&'static str], index: usize| list[random.word(index as u64) as usize % list.len()];
    (0..words).flat_map(|word| [pick(WORDS, 2 * word), pick(BETWEEN, 2 * word + 1)]).collect()
}

/// Ids of all pieces at once, and of each cut alone.
fn check(tokenizer: &Tokenizer, text: &str, least: usize) -> usize {
    let whole = tokenizer.encode_closed(&tokenizer.plain, text).unwrap();
    let pieces = tokenizer.cuts.split(text, least);
    assert_eq!(pieces.concat(), text);
    assert!(pieces[..pieces.len() - 1].iter().all(|piece| piece.len() >= least));
    let mut ids = Vec::new();
    for (place, piece) in pieces.iter().enumerate() {
        let tokenizers = if place == 0 { &tokenizer.plain } else { tokenizer.continuing().unwrap() };
        ids.extend(tokenizer.encode_closed(tokenizers, piece).unwrap());
    }
    assert_eq!(ids, whole, "{text:?} cut every {least}");
    // Looked up word by word: at first sight, at the second, when ids are kept, and from what was kept.
    for _ in 0..3 {
        assert_eq!(tokenizer.encode_plain(text).unwrap(), whole, "{text:?} in words");
    }
    let continuing = tokenizer.continuing().unwrap();
    let without_prefix = tokenizer.encode_closed(continuing, text).unwrap();
    assert_eq!(tokenizer.encode_long(text, false).unwrap(), without_prefix, "{text:?} in words, continuing");
    pieces.len()
}

fn llama3() -> ModelFolder {
    let mut json = byte_level();
    json["pre_tokenizer"] = serde_json::json!({"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": WORD_PATTERNS[0]}, "behavior": "Isolated", "invert": false},
        {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}]});
    ModelFolder::new(&json)
}

#[test]
fn pieces_have_the_ids_of_the_whole() {
    let mut smollm = byte_level();
    smollm["pre_tokenizer"] = serde_json::json!({"type": "Sequence", "pretokenizers": [
        {"type": "Digits", "individual_digits": true},
        {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}]});
    for folder in [metaspace_folder(), byte_level_folder(), llama3(), ModelFolder::new(&smollm)] {
        let tokenizer = folder.load();
        assert_ne!(tokenizer.cuts, Cuts::Nowhere);
        let mut cuts = 0;
        for seed in 0..300 {
            for least in [1, 7, 40] {
                cuts += check(&tokenizer, &text(seed, 40), least) - 1;
            }
        }
        assert!(cuts > 5000, "{cuts}");
    }
}

#[test]
fn long_texts_are_encoded_in_pieces() {
    for folder in [metaspace_folder(), byte_level_folder()] {
        let tokenizer = folder.load();
        let long = text(1, 20_000);
        assert!(long.len() > 5 * WHOLE_BYTES && check(&tokenizer, &long, PIECE_BYTES) > 5);
        assert_eq!(tokenizer.encode_plain(&long).unwrap(), tokenizer.encode_closed(&tokenizer.plain, &long).unwrap());
    }
    // Without a place to cut, the whole.
    let tokenizer = metaspace_folder().load();
    assert_eq!(tokenizer.cuts.split(&"a".repeat(50_000), PIECE_BYTES).len(), 1);
}

#[test]
fn tokenizers_without_the_proof_are_not_cut() {
    let cuts = |json: &Value| {
        Cuts::of(json, &|text| text.starts_with("<|") || text.starts_with("<s") || text == "</s>" || text == "<unk>")
    };
    assert_eq!(cuts(&byte_level()), Cuts::BehindLetter);
    let mut json = byte_level();
    json["normalizer"] = serde_json::json!({"type": "NFC"});
    assert_eq!(cuts(&json), Cuts::Nowhere);
    let mut json = byte_level();
    json["pre_tokenizer"]["add_prefix_space"] = true.into();
    assert_eq!(cuts(&json), Cuts::Nowhere);
    let mut json = byte_level();
    json["added_tokens"][3]["content"] = "due parole".into();
    assert_eq!(cuts(&json), Cuts::Nowhere);
    let mut json = byte_level();
    json["added_tokens"][3]["rstrip"] = true.into();
    assert_eq!(cuts(&json), Cuts::Nowhere);
    let mut json = metaspace();
    let next = json["model"]["vocab"].as_object().unwrap().len();
    json["model"]["vocab"]["o▁d"] = next.into();
    let Cuts::BeforeSpace(not_behind) = cuts(&json) else { panic!("no cuts") };
    assert!(not_behind.contains(&'o') && !not_behind.contains(&'i'));
    json["model"]["vocab"]["<0x0A>▁"] = (next + 1).into();
    assert_eq!(cuts(&json), Cuts::Nowhere);
    json["model"]["type"] = "Unigram".into();
    assert_eq!(cuts(&json), Cuts::Nowhere);
    let mut json = metaspace();
    json["model"]["vocab"].as_object_mut().unwrap().remove("▁");
    assert_eq!(cuts(&json), Cuts::Nowhere);
}

#[test]
fn the_bundled_texts_have_the_same_ids_in_words() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let tokenizer = Tokenizer::load(&root.join("data/quickstart/model"), None).unwrap();
    assert_eq!(tokenizer.cuts, Cuts::BehindLetter);
    let mut files = 0;
    for entry in std::fs::read_dir(root.join("data/italian/train")).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        check(&tokenizer, &text, 50);
        files += 1;
    }
    assert!(files > 30, "{files}");
}

#[test]
fn real_tokenizers_give_the_same_ids_in_pieces() {
    let Some(models) = std::env::var_os("LLAMANTINO_TEST_MODELS") else {
        println!("skipped: LLAMANTINO_TEST_MODELS is not set");
        return;
    };
    for name in ["llama2-tokenizer", "stories260K"] {
        let folder = std::path::Path::new(&models).join(name);
        let Ok(tokenizer) = Tokenizer::load(&folder, None) else { continue };
        let mut cuts = 0;
        for seed in 0..200 {
            for least in [1, 30] {
                cuts += check(&tokenizer, &text(seed, 60), least) - 1;
            }
        }
        assert!(cuts > 1000, "{name}: {cuts} cuts, {:?}", tokenizer.cuts);
    }
}
