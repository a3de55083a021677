//! A file that is one document: its text as it is, blank lines included; CRLF becomes LF, and line ends at the end of
//! the file are dropped.

use std::io::Read;

use super::lines::decode_utf8;
use super::{Container, Row, RowEntry, Rows};
use crate::data::formats::source::{read_error, Source, RECORD_LIMIT_BYTES};
use crate::error::{Error, Result};

/// One document a file.
pub const WHOLE: Container = Container { name: "one document a file", open };

fn open(source: Source) -> Result<Rows> {
    let Source { path, reader, .. } = source;
    let mut bytes = Vec::new();
    reader.take(RECORD_LIMIT_BYTES + 1).read_to_end(&mut bytes).map_err(|error| read_error(&path, error))?;
    if bytes.len() as u64 > RECORD_LIMIT_BYTES {
        return Err(Error::file(&path, format_args!("a document of more than {} MiB", RECORD_LIMIT_BYTES >> 20))
            .hint("split the file, or write JSON lines with one document in each `text`"));
    }
    let (line, content) = match decode_utf8(&bytes, true) {
        Ok(text) => (1, Ok(Row::Document(text.replace("\r\n", "\n").trim_end_matches('\n').to_owned()))),
        Err(reason) => {
            let valid = std::str::from_utf8(&bytes).map_or_else(|error| error.valid_up_to(), str::len);
            (1 + bytes[..valid].iter().filter(|&&byte| byte == b'\n').count() as u64, Err(reason))
        }
    };
    Ok(Box::new(std::iter::once(Ok(RowEntry { line, content }))))
}
