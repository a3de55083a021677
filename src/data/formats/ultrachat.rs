//! UltraChat: `{"id": "0", "data": ["user's turn", "assistant's turn", ...]}`, the user begins, an answer ends
//! (github.com/thunlp/UltraChat).

use serde_json::Value;

use super::containers::{kind, Row};
use super::messages::check_turns;
use super::{fields, Format, Record, Shape};
use crate::data::template::{Conversation, Message, Role};

/// UltraChat dialogues.
pub const ULTRACHAT: Format = Format {
    name: "ultrachat",
    summary: "UltraChat dialogues",
    shape: Shape::Object,
    recognise: |row| match row {
        Row::Object(object) => {
            object.get("data").and_then(Value::as_array).is_some_and(|turns| turns.iter().all(Value::is_string))
        }
        _ => false,
    },
    parse,
    template: None,
};

fn parse(row: Row) -> Result<Record, String> {
    let mut object = fields::object(row)?;
    let turns = object.remove("data").ok_or("no field `data`")?;
    let Value::Array(turns) = turns else {
        return Err(format!("field `data`: expected a list of turns, found {}", kind(&turns)));
    };
    let mut messages = Vec::with_capacity(turns.len());
    for (place, turn) in turns.into_iter().enumerate() {
        let role = if place.is_multiple_of(2) { Role::User } else { Role::Assistant };
        match turn {
            Value::String(text) => messages.push(Message::new(role, text)),
            other => return Err(format!("turn {}: expected text, found {}", place + 1, kind(&other))),
        }
    }
    check_turns(&messages, Role::Assistant)?;
    Ok(Record::Conversation(Conversation { messages }))
}
