//! The program's own template files: TOML in which every character counts.
//!
//! ```toml
//! about = "what it is for"
//! bos = "tokenizer"        # BOS in front: "tokenizer" as the tokenizer does it, "always" if the model has one, "never"
//! trained = "assistant"    # "assistant" every answer, "response" the last one, "all" everything
//! system = "..."           # system prompt of conversations that have none; may be left out
//!
//! [chat]                   # for conversations
//! first_user = "<|system|>\n{system}{eos}\n<|user|>\n{content}{eos}\n<|assistant|>\n"
//! first_user_without_system = "<|user|>\n{content}{eos}\n<|assistant|>\n"
//! user = "\n<|user|>\n{content}{eos}\n<|assistant|>\n"
//! assistant = "{content}{eos}"
//!
//! [instruction]            # or, in place of [chat], for tasks
//! with_input = "{instruction}\n\n{input}\n\nRisposta: "
//! without_input = "{instruction}\n\nRisposta: "
//! response = "{response}{eos}"
//! ```
//!
//! A user's part ends where the model answers; the assistant's part is trained from its first character to the last
//! control token in it, which must stand behind the content: the EOS that the model learns to write. `{bos}` and `{eos}`
//! are the model's tokens (`{bos}` is empty where `bos` puts none in front); names of control tokens, such as
//! `<|im_end|>`, are these tokens too. `{{` and `}}` are braces. Without `first_user_without_system` the system prompt
//! is left empty.

use serde::Deserialize;

use super::draft::Draft;
use super::{turns, Instruction, Message, Mode, Role, Trained};
use crate::data::tokenize::{NamedToken, Tokenizer};
use crate::error::{Error, Result};

/// A template file.
#[derive(Debug, Clone)]
pub struct TemplateFile {
    /// What it is for.
    pub about: String,
    /// Which tokens are trained.
    pub trained: Trained,
    /// The system prompt of conversations that have none.
    pub system: Option<String>,
    /// Whether names of control tokens in messages are control tokens.
    pub open_content: bool,
    /// The file's text.
    pub source: String,
    bos: BosPolicy,
    parts: Parts,
}

/// Whether text begins with BOS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BosPolicy {
    /// As the tokenizer does it for documents.
    Tokenizer,
    /// If the model names a BOS token.
    Always,
    /// No.
    Never,
}

#[derive(Debug, Clone)]
enum Parts {
    Chat { first_user: Part, first_user_without_system: Option<Part>, user: Part, assistant: Part },
    Instruction { with_input: Part, without_input: Part, response: Part },
}

/// A part, taken apart.
type Part = Vec<Piece>;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    Bos,
    Eos,
    Field(Field),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    System,
    Content,
    Instruction,
    Input,
    Response,
}

impl Field {
    fn name(self) -> &'static str {
        match self {
            Field::System => "system",
            Field::Content => "content",
            Field::Instruction => "instruction",
            Field::Input => "input",
            Field::Response => "response",
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default)]
    about: String,
    #[serde(default = "tokenizer_policy")]
    bos: BosPolicy,
    trained: Option<Trained>,
    system: Option<String>,
    chat: Option<WrittenChat>,
    instruction: Option<WrittenInstruction>,
}

