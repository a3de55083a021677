//! Recovering a tuned model from its base and a diff. Nothing appears under the final name unless every tensor of the
//! base was the right one and every recovered file is the tuned one.

use super::codec::{self, Frame, CHUNK};
use super::container::DiffFile;
use super::files::{check_name, Placed, WeightsFile};
use super::make::hash_file;
use super::reference::{is_alike, Reference};
use super::{hash, update, Entry, Identity, Kind, StoredFile};
use crate::checkpoint::AtomicFolder;
use crate::error::{Error, Result};
use crate::model::{Checkpoint, RawTensor, StoredDtype};
use rayon::prelude::*;
use std::collections::HashSet;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

/// Largest companion file, in bytes: bounds what a hostile diff makes this program allocate.
const COMPANION_LIMIT: u64 = 1 << 30;

/// What was recovered.
#[derive(Debug, Clone, Copy)]
pub struct Applied {
    /// Tensors of the tuned model.
    pub tensors: usize,
    /// Bytes of its files.
    pub bytes: u64,
}

/// Recovers the tuned model of the diff `diff` from `base` into the new folder `out`.
///
/// `progress` is told the tensors done, their number, and the name of the last one.
///
/// # Errors
/// A damaged diff; a base that is not the diff's (the first tensor that differs is named); `out` exists; the disk.
pub fn apply(base: &Path, diff: &Path, out: &Path, progress: &mut dyn FnMut(usize, usize, &str)) -> Result<Applied> {
    let job = Job { diff: DiffFile::open(diff)?, path: diff, base: Checkpoint::open(base)?, base_path: base };
    let files = job.files()?;
    job.check_base()?;
    let mut folder = AtomicFolder::begin_new(out)?;
    let manifest = &job.diff.manifest;
    let mut done = 0;
    for (file, stored) in files.iter().zip(&manifest.files) {
        let path = folder.temporary().join(&file.name);
        let mut output = Output::create(&path)?;
        output.write(&file.header)?;
        for placed in &file.tensors {
            job.write_tensor(placed, &mut output)?;
            done += 1;
            progress(done, manifest.tensors.len(), &placed.name);
        }
        output.finish()?;
        if hash_file(&path)? != stored.blake3 {
            let what = format!("{} is not the tuned model's file", file.name);
            return Err(Error::file(diff, what).hint("check the disk, or fetch the diff again"));
        }
    }
    for companion in &manifest.companions {
        let content = job.companion(companion)?;
        folder.write(&companion.name, &mut |file| file.write_all(&content))?;
    }
    folder.commit()?;
    let bytes = manifest.files.iter().chain(&manifest.companions).map(|file| file.bytes).sum();
    Ok(Applied { tensors: done, bytes })
}

struct Job<'a> {
    diff: DiffFile,
    path: &'a Path,
    base: Checkpoint,
    base_path: &'a Path,
}

