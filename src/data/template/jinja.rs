//! A model's own chat template: Jinja, rendered as transformers renders it (`apply_chat_template`): `trim_blocks` and
//! `lstrip_blocks`, Python's string methods, `raise_exception`, `{% generation %}`.
//!
//! What is trained follows from rendering beginnings of the conversation: an answer begins where the prompt for it ends
//! and ends with the last control token of its turn. `{% generation %}` blocks, where a template has them, say it
//! directly. A template cannot hang or fill the memory: every step and every byte costs fuel, and a watched thread
//! renders, because some single steps (over lists that double lazily) never end.
//!
//! `strftime_now` gives today's date (UTC; `SOURCE_DATE_EPOCH` if set) to templates that insist on it. Those that ask
//! whether it exists are told that it does not and write their own date: an example must not change from day to day.

use std::ops::Range;
use std::sync::{mpsc, Arc};
use std::time::Duration;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value};
use minijinja::{context, Environment, ErrorKind, State};

use super::disguise::Disguise;
use super::draft::Draft;
use super::{Message, Mode, Role, Trained};
use crate::data::tokenize::sections::ControlPlace;
use crate::data::tokenize::Tokenizer;
use crate::error::{Error, Result};

mod date;
mod json;
mod rewrite;

/// Steps (and 64-byte pieces of text) that one rendering may take: far more than any conversation needs, a second at
/// most.
const FUEL: u64 = 4_000_000;
/// How long the renderings of one conversation may take before they count as endless.
const DEADLINE: Duration = Duration::from_secs(30);
/// Stack of the rendering thread: minijinja's recursion limit was chosen for a main thread's.
const STACK: usize = 8 << 20;
/// Name under which the environment knows the template.
const NAME: &str = "chat_template";
/// What `{% generation %}` puts around its text.
const OPEN: char = '\u{10FFF0}';
const CLOSE: char = '\u{10FFF1}';

/// The texts of control tokens that templates know as variables.
#[derive(Debug, Clone, Default)]
pub struct SpecialNames {
    /// `bos_token`.
    pub bos: Option<String>,
    /// `eos_token`.
    pub eos: Option<String>,
    /// `pad_token`.
    pub pad: Option<String>,
    /// `unk_token`.
    pub unk: Option<String>,
}

impl SpecialNames {
    /// Those of a tokenizer.
    pub fn of(tokenizer: &Tokenizer) -> SpecialNames {
        let special = tokenizer.special();
        let name = |token: &Option<crate::data::tokenize::NamedToken>| token.as_ref().map(|token| token.text.clone());
        SpecialNames {
            bos: name(&special.bos_token),
            eos: name(&special.eos),
            pad: name(&special.pad),
            unk: name(&special.unk),
        }
    }
}

/// A Jinja template.
pub struct JinjaTemplate {
    environment: Arc<Environment<'static>>,
    source: String,
    place: String,
    deadline: Duration,
    /// Whether names of control tokens in messages are control tokens.
    pub open_content: bool,
}

impl std::fmt::Debug for JinjaTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JinjaTemplate").field("place", &self.place).finish_non_exhaustive()
    }
}

/// The source of errors that templates raise themselves.
#[derive(Debug)]
struct Raised;

impl std::fmt::Display for Raised {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("raised by the template")
    }
}

impl std::error::Error for Raised {}

/// Messages as the template sees them.
type Hidden = Arc<Vec<(Role, String)>>;

/// Output of a template, its `{% generation %}` marks taken out.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Output {
    text: String,
    generated: Vec<Range<usize>>,
}

