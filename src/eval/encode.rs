//! Questions to tokens.
//!
//! Context and choice are encoded as one text and cut where the context alone ends, as lm-evaluation-harness does: white
//! space at the end of the context belongs to the choice. What is too long for the model loses its beginning.

use crate::data::tokenize::Tokenizer;
use crate::error::{Error, Result};

/// A text as tokens of which the last ones are scored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scored {
    /// The tokens; the last one is only predicted.
    pub ids: Vec<u32>,
    /// The first one that is scored; at least 1.
    pub from: usize,
    /// Whether the beginning was cut off.
    pub cut: bool,
}

/// How questions become tokens.
#[derive(Clone, Copy)]
pub struct Encoder<'a> {
    /// The model's.
    pub tokenizer: &'a Tokenizer,
    /// Whether the text begins with the BOS that the tokenizer puts in front.
    pub bos: bool,
    /// Most tokens that are read.
    pub context: usize,
}

impl Encoder<'_> {
    /// The BOS to begin with, if there is one.
    fn first(&self) -> Option<u32> {
        self.tokenizer.special().bos.as_ref().filter(|_| self.bos).map(|token| token.id)
    }

    /// `continuation` behind `context`, scored.
    ///
    /// # Errors
    /// Text that the tokenizer refuses; an empty continuation, or one that the context of the model cannot hold; an
    /// empty context where the model has no token to begin with.
    pub fn pair(&self, context: &str, continuation: &str) -> Result<Scored> {
        let trimmed = context.trim_end();
        let before = self.tokenizer.encode_plain(trimmed)?;
        let whole = self.tokenizer.encode_plain(&format!("{context}{continuation}"))?;
        let scored = whole.get(before.len()..).unwrap_or_default();
        if scored.is_empty() {
            return Err(Error::failed(format!("no token is left of {continuation:?} behind its context")));
        }
        if scored.len() > self.context {
            let count = scored.len();
            return Err(Error::failed(format!("a choice of {count} tokens: the model reads {}", self.context)));
        }
        let mut ids: Vec<u32> = self.first().into_iter().chain(before).collect();
        if ids.is_empty() {
            let special = self.tokenizer.special();
            let begin = special.bos_token.as_ref().or(special.eos.as_ref());
            let begin = begin.ok_or_else(|| Error::failed("an empty context, and the tokenizer has no BOS or EOS"))?;
            ids.push(begin.id);
        }
        let from = ids.len();
        ids.extend_from_slice(scored);
        let over = (ids.len() - 1).saturating_sub(self.context);
        Ok(Scored { ids: ids.split_off(over), from: from - over, cut: over > 0 })
    }

    /// `text` to be continued.
    ///
    /// # Errors
    /// Text that the tokenizer refuses.
    pub fn plain(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.first().into_iter().chain(self.tokenizer.encode_plain(text)?).collect())
    }
}

/// How many tokens all sequences begin with in common.
pub fn common_beginning<'a>(mut sequences: impl Iterator<Item = &'a [u32]>) -> usize {
    let Some(first) = sequences.next() else { return 0 };
    sequences.fold(first.len(), |common, ids| first[..common].iter().zip(ids).take_while(|(a, b)| a == b).count())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::testing::{byte_level_folder, metaspace_folder};

    #[test]
    fn the_choice_begins_where_the_context_ends() {
        let tokenizer = byte_level_folder().load();
        let encoder = Encoder { tokenizer: &tokenizer, bos: true, context: 100 };
        let pair = encoder.pair("casa", " di").unwrap();
        let bos = tokenizer.special().bos.as_ref().unwrap().id;
        let expected: Vec<u32> = [bos].into_iter().chain(tokenizer.encode_plain("casa di").unwrap()).collect();
        assert_eq!((pair.ids.as_slice(), pair.from), (expected.as_slice(), 5));
        assert_eq!(encoder.pair("casa ", "di").unwrap(), pair, "white space moves to the choice");
        let without = Encoder { bos: false, ..encoder }.pair("casa", " di").unwrap();
        assert_eq!((without.ids.as_slice(), without.from), (&expected[1..], 4));
    }

    #[test]
    fn long_contexts_lose_their_beginning_and_empty_ones_get_one() {
        let tokenizer = byte_level_folder().load();
        let encoder = Encoder { tokenizer: &tokenizer, bos: true, context: 4 };
        let pair = encoder.pair("abcdefgh", "xy").unwrap();
        assert_eq!(pair.ids, tokenizer.encode_plain("fghxy").unwrap());
        assert_eq!((pair.from, pair.cut), (3, true));
        assert!(encoder.pair("ab", "vwxyz").is_err());
        assert!(encoder.pair("ab", "").is_err());
        let plain = metaspace_folder().load();
        let empty = Encoder { tokenizer: &plain, bos: false, context: 9 }.pair("", "a").unwrap();
        assert_eq!((empty.ids[0], empty.from), (1, 1), "the BOS by name");
    }

    #[test]
    fn common_beginnings() {
        let sequences: [&[u32]; 3] = [&[1, 2, 3, 4], &[1, 2, 3], &[1, 2, 9]];
        assert_eq!(common_beginning(sequences.into_iter()), 2);
        assert_eq!(common_beginning(sequences[..1].iter().copied()), 4);
        assert_eq!(common_beginning(std::iter::empty()), 0);
    }
}
