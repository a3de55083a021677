//! What the pages of a Parquet file claim, looked at before any is decompressed.
//!
//! The `parquet` crate takes a page's header at its word: it makes room for as many bytes and dictionary values as are
//! stated there, and decompresses gzip and zstd to their end. So a small file could fill the memory. Here every header is
//! read first, and the pages of these two codecs are decompressed once into nothing, up to the size that they state.
//!
//! Reference: parquet-format's `parquet.thrift` (`PageHeader`), in Thrift's compact protocol.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};

use parquet::basic::Compression;
use parquet::file::metadata::RowGroupMetaData;

use crate::data::formats::source::RECORD_LIMIT_BYTES;

/// Structs in structs that a header may have.
const DEPTH_LIMIT: usize = 8;
/// Most bytes of a string in a header (statistics).
const STRING_LIMIT: u64 = 64 << 20;

/// What a header says about its page.
#[derive(Debug, Default, PartialEq, Eq)]
struct PageHeader {
    uncompressed: i64,
    compressed: i64,
    dictionary_values: i64,
    /// Bytes at the beginning of a page of version 2 that are never compressed.
    levels: i64,
    /// Of version 2: whether the rest is compressed.
    plain: bool,
}

/// Checks every page of a row group; the bytes that they expand to.
///
/// # Errors
/// Why the group must not be read.
pub fn check(file: &File, group: &RowGroupMetaData) -> Result<u64, String> {
    let mut total = 0;
    for column in group.columns() {
        let name = column.column_path().string();
        total += check_column(file, column.byte_range(), column.compression())
            .map_err(|reason| format!("column {name}: {reason}"))?;
    }
    Ok(total)
}

fn check_column(file: &File, (start, length): (u64, u64), codec: Compression) -> Result<u64, String> {
    let unreadable = |error: io::Error| format!("a page cannot be read: {error}");
    let mut reader = BufReader::new(file);
    reader.seek(SeekFrom::Start(start)).map_err(unreadable)?;
    let mut column = reader.take(length);
    let mut total = 0;
    while column.limit() > 0 {
        let header = PageHeader::read(&mut column).map_err(unreadable)?;
        let sizes = [header.uncompressed, header.compressed].map(u64::try_from);
        let [Ok(uncompressed), Ok(compressed)] = sizes else { return Err("a page of negative size".into()) };
        if compressed > column.limit() {
            return Err("a page goes beyond the end of its column".into());
        }
        if uncompressed > RECORD_LIMIT_BYTES {
            let limit = RECORD_LIMIT_BYTES >> 20;
            return Err(format!("a page of {} MiB, more than {limit} MiB", uncompressed >> 20));
        }
        let values = u64::try_from(header.dictionary_values).unwrap_or(u64::MAX);
        if values > uncompressed {
            return Err(format!("a dictionary of {values} values in {uncompressed} bytes"));
        }
        let mut page = column.by_ref().take(compressed);
        check_page(&mut page, &header, uncompressed, codec)?;
        io::copy(&mut page, &mut io::sink()).map_err(unreadable)?;
        total += uncompressed;
    }
    Ok(total)
}

/// Whether a page expands to the size that it states.
fn check_page(
    page: &mut impl BufRead,
    header: &PageHeader,
    uncompressed: u64,
    codec: Compression,
) -> Result<(), String> {
    let damaged = |error: io::Error| format!("a page cannot be decompressed: {error}");
    let levels = u64::try_from(header.levels).map_err(|_| "levels of negative size")?;
    let rest = uncompressed.checked_sub(levels).ok_or("levels larger than their page")?;
    if header.plain || rest == 0 {
        return Ok(());
    }
    io::copy(&mut page.by_ref().take(levels), &mut io::sink()).map_err(damaged)?;
    let mut content: Box<dyn Read + '_> = match codec {
        Compression::GZIP(_) => Box::new(flate2::bufread::MultiGzDecoder::new(page)),
        Compression::ZSTD(_) => Box::new(zstd::stream::read::Decoder::with_buffer(page).map_err(damaged)?),
        // Snappy writes into a buffer of the stated size, and nothing else is compiled in.
        _ => return Ok(()),
    };
    let found = io::copy(&mut content.by_ref().take(rest + 1), &mut io::sink()).map_err(damaged)?;
    match found == rest {
        true => Ok(()),
        false if found > rest => Err(format!("a page expands beyond the {rest} bytes that it states")),
        false => Err(format!("a page states {rest} bytes and has {found}")),
    }
}

