//! Token ids to text, piece by piece, never cutting a character.
//!
//! The text of a prefix of ids is decoded again with each token, from the last place where the text was complete; a
//! tail of replacement characters (an unfinished UTF-8 sequence) is held back until later tokens finish it.

use crate::data::tokenize::Tokenizer;
use crate::error::Result;

/// Tokens of the context that are decoded along with the first new one.
const CONTEXT: usize = 8;

/// Turns a stream of ids into a stream of whole characters.
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    ids: Vec<u32>,
    /// Ids before this one are decoded only as context of those behind it.
    prefix: usize,
    /// Ids before this one were handed out.
    done: usize,
}

impl<'a> TextStream<'a> {
    /// A stream that continues `context`, whose own text is not handed out: tokenizers that write a space before a
    /// word drop it at the start of a text only.
    pub fn new(tokenizer: &'a Tokenizer, context: &[u32]) -> TextStream<'a> {
        let ids = context[context.len().saturating_sub(CONTEXT)..].to_vec();
        let done = ids.len();
        TextStream { tokenizer, ids, prefix: 0, done }
    }

    /// Adds a token; returns the text that became certain (may be empty).
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.ids.push(id);
        self.advance(false)
    }

    /// The rest, unfinished characters as U+FFFD.
    pub fn finish(&mut self) -> Result<String> {
        self.advance(true)
    }

    fn advance(&mut self, last: bool) -> Result<String> {
        let before = self.tokenizer.decode(&self.ids[self.prefix..self.done], true)?;
        let text = self.tokenizer.decode(&self.ids[self.prefix..], true)?;
        let unfinished = text.ends_with('\u{FFFD}') && !last;
        if unfinished || text.len() <= before.len() || !text.is_char_boundary(before.len()) {
            return Ok(String::new());
        }
        let piece = text[before.len()..].to_string();
        self.prefix = self.done;
        self.done = self.ids.len();
        Ok(piece)
    }
}