impl Job<'_> {
    fn wrong(&self, what: impl std::fmt::Display) -> Error {
        Error::file(self.path, what)
    }

    /// The tuned files, after checking that they and the manifest speak of the same tensors.
    fn files(&self) -> Result<Vec<WeightsFile>> {
        let manifest = &self.diff.manifest;
        let mut names = HashSet::new();
        for file in manifest.files.iter().chain(&manifest.companions) {
            check_name(&file.name).map_err(|error| error.at(self.path.display()))?;
            if !names.insert(&file.name) {
                return Err(self.wrong(format!("file {} is in it twice", file.name)));
            }
        }
        let mut tensors = HashSet::new();
        let mut files = Vec::new();
        for stored in &manifest.files {
            let payload = format!("header/{}", stored.name);
            let header = unpack(&self.diff.payload(&payload)?.bytes, stored.bytes.min(100_000_008))
                .map_err(|error| error.at(format!("{}: {payload}", self.path.display())))?;
            let file = WeightsFile::parse(stored.name.clone(), header).map_err(|e| e.at(self.path.display()))?;
            if file.bytes() != stored.bytes {
                return Err(self.wrong(format!("{}: {} bytes, expected {}", stored.name, file.bytes(), stored.bytes)));
            }
            for placed in &file.tensors {
                if !tensors.insert(placed.name.clone()) {
                    return Err(self.wrong(format!("tensor {} is in two files", placed.name)));
                }
                self.check_placed(placed)
                    .map_err(|e| e.at(format!("{}: tensor {}", self.path.display(), placed.name)))?;
            }
            files.push(file);
        }
        match manifest.tensors.keys().find(|name| !tensors.contains(*name)) {
            Some(name) => Err(self.wrong(format!("tensor {name} is in no file"))),
            None => Ok(files),
        }
    }

    fn check_placed(&self, placed: &Placed) -> Result<()> {
        let Some(Entry { tensor, kind, base }) = self.diff.manifest.tensors.get(&placed.name) else {
            return Err(Error::failed("not in the manifest"));
        };
        if (&placed.dtype, &placed.shape, placed.bytes) != (&tensor.dtype, &tensor.shape, tensor.bytes()?) {
            return Err(Error::failed("the file's header and the manifest differ"));
        }
        match (kind, base) {
            (Kind::Whole, None) => Ok(()),
            (Kind::Same, Some(base)) if base.tensor == *tensor => Ok(()),
            (Kind::Diff, Some(_)) => Ok(()),
            _ => Err(Error::failed("its kind and its base do not go together")),
        }
    }

    /// Compares names, dtypes and shapes at once; hashes follow with each tensor.
    fn check_base(&self) -> Result<()> {
        for (name, entry) in &self.diff.manifest.tensors {
            let Some(wanted) = &entry.base else { continue };
            let Some(found) = self.base.find(&wanted.name)? else {
                return Err(self.not_the_base(format!("tensor {} is missing", wanted.name)));
            };
            let Identity { dtype, shape, .. } = &wanted.tensor;
            if found.dtype.name() != dtype || found.shape != *shape {
                let found = format!("{} {:?}", found.dtype.name(), found.shape);
                return Err(self.not_the_base(format!("tensor {name}: expected {dtype} {shape:?}, found {found}")));
            }
            if !is_alike(&found, entry.tensor.dtype()?, &entry.tensor.shape) {
                return Err(self.wrong(format!("tensor {name} cannot be a difference from {}", wanted.name)));
            }
        }
        Ok(())
    }

    fn not_the_base(&self, what: String) -> Error {
        let base = &self.diff.manifest.base;
        Error::file(self.base_path, format!("not the base of this diff, which was made from {base}: {what}"))
            .hint("name the very model that the diff was made from, in the same dtype")
    }

    fn write_tensor(&self, placed: &Placed, output: &mut Output<'_>) -> Result<()> {
        let place = || format!("{}: tensor {}", self.path.display(), placed.name);
        let Some(entry) = self.diff.manifest.tensors.get(&placed.name) else { return Ok(()) };
        let base = match &entry.base {
            None => None,
            Some(wanted) => {
                let tensor = self.base.get(&wanted.name)?;
                if hash(&tensor.bytes).to_string() != wanted.tensor.blake3 {
                    return Err(self.not_the_base(format!("tensor {} has other values", wanted.name)));
                }
                Some(tensor)
            }
        };
        let mut hasher = blake3::Hasher::new();
        let mut write = |bytes: &[u8]| {
            update(&mut hasher, bytes);
            output.write(bytes)
        };
        match (&entry.kind, &base) {
            (Kind::Same, Some(tensor)) => write(&tensor.bytes)?,
            _ => {
                let payload = self.diff.payload(&placed.name)?;
                let elements = entry.tensor.shape.iter().product();
                decode(&payload.bytes, (entry.tensor.dtype()?, elements), base.as_ref(), &mut write)
                    .map_err(|error| error.at(place()))?;
            }
        }
        match hasher.finalize().to_string() == entry.tensor.blake3 {
            true => Ok(()),
            false => Err(self.wrong(format!("tensor {} was not recovered: its hash differs", placed.name))),
        }
    }

    fn companion(&self, stored: &StoredFile) -> Result<Vec<u8>> {
        let payload = format!("file/{}", stored.name);
        let place = || format!("{}: {payload}", self.path.display());
        if stored.bytes > COMPANION_LIMIT {
            return Err(
                Error::failed(format!("{} bytes, expected at most {COMPANION_LIMIT}", stored.bytes)).at(place())
            );
        }
        let content = unpack(&self.diff.payload(&payload)?.bytes, stored.bytes).map_err(|error| error.at(place()))?;
        match content.len() as u64 == stored.bytes && hash(&content).to_string() == stored.blake3 {
            true => Ok(content),
            false => Err(Error::failed("it is not the tuned model's file").at(place())),
        }
    }
}

/// A small file back from its payload.
fn unpack(payload: &[u8], limit: u64) -> Result<Vec<u8>> {
    zstd::bulk::decompress(payload, limit as usize).map_err(|e| Error::failed(format!("zstd: {e}")))
}

/// Unpacks a tensor and hands its bytes to `write` in order.
fn decode(
    payload: &[u8],
    (dtype, elements): (StoredDtype, usize),
    base: Option<&RawTensor>,
    write: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let reference = Reference::new(base, dtype);
    let mut rest = payload;
    let mut start = 0;
    let at_once = 2 * rayon::current_num_threads();
    while start < elements {
        let mut group: Vec<(usize, Vec<Frame<'_>>)> = Vec::with_capacity(at_once);
        while group.len() < at_once && start < elements {
            group.push((start, codec::frames(dtype, &mut rest)?));
            start += CHUNK.min(elements - start);
        }
        let chunk = |(start, frames): &(usize, Vec<Frame<'_>>)| {
            let reference = reference.bits(*start..elements.min(start + CHUNK));
            let mut tuned = vec![0; reference.len()];
            codec::decode(dtype, frames, &reference, &mut tuned).map(|()| tuned)
        };
        let chunks: Vec<Result<Vec<u8>>> = group.par_iter().map(chunk).collect();
        chunks.into_iter().try_for_each(|bytes| write(&bytes?))?;
    }
    match rest.is_empty() {
        true => Ok(()),
        false => Err(Error::failed(format!("{} bytes too many in its payload", rest.len()))),
    }
}

/// A file of the new folder.
struct Output<'a> {
    path: &'a Path,
    file: BufWriter<File>,
}

impl<'a> Output<'a> {
    fn create(path: &'a Path) -> Result<Output<'a>> {
        let file = File::create_new(path).map_err(|e| Error::io(path, "create", e))?;
        Ok(Output { path, file: BufWriter::with_capacity(1 << 20, file) })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|e| Error::io(self.path, "write", e))
    }

    fn finish(self) -> Result<()> {
        let synced = self.file.into_inner().map_err(|e| e.into_error()).and_then(|file| file.sync_all());
        synced.map_err(|e| Error::io(self.path, "write", e))
    }
}
