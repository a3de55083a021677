//! A written example before it is encoded: its text, the control tokens in it, and where answers begin and end.

use std::ops::Range;

use super::{Rendered, Span, Trained};
use crate::data::tokenize::sections::ControlPlace;
use crate::data::tokenize::Tokenizer;
use crate::error::Result;

/// Text under construction.
#[derive(Debug, Default)]
pub struct Draft {
    /// The text, control tokens by name.
    pub text: String,
    /// The control tokens in it, in order.
    pub controls: Vec<ControlPlace>,
    /// Answers, each with the token that ends it, in order (bytes).
    pub answers: Vec<Range<usize>>,
    /// Places besides the beginnings of answers at which a prompt may end (bytes).
    pub prompt_ends: Vec<usize>,
    /// A token before the text that is not part of it.
    pub bos: Option<u32>,
    /// Whether names of control tokens in messages are control tokens.
    pub open_content: bool,
}

impl Draft {
    /// Adds text of the template: names of control tokens are control tokens.
    pub fn template_text(&mut self, tokenizer: &Tokenizer, text: &str) {
        let start = self.text.len();
        let found = tokenizer.find_controls(text).into_iter();
        self.controls.extend(
            found.map(|place| ControlPlace { range: place.range.start + start..place.range.end + start, ..place }),
        );
        self.text.push_str(text);
    }

    /// Adds a control token.
    pub fn control(&mut self, name: &str, id: u32) {
        let start = self.text.len();
        self.text.push_str(name);
        self.controls.push(ControlPlace { range: start..self.text.len(), id });
    }

    /// Adds text of a message.
    pub fn content(&mut self, tokenizer: &Tokenizer, text: &str) {
        match self.open_content {
            true => self.template_text(tokenizer, text),
            false => self.text.push_str(text),
        }
    }

    /// Encodes the draft and marks what is trained.
    ///
    /// # Errors
    /// Text that the tokenizer cannot encode.
    pub fn finish(self, tokenizer: &Tokenizer, trained: Trained) -> Result<Rendered> {
        let mut marks: Vec<usize> = self.answers.iter().flat_map(|answer| [answer.start, answer.end]).collect();
        marks.extend(&self.prompt_ends);
        marks.sort_unstable();
        marks.dedup();
        let encoded = tokenizer.encode_marked(&self.text, &self.controls, &marks)?;
        let first = usize::from(self.bos.is_some());
        let ids: Vec<u32> = self.bos.into_iter().chain(encoded.ids).collect();
        let token = |byte: usize| marks.binary_search(&byte).map_or(ids.len(), |mark| encoded.marks[mark] + first);
        let span = |text: Range<usize>| Span { tokens: token(text.start)..token(text.end), text };
        let spans: Vec<Span> = match trained {
            Trained::All => vec![Span { tokens: first..ids.len(), text: 0..self.text.len() }],
            Trained::Assistant => self.answers.into_iter().map(span).collect(),
            Trained::Response => self.answers.into_iter().last().map(span).into_iter().collect(),
        };
        let mut flags = vec![false; ids.len()];
        spans.iter().for_each(|span| flags[span.tokens.clone()].fill(true));
        Ok(Rendered { text: self.text, ids, trained: flags, spans })
    }
}
