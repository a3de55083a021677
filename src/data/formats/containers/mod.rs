//! Containers: how a file is cut into rows, whatever the rows mean.
//!
//! JSON lines, JSON arrays, tables, Parquet and whole files; gzip and zstd lie below ([`super::source`]). Which one a
//! file is follows from its first bytes and its name; where the name does not tell (`.txt`), from the format asked for.

mod array;
mod delimited;
mod lines;
mod parquet;
mod whole;

use std::io::BufRead;
use std::path::Path;

use serde_json::{Map, Value};

use super::source::{format_extension, read_error, Source};
use super::{Format, Shape};
use crate::error::{Error, Result};

/// A way to cut files into rows.
#[derive(Debug, Clone, Copy)]
pub struct Container {
    /// What it is, for messages.
    pub name: &'static str,
    /// Starts reading a file.
    pub open: fn(Source) -> Result<Rows>,
}

/// The rows of a file, in order. An `Err` is fatal (the file cannot be read further).
pub type Rows = Box<dyn Iterator<Item = Result<RowEntry>> + Send>;

/// One row, or why there is none.
#[derive(Debug)]
pub struct RowEntry {
    /// Line of the file at which it begins, from 1; in Parquet files the number of the row.
    pub line: u64,
    /// The row, or what is wrong with it.
    pub content: Result<Row, String>,
}

/// What a container knows of a row.
#[derive(Debug, Clone, PartialEq)]
pub enum Row {
    /// A whole file's text.
    Document(String),
    /// Named values.
    Object(Map<String, Value>),
    /// Values without names.
    Columns(Vec<String>),
}

/// Extensions that data files may have, lower case, without `.gz` / `.zst`.
pub const EXTENSIONS: &[&str] = &["txt", "jsonl", "json", "ndjson", "csv", "tsv", "parquet"];

/// What is wrong, said with this word for a JSON value.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// Whether the extension is one of data files.
pub fn is_data(path: &Path) -> bool {
    EXTENSIONS.contains(&format_extension(path).as_str())
}

/// The container of a file that is read as `format`, if that is known. Nothing of `source` is consumed.
///
/// # Errors
/// An extension that says nothing where no format is named; bytes that cannot be read.
pub fn of(source: &mut Source, format: Option<&Format>) -> Result<Container> {
    let extension = format_extension(&source.path);
    let start = source.reader.fill_buf().map_err(|error| read_error(&source.path, error))?;
    if start.starts_with(b"PAR1") {
        return Ok(parquet::PARQUET);
    }
    let start = start.strip_prefix("\u{feff}".as_bytes()).unwrap_or(start);
    let first = start.iter().copied().find(|byte| !byte.is_ascii_whitespace());
    let json = if first == Some(b'[') { array::JSON_ARRAY } else { lines::JSON };
    let shape = format.map(|format| format.shape);
    match (extension.as_str(), shape) {
        ("parquet", _) => Err(Error::file(&source.path, "not a Parquet file: it does not begin with PAR1")
            .hint("download or copy it again")),
        ("jsonl" | "json" | "ndjson", _) => Ok(json),
        ("tsv" | "csv" | "txt", Some(Shape::Columns)) => Ok(lines::TABS),
        ("tsv", None) if super::evalita::is_row(start) => Ok(lines::TABS),
        ("tsv", _) => Ok(delimited::TSV),
        ("csv", _) => Ok(delimited::CSV),
        ("txt", None | Some(Shape::Text)) => Ok(whole::WHOLE),
        (_, Some(Shape::Text)) => Ok(whole::WHOLE),
        (_, Some(Shape::Columns)) => Ok(lines::TABS),
        (_, Some(Shape::Object)) => Ok(json),
        (_, None) => Err(Error::file(
            &source.path,
            format_args!(
                "unknown extension `.{extension}`, expected one of .{} (or with .gz, .zst)",
                EXTENSIONS.join(", .")
            ),
        )
        .hint("rename the file, or name its format in data.format")),
    }
}
