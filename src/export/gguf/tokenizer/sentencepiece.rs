//! SentencePiece BPE: a score for each piece in place of the merges.
//!
//! llama.cpp joins the neighbours whose piece has the highest score. tokenizer.json has the merges in the order of falling
//! scores and not the scores; any scores that fall in that order give the same tokens, so the n-th piece made gets −n.
//! Pieces whose merges are mixed had one score (in LLaMA 2 the runs of spaces). All that holds only where the list has
//! every way to make a piece of two, as it does where it came from SentencePiece; a BPE trained otherwise is refused.

use super::Vocabulary;
use crate::error::{Error, Result};
use crate::export::gguf::metadata::text;
use crate::export::gguf::writer::{Metadata, Value};
use crate::model::gguf::tokenizer::sentencepiece::splits;
use crate::model::gguf::tokenizer::Role;
use serde_json::Value as Json;
use std::collections::HashMap;

/// The keys of this kind.
///
/// # Errors
/// Merges that no scores give; a normalisation that llama.cpp does not know.
pub fn keys(json: &Json, vocabulary: &Vocabulary, notes: &mut Vec<String>) -> Result<Metadata> {
    let prefix = puts_space_before(json, notes)?;
    Ok(vec![
        text("tokenizer.ggml.model", "llama"),
        text("tokenizer.ggml.pre", "default"),
        ("tokenizer.ggml.scores".into(), Value::F32s(scores(json, vocabulary)?)),
        ("tokenizer.ggml.add_space_prefix".into(), Value::Flag(prefix)),
    ])
}

/// Whether a space is put before text; spaces become ▁ in any case.
pub(super) fn puts_space_before(json: &Json, notes: &mut Vec<String>) -> Result<bool> {
    let (normalizer, pre_tokenizer) = (&json["normalizer"], &json["pre_tokenizer"]);
    let is_replace =
        |step: &Json| step["type"] == "Replace" && step["pattern"]["String"] == " " && step["content"] == "▁";
    let is_prepend = |step: &Json| step["type"] == "Prepend" && step["prepend"] == "▁";
    let steps = match normalizer["normalizers"].as_array() {
        Some(steps) => steps.as_slice(),
        None if normalizer.is_null() => &[],
        None => std::slice::from_ref(normalizer),
    };
    match (steps, pre_tokenizer["type"].as_str()) {
        ([prepend, replace], None) if is_prepend(prepend) && is_replace(replace) => Ok(true),
        ([replace], None) if is_replace(replace) => Ok(false),
        ([], Some("Metaspace")) if pre_tokenizer["split"] == false => {
            let scheme = pre_tokenizer["prepend_scheme"].as_str().unwrap_or("always");
            if scheme == "first" {
                notes.push(
                    "the tokenizer puts a space before the first text only; llama.cpp also puts one behind each control \
                     token"
                        .into(),
                );
            }
            Ok(scheme != "never")
        }
        _ => {
            let found: String = format!("{normalizer}, {pre_tokenizer}").chars().take(200).collect();
            Err(Error::failed(format!(
                "normalizer and pre_tokenizer: expected spaces as ▁ and nothing else, found {found}"
            ))
            .hint("llama.cpp normalises no text of LLaMA's SentencePiece models"))
        }
    }
}

/// A score for each token.
fn scores(json: &Json, vocabulary: &Vocabulary) -> Result<Vec<f32>> {
    let normal = |id: usize| vocabulary.roles[id] == Role::Normal;
    let pieces: HashMap<&str, u32> = (0..vocabulary.tokens.len())
        .filter(|&id| normal(id))
        .map(|id| (vocabulary.tokens[id].as_str(), id as u32))
        .collect();
    let ranks = ranks(json, &pieces)?;
    let mut scores = vec![0.0; vocabulary.tokens.len()];
    ranks.iter().for_each(|(&id, &rank)| scores[id as usize] = -(rank as f32));
    // What no merge makes, such as single characters, comes last, as in SentencePiece's files.
    let start = ranks.values().max().map_or(0, |last| last + 1);
    let rest = (0..scores.len()).filter(|&id| normal(id) && !ranks.contains_key(&(id as u32)));
    rest.zip(start..).for_each(|(id, rank)| scores[id] = -(rank as f32));
    Ok(scores)
}

/// The place of each piece that merges make in the order in which they prefer pieces; equal where they are mixed.
fn ranks(json: &Json, pieces: &HashMap<&str, u32>) -> Result<HashMap<u32, usize>> {
    let merges = json["model"]["merges"].as_array().map(Vec::as_slice).unwrap_or_default();
    // First and last merge of each piece.
    let mut spans: HashMap<u32, (usize, usize)> = HashMap::new();
    for (index, merge) in merges.iter().enumerate() {
        let parts = match merge.as_array().map(Vec::as_slice) {
            Some([left, right]) => left.as_str().zip(right.as_str()),
            _ => merge.as_str().and_then(|text| text.split_once(' ')),
        };
        let whole = parts.and_then(|(left, right)| pieces.get([left, right].concat().as_str()));
        let Some(&whole) = whole else {
            let expected = "expected two pieces that make one";
            return Err(Error::failed(format!("model.merges[{index}]: {expected}, found {merge}")));
        };
        spans.entry(whole).or_insert((index, index)).1 = index;
    }
    let ways = splits(pieces).len();
    if ways != merges.len() {
        let what = format!("model.merges: expected all {ways} ways to make a piece of two, found {}", merges.len());
        return Err(Error::failed(what)
            .hint("llama.cpp has no way to hold a BPE with byte fallback that SentencePiece did not make"));
    }
    let mut in_order: Vec<(u32, (usize, usize))> = spans.into_iter().collect();
    in_order.sort_unstable_by_key(|(_, span)| span.0);
    let (mut rank, mut end) = (0, 0);
    let ranked = in_order.into_iter().enumerate().map(|(index, (id, (first, last)))| {
        if index > 0 && first > end {
            rank += 1;
        }
        end = end.max(last);
        (id, rank)
    });
    Ok(ranked.collect())
}
