//! The header of a GGUF file: what it says about the model, and where its tensors lie.
//!
//! Invariant: a [`Header`] that was read is sound: every string and list lies inside the file, every tensor has a known
//! type, whole blocks, an aligned place inside the data, and overlaps no other. Nothing is allocated before the bytes
//! that it stands for were seen, so a damaged count costs no memory and no time. Reference: the GGUF specification
//! (github.com/ggml-org/ggml, docs/gguf.md), versions 1 to 3, little-endian.

use super::blocks::BlockType;
use std::collections::BTreeMap;
use std::ops::Range;

/// What is wrong with the bytes, without the file's name.
pub type Flaw = String;

/// Where data begins and tensors are aligned unless `general.alignment` says otherwise.
const DEFAULT_ALIGNMENT: u64 = 32;
/// Lists in lists that are followed.
const MAX_DEPTH: usize = 4;
/// Longest name of a key or a tensor, in bytes.
const MAX_NAME: u64 = 65_535;

/// One metadata value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Any unsigned integer.
    Unsigned(u64),
    /// Any signed integer.
    Signed(i64),
    /// f32 or f64; an f32 is the f64 of its shortest decimal form, so that 1e-5 stays 1e-5.
    Float(f64),
    /// true or false.
    Bool(bool),
    /// UTF-8 text.
    Text(String),
    /// A list that stays in the file.
    List(List),
}

/// A list: its elements are read when they are asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct List {
    kind: Kind,
    count: usize,
    /// Bytes of the elements in the file.
    span: Range<usize>,
}

/// Types of metadata values, by their number in the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    Text,
    List,
    U64,
    I64,
    F64,
}

impl Kind {
    fn of(number: u32) -> Result<Kind, Flaw> {
        use Kind::*;
        const KINDS: [Kind; 13] = [U8, I8, U16, I16, U32, I32, F32, Bool, Text, List, U64, I64, F64];
        KINDS.get(number as usize).copied().ok_or_else(|| format!("unknown value type {number}, expected 0 to 12"))
    }

    /// Bytes of an element; `None` where it varies.
    fn size(self) -> Option<usize> {
        match self {
            Kind::U8 | Kind::I8 | Kind::Bool => Some(1),
            Kind::U16 | Kind::I16 => Some(2),
            Kind::U32 | Kind::I32 | Kind::F32 => Some(4),
            Kind::U64 | Kind::I64 | Kind::F64 => Some(8),
            Kind::Text | Kind::List => None,
        }
    }
}

/// A tensor's place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Element or block type.
    pub kind: BlockType,
    /// Dimensions, outermost first (the file has them innermost first).
    pub shape: Vec<usize>,
    /// Bytes in the file.
    pub span: Range<usize>,
}

/// All that precedes the data.
#[derive(Debug, Clone)]
pub struct Header {
    version: u32,
    /// Metadata by key.
    pub metadata: BTreeMap<String, Value>,
    /// Tensors by name.
    pub tensors: BTreeMap<String, TensorInfo>,
}

impl Header {
    /// Reads the header of a file with these bytes.
    pub fn read(file: &[u8]) -> Result<Header, Flaw> {
        let mut reader = Reader { file, at: 0, version: 3 };
        if reader.take(4, "the magic")? != b"GGUF" {
            return Err("not a GGUF file: it does not begin with \"GGUF\"".into());
        }
        reader.version = reader.u32("the version")?;
        if !(1..=3).contains(&reader.version) {
            return Err(match reader.version.swap_bytes() {
                1..=3 => "a big-endian GGUF file, expected a little-endian one".into(),
                _ => format!("GGUF version {}, expected 1 to 3", reader.version),
            });
        }
        let tensor_count = reader.length("the number of tensors")?;
        let metadata_count = reader.length("the number of metadata values")?;
        let metadata = read_metadata(&mut reader, metadata_count)?;
        let declared = read_declarations(&mut reader, tensor_count)?;
        let alignment = alignment(&metadata)?;
        let data_start = (reader.at as u64).next_multiple_of(alignment);
        let tensors = place_tensors(declared, data_start, alignment, file.len() as u64)?;
        Ok(Header { version: reader.version, metadata, tensors })
    }

    /// The texts of a list; `None` if it is a list of something else.
    pub fn texts(&self, file: &[u8], list: &List) -> Option<Result<Vec<String>, Flaw>> {
        if list.kind != Kind::Text {
            return None;
        }
        let mut reader = Reader { file, at: list.span.start, version: self.version };
        Some((0..list.count).map(|index| reader.text(u64::MAX, &format!("entry {index}"))).collect())
    }

