//! What a template writes around messages, found by having it write some.
//!
//! Other programs do not read this program's templates, and few read a model's Jinja. Most templates put fixed text
//! before and behind each message; those texts are found by rendering conversations of markers. Invariant: a [`Turns`]
//! writes a longer conversation exactly as its template does (it is compared before it is given out).

use crate::data::template::{Conversation, Message, Mode, Role, Template};
use crate::data::tokenize::Tokenizer;
use crate::error::Result;

/// Markers: content that no template writes by itself.
const SYSTEM: &str = "QsystemQ";
const USER: [&str; 3] = ["QuserAQ", "QuserBQ", "QuserCQ"];
const ANSWER: [&str; 2] = ["QanswerAQ", "QanswerBQ"];

/// The fixed texts of a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turns {
    /// Whether BOS comes first; it is in none of the texts.
    pub bos: bool,
    /// Around the first question of a conversation without a system prompt; the template's default one is in it.
    pub first: [String; 2],
    /// Before the system prompt, between it and the first question, behind the question; none if it is left out.
    pub first_with_system: Option<[String; 3]>,
    /// Around a later question; none if the template writes one question at a time.
    pub later: Option<[String; 2]>,
    /// Around an answer.
    pub answer: [String; 2],
}

impl Turns {
    /// The texts of `template`; `None` if it has no fixed ones, or cannot write a plain conversation.
    pub fn of(template: &Template, tokenizer: &Tokenizer) -> Option<Turns> {
        let renderer = Renderer { template, tokenizer };
        let (question, bos) = renderer.text(&[user(0)], Mode::Prompt).ok()?;
        let (exchange, _) = renderer.text(&[user(0), answer(0)], Mode::Training).ok()?;
        let first: [String; 2] = split(&question, &[USER[0]])?;
        let [head, between, end] = split(&exchange, &[USER[0], ANSWER[0]])?;
        let before = between.strip_prefix(&first[1]).filter(|_| head == first[0])?;
        let answer_around = [before.to_string(), end.clone()];
        let mut turns = Turns { bos, first, first_with_system: None, later: None, answer: answer_around };
        if template.is_instruction() {
            return Some(turns);
        }
        let with_system = renderer.text(&[system(), user(0)], Mode::Prompt);
        turns.first_with_system = with_system.ok().and_then(|(text, _)| split(&text, &[SYSTEM, USER[0]]));
        let (two, _) = renderer.text(&[user(0), answer(0), user(1)], Mode::Prompt).ok()?;
        let [_, _, later, behind] = split(&two, &[USER[0], ANSWER[0], USER[1]])?;
        // An example ends with its last control token; white space behind that belongs to the answer all the same.
        let rest = later.strip_prefix(&end)?;
        let space = rest.len() - rest.trim_start_matches('\n').len();
        turns.answer[1].push_str(&rest[..space]);
        turns.later = Some([rest[space..].to_string(), behind]);
        turns.writes_as(&renderer).ok()?.then_some(turns)
    }

    /// Compares a long conversation, with a system prompt if the template takes one.
    fn writes_as(&self, renderer: &Renderer<'_>) -> Result<bool> {
        let system = self.first_with_system.as_ref().map(|_| system());
        let turns = [user(0), answer(0), user(1), answer(1), user(2)];
        let messages: Vec<Message> = system.into_iter().chain(turns).collect();
        let (expected, _) = renderer.text(&messages, Mode::Prompt)?;
        Ok(self.prompt(&messages) == expected)
    }

    /// The text up to the place of the next answer, without BOS. Roles as in a conversation.
    pub fn prompt(&self, messages: &[Message]) -> String {
        let (system, turns) = match messages.split_first() {
            Some((first, rest)) if first.role == Role::System => (Some(first.content.as_str()), rest),
            _ => (None, messages),
        };
        let mut text = String::new();
        for (index, message) in turns.iter().enumerate() {
            let content = message.content.as_str();
            let around = |[before, behind]: &[String; 2]| [before.as_str(), content, behind].concat();
            text += &match (message.role, &self.first_with_system, &self.later) {
                (Role::Assistant, ..) => around(&self.answer),
                (_, Some([before, between, behind]), _) if index == 0 && system.is_some() => {
                    [before, system.unwrap_or_default(), between, content, behind].concat()
                }
                (.., Some(later)) if index > 0 => around(later),
                _ => around(&self.first),
            };
        }
        text
    }

