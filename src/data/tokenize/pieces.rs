//! Long texts in pieces: where a text may be cut so that the ids of the pieces are the ids of the whole.
//!
//! Two families of tokenizers allow it; for all others a text is encoded whole.
//! - **Metaspace BPE** (LLaMA 2): a space becomes `▁`, and the whole text is one sequence of merges. A merge makes a
//!   token of the vocabulary; where no token holds `c▁` for some character `c`, no merge ever crosses the place between
//!   `c` and a space, so that both sides are merged as if they stood alone. The side behind it begins with its own `▁`
//!   and gets no further one in front.
//! - **Byte-level BPE with a word pattern** (GPT-2, LLaMA 3, Qwen 2): words are found from left to right, each match
//!   depends on what follows its beginning, and merges stay within words. In none of the known patterns does a match go
//!   on from a letter into white space, and a run of letters ends at the end of a text as it does before a space: so the
//!   place between a letter and a space or line end always lies between two matches, whatever stands on either side.
//!   Letters are here those of which every version of Unicode says so: of Latin up to U+024F.
//!
//! Neither holds where an added token of ordinary text spells such a place, or takes white space beside it. The same
//! places cut a text into words that are looked up ([`super::words`]).

use std::collections::HashSet;
use std::ops::Range;

use rayon::prelude::*;
use serde_json::Value;

use super::words::{Key, Known};
use super::Tokenizer;
use crate::error::Result;

/// Texts up to this many bytes are encoded by one thread.
pub const WHOLE_BYTES: usize = 16 << 10;
/// Pieces of longer ones are at least this long.
const PIECE_BYTES: usize = 8 << 10;

/// The patterns of LLaMA 3 and Qwen 2, beside the one that is built into `ByteLevel` (GPT-2's).
const WORD_PATTERNS: &[&str] = &[
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
];

/// Where texts may be cut.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) enum Cuts {
    /// Nowhere.
    #[default]
    Nowhere,
    /// Before a space, but not behind these characters.
    BeforeSpace(HashSet<char>),
    /// Between a Latin letter and a space or line end.
    BehindLetter,
}

impl Cuts {
    /// What the proof allows for a parsed `tokenizer.json`; `closed` tokens are not looked for in text.
    pub(super) fn of(tokenizer: &Value, closed: &dyn Fn(&str) -> bool) -> Cuts {
        if tokenizer["model"]["type"] != "BPE" {
            return Cuts::Nowhere;
        }
        let open = tokenizer["added_tokens"].as_array().into_iter().flatten();
        let open: Vec<&Value> = open.filter(|token| !token["content"].as_str().is_some_and(closed)).collect();
        let greedy = |token: &&&Value| ["lstrip", "rstrip", "single_word"].iter().any(|flag| token[*flag] == true);
        if open.iter().any(|token| greedy(&token)) {
            return Cuts::Nowhere;
        }
        let cuts = if is_metaspace(tokenizer) {
            before_space(tokenizer)
        } else if is_word_level(tokenizer) {
            Cuts::BehindLetter
        } else {
            Cuts::Nowhere
        };
        let spelt =
            open.iter().filter_map(|token| token["content"].as_str()).any(|text| cuts.places(text).next().is_some());
        if spelt {
            Cuts::Nowhere
        } else {
            cuts
        }
    }

    /// The places in `text` at which it may be cut, ascending.
    fn places<'a>(&'a self, text: &'a str) -> impl Iterator<Item = usize> + 'a {
        // A space or line end is a byte of its own, whatever stands around it.
        let bytes = text.bytes().enumerate().skip(1).filter(|(_, byte)| matches!(byte, b' ' | b'\n'));
        bytes.filter(|(place, byte)| self.allow(&text[..*place], *byte)).map(|(place, _)| place)
    }

    /// Whether a text may be cut behind `before`, where it goes on with a space or line end.
    fn allow(&self, before: &str, behind: u8) -> bool {
        let before = before.chars().next_back();
        match self {
            Cuts::Nowhere => false,
            Cuts::BeforeSpace(not_behind) => {
                behind == b' ' && before.is_some_and(|before| before != ' ' && !not_behind.contains(&before))
            }
            Cuts::BehindLetter => before.is_some_and(is_latin_letter),
        }
    }

    /// `text` cut at every place.
    fn words<'a>(&'a self, text: &'a str) -> impl Iterator<Item = &'a str> + 'a {
        let mut start = 0;
        let end = (!text.is_empty()).then_some(text.len());
        self.places(text).chain(end).map(move |place| &text[std::mem::replace(&mut start, place)..place])
    }

    /// `text` in pieces of at least `least` bytes (the last may be shorter).
    pub(super) fn split<'a>(&self, text: &'a str, least: usize) -> Vec<&'a str> {
        let (mut pieces, mut start) = (Vec::new(), 0);
        while text.len() - start > least {
            // The search begins inside the piece, at a character.
            let from = (start + least..text.len()).find(|&place| text.is_char_boundary(place)).unwrap_or(text.len());
            let from = text[start..from].char_indices().next_back().map_or(start, |(place, _)| start + place);
            let Some(cut) = self.places(&text[from..]).next() else { break };
            pieces.push(&text[start..from + cut]);
            start = from + cut;
        }
        pieces.push(&text[start..]);
        pieces
    }
}

