//! Dataset formats: files in, records out, one at a time.
//!
//! A format is one file here and one line in [`FORMATS`]: it makes a [`Record`] of a row. How a file is cut into rows
//! is the business of [`containers`], so that every format comes as JSON lines, JSON array, CSV, TSV or Parquet, plain
//! or compressed. Which files are read, in which order, and how many bad records are let pass is decided here for all
//! alike.

pub mod alpaca;
pub mod bad_lines;
pub mod completion;
pub mod containers;
pub mod dolly;
pub mod evalita;
mod fields;
pub mod messages;
pub mod preference;
mod reader;
pub mod source;
pub mod text;
pub mod ultrachat;

use std::path::PathBuf;

use serde::Serialize;

pub use bad_lines::BadLines;
pub use containers::Row;
pub use reader::{Document, Entries, Entry, Reader, Recognised};
pub use source::Source;

use super::template::{Conversation, Instruction};
use crate::error::{Error, Result};

/// Every known format, the more particular first: the first that recognises a file's first row reads it.
pub const FORMATS: &[Format] = &[
    text::TEXT,
    messages::MESSAGES,
    preference::PREFERENCE,
    ultrachat::ULTRACHAT,
    dolly::DOLLY,
    alpaca::ALPACA,
    completion::COMPLETION,
    evalita::EVALITA,
];

/// What a format was called before.
const FORMER_NAMES: &[(&str, &str)] = &[("jsonl", "text")];

/// One dataset format.
#[derive(Debug, Clone, Copy)]
pub struct Format {
    /// Its name in `data.format`.
    pub name: &'static str,
    /// What it is, in a few words, for messages.
    pub summary: &'static str,
    /// What its rows are like.
    pub shape: Shape,
    /// Whether a file's first row looks like this format.
    pub recognise: fn(&Row) -> bool,
    /// The record of a row, or why there is none.
    pub parse: fn(Row) -> Result<Record, String>,
    /// The built-in template that its records are written with where none is named.
    pub template: Option<&'static str>,
}

/// What the rows of a format are like; decides about files whose name does not tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// A whole file, or an object.
    Text,
    /// Named values.
    Object,
    /// Columns without names.
    Columns,
}

/// What one row of a dataset says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Record {
    /// A document of raw text; never blank.
    Text(String),
    /// Turns of user and assistant; none empty but the system prompt.
    Conversation(Conversation),
    /// A task with its answer, neither empty.
    Instruction(Instruction),
    /// A question with a better and a worse answer.
    Preference(Preference),
}

/// A conversation up to a question, with a better and a worse answer to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Preference {
    /// Up to the question.
    pub prompt: Conversation,
    /// The better answer.
    pub chosen: String,
    /// The worse answer.
    pub rejected: String,
}

/// Names of all formats.
pub fn names() -> impl Iterator<Item = &'static str> {
    FORMATS.iter().map(|format| format.name)
}

/// The format of that name; `auto` gives none.
///
/// # Errors
/// An unknown name (usage).
pub fn by_name(name: &str) -> Result<Option<Format>> {
    if name == "auto" {
        return Ok(None);
    }
    let name = FORMER_NAMES.iter().find(|(former, _)| *former == name).map_or(name, |(_, now)| now);
    FORMATS.iter().find(|format| format.name == name).copied().map(Some).ok_or_else(|| {
        let known: Vec<&str> = names().collect();
        Error::usage(format!("unknown data format `{name}`, expected auto, {}", known.join(", ")))
    })
}

/// The files that `patterns` (files, folders, globs) name, in reading order; see [`source::find_files`].
pub fn find_files(patterns: &[String]) -> Result<Vec<PathBuf>> {
    source::find_files(patterns, &containers::is_data)
}

#[cfg(test)]
mod tests;
