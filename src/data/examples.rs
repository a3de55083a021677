//! From a record to tokens, and to which of them are trained.
//!
//! Invariant: an example that leaves here has a trained token and ends every trained stretch with a control token, so
//! that the model learns to stop; one that does not is a fault, and a fault stops the run.

use std::path::Path;

use super::config::Source;
use super::corpus::part::{Kind, TokenizedDocument};
use super::formats::{Recognised, Record};
use super::template::{builtin_names, Conversation, Instruction, Message, Mode, Rendered, Role, Template, Trained};
use super::tokenize::Tokenizer;
use crate::error::{Error, Result};

/// Most characters of an example that a message shows.
const SHOWN: usize = 120;

/// Makes examples of one source's records.
pub struct Examples<'a> {
    tokenizer: &'a Tokenizer,
    template: Option<Template>,
    system: Option<String>,
    open_content: bool,
}

/// What became of a record.
pub enum Outcome {
    /// Tokens.
    Made(TokenizedDocument),
    /// A text without a token.
    Empty,
    /// The record cannot be written: it counts as bad.
    Bad(String),
    /// The example must not be trained on, and the run must not go on.
    Fault(String),
}

impl<'a> Examples<'a> {
    /// For records of a `source` that was recognised as something; `model` is the model's folder.
    ///
    /// # Errors
    /// A template that cannot be read; none where one is needed; records that nothing trains on.
    pub fn new(
        source: &Source,
        recognised: Recognised,
        (tokenizer, model): (&'a Tokenizer, &Path),
        open_content: bool,
    ) -> Result<Examples<'a>> {
        let template = match recognised.format {
            "text" => None,
            "preference" => {
                return Err(Error::usage(format!(
                    "source {}: preferences are read, but nothing trains on them",
                    source.name
                ))
                .hint("convert the better answers to `messages` to fine-tune on them"))
            }
            _ => Some(find_template(source, recognised, model)?),
        };
        let template = template.map(|template| {
            let trained = source.trained.unwrap_or(template.trained());
            template.with_trained(trained).with_open_content(open_content)
        });
        Ok(Examples { tokenizer, template, system: source.system.clone(), open_content })
    }

    /// The template in use; none for raw text.
    pub fn template(&self) -> Option<&Template> {
        self.template.as_ref()
    }

    /// Everything that decides the tokens of a record, for the key of a cache.
    pub fn describe(&self) -> String {
        let template = self.template.as_ref().map(|template| {
            let kind = if template.is_jinja() { "jinja" } else { "file" };
            (kind, template.source(), template.trained())
        });
        format!("{} {template:?} {:?} {}", self.tokenizer.fingerprint().to_hex(), self.system, self.open_content)
    }

    /// Whether the text of a record names control tokens.
    pub fn names_controls(&self, record: &Record) -> bool {
        let named = |text: &str| !self.tokenizer.find_controls(text).is_empty();
        match record {
            Record::Text(text) => named(text),
            Record::Conversation(conversation) => conversation.messages.iter().any(|message| named(&message.content)),
            Record::Instruction(task) => {
                [&task.instruction, &task.input, &task.response].iter().any(|text| named(text))
            }
            Record::Preference(pair) => {
                let prompt = pair.prompt.messages.iter().any(|message| named(&message.content));
                prompt || named(&pair.chosen) || named(&pair.rejected)
            }
        }
    }

    /// The tokens of a record from a line.
    pub fn make(&self, record: &Record, line: u64) -> Outcome {
        let rendered = match record {
            Record::Text(text) => return self.text(text, line),
            Record::Conversation(conversation) => self.conversation(conversation),
            Record::Instruction(task) => self.instruction(task),
            Record::Preference(_) => return Outcome::Bad("preferences are not trained on".into()),
        };
        match rendered {
            Err(error) => Outcome::Bad(error.message().to_owned()),
            Ok(rendered) => self.check(rendered, record, line),
        }
    }

    fn text(&self, text: &str, line: u64) -> Outcome {
        let encoded = match self.open_content {
            true => self.tokenizer.encode_template(text),
            false => self.tokenizer.encode_plain(text),
        };
        let text_ids = match encoded {
            Ok(ids) if ids.is_empty() => return Outcome::Empty,
            Ok(ids) => ids,
            Err(error) => return Outcome::Fault(error.message().to_owned()),
        };
        Outcome::Made(raw_text(self.tokenizer, text_ids, text, line))
    }

