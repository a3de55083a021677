//! A conversation with a model: history, template, context, without a terminal.
//!
//! Invariant: what the model reads is [`Template::render`] of the messages kept, the function that also writes training
//! examples. A question is first asked ([`ChatSession::ask`]: nothing changes) and then answered
//! ([`ChatSession::reply`]: question and answer enter the history), so that a refused question leaves no trace.
//!
//! When the context is full, the oldest exchanges are forgotten, down to half of the room for prompts: then the cache
//! stays good for some turns, where forgetting only what is needed would have it read everything anew at each.
//! Without a template the model completes each text by itself: base models know no turns.

use std::path::Path;
use std::time::Duration;

use super::trim::Trim;
use super::{generate_text, Generator, SamplingOptions, Stop};
use crate::data::template::{Conversation, Message, Mode, Role, Template};
use crate::data::tokenize::Tokenizer;
use crate::error::{Error, Result};

/// The system prompt of a chat whose template brings none of its own.
pub const ITALIAN_SYSTEM: &str = "Sei un assistente disponibile, rispettoso e onesto. Rispondi in italiano, in modo \
                                  chiaro e corretto. Se non conosci la risposta, dillo.";

/// A system prompt that no template writes by itself.
const PROBE: &str = "(a system prompt)";

/// A conversation in progress.
pub struct ChatSession {
    generator: Generator,
    tokenizer: Tokenizer,
    template: Option<Template>,
    system: Option<String>,
    /// Whether the template writes a system prompt of its own where none is given.
    has_default_system: bool,
    messages: Vec<Message>,
    /// Messages before this one are forgotten: they are saved, but not read by the model.
    remembered: usize,
    sampling: SamplingOptions,
    last: Option<Reply>,
}

/// A question that fits the context.
#[derive(Debug, Clone)]
pub struct Question {
    text: String,
    prompt: Vec<u32>,
    remembered: usize,
    /// Exchanges that had to be forgotten for it.
    pub forgotten: usize,
}

/// How an answer went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// Why it ended.
    pub stop: Stop,
    /// Whether question and answer entered the history: not if it was stopped before its first token.
    pub kept: bool,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens of the answer.
    pub new_tokens: usize,
    /// Time to read the prompt.
    pub prompt_time: Duration,
    /// Time of the answer.
    pub decode_time: Duration,
}

impl ChatSession {
    /// Starts a conversation. Without `system` the template's default is used, or [`ITALIAN_SYSTEM`] if it has none. The
    /// texts returned say what could not be done as asked.
    ///
    /// # Errors
    /// A template that cannot write a question; a `system` that it refuses.
    pub fn new(
        generator: Generator,
        tokenizer: Tokenizer,
        template: Option<Template>,
        system: Option<String>,
        sampling: SamplingOptions,
    ) -> Result<(ChatSession, Vec<String>)> {
        let mut session = ChatSession {
            generator,
            tokenizer,
            template,
            system: None,
            has_default_system: false,
            messages: Vec::new(),
            remembered: 0,
            sampling,
            last: None,
        };
        session.set_stop_tokens();
        session.has_default_system = session.writes_default_system();
        let mut notes = Vec::new();
        match (&session.template, system) {
            (_, Some(system)) => notes.extend(session.set_system(Some(system))?),
            (Some(template), None) if !template.is_instruction() => {
                let default = template.default_system().unwrap_or(ITALIAN_SYSTEM).to_owned();
                if session.set_system(Some(default)).is_err() {
                    session.set_system(None)?;
                    notes.push("this template has no place for a system prompt; starting without one".into());
                }
            }
            _ => session.check_template(None).map(drop)?,
        }
        Ok((session, notes))
    }

    fn set_stop_tokens(&mut self) {
        let mut stop = self.generator.model().config.eos.clone();
        stop.extend(&self.tokenizer.special().stop_ids);
        // A template that does not end its answers can still be chatted with: the model's own end is known.
        stop.extend(self.template.iter().filter_map(|template| template.end_of_answer(&self.tokenizer).ok()));
        stop.sort_unstable();
        stop.dedup();
        self.generator.set_stop_tokens(stop);
    }

    /// Whether answers follow a template, or texts are completed.
    pub fn template(&self) -> Option<&Template> {
        self.template.as_ref()
    }

    /// The generator.
    pub fn generator(&mut self) -> &mut Generator {
        &mut self.generator
    }

    /// The system prompt in use.
    pub fn system(&self) -> Option<&str> {
        self.system.as_deref().filter(|system| !system.is_empty())
    }