fn tokenizer_policy() -> BosPolicy {
    BosPolicy::Tokenizer
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenChat {
    first_user: String,
    first_user_without_system: Option<String>,
    user: String,
    assistant: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenInstruction {
    with_input: String,
    without_input: String,
    response: String,
}

impl TemplateFile {
    /// Reads a template file; `place` names it in messages.
    ///
    /// # Errors
    /// TOML that is none, unknown keys, missing parts, placeholders that a part does not know or lacks.
    pub fn parse(text: &str, place: &str) -> Result<TemplateFile> {
        let written: Written = toml::from_str(text).map_err(|error| {
            let line = error.span().map(|span| 1 + text[..span.start].matches('\n').count());
            let line = line.map_or(String::new(), |line| format!(":{line}"));
            Error::failed(format!("{place}{line}: not a template file: {}", error.message()))
        })?;
        let at = |error: String| {
            Error::failed(format!("{place}: {error}"))
                .hint("placeholders stand in braces, such as {content}; a brace itself is written {{ or }}")
        };
        use Field::{Content, Input, Instruction, Response, System};
        let (parts, trained) = match (written.chat, written.instruction) {
            (Some(chat), None) => {
                let without = chat.first_user_without_system.as_deref();
                let without = without.map(|text| part("chat.first_user_without_system", text, &[Content], &[]));
                let parts = Parts::Chat {
                    first_user: part("chat.first_user", &chat.first_user, &[Content], &[System]).map_err(at)?,
                    first_user_without_system: without.transpose().map_err(at)?,
                    user: part("chat.user", &chat.user, &[Content], &[]).map_err(at)?,
                    assistant: part("chat.assistant", &chat.assistant, &[Content], &[]).map_err(at)?,
                };
                (parts, Trained::Assistant)
            }
            (None, Some(task)) => {
                let both = &[Instruction, Input];
                let parts = Parts::Instruction {
                    with_input: part("instruction.with_input", &task.with_input, both, &[]).map_err(at)?,
                    without_input: part("instruction.without_input", &task.without_input, &both[..1], &[])
                        .map_err(at)?,
                    response: part("instruction.response", &task.response, &[Response], &[]).map_err(at)?,
                };
                (parts, Trained::Response)
            }
            _ => return Err(Error::failed(format!("{place}: expected one of the sections [chat] and [instruction]"))),
        };
        let Written { about, bos, system, .. } = written;
        let (trained, source) = (written.trained.unwrap_or(trained), text.to_owned());
        Ok(TemplateFile { about, trained, system, open_content: false, source, bos, parts })
    }

    /// Whether it writes instructions rather than conversations.
    pub fn is_instruction(&self) -> bool {
        matches!(self.parts, Parts::Instruction { .. })
    }

    /// Writes a conversation.
    ///
    /// # Errors
    /// Messages out of turn; more than one exchange for an instruction template; answers without an end.
    pub fn conversation(&self, tokenizer: &Tokenizer, messages: &[Message]) -> Result<Draft> {
        let (system, turns) = match messages {
            [first, rest @ ..] if first.role == Role::System => (Some(first.content.as_str()), rest),
            _ => (self.system.as_deref(), messages),
        };
        turns::check_alternation(turns, messages.len() - turns.len())?;
        let Parts::Chat { first_user, first_user_without_system, user, assistant } = &self.parts else {
            return self.single(tokenizer, turns);
        };
        let writer = self.writer(tokenizer);
        let mut draft = writer.draft(self.open_content);
        let system = system.filter(|system| !system.is_empty());
        for (index, message) in turns.iter().enumerate() {
            let fields = [(Field::Content, message.content.as_str()), (Field::System, system.unwrap_or_default())];
            match (message.role, index, first_user_without_system) {
                (Role::Assistant, ..) => writer.answer(&mut draft, assistant, &fields)?,
                (_, 0, Some(part)) if system.is_none() => writer.write(&mut draft, part, &fields)?,
                (_, 0, _) => writer.write(&mut draft, first_user, &fields)?,
                _ => writer.write(&mut draft, user, &fields)?,
            }
        }
        Ok(draft)
    }

    /// One exchange by an instruction template.
    fn single(&self, tokenizer: &Tokenizer, turns: &[Message]) -> Result<Draft> {
        let (request, answer) = match turns {
            [request] => (request, None),
            [request, answer] => (request, Some(answer)),
            _ => {
                return Err(Error::failed(format!("{} messages, but this template writes one exchange", turns.len()))
                    .hint("conversations need a chat template, such as llamantino-chat"))
            }
        };
        let task = Instruction {
            instruction: request.content.clone(),
            input: String::new(),
            response: answer.map_or(String::new(), |answer| answer.content.clone()),
        };
        self.instruction(tokenizer, &task, if answer.is_some() { Mode::Training } else { Mode::Prompt })
    }

    /// Writes an instruction.
    ///
    /// # Errors
    /// Answers without an end.
    pub fn instruction(&self, tokenizer: &Tokenizer, task: &Instruction, mode: Mode) -> Result<Draft> {
        let Parts::Instruction { with_input, without_input, response } = &self.parts else {
            return self.conversation(tokenizer, &turns::of_instruction(task, mode));
        };
        let writer = self.writer(tokenizer);
        let mut draft = writer.draft(self.open_content);
        let fields = [
            (Field::Instruction, task.instruction.as_str()),
            (Field::Input, task.input.as_str()),
            (Field::Response, task.response.as_str()),
        ];
        let prompt = if task.input.trim().is_empty() { without_input } else { with_input };
        writer.write(&mut draft, prompt, &fields)?;
        if mode == Mode::Training {
            writer.answer(&mut draft, response, &fields)?;
        }
        Ok(draft)
    }

    fn writer<'a>(&self, tokenizer: &'a Tokenizer) -> Writer<'a> {
        let special = tokenizer.special();
        let bos = match self.bos {
            BosPolicy::Tokenizer => special.bos.as_ref(),
            BosPolicy::Always => special.bos_token.as_ref(),
            BosPolicy::Never => None,
        };
        Writer { tokenizer, bos, eos: special.eos.as_ref() }
    }
}

