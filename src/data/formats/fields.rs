//! What formats ask of rows: fields by name, as text that is not blank.

use serde_json::{Map, Value};

use super::containers::{kind, Row};

/// The fields of a row.
pub type Fields = Map<String, Value>;

/// Whether a row is an object with all of these fields.
pub fn has(row: &Row, names: &[&str]) -> bool {
    matches!(row, Row::Object(fields) if names.iter().all(|name| fields.contains_key(*name)))
}

/// The fields of a row that must be an object.
pub fn object(row: Row) -> Result<Fields, String> {
    match row {
        Row::Object(fields) => Ok(fields),
        Row::Document(_) => Err("expected an object with named fields, found plain text".into()),
        Row::Columns(_) => Err("expected an object with named fields, found columns without names".into()),
    }
}

/// Takes a field that must be there and be text.
pub fn string(fields: &mut Fields, name: &str) -> Result<String, String> {
    match fields.remove(name) {
        Some(Value::String(text)) => Ok(text),
        Some(Value::Null) | None => {
            let known: Vec<&str> = fields.keys().map(String::as_str).take(12).collect();
            Err(format!("no field `{name}` (there: {})", known.join(", ")))
        }
        Some(other) => Err(format!("field `{name}`: expected a string, found {}", kind(&other))),
    }
}

/// Takes a field that must be there and be text that is not blank.
pub fn filled(fields: &mut Fields, name: &str) -> Result<String, String> {
    let text = string(fields, name)?;
    match text.trim().is_empty() {
        true => Err(format!("field `{name}` is empty")),
        false => Ok(text),
    }
}

/// Takes a field that may be missing or null: then it is empty.
pub fn optional(fields: &mut Fields, name: &str) -> Result<String, String> {
    match fields.get(name) {
        None | Some(Value::Null) => Ok(String::new()),
        Some(_) => string(fields, name),
    }
}
