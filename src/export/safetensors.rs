//! Streaming writer of sharded safetensors: the plan of names, dtypes and shapes first, then one tensor at a time.
//!
//! Invariants: a final name never holds half a file (everything goes to `NAME.partial`, is synced, read back and
//! compared, and is renamed when all shards are complete); every tensor is aligned to its element in the file, so that
//! readers can map it. Tensors lie in the order of the plan, but those whose length is not a multiple of 8 bytes come
//! last in their shard, wider elements first. Reference: the safetensors format; the index of `transformers`.

use crate::checkpoint::lock::same_file;
use crate::error::{Error, Result};
use crate::model::{RawTensor, StoredDtype};
use crate::ops::Bytes;
use serde_json::{json, Map, Value};
use std::collections::{BTreeMap, HashSet};
use std::fs::{File, TryLockError};
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Largest shard that is written by default, in bytes (what transformers does).
pub const SHARD_BYTES: u64 = 5_000_000_000;

/// What is known of a tensor before its values are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Name, unique in the checkpoint.
    pub name: String,
    /// Element type.
    pub dtype: StoredDtype,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Whether the one dimension is an upper bound only.
    pub at_most: bool,
}

impl TensorSpec {
    /// A tensor of exactly this shape.
    pub fn new(name: impl Into<String>, dtype: StoredDtype, shape: Vec<usize>) -> TensorSpec {
        TensorSpec { name: name.into(), dtype, shape, at_most: false }
    }

    fn bytes(&self) -> u64 {
        self.shape.iter().fold(self.dtype.size() as u64, |bytes, &size| bytes.saturating_mul(size as u64))
    }

    /// Whether the tensor waits for the end of its shard.
    fn is_held(&self) -> bool {
        self.at_most || !self.bytes().is_multiple_of(8)
    }

    fn fits(&self, dtype: StoredDtype, shape: &[usize]) -> bool {
        let fits = match self.at_most {
            true => shape.len() == 1 && shape[0] <= self.shape[0],
            false => shape == self.shape,
        };
        fits && dtype == self.dtype
    }
}

/// A tensor that comes in pieces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PieceTensor {
    /// Element type.
    pub dtype: StoredDtype,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Pieces begin at multiples of so many bytes.
    pub unit: usize,
}

impl PieceTensor {
    fn bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.size()
    }
}

/// Makes the bytes of a range of a tensor.
pub type FillPiece<'a> = &'a (dyn Fn(Range<usize>, &mut [u8]) -> Result<()> + Sync);

/// A file that was written, synced and read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrittenFile {
    /// Name in the folder.
    pub name: String,
    /// Length.
    pub bytes: u64,
    /// BLAKE3 of the whole file, 64 hex digits.
    pub hash: String,
}

/// What a [`ShardWriter`] left in its folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// The shards, in order.
    pub files: Vec<WrittenFile>,
    /// Bytes of all tensors.
    pub tensor_bytes: u64,
}

/// Writes the tensors of a plan, in its order.
pub struct ShardWriter {
    folder: PathBuf,
    stem: String,
    /// Planned shards that are not begun, the next one last.
    planned: Vec<Shard>,
    open: Option<OpenShard>,
    closed: Vec<(PartialFile, WrittenFile)>,
    /// Shard of each tensor, for the index.
    placed: BTreeMap<String, String>,
    tensor_bytes: u64,
}

struct Shard {
    name: String,
    tensors: Vec<TensorSpec>,
}

