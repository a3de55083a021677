//! The file of a diff: safetensors with a hash over its own header, which holds the hashes of everything else.
//!
//! Payloads are written one after the other while their lengths are still unknown; the header goes into space that was
//! kept for it, filled up with blanks.

use super::files::read_header;
use super::{hash, update, Manifest};
use crate::error::{Error, Result};
use crate::export::safetensors::{sync_folder, PartialFile};
use crate::model::{Checkpoint, RawTensor, StoredDtype};
use serde_json::{json, Map, Value};
use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Key of the [`Manifest`] in the metadata.
const MANIFEST: &str = "llamantino_diff";
/// What stands before the header's hash in the header. Inside the manifest's text the quotes are escaped.
const HASH: &str = "\"header_blake3\":\"";
/// The digits of a hash that is not known yet.
pub(super) const NO_HASH: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// Writes a diff.
pub(super) struct DiffWriter {
    partial: PartialFile,
    file: BufWriter<File>,
    header_space: usize,
    position: u64,
    /// Entries of the header.
    entries: Map<String, Value>,
    /// Hashes of the payloads so far.
    hashes: Vec<(String, String)>,
    open: Option<(String, u64, blake3::Hasher)>,
}

impl DiffWriter {
    /// Starts the file `path`, with room for a manifest no longer than `bound` and payloads of the names in it.
    ///
    /// Errors: something is there already; the file system.
    pub(super) fn create(path: &Path, bound: &Manifest) -> Result<DiffWriter> {
        if std::fs::symlink_metadata(path).is_ok() {
            return Err(Error::file(path, "exists already").hint("name another file, or remove this one"));
        }
        let mut entries = Map::new();
        for name in bound.payloads.keys() {
            entries.insert(name.clone(), entry(u64::MAX / 2, u64::MAX));
        }
        let header_space = header_text(&entries, bound)?.len().next_multiple_of(8);
        let (partial, file) = PartialFile::create(path)?;
        let mut file = BufWriter::with_capacity(1 << 20, file);
        file.seek(SeekFrom::Start(8 + header_space as u64)).map_err(|e| Error::io(path, "seek", e))?;
        Ok(DiffWriter { partial, file, header_space, position: 0, entries: Map::new(), hashes: Vec::new(), open: None })
    }

    /// Starts the payload `name`; the one before it is complete.
    pub(super) fn begin(&mut self, name: &str) {
        self.end();
        self.open = Some((name.to_string(), self.position, blake3::Hasher::new()));
    }

    /// Adds bytes to the payload.
    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|e| Error::io(&self.partial.partial, "write", e))?;
        if let Some((_, _, hasher)) = &mut self.open {
            update(hasher, bytes);
        }
        self.position += bytes.len() as u64;
        Ok(())
    }

    fn end(&mut self) {
        if let Some((name, start, hasher)) = self.open.take() {
            self.entries.insert(name.clone(), entry(start, self.position));
            self.hashes.push((name, hasher.finalize().to_string()));
        }
    }

    /// Writes the header with `manifest`, whose payload hashes are filled in, reads everything back and gives the file
    /// its name. Returns its length.
    pub(super) fn finish(mut self, mut manifest: Manifest) -> Result<u64> {
        self.end();
        manifest.payloads = self.hashes.into_iter().collect();
        let mut text = header_text(&self.entries, &manifest)?;
        assert!(text.len() <= self.header_space, "the bound of the header is one");
        text.resize(self.header_space, b' ');
        let mut header = (text.len() as u64).to_le_bytes().to_vec();
        header.append(&mut text);
        let digits = hash(&header).to_string();
        let place = hash_place(&header).unwrap_or_default();
        header[place..place + digits.len()].copy_from_slice(digits.as_bytes());
        let path = self.partial.partial.clone();
        let finish = || -> std::io::Result<()> {
            self.file.seek(SeekFrom::Start(0))?;
            self.file.write_all(&header)?;
            self.file.into_inner().map_err(|e| e.into_error())?.sync_all()
        };
        finish().map_err(|e| Error::io(&path, "write", e))?;
        let written = DiffFile::open(&path)?;
        if written.manifest != manifest {
            return Err(Error::file(&path, "reads back differently from what was written").hint("check the disk"));
        }
        manifest.payloads.keys().try_for_each(|name| written.payload(name).map(drop))?;
        drop(written);
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        self.partial.keep()?;
        sync_folder(folder)?;
        Ok(header.len() as u64 + self.position)
    }
}

