//! Tables with a header: CSV and TSV (RFC 4180 quoting), each row an object of its columns.

use std::io::{self, Read};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use serde_json::{Map, Value};

use super::{Container, Row, RowEntry, Rows};
use crate::data::formats::source::{read_error, Source, RECORD_LIMIT_BYTES};
use crate::error::{Error, Result};

/// Columns apart by commas.
pub const CSV: Container = Container { name: "a CSV table", open: |source| open(source, b',') };

/// Columns apart by tabs.
pub const TSV: Container = Container { name: "a TSV table", open: |source| open(source, b'\t') };

/// Stops a record that does not end, such as one with a quote that is never closed.
struct Bounded {
    reader: Box<dyn io::BufRead + Send>,
    left: Arc<AtomicU64>,
}

impl Read for Bounded {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.reader.read(buffer)?;
        let left = self.left.load(Ordering::Relaxed);
        let left = left.checked_sub(count as u64).ok_or_else(|| {
            io::Error::other(format!("a record of more than {} MiB (a quote never closed?)", RECORD_LIMIT_BYTES >> 20))
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
    let bounded = Bounded { reader: source.reader, left: left.clone() };
    let mut reader = csv::ReaderBuilder::new().delimiter(delimiter).flexible(true).from_reader(bounded);
    let header = reader.byte_headers().map_err(|error| failed(&source.path, error))?.clone();
    let mut names = Vec::new();
    for name in &header {
        let name = std::str::from_utf8(name).map_err(|_| Error::file(&source.path, "the header is not UTF-8"))?;
        let name = name.trim_start_matches('\u{feff}').trim().to_owned();
        if names.contains(&name) {
            return Err(Error::file(&source.path, format_args!("column `{name}` stands twice in the header")));
        }
        names.push(name);
    }
    Ok(Box::new(Table { source: source.path, reader, left, names, done: false }))
}

fn failed(path: &std::path::Path, error: csv::Error) -> Error {
    match error.into_kind() {
        csv::ErrorKind::Io(error) => read_error(path, error),
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
        match self.reader.read_byte_record(&mut record) {
            Ok(false) => None,
            Ok(true) => {
                let line = record.position().map_or(0, csv::Position::line);
                Some(Ok(RowEntry { line, content: self.row(&record) }))
            }
            Err(error) => {
                self.done = true;
                Some(Err(failed(&self.source, error)))
            }
        }
    }
}
