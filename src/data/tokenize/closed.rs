//! Closes the control tokens of a `tokenizer.json` to content, so that text such as `</s>` or `<|im_end|>` is spelled
//! out like any other text.
//!
//! Three doors lead from text to a control token: the list of added tokens, a merge that ends in its name (names of
//! control tokens are often in the model's vocabulary too), and `ignore_merges`, which takes whole words. Renaming the
//! token, everywhere it stands, to a name that holds a plain space shuts all three: byte-level and metaspace
//! vocabularies both write the space differently, so that no text can spell it. Ids keep their places.

use std::collections::HashMap;

use serde_json::Value;

/// Renames the tokens of `closed` (name → id) in a parsed `tokenizer.json`, and removes what adds to plain content:
/// post-processor, truncation, padding and BPE dropout.
pub fn close(tokenizer: &mut Value, closed: &HashMap<String, u32>) {
    for key in ["post_processor", "truncation", "padding"] {
        tokenizer[key] = Value::Null;
    }
    let unreachable = |name: &str| closed.get(name).map(|id| format!("\u{1} closed {id}"));
    for token in tokenizer["added_tokens"].as_array_mut().into_iter().flatten() {
        let Some(name) = token["content"].as_str().and_then(unreachable) else { continue };
        token["content"] = name.into();
        // The library skips special tokens when told to; ordinary ones it would always look for.
        token["special"] = true.into();
        for flag in ["normalized", "lstrip", "rstrip", "single_word"] {
            token[flag] = false.into();
        }
    }
    let model = &mut tokenizer["model"];
    if !model["dropout"].is_null() {
        model["dropout"] = Value::Null;
    }
    if let Some(name) = model["unk_token"].as_str().and_then(unreachable) {
        model["unk_token"] = name.into();
    }
    match &mut model["vocab"] {
        Value::Object(vocabulary) => {
            for name in closed.keys() {
                if let (Some(id), Some(new)) = (vocabulary.swap_remove(name), unreachable(name)) {
                    vocabulary.insert(new, id);
                }
            }
        }
        // Unigram: pairs of piece and score, the id is the place.
        Value::Array(pieces) => {
            for piece in pieces {
                if let Some(name) = piece[0].as_str().and_then(unreachable) {
                    piece[0] = name.into();
                }
            }
        }
        _ => {}
    }
    if let Some(merges) = model["merges"].as_array_mut() {
        merges.retain(|merge| merge_parts(merge).is_none_or(|(left, right)| !touches(closed, left, right)));
    }
}

/// A merge's two parts: `["a", "b"]`, or `"a b"` in older files.
fn merge_parts(merge: &Value) -> Option<(&str, &str)> {
    match merge {
        Value::String(merge) => merge.split_once(' '),
        Value::Array(parts) => Some((parts.first()?.as_str()?, parts.get(1)?.as_str()?)),
        _ => None,
    }
}

/// Whether a merge makes a closed token or is made of one.
fn touches(closed: &HashMap<String, u32>, left: &str, right: &str) -> bool {
    let length = left.len() + right.len();
    let makes = |name: &String| name.len() == length && name.starts_with(left) && name.ends_with(right);
    closed.contains_key(left) || closed.contains_key(right) || closed.keys().any(makes)
}
