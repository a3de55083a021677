//! Raw text, for language adaptation: `.txt` files, each one document, and objects with a field `text`.
//!
//! The latter is the schema of clean_mc4_it, `{"timestamp", "url", "text"}` in `.json.gz` files; other fields are
//! ignored.

use super::containers::{kind, Row};
use super::{fields, Format, Record, Shape};

/// Raw text.
pub const TEXT: Format = Format {
    name: "text",
    summary: "raw text",
    shape: Shape::Text,
    recognise: |row| match row {
        Row::Document(_) => true,
        Row::Object(object) => object.contains_key("text") && !object.contains_key("messages"),
        Row::Columns(_) => false,
    },
    parse,
    template: None,
};

fn parse(row: Row) -> Result<Record, String> {
    let text = match row {
        Row::Document(text) => text,
        row => match fields::object(row)?.remove("text") {
            Some(serde_json::Value::String(text)) => text,
            Some(serde_json::Value::Null) | None => return Err("no field `text` in the JSON object".into()),
            Some(other) => return Err(format!("field `text`: expected a string, found {}", kind(&other))),
        },
    };
    match text.trim().is_empty() {
        true => Err("the text is empty".into()),
        false => Ok(Record::Text(text)),
    }
}
