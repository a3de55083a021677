//! Records of JSON files: lines, or one array; plain, gzip or zstd.

use super::super::task::Example;
use crate::data::formats::source;
use crate::error::{Error, Result};
use serde_json::Value;
use std::collections::HashSet;
use std::io::Read;
use std::path::Path;

/// One record and where it is.
pub struct Record<'a> {
    /// Its fields.
    pub value: &'a Value,
    /// Number of the record in its file, from 0.
    pub index: usize,
}

/// The whole text of a file, decompressed.
///
/// # Errors
/// The file system; text that is not UTF-8.
pub fn read_text(path: &Path) -> Result<String> {
    let mut bytes = Vec::new();
    let mut opened = source::open(path)?;
    opened.reader.read_to_end(&mut bytes).map_err(|error| source::read_error(path, error))?;
    String::from_utf8(bytes)
        .map_err(|error| Error::file(path, format_args!("not UTF-8 at byte {}", error.utf8_error().valid_up_to())))
}

/// Turns each record of a file into an example.
///
/// # Errors
/// Broken JSON or a record that is none, with its line; two examples with the same id.
pub fn examples(path: &Path, make: fn(&Record<'_>) -> Result<Example>) -> Result<Vec<Example>> {
    let text = read_text(path)?;
    let text = text.trim_start_matches('\u{feff}');
    let mut examples = Vec::new();
    let mut seen = HashSet::new();
    for (index, (line, value)) in records(path, text)?.iter().enumerate() {
        let place = format!("{}:{line}", path.display());
        let example = make(&Record { value, index }).map_err(|error| error.at(&place))?;
        if !seen.insert(example.id.clone()) {
            return Err(Error::failed(format!("{place}: a second example with id `{}`", example.id)));
        }
        examples.push(example);
    }
    match examples.is_empty() {
        true => Err(Error::file(path, "no example in it")),
        false => Ok(examples),
    }
}

/// All records with the lines they begin on.
fn records(path: &Path, text: &str) -> Result<Vec<(usize, Value)>> {
    let broken = |line: usize, error: serde_json::Error| {
        let reason = error.to_string();
        let reason = reason.split(" at line ").next().unwrap_or(&reason).to_owned();
        let hint = "expected one JSON object a line, or one array of objects";
        Error::failed(format!("{}:{line}: broken JSON: {reason}", path.display())).hint(hint)
    };
    if text.trim_start().starts_with('[') {
        let values: Vec<Value> = serde_json::from_str(text).map_err(|error| broken(error.line(), error))?;
        return Ok(values.into_iter().map(|value| (1, value)).collect());
    }
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(index, line)| match serde_json::from_str(line) {
            Ok(value) => Ok((index + 1, value)),
            Err(error) => Err(broken(index + 1, error)),
        })
        .collect()
}

impl Record<'_> {
    /// The record's own `id`, else its number.
    pub fn id(&self) -> String {
        match &self.value["id"] {
            Value::String(id) => id.clone(),
            Value::Number(id) => id.to_string(),
            _ => self.index.to_string(),
        }
    }

    /// A field's text.
    ///
    /// # Errors
    /// No such field, or no text.
    pub fn text(&self, field: &str) -> Result<&str> {
        self.value[field].as_str().ok_or_else(|| self.wrong(field, "a text"))
    }

    /// A field's text, if it is one and not empty.
    pub fn some_text(&self, field: &str) -> Option<&str> {
        self.value[field].as_str().filter(|text| !text.is_empty())
    }

    /// A whole number, or one written as text.
    ///
    /// # Errors
    /// Neither.
    pub fn number(&self, field: &str) -> Result<usize> {
        let value = &self.value[field];
        let number = value.as_u64().or_else(|| value.as_str()?.trim().parse().ok());
        number.map(|number| number as usize).ok_or_else(|| self.wrong(field, "a number from 0"))
    }

    /// What was expected of a field, and what it is.
    pub fn wrong(&self, field: &str, expected: &str) -> Error {
        let found = match &self.value[field] {
            Value::Null if !self.value.is_object() => "no JSON object".to_string(),
            Value::Null => "none".to_string(),
            value => value.to_string().chars().take(60).collect(),
        };
        Error::failed(format!("field `{field}`: expected {expected}, found {found}"))
    }

    /// The place of a right choice among `count`, checked.
    ///
    /// # Errors
    /// A place beyond them.
    pub fn choice(&self, field: &str, place: usize, count: usize) -> Result<usize> {
        match place < count {
            true => Ok(place),
            false => Err(self.wrong(field, &format!("one of {count} choices"))),
        }
    }

    /// The place of a letter from A.
    ///
    /// # Errors
    /// No letter, or one beyond the choices.
    pub fn letter(&self, field: &str, count: usize) -> Result<usize> {
        let letter = self.text(field)?.trim().bytes().next().filter(u8::is_ascii_uppercase);
        let place = letter.map(|letter| usize::from(letter - b'A')).unwrap_or(count);
        self.choice(field, place, count)
    }
}