    /// All messages since the last reset, without the system prompt.
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// Messages that the model no longer reads.
    pub fn forgotten_messages(&self) -> usize {
        self.remembered
    }

    /// The last reply of this session.
    pub fn last_reply(&self) -> Option<&Reply> {
        self.last.as_ref()
    }

    /// Changes the system prompt for all further answers; `None` takes it away. The text returned says if the template
    /// leaves it out.
    ///
    /// # Errors
    /// A template that refuses it; the old one stays.
    pub fn set_system(&mut self, system: Option<String>) -> Result<Option<String>> {
        if self.template.as_ref().is_none_or(Template::is_instruction) {
            let what = if self.template.is_some() { "an instruction template has" } else { "plain completion has" };
            return Ok(system.map(|_| format!("{what} no system prompt; it is left out")));
        }
        let written = self.check_template(system.as_deref())?;
        let another = system.as_deref().map(|system| self.check_template(Some(&format!("{system}!")))).transpose()?;
        let left_out = another.is_some_and(|another| another == written);
        self.system = system.or(Some(String::new()));
        Ok(left_out.then(|| "the template leaves the system prompt out".into()))
    }

    /// Writes a short question; returns its text.
    fn check_template(&self, system: Option<&str>) -> Result<String> {
        let Some(template) = &self.template else { return Ok(String::new()) };
        let system = system.map(|system| Message::new(Role::System, system));
        let messages = system.into_iter().chain([Message::new(Role::User, "?")]).collect();
        Ok(template.render(&self.tokenizer, &Conversation { messages }, Mode::Prompt)?.text)
    }

    /// Whether the template has a system prompt of its own. A model's template does not name it, but writes it where a
    /// given one would stand (SmolLM2's, Qwen's).
    fn writes_default_system(&self) -> bool {
        let Some(template) = self.template.as_ref().filter(|template| !template.is_instruction()) else { return false };
        let written = || {
            let (given, none) = (self.check_template(Some(PROBE)).ok()?, self.check_template(None).ok()?);
            let (before, behind) = given.split_once(PROBE)?;
            Some(!none.strip_prefix(before)?.strip_suffix(behind)?.trim().is_empty())
        };
        template.default_system().is_some() || written().unwrap_or(false)
    }

    /// Forgets all messages; the system prompt stays.
    pub fn reset(&mut self) {
        self.messages.clear();
        self.remembered = 0;
    }

    /// The ids of `messages` as a prompt.
    fn prompt(&self, messages: &[Message], question: &str) -> Result<Vec<u32>> {
        let Some(template) = &self.template else {
            let bos = self.tokenizer.special().bos.iter().map(|token| token.id);
            return Ok(bos.chain(self.tokenizer.encode_plain(question)?).collect());
        };
        // An empty system prompt is a statement to a template with a default of its own, and noise to others.
        let takes_system = !template.is_instruction();
        let system = self.system.as_deref().filter(|system| !system.is_empty() || self.has_default_system);
        let system = system.filter(|_| takes_system).map(|system| Message::new(Role::System, system));
        let question = Message::new(Role::User, question);
        let messages = system.into_iter().chain(messages.iter().cloned()).chain([question]).collect();
        Ok(template.render(&self.tokenizer, &Conversation { messages }, Mode::Prompt)?.ids)
    }

    /// Whether earlier messages are part of the prompt.
    fn has_memory(&self) -> bool {
        self.template.as_ref().is_some_and(|template| !template.is_instruction())
    }

    /// Writes the prompt for `text`, without the oldest exchanges if the context demands it.
    ///
    /// # Errors
    /// A text that the context cannot hold even alone; what the template refuses.
    pub fn ask(&self, text: &str) -> Result<Question> {
        let context = self.generator.context();
        let room = context - self.sampling.max_tokens.min(context / 4).max(1);
        let mut first = if self.has_memory() { self.remembered } else { self.messages.len() };
        let mut prompt = self.prompt(&self.messages[first..], text)?;
        let limit = if prompt.len() > room { room / 2 } else { room };
        while prompt.len() > limit && first < self.messages.len() {
            first += 2;
            prompt = self.prompt(&self.messages[first..], text)?;
        }
        // Alone, a long question may take room that was meant for the answer.
        if prompt.len() >= context {
            return Err(Error::failed(format!(
                "this message needs {} tokens with its template: the context holds {context} with the answer",
                prompt.len()
            ))
            .hint("shorten it, or raise --context if the model allows it"));
        }
        let forgotten = if self.has_memory() { (first - self.remembered) / 2 } else { 0 };
        Ok(Question { text: text.to_owned(), prompt, remembered: first, forgotten })
    }

