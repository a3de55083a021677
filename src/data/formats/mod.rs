//! Dataset formats: files in, records out, one at a time.
//!
//! A format is one file here and one line in [`FORMATS`]. It turns one open file into [`Entry`] items: a record or the
//! reason why that line is none. Which files are read, in which order, and how many bad lines are let pass is decided
//! here for all formats alike.

pub mod lines;
pub mod source;
pub mod text;

use std::io::BufRead;
use std::path::{Path, PathBuf};

pub use lines::BadLines;
pub use source::Source;

use crate::error::{Error, Result};

/// Every known format. The first whose extension and `detect` agree with a file reads it.
pub const FORMATS: &[Format] = &[text::PLAIN, text::JSONL];

/// One dataset format.
#[derive(Debug, Clone, Copy)]
pub struct Format {
    /// Its name in `data.format`.
    pub name: &'static str,
    /// What it is, in a few words, for messages.
    pub summary: &'static str,
    /// File extensions it may have, lower case, without `.gz` / `.zst`.
    pub extensions: &'static [&'static str],
    /// Whether a file's first line that is not blank looks like this format. A long line may come cut (64 KiB).
    pub detect: fn(first_line: &str) -> bool,
    /// Starts reading a file.
    pub open: fn(Source) -> Result<Entries>,
}

/// What a file holds, in order. An `Err` is fatal (the file cannot be read further).
pub type Entries = Box<dyn Iterator<Item = Result<Entry>> + Send>;

/// One record of a file, or why that line is none.
#[derive(Debug)]
pub struct Entry {
    /// Line number in the file, from 1.
    pub line: u64,
    /// The record, or the reason for counting the line as bad.
    pub content: Result<Record, String>,
}

/// What one line (or file) of a dataset says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// A document of raw text; never blank.
    Text(String),
}

/// A record with its origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// The content.
    pub record: Record,
    /// Index into [`Reader::files`].
    pub file: usize,
    /// Line number in that file, from 1.
    pub line: u64,
}

/// Reads the files of a dataset one after the other.
pub struct Reader {
    files: Vec<PathBuf>,
    format: Option<Format>,
    bad_lines: BadLines,
    next_file: usize,
    current: Option<Entries>,
    failed: bool,
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
    FORMATS.iter().find(|format| format.name == name).copied().map(Some).ok_or_else(|| {
        let known: Vec<&str> = FORMATS.iter().map(|format| format.name).collect();
        Error::usage(format!("unknown data format `{name}`, expected auto, {}", known.join(", ")))
    })
}

/// Whether some format claims the file's extension.
fn is_data(path: &Path) -> bool {
    let extension = source::format_extension(path);
    FORMATS.iter().any(|format| format.extensions.contains(&extension.as_str()))
}

/// The files that `patterns` (files, folders, globs) name, in reading order; see [`source::find_files`].
pub fn find_files(patterns: &[String]) -> Result<Vec<PathBuf>> {
    source::find_files(patterns, &is_data)
}

impl Reader {
    /// A reader of `files`, in that order, in `format` (none: found out file by file), which skips up to
    /// `max_bad_lines` lines that are no record and fails at the next.
    pub fn new(files: Vec<PathBuf>, format: Option<Format>, max_bad_lines: u64) -> Reader {
        let bad_lines = BadLines::with_limit(max_bad_lines);
        Reader { files, format, bad_lines, next_file: 0, current: None, failed: false }
    }

    /// The files read.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// The account of lines skipped so far.
    pub fn bad_lines(&self) -> &BadLines {
        &self.bad_lines
    }

    fn advance(&mut self) -> Result<Option<Document>> {
        loop {
            let Some(entries) = &mut self.current else {
                let Some(path) = self.files.get(self.next_file) else { return Ok(None) };
                self.next_file += 1;
                let mut opened = source::open(path)?;
                let format = match self.format {
                    Some(format) => format,
                    None => detect(&mut opened)?,
                };
                self.current = Some((format.open)(opened)?);
                continue;
            };
            let file = self.next_file - 1;
            match entries.next().transpose()? {
                None => self.current = None,
                Some(Entry { line, content: Ok(record) }) => return Ok(Some(Document { record, file, line })),
                Some(Entry { line, content: Err(reason) }) => self.bad_lines.add(&self.files[file], line, &reason)?,
            }
        }
    }
}

impl Iterator for Reader {
    type Item = Result<Document>;

    fn next(&mut self) -> Option<Result<Document>> {
        if self.failed {
            return None;
        }
        let next = self.advance();
        self.failed = next.is_err();
        next.transpose()
    }
}

/// Which format reads this file: by extension, then by the first line. A file that no format recognises is given to the
/// first one with its extension, whose messages then say what is wrong with the first line.
fn detect(source: &mut Source) -> Result<Format> {
    let extension = source::format_extension(&source.path);
    let candidates: Vec<&Format> = FORMATS.iter().filter(|f| f.extensions.contains(&extension.as_str())).collect();
    let Some(first) = candidates.first() else {
        let known: Vec<&str> = FORMATS.iter().flat_map(|format| format.extensions).copied().collect();
        return Err(Error::file(
            &source.path,
            format_args!(
                "unknown extension `.{extension}`, expected one of .{} (or with .gz, .zst)",
                known.join(", .")
            ),
        )
        .hint("rename the file, or name its format in data.format"));
    };
    if candidates.len() == 1 {
        return Ok(**first);
    }
    // Whatever lies in the buffer is enough to tell formats apart; nothing is consumed.
    let start = source.reader.fill_buf().map_err(|error| source::read_error(&source.path, error))?;
    let start = String::from_utf8_lossy(start);
    let line = start.trim_start_matches('\u{feff}').lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
    Ok(**candidates.iter().find(|format| (format.detect)(line)).unwrap_or(first))
}

#[cfg(test)]
mod tests;
