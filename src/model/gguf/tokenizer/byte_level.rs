//! Byte-level BPE (`gpt2`): GPT-2, LLaMA 3, SmolLM, Mistral Nemo and others.
//!
//! All share the alphabet of 256 printable stand-ins for bytes and a list of merges; they differ in how text is cut
//! before merging. The file only names the cut, in `tokenizer.ggml.pre`: here is what each name stands for, as the
//! tokenizer.json of the models says it. Reference: the pre-tokenizers of those models on the hub; `llama-vocab.cpp`
//! for which name is which.

use super::{Parts, Vocabulary};
use crate::error::Result;
use crate::model::gguf::file::GgufFile;
use serde_json::{json, Value};

const KEY: &str = "tokenizer.ggml.pre";

/// Contractions, words, numbers, symbols, spaces: what GPT-2 cuts.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// Numbers in groups of up to three digits.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// As LLaMA 3 with single digits.
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Words are cut where capitals begin.
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// How text is cut before merging.
enum Cut {
    /// GPT-2's pattern.
    Gpt2,
    /// Single digits, then GPT-2's pattern.
    Digits,
    /// One pattern.
    Pattern(&'static str),
    /// What llama.cpp does for models that name no cut.
    Default,
}

/// A named pre-tokenizer.
struct Pre {
    cut: Cut,
    /// Whether a piece that is a token is taken whole, and BOS put before text: the two go together in these models.
    whole: bool,
}

fn pre(name: &str) -> Option<Pre> {
    let (cut, whole) = match name {
        "default" => (Cut::Default, false),
        "llama-bpe" | "llama3" | "llama-v3" | "falcon3" | "pixtral" | "lfm2" => (Cut::Pattern(LLAMA3), true),
        "dbrx" | "smaug-bpe" => (Cut::Pattern(LLAMA3), false),
        "tekken" => (Cut::Pattern(TEKKEN), true),
        "qwen2" | "deepseek-r1-qwen" | "megrez" | "stablelm2" => (Cut::Pattern(QWEN2), false),
        "smollm" | "minerva-7b" | "starcoder" | "refact" | "command-r" | "codeshell" | "exaone" => (Cut::Digits, false),
        "gpt-2" | "phi-2" | "mpt" | "olmo" | "jais" | "gigachat" | "mellum" | "trillion" | "exaone4" => {
            (Cut::Gpt2, false)
        }
        _ => return None,
    };
    Some(Pre { cut, whole })
}

/// Every way of cutting that has a name: the name to write, `pre_tokenizer` of tokenizer.json, and whether a piece that
/// is a token is taken whole.
pub fn named_cuts() -> impl Iterator<Item = (&'static str, Value, bool)> {
    let names = ["llama-bpe", "smollm", "gpt-2", "qwen2", "tekken", "dbrx", "default"];
    names.into_iter().filter_map(|name| pre(name).map(|pre| (name, pre_tokenizer(&pre.cut), pre.whole)))
}

/// The parts of tokenizer.json. Errors: an unknown cut, merges that make no token.
pub(super) fn parts(file: &GgufFile, vocabulary: &Vocabulary, notes: &mut Vec<String>) -> Result<Parts> {
    let name = match file.text(KEY)? {
        Some(name) => name,
        None => {
            notes.push(format!(
                "{KEY} is missing: text is cut as llama.cpp does then, which may not be the model's way"
            ));
            "default"
        }
    };
    let Some(pre) = pre(name) else {
        let known = "default, gpt-2, llama-bpe, minerva-7b, qwen2, smollm, tekken or one of their kin";
        let hint =
            "take tokenizer.json from the original model; the weights can be imported from a copy with another name";
        return Err(file.wrong(KEY, known).hint(hint));
    };
    Ok(Parts {
        normalizer: Value::Null,
        pre_tokenizer: pre_tokenizer(&pre.cut),
        decoder: byte_level(true, true),
        model: json!({
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": pre.whole,
            "vocab": vocabulary.json(),
            "merges": merges(file, vocabulary)?,
        }),
        post_processor: byte_level(false, true),
        adds_bos: pre.whole,
        unknown: None,
    })
}

fn byte_level(trim_offsets: bool, use_regex: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": trim_offsets, "use_regex": use_regex})
}

fn split(pattern: &str) -> Value {
    json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false})
}

fn pre_tokenizer(cut: &Cut) -> Value {
    let digits = json!({"type": "Digits", "individual_digits": true});
    let steps = match cut {
        Cut::Gpt2 => return byte_level(true, true),
        Cut::Digits => vec![digits, byte_level(true, true)],
        Cut::Pattern(pattern) => vec![split(pattern), byte_level(true, false)],
        Cut::Default => {
            let patterns = [r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"];
            patterns.into_iter().map(split).chain([byte_level(true, false)]).collect()
        }
    };
    json!({"type": "Sequence", "pretokenizers": steps})
}

/// The merges as they are, each checked: two tokens that make a token.
fn merges(file: &GgufFile, vocabulary: &Vocabulary) -> Result<Vec<String>> {
    const MERGES: &str = "tokenizer.ggml.merges";
    let merges = file.texts(MERGES)?.ok_or_else(|| file.wrong(MERGES, "a list of texts"))?;
    for (index, merge) in merges.iter().enumerate() {
        let sound = merge.split_once(' ').is_some_and(|(left, right)| {
            let known = |text: &str| vocabulary.ids.contains_key(text);
            known(left) && known(right) && known(&[left, right].concat())
        });
        if !sound {
            let shown: String = merge.chars().take(80).collect();
            return Err(
                file.error(format!("{MERGES}: entry {index}: expected two tokens that make one, found {shown:?}"))
            );
        }
    }
    Ok(merges)
}
