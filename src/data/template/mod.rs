//! Templates: conversations and instructions to token ids, and which of these are trained.
//!
//! One function, [`Template::render`], serves training and chat. Invariants:
//! - Only the template writes control tokens. What messages say is encoded as plain text, whatever it says.
//! - The ids of a prompt are the beginning of the ids of every example that continues it.
//! - What is trained is decided by place, never by token id, so that a pad token equal to EOS does no harm; the token
//!   that ends a trained turn is always trained.
//!
//! A template is a TOML file ([`file`], with those of LLaMAntino built in) or a model's own Jinja text ([`jinja`]).

pub mod disguise;
mod draft;
pub mod file;
pub mod jinja;
pub mod model;
mod turns;

use std::ops::Range;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::tokenize::Tokenizer;
use crate::error::{Error, Result};
use draft::Draft;
use file::TemplateFile;
use jinja::JinjaTemplate;

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The instructions above the conversation.
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
}

impl Role {
    /// Its name in data and in Jinja templates.
    pub fn name(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
        }
    }
}

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who says it.
    pub role: Role,
    /// What is said.
    pub content: String,
}

impl Message {
    /// A message.
    pub fn new(role: Role, content: impl Into<String>) -> Message {
        Message { role, content: content.into() }
    }
}

/// Messages in order: at most one system message, at the start, then user and assistant in turn.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conversation {
    /// The messages.
    pub messages: Vec<Message>,
}

/// A task with its answer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instruction {
    /// What to do.
    pub instruction: String,
    /// What to do it with; blank for none.
    #[serde(default)]
    pub input: String,
    /// The answer; not looked at for a prompt.
    #[serde(default)]
    pub response: String,
}

/// What ids are wanted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// A whole example, up to and with the end of the last answer.
    Training,
    /// Up to the place where the model answers.
    Prompt,
}

/// Which tokens are trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Trained {
    /// All but the BOS in front.
    All,
    /// The last answer.
    Response,
    /// Every answer.
    Assistant,
}

/// A trained stretch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// Its tokens in [`Rendered::ids`].
    pub tokens: Range<usize>,
    /// Its bytes in [`Rendered::text`].
    pub text: Range<usize>,
}

/// What a template makes of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// The text, control tokens by name; a BOS that the template does not write itself is not in it.
    pub text: String,
    /// Its ids, with BOS.
    pub ids: Vec<u32>,
    /// Whether each id is a target.
    pub trained: Vec<bool>,
    /// The trained stretches, in order.
    pub spans: Vec<Span>,
}

/// A way to write conversations.
#[derive(Debug)]
pub struct Template {
    name: String,
    kind: Kind,
    trained: Trained,
}

#[derive(Debug)]
enum Kind {
    File(TemplateFile),
    Jinja(JinjaTemplate),
}

/// The templates that come with the program: name and content.
const BUILTIN: &[(&str, &str)] = &[
    ("llamantino-chat", include_str!("builtin/llamantino-chat.toml")),
    ("llamantino-chat-notebook", include_str!("builtin/llamantino-chat-notebook.toml")),
    ("llamantino-chat-70b", include_str!("builtin/llamantino-chat-70b.toml")),
    ("llamantino-instruct", include_str!("builtin/llamantino-instruct.toml")),
    ("llamantino-instruct-usage", include_str!("builtin/llamantino-instruct-usage.toml")),
    ("extremita", include_str!("builtin/extremita.toml")),
    ("completion", include_str!("builtin/completion.toml")),
];

/// Names of the built-in templates.
pub fn builtin_names() -> impl Iterator<Item = &'static str> {
    BUILTIN.iter().map(|(name, _)| *name)
}

impl Template {
    /// The built-in template of that name.
    ///
    /// # Errors
    /// An unknown name (usage).
    pub fn builtin(name: &str) -> Result<Template> {
        let Some((_, text)) = BUILTIN.iter().find(|(known, _)| *known == name) else {
            let known: Vec<&str> = builtin_names().collect();
            return Err(Error::usage(format!("unknown template `{name}`, expected one of {}", known.join(", "))).hint(
                "a template file of your own is given by its path (ending in .toml or .jinja), the model's by `model`",
            ));
        };
        Template::of_file(name, TemplateFile::parse(text, name)?)
    }

    /// A template file: `.jinja` a model's kind of template, anything else the program's own ([`file`]).
    ///
    /// # Errors
    /// No such file; a file that is not a template.
    pub fn from_file(path: &Path) -> Result<Template> {
        let text = model::read_text(path)?;
        let name = path.display().to_string();
        if path.extension().is_some_and(|extension| extension == "jinja" || extension == "jinja2") {
            return Ok(Template::of_jinja(JinjaTemplate::new(&name, &text)?));
        }
        Template::of_file(&name, TemplateFile::parse(&text, &name)?)
    }

    /// The model's own template; none if its folder has none.
    ///
    /// # Errors
    /// A template that is not valid Jinja; files that cannot be read.
    pub fn from_model(folder: &Path) -> Result<Option<Template>> {
        let Some(found) = model::find(folder)? else { return Ok(None) };
        Ok(Some(Template::of_jinja(JinjaTemplate::new(&found.place, &found.text)?)))
    }

