//! Reading a file line by line with a limit, and the account of lines that could not be used.
//!
//! Invariant: every line is either a record, blank, or counted in [`BadLines`]; none disappears.

use std::io::{BufRead, Read};
use std::path::Path;

use super::source::{read_error, Source, RECORD_LIMIT_BYTES};
use super::{Entry, Record};
use crate::error::{Error, Result};

/// How many bad lines are shown in full.
const SHOWN: usize = 5;

/// Lines that could not be used: how many, and the first few with their reason.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BadLines {
    /// How many there were.
    pub count: u64,
    /// `file:line: reason` of the first five.
    pub first: Vec<String>,
    /// How many may be skipped.
    pub limit: u64,
}

impl BadLines {
    /// An empty account that lets `limit` lines be skipped.
    pub fn with_limit(limit: u64) -> BadLines {
        BadLines { limit, ..BadLines::default() }
    }

    /// Counts one; an error once there are more than the limit.
    pub fn add(&mut self, path: &Path, line: u64, reason: &str) -> Result<()> {
        self.count += 1;
        if self.first.len() < SHOWN {
            self.first.push(format!("{}:{line}: {reason}", path.display()));
        }
        if self.count <= self.limit {
            return Ok(());
        }
        let last = format!("{}:{line}: {reason}", path.display());
        if self.limit == 0 {
            return Err(Error::failed(last).hint(
                "repair the line, or set data.max_bad_lines to skip up to that many (they are counted and shown)",
            ));
        }
        let mut shown = self.first.clone();
        if !shown.contains(&last) {
            shown.push(format!("... and the one over the limit: {last}"));
        }
        Err(Error::failed(format!(
            "{} unusable lines, {} may be skipped (data.max_bad_lines):\n  {}",
            self.count,
            self.limit,
            shown.join("\n  ")
        ))
        .hint("repair the data, or raise data.max_bad_lines"))
    }
}

/// What makes a record of a line (without its line end); the reason if it cannot.
pub type ParseLine = fn(&str) -> Result<Record, String>;

/// The lines of a file as entries. Blank lines are passed over, a byte-order mark and CRLF are taken off.
pub struct Lines {
    source: Source,
    parse: ParseLine,
    number: u64,
    buffer: Vec<u8>,
}

impl Lines {
    /// Reads `source` with one parser for every line.
    pub fn new(source: Source, parse: ParseLine) -> Lines {
        Lines { source, parse, number: 0, buffer: Vec::new() }
    }

    /// Fills the buffer with the next line; false at the end of the file.
    fn read_line(&mut self) -> Result<bool> {
        self.buffer.clear();
        // A huge line leaves a huge buffer behind; do not carry it through the whole file.
        self.buffer.shrink_to(1 << 20);
        let mut limited = (&mut self.source.reader).take(RECORD_LIMIT_BYTES + 1);
        limited.read_until(b'\n', &mut self.buffer).map_err(|error| read_error(&self.source.path, error))?;
        self.number += 1;
        if self.buffer.len() as u64 > RECORD_LIMIT_BYTES {
            let place = format!("{}:{}", self.source.path.display(), self.number);
            return Err(Error::failed(format!("{place}: a line of more than {} MiB", RECORD_LIMIT_BYTES >> 20))
                .hint("one record must be one line; is this file in another format?"));
        }
        Ok(!self.buffer.is_empty())
    }

    fn entry(&self) -> Option<Entry> {
        let content = match decode_utf8(&self.buffer, self.number == 1) {
            Ok(text) if text.trim().is_empty() => return None,
            Ok(text) => (self.parse)(text.trim_end_matches(['\n', '\r'])),
            Err(reason) => Err(reason),
        };
        Some(Entry { line: self.number, content })
    }
}

impl Iterator for Lines {
    type Item = Result<Entry>;

    fn next(&mut self) -> Option<Result<Entry>> {
        loop {
            match self.read_line() {
                Err(error) => return Some(Err(error)),
                Ok(false) => return None,
                Ok(true) => {}
            }
            if let Some(entry) = self.entry() {
                return Some(Ok(entry));
            }
        }
    }
}

/// Bytes as text; at the start of a file a UTF-8 byte-order mark is taken off and a UTF-16 one named.
pub fn decode_utf8(bytes: &[u8], at_start: bool) -> Result<&str, String> {
    if at_start && (bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff])) {
        return Err("UTF-16, expected UTF-8 (convert it: iconv -f UTF-16 -t UTF-8)".into());
    }
    let text = std::str::from_utf8(bytes).map_err(|error| {
        format!("not UTF-8: byte {:#04x} at offset {}", bytes[error.valid_up_to()], error.valid_up_to())
    })?;
    Ok(if at_start { text.strip_prefix('\u{feff}').unwrap_or(text) } else { text })
}