    /// The template as Jinja text, which transformers and llama.cpp read.
    pub fn jinja(&self) -> String {
        let quoted = |text: &str| format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'").replace('\n', "\\n"));
        let around = |[before, behind]: &[String; 2]| {
            format!("{{{{ {} + message['content'] + {} }}}}", quoted(before), quoted(behind))
        };
        let mut text = String::from("{% if messages[0]['role'] == 'system' %}");
        text += "{% set system = messages[0]['content'] %}{% set turns = messages[1:] %}{% else %}";
        text += "{% set system = '' %}{% set turns = messages %}{% endif %}";
        if self.bos {
            text += "{{ bos_token }}";
        }
        text += "{% for message in turns %}{% if message['role'] == 'user' %}";
        let mut branches = Vec::new();
        if let Some([before, between, behind]) = &self.first_with_system {
            let (before, between, behind) = (quoted(before), quoted(between), quoted(behind));
            let written = format!("{{{{ {before} + system + {between} + message['content'] + {behind} }}}}");
            branches.push(("loop.first and system", written));
        }
        match &self.later {
            Some(later) => {
                branches.push(("loop.first", around(&self.first)));
                branches.push(("", around(later)));
            }
            None => branches.push(("", around(&self.first))),
        }
        let many = branches.len() > 1;
        for (index, (condition, written)) in branches.iter().enumerate() {
            text += &match (index, condition.is_empty()) {
                (0, false) => format!("{{% if {condition} %}}"),
                (_, false) => format!("{{% elif {condition} %}}"),
                (0, true) => String::new(),
                (_, true) => "{% else %}".into(),
            };
            text += written;
        }
        if many {
            text += "{% endif %}";
        }
        text + "{% else %}" + &around(&self.answer) + "{% endif %}{% endfor %}"
    }
}

struct Renderer<'a> {
    template: &'a Template,
    tokenizer: &'a Tokenizer,
}

impl Renderer<'_> {
    /// The text without a BOS in front, and whether there is one.
    fn text(&self, messages: &[Message], mode: Mode) -> Result<(String, bool)> {
        let rendered = self.template.render(self.tokenizer, &Conversation { messages: messages.to_vec() }, mode)?;
        let special = self.tokenizer.special();
        let bos = special.bos_token.as_ref().or(special.bos.as_ref());
        let begins = bos.is_some_and(|bos| rendered.ids.first() == Some(&bos.id));
        let text = match bos {
            Some(bos) if begins => rendered.text.strip_prefix(&bos.text).unwrap_or(&rendered.text).to_string(),
            _ => rendered.text,
        };
        Ok((text, begins))
    }
}

fn system() -> Message {
    Message::new(Role::System, SYSTEM)
}

fn user(index: usize) -> Message {
    Message::new(Role::User, USER[index])
}

fn answer(index: usize) -> Message {
    Message::new(Role::Assistant, ANSWER[index])
}

/// What stands around the markers, each of which must occur once and in this order.
fn split<const N: usize>(text: &str, markers: &[&str]) -> Option<[String; N]> {
    let mut parts = Vec::with_capacity(N);
    let mut rest = text;
    for marker in markers {
        let (before, behind) = rest.split_once(marker)?;
        parts.push(before.to_string());
        rest = behind;
    }
    parts.push(rest.to_string());
    let twice = markers.iter().any(|marker| parts.iter().any(|part| part.contains(marker)));
    if twice {
        None
    } else {
        parts.try_into().ok()
    }
}

#[cfg(test)]
#[path = "turns_tests.rs"]
mod tests;
