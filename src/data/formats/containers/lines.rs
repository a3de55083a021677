//! Files of which every line is a row: JSON lines, and tables without header and quoting.
//!
//! Blank lines are passed over, a byte-order mark and CRLF are taken off. A line has a limit, so that a file without
//! line ends cannot fill the memory.

use std::io::{BufRead, Read};

use serde_json::Value;

use super::{Container, Row, RowEntry, Rows};
use crate::data::formats::source::{read_error_at, Source, RECORD_LIMIT_BYTES};
use crate::error::{Error, Result};

/// One JSON object a line.
pub const JSON: Container =
    Container { name: "JSON lines", open: |source| Ok(Box::new(Lines::new(source, parse_object)) as Rows) };

/// One row a line, columns apart by tabs, no header, no quoting.
pub const TABS: Container = Container {
    name: "tab-separated lines",
    open: |source| {
        let columns = |line: &str| Ok(Row::Columns(line.split('\t').map(str::to_owned).collect()));
        Ok(Box::new(Lines::new(source, columns)))
    },
};

/// A JSON object as a row.
pub(super) fn parse_object(text: &str) -> Result<Row, String> {
    match serde_json::from_str::<Value>(text) {
        Ok(Value::Object(fields)) => Ok(Row::Object(fields)),
        Ok(other) => Err(format!("expected a JSON object, found {}", super::kind(&other))),
        Err(error) => Err(broken(text, &error)),
    }
}

/// serde_json's reason, with the column only: the line that it names counts from the start of the record.
fn broken(text: &str, error: &serde_json::Error) -> String {
    let reason = error.to_string();
    let reason = reason.split(" at line ").next().unwrap_or(&reason);
    let advice = if text.trim() == "{" { "; expected one object a line (convert the file: jq -c .)" } else { "" };
    format!("broken JSON at column {}: {reason}{advice}", error.column())
}

/// What makes a row of a line (without its line end); the reason if it cannot.
pub type ParseLine = fn(&str) -> Result<Row, String>;

/// The lines of a file as rows.
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
        self.number += 1;
        let read = limited.read_until(b'\n', &mut self.buffer);
        read.map_err(|error| read_error_at(&self.source.path, self.number, error))?;
        if self.buffer.len() as u64 > RECORD_LIMIT_BYTES {
            let place = format!("{}:{}", self.source.path.display(), self.number);
            return Err(Error::failed(format!("{place}: a line of more than {} MiB", RECORD_LIMIT_BYTES >> 20))
                .hint("one record must be one line; is this file in another format?"));
        }
        Ok(!self.buffer.is_empty())
    }

    fn entry(&self) -> Option<RowEntry> {
        let content = match decode_utf8(&self.buffer, self.number == 1) {
            Ok(text) if text.trim().is_empty() => return None,
            Ok(text) => (self.parse)(text.trim_end_matches(['\n', '\r'])),
            Err(reason) => Err(reason),
        };
        Some(RowEntry { line: self.number, content })
    }
}

impl Iterator for Lines {
    type Item = Result<RowEntry>;

    fn next(&mut self) -> Option<Result<RowEntry>> {
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