impl ShardWriter {
    /// Plans `STEM.safetensors`, or `STEM-0000i-of-0000n.safetensors` of at most `shard_bytes` bytes of tensors each.
    /// A group is never split over shards (a group above the limit gets a shard of its own): the parts of a 4-bit
    /// weight are read together.
    ///
    /// Errors: a name twice, no tensor.
    pub fn new(folder: &Path, stem: &str, groups: Vec<Vec<TensorSpec>>, shard_bytes: u64) -> Result<ShardWriter> {
        let mut names = HashSet::new();
        if let Some(twice) = groups.iter().flatten().find(|spec| !names.insert(spec.name.as_str())) {
            return Err(Error::file(folder, format!("tensor {} is to be written twice", twice.name)));
        }
        let mut shards: Vec<Vec<TensorSpec>> = Vec::new();
        let mut room = 0;
        for group in groups.into_iter().filter(|group| !group.is_empty()) {
            let bytes = group.iter().fold(0u64, |sum, spec| sum.saturating_add(spec.bytes()));
            match shards.last_mut() {
                Some(shard) if bytes <= room => shard.extend(group),
                _ => {
                    room = shard_bytes;
                    shards.push(group);
                }
            }
            room = room.saturating_sub(bytes);
        }
        if shards.is_empty() {
            return Err(Error::file(folder, "no tensor to write"));
        }
        let count = shards.len();
        let name = |i: usize| match count {
            1 => format!("{stem}.safetensors"),
            _ => format!("{stem}-{:05}-of-{count:05}.safetensors", i + 1),
        };
        let planned =
            shards.into_iter().enumerate().map(|(i, tensors)| Shard { name: name(i), tensors }).rev().collect();
        Ok(ShardWriter {
            folder: folder.to_path_buf(),
            stem: stem.to_string(),
            planned,
            open: None,
            closed: Vec::new(),
            placed: BTreeMap::new(),
            tensor_bytes: 0,
        })
    }

    /// Writes the next tensor of the plan.
    ///
    /// Errors: it is not the planned one; what the file system says; a shard that reads back differently.
    pub fn write(&mut self, name: &str, tensor: &RawTensor) -> Result<()> {
        self.next(name, tensor.bytes.len(), |open| open.write(name, tensor))
    }

    /// Writes the next tensor of the plan out of pieces, each of which `fill` makes (the bytes of the range) while the one
    /// before it is hashed and written. They begin at multiples of the unit.
    ///
    /// Errors: as [`ShardWriter::write`]; what `fill` finds.
    pub fn write_pieces(&mut self, name: &str, tensor: PieceTensor, fill: FillPiece<'_>) -> Result<()> {
        let bytes = tensor.bytes();
        self.next(name, bytes, |open| open.write_pieces(name, tensor, fill))
    }

    fn next(&mut self, name: &str, bytes: usize, write: impl FnOnce(&mut OpenShard) -> Result<()>) -> Result<()> {
        let mut open = match self.open.take() {
            Some(open) => open,
            None => match self.planned.pop() {
                Some(shard) => OpenShard::begin(&self.folder, shard)?,
                None => return Err(Error::file(&self.folder, format!("tensor {name} is not planned"))),
            },
        };
        write(&mut open)?;
        self.placed.insert(name.to_string(), open.shard.name.clone());
        self.tensor_bytes += bytes as u64;
        if open.next == open.shard.tensors.len() {
            self.closed.push(open.close()?);
        } else {
            self.open = Some(open);
        }
        Ok(())
    }

    /// Gives every shard its final name and writes the index where there are several.
    ///
    /// Errors: a planned tensor was not written; what the file system says.
    pub fn finish(self) -> Result<Written> {
        let waiting = self.open.as_ref().map(|open| &open.shard.tensors[open.next]);
        let waiting = waiting.or_else(|| self.planned.last().map(|shard| &shard.tensors[0]));
        if let Some(spec) = waiting {
            return Err(Error::file(&self.folder, format!("tensor {} was planned and not written", spec.name)));
        }
        let mut files = Vec::with_capacity(self.closed.len());
        for (partial, written) in self.closed {
            partial.keep()?;
            files.push(written);
        }
        if files.len() > 1 {
            let index = json!({"metadata": {"total_size": self.tensor_bytes}, "weight_map": self.placed});
            write_json(&self.folder.join(format!("{}.safetensors.index.json", self.stem)), &index)?;
        }
        sync_folder(&self.folder)?;
        Ok(Written { files, tensor_bytes: self.tensor_bytes })
    }
}

/// Writes a JSON file, indented by two, through a temporary name.
pub fn write_json(path: &Path, value: &Value) -> Result<()> {
    let (partial, mut file) = PartialFile::create(path)?;
    let text = format!("{value:#}\n");
    file.write_all(text.as_bytes()).map_err(|e| Error::io(path, "write", e))?;
    file.sync_all().map_err(|e| Error::io(path, "sync", e))?;
    partial.keep()
}