impl PageHeader {
    fn read(reader: &mut impl Read) -> io::Result<PageHeader> {
        let mut header = PageHeader::default();
        read_struct(reader, &mut Vec::new(), &mut |path, value| match path {
            [2] => header.uncompressed = value,
            [3] => header.compressed = value,
            [7, 1] => header.dictionary_values = value,
            [8, 5 | 6] => header.levels = header.levels.saturating_add(value.max(0)),
            [8, 7] => header.plain = value == 0,
            _ => {}
        })?;
        Ok(header)
    }
}

/// Reads a struct; `visit` is told every number and truth value with the field ids that lead to it.
fn read_struct(reader: &mut impl Read, path: &mut Vec<i64>, visit: &mut dyn FnMut(&[i64], i64)) -> io::Result<()> {
    if path.len() >= DEPTH_LIMIT {
        return Err(invalid("structs too deep"));
    }
    let mut field = 0;
    loop {
        let head = byte(reader)?;
        let kind = head & 15;
        if kind == 0 {
            return Ok(());
        }
        field = match head >> 4 {
            0 => signed(reader)?,
            step => field + i64::from(step),
        };
        path.push(field);
        match kind {
            1 => visit(path, 1),
            2 => visit(path, 0),
            _ => read_value(reader, kind, path, visit)?,
        }
        path.pop();
    }
}

fn read_value(
    reader: &mut impl Read,
    kind: u8,
    path: &mut Vec<i64>,
    visit: &mut dyn FnMut(&[i64], i64),
) -> io::Result<()> {
    match kind {
        // A truth value in a list is a byte, as is a number of one.
        1..=3 => visit(path, byte(reader)?.into()),
        4..=6 => visit(path, signed(reader)?),
        7 => skip(reader, 8)?,
        8 => {
            let length = unsigned(reader)?;
            skip(reader, length)?;
        }
        9 | 10 => {
            let head = byte(reader)?;
            let count = if head >> 4 == 15 { unsigned(reader)? } else { u64::from(head >> 4) };
            for _ in 0..count {
                read_value(reader, head & 15, path, visit)?;
            }
        }
        12 => read_struct(reader, path, visit)?,
        _ => return Err(invalid("a field of unknown type")),
    }
    Ok(())
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("its header is damaged ({what})"))
}

fn byte(reader: &mut impl Read) -> io::Result<u8> {
    let mut byte = [0];
    reader.read_exact(&mut byte).map(|()| byte[0])
}

fn skip(reader: &mut impl Read, bytes: u64) -> io::Result<()> {
    let passed = match bytes <= STRING_LIMIT {
        true => io::copy(&mut reader.by_ref().take(bytes), &mut io::sink())?,
        false => 0,
    };
    match passed == bytes {
        true => Ok(()),
        false => Err(invalid("a string that does not end")),
    }
}

/// A number of seven bits a byte, the lowest first.
fn unsigned(reader: &mut impl Read) -> io::Result<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let byte = byte(reader)?;
        number |= u64::from(byte & 127) << shift;
        if byte < 128 {
            return Ok(number);
        }
    }
    Err(invalid("a number that does not end"))
}

/// A number with its sign in the lowest bit.
fn signed(reader: &mut impl Read) -> io::Result<i64> {
    let number = unsigned(reader)?;
    Ok((number >> 1) as i64 ^ -((number & 1) as i64))
}

#[cfg(test)]
mod tests;