    /// The conversation with the configured system prompt where it has none.
    fn conversation(&self, conversation: &Conversation) -> Result<Rendered> {
        let template = self.needed()?;
        let mut messages = conversation.messages.clone();
        let own = messages.first().is_some_and(|first| first.role == Role::System);
        if let Some(system) = self.system.as_ref().filter(|_| !own && !template.is_instruction()) {
            messages.insert(0, Message::new(Role::System, system));
        }
        // An empty system prompt is a statement to a template with a default of its own, and noise to others.
        let empty = messages.first().is_some_and(|first| first.role == Role::System && first.content.trim().is_empty());
        if empty && template.default_system().is_none() {
            messages.remove(0);
        }
        template.render(self.tokenizer, &Conversation { messages }, Mode::Training)
    }

    fn instruction(&self, task: &Instruction) -> Result<Rendered> {
        let template = self.needed()?;
        if template.is_instruction() {
            return template.render_instruction(self.tokenizer, task, Mode::Training);
        }
        self.conversation(&Conversation { messages: template.messages_of(task, Mode::Training) })
    }

    fn needed(&self) -> Result<&Template> {
        self.template.as_ref().ok_or_else(|| Error::failed("this record needs a template, raw text has none"))
    }

    /// What a rendered example must have.
    fn check(&self, rendered: Rendered, record: &Record, line: u64) -> Outcome {
        let Rendered { text, ids, spans, .. } = rendered;
        let spans: Vec<_> = spans.into_iter().map(|span| span.tokens).filter(|span| !span.is_empty()).collect();
        let shown: String = text.chars().take(SHOWN).collect();
        // A token at the very beginning is never predicted.
        if !spans.iter().any(|span| span.end > 1) {
            return Outcome::Fault(format!("no token of this example would be trained: {shown:?}"));
        }
        let whole = self.template.as_ref().is_some_and(|template| template.trained() == Trained::All);
        let ends =
            |span: &std::ops::Range<usize>| ids.get(span.end - 1).is_some_and(|&id| self.tokenizer.is_closed(id));
        let ended = if whole { ids.iter().any(|&id| self.tokenizer.is_closed(id)) } else { spans.iter().all(ends) };
        if !ended {
            return Outcome::Fault(format!(
                "no end-of-answer token would be trained, the model would not stop: {shown:?}"
            ));
        }
        if let Some(id) = ids.iter().find(|&&id| id as usize >= self.tokenizer.embedding_rows()) {
            let rows = self.tokenizer.embedding_rows();
            return Outcome::Fault(format!("token {id}, but the model has {rows} embeddings: {shown:?}"));
        }
        Outcome::Made(TokenizedDocument {
            spans,
            kind: if whole { Kind::Whole } else { Kind::Example },
            text_bytes: text.len() as u64,
            hash: content_hash(record),
            line,
            ids,
        })
    }
}

/// A document of raw text: its ids between BOS and EOS, where the tokenizer has them.
pub fn raw_text(tokenizer: &Tokenizer, text_ids: Vec<u32>, text: &str, line: u64) -> TokenizedDocument {
    let special = tokenizer.special();
    let bos = special.bos.iter().map(|token| token.id);
    let first = bos.len();
    let ids: Vec<u32> = bos.chain(text_ids).chain(special.eos.iter().map(|token| token.id)).collect();
    TokenizedDocument {
        spans: std::iter::once(first..ids.len()).collect(),
        kind: Kind::Text,
        text_bytes: text.len() as u64,
        hash: text_hash(text.as_bytes()),
        line,
        ids,
    }
}

/// First eight bytes of the blake3 of a record's content, as a little-endian number: for raw text its text, for
/// anything else its JSON.
pub fn content_hash(record: &Record) -> u64 {
    match record {
        Record::Text(text) => text_hash(text.as_bytes()),
        // Strings and lists always serialise.
        other => text_hash(&serde_json::to_vec(other).unwrap_or_default()),
    }
}

fn text_hash(bytes: &[u8]) -> u64 {
    let hash = blake3::hash(bytes);
    let mut start = [0; 8];
    start.copy_from_slice(&hash.as_bytes()[..8]);
    u64::from_le_bytes(start)
}

/// The template that is named, the format's own, or the model's.
fn find_template(source: &Source, recognised: Recognised, model: &Path) -> Result<Template> {
    let name = match (source.template.as_str(), recognised.template) {
        ("", Some(own)) => own,
        ("", None) => {
            return Template::from_model(model)?.ok_or_else(|| {
                let known: Vec<&str> = builtin_names().collect();
                let what =
                    format!("source {}: {} need a template, and the model has none", source.name, recognised.summary);
                Error::usage(what).hint(format!(
                    "set template = NAME in [data] or the source: {}, or a .toml or .jinja file",
                    known.join(", ")
                ))
            })
        }
        (name, _) => name,
    };
    Template::named(name, model)
}

#[cfg(test)]
#[path = "examples_tests.rs"]
mod tests;