fn entry(start: u64, end: u64) -> Value {
    json!({"dtype": StoredDtype::U8.name(), "shape": [end - start], "data_offsets": [start, end]})
}

/// The header's JSON with [`NO_HASH`] in the place of its hash.
fn header_text(entries: &Map<String, Value>, manifest: &Manifest) -> Result<Vec<u8>> {
    let manifest = serde_json::to_string(manifest).map_err(|e| Error::failed(format!("the diff's manifest: {e}")))?;
    let mut header = Map::new();
    // The hash first: its place does not depend on the rest.
    header.insert("__metadata__".into(), json!({"header_blake3": NO_HASH, MANIFEST: manifest}));
    header.extend(entries.iter().map(|(name, entry)| (name.clone(), entry.clone())));
    Ok(Value::Object(header).to_string().into_bytes())
}

/// Where the digits of the header's hash begin.
fn hash_place(header: &[u8]) -> Option<usize> {
    let found = header.windows(HASH.len()).position(|window| window == HASH.as_bytes())?;
    let place = found + HASH.len();
    (place + NO_HASH.len() <= header.len()).then_some(place)
}

/// An open diff whose header is sound.
pub(super) struct DiffFile {
    path: PathBuf,
    checkpoint: Checkpoint,
    /// What it says.
    pub(super) manifest: Manifest,
}

impl DiffFile {
    /// Opens a diff.
    ///
    /// Errors: no safetensors file, no diff, a newer format, a header that its hash does not confirm.
    pub(super) fn open(path: &Path) -> Result<DiffFile> {
        let checkpoint = Checkpoint::open(path)?;
        let header = read_header(path)?;
        let manifest = check_header(path, header)?;
        if manifest.format != super::FORMAT {
            let what = format!("diff of format {}, expected {}", manifest.format, super::FORMAT);
            return Err(Error::file(path, what).hint("use a newer version of this program"));
        }
        if !checkpoint.names().eq(manifest.payloads.keys().map(String::as_str)) {
            return Err(Error::file(path, "its tensors are not those that its manifest names"));
        }
        Ok(DiffFile { path: path.to_path_buf(), checkpoint, manifest })
    }

    /// A payload, after checking its hash.
    pub(super) fn payload(&self, name: &str) -> Result<RawTensor> {
        let tensor = self.checkpoint.get(name)?;
        let expected = self.manifest.payloads.get(name);
        if expected.is_none_or(|expected| hash(&tensor.bytes).to_string() != *expected) {
            let what = format!("payload {name} is damaged: its hash is not the one in the header");
            return Err(Error::file(&self.path, what).hint("fetch the diff again"));
        }
        Ok(tensor)
    }
}

/// The manifest of a header that its hash confirms.
fn check_header(path: &Path, mut header: Vec<u8>) -> Result<Manifest> {
    let no_diff = || {
        Error::file(path, "not a weight diff of this program: no llamantino_diff in its metadata")
            .hint("make one with `llamantino diff make`")
    };
    let place = hash_place(&header).ok_or_else(no_diff)?;
    let stated = header[place..place + NO_HASH.len()].to_vec();
    header[place..place + NO_HASH.len()].copy_from_slice(NO_HASH.as_bytes());
    if stated != hash(&header).to_string().as_bytes() {
        let what = "the header is damaged: it is not what its hash says";
        return Err(Error::file(path, what).hint("fetch the diff again"));
    }
    let json: Value = serde_json::from_slice(&header[8..]).map_err(|e| Error::file(path, format!("header: {e}")))?;
    let text = json["__metadata__"][MANIFEST].as_str().ok_or_else(no_diff)?;
    let format = serde_json::from_str::<Value>(text).ok().and_then(|manifest| manifest["format"].as_u64());
    match serde_json::from_str(text) {
        Ok(manifest) => Ok(manifest),
        Err(_) if format.is_some_and(|format| format != u64::from(super::FORMAT)) => {
            let what = format!("diff of format {}, expected {}", format.unwrap_or_default(), super::FORMAT);
            Err(Error::file(path, what).hint("use a newer version of this program"))
        }
        Err(error) => Err(Error::file(path, format!("manifest: {error}"))),
    }
}
