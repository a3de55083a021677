//! Finding data files and opening them: folders, globs, gzip and zstd, with a limit on how far they may expand.
//!
//! Invariant: the list of files depends on names only (sorted by path inside each pattern), and a compressed file that
//! ends early is an error, never a short read. Compression is recognised by its first bytes (RFC 1952, RFC 8878), so a
//! misnamed file still opens.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use crate::error::{Error, Result};

/// A compressed file may expand to this many bytes whatever its ratio.
pub const EXPANSION_FREE_BYTES: u64 = 256 << 20;
/// Beyond [`EXPANSION_FREE_BYTES`], the largest ratio of expanded to compressed bytes. Text compresses 3 to 10 times;
/// a gzip bomb about 1000 times.
pub const EXPANSION_LIMIT: u64 = 200;
/// Largest line or whole-file document, in bytes: what one record may hold in memory.
pub const RECORD_LIMIT_BYTES: u64 = 256 << 20;

/// Folders below a data folder deeper than this are refused (a loop of links, in practice).
const FOLDER_DEPTH_LIMIT: usize = 32;

/// A file's bytes, decompressed.
pub struct Source {
    /// The file on disk.
    pub path: PathBuf,
    /// Its content.
    pub reader: Box<dyn BufRead + Send>,
    /// Bytes of the file on disk that were read so far.
    pub read: Arc<AtomicU64>,
}

/// Counts what is read.
struct Counted {
    file: File,
    read: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(buffer)?;
        self.read.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

/// Opens a plain, gzip (one or many members) or zstd file.
pub fn open(path: &Path) -> Result<Source> {
    let failed = |error| Error::io(path, "open", error);
    let file = File::open(path).map_err(failed)?;
    let compressed_bytes = file.metadata().map_err(failed)?.len();
    let read = Arc::new(AtomicU64::new(0));
    let mut file = BufReader::with_capacity(1 << 16, Counted { file, read: read.clone() });
    let start = file.fill_buf().map_err(|error| Error::io(path, "read", error))?;
    let (gzip, zstd) = (start.starts_with(&[0x1f, 0x8b]), start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]));
    if start.is_empty() && matches!(compression_suffix(path), Some("gz" | "zst")) {
        return Err(Error::file(path, "the compressed file is empty (0 bytes)").hint("download or copy it again"));
    }
    let reader: Box<dyn Read + Send> = if gzip {
        Box::new(flate2::bufread::MultiGzDecoder::new(file))
    } else if zstd {
        Box::new(zstd::stream::read::Decoder::with_buffer(file).map_err(failed)?)
    } else {
        return Ok(Source { path: path.to_owned(), reader: Box::new(file), read });
    };
    let limit = EXPANSION_FREE_BYTES.max(compressed_bytes.saturating_mul(EXPANSION_LIMIT));
    let reader = Box::new(BufReader::with_capacity(1 << 16, Expanded { reader, left: limit, limit }));
    Ok(Source { path: path.to_owned(), reader, read })
}

/// [`read_error`] with the line at which reading failed.
pub fn read_error_at(path: &Path, line: u64, error: io::Error) -> Error {
    read_error(Path::new(&format!("{}:{line}", path.display())), error)
}

/// Says in the user's words why reading a file's content failed.
pub fn read_error(path: &Path, error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => {
            Error::file(path, "the compressed file ends before its content does (truncated)")
                .hint("download or copy it again")
        }
        io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData => {
            Error::file(path, format_args!("the compressed data is damaged: {error}")).hint("download or copy it again")
        }
        // zstd reports damage under `Other`, and so does the limit below.
        io::ErrorKind::Other => Error::file(path, format_args!("cannot decompress: {error}")),
        _ => Error::io(path, "read", error),
    }
}

/// A decompressor that stops at the expansion limit.
struct Expanded {
    reader: Box<dyn Read + Send>,
    left: u64,
    limit: u64,
}

impl Read for Expanded {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.reader.read(buffer)?;
        self.left = self.left.checked_sub(count as u64).ok_or_else(|| {
            io::Error::other(format!(
                "it expands beyond {} MiB, more than {EXPANSION_LIMIT} times its size; text does not do that",
                self.limit >> 20
            ))
        })?;
        Ok(count)
    }
}

/// `gz` or `zst` if the name ends so.
fn compression_suffix(path: &Path) -> Option<&str> {
    path.extension().and_then(|e| e.to_str()).filter(|e| ["gz", "zst"].contains(e))
}