impl JinjaTemplate {
    /// Reads a template; `place` names it in messages.
    ///
    /// # Errors
    /// Text that is not Jinja, with its line.
    pub fn new(place: &str, source: &str) -> Result<JinjaTemplate> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        let syntax = syntax.map_err(|error| Error::failed(format!("{place}: {error}")))?;
        environment.set_syntax(syntax.clone());
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.set_fuel(Some(FUEL));
        environment.add_filter("tojson", json::tojson);
        environment.add_filter(rewrite::HELD, rewrite::held);
        environment.add_function("raise_exception", |message: String| -> Result<Value, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message).with_source(Raised))
        });
        environment.add_function("_generation", |state: &mut State, arguments: Kwargs| {
            let text = arguments.get::<Value>("caller")?.call(state, &[])?;
            Ok::<_, minijinja::Error>(Value::from_safe_string(format!("{OPEN}{text}{CLOSE}")))
        });
        if !source.contains("strftime_now is defined") {
            environment.add_function("strftime_now", |format: String| date::today().format(&format));
        }
        let added = environment.add_template_owned(NAME, rewrite::rewritten(source, &syntax));
        let environment = Arc::new(environment);
        let (source, place) = (source.to_owned(), place.to_owned());
        let template = JinjaTemplate { environment, source, place, deadline: DEADLINE, open_content: false };
        added.map_err(|error| template.explain(&error))?;
        Ok(template)
    }

    /// Its text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Calls it otherwise in messages.
    #[must_use]
    pub fn at(self, place: &str) -> JinjaTemplate {
        JinjaTemplate { place: place.to_owned(), ..self }
    }

    /// Where it was read.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// What the template makes of `messages`, as text.
    ///
    /// # Errors
    /// A template that raises an error, fails or does not come to an end.
    pub fn text(&self, names: &SpecialNames, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let hidden: Hidden = Arc::new(messages.iter().map(|message| (message.role, message.content.clone())).collect());
        let mut outputs = self.outputs(names, &hidden, vec![(messages.len(), add_generation_prompt)])?;
        outputs.pop().map_or_else(|| Err(self.endless()), |output| output.map(|output| output.text))
    }

    /// What the template makes of beginnings of `messages`: their lengths, and whether with a generation prompt.
    fn outputs(
        &self,
        names: &SpecialNames,
        messages: &Hidden,
        beginnings: Vec<(usize, bool)>,
    ) -> Result<Vec<Result<Output>>> {
        let (environment, messages, names) = (Arc::clone(&self.environment), Arc::clone(messages), names.clone());
        let (sender, receiver) = mpsc::channel();
        let render = move || {
            let one = |&(count, prompt): &(usize, bool)| render(&environment, &names, &messages[..count], prompt);
            let outputs: Vec<_> = beginnings.iter().map(one).collect();
            // Nobody listens any more after the deadline.
            let _ = sender.send(outputs);
        };
        std::thread::Builder::new()
            .name("chat template".into())
            .stack_size(STACK)
            .spawn(render)
            .map_err(|error| Error::failed(format!("{}: cannot start a thread: {error}", self.place)))?;
        let outputs = receiver.recv_timeout(self.deadline).map_err(|_| self.endless())?;
        let marked = |text: String| {
            take_marks(&text)
                .ok_or_else(|| Error::failed(format!("{}: its generation blocks lie within each other", self.place)))
        };
        Ok(outputs.into_iter().map(|output| output.map_err(|error| self.explain(&error)).and_then(marked)).collect())
    }

    fn endless(&self) -> Error {
        Error::failed(format!("{}: the template does not come to an end", self.place))
    }

    fn explain(&self, error: &minijinja::Error) -> Error {
        let line = error.line().map_or(String::new(), |line| format!(", line {line}"));
        let place = format!("{}{line}", self.place);
        let detail = error.detail().unwrap_or_default();
        let raised = std::error::Error::source(error).is_some_and(|source| source.is::<Raised>());
        match error.kind() {
            _ if raised => Error::failed(format!("{place}: the template refuses this conversation: {detail}")),
            ErrorKind::OutOfFuel => {
                Error::failed(format!("{place}: the template does not come to an end (stopped after {FUEL} steps)"))
            }
            kind if detail.is_empty() => Error::failed(format!("{place}: {kind}")),
            kind => Error::failed(format!("{place}: {kind}: {detail}")),
        }
    }

    /// Writes a conversation and finds its answers; with [`Trained::Response`] only the last one need be found.
    ///
    /// # Errors
    /// As [`JinjaTemplate::text`]; for training also answers whose place cannot be told.
    pub fn draft(&self, tokenizer: &Tokenizer, messages: &[Message], mode: Mode, trained: Trained) -> Result<Draft> {
        let contents = messages.iter().map(|message| message.content.as_str());
        let marks = ["\u{10FFF0}", "\u{10FFF1}"];
        let hidden = if self.open_content { &[] } else { tokenizer.control_tokens() };
        let controls = hidden.iter().map(|token| token.text.as_str());
        let mut disguise = Disguise::new(controls.chain(marks), contents.chain([self.source.as_str()]));
        let hidden: Hidden = Arc::new(messages.iter().map(|m| (m.role, disguise.hide(&m.content))).collect());
        let answers: Vec<usize> = (0..hidden.len()).filter(|&index| hidden[index].0 == Role::Assistant).collect();
        // The whole, then for each answer the prompt for it and the text that ends with it.
        let mut beginnings = vec![(hidden.len(), mode == Mode::Prompt)];
        beginnings.extend(answers.iter().flat_map(|&index| [(index, true), (index + 1, false)]));
        let mut outputs = self.outputs(&SpecialNames::of(tokenizer), &hidden, beginnings)?.into_iter();
        let output = outputs.next().unwrap_or_else(|| Err(self.endless()))?;
        let controls = tokenizer.find_controls(&output.text);
        let mut turns = Turns { messages: &hidden, output: &output, controls: &controls, beginnings: outputs };
        let (answers, prompt_ends) = turns.find(&answers, mode, trained)?;

        let revealed = disguise.reveal(&output.text);
        let moved = |range: Range<usize>| revealed.place(range.start)..revealed.place(range.end);
        let controls = controls.iter().map(|c| ControlPlace { range: moved(c.range.clone()), id: c.id }).collect();
        Ok(Draft {
            controls,
            answers: answers.into_iter().map(moved).collect(),
            prompt_ends: prompt_ends.into_iter().map(|place| revealed.place(place)).collect(),
            text: revealed.text,
            ..Draft::default()
        })
    }
}

