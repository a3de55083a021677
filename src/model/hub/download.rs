//! One file of the hub into the cache: resumed where a part is there, checked, and put in place in one step.
//!
//! Invariant: a name in a snapshot leads to a whole file. The content comes into `blobs/HASH.part` (the hash of commit
//! and name, so that a later run finds it), is checked against the announced length and SHA-256, renamed to the blob's
//! name and linked into the snapshot. Reference: the cache layout of `huggingface_hub`.

use super::client::{not_json, Client, Failure, Reply};
use crate::error::{Error, Result};
use hf_hub::{CacheRepo, Repo};
use std::fs::{File, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Bytes that an attempt must add to count as progress.
const PROGRESS: u64 = 1 << 20;
/// Longest file that is not weights: more would be read into memory, or is no such file.
const MAX_DOCUMENT: u64 = 1 << 29;

/// A file to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteFile {
    /// Name in the model's root.
    pub name: String,
    /// Length, where the listing says it.
    pub size: Option<u64>,
    /// SHA-256 in hex, where the listing says it.
    pub sha256: Option<String>,
}

/// Fetches files of one commit.
pub struct Downloader<'a> {
    /// Asks for them.
    pub client: &'a Client<'a>,
    /// The model and the revision.
    pub repo: &'a Repo,
    /// Its place in the cache.
    pub cache: &'a CacheRepo,
    /// The commit that the revision is.
    pub commit: &'a str,
}

/// Told the bytes of the file that are there, and anything worth a word.
pub trait Watch {
    /// `bytes` of the file are there.
    fn bytes(&mut self, bytes: u64);
    /// Something happened.
    fn note(&mut self, text: &str);
}

impl Downloader<'_> {
    /// Where the file is, or will be.
    pub fn place(&self, name: &str) -> PathBuf {
        self.cache.pointer_path(self.commit).join(name)
    }

    /// Fetches a file unless it is there.
    ///
    /// Errors: the hub refuses; it cannot be reached; the connection breaks again and again; what came is not the file;
    /// the disk.
    pub fn fetch(&self, file: &RemoteFile, watch: &mut dyn Watch) -> Result<PathBuf> {
        let place = self.place(&file.name);
        if place.exists() {
            return Ok(place);
        }
        let blobs = self.cache.blob_path("");
        let snapshot = self.cache.pointer_path(self.commit);
        for folder in [&blobs, &snapshot] {
            std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, "create", e))?;
        }
        // Large files are named by their hash: one that an earlier commit had is not fetched again.
        let known = file.sha256.as_ref().map(|sha256| blobs.join(sha256));
        if let Some(blob) = known.filter(|blob| blob.metadata().is_ok_and(|about| Some(about.len()) == file.size)) {
            link(&blob, &place)?;
            return Ok(place);
        }
        let hash = blake3::hash(format!("{}/{}", self.commit, file.name).as_bytes()).to_hex();
        let path = blobs.join(format!("{}.part", &hash[..40]));
        let mut part = Part::open(&path, self.client.settings().limits.stall, watch)?;
        if place.exists() {
            // Another process finished it while this one waited.
            let _ = std::fs::remove_file(&path);
            return Ok(place);
        }
        let etag = self.receive(file, &mut part, watch)?;
        part.file.sync_all().map_err(|e| Error::io(&path, "write", e))?;
        if let Err(error) = check(&part, file, &format!("{} of {}", file.name, self.repo.url())) {
            // What is wrong now would be wrong again with every resumption.
            let _ = std::fs::remove_file(&path);
            return Err(error);
        }
        let blob = blobs.join(etag.unwrap_or_else(|| hash[..40].to_string()));
        std::fs::rename(&path, &blob).map_err(|e| Error::io(&blob, "rename into place", e))?;
        link(&blob, &place)?;
        Ok(place)
    }

    /// Brings the part to its full length. Gives the blob's name, if the hub says one.
    fn receive(&self, file: &RemoteFile, part: &mut Part, watch: &mut dyn Watch) -> Result<Option<String>> {
        let limits = &self.client.settings().limits;
        let path = format!("{}/resolve/{}/{}", self.repo.url(), self.commit, file.name);
        let (mut failures, mut best) = (0, part.len()?);
        loop {
            let failure = match self.attempt(&path, file, part, watch) {
                Ok(etag) => return Ok(etag),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Passing(error)) => error,
            };
            let length = part.len()?;
            failures = if length >= best.saturating_add(PROGRESS) { 0 } else { failures + 1 };
            best = best.max(length);
            if failures >= limits.attempts {
                return Err(failure);
            }
            watch.note(&format!("{}; trying again", failure.message()));
            std::thread::sleep(limits.pause * (1 << failures.min(6)));
        }
    }

    /// One request.
    fn attempt(
        &self,
        path: &str,
        file: &RemoteFile,
        part: &mut Part,
        watch: &mut dyn Watch,
    ) -> Result<Option<String>, Failure> {
        let mut start = part.len().map_err(Failure::Final)?;
        if file.size.is_some_and(|size| start > size) {
            start = 0;
            part.cut().map_err(Failure::Final)?;
        }
        let reply = self.client.get(path, start, None)?;
        let etag = blob_name(&reply);
        let whole = match reply.status {
            206 => resumed(&reply, start),
            200 => reply.body.content_length().map(|length| (0, length)),
            // There is nothing behind the part: either it is the whole, or no part of this file.
            _ if file.size == Some(start) && start > 0 => return Ok(etag),
            _ => None,
        };
        if reply.status != 206 || whole.is_none() {
            part.cut().map_err(Failure::Final)?;
        }
        if reply.status == 416 || reply.status == 206 && whole.is_none() {
            let what = format!("{path}: the server cannot go on from byte {start}");
            return Err(Failure::Passing(Error::failed(what).hint("try again")));
        }
        let announced = whole.map(|(_, total)| total);
        let size = match (file.size, announced) {
            (Some(expected), Some(found)) if expected != found => {
                let what = format!("{path}: expected {expected} bytes, the server has {found}");
                return Err(Failure::Final(
                    Error::failed(what).hint("a proxy or mirror holds another file: check HF_ENDPOINT"),
                ));
            }
            (expected, found) => expected.or(found),
        };
        let most = if file.name.ends_with(".safetensors") { u64::MAX } else { MAX_DOCUMENT };
        if size.is_some_and(|size| size > most) {
            return Err(Failure::Final(Error::failed(format!("{path}: expected at most {most} bytes"))));
        }
        self.copy(path, reply, (size, most), part, watch)?;
        Ok(etag)
    }

    fn copy(
        &self,
        path: &str,
        reply: Reply,
        (size, most): (Option<u64>, u64),
        part: &mut Part,
        watch: &mut dyn Watch,
    ) -> Result<(), Failure> {
        let limits = &self.client.settings().limits;
        let mut reader = reply.body.into_reader();
        let mut buffer = vec![0; 1 << 18];
        let mut length = part.len().map_err(Failure::Final)?;
        let mut pace = Pace { since: Instant::now(), bytes: 0, span: limits.stall, slowest: limits.slowest };
        let broken = |what: String| {
            Failure::Passing(Error::failed(format!("{path}: {what}")).hint("try again; what was downloaded is kept"))
        };
        loop {
            watch.bytes(length);
            let read = match reader.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(broken(format!("the connection broke off after {length} bytes: {error}"))),
            };
            part.file.write_all(&buffer[..read]).map_err(|e| Failure::Final(Error::io(&part.path, "write", e)))?;
            length += read as u64;
            if length > size.unwrap_or(most) {
                part.cut().map_err(Failure::Final)?;
                return Err(broken(format!("more than the {} bytes that it can have", size.unwrap_or(most))));
            }
            if !pace.keeps_up(read as u64) {
                return Err(broken(format!("fewer than {} bytes a second after {length} bytes", limits.slowest)));
            }
        }
        match size {
            Some(size) if length < size => Err(broken(format!("{length} of {size} bytes came"))),
            _ => Ok(()),
        }
    }
}