/// Writes parts with the tokens of one model.
struct Writer<'a> {
    tokenizer: &'a Tokenizer,
    bos: Option<&'a NamedToken>,
    eos: Option<&'a NamedToken>,
}

impl Writer<'_> {
    fn draft(&self, open_content: bool) -> Draft {
        Draft { bos: self.bos.map(|token| token.id), open_content, ..Draft::default() }
    }

    fn write(&self, draft: &mut Draft, part: &Part, fields: &[(Field, &str)]) -> Result<()> {
        for piece in part {
            match piece {
                Piece::Text(text) => draft.template_text(self.tokenizer, text),
                Piece::Bos => self.bos.iter().for_each(|token| draft.control(&token.text, token.id)),
                Piece::Eos => {
                    let eos = self.eos.ok_or_else(|| {
                        Error::failed("the template writes {eos}, but the tokenizer has no EOS token")
                            .hint("name one as eos_token in the model's tokenizer_config.json")
                    })?;
                    draft.control(&eos.text, eos.id);
                }
                Piece::Field(field) => {
                    let value = fields.iter().find(|(known, _)| known == field).map_or("", |(_, value)| value);
                    draft.content(self.tokenizer, value);
                }
            }
        }
        Ok(())
    }

    /// Writes an answer and notes where it begins and ends.
    fn answer(&self, draft: &mut Draft, part: &Part, fields: &[(Field, &str)]) -> Result<()> {
        let start = draft.text.len();
        let content = part.iter().position(|piece| matches!(piece, Piece::Field(_))).map_or(0, |place| place + 1);
        let (before, after) = part.split_at(content);
        self.write(draft, &before.to_vec(), fields)?;
        let controls = draft.controls.len();
        self.write(draft, &after.to_vec(), fields)?;
        let end = draft.controls[controls..].last().ok_or_else(|| {
            Error::failed("no control token ends an answer: the model would never learn to stop")
                .hint("put {eos} behind the content of the answer")
        })?;
        draft.answers.push(start..end.range.end);
        Ok(())
    }
}

/// Takes a part apart: it must hold each field of `needed` once, may hold those of `optional`, and no others.
fn part(name: &str, text: &str, needed: &[Field], optional: &[Field]) -> Result<Part, String> {
    let mut pieces = Vec::new();
    let mut literal = String::new();
    let mut rest = text;
    while let Some(place) = rest.find(['{', '}']) {
        literal.push_str(&rest[..place]);
        rest = &rest[place..];
        if rest.starts_with("{{") || rest.starts_with("}}") {
            literal.push_str(&rest[..1]);
            rest = &rest[2..];
            continue;
        }
        let close = rest.find('}').filter(|_| rest.starts_with('{'));
        let close = close.ok_or_else(|| format!("{name}: a brace without its partner in `{rest}`"))?;
        let field = &rest[1..close];
        rest = &rest[close + 1..];
        let piece = match field {
            "bos" => Piece::Bos,
            "eos" => Piece::Eos,
            _ => {
                needed.iter().chain(optional).find(|known| known.name() == field).map(|&f| Piece::Field(f)).ok_or_else(
                    || {
                        let known: Vec<&str> = needed.iter().chain(optional).map(|field| field.name()).collect();
                        format!("{name}: unknown placeholder {{{field}}}, expected {}, bos or eos", known.join(", "))
                    },
                )?
            }
        };
        if !literal.is_empty() {
            pieces.push(Piece::Text(std::mem::take(&mut literal)));
        }
        pieces.push(piece);
    }
    literal.push_str(rest);
    if !literal.is_empty() {
        pieces.push(Piece::Text(literal));
    }
    for field in needed {
        let count = pieces.iter().filter(|piece| **piece == Piece::Field(*field)).count();
        if count != 1 {
            return Err(format!("{name}: expected {{{}}} once, found it {count} times", field.name()));
        }
    }
    Ok(pieces)
}