    /// The numbers of a list; `None` if it is a list of something else. Every integer up to 2^53 is exact.
    pub fn numbers(&self, file: &[u8], list: &List) -> Option<Vec<f64>> {
        let size = list.kind.size().filter(|_| list.kind != Kind::Bool)?;
        let number = |bytes: &[u8]| match scalar(list.kind, bytes) {
            Some(Value::Unsigned(value)) => value as f64,
            Some(Value::Signed(value)) => value as f64,
            Some(Value::Float(value)) => value,
            _ => f64::NAN,
        };
        Some(file.get(list.span.clone())?.chunks_exact(size).map(number).collect())
    }
}

impl List {
    /// Number of elements.
    pub fn count(&self) -> usize {
        self.count
    }
}

/// Walks through the bytes of a file.
struct Reader<'a> {
    file: &'a [u8],
    at: usize,
    version: u32,
}

impl<'a> Reader<'a> {
    fn take(&mut self, len: u64, what: &str) -> Result<&'a [u8], Flaw> {
        let left = &self.file[self.at..];
        match usize::try_from(len).ok().and_then(|len| left.get(..len)) {
            Some(bytes) => {
                self.at += bytes.len();
                Ok(bytes)
            }
            None => Err(format!("{what}: expected {len} bytes at byte {}, the file has {} more", self.at, left.len())),
        }
    }

    fn u32(&mut self, what: &str) -> Result<u32, Flaw> {
        Ok(little_endian(self.take(4, what)?) as u32)
    }

    fn u64(&mut self, what: &str) -> Result<u64, Flaw> {
        Ok(little_endian(self.take(8, what)?))
    }

    /// A count or a length: 32 bits in version 1, 64 since.
    fn length(&mut self, what: &str) -> Result<u64, Flaw> {
        match self.version {
            1 => self.u32(what).map(u64::from),
            _ => self.u64(what),
        }
    }

    fn text(&mut self, limit: u64, what: &str) -> Result<String, Flaw> {
        let len = self.length(what)?;
        if len > limit {
            return Err(format!("{what}: a text of {len} bytes, expected at most {limit}"));
        }
        let bytes = self.take(len, what)?;
        let text = std::str::from_utf8(bytes).map_err(|e| format!("{what}: not UTF-8 at byte {}", e.valid_up_to()))?;
        Ok(text.to_string())
    }

    /// A key or a tensor's name. They are printed in messages, so control characters are not taken.
    fn name(&mut self, what: &str) -> Result<String, Flaw> {
        let name = self.text(MAX_NAME, what)?;
        match name.chars().any(char::is_control) {
            true => {
                Err(format!("{what}: a name with control characters: {:?}", name.chars().take(80).collect::<String>()))
            }
            false => Ok(name),
        }
    }

    fn value(&mut self, kind: Kind, what: &str) -> Result<Value, Flaw> {
        match (kind, kind.size()) {
            (Kind::Text, _) => self.text(u64::MAX, what).map(Value::Text),
            (_, Some(size)) => {
                let bytes = self.take(size as u64, what)?;
                scalar(kind, bytes).ok_or_else(|| format!("{what}: expected a bool of 0 or 1, found {}", bytes[0]))
            }
            (_, None) => self.list(what, 0).map(Value::List),
        }
    }

    /// Steps over a list, checking that all of it is there.
    fn list(&mut self, what: &str, depth: usize) -> Result<List, Flaw> {
        if depth > MAX_DEPTH {
            return Err(format!("{what}: lists nested more than {MAX_DEPTH} deep"));
        }
        let kind = Kind::of(self.u32(what)?).map_err(|flaw| format!("{what}: {flaw}"))?;
        let count = self.length(what)?;
        let start = self.at;
        match kind.size() {
            Some(size) => {
                self.take(count.saturating_mul(size as u64), what)?;
            }
            // Each element takes some bytes, so this ends at the end of the file at the latest.
            None if kind == Kind::Text => {
                for _ in 0..count {
                    let len = self.length(what)?;
                    self.take(len, what)?;
                }
            }
            None => {
                for _ in 0..count {
                    self.list(what, depth + 1)?;
                }
            }
        }
        // The elements were seen, so there are no more than the file has bytes.
        Ok(List { kind, count: count as usize, span: start..self.at })
    }
}

fn little_endian(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte))
}

/// A number or a bool from its bytes, as many as the kind has; `None` for a bool that is neither.
fn scalar(kind: Kind, bytes: &[u8]) -> Option<Value> {
    let bits = little_endian(bytes);
    Some(match kind {
        Kind::U8 | Kind::U16 | Kind::U32 | Kind::U64 => Value::Unsigned(bits),
        Kind::I8 => Value::Signed(i64::from(bits as i8)),
        Kind::I16 => Value::Signed(i64::from(bits as i16)),
        Kind::I32 => Value::Signed(i64::from(bits as i32)),
        Kind::I64 => Value::Signed(bits as i64),
        Kind::F32 => {
            let value = f32::from_bits(bits as u32);
            Value::Float(value.to_string().parse().unwrap_or(f64::from(value)))
        }
        Kind::F64 => Value::Float(f64::from_bits(bits)),
        Kind::Bool if bits <= 1 => Value::Bool(bits == 1),
        Kind::Bool | Kind::Text | Kind::List => return None,
    })
}

