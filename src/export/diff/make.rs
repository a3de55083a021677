//! Writing a diff: the tuned files in their order, one tensor at a time, its chunks packed on all threads.

use super::codec::{self, CHUNK};
use super::container::{DiffWriter, NO_HASH};
use super::files::WeightsFile;
use super::reference::{is_alike, Reference};
use super::{hash, BaseTensor, Entry, Identity, Kind, Manifest, StoredFile, FORMAT};
use crate::adapter::peft::{EMBEDDING, HEAD};
use crate::error::{Error, Result};
use crate::export::companions;
use crate::export::safetensors::hash_mapped;
use crate::model::{Checkpoint, RawTensor};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

/// What was made.
#[derive(Debug, Clone, Copy)]
pub struct Made {
    /// Tensors of the tuned model.
    pub tensors: usize,
    /// Of these, equal to the base's.
    pub same: usize,
    /// Of these, without a counterpart in the base.
    pub whole: usize,
    /// Bytes of the tuned model's files.
    pub tuned_bytes: u64,
    /// Bytes of the diff.
    pub diff_bytes: u64,
}

/// Writes the diff of `tuned` from `base` (model folders or single safetensors files) to the file `out`.
///
/// `progress` is told the tensors done, their number, and the name of the last one.
///
/// # Errors
/// A checkpoint that cannot be opened; a dtype other than F32, F16, BF16 and U8; `out` exists; the disk.
pub fn make(base: &Path, tuned: &Path, out: &Path, progress: &mut dyn FnMut(usize, usize, &str)) -> Result<Made> {
    let (base_model, tuned_model) = (Checkpoint::open(base)?, Checkpoint::open(tuned)?);
    let files: Vec<WeightsFile> = tuned_model.files().map(WeightsFile::read).collect::<Result<_>>()?;
    let companions = match tuned.is_dir() {
        true => companions::with_config(tuned)?,
        false => Vec::new(),
    };
    let mut manifest = plan(base, &base_model, &tuned_model, &files, &companions)?;
    let mut writer = DiffWriter::create(out, &manifest)?;
    let mut done = 0;
    for file in &files {
        writer.begin(&format!("header/{}", file.name));
        writer.append(&pack_file(&file.header)?)?;
        for placed in &file.tensors {
            let tensor = tuned_model.get(&placed.name)?;
            let entry = write_tensor(&placed.name, &tensor, &base_model, &mut writer)?;
            manifest.tensors.insert(placed.name.clone(), entry);
            done += 1;
            progress(done, manifest.tensors.len(), &placed.name);
        }
    }
    for (file, path) in manifest.files.iter_mut().zip(tuned_model.files()) {
        file.blake3 = hash_file(path)?;
    }
    for file in &mut manifest.companions {
        let path = tuned.join(&file.name);
        let content = std::fs::read(&path).map_err(|e| Error::io(&path, "read", e))?;
        (file.bytes, file.blake3) = (content.len() as u64, hash(&content).to_string());
        writer.begin(&format!("file/{}", file.name));
        writer.append(&pack_file(&content)?)?;
    }
    let count = |kind: Kind| manifest.tensors.values().filter(|entry| entry.kind == kind).count();
    let (tensors, same, whole) = (manifest.tensors.len(), count(Kind::Same), count(Kind::Whole));
    let tuned_bytes = manifest.files.iter().chain(&manifest.companions).map(|file| file.bytes).sum();
    let diff_bytes = writer.finish(manifest)?;
    Ok(Made { tensors, same, whole, tuned_bytes, diff_bytes })
}

