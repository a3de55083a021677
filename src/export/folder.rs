//! A folder that appears at once: filled under a temporary name beside its place, synced, renamed.
//!
//! Invariant: the final name holds a complete folder or nothing. The temporary folder `.NAME.partial` is locked while a
//! process works in it; one that a killed process left behind is emptied and used again.

use super::safetensors::sync_folder;
use crate::error::{Error, Result};
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

/// A folder under its temporary name. Removed unless it is committed.
pub struct NewFolder {
    partial: PathBuf,
    place: PathBuf,
    /// Holds the lock.
    _lock: Option<File>,
    committed: bool,
}

impl NewFolder {
    /// Starts the folder `path`.
    ///
    /// Errors: something is there already; its parent is missing; another process is writing it.
    pub fn create(path: &Path) -> Result<NewFolder> {
        if std::fs::symlink_metadata(path).is_ok() && !is_empty_folder(path) {
            return Err(Error::file(path, "exists already").hint("name another folder, or remove this one"));
        }
        let Some(name) = path.file_name() else {
            return Err(Error::usage(format!("{}: expected the name of a new folder", path.display())));
        };
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        std::fs::create_dir_all(parent).map_err(|e| Error::io(parent, "create", e))?;
        let partial = parent.join(format!(".{}.partial", name.to_string_lossy()));
        match std::fs::create_dir(&partial) {
            Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => return Err(Error::io(&partial, "create", e)),
            _ => {}
        }
        let lock = lock(&partial)?;
        empty(&partial)?;
        Ok(NewFolder { partial, place: path.to_path_buf(), _lock: lock, committed: false })
    }

    /// Where to write.
    pub fn path(&self) -> &Path {
        &self.partial
    }

    /// Copies one file into the folder and syncs it.
    pub fn copy(&self, from: &Path) -> Result<()> {
        let Some(name) = from.file_name() else { return Ok(()) };
        let to = self.partial.join(name);
        // Written and not `fs::copy`-ed: a read-only source must not make a read-only copy.
        let bytes = std::fs::read(from).map_err(|e| Error::io(from, "read", e))?;
        std::fs::write(&to, bytes).map_err(|e| Error::io(&to, "write", e))?;
        File::open(&to).and_then(|file| file.sync_all()).map_err(|e| Error::io(&to, "sync", e))
    }

    /// Copies what belongs to a model beside config and weights: tokenizer, templates, generation settings, licences.
    /// Gives the names.
    pub fn copy_companions(&self, from: &Path) -> Result<Vec<String>> {
        let names = files_of(from, is_companion)?;
        names.iter().try_for_each(|name| self.copy(&from.join(name)))?;
        Ok(names)
    }

    /// Gives the folder its final name.
    pub fn commit(mut self) -> Result<()> {
        sync_folder(&self.partial)?;
        std::fs::rename(&self.partial, &self.place).map_err(|e| Error::io(&self.place, "rename into place", e))?;
        self.committed = true;
        match self.place.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => sync_folder(parent),
            _ => Ok(()),
        }
    }
}

impl Drop for NewFolder {
    fn drop(&mut self) {
        if !self.committed {
            // Nothing can be done about a failure here; the next run empties the folder.
            let _ = std::fs::remove_dir_all(&self.partial);
        }
    }
}

/// Everything that belongs to the weights of a model folder: config, index, and what [`NewFolder::copy_companions`]
/// copies. In name order.
pub(super) fn companions(folder: &Path) -> Result<Vec<String>> {
    files_of(folder, |name| name == "config.json" || name.ends_with(".safetensors.index.json") || is_companion(name))
}

/// Names of the files in `folder` that are `wanted`, sorted.
fn files_of(folder: &Path, wanted: impl Fn(&str) -> bool) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(folder).map_err(|e| Error::io(folder, "read", e))?;
    let files = entries.flatten().filter(|entry| entry.path().is_file());
    let names = files.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> = names.filter(|name| wanted(name)).collect();
    names.sort_unstable();
    Ok(names)
}

/// Whether a file of this name belongs to a model beside config and weights.
pub fn is_companion(name: &str) -> bool {
    const NAMES: [&str; 10] = [
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "merges.txt",
        "chat_template.jinja",
        "chat_template.json",
        "generation_config.json",
    ];
    let legal = ["LICENSE", "LICENCE", "NOTICE", "USE_POLICY"];
    NAMES.contains(&name) || legal.iter().any(|prefix| name.to_uppercase().starts_with(prefix))
}

fn is_empty_folder(path: &Path) -> bool {
    std::fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none())
}

/// A lock on the folder itself; `None` where the system cannot open or lock folders.
fn lock(folder: &Path) -> Result<Option<File>> {
    let Ok(file) = File::open(folder) else { return Ok(None) };
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Err(Error::file(folder, "another process is writing this folder")),
        Err(TryLockError::Error(_)) => Ok(None),
    }
}

fn empty(folder: &Path) -> Result<()> {
    let io = |e| Error::io(folder, "empty", e);
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let path = entry.map_err(io)?.path();
        let removed = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
        removed.map_err(io)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_appears_when_it_is_committed_and_not_before() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("deep/model");
        let folder = NewFolder::create(&path).unwrap();
        std::fs::write(folder.path().join("a"), "1").unwrap();
        assert!(!path.exists());
        folder.commit().unwrap();
        assert_eq!(std::fs::read_to_string(path.join("a")).unwrap(), "1");
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn a_dropped_folder_leaves_nothing() {
        let place = tempfile::tempdir().unwrap();
        let folder = NewFolder::create(&place.path().join("model")).unwrap();
        std::fs::write(folder.path().join("a"), "1").unwrap();
        drop(folder);
        assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_exists_is_not_overwritten() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("model");
        std::fs::create_dir(&path).unwrap();
        NewFolder::create(&path).unwrap().commit().unwrap(); // an empty folder is as good as none
        std::fs::write(path.join("a"), "1").unwrap();
        for taken in [path.clone(), path.join("a")] {
            let error = NewFolder::create(&taken).err().unwrap();
            assert!(error.message().ends_with("exists already") && error.hint_text().is_some());
        }
        assert!(NewFolder::create(Path::new("/")).is_err());
    }

    #[test]
    fn leftovers_are_emptied_and_a_working_process_is_respected() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("model");
        std::fs::create_dir_all(place.path().join(".model.partial/old")).unwrap();
        std::fs::write(place.path().join(".model.partial/half.safetensors"), "x").unwrap();
        let first = NewFolder::create(&path).unwrap();
        assert!(is_empty_folder(first.path()));
        let error = NewFolder::create(&path).err().unwrap();
        assert!(error.message().contains("another process"), "{error}");
        assert!(first.path().exists(), "the refused one must not clean up");
        first.commit().unwrap();
    }

    #[test]
    fn companions_are_copied_and_nothing_else() {
        let place = tempfile::tempdir().unwrap();
        let from = place.path().join("from");
        std::fs::create_dir_all(from.join("LICENSES")).unwrap();
        for name in ["tokenizer.json", "LICENSE.txt", "config.json", "model.safetensors", "README.md"] {
            std::fs::write(from.join(name), name).unwrap();
        }
        let folder = NewFolder::create(&place.path().join("to")).unwrap();
        assert_eq!(folder.copy_companions(&from).unwrap(), ["LICENSE.txt", "tokenizer.json"]);
        assert_eq!(std::fs::read_to_string(folder.path().join("LICENSE.txt")).unwrap(), "LICENSE.txt");
    }
}