/// Measures the speed over spans of time.
struct Pace {
    since: Instant,
    bytes: u64,
    span: Duration,
    slowest: u64,
}

impl Pace {
    fn keeps_up(&mut self, bytes: u64) -> bool {
        self.bytes += bytes;
        let elapsed = self.since.elapsed();
        if elapsed < self.span {
            return true;
        }
        let enough = self.bytes as f64 >= self.slowest as f64 * elapsed.as_secs_f64();
        (self.since, self.bytes) = (Instant::now(), 0);
        enough
    }
}

/// A file that is being received, held by this process.
struct Part {
    path: PathBuf,
    file: File,
}

impl Part {
    /// Opens or makes it. Waits for another process that is receiving it, as long as it grows.
    fn open(path: &Path, patience: Duration, watch: &mut dyn Watch) -> Result<Part> {
        let mut seen = (None, Instant::now());
        loop {
            let file = File::options().read(true).append(true).create(true).open(path);
            let file = file.map_err(|e| Error::io(path, "open", e))?;
            match file.try_lock() {
                // The other process may have renamed it between opening and locking.
                Ok(()) if !is_at(&file, path) => continue,
                // A file system without locks has no second process either, as far as anyone can know.
                Ok(()) | Err(TryLockError::Error(_)) => return Ok(Part { path: path.to_path_buf(), file }),
                Err(TryLockError::WouldBlock) => {}
            }
            let length = file.metadata().map_err(|e| Error::io(path, "read", e))?.len();
            if seen.0.is_none() {
                watch.note("another process is downloading this file; waiting for it");
            }
            if seen.0 != Some(length) {
                seen = (Some(length), Instant::now());
            } else if seen.1.elapsed() > patience {
                return Err(Error::file(path, "another process holds this download and makes no progress")
                    .hint("end that process, then run the same command again"));
            }
            watch.bytes(length);
            std::thread::sleep(patience.min(Duration::from_millis(200)));
        }
    }