/// Renders messages; the output still has its marks.
fn render(
    environment: &Environment<'_>,
    names: &SpecialNames,
    messages: &[(Role, String)],
    prompt: bool,
) -> Result<String, minijinja::Error> {
    let message =
        |(role, content): &(Role, String)| Value::from_pairs([("role", role.name()), ("content", content.as_str())]);
    let token = |name: &Option<String>| name.as_deref().map_or(Value::UNDEFINED, Value::from);
    let context = context! {
        messages => messages.iter().map(message).collect::<Value>(),
        add_generation_prompt => prompt,
        bos_token => token(&names.bos),
        eos_token => token(&names.eos),
        pad_token => token(&names.pad),
        unk_token => token(&names.unk),
        tools => (),
        documents => (),
    };
    environment.get_template(NAME)?.render(context)
}

/// The search for answers in a template's output.
struct Turns<'a, I> {
    messages: &'a [(Role, String)],
    output: &'a Output,
    controls: &'a [ControlPlace],
    /// For each answer the output for the messages before it, with a generation prompt, and for those up to it.
    beginnings: I,
}

impl<I: Iterator<Item = Result<Output>>> Turns<'_, I> {
    /// The answers, and where prompts end. In a prompt nothing is trained, and an answer that cannot be placed is left
    /// out.
    fn find(&mut self, answers: &[usize], mode: Mode, trained: Trained) -> Result<(Vec<Range<usize>>, Vec<usize>)> {
        let (mut found, mut prompt_ends) = (Vec::new(), Vec::new());
        for &index in answers {
            let needed = mode == Mode::Training && (trained == Trained::Assistant || Some(&index) == answers.last());
            let (Some(prompt), Some(with_answer)) = (self.beginnings.next(), self.beginnings.next()) else { break };
            let start = match prompt.and_then(|prompt| self.prompt_end(index, &prompt.text)) {
                Err(error) if needed => return Err(error),
                Err(_) => continue,
                Ok(start) => start,
            };
            prompt_ends.push(start);
            if !self.output.generated.is_empty() {
                continue;
            }
            match with_answer.and_then(|with_answer| self.answer_end(index, start, &with_answer.text)) {
                Err(error) if needed => return Err(error),
                Err(_) => {}
                Ok(end) => found.push(start..end),
            }
        }
        for block in &self.output.generated {
            found.push(block.start..self.block_end(block)?);
        }
        Ok((found, prompt_ends))
    }

    /// Where `prompt`, the text for the messages before the answer `messages[index]`, ends.
    fn prompt_end(&self, index: usize, prompt: &str) -> Result<usize> {
        if self.output.text.starts_with(prompt) {
            return Ok(prompt.len());
        }
        Err(Error::failed(format!(
            "message {}: the template writes the text before this answer differently when the answer follows; what \
             the model sees in a chat would not be what it was trained on",
            index + 1
        ))
        .hint("use a template file of your own, or train only the last answer (trained = \"response\")"))
    }

    /// Where the answer `messages[index]`, which begins at `start`, ends: behind the last control token of its turn.
    fn answer_end(&self, index: usize, start: usize, with_answer: &str) -> Result<usize> {
        let text = &self.output.text;
        let turn_end = text.bytes().zip(with_answer.bytes()).take_while(|(a, b)| a == b).count();
        let content = self.messages[index].1.trim();
        let found = text.get(start..turn_end.max(start)).and_then(|turn| turn.find(content));
        let content_end = found.map_or(start, |place| start + place + content.len());
        let within = |control: &&ControlPlace| control.range.start >= content_end && control.range.end <= turn_end;
        self.controls.iter().rev().find(within).map(|control| control.range.end).ok_or_else(|| self.endless(index))
    }

    /// Where the answer in a generation block ends: at the control token that ends the block or follows it.
    fn block_end(&self, block: &Range<usize>) -> Result<usize> {
        let text = &self.output.text;
        let end = block.start + text[block.clone()].trim_end().len();
        if self.controls.iter().any(|control| control.range.end == end && control.range.start >= block.start) {
            return Ok(end);
        }
        let next = self.controls.iter().find(|control| control.range.start >= end);
        let next = next.filter(|control| text[end..control.range.start].trim().is_empty());
        next.map(|control| control.range.end).ok_or_else(|| self.endless(self.messages.len() - 1))
    }

    fn endless(&self, index: usize) -> Error {
        Error::failed(format!(
            "message {}: no control token ends this answer: the model would never learn to stop",
            index + 1
        ))
        .hint("use a template file of your own that writes {eos} behind the answer")
    }
}

/// Takes the marks of generation blocks out; none if they do not come in pairs.
fn take_marks(text: &str) -> Option<Output> {
    let mut output = Output { text: String::with_capacity(text.len()), generated: Vec::new() };
    let mut open = None;
    for character in text.chars() {
        match (character, open) {
            (OPEN, None) => open = Some(output.text.len()),
            (CLOSE, Some(start)) => {
                output.generated.push(start..output.text.len());
                open = None;
            }
            (OPEN | CLOSE, _) => return None,
            _ => output.text.push(character),
        }
    }
    open.is_none().then_some(output)
}

#[cfg(test)]
mod tests;