/// Makes the names in a folder durable.
pub fn sync_folder(folder: &Path) -> Result<()> {
    if cfg!(unix) {
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(|e| Error::io(folder, "sync", e))?;
    }
    Ok(())
}

/// `NAME.partial`, removed unless it is kept; locked while the file that comes with it is open.
pub(super) struct PartialFile {
    pub(super) partial: PathBuf,
    path: PathBuf,
    kept: bool,
}

impl PartialFile {
    pub(super) fn create(path: &Path) -> Result<(PartialFile, File)> {
        let mut partial = path.as_os_str().to_owned();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        let options = File::options().read(true).write(true).create(true).truncate(false).open(&partial);
        let file = options.map_err(|e| Error::io(&partial, "create", e))?;
        // The name is that of the file still, unless the other process finished between the two calls.
        if matches!(file.try_lock(), Err(TryLockError::WouldBlock)) || !same_file(&file, &partial) {
            return Err(Error::file(&partial, "another process is writing this file"));
        }
        let ours = PartialFile { partial, path: path.to_path_buf(), kept: false };
        file.set_len(0).map_err(|e| Error::io(&ours.partial, "empty", e))?;
        Ok((ours, file))
    }

    pub(super) fn keep(mut self) -> Result<()> {
        std::fs::rename(&self.partial, &self.path).map_err(|e| Error::io(&self.path, "rename into place", e))?;
        self.kept = true;
        Ok(())
    }
}

impl Drop for PartialFile {
    fn drop(&mut self) {
        if !self.kept {
            // Nothing can be done about a failure here, and the name says what the file is.
            let _ = std::fs::remove_file(&self.partial);
        }
    }
}

struct OpenShard {
    shard: Shard,
    /// Index of the next tensor of the plan.
    next: usize,
    partial: PartialFile,
    file: BufWriter<File>,
    /// Space that the header may take, a multiple of 8.
    header_space: usize,
    /// Header entries so far.
    header: Map<String, Value>,
    held: Vec<(String, RawTensor)>,
    /// Bytes of data so far.
    position: u64,
    /// Bytes of data that are in the file and the hash.
    written: u64,
    /// The header, where the plan alone decides it: then the hash covers the whole file from the start.
    planned_header: Option<Vec<u8>>,
    /// Over the data, behind the planned header.
    hasher: blake3::Hasher,
    /// Bytes of data that the system was asked to bring to the disk.
    begun: u64,
    /// The last piece, which is part of `position` and not yet of the file and the hash.
    waiting: Vec<u8>,
    /// Memory of the next piece.
    spare: Vec<u8>,
}

/// Bytes that are made, hashed and written at a time: they stay in a cache from one to the other.
const PIECE: usize = 4 << 20;

/// Data that the system is asked to bring to the disk at a time, so that little is left for the sync in the end.
const WRITE_BACK: u64 = 64 << 20;

impl OpenShard {
    fn begin(folder: &Path, shard: Shard) -> Result<OpenShard> {
        let (partial, file) = PartialFile::create(&folder.join(&shard.name))?;
        let mut header = largest_header(&shard.tensors).to_string().into_bytes();
        let header_space = header.len().next_multiple_of(8);
        let mut hasher = blake3::Hasher::new();
        let mut planned_header = None;
        if !shard.tensors.iter().any(|spec| spec.at_most) {
            header.resize(header_space, b' ');
            hasher.update(&(header.len() as u64).to_le_bytes());
            hasher.update(&header);
            planned_header = Some(header);
        }
        let mut file = BufWriter::with_capacity(1 << 20, file);
        file.seek(SeekFrom::Start(8 + header_space as u64)).map_err(|e| Error::io(&partial.partial, "seek", e))?;
        Ok(OpenShard {
            shard,
            next: 0,
            partial,
            file,
            header_space,
            header: empty_header(),
            held: Vec::new(),
            position: 0,
            written: 0,
            planned_header,
            hasher,
            begun: 0,
            waiting: Vec::new(),
            spare: Vec::new(),
        })
    }