/// The manifest with every name and with the longest value that each field can have.
fn plan(
    base: &Path,
    base_model: &Checkpoint,
    tuned_model: &Checkpoint,
    files: &[WeightsFile],
    companions: &[String],
) -> Result<Manifest> {
    let folder = base.canonicalize().unwrap_or_else(|_| base.to_path_buf());
    let mut manifest = Manifest {
        format: FORMAT,
        made_by: concat!("llamantino ", env!("CARGO_PKG_VERSION")).into(),
        base: folder.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        files: Vec::new(),
        tensors: BTreeMap::new(),
        companions: Vec::new(),
        payloads: BTreeMap::new(),
    };
    let mut payload = |name: String| match manifest.payloads.insert(name.clone(), NO_HASH.into()) {
        None => Ok(()),
        Some(_) => Err(Error::failed(format!("{name}: the name of a tensor and of a file"))),
    };
    for file in files {
        payload(format!("header/{}", file.name))?;
        manifest.files.push(StoredFile { name: file.name.clone(), bytes: file.bytes(), blake3: NO_HASH.into() });
        for placed in &file.tensors {
            payload(placed.name.clone())?;
            let tensor = tuned_model.get(&placed.name)?;
            let identity = |tensor: &RawTensor| Identity {
                dtype: tensor.dtype.name().into(),
                shape: tensor.shape.clone(),
                blake3: NO_HASH.into(),
            };
            let base = find_base(&placed.name, &tensor, base_model)?;
            let base = base.map(|(name, tensor)| BaseTensor { name, tensor: identity(&tensor) });
            let entry = Entry { kind: Kind::Whole, tensor: identity(&tensor), base };
            manifest.tensors.insert(placed.name.clone(), entry);
        }
    }
    for name in companions {
        payload(format!("file/{name}"))?;
        manifest.companions.push(StoredFile { name: name.clone(), bytes: u64::MAX, blake3: NO_HASH.into() });
    }
    Ok(manifest)
}

/// The tensor of the base that `tensor` is compared with: of its name, or the embedding for a head that is tied there.
fn find_base(name: &str, tensor: &RawTensor, base: &Checkpoint) -> Result<Option<(String, RawTensor)>> {
    let tied = (name == HEAD && !base.contains(HEAD)).then_some(EMBEDDING);
    for candidate in [name].into_iter().chain(tied) {
        if let Some(found) = base.find(candidate)?.filter(|found| is_alike(found, tensor.dtype, &tensor.shape)) {
            return Ok(Some((candidate.to_string(), found)));
        }
    }
    Ok(None)
}

fn write_tensor(name: &str, tensor: &RawTensor, base: &Checkpoint, writer: &mut DiffWriter) -> Result<Entry> {
    let found = find_base(name, tensor, base)?;
    let reference = found.as_ref().map(|(_, tensor)| tensor);
    let identity = Identity::of(tensor);
    let base = found.as_ref().map(|(name, tensor)| BaseTensor { name: name.clone(), tensor: Identity::of(tensor) });
    if base.as_ref().is_some_and(|base| base.tensor == identity) {
        return Ok(Entry { kind: Kind::Same, tensor: identity, base });
    }
    writer.begin(name);
    let (size, elements) = (tensor.dtype.size(), tensor.elements());
    let reference = Reference::new(reference, tensor.dtype);
    let starts: Vec<usize> = (0..elements).step_by(CHUNK).collect();
    for group in starts.chunks(2 * rayon::current_num_threads()) {
        let packed: Vec<Result<Vec<u8>>> = group
            .par_iter()
            .map(|&start| {
                let range = start..elements.min(start + CHUNK);
                let tuned = &tensor.bytes[range.start * size..range.end * size];
                codec::encode(tensor.dtype, tuned, &reference.bits(range))
            })
            .collect();
        packed.into_iter().try_for_each(|packed| writer.append(&packed?))?;
    }
    let kind = if base.is_some() { Kind::Diff } else { Kind::Whole };
    Ok(Entry { kind, tensor: identity, base })
}

/// Small files are packed as tightly as zstd can.
fn pack_file(content: &[u8]) -> Result<Vec<u8>> {
    zstd::bulk::compress(content, 19).map_err(|e| Error::failed(format!("zstd: {e}")))
}

/// BLAKE3 of a file that nobody writes.
pub(super) fn hash_file(path: &Path) -> Result<String> {
    let file = File::open(path).map_err(|e| Error::io(path, "open", e))?;
    // SAFETY: weights files are not written while they are read: everything that this program writes goes to a
    // temporary name, which this process alone uses, and is renamed.
    let map = unsafe { memmap2::Mmap::map(&file) }.map_err(|e| Error::io(path, "read", e))?;
    Ok(hash_mapped(&map, 0).to_string())
}
