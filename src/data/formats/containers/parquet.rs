//! Parquet files, row by row, by the `parquet` crate without Arrow.
//!
//! A thread of its own reads, a little ahead: a damaged file that makes the crate panic ends that thread and is told as an
//! error. Neither what its pages expand to ([`pages`]) nor what its rows amount to, in which a dictionary's value may
//! stand a million times, may go beyond what holds for compressed files ([`EXPANSION_LIMIT`]).

mod pages;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{sync_channel, Receiver, SyncSender};
use std::thread::JoinHandle;

use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::reader::RowIter;
use parquet::record::Field;
use serde_json::{Map, Value};

use super::{Container, Row, RowEntry, Rows};
use crate::data::formats::source::{Source, EXPANSION_FREE_BYTES, EXPANSION_LIMIT};
use crate::error::{Error, Result};

/// Columns by name.
pub const PARQUET: Container = Container { name: "Parquet", open };

/// Bytes and rows that are sent at a time, and how often ahead.
const BLOCK_BYTES: u64 = 1 << 20;
const BLOCK_ROWS: usize = 256;
const AHEAD: usize = 2;

/// Some rows, or why there are no more.
type Block = Result<Vec<Row>, String>;

struct Table {
    path: PathBuf,
    blocks: Receiver<Block>,
    rows: std::vec::IntoIter<Row>,
    reader: Option<JoinHandle<()>>,
    number: u64,
}

fn open(source: Source) -> Result<Rows> {
    let path = source.path;
    let file = File::open(&path).map_err(|error| Error::io(&path, "open", error))?;
    let bytes = file.metadata().map_err(|error| Error::io(&path, "read", error))?.len();
    let (sender, blocks) = sync_channel(AHEAD);
    let thread = std::thread::Builder::new().name("parquet".into());
    let reader = thread
        .spawn(move || {
            if let Err(reason) = read(file, bytes, &sender) {
                // Nobody listens any more: nothing is left to be told.
                let _ = sender.send(Err(reason));
            }
        })
        .map_err(|error| Error::io(&path, "start a thread for", error))?;
    Ok(Box::new(Table { path, blocks, rows: Vec::new().into_iter(), reader: Some(reader), number: 0 }))
}

fn read(file: File, bytes: u64, blocks: &SyncSender<Block>) -> Result<(), String> {
    let limit = EXPANSION_FREE_BYTES.max(bytes.saturating_mul(EXPANSION_LIMIT));
    let within = |expanded: u64| match expanded <= limit {
        true => Ok(()),
        false => Err(format!(
            "it expands beyond {} MiB, more than {EXPANSION_LIMIT} times its size; text does not do that",
            limit >> 20
        )),
    };
    let pages = file.try_clone().map_err(|error| error.to_string())?;
    let reader = SerializedFileReader::new(file).map_err(|error| error.to_string())?;
    let (mut of_pages, mut of_rows) = (0u64, 0u64);
    let (mut block, mut block_bytes) = (Vec::new(), 0);
    for number in 0..reader.metadata().num_row_groups() {
        of_pages = of_pages.saturating_add(pages::check(&pages, reader.metadata().row_group(number))?);
        within(of_pages)?;
        let group = reader.get_row_group(number).map_err(|error| error.to_string())?;
        for row in RowIter::from_row_group(None, &*group).map_err(|error| error.to_string())? {
            let row = row.map_err(|error| error.to_string())?;
            let fields: Map<String, Value> =
                row.get_column_iter().map(|(name, field)| (name.clone(), value(field))).collect();
            let size: u64 = fields.values().map(size).sum();
            of_rows = of_rows.saturating_add(size);
            within(of_rows)?;
            block_bytes += size;
            block.push(Row::Object(fields));
            if block_bytes >= BLOCK_BYTES || block.len() == BLOCK_ROWS {
                block_bytes = 0;
                // Nobody listens any more when enough documents were read.
                if blocks.send(Ok(std::mem::take(&mut block))).is_err() {
                    return Ok(());
                }
            }
        }
    }
    // As above.
    let _ = blocks.send(Ok(block));
    Ok(())
}

/// Bytes of the texts in a value.
fn size(value: &Value) -> u64 {
    match value {
        Value::String(text) => text.len() as u64,
        Value::Array(values) => values.iter().map(size).sum(),
        Value::Object(fields) => fields.values().map(size).sum(),
        _ => 8,
    }
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
        loop {
            if let Some(row) = self.rows.next() {
                self.number += 1;
                return Some(Ok(RowEntry { line: self.number, content: Ok(row) }));
            }
            match self.blocks.recv() {
                Ok(Ok(rows)) => self.rows = rows.into_iter(),
                Ok(Err(reason)) => {
                    self.reader = None;
                    return Some(Err(damaged(&self.path, &reason)));
                }
                Err(_) => {
                    let ended = self.reader.take().map(JoinHandle::join);
                    return matches!(ended, Some(Err(_))).then(|| Err(damaged(&self.path, "its content is damaged")));
                }
            }
        }
    }
}