    /// A template by what a user writes: `model` for the model's own, a path (it ends in `.toml` or `.jinja`, or has a
    /// `/`), or the name of a built-in one.
    ///
    /// # Errors
    /// As the three others; a model without a template.
    pub fn named(name: &str, model: &Path) -> Result<Template> {
        if name == "model" {
            return Template::from_model(model)?.ok_or_else(|| {
                Error::file(model, "this model has no chat template").hint("choose one with `llamantino-chat`")
            });
        }
        let path = Path::new(name);
        match path.extension().is_some() || name.contains(std::path::MAIN_SEPARATOR) {
            true => Template::from_file(path),
            false => Template::builtin(name),
        }
    }

    fn of_file(name: &str, file: TemplateFile) -> Result<Template> {
        Ok(Template { name: name.to_owned(), trained: file.trained, kind: Kind::File(file) })
    }

    fn of_jinja(jinja: JinjaTemplate) -> Template {
        Template { name: jinja.place().to_owned(), kind: Kind::Jinja(jinja), trained: Trained::Assistant }
    }

    /// Trains other tokens than the template itself says.
    #[must_use]
    pub fn with_trained(mut self, trained: Trained) -> Template {
        self.trained = trained;
        self
    }

    /// Lets names of control tokens in messages be these tokens, which they are not otherwise.
    #[must_use]
    pub fn with_open_content(mut self, open: bool) -> Template {
        match &mut self.kind {
            Kind::File(file) => file.open_content = open,
            Kind::Jinja(jinja) => jinja.open_content = open,
        }
        self
    }

    /// The text that the template was read from: two templates with the same source and name write the same.
    pub fn source(&self) -> &str {
        match &self.kind {
            Kind::File(file) => &file.source,
            Kind::Jinja(jinja) => jinja.source(),
        }
    }

    /// Whether it is a Jinja template.
    pub fn is_jinja(&self) -> bool {
        matches!(self.kind, Kind::Jinja(_))
    }

    /// An instruction as the messages of a conversation.
    pub fn messages_of(&self, task: &Instruction, mode: Mode) -> Vec<Message> {
        turns::of_instruction(task, mode)
    }

    /// Which tokens are trained.
    pub fn trained(&self) -> Trained {
        self.trained
    }

    /// Says where a template came from, if the folder that it was read from will be gone.
    #[must_use]
    pub fn from_place(self, place: &str) -> Template {
        let kind = match self.kind {
            Kind::Jinja(jinja) => Kind::Jinja(jinja.at(place)),
            file => file,
        };
        Template { name: place.to_owned(), kind, ..self }
    }

    /// The built-in name, or the file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it writes one instruction at a time and no conversations.
    pub fn is_instruction(&self) -> bool {
        matches!(&self.kind, Kind::File(file) if file.is_instruction())
    }

    /// The system prompt of conversations without one.
    pub fn default_system(&self) -> Option<&str> {
        match &self.kind {
            Kind::File(file) => file.system.as_deref(),
            Kind::Jinja(_) => None,
        }
    }

    /// Writes a conversation. An instruction template takes one exchange: the user's message is the instruction.
    ///
    /// # Errors
    /// Messages in an order that the template cannot write; text that the tokenizer cannot encode; a template that
    /// raises an error, or does not end its answers with a control token.
    pub fn render(&self, tokenizer: &Tokenizer, conversation: &Conversation, mode: Mode) -> Result<Rendered> {
        let draft = self.draft(tokenizer, &conversation.messages, mode);
        self.finish(tokenizer, draft)
    }

    /// Writes an instruction. In a chat template it is the user's message, with the input behind a blank line.
    ///
    /// # Errors
    /// As [`Template::render`].
    pub fn render_instruction(&self, tokenizer: &Tokenizer, task: &Instruction, mode: Mode) -> Result<Rendered> {
        let draft = match &self.kind {
            Kind::File(file) if file.is_instruction() => file.instruction(tokenizer, task, mode),
            _ => self.draft(tokenizer, &turns::of_instruction(task, mode), mode),
        };
        self.finish(tokenizer, draft)
    }

    fn draft(&self, tokenizer: &Tokenizer, messages: &[Message], mode: Mode) -> Result<Draft> {
        turns::check(messages, mode)?;
        match &self.kind {
            Kind::File(file) => file.conversation(tokenizer, messages),
            Kind::Jinja(jinja) => jinja.draft(tokenizer, messages, mode, self.trained),
        }
    }

    fn finish(&self, tokenizer: &Tokenizer, draft: Result<Draft>) -> Result<Rendered> {
        let rendered = draft.and_then(|draft| draft.finish(tokenizer, self.trained));
        rendered.map_err(|error| match &self.kind {
            Kind::File(_) => error.at(format_args!("template {}", self.name)),
            Kind::Jinja(_) => error,
        })
    }

    /// The control token that ends answers in this template: a chat stops at it.
    ///
    /// # Errors
    /// A template that cannot write a plain exchange, or does not end answers.
    pub fn end_of_answer(&self, tokenizer: &Tokenizer) -> Result<u32> {
        let exchange = [Message::new(Role::User, "a"), Message::new(Role::Assistant, "b")];
        let draft = self.draft(tokenizer, &exchange, Mode::Training)?;
        let end = draft.answers.last().map(|answer| answer.end);
        let last = draft.controls.iter().find(|control| Some(control.range.end) == end);
        last.map(|control| control.id)
            .ok_or_else(|| Error::failed(format!("template {}: it does not end answers", self.name)))
    }
}

#[cfg(test)]
mod tests;