    /// Answers a question of [`ChatSession::ask`]; `write` gets the text as it comes and returns false to stop.
    ///
    /// # Errors
    /// As [`Generator::generate`]; the history is then as before.
    pub fn reply(&mut self, question: Question, write: &mut dyn FnMut(&str) -> Result<bool>) -> Result<Reply> {
        let sampling = SamplingOptions {
            seed: self.sampling.seed.wrapping_add(self.messages.len() as u64 / 2),
            ..self.sampling.clone()
        };
        // Templates put white space around answers, which is not part of them.
        let mut trim = Trim::new(self.template.is_some());
        let mut answer = String::new();
        let generated =
            generate_text(&mut self.generator, &self.tokenizer, &question.prompt, &sampling, &mut |piece| {
                let piece = trim.push(piece);
                answer.push_str(&piece);
                if piece.is_empty() {
                    Ok(true)
                } else {
                    write(&piece)
                }
            })?;
        let kept = !(generated.ids.is_empty() && generated.stop == Stop::Asked);
        if kept {
            self.messages.push(Message::new(Role::User, question.text));
            self.messages.push(Message::new(Role::Assistant, answer));
            if self.has_memory() {
                self.remembered = question.remembered;
            }
        }
        let reply = Reply {
            stop: generated.stop,
            kept,
            prompt_tokens: question.prompt.len(),
            new_tokens: generated.ids.len(),
            prompt_time: generated.prompt_time,
            decode_time: generated.decode_time,
        };
        self.last = Some(reply.clone());
        Ok(reply)
    }

    /// Writes the conversation, system prompt first, as one line of JSON: a training example for `messages` data.
    ///
    /// # Errors
    /// An existing file that holds something else; what the file system refuses.
    pub fn save(&self, path: &Path) -> Result<()> {
        if path.exists() && read_conversation(path).is_err() {
            return Err(Error::file(path, "this file exists and is no saved conversation; it is left alone")
                .hint("choose another name"));
        }
        let system = self.system().map(|system| Message::new(Role::System, system));
        let messages = system.into_iter().chain(self.messages.iter().cloned()).collect();
        let text = serde_json::to_string(&Conversation { messages })
            .map_err(|error| Error::file(path, format_args!("cannot write: {error}")))?;
        let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let write = |mut file: tempfile::NamedTempFile| {
            std::io::Write::write_all(&mut file, format!("{text}\n").as_bytes())?;
            file.as_file().sync_all()?;
            file.persist(path).map_err(|error| error.error)
        };
        tempfile::NamedTempFile::new_in(folder)
            .and_then(write)
            .map(drop)
            .map_err(|error| Error::io(path, "write", error))
    }

    /// Takes up a saved conversation in place of this one, with its system prompt if it has one.
    ///
    /// # Errors
    /// A file that is no conversation; this conversation then stays.
    pub fn load(&mut self, path: &Path) -> Result<()> {
        let mut messages = read_conversation(path)?.messages;
        if messages.first().is_some_and(|first| first.role == Role::System) {
            self.set_system(Some(messages.remove(0).content)).map(drop)?;
        }
        self.messages = messages;
        self.remembered = 0;
        Ok(())
    }
}

/// A saved conversation: an optional system message, then user and assistant in turn, an answer last.
fn read_conversation(path: &Path) -> Result<Conversation> {
    let bytes = std::fs::read(path).map_err(|error| Error::io(path, "read", error))?;
    let wrong = |what: &dyn std::fmt::Display| {
        Error::file(path, format_args!("not a saved conversation: {what}"))
            .hint("expected {\"messages\": [{\"role\": \"user\", \"content\": \"...\"}, ...]}, as /save writes it")
    };
    let conversation: Conversation = serde_json::from_slice(&bytes).map_err(|error| wrong(&error))?;
    let skip = usize::from(conversation.messages.first().is_some_and(|first| first.role == Role::System));
    let turns = &conversation.messages[skip..];
    let order = [Role::User, Role::Assistant];
    if let Some(place) = (0..turns.len()).find(|&place| turns[place].role != order[place % 2]) {
        return Err(wrong(&format_args!(
            "message {}: expected the {}'s turn",
            place + skip + 1,
            order[place % 2].name()
        )));
    }
    if turns.len() % 2 == 1 {
        return Err(wrong(&"the last question has no answer"));
    }
    Ok(conversation)
}

#[cfg(test)]
#[path = "chat_tests.rs"]
mod tests;