/// The extension that names the format, lower case, without `.gz` / `.zst`: `json` for `a.json.gz`.
pub fn format_extension(path: &Path) -> String {
    let inner = if compression_suffix(path).is_some() { path.file_stem().map(Path::new) } else { Some(path) };
    inner.and_then(|p| p.extension()).map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default()
}

/// The files that `patterns` name: files, folders (searched to the bottom; hidden entries and other extensions are
/// left out) and globs (`*`, `?`, `[a-z]`, and `**` for any number of folders). Patterns keep their order, files within
/// one are sorted by path, and a file named twice is listed once.
///
/// # Errors
/// A pattern that names nothing, an unreadable folder.
pub fn find_files(patterns: &[String], is_data: &dyn Fn(&Path) -> bool) -> Result<Vec<PathBuf>> {
    let mut files: Vec<PathBuf> = Vec::new();
    let mut seen = std::collections::HashSet::new();
    for pattern in patterns {
        let path = Path::new(pattern);
        let mut found = Vec::new();
        // A name that exists is meant literally, even if it holds a `[`.
        if path.is_dir() {
            list_folder(path, 0, is_data, &mut found)?;
        } else if path.is_file() {
            found.push(path.to_owned());
        } else if pattern.contains(['*', '?', '[']) {
            expand_glob(path, is_data, &mut found)?;
        } else if path.exists() {
            return Err(Error::file(path, "neither a file nor a folder"));
        } else {
            return Err(Error::file(path, "no such file or folder")
                .hint("check the path; a relative one starts at the current folder"));
        }
        if found.is_empty() {
            return Err(Error::failed(format!("{pattern}: no data file there"))
                .hint("expected .txt, .jsonl, .json, .csv, .tsv or .parquet files, plain or compressed (.gz, .zst)"));
        }
        found.sort();
        for file in found {
            let identity = file.canonicalize().map_err(|error| Error::io(&file, "open", error))?;
            if seen.insert(identity) {
                files.push(file);
            }
        }
    }
    Ok(files)
}

/// The entries of a folder, sorted, hidden ones left out.
fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let failed = |error| Error::io(folder, "list", error);
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if !entry.file_name().as_encoded_bytes().starts_with(b".") {
            paths.push(entry.path());
        }
    }
    paths.sort();
    Ok(paths)
}

fn list_folder(folder: &Path, depth: usize, is_data: &dyn Fn(&Path) -> bool, found: &mut Vec<PathBuf>) -> Result<()> {
    if depth > FOLDER_DEPTH_LIMIT {
        return Err(Error::file(folder, format_args!("more than {FOLDER_DEPTH_LIMIT} folders deep"))
            .hint("is there a link to a folder above it?"));
    }
    for path in entries(folder)? {
        if path.is_dir() {
            list_folder(&path, depth + 1, is_data, found)?;
        } else if path.is_file() && is_data(&path) {
            found.push(path);
        }
    }
    Ok(())
}

/// Expands a glob component by component. Folders that match the whole pattern are searched like a named folder.
fn expand_glob(pattern: &Path, is_data: &dyn Fn(&Path) -> bool, found: &mut Vec<PathBuf>) -> Result<()> {
    let mut places = vec![PathBuf::new()];
    for component in pattern.components() {
        let Component::Normal(name) = component else {
            places.iter_mut().for_each(|place| place.push(component));
            continue;
        };
        let name = name.to_string_lossy();
        let mut next = Vec::new();
        for place in &places {
            let folder = if place.as_os_str().is_empty() { Path::new(".") } else { place.as_path() };
            if !name.contains(['*', '?', '[']) {
                let path = place.join(&*name);
                next.extend(path.exists().then_some(path));
            } else if name == "**" {
                next.push(place.clone());
                folders_below(folder, place, 0, &mut next)?;
            } else if folder.is_dir() {
                let names = entries(folder)?.into_iter().filter_map(|path| path.file_name().map(|n| n.to_owned()));
                next.extend(names.filter(|n| glob_matches(&name, &n.to_string_lossy())).map(|n| place.join(n)));
            }
        }
        places = next;
    }
    for place in places {
        if place.is_dir() {
            list_folder(&place, 0, is_data, found)?;
        } else if place.is_file() {
            found.push(place);
        }
    }
    found.sort();
    found.dedup();
    Ok(())
}

