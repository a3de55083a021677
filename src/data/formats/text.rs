//! Raw text, for language adaptation: `.txt` files and JSON lines with a `text` field.
//!
//! `text`: one file is one document, as it is (blank lines included); CRLF becomes LF and line ends at the end of the
//! file are dropped. `jsonl`: one JSON object a line with a string `text`; other fields are ignored. The latter is the
//! schema of clean_mc4_it, `{"timestamp", "url", "text"}` in `.json.gz` files.

use std::io::Read;

use serde::Deserialize;

use super::lines::{decode_utf8, Lines};
use super::source::{read_error, Source, RECORD_LIMIT_BYTES};
use super::{Entries, Entry, Format, Record};
use crate::error::{Error, Result};

/// Plain text, one document a file.
pub const PLAIN: Format = Format {
    name: "text",
    summary: "plain text, one document a file",
    extensions: &["txt"],
    detect: |_| true,
    open: open_plain,
};

/// JSON lines with a string field `text`.
pub const JSONL: Format = Format {
    name: "jsonl",
    summary: "one JSON object a line, {\"text\": \"...\"}",
    extensions: &["jsonl", "json", "ndjson"],
    detect: |line| line.trim_start().starts_with('{') && line.contains("\"text\""),
    open: |source| Ok(Box::new(Lines::new(source, parse_line))),
};

fn open_plain(source: Source) -> Result<Entries> {
    let Source { path, reader } = source;
    let mut bytes = Vec::new();
    reader.take(RECORD_LIMIT_BYTES + 1).read_to_end(&mut bytes).map_err(|error| read_error(&path, error))?;
    if bytes.len() as u64 > RECORD_LIMIT_BYTES {
        return Err(Error::file(&path, format_args!("a document of more than {} MiB", RECORD_LIMIT_BYTES >> 20))
            .hint("split the file, or write JSON lines with one document in each `text`"));
    }
    let (line, content) = match decode_utf8(&bytes, true) {
        Ok(text) => (1, document(text.replace("\r\n", "\n").trim_end_matches('\n').to_owned())),
        Err(reason) => {
            let valid = std::str::from_utf8(&bytes).map_or_else(|error| error.valid_up_to(), str::len);
            (1 + bytes[..valid].iter().filter(|&&byte| byte == b'\n').count() as u64, Err(reason))
        }
    };
    Ok(Box::new(std::iter::once(Ok(Entry { line, content }))))
}

#[derive(Deserialize)]
struct Line {
    text: Option<serde_json::Value>,
}

fn parse_line(line: &str) -> Result<Record, String> {
    if line.trim_start().starts_with('[') {
        // serde would take an array's first element for the first field.
        return Err("expected a JSON object, found an array (convert the file: jq -c '.[]')".into());
    }
    match serde_json::from_str::<Line>(line) {
        Ok(Line { text: Some(serde_json::Value::String(text)) }) => document(text),
        Ok(Line { text: Some(other) }) => Err(format!("field `text`: expected a string, found {}", kind(&other))),
        Ok(Line { text: None }) => Err("no field `text` in the JSON object".into()),
        Err(error) => Err(broken(line, &error)),
    }
}

fn document(text: String) -> Result<Record, String> {
    if text.trim().is_empty() {
        return Err("the text is empty".into());
    }
    Ok(Record::Text(text))
}

fn kind(value: &serde_json::Value) -> &'static str {
    match value {
        serde_json::Value::Null => "null",
        serde_json::Value::Bool(_) => "a boolean",
        serde_json::Value::Number(_) => "a number",
        serde_json::Value::String(_) => "a string",
        serde_json::Value::Array(_) => "an array",
        serde_json::Value::Object(_) => "an object",
    }
}

/// serde_json's reason, with the column only: the line it names is always 1 here.
fn broken(line: &str, error: &serde_json::Error) -> String {
    let reason = error.to_string();
    let reason = reason.split(" at line ").next().unwrap_or(&reason);
    let advice = if line.trim() == "{" { "; expected one object a line (convert the file: jq -c .)" } else { "" };
    format!("broken JSON at column {}: {reason}{advice}", error.column())
}
