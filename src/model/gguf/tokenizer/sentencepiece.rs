//! SentencePiece BPE with byte fallback (`llama`): LLaMA 1 and 2, TinyLlama, Mistral up to v0.3.
//!
//! The file has a score for each piece and no merges: SentencePiece joins the neighbours whose piece has the highest
//! score. The merges of tokenizer.json are every way to make a piece of two, in the order of falling scores, as
//! transformers derives them (`SentencePieceExtractor`). Spaces are written ▁, one is put before the text, and
//! characters without a piece fall apart into byte tokens `<0x00>`.

use super::{Parts, Role, Vocabulary};
use crate::error::Result;
use crate::model::gguf::file::GgufFile;
use serde_json::{json, Value};
use std::collections::HashMap;

const SCORES: &str = "tokenizer.ggml.scores";
/// Longest piece, in bytes, for which splits are tried: their number times their length is bounded by it. SentencePiece
/// allows 16 characters unless told otherwise.
const LONGEST_PIECE: usize = 512;

/// The parts of tokenizer.json. Errors: no scores, or not one for each token; text normalisation that is not known here.
pub(super) fn parts(file: &GgufFile, vocabulary: &Vocabulary) -> Result<Parts> {
    refuse_normalisation(file)?;
    let prefix = file.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let unknown = unknown(file, vocabulary)?;
    let mut normalizers = vec![json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"})];
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if prefix {
        normalizers.insert(0, json!({"type": "Prepend", "prepend": "▁"}));
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    Ok(Parts {
        normalizer: json!({"type": "Sequence", "normalizers": normalizers}),
        pre_tokenizer: Value::Null,
        decoder: json!({"type": "Sequence", "decoders": decoders}),
        model: json!({
            "type": "BPE",
            "dropout": null,
            "unk_token": unknown.and_then(|id| vocabulary.token(id)),
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": true,
            "byte_fallback": true,
            "ignore_merges": false,
            "vocab": vocabulary.json(),
            "merges": merges(file, vocabulary)?,
        }),
        post_processor: Value::Null,
        adds_bos: true,
        unknown,
    })
}

fn refuse_normalisation(file: &GgufFile) -> Result<()> {
    const SPACES: &str = "tokenizer.ggml.remove_extra_whitespaces";
    const CHARSMAP: &str = "tokenizer.ggml.precompiled_charsmap";
    let hint = "take tokenizer.json from the original model";
    if file.flag(SPACES)? == Some(true) {
        return Err(file.wrong(SPACES, "false: LLaMA tokenizers keep all spaces").hint(hint));
    }
    match file.numbers(CHARSMAP)?.is_some_and(|map| !map.is_empty()) {
        true => Err(file.wrong(CHARSMAP, "none: LLaMA tokenizers keep all characters").hint(hint)),
        false => Ok(()),
    }
}

/// The token for what cannot be encoded: the one of type 2, else the one that is named, else id 0.
fn unknown(file: &GgufFile, vocabulary: &Vocabulary) -> Result<Option<u32>> {
    if let Some(id) = vocabulary.roles.iter().position(|role| *role == Role::Unknown) {
        return Ok(Some(id as u32));
    }
    let named = file.whole("tokenizer.ggml.unknown_token_id")?.unwrap_or(0);
    Ok(u32::try_from(named).ok().filter(|&id| vocabulary.token(id).is_some()))
}

/// Every (left, right) that makes a piece, best score first; ways to make the same piece by the ids of their parts.
fn merges(file: &GgufFile, vocabulary: &Vocabulary) -> Result<Vec<String>> {
    let scores = file.numbers(SCORES)?.ok_or_else(|| file.wrong(SCORES, "a list of numbers"))?;
    if scores.len() != vocabulary.tokens.len() {
        return Err(file.wrong(SCORES, &format!("{} scores, one for each token", vocabulary.tokens.len())));
    }
    if let Some(index) = scores.iter().position(|score| !score.is_finite()) {
        return Err(file.error(format!("{SCORES}: entry {index}: expected a finite number, found {}", scores[index])));
    }
    // Control, byte and user-defined tokens are never made by merging.
    let normal = |id: u32| vocabulary.roles[id as usize] == Role::Normal;
    let pieces: HashMap<&str, u32> =
        vocabulary.ids.iter().filter(|(_, &id)| normal(id)).map(|(piece, &id)| (piece.as_str(), id)).collect();
    if let Some((piece, id)) = pieces.iter().find(|(piece, _)| piece.len() > LONGEST_PIECE) {
        let expected = format!("pieces of at most {LONGEST_PIECE} bytes");
        return Err(
            file.error(format!("tokenizer.ggml.tokens: entry {id}: expected {expected}, found {}", piece.len()))
        );
    }
    let splits = splits(&pieces);
    let score = |split: &Split<'_>| scores[split.whole as usize];
    let mut merges: Vec<_> =
        splits.into_iter().map(|split| (score(&split), split.ids.0, split.ids.1, split.left, split.right)).collect();
    if let Some((.., left, right)) = merges.iter().find(|(.., left, right)| left.contains(' ') || right.contains(' ')) {
        return Err(file.error(format!("tokenizer.ggml.tokens: a piece with a space in it: {left:?}{right:?}")));
    }
    merges.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    Ok(merges.into_iter().map(|(.., left, right)| format!("{left} {right}")).collect())
}

/// A piece as two other pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Split<'a> {
    /// Id of the piece.
    pub whole: u32,
    /// Ids of the two.
    pub ids: (u32, u32),
    /// Text of the first.
    pub left: &'a str,
    /// Text of the second.
    pub right: &'a str,
}

/// Every way to make a piece of two: what SentencePiece may join.
pub fn splits<'a>(pieces: &HashMap<&'a str, u32>) -> Vec<Split<'a>> {
    let mut splits = Vec::new();
    for (&piece, &whole) in pieces {
        for (at, _) in piece.char_indices().skip(1) {
            let (left, right) = piece.split_at(at);
            if let (Some(&left_id), Some(&right_id)) = (pieces.get(left), pieces.get(right)) {
                splits.push(Split { whole, ids: (left_id, right_id), left, right });
            }
        }
    }
    splits
}
