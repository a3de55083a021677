//! Text with control tokens between it, as templates write it, to ids.
//!
//! The text between two control tokens is a section. Each is encoded on its own, as the tokenizers library does it, and
//! closed to control tokens, as all text is ([`super::closed`]); the control tokens are given by place, never found.
//!
//! Invariant: the ids up to a mark depend on the text up to that mark alone. Tokens may form across a mark (a line end
//! of the prompt and one of the answer give one token in many vocabularies), and then a prompt would not be the
//! beginning of its own training example. So a section is encoded up to each mark in turn, and where a longer stretch
//! does not begin with the ids of the shorter one, it is cut at the mark. Without such a meeting the ids are those of
//! the whole section.

use std::collections::HashMap;
use std::ops::Range;

use serde_json::Value;
use tokenizers::{NormalizerWrapper, PreTokenizerWrapper};

use super::Tokenizer;
use crate::error::{Error, Result};

/// A token that only templates can write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlToken {
    /// Its text, such as `<|im_start|>`.
    pub text: String,
    /// Its id.
    pub id: u32,
    /// Whether it swallows the white space before it.
    lstrip: bool,
    /// Whether it swallows the white space behind it.
    rstrip: bool,
}

/// A control token in a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlPlace {
    /// The bytes its name takes up.
    pub range: Range<usize>,
    /// Its id.
    pub id: u32,
}

/// Ids of a text, and where its marks are among them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MarkedIds {
    /// The ids.
    pub ids: Vec<u32>,
    /// For each mark the number of ids before it.
    pub marks: Vec<usize>,
}

/// The control tokens of a parsed `tokenizer.json`, `closed` by name, longest name first: the first that fits is the
/// longest.
pub(super) fn control_tokens(tokenizer: &Value, closed: &HashMap<String, u32>) -> Vec<ControlToken> {
    let added = tokenizer["added_tokens"].as_array();
    let flag = |text: &str, flag: &str| {
        added.into_iter().flatten().any(|token| token["content"] == text && token[flag] == Value::Bool(true))
    };
    let mut tokens: Vec<ControlToken> = closed
        .iter()
        .filter(|(text, _)| !text.is_empty())
        .map(|(text, &id)| ControlToken {
            text: text.clone(),
            id,
            lstrip: flag(text, "lstrip"),
            rstrip: flag(text, "rstrip"),
        })
        .collect();
    tokens.sort_by(|a, b| b.text.len().cmp(&a.text.len()).then_with(|| a.text.cmp(&b.text)));
    tokens
}

/// What a tokenizer puts before text: SentencePiece vocabularies write a space before the first word.
#[derive(Debug, Clone, Default)]
pub(super) struct Prefixing {
    /// Normalizer and pre-tokenizer that put nothing before text; none where the tokenizer never does.
    without: Option<(Option<NormalizerWrapper>, Option<PreTokenizerWrapper>)>,
    /// Whether only text at the very start is prefixed, not that behind a control token.
    first_only: bool,
}

impl Prefixing {
    /// Reads it from a parsed `tokenizer.json`.
    ///
    /// # Errors
    /// Parts that the library refuses.
    pub(super) fn of(tokenizer: &Value) -> serde_json::Result<Prefixing> {
        let (mut normalizer, mut pre_tokenizer) = (tokenizer["normalizer"].clone(), tokenizer["pre_tokenizer"].clone());
        let mut prefixing = Prefixing { without: None, first_only: has_first_only(&pre_tokenizer) };
        let (from_normalizer, from_pre_tokenizer) = (unprefix(&mut normalizer), unprefix(&mut pre_tokenizer));
        if from_normalizer || from_pre_tokenizer {
            let normalizer = serde_json::from_value(normalizer)?;
            prefixing.without = Some((normalizer, serde_json::from_value(pre_tokenizer)?));
        }
        Ok(prefixing)
    }

    /// Whether anything is put before a text.
    pub(super) fn changes_text(&self) -> bool {
        self.without.is_some()
    }
}

fn has_first_only(part: &Value) -> bool {
    let inner = part["pretokenizers"].as_array().into_iter().flatten();
    part["prepend_scheme"] == "first" || inner.into_iter().any(has_first_only)
}

/// Takes the prefix out of a normalizer or pre-tokenizer; returns whether there was one.
fn unprefix(part: &mut Value) -> bool {
    match part["type"].as_str() {
        Some("Prepend") => {
            *part = serde_json::json!({"type": "Sequence", "normalizers": []});
            true
        }
        Some("Metaspace") => {
            let prefixed = part["prepend_scheme"] != "never";
            part["prepend_scheme"] = "never".into();
            if !part["add_prefix_space"].is_null() {
                part["add_prefix_space"] = false.into();
            }
            prefixed
        }
        Some("ByteLevel") => std::mem::replace(&mut part["add_prefix_space"], false.into()) == Value::Bool(true),
        Some("Sequence") => {
            let key = if part["normalizers"].is_array() { "normalizers" } else { "pretokenizers" };
            let parts = part[key].as_array_mut().into_iter().flatten();
            parts.fold(false, |any, part| unprefix(part) | any)
        }
        _ => false,
    }
}

