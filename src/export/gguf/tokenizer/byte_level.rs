//! Byte-level BPE: the name of the cut, and the merges.
//!
//! The format names the way in which text is cut before merging and says nothing else about it. The name is found by what
//! the tokenizer does: one whose pieces are those of a known cut on every probe is that cut, however its file spells it.
//! (llama.cpp's own converter goes by the tokens of one text.)

use super::PROBES;
use crate::error::{Error, Result};
use crate::export::gguf::metadata::text;
use crate::export::gguf::writer::{Metadata, Value};
use crate::model::gguf::tokenizer::byte_level::named_cuts;
use serde_json::Value as Json;
use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, PreTokenizerWrapper};

/// The keys of this kind.
///
/// # Errors
/// A cut or a normalisation that llama.cpp does not know; merges that are none.
pub fn keys(json: &Json, notes: &mut Vec<String>) -> Result<Metadata> {
    match json["normalizer"]["type"].as_str() {
        None => {}
        Some("NFC") => notes.push("the tokenizer composes characters (NFC) first; llama.cpp does not".into()),
        Some(kind) => {
            return Err(Error::failed(format!("normalizer: expected none, found {kind}"))
                .hint("llama.cpp normalises no text of byte-level models"));
        }
    }
    let whole = json["model"]["ignore_merges"] == Json::Bool(true);
    let name = name(&json["pre_tokenizer"], whole)?;
    Ok(vec![
        text("tokenizer.ggml.model", "gpt2"),
        text("tokenizer.ggml.pre", name),
        ("tokenizer.ggml.merges".into(), Value::Texts(merges(json)?)),
    ])
}

/// The name of the cut that does what this pre-tokenizer does.
fn name(pre_tokenizer: &Json, whole: bool) -> Result<&'static str> {
    let found = pieces(pre_tokenizer)?;
    for (name, known, takes_whole) in named_cuts() {
        if takes_whole == whole && pieces(&known)? == found {
            return Ok(name);
        }
    }
    let names: Vec<&str> = named_cuts().map(|(name, ..)| name).collect();
    let found: String = pre_tokenizer.to_string().chars().take(160).collect();
    Err(Error::failed(format!("pre_tokenizer: expected one that cuts as {} do, found {found}", names.join(", ")))
        .hint("llama.cpp cuts text only in the ways it has a name for; another cut would give the model other tokens"))
}

/// How the probes are cut.
fn pieces(pre_tokenizer: &Json) -> Result<Vec<Vec<String>>> {
    let wrong = |error: &dyn std::fmt::Display| Error::failed(format!("pre_tokenizer: {error}"));
    let pre_tokenizer: Option<PreTokenizerWrapper> =
        serde_json::from_value(pre_tokenizer.clone()).map_err(|error| wrong(&error))?;
    let cut = |probe: &&str| {
        let mut text = PreTokenizedString::from(*probe);
        if let Some(pre_tokenizer) = &pre_tokenizer {
            pre_tokenizer.pre_tokenize(&mut text).map_err(|error| wrong(&error))?;
        }
        let pieces = text.get_splits(OffsetReferential::Original, OffsetType::Byte);
        Ok(pieces.into_iter().map(|(piece, ..)| piece.to_string()).collect())
    };
    PROBES.iter().map(cut).collect()
}

/// `merges` of tokenizer.json, written as pairs or as texts.
fn merges(json: &Json) -> Result<Vec<String>> {
    let list = json["model"]["merges"].as_array().into_iter().flatten();
    let merge = |(index, merge): (usize, &Json)| {
        let text = match merge.as_array().map(Vec::as_slice) {
            Some([left, right]) => left.as_str().zip(right.as_str()).map(|(left, right)| format!("{left} {right}")),
            _ => merge.as_str().map(str::to_string),
        };
        text.filter(|text| text.matches(' ').count() == 1)
            .ok_or_else(|| Error::failed(format!("model.merges[{index}]: expected two tokens, found {merge}")))
    };
    list.enumerate().map(merge).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_known_cut_is_told_from_the_others() {
        let cuts: Vec<_> = named_cuts().collect();
        assert!(cuts.len() >= 7);
        for (name_of, pre_tokenizer, whole) in &cuts {
            assert_eq!(name(pre_tokenizer, *whole).unwrap(), *name_of);
        }
    }

    /// SmolLM2's spelling on the hub, LLaMA 3's, Qwen2's.
    #[test]
    fn another_spelling_of_a_cut_has_its_name() {
        let byte_level = |regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": regex});
        let split = |pattern: &str, behavior: &str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": false});
        let digits = json!({"type": "Digits", "individual_digits": true});
        let smollm = json!({"type": "Sequence", "pretokenizers": [split(r"\d", "Isolated"), byte_level(true)]});
        // \d is \p{Nd} alone, Digits takes every number.
        assert!(name(&smollm, false).is_err());
        let sequence = json!({"type": "Sequence", "pretokenizers": [digits, byte_level(true)]});
        assert_eq!(name(&sequence, false).unwrap(), "smollm");
        assert!(name(&sequence, true).is_err(), "no cut with digits takes pieces whole");
        let error = name(&json!({"type": "Whitespace"}), false).unwrap_err();
        assert!(error.message().contains("expected one that cuts as llama-bpe, smollm") && error.hint_text().is_some());
        let spaced = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
        assert!(name(&spaced, false).is_err(), "a space put before text");
    }

    #[test]
    fn merges_are_read_in_both_spellings() {
        let texts = json!({"model": {"merges": ["a b", "ab c"]}});
        let pairs = json!({"model": {"merges": [["a", "b"], ["ab", "c"]]}});
        assert_eq!(merges(&texts).unwrap(), ["a b", "ab c"]);
        assert_eq!(merges(&pairs).unwrap(), ["a b", "ab c"]);
        let error = merges(&json!({"model": {"merges": ["a b", 3]}})).unwrap_err();
        assert_eq!(error.message(), "model.merges[1]: expected two tokens, found 3");
        assert!(merges(&json!({"model": {"merges": [["a ", "b"]]}})).is_err());
    }
}
