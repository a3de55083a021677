//! Files and folders that appear at once: written under a temporary name beside their place, synced, read back, renamed.
//!
//! Invariant: a final name holds a complete, verified file or folder, or what it held before, or nothing. A process that
//! dies on the way leaves only a name with [`TEMPORARY`] in front, which [`remove_leftovers`] clears in a run's folder:
//! the caller holds the run's lock, so nobody else is writing there.

mod folder;

pub use folder::AtomicFolder;

use super::disk::Disk;
use super::manifest::FileRecord;
use crate::error::{Error, Result};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

/// How temporary names begin.
pub const TEMPORARY: &str = ".tmp-";
/// How the name of a folder begins that is on its way out.
const REPLACED: &str = ".tmp-replaced-";

/// Writes a small file: the name holds the old contents or the new, whatever happens.
///
/// # Errors
/// A file that reads back differently from what was written; what the file system says. The old contents stand then.
pub fn write_file(disk: &dyn Disk, path: &Path, contents: &[u8]) -> Result<()> {
    let temporary = sibling(path, TEMPORARY)?;
    let written = write_synced(disk, &temporary, &mut |file| file.write_all(contents)).and_then(|written| {
        let found = record_of(disk, &temporary)?;
        match found == written {
            true => disk.rename(&temporary, path).map_err(|error| Error::io(path, "rename into place", error)),
            false => Err(Error::file(&temporary, format!("wrote {written}, read back {found}")).hint("check the disk")),
        }
    });
    if let Err(error) = written {
        let _ = disk.remove(&temporary);
        return Err(error);
    }
    sync_folder(disk, parent(path))
}

/// Removes what dead processes left in `folder` under temporary names; gives the names. A folder that was about to be
/// replaced, and whose place is empty, gets its name back instead.
///
/// # Errors
/// What the file system says.
pub fn remove_leftovers(disk: &dyn Disk, folder: &Path) -> Result<Vec<String>> {
    let mut names = disk.list(folder).map_err(|error| Error::io(folder, "list", error))?;
    names.retain(|name| name.starts_with(TEMPORARY));
    names.sort_unstable();
    for name in &names {
        let path = folder.join(name);
        let place = name.strip_prefix(REPLACED).map(|place| folder.join(place));
        match place.filter(|place| !exists(disk, place)) {
            Some(place) => disk.rename(&path, &place).map_err(|error| Error::io(&place, "put back", error))?,
            None => disk.remove(&path).map_err(|error| Error::io(&path, "remove", error))?,
        }
    }
    if !names.is_empty() {
        sync_folder(disk, folder)?;
    }
    Ok(names)
}

/// Reads a file and gives its length and hash.
pub(super) fn record_of(disk: &dyn Disk, path: &Path) -> Result<FileRecord> {
    let io = |error| Error::io(path, "read back", error);
    let mut file = disk.open(path).map_err(io)?;
    let mut buffer = vec![0; 1 << 20];
    let (mut hasher, mut bytes) = (blake3::Hasher::new(), 0);
    loop {
        match file.read(&mut buffer).map_err(io)? {
            0 => return Ok(FileRecord { bytes, blake3: hasher.finalize().to_hex().to_string() }),
            read => {
                hasher.update(&buffer[..read]);
                bytes += read as u64;
            }
        }
    }
}

pub(super) fn sync_folder(disk: &dyn Disk, folder: &Path) -> Result<()> {
    disk.sync_folder(folder).map_err(|error| Error::io(folder, "sync", error))
}

pub(super) fn remove_if_there(disk: &dyn Disk, path: &Path) -> Result<()> {
    match disk.remove(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io(path, "remove", error)),
        _ => Ok(()),
    }
}

fn exists(disk: &dyn Disk, path: &Path) -> bool {
    disk.list(path).is_ok() || disk.size(path).is_ok()
}

fn write_synced(
    disk: &dyn Disk,
    path: &Path,
    fill: &mut dyn FnMut(&mut dyn Write) -> io::Result<()>,
) -> Result<FileRecord> {
    let file = disk.create(path).map_err(|error| Error::io(path, "create", error))?;
    let mut file = BufWriter::with_capacity(1 << 20, file);
    let mut writer = Hashing { out: &mut file, hasher: blake3::Hasher::new(), bytes: 0 };
    fill(&mut writer).map_err(|error| Error::io(path, "write", error))?;
    let record = FileRecord { bytes: writer.bytes, blake3: writer.hasher.finalize().to_hex().to_string() };
    let mut file = file.into_inner().map_err(|error| Error::io(path, "write", error.into_error()))?;
    file.sync().map_err(|error| Error::io(path, "sync", error))?;
    Ok(record)
}

/// Hashes what passes through.
struct Hashing<'w> {
    out: &'w mut dyn Write,
    hasher: blake3::Hasher,
    bytes: u64,
}

impl Write for Hashing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn sibling(path: &Path, prefix: &str) -> Result<PathBuf> {
    match path.file_name() {
        Some(name) => Ok(parent(path).join(format!("{prefix}{}", name.to_string_lossy()))),
        None => Err(Error::usage(format!("{}: expected a path with a name", path.display()))),
    }
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}
