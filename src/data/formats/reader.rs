//! Reads the files of a dataset one after the other: opens, recognises, parses, counts what cannot be used.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use super::containers::{self, Row, RowEntry, Rows};
use super::{source, BadLines, Format, Record, FORMATS};
use crate::error::{Error, Result};

/// Rows without a readable one before a file counts as nothing that can be recognised.
const PATIENCE: usize = 1000;

/// One record of a file, or why that row is none.
#[derive(Debug)]
pub struct Entry {
    /// Line in the file, from 1 (in Parquet files: row).
    pub line: u64,
    /// The record, or the reason for counting the line as bad.
    pub content: Result<Record, String>,
}

/// A record with its origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// The content.
    pub record: Record,
    /// Index into [`Reader::files`].
    pub file: usize,
    /// Line in that file, from 1.
    pub line: u64,
}

/// What a file was found to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recognised {
    /// Name of the format.
    pub format: &'static str,
    /// What the format is, in a few words.
    pub summary: &'static str,
    /// Name of the container.
    pub container: &'static str,
    /// The built-in template of the format.
    pub template: Option<&'static str>,
}

/// An open file whose format is known.
pub struct Entries {
    rows: Rows,
    /// Rows that were read to recognise the format.
    ahead: VecDeque<RowEntry>,
    parse: fn(Row) -> Result<Record, String>,
    /// What it was found to be.
    pub recognised: Recognised,
}

impl Entries {
    /// Opens a file; `format` is known, or found out by its first rows.
    ///
    /// # Errors
    /// A file that cannot be read, or that no format recognises.
    pub fn open(path: &Path, format: Option<Format>) -> Result<Entries> {
        Entries::of(source::open(path)?, format)
    }

    /// [`Entries::open`] of an open file.
    ///
    /// # Errors
    /// As [`Entries::open`].
    pub fn of(mut source: source::Source, format: Option<Format>) -> Result<Entries> {
        let path = source.path.clone();
        let container = containers::of(&mut source, format.as_ref())?;
        let mut rows = (container.open)(source)?;
        let mut ahead = VecDeque::new();
        let format = match format {
            Some(format) => format,
            None => recognise(&path, &mut rows, &mut ahead)?,
        };
        let Format { name, summary, template, .. } = format;
        let recognised = Recognised { format: name, summary, container: container.name, template };
        Ok(Entries { rows, ahead, parse: format.parse, recognised })
    }
}

impl Iterator for Entries {
    type Item = Result<Entry>;

    fn next(&mut self) -> Option<Result<Entry>> {
        let row = match self.ahead.pop_front() {
            Some(row) => row,
            None => match self.rows.next()? {
                Ok(row) => row,
                Err(error) => return Some(Err(error)),
            },
        };
        Some(Ok(Entry { line: row.line, content: row.content.and_then(self.parse) }))
    }
}

/// The format of the first readable row. The rows read are kept in `ahead`.
fn recognise(path: &Path, rows: &mut Rows, ahead: &mut VecDeque<RowEntry>) -> Result<Format> {
    while ahead.len() < PATIENCE {
        let Some(row) = rows.next().transpose()? else { break };
        ahead.push_back(row);
        let Some(Ok(row)) = ahead.back().map(|entry| entry.content.as_ref()) else { continue };
        if let Some(format) = FORMATS.iter().find(|format| (format.recognise)(row)) {
            return Ok(*format);
        }
        let line = ahead.back().map_or(0, |entry| entry.line);
        let found = match row {
            Row::Object(fields) => format!("the fields {}", fields.keys().cloned().collect::<Vec<_>>().join(", ")),
            Row::Columns(columns) => format!("{} columns without names", columns.len()),
            Row::Document(_) => "plain text".into(),
        };
        let known: Vec<&str> = FORMATS.iter().map(|format| format.name).collect();
        return Err(Error::failed(format!("{}:{line}: no known format: the record has {found}", path.display()))
            .hint(format!("rename the fields, or name the format in data.format ({})", known.join(", "))));
    }
    // Not one readable row: the messages about them say what is wrong, whatever the format.
    Ok(FORMATS[0])
}

/// Reads the files of a dataset one after the other.
pub struct Reader {
    files: Vec<PathBuf>,
    format: Option<Format>,
    bad_lines: BadLines,
    next_file: usize,
    current: Option<Entries>,
    recognised: Vec<Recognised>,
    failed: bool,
}

impl Reader {
    /// A reader of `files`, in that order, in `format` (none: found out file by file), which skips up to
    /// `max_bad_lines` rows that are no record and fails at the next.
    pub fn new(files: Vec<PathBuf>, format: Option<Format>, max_bad_lines: u64) -> Reader {
        let bad_lines = BadLines::with_limit(max_bad_lines);
        Reader { files, format, bad_lines, next_file: 0, current: None, recognised: Vec::new(), failed: false }
    }

    /// The files read.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// The account of rows skipped so far.
    pub fn bad_lines(&self) -> &BadLines {
        &self.bad_lines
    }

    /// What the files opened so far were found to be.
    pub fn recognised(&self) -> &[Recognised] {
        &self.recognised
    }

    fn advance(&mut self) -> Result<Option<Document>> {
        loop {
            let Some(entries) = &mut self.current else {
                let Some(path) = self.files.get(self.next_file) else { return Ok(None) };
                self.next_file += 1;
                let entries = Entries::open(path, self.format)?;
                self.recognised.push(entries.recognised);
                self.current = Some(entries);
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
