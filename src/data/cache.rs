//! Tokens on disk, shared by all runs: one folder for each file of a dataset as one tokenizer and template write it.
//!
//! The folder's name is the blake3 of the file's content and of everything else that decides the tokens. It holds parts
//! `00000.tokens`, `00001.tokens`, ... ([`super::corpus::part`]), each written under another name, synced and renamed, and
//! `complete` once the file was read to its end. What is there of an incomplete one is used, and work goes on behind it.
//! Everything may be deleted at any time: it is made again, and a run that has it open reads on.
//!
//! What is kept nowhere stays in memory up to [`HELD_BYTES`]; parts beyond that go to files without a name.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use super::corpus::part::Part;
use crate::error::{Error, Result};

/// Changed when the same key would no longer give the same tokens.
const VERSION: &str = "llamantino tokens 1";
/// Present once all parts are.
const COMPLETE: &str = "complete";

/// Most bytes of parts that are held in memory.
pub const HELD_BYTES: u64 = 128 << 20;

/// Where tokens are kept.
#[derive(Debug, Clone)]
pub struct TokenCache {
    folder: Option<PathBuf>,
    memory: Memory,
}

/// Parts that are kept nowhere.
#[derive(Debug, Clone)]
struct Memory {
    held: Arc<AtomicU64>,
    limit: u64,
}

impl Memory {
    fn with_limit(limit: u64) -> Memory {
        Memory { held: Arc::default(), limit }
    }

    /// The part in memory, or in a file without a name if there are too many.
    fn settle(&self, part: Part) -> Result<Arc<Part>> {
        let bytes = part.bytes().len() as u64;
        if self.held.fetch_add(bytes, Ordering::Relaxed) + bytes <= self.limit {
            return Ok(Arc::new(part));
        }
        self.held.fetch_sub(bytes, Ordering::Relaxed);
        part.spill(&std::env::temp_dir()).map(Arc::new)
    }
}

/// The tokens of one file as one template writes them.
pub struct CacheEntry {
    folder: Option<PathBuf>,
    parts: Vec<Arc<Part>>,
    complete: bool,
    memory: Memory,
}

impl TokenCache {
    /// The cache of `data.cache`: `auto` (a folder `llamantino/tokens` in `$XDG_CACHE_HOME` or `~/.cache`), `off`, or a
    /// folder. Without a home, `auto` is off.
    pub fn named(name: &str) -> TokenCache {
        let folder = match name {
            "off" => None,
            "auto" => user_cache().map(|cache| cache.join("llamantino").join("tokens")),
            folder => Some(PathBuf::from(folder)),
        };
        TokenCache { folder, memory: Memory::with_limit(HELD_BYTES) }
    }

    /// One that keeps nothing, and counts what is in memory together with this one.
    pub fn switched_off(&self) -> TokenCache {
        TokenCache { folder: None, memory: self.memory.clone() }
    }

    /// A part that is kept nowhere.
    ///
    /// # Errors
    /// What the file system refuses where there are too many for the memory.
    pub fn settle(&self, part: Part) -> Result<Arc<Part>> {
        self.memory.settle(part)
    }

    /// Where it lies, if it is on.
    pub fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }

    /// What is kept of the file `path`, written as `how` describes; parts that are damaged are made again. The text
    /// returned says if something was damaged.
    ///
    /// # Errors
    /// A file that cannot be read; a folder that cannot be made.
    pub fn entry(&self, path: &Path, how: &str) -> Result<(CacheEntry, Option<String>)> {
        let Some(cache) = &self.folder else {
            let memory = self.memory.clone();
            return Ok((CacheEntry { folder: None, parts: Vec::new(), complete: false, memory }, None));
        };
        let folder = cache.join(key(path, how)?);
        fs::create_dir_all(&folder).map_err(|error| {
            Error::io(&folder, "create", error).hint("name another folder in data.cache, or set it to \"off\"")
        })?;
        let (mut parts, mut damage) = (Vec::new(), None);
        loop {
            let place = folder.join(part_name(parts.len()));
            if !place.exists() {
                break;
            }
            match Part::open(&place) {
                Ok(part) => parts.push(Arc::new(part)),
                Err(error) => {
                    damage = Some(format!("{error}; it is made again"));
                    // What stands behind a damaged part was made after it, and is made again too.
                    let _ = fs::remove_file(folder.join(COMPLETE));
                    break;
                }
            }
        }
        let complete = folder.join(COMPLETE);
        let count = fs::read_to_string(&complete).ok().and_then(|text| text.trim().parse::<usize>().ok());
        let complete = count == Some(parts.len());
        Ok((CacheEntry { folder: Some(folder), parts, complete, memory: self.memory.clone() }, damage))
    }
}

impl CacheEntry {
    /// The parts that are there, in order.
    pub fn parts(&self) -> &[Arc<Part>] {
        &self.parts
    }

    /// Whether they are all.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// Adds the next part: on disk, from where it is mapped, or as [`TokenCache::settle`] has it if the cache is off.
    ///
    /// # Errors
    /// What the file system refuses.
    pub fn add(&mut self, part: Part) -> Result<()> {
        let Some(folder) = &self.folder else {
            self.parts.push(self.memory.settle(part)?);
            return Ok(());
        };
        let place = folder.join(part_name(self.parts.len()));
        write(folder, &place, part.bytes())?;
        drop(part);
        self.parts.push(Arc::new(Part::open(&place)?));
        Ok(())
    }

    /// Says that the file was read to its end.
    ///
    /// # Errors
    /// What the file system refuses.
    pub fn finish(&mut self) -> Result<()> {
        self.complete = true;
        let Some(folder) = &self.folder else { return Ok(()) };
        write(folder, &folder.join(COMPLETE), self.parts.len().to_string().as_bytes())
    }
}

fn part_name(number: usize) -> String {
    format!("{number:05}.tokens")
}

/// Writes a file that appears at once. Two processes that make the same part write the same bytes.
fn write(folder: &Path, place: &Path, bytes: &[u8]) -> Result<()> {
    let failed = |error| Error::io(place, "write", error);
    // Somebody may have deleted it in the meantime.
    fs::create_dir_all(folder).map_err(failed)?;
    let mut file = tempfile::Builder::new().prefix(".tmp-").tempfile_in(folder).map_err(failed)?;
    file.write_all(bytes).map_err(failed)?;
    file.as_file().sync_all().map_err(failed)?;
    file.persist(place).map(drop).map_err(|error| failed(error.error))
}

/// Hashes a file's content and how it is written.
fn key(path: &Path, how: &str) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(VERSION.as_bytes()).update(&(how.len() as u64).to_le_bytes()).update(how.as_bytes());
    hasher.update_mmap_rayon(path).map_err(|error| Error::io(path, "read", error))?;
    Ok(hasher.finalize().to_hex()[..32].to_owned())
}

/// The user's folder for things that can be made again.
fn user_cache() -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    variable("XDG_CACHE_HOME").or_else(|| variable("HOME").map(|home| home.join(".cache")))
}

#[cfg(test)]
#[path = "cache_tests.rs"]
mod tests;
