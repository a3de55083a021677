//! How many bytes of text each token stands for.
//!
//! Needed for bits per byte, which compares models with different tokenizers. A token's length follows from its name
//! and the family of the vocabulary: byte-level (one character a byte, GPT-2's alphabet) or metaspace with byte
//! fallback (`▁` for a space, `<0xNN>` for a byte). [`DocumentBytes`] makes the lengths of a document add up exactly
//! to the text's, whatever the tokenizer did to its beginning.

use serde_json::Value;

/// Bytes of text per token id; 0 for closed tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenBytes(Vec<u32>);

/// How a vocabulary writes bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alphabet {
    /// One character of GPT-2's alphabet a byte.
    ByteLevel,
    /// UTF-8 text, `▁` for a space, `<0xNN>` for single bytes.
    Metaspace,
}

impl Alphabet {
    /// The alphabet of a parsed `tokenizer.json`.
    pub fn of(tokenizer: &Value) -> Alphabet {
        let byte_level = |part: &Value| part.to_string().contains("\"ByteLevel\"");
        if byte_level(&tokenizer["decoder"]) || byte_level(&tokenizer["pre_tokenizer"]) {
            Alphabet::ByteLevel
        } else {
            Alphabet::Metaspace
        }
    }

    /// Bytes of text that a vocabulary entry stands for.
    pub fn length(self, token: &str) -> usize {
        match self {
            Alphabet::ByteLevel => token.chars().count(),
            Alphabet::Metaspace if is_byte(token) => 1,
            Alphabet::Metaspace => token.chars().map(|c| if c == '▁' { 1 } else { c.len_utf8() }).sum(),
        }
    }
}

fn is_byte(token: &str) -> bool {
    let digits = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    digits.is_some_and(|digits| digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_hexdigit()))
}

impl TokenBytes {
    /// From one length per id.
    pub fn new(lengths: Vec<u32>) -> TokenBytes {
        TokenBytes(lengths)
    }

    /// Bytes of one token by its name.
    pub fn length(&self, id: u32) -> u64 {
        self.0.get(id as usize).copied().unwrap_or(0).into()
    }

    /// Bytes of `ids` by their names; what the tokenizer inserted before the text is included.
    pub fn sum(&self, ids: &[u32]) -> u64 {
        ids.iter().map(|&id| self.length(id)).sum()
    }
}

/// The byte account of one document: its length as text and as the sum of its tokens.
///
/// They agree for byte-level vocabularies; with a metaspace one the first token usually holds one inserted space, which
/// is taken off it. Where they differ otherwise (a normaliser that rewrites text, unknown characters), bytes are
/// apportioned so that the document's total stays exact.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DocumentBytes {
    /// UTF-8 bytes of the text.
    pub text: u64,
    /// Sum of its tokens' lengths.
    pub tokens: u64,
}

impl DocumentBytes {
    /// Bytes of text before the place where the tokens' lengths add up to `tokens`.
    pub fn before(self, tokens: u64) -> u64 {
        match self.tokens.checked_sub(self.text) {
            Some(0) => tokens,
            Some(1) => tokens.saturating_sub(1),
            _ if self.tokens == 0 => 0,
            _ => (u128::from(tokens) * u128::from(self.text) / u128::from(self.tokens)) as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_their_bytes() {
        for (alphabet, token, bytes) in [
            (Alphabet::ByteLevel, "Ġè", 2),
            (Alphabet::ByteLevel, "Ã¨", 2),
            (Alphabet::Metaspace, "▁è", 3),
            (Alphabet::Metaspace, "<0xF0>", 1),
            (Alphabet::Metaspace, "<0xFG>", 6),
            (Alphabet::Metaspace, "▁▁▁", 3),
        ] {
            assert_eq!(alphabet.length(token), bytes, "{token}");
        }
    }

    #[test]
    fn parts_of_a_document_add_up_to_its_text() {
        for (text, tokens) in [(10, 10), (10, 11), (10, 33), (33, 10), (10, 0)] {
            let document = DocumentBytes { text, tokens };
            let ends: Vec<u64> = (0..=tokens).map(|place| document.before(place)).collect();
            assert!(ends.is_sorted() && ends[0] == 0);
            assert_eq!(ends[tokens as usize], if tokens == 0 { 0 } else { text });
        }
    }
}
