//! A JSON file that is one array of objects, read one element at a time: the file is never held as a whole.
//!
//! Elements are found by their brackets and quotes alone, so that one with broken JSON inside does not end the file.

use std::io::BufRead;

use super::lines::{decode_utf8, parse_object};
use super::{Container, RowEntry, Rows};
use crate::data::formats::source::{read_error_at, Source, RECORD_LIMIT_BYTES};
use crate::error::{Error, Result};

/// One array of objects.
pub const JSON_ARRAY: Container = Container {
    name: "a JSON array",
    open: |source| Ok(Box::new(Elements { source, line: 1, state: State::Start, element: Vec::new() }) as Rows),
};

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Before the opening bracket.
    Start,
    /// Between elements.
    Between,
    /// Behind the closing bracket, or after an error.
    Done,
}

/// Where the scan of one element stands.
#[derive(Default)]
struct Scan {
    depth: usize,
    in_string: bool,
    escaped: bool,
}

impl Scan {
    /// Takes a byte in; whether the element ends before it.
    fn ends_before(&mut self, byte: u8) -> bool {
        if self.in_string {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = true,
                b'"' => self.in_string = false,
                _ => {}
            }
            return false;
        }
        match byte {
            b'"' => self.in_string = true,
            b'[' | b'{' => self.depth += 1,
            b']' | b'}' if self.depth > 0 => self.depth -= 1,
            b',' | b']' => return self.depth == 0,
            _ => {}
        }
        false
    }
}

struct Elements {
    source: Source,
    line: u64,
    state: State,
    element: Vec<u8>,
}

impl Elements {
    fn peek(&mut self) -> Result<Option<u8>> {
        let buffer = self.source.reader.fill_buf();
        let buffer = buffer.map_err(|error| read_error_at(&self.source.path, self.line, error))?;
        Ok(buffer.first().copied())
    }

    fn take(&mut self, byte: u8) {
        self.line += u64::from(byte == b'\n');
        self.source.reader.consume(1);
    }

    /// Passes over white space (and a byte-order mark at the start); the byte behind it.
    fn skip_blanks(&mut self) -> Result<Option<u8>> {
        while let Some(byte) = self.peek()? {
            let mark = self.state == State::Start && [0xef, 0xbb, 0xbf].contains(&byte);
            if !byte.is_ascii_whitespace() && !mark {
                return Ok(Some(byte));
            }
            self.take(byte);
        }
        Ok(None)
    }

    fn unfinished(&self) -> Error {
        Error::failed(format!("{}:{}: the file ends before its array does", self.source.path.display(), self.line))
            .hint("download or copy it again, or close the array with ]")
    }

    fn element(&mut self) -> Result<Option<RowEntry>> {
        if self.state == State::Start {
            self.skip_blanks()?;
            self.take(b'[');
            self.state = State::Between;
        }
        let first = self.skip_blanks()?.ok_or_else(|| self.unfinished())?;
        if first == b']' {
            self.take(first);
            self.state = State::Done;
            let rest = self.skip_blanks()?;
            let line = self.line;
            return Ok(rest.map(|_| RowEntry { line, content: Err("text behind the end of the array".into()) }));
        }
        let (line, mut scan) = (self.line, Scan::default());
        self.element.clear();
        self.element.shrink_to(1 << 20);
        loop {
            let byte = self.peek()?.ok_or_else(|| self.unfinished())?;
            if scan.ends_before(byte) {
                if byte == b',' {
                    self.take(byte);
                }
                break;
            }
            self.take(byte);
            self.element.push(byte);
            if self.element.len() as u64 > RECORD_LIMIT_BYTES {
                let place = format!("{}:{line}", self.source.path.display());
                return Err(Error::failed(format!(
                    "{place}: an element of more than {} MiB",
                    RECORD_LIMIT_BYTES >> 20
                )));
            }
        }
        Ok(Some(RowEntry { line, content: decode_utf8(&self.element, false).and_then(parse_object) }))
    }
}

impl Iterator for Elements {
    type Item = Result<RowEntry>;

    fn next(&mut self) -> Option<Result<RowEntry>> {
        if self.state == State::Done {
            return None;
        }
        let element = self.element();
        if element.is_err() {
            self.state = State::Done;
        }
        element.transpose()
    }
}
