//! Preferences: `{"prompt", "chosen", "rejected"}`, the answers as text or as lists of messages that end in them
//! (ultrafeedback_binarized, orpo-dpo-mix). They are read and checked; nothing trains on them yet.

use serde_json::Value;

use super::fields::{self, Fields};
use super::messages::{check_turns, messages};
use super::{Format, Preference, Record, Shape};
use crate::data::template::{Conversation, Message, Role};

/// Better and worse answers.
pub const PREFERENCE: Format = Format {
    name: "preference",
    summary: "preferences (a better and a worse answer)",
    shape: Shape::Object,
    recognise: |row| fields::has(row, &["chosen", "rejected"]),
    parse: |row| {
        let mut object = fields::object(row)?;
        let chosen = answer(&mut object, "chosen")?;
        let rejected = answer(&mut object, "rejected")?;
        let prompt = prompt(&mut object, chosen.0.as_ref(), rejected.0.as_ref())?;
        check_turns(&prompt, Role::User)?;
        let (chosen, rejected) = (chosen.1, rejected.1);
        Ok(Record::Preference(Preference { prompt: Conversation { messages: prompt }, chosen, rejected }))
    },
    template: None,
};

/// The messages before an answer, where it comes with them, and the answer.
fn answer(object: &mut Fields, name: &str) -> Result<(Option<Vec<Message>>, String), String> {
    if !object.get(name).is_some_and(Value::is_array) {
        return Ok((None, fields::filled(object, name)?));
    }
    let mut list = messages(&object[name]).map_err(|what| format!("field `{name}`: {what}"))?;
    check_turns(&list, Role::Assistant).map_err(|what| format!("field `{name}`: {what}"))?;
    let last = list.pop().map_or(String::new(), |message| message.content);
    Ok((Some(list), last))
}

/// The messages up to the question: those before the answers, or the field `prompt`.
fn prompt(
    object: &mut Fields,
    chosen: Option<&Vec<Message>>,
    rejected: Option<&Vec<Message>>,
) -> Result<Vec<Message>, String> {
    match (chosen, rejected) {
        (Some(chosen), Some(rejected)) if chosen == rejected => return Ok(chosen.clone()),
        (Some(_), Some(_)) => return Err("`chosen` and `rejected` answer different questions".into()),
        (Some(_), None) | (None, Some(_)) => {
            return Err("one of `chosen` and `rejected` is text, the other a list".into())
        }
        (None, None) => {}
    }
    match object.get("prompt") {
        Some(list @ Value::Array(_)) => messages(list).map_err(|what| format!("field `prompt`: {what}")),
        _ => Ok(vec![Message::new(Role::User, fields::filled(object, "prompt")?)]),
    }
}