fn folders_below(folder: &Path, place: &Path, depth: usize, found: &mut Vec<PathBuf>) -> Result<()> {
    if depth > FOLDER_DEPTH_LIMIT || !folder.is_dir() {
        return Ok(());
    }
    for path in entries(folder)?.into_iter().filter(|path| path.is_dir()) {
        if let Some(name) = path.file_name() {
            let below = place.join(name);
            found.push(below.clone());
            folders_below(&path, &below, depth + 1, found)?;
        }
    }
    Ok(())
}

/// Whether `name` matches `pattern` made of `*`, `?`, `[abc]`, `[a-z]`, `[!a]` and plain characters.
fn glob_matches(pattern: &str, name: &str) -> bool {
    let pattern: Vec<char> = pattern.chars().collect();
    let name: Vec<char> = name.chars().collect();
    let (mut p, mut n) = (0, 0);
    // Where to come back to when a guess about the last `*` was wrong: (pattern after it, name it has swallowed).
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        let step = match pattern.get(p) {
            Some('*') => {
                star = Some((p + 1, n));
                p += 1;
                continue;
            }
            Some('?') => Some(p + 1),
            Some('[') => match_class(&pattern, p, name[n]),
            Some(&c) => (c == name[n]).then_some(p + 1),
            None => None,
        };
        match (step, star) {
            (Some(next), _) => (p, n) = (next, n + 1),
            (None, Some((after, swallowed))) => {
                star = Some((after, swallowed + 1));
                (p, n) = (after, swallowed + 1);
            }
            (None, None) => return false,
        }
    }
    pattern[p..].iter().all(|&c| c == '*')
}

/// Matches `c` against the class that opens at `pattern[open]`; the index after its `]` if it does.
fn match_class(pattern: &[char], open: usize, c: char) -> Option<usize> {
    let Some(close) = (open + 2..pattern.len()).find(|&i| pattern[i] == ']') else {
        return (c == '[').then_some(open + 1);
    };
    let mut class = &pattern[open + 1..close];
    let negated = class.first().is_some_and(|&c| c == '!' || c == '^');
    class = &class[usize::from(negated)..];
    let mut inside = false;
    while let [first, rest @ ..] = class {
        if let ['-', last, rest @ ..] = rest {
            inside |= (*first..=*last).contains(&c);
            class = rest;
        } else {
            inside |= *first == c;
            class = rest;
        }
    }
    (inside != negated).then_some(close + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_match_as_in_a_shell() {
        for (pattern, name, expected) in [
            ("*.json.gz", "c4-it.tfrecord-00000-of-01024.json.gz", true),
            ("c4-it.*-0000?-*", "c4-it.tfrecord-00007-of-01024.json.gz", true),
            ("part-[0-3].txt", "part-2.txt", true),
            ("part-[!0-3].txt", "part-2.txt", false),
            ("*a*b*c", "xxaxxbxxbc", true),
            ("*.txt", "a.txt.bak", false),
            ("[", "[", true),
            ("caffè?", "caffè1", true),
        ] {
            assert_eq!(glob_matches(pattern, name), expected, "{pattern} against {name}");
        }
    }

    #[test]
    fn files_come_sorted_once_and_only_data() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        std::fs::create_dir_all(root.join("b/deep")).unwrap();
        for name in ["c.txt", "a.txt", "b/deep/z.jsonl", "README.md", ".hidden.txt"] {
            std::fs::write(root.join(name), "x").unwrap();
        }
        let is_data = |path: &Path| ["txt", "jsonl"].contains(&format_extension(path).as_str());
        let whole = root.to_string_lossy().into_owned();
        let list = |patterns: &[String]| -> Vec<String> {
            let files = find_files(patterns, &is_data).unwrap();
            files.iter().map(|f| f.strip_prefix(root).unwrap().to_string_lossy().into_owned()).collect()
        };
        assert_eq!(list(std::slice::from_ref(&whole)), ["a.txt", "b/deep/z.jsonl", "c.txt"]);
        assert_eq!(list(&[format!("{whole}/c.*"), whole.clone()]), ["c.txt", "a.txt", "b/deep/z.jsonl"]);
        assert_eq!(list(&[format!("{whole}/**/*.jsonl")]), ["b/deep/z.jsonl"]);
        let nothing = find_files(&[format!("{whole}/*.csv")], &is_data).unwrap_err();
        assert!(nothing.message().contains("no data file"), "{nothing}");
    }
}