/// Letters in every version of Unicode: `\p{L}` of any regex engine.
fn is_latin_letter(c: char) -> bool {
    c.is_ascii_alphabetic() || (matches!(c, '\u{c0}'..='\u{24f}') && c != '×' && c != '÷')
}

/// A space is written `▁`, and nothing but that and a prefix happens before the merges.
fn is_metaspace(tokenizer: &Value) -> bool {
    let replaces =
        |part: &Value| part["type"] == "Replace" && part["pattern"]["String"] == " " && part["content"] == "▁";
    let prepends = |part: &Value| part["type"] == "Prepend" && part["prepend"] == "▁";
    let normalizer = &tokenizer["normalizer"];
    let parts = normalizer["normalizers"].as_array().map(Vec::as_slice).unwrap_or_default();
    let normalizes = replaces(normalizer)
        || normalizer["type"] == "Sequence"
            && parts.iter().all(|part| replaces(part) || prepends(part))
            && parts.last().is_some_and(replaces);
    normalizes && tokenizer["pre_tokenizer"].is_null()
}

fn before_space(tokenizer: &Value) -> Cuts {
    let Some(vocabulary) = tokenizer["model"]["vocab"].as_object() else { return Cuts::Nowhere };
    // Without `▁` spaces are unknown characters, and unknown ones that touch may become one token.
    if !vocabulary.contains_key("▁") {
        return Cuts::Nowhere;
    }
    let mut not_behind = HashSet::new();
    for token in vocabulary.keys() {
        let pairs = token.chars().zip(token.chars().skip(1));
        not_behind.extend(pairs.filter(|(_, behind)| *behind == '▁').map(|(before, _)| before));
    }
    // A byte is written <0xNN>: a token that goes on from one into a space would be found under `>`.
    match not_behind.contains(&'>') {
        true => Cuts::Nowhere,
        false => Cuts::BeforeSpace(not_behind.into_iter().chain(['▁']).collect()),
    }
}

/// Byte-level with one of the patterns that are known, digits apart or not.
fn is_word_level(tokenizer: &Value) -> bool {
    let byte_level = |part: &Value| part["type"] == "ByteLevel" && part["add_prefix_space"] != true;
    let own_pattern = |part: &Value| byte_level(part) && part["use_regex"] != false;
    let digits = |part: &Value| part["type"] == "Digits";
    let words = |part: &Value| {
        let pattern = part["pattern"]["Regex"].as_str().unwrap_or_default();
        let isolated = part["behavior"] == "Isolated" && part["invert"] != true;
        part["type"] == "Split" && isolated && WORD_PATTERNS.contains(&pattern)
    };
    let part = &tokenizer["pre_tokenizer"];
    let parts = part["pretokenizers"].as_array().map(Vec::as_slice).unwrap_or_default();
    let known = match parts {
        [] => own_pattern(part),
        [first, second] => (digits(first) && own_pattern(second)) || (words(first) && byte_level(second)),
        _ => false,
    };
    known && tokenizer["normalizer"].is_null()
}

impl Tokenizer {
    /// The ids of content by `plain` (`prefixed`) or its sibling that puts nothing before text; long texts in pieces, on
    /// all threads.
    pub(super) fn encode_long(&self, text: &str, prefixed: bool) -> Result<Vec<u32>> {
        if text.len() <= WHOLE_BYTES || self.cuts == Cuts::Nowhere {
            return self.encode_words(text, prefixed);
        }
        let pieces = self.cuts.split(text, PIECE_BYTES);
        let encode = |(place, piece): (usize, &&str)| self.encode_words(piece, prefixed && place == 0);
        let ids: Vec<Vec<u32>> = pieces.par_iter().enumerate().map(encode).collect::<Result<_>>()?;
        Ok(ids.concat())
    }

    /// The ids of a text word by word, each looked up where it is known.
    fn encode_words(&self, text: &str, prefixed: bool) -> Result<Vec<u32>> {
        let continuing = self.continuing()?;
        let first = if prefixed { &self.plain } else { continuing };
        let known = if self.cuts == Cuts::Nowhere { None } else { self.words.own() };
        let Some(mut known) = known else { return self.encode_closed(first, text) };
        let mut ids = Vec::with_capacity(text.len() / 3);
        // Words since `start` that are still to be encoded, together.
        let (mut start, mut place) = (0, 0);
        let encode = |stretch: Range<usize>| match stretch.start {
            0 => self.encode_closed(first, &text[stretch]),
            _ => self.encode_closed(continuing, &text[stretch]),
        };
        for word in self.cuts.words(text) {
            let here = place..place + word.len();
            place = here.end;
            // What is put before a text changes the ids of its first word.
            let changed = here.start == 0 && prefixed && self.prefixing.changes_text();
            let Some(key) = Key::of(word).filter(|_| !changed) else { continue };
            let seen = match known.look_up(&key) {
                Known::Nothing => continue,
                Known::Seen => None,
                Known::Ids(found) => Some(found),
            };
            if start < here.start {
                ids.extend_from_slice(&encode(start..here.start)?);
            }
            start = here.end;
            match seen {
                Some(found) => ids.extend_from_slice(found),
                None => {
                    let encoded = encode(here)?;
                    known.put(&key, &encoded);
                    ids.extend_from_slice(&encoded);
                }
            }
        }
        if start < text.len() {
            ids.extend_from_slice(&encode(start..text.len())?);
        }
        Ok(ids)
    }
}

#[cfg(test)]
mod tests;
