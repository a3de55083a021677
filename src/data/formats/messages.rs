//! Conversations as lists of messages, in the two spellings in use: `{"messages": [{"role", "content"}, ...]}`
//! (ultrachat_200k, OpenAI) and `{"conversations": [{"from", "value"}, ...]}` (ShareGPT).
//!
//! An optional system message stands first; user and assistant then take turns, the user begins, an answer ends. Anything
//! else is an error with the number of the message: a dataset with other turns must say what they mean.

use serde_json::Value;

use super::containers::{kind, Row};
use super::{fields, Format, Record, Shape};
use crate::data::template::{Conversation, Message, Role};

/// Lists of messages.
pub const MESSAGES: Format = Format {
    name: "messages",
    summary: "conversations as lists of messages",
    shape: Shape::Object,
    recognise: |row| match row {
        Row::Object(object) => ["messages", "conversations"].iter().any(|name| object.contains_key(*name)),
        _ => false,
    },
    parse: |row| {
        let mut object = fields::object(row)?;
        let list = object.remove("messages").filter(|list| !list.is_null()).or_else(|| object.remove("conversations"));
        let list = list.ok_or("no field `messages` or `conversations`")?;
        let conversation = Conversation { messages: messages(&list)? };
        check_turns(&conversation.messages, Role::Assistant)?;
        Ok(Record::Conversation(conversation))
    },
    template: None,
};

/// A list of messages in either spelling.
pub(super) fn messages(list: &Value) -> Result<Vec<Message>, String> {
    // Tables hold the list as JSON text.
    if let Value::String(text) = list {
        let list: Value = serde_json::from_str(text).map_err(|_| "expected a list of messages, found text")?;
        return if list.is_string() { Err("expected a list of messages, found text".into()) } else { messages(&list) };
    }
    let list = list.as_array().ok_or_else(|| format!("expected a list of messages, found {}", kind(list)))?;
    let message = |(place, value): (usize, &Value)| message(value).map_err(|what| at(place, &what));
    list.iter().enumerate().map(message).collect()
}

fn at(place: usize, what: &str) -> String {
    format!("message {}: {what}", place + 1)
}

fn message(value: &Value) -> Result<Message, String> {
    let text = |names: [&str; 2]| names.iter().find_map(|name| value.get(*name)).filter(|value| !value.is_null());
    let role = text(["role", "from"]).and_then(Value::as_str).ok_or("no field `role` or `from`")?;
    let role = match role.to_lowercase().as_str() {
        "system" => Role::System,
        "user" | "human" => Role::User,
        "assistant" | "gpt" | "model" | "bot" | "chatgpt" => Role::Assistant,
        _ => return Err(format!("unknown role `{role}`, expected system, user (human) or assistant (gpt)")),
    };
    let content = text(["content", "value"]).ok_or("no field `content` or `value`")?;
    Ok(Message::new(role, content_text(content)?))
}

/// Text, or a list of parts that are all text.
fn content_text(content: &Value) -> Result<String, String> {
    match content {
        Value::String(text) => Ok(text.clone()),
        Value::Array(parts) => parts
            .iter()
            .map(|part| match (part["type"].as_str(), part["text"].as_str()) {
                (Some("text"), Some(text)) => Ok(text),
                (other, _) => Err(format!("a part of type `{}`: only text can be learned", other.unwrap_or("?"))),
            })
            .collect(),
        other => Err(format!("content: expected text, found {}", kind(other))),
    }
}

/// Checks the order of turns, that none is empty, and that the last is `last`'s.
pub(super) fn check_turns(messages: &[Message], last: Role) -> Result<(), String> {
    let system = usize::from(messages.first().is_some_and(|first| first.role == Role::System));
    if messages.len() == system {
        return Err("the conversation has no messages of user and assistant".into());
    }
    for (place, message) in messages.iter().enumerate().skip(system) {
        let expected = if (place - system).is_multiple_of(2) { Role::User } else { Role::Assistant };
        if message.role != expected {
            let what = format!("expected the {}'s turn, found the {}'s", expected.name(), message.role.name());
            return Err(at(place, &what));
        }
        if message.content.trim().is_empty() {
            return Err(at(place, &format!("the {}'s turn is empty", message.role.name())));
        }
    }
    let found = messages.last().map_or(last, |message| message.role);
    match found == last {
        true => Ok(()),
        false => Err(at(
            messages.len() - 1,
            &format!("the last turn is the {}'s, expected the {}'s", found.name(), last.name()),
        )),
    }
}