    fn len(&self) -> Result<u64> {
        Ok(self.file.metadata().map_err(|e| Error::io(&self.path, "read", e))?.len())
    }

    fn cut(&self) -> Result<()> {
        self.file.set_len(0).map_err(|e| Error::io(&self.path, "write", e))
    }
}

/// Whether an open file is still the one of this name.
fn is_at(file: &File, path: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let same = |a: std::fs::Metadata, b: std::fs::Metadata| (a.dev(), a.ino()) == (b.dev(), b.ino());
        file.metadata().is_ok_and(|own| path.metadata().is_ok_and(|named| same(own, named)))
    }
    #[cfg(not(unix))]
    {
        let _ = file;
        path.exists()
    }
}

/// Start and total of a `Content-Range: bytes START-END/TOTAL` that goes on from `start`.
fn resumed(reply: &Reply, start: u64) -> Option<(u64, u64)> {
    let (range, total) = reply.header("content-range")?.strip_prefix("bytes ")?.split_once('/')?;
    let first: u64 = range.split_once('-')?.0.parse().ok()?;
    (first == start).then_some((first, total.parse().ok()?))
}

/// The hub's name of the content, if it is fit for a file name.
fn blob_name(reply: &Reply) -> Option<String> {
    let tag = reply.first_header("x-linked-etag").or_else(|| reply.first_header("etag"))?;
    let tag = tag.trim_start_matches("W/").trim_matches('"');
    let fit = tag.len() <= 128 && tag.len() >= 8 && tag.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
    fit.then(|| tag.to_string())
}

/// Whether what came can be the file.
fn check(part: &Part, file: &RemoteFile, place: &str) -> Result<()> {
    let mut content = &part.file;
    let io = |e| Error::io(&part.path, "read", e);
    let length = part.len()?;
    let again = "run the same command again; if it stays so, check HF_ENDPOINT and HTTPS_PROXY";
    if file.size.is_some_and(|size| size != length) {
        let what = format!("{place}: expected {} bytes, {length} came", file.size.unwrap_or(0));
        return Err(Error::failed(what).hint(again));
    }
    let mut start = vec![0; 512.min(length as usize)];
    content.seek(SeekFrom::Start(0)).and_then(|_| content.read_exact(&mut start)).map_err(io)?;
    content.seek(SeekFrom::Start(0)).map_err(io)?;
    if file.name.ends_with(".json") {
        let mut bytes = Vec::new();
        content.read_to_end(&mut bytes).map_err(io)?;
        serde_json::from_slice::<serde::de::IgnoredAny>(&bytes).map_err(|error| not_json(place, &bytes, &error))?;
    } else if start.to_ascii_lowercase().trim_ascii_start().starts_with(b"<!doctype html") {
        return Err(Error::failed(format!("{place}: a web page came instead")).hint(again));
    }
    if file.name.ends_with(".safetensors") && !begins_like_safetensors(&start, length) {
        let what = match start.starts_with(b"version https://git-lfs") {
            true => "only the pointer to the file came, not the file",
            false => "no safetensors file came",
        };
        return Err(Error::failed(format!("{place}: {what}")).hint(again));
    }
    match &file.sha256 {
        Some(expected) if !expected.eq_ignore_ascii_case(&sha256(&part.file, &part.path)?) => {
            Err(Error::failed(format!("{place}: the content differs from what the hub announced (SHA-256)"))
                .hint(again))
        }
        _ => Ok(()),
    }
}

fn begins_like_safetensors(start: &[u8], length: u64) -> bool {
    let Some((header, rest)) = start.split_first_chunk::<8>() else { return false };
    u64::from_le_bytes(*header).saturating_add(8) <= length && rest.first() == Some(&b'{')
}

fn sha256(mut file: &File, path: &Path) -> Result<String> {
    let io = |e| Error::io(path, "read", e);
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    let mut buffer = vec![0; 1 << 20];
    file.seek(SeekFrom::Start(0)).map_err(io)?;
    loop {
        match file.read(&mut buffer).map_err(io)? {
            0 => break,
            read => context.update(&buffer[..read]),
        }
    }
    Ok(context.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Makes `place`, in `snapshots/COMMIT/`, lead to a blob; where links cannot be made, the file itself moves there.
fn link(blob: &Path, place: &Path) -> Result<()> {
    #[cfg(unix)]
    {
        let Some(name) = blob.file_name() else { return Ok(()) };
        let target = Path::new("../../blobs").join(name);
        match std::os::unix::fs::symlink(&target, place) {
            Ok(()) => return Ok(()),
            Err(_) if place.exists() => return Ok(()),
            // A link whose blob was removed.
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                std::fs::remove_file(place).map_err(|e| Error::io(place, "replace", e))?;
                return std::os::unix::fs::symlink(&target, place).map_err(|e| Error::io(place, "link", e));
            }
            Err(_) => {}
        }
    }
    std::fs::rename(blob, place).map_err(|e| Error::io(place, "rename into place", e))
}