    fn write(&mut self, name: &str, tensor: &RawTensor) -> Result<()> {
        if self.begin_tensor(name, tensor.dtype, &tensor.shape)? {
            self.held.push((name.to_string(), tensor.clone()));
            return Ok(());
        }
        self.append(name, tensor)
    }

    fn write_pieces(&mut self, name: &str, tensor: PieceTensor, fill: FillPiece<'_>) -> Result<()> {
        let PieceTensor { dtype, shape, unit } = &tensor;
        let bytes = tensor.bytes();
        if self.begin_tensor(name, *dtype, shape)? {
            let mut filled = Ok(());
            let held = Bytes::filled(bytes, |to| filled = fill(0..bytes, to));
            self.held.push((name.to_string(), RawTensor { dtype: *dtype, shape: shape.clone(), bytes: held }));
            return filled;
        }
        let unit = (*unit).max(1);
        let most = (PIECE / unit).max(1).saturating_mul(unit);
        for start in (0..bytes).step_by(most) {
            let range = start..bytes.min(start + most);
            let mut piece = std::mem::take(&mut self.spare);
            piece.resize(range.len(), 0);
            let (filled, written) = rayon::join(|| fill(range, &mut piece), || self.write_waiting());
            written?;
            filled?;
            self.waiting = piece;
        }
        self.place(name, *dtype, shape, bytes);
        Ok(())
    }

    /// Compares a tensor with the plan; whether it waits for the end of the shard.
    fn begin_tensor(&mut self, name: &str, dtype: StoredDtype, shape: &[usize]) -> Result<bool> {
        let spec = &self.shard.tensors[self.next];
        if spec.name != name || !spec.fits(dtype, shape) {
            let found = format!("{name} {} {shape:?}", dtype.name());
            let expected = format!("{} {} {:?}", spec.name, spec.dtype.name(), spec.shape);
            return Err(Error::file(&self.partial.path, format!("next tensor: expected {expected}, found {found}")));
        }
        self.next += 1;
        Ok(spec.is_held())
    }

    fn append(&mut self, name: &str, tensor: &RawTensor) -> Result<()> {
        self.write_waiting()?;
        let bytes: &[u8] = &tensor.bytes;
        bytes.chunks(PIECE).try_for_each(|piece| self.put(piece))?;
        self.place(name, tensor.dtype, &tensor.shape, bytes.len());
        Ok(())
    }

    /// Gives a tensor the next place.
    fn place(&mut self, name: &str, dtype: StoredDtype, shape: &[usize], bytes: usize) {
        let end = self.position + bytes as u64;
        self.header.insert(name.to_string(), header_entry(dtype, shape, self.position, end));
        self.position = end;
    }

    fn write_waiting(&mut self) -> Result<()> {
        let piece = std::mem::take(&mut self.waiting);
        self.put(&piece)?;
        if !piece.is_empty() {
            self.spare = piece;
        }
        Ok(())
    }

    /// Writes and hashes the next bytes of the data.
    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|e| Error::io(&self.partial.partial, "write", e))?;
        hash(&mut self.hasher, bytes);
        self.written += bytes.len() as u64;
        if self.written - self.begun >= WRITE_BACK {
            let start = 8 + self.header_space as u64 + self.begun;
            begin_write_back(self.file.get_ref(), start, self.written - self.begun);
            self.begun = self.written;
        }
        Ok(())
    }

    /// Writes what was held and the header, syncs, and reads everything back.
    fn close(mut self) -> Result<(PartialFile, WrittenFile)> {
        let mut held = std::mem::take(&mut self.held);
        held.sort_by_key(|(_, tensor)| std::cmp::Reverse(tensor.dtype.size()));
        self.write_waiting()?;
        for (name, tensor) in held {
            self.append(&name, &tensor)?;
        }
        let is_planned = self.planned_header.is_some();
        let mut header = Value::Object(self.header).to_string().into_bytes();
        assert!(header.len() <= self.header_space, "the bound of the header is one");
        header.resize(self.header_space, b' ');
        assert!(self.planned_header.is_none_or(|planned| planned == header), "the plan decides the header");
        let write = |mut file: BufWriter<File>| -> std::io::Result<File> {
            file.seek(SeekFrom::Start(0))?;
            file.write_all(&(header.len() as u64).to_le_bytes())?;
            file.write_all(&header)?;
            let file = file.into_inner().map_err(|e| e.into_error())?;
            file.sync_all()?;
            Ok(file)
        };
        let file = write(self.file).map_err(|e| Error::io(&self.partial.partial, "write", e))?;
        let data_start = 8 + self.header_space;
        let hashed_from = if is_planned { 0 } else { data_start };
        let whole = read_back(&file, hashed_from, &self.hasher.finalize(), &self.partial.partial)?;
        let bytes = data_start as u64 + self.position;
        Ok((self.partial, WrittenFile { name: self.shard.name, bytes, hash: whole }))
    }
}