impl Tokenizer {
    /// The control tokens, longest name first.
    pub fn control_tokens(&self) -> &[ControlToken] {
        &self.controls
    }

    /// Every control token named in `text`, in order: the leftmost, and of those the longest.
    pub fn find_controls(&self, text: &str) -> Vec<ControlPlace> {
        let mut starts = [false; 256];
        self.controls.iter().for_each(|token| starts[token.text.as_bytes()[0] as usize] = true);
        let (bytes, mut at, mut found) = (text.as_bytes(), 0, Vec::new());
        while at < bytes.len() {
            if !starts[bytes[at] as usize] {
                at += 1;
                continue;
            }
            match self.controls.iter().find(|token| bytes[at..].starts_with(token.text.as_bytes())) {
                Some(token) => {
                    found.push(ControlPlace { range: at..at + token.text.len(), id: token.id });
                    at += token.text.len();
                }
                None => at += 1,
            }
        }
        found
    }

    /// The ids of `text` with the control tokens `controls` (ascending, apart from each other), and where `marks`
    /// (ascending byte positions, none inside a control token) fall among them.
    ///
    /// # Errors
    /// As [`Tokenizer::encode_plain`].
    pub fn encode_marked(&self, text: &str, controls: &[ControlPlace], marks: &[usize]) -> Result<MarkedIds> {
        let mut result = MarkedIds::default();
        let end = ControlPlace { range: text.len()..text.len(), id: 0 };
        let mut start = 0;
        for (index, control) in controls.iter().chain([&end]).enumerate() {
            let before = index.checked_sub(1).map(|last| controls[last].id);
            let after = (index < controls.len()).then_some(control.id);
            let section = self.strip(text, start..control.range.start, before, after);
            let first = result.marks.len();
            let here: Vec<usize> = marks[first..].iter().copied().take_while(|&m| m <= control.range.start).collect();
            self.encode_section(text, section, &here, &mut result)?;
            if let Some(id) = after {
                self.check_embedding(text, &[id])?;
                result.ids.push(id);
            }
            start = control.range.end;
        }
        assert_eq!(result.marks.len(), marks.len(), "marks ascend and lie outside control tokens");
        Ok(result)
    }

    /// `section` without the white space that the control tokens around it swallow.
    fn strip(&self, text: &str, section: Range<usize>, before: Option<u32>, after: Option<u32>) -> Range<usize> {
        let token = |id: Option<u32>| self.controls.iter().find(|token| Some(token.id) == id);
        let (mut start, mut end) = (section.start, section.end);
        if token(before).is_some_and(|token| token.rstrip) {
            start = end - text[start..end].trim_start().len();
        }
        if token(after).is_some_and(|token| token.lstrip) {
            end = start + text[start..end].trim_end().len();
        }
        start..end
    }

    fn encode_section(&self, text: &str, section: Range<usize>, marks: &[usize], result: &mut MarkedIds) -> Result<()> {
        // The stretch since the last cut, as far as it is encoded.
        let (mut cut, mut reached) = (section.start, section.start);
        let mut stretch: Vec<u32> = Vec::new();
        for (index, &mark) in marks.iter().chain([&section.end]).enumerate() {
            let mark = mark.clamp(section.start, section.end);
            if mark > reached {
                let longer = self.encode_part(&text[cut..mark], cut == 0, cut > section.start)?;
                if longer.starts_with(&stretch) {
                    stretch = longer;
                } else {
                    result.ids.append(&mut stretch);
                    cut = reached;
                    stretch = self.encode_part(&text[cut..mark], false, true)?;
                }
                reached = mark;
            }
            if index < marks.len() {
                result.marks.push(result.ids.len() + stretch.len());
            }
        }
        result.ids.append(&mut stretch);
        Ok(())
    }

    /// Part of a text: at its very start, behind a control token, or (`cut`) in the middle of a section.
    fn encode_part(&self, text: &str, first: bool, cut: bool) -> Result<Vec<u32>> {
        self.encode_long(text, !cut && (first || !self.prefixing.first_only))
    }

    /// The tokenizer that puts nothing before text.
    pub(super) fn continuing(&self) -> Result<&tokenizers::Tokenizer> {
        let Some((normalizer, pre_tokenizer)) = &self.prefixing.without else { return Ok(&self.plain) };
        let failed = |error: tokenizers::Error| Error::file(&self.path, error);
        if self.continuing.get().is_none() {
            let mut continuing = self.plain.clone();
            continuing.with_normalizer(normalizer.clone()).map_err(failed)?;
            continuing.with_pre_tokenizer(pre_tokenizer.clone());
            // Another thread may have been faster; its value is the same.
            let _ = self.continuing.set(continuing);
        }
        Ok(self.continuing.get().unwrap_or(&self.plain))
    }
}

#[cfg(test)]
#[path = "section_tests.rs"]
mod tests;
