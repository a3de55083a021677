//! Parquet files, row by row, by the `parquet` crate without Arrow.
//!
//! A thread of its own reads, a few rows ahead: a damaged file that makes the crate panic ends that thread and is told
//! as an error.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{sync_channel, Receiver, SyncSender};
use std::thread::JoinHandle;

use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use serde_json::Value;

use super::{Container, Row, RowEntry, Rows};
use crate::data::formats::source::{Source, EXPANSION_FREE_BYTES, EXPANSION_LIMIT};
use crate::error::{Error, Result};

/// Columns by name.
pub const PARQUET: Container = Container { name: "Parquet", open };

/// Rows that are read ahead.
const AHEAD: usize = 256;

struct Table {
    path: PathBuf,
    rows: Receiver<Result<Row, String>>,
    reader: Option<JoinHandle<()>>,
    number: u64,
}

fn open(source: Source) -> Result<Rows> {
    let path = source.path;
    let file = File::open(&path).map_err(|error| Error::io(&path, "open", error))?;
    let bytes = file.metadata().map_err(|error| Error::io(&path, "read", error))?.len();
    let (sender, rows) = sync_channel(AHEAD);
    let thread = std::thread::Builder::new().name("parquet".into());
    let reader = thread
        .spawn(move || {
            if let Err(reason) = read(file, bytes, &sender) {
                // Nobody listens any more: nothing is left to be told.
                let _ = sender.send(Err(reason));
            }
        })
        .map_err(|error| Error::io(&path, "start a thread for", error))?;
    Ok(Box::new(Table { path, rows, reader: Some(reader), number: 0 }))
}

fn read(file: File, bytes: u64, rows: &SyncSender<Result<Row, String>>) -> Result<(), String> {
    let reader = SerializedFileReader::new(file).map_err(|error| error.to_string())?;
    let metadata = reader.metadata();
    let groups = metadata.row_groups().iter();
    let expanded: u64 = groups.map(|group| u64::try_from(group.total_byte_size()).unwrap_or(u64::MAX / 4096)).sum();
    if expanded > EXPANSION_FREE_BYTES.max(bytes.saturating_mul(EXPANSION_LIMIT)) {
        return Err(format!("it expands to {} MiB, more than {EXPANSION_LIMIT} times its size", expanded >> 20));
    }
    for row in reader.get_row_iter(None).map_err(|error| error.to_string())? {
        let row = row.map_err(|error| error.to_string())?;
        let fields = row.get_column_iter().map(|(name, field)| (name.clone(), value(field))).collect();
        if rows.send(Ok(Row::Object(fields))).is_err() {
            return Ok(());
        }
    }
    Ok(())
}

/// A Parquet value as JSON. Only text, lists and groups matter to formats; the rest need only be told from text.
fn value(field: &Field) -> Value {
    match field {
        Field::Null => Value::Null,
        Field::Bool(value) => Value::Bool(*value),
        Field::Str(text) => Value::String(text.clone()),
        // Strings of files whose writer left out the UTF-8 mark.
        Field::Bytes(bytes) => String::from_utf8(bytes.data().to_vec()).map_or(Value::Null, Value::String),
        Field::Group(row) => {
            Value::Object(row.get_column_iter().map(|(name, field)| (name.clone(), value(field))).collect())
        }
        Field::ListInternal(list) => Value::Array(list.elements().iter().map(value).collect()),
        Field::MapInternal(map) => {
            Value::Object(map.entries().iter().map(|(key, field)| (key.to_string(), value(field))).collect())
        }
        other => serde_json::from_str(&other.to_string()).unwrap_or_else(|_| Value::String(other.to_string())),
    }
}

fn damaged(path: &Path, reason: &str) -> Error {
    Error::file(path, format_args!("cannot read this Parquet file: {reason}")).hint("download or copy it again")
}

impl Iterator for Table {
    type Item = Result<RowEntry>;

    fn next(&mut self) -> Option<Result<RowEntry>> {
        match self.rows.recv() {
            Ok(Ok(row)) => {
                self.number += 1;
                Some(Ok(RowEntry { line: self.number, content: Ok(row) }))
            }
            Ok(Err(reason)) => {
                self.reader = None;
                Some(Err(damaged(&self.path, &reason)))
            }
            Err(_) => {
                let ended = self.reader.take().map(JoinHandle::join);
                matches!(ended, Some(Err(_))).then(|| Err(damaged(&self.path, "its content is damaged")))
            }
        }
    }
}