/// Asks the system to write a range of a file to the disk, without waiting; nothing depends on whether it does.
fn begin_write_back(file: &File, start: u64, len: u64) {
    #[cfg(target_os = "linux")]
    {
        use std::os::fd::AsRawFd;
        let (start, len) = (i64::try_from(start).unwrap_or(0), i64::try_from(len).unwrap_or(0));
        // SAFETY: the descriptor is open as long as `file`; the call changes no contents.
        unsafe { libc::sync_file_range(file.as_raw_fd(), start, len, libc::SYNC_FILE_RANGE_WRITE) };
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (file, start, len);
}

/// Hash of the whole file, after checking that everything from `start` on is what was written.
pub(super) fn read_back(file: &File, start: usize, expected: &blake3::Hash, path: &Path) -> Result<String> {
    // SAFETY: the file was made by this process under a temporary name that nobody else writes to.
    let map = unsafe { memmap2::Mmap::map(file) }.map_err(|e| Error::io(path, "read back", e))?;
    let found = hash_mapped(&map, start);
    if found != *expected {
        return Err(Error::file(path, "reads back differently from what was written").hint("check the disk"));
    }
    let whole = if start == 0 { found } else { hash_mapped(&map, 0) };
    Ok(whole.to_hex().to_string())
}

/// Hash of a mapped file from `start` on. A piece that was read leaves this process's memory again: to look at a file of
/// many gigabytes must not take as much.
pub(super) fn hash_mapped(map: &memmap2::Mmap, start: usize) -> blake3::Hash {
    const PIECE: usize = 64 << 20;
    let mut hasher = blake3::Hasher::new();
    let mut start = start.min(map.len());
    while start < map.len() {
        // Pieces end where pages do.
        let end = (start / PIECE + 1).saturating_mul(PIECE).min(map.len());
        hash(&mut hasher, &map[start..end]);
        // SAFETY: a mapping of a file that is only read: its pages come back from the file when they are read again.
        #[cfg(unix)]
        let _ = unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, end - start) };
        start = end;
    }
    hasher.finalize()
}

pub(super) fn hash(hasher: &mut blake3::Hasher, bytes: &[u8]) {
    if bytes.len() < 1 << 17 {
        hasher.update(bytes);
    } else {
        hasher.update_rayon(bytes);
    }
}

fn empty_header() -> Map<String, Value> {
    Map::from_iter([("__metadata__".to_string(), json!({"format": "pt"}))])
}

fn header_entry(dtype: StoredDtype, shape: &[usize], start: u64, end: u64) -> Value {
    json!({"dtype": dtype.name(), "shape": shape, "data_offsets": [start, end]})
}

/// The header where every tensor has its planned size; offsets can only be smaller, and so no longer, else.
fn largest_header(tensors: &[TensorSpec]) -> Value {
    let mut header = empty_header();
    let mut position = 0;
    let (mut held, direct): (Vec<_>, Vec<_>) = tensors.iter().partition(|spec| spec.is_held());
    held.sort_by_key(|spec| std::cmp::Reverse(spec.dtype.size()));
    for spec in direct.into_iter().chain(held) {
        let end = position + spec.bytes();
        header.insert(spec.name.clone(), header_entry(spec.dtype, &spec.shape, position, end));
        position = end;
    }
    Value::Object(header)
}

#[cfg(test)]
#[path = "safetensors_tests.rs"]
mod tests;