fn read_metadata(reader: &mut Reader<'_>, count: u64) -> Result<BTreeMap<String, Value>, Flaw> {
    let mut metadata = BTreeMap::new();
    for index in 0..count {
        let key = reader.name(&format!("key of metadata value {} of {count}", index + 1))?;
        let kind = Kind::of(reader.u32(&key)?).map_err(|flaw| format!("{key}: {flaw}"))?;
        let value = reader.value(kind, &key)?;
        if metadata.contains_key(&key) {
            return Err(format!("metadata key {key:?} occurs twice"));
        }
        metadata.insert(key, value);
    }
    Ok(metadata)
}

/// What a header says about a tensor.
struct Declared {
    name: String,
    kind: BlockType,
    shape: Vec<usize>,
    bytes: u64,
    offset: u64,
}

fn read_declarations(reader: &mut Reader<'_>, count: u64) -> Result<Vec<Declared>, Flaw> {
    let mut declared = Vec::new();
    for index in 0..count {
        let name = reader.name(&format!("name of tensor {} of {count}", index + 1))?;
        let tensor = declaration(reader, &name).map_err(|flaw| format!("tensor {name}: {flaw}"))?;
        declared.push(Declared { name, ..tensor });
    }
    Ok(declared)
}

fn declaration(reader: &mut Reader<'_>, name: &str) -> Result<Declared, Flaw> {
    let dimensions = reader.u32("dimensions")?;
    if !(1..=4).contains(&dimensions) {
        return Err(format!("{dimensions} dimensions, expected 1 to 4"));
    }
    let mut shape = Vec::new();
    for _ in 0..dimensions {
        shape.push(usize::try_from(reader.length("a dimension")?).unwrap_or(usize::MAX));
    }
    let kind = BlockType::of(reader.u32("type")?)?;
    let offset = reader.u64("offset")?;
    // Rows are whole blocks; the file has the row's length first.
    let row = shape[0];
    shape.reverse();
    if !row.is_multiple_of(kind.values()) {
        return Err(format!("rows of {row} values, expected a multiple of {} for {}", kind.values(), kind.name()));
    }
    let count = shape.iter().try_fold(1u64, |product, &size| product.checked_mul(size as u64));
    let bytes = count.and_then(|count| (count / kind.values() as u64).checked_mul(kind.bytes() as u64));
    match bytes {
        Some(bytes) if bytes > 0 => Ok(Declared { name: name.to_string(), kind, shape, bytes, offset }),
        _ => Err(format!("shape {shape:?}, expected sizes of at least 1 whose product fits in memory")),
    }
}

fn alignment(metadata: &BTreeMap<String, Value>) -> Result<u64, Flaw> {
    match metadata.get("general.alignment") {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(&Value::Unsigned(value)) if value.is_power_of_two() && (8..=1 << 20).contains(&value) => Ok(value),
        Some(found) => Err(format!("general.alignment: expected a power of two from 8 to 1048576, found {found:?}")),
    }
}

fn place_tensors(
    declared: Vec<Declared>,
    data_start: u64,
    alignment: u64,
    file_size: u64,
) -> Result<BTreeMap<String, TensorInfo>, Flaw> {
    let mut spans = Vec::with_capacity(declared.len());
    let mut tensors = BTreeMap::new();
    for Declared { name, kind, shape, bytes, offset } in declared {
        if !offset.is_multiple_of(alignment) {
            return Err(format!("tensor {name}: offset {offset} is not a multiple of the alignment {alignment}"));
        }
        let start = data_start.saturating_add(offset);
        let end = start.saturating_add(bytes);
        if end > file_size {
            return Err(format!("tensor {name} ends at byte {end}, the file at byte {file_size}"));
        }
        spans.push((start, end, name.clone()));
        let info = TensorInfo { kind, shape, span: start as usize..end as usize };
        if tensors.insert(name.clone(), info).is_some() {
            return Err(format!("tensor {name} occurs twice"));
        }
    }
    spans.sort_unstable();
    match spans.windows(2).find(|pair| pair[0].1 > pair[1].0) {
        Some(pair) => Err(format!("tensors {} and {} overlap", pair[0].2, pair[1].2)),
        None => Ok(tensors),
    }
}

#[cfg(test)]
#[path = "header_tests.rs"]
mod tests;
