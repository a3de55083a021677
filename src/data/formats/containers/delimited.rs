//! Tables with a header: CSV and TSV (RFC 4180 quoting), each row an object of its columns.

use std::io::{self, Read};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use serde_json::{Map, Value};

use super::lines::decode_utf8;
use super::{Container, Row, RowEntry, Rows};
use crate::data::formats::source::{read_error_at, Source, RECORD_LIMIT_BYTES};
use crate::error::{Error, Result};

/// Columns apart by commas.
pub const CSV: Container = Container { name: "a CSV table", open: |source| open(source, b',') };

/// Columns apart by tabs.
pub const TSV: Container = Container { name: "a TSV table", open: |source| open(source, b'\t') };

/// Kind of the errors about a record, which no file system and no decompressor reports.
const OF_THE_RECORD: io::ErrorKind = io::ErrorKind::Unsupported;

/// Stops a record that does not end: too long, or with a quote that the file never closes, which the reader of tables
/// takes for a field up to the end.
struct Bounded {
    reader: Box<dyn io::BufRead + Send>,
    left: Arc<AtomicU64>,
    delimiter: u8,
    place: Place,
}

/// Where in a record a byte stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    FieldStart,
    Plain,
    Quoted,
    /// Behind a quote in a quoted field: its end, or the first of two that mean one.
    QuoteInQuoted,
}

impl Place {
    fn next(self, byte: u8, delimiter: u8) -> Place {
        match (self, byte) {
            (Place::Quoted, b'"') => Place::QuoteInQuoted,
            (Place::Quoted, _) | (Place::FieldStart | Place::QuoteInQuoted, b'"') => Place::Quoted,
            (_, b'\n' | b'\r') => Place::FieldStart,
            (_, byte) if byte == delimiter => Place::FieldStart,
            _ => Place::Plain,
        }
    }
}

impl Read for Bounded {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.reader.read(buffer)?;
        if count == 0 && !buffer.is_empty() && self.place == Place::Quoted {
            return Err(io::Error::new(OF_THE_RECORD, "a quote is opened here and never closed"));
        }
        self.place = buffer[..count].iter().fold(self.place, |place, byte| place.next(*byte, self.delimiter));
        let left = self.left.load(Ordering::Relaxed);
        let left = left.checked_sub(count as u64).ok_or_else(|| {
            let limit = RECORD_LIMIT_BYTES >> 20;
            io::Error::new(OF_THE_RECORD, format!("a record of more than {limit} MiB (a quote never closed?)"))
        })?;
        self.left.store(left, Ordering::Relaxed);
        Ok(count)
    }
}

struct Table {
    source: std::path::PathBuf,
    reader: csv::Reader<Bounded>,
    left: Arc<AtomicU64>,
    names: Vec<String>,
    done: bool,
}

fn open(source: Source, delimiter: u8) -> Result<Rows> {
    let left = Arc::new(AtomicU64::new(RECORD_LIMIT_BYTES));
    let bounded = Bounded { reader: source.reader, left: left.clone(), delimiter, place: Place::FieldStart };
    let mut reader = csv::ReaderBuilder::new().delimiter(delimiter).flexible(true).from_reader(bounded);
    let header = reader.byte_headers().map_err(|error| failed(&source.path, 1, error))?.clone();
    let mut names = Vec::new();
    for name in &header {
        let name = decode_utf8(name, names.is_empty())
            .map_err(|reason| Error::file(&source.path, format_args!("the header: {reason}")))?;
        let name = name.trim_start_matches('\u{feff}').trim().to_owned();
        if names.contains(&name) {
            return Err(Error::file(&source.path, format_args!("column `{name}` stands twice in the header")));
        }
        names.push(name);
    }
    Ok(Box::new(Table { source: source.path, reader, left, names, done: false }))
}

fn failed(path: &std::path::Path, line: u64, error: csv::Error) -> Error {
    match error.into_kind() {
        csv::ErrorKind::Io(error) if error.kind() == OF_THE_RECORD => {
            Error::failed(format!("{}:{line}: {error}", path.display()))
                .hint("close the quote, or write the table as JSON lines")
        }
        csv::ErrorKind::Io(error) => read_error_at(path, line, error),
        other => Error::file(path, format_args!("not a table: {other:?}")),
    }
}

impl Table {
    fn row(&self, record: &csv::ByteRecord) -> Result<Row, String> {
        if record.len() != self.names.len() {
            return Err(format!("expected {} columns, found {}", self.names.len(), record.len()));
        }
        let mut fields = Map::new();
        for (name, value) in self.names.iter().zip(record) {
            let value = std::str::from_utf8(value).map_err(|error| {
                format!(
                    "column `{name}`: not UTF-8: byte {:#04x}",
                    value.get(error.valid_up_to()).copied().unwrap_or(0)
                )
            })?;
            fields.insert(name.clone(), Value::String(value.to_owned()));
        }
        Ok(Row::Object(fields))
    }
}

impl Iterator for Table {
    type Item = Result<RowEntry>;

    fn next(&mut self) -> Option<Result<RowEntry>> {
        if self.done {
            return None;
        }
        self.left.store(RECORD_LIMIT_BYTES, Ordering::Relaxed);
        let mut record = csv::ByteRecord::new();
        let line = self.reader.position().line();
        match self.reader.read_byte_record(&mut record) {
            Ok(false) => None,
            Ok(true) => {
                let line = record.position().map_or(0, csv::Position::line);
                Some(Ok(RowEntry { line, content: self.row(&record) }))
            }
            Err(error) => {
                self.done = true;
                Some(Err(failed(&self.source, line, error)))
            }
        }
    }
}
