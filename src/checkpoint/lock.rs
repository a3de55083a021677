//! One run at a time in a folder: an advisory lock on `.lock` that the system releases when the process ends, however.
//!
//! Invariant: while a [`RunLock`] lives no other process gets one for the same folder. The file stays behind unlocked;
//! it says which process had it last.

use crate::error::{Error, Result};
use std::fs::{File, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Name of the file.
pub const LOCK_FILE: &str = ".lock";

/// The lock, released when dropped.
#[derive(Debug)]
pub struct RunLock {
    path: PathBuf,
    file: File,
    /// Why there is no real lock, where the file system has none.
    unsupported: Option<String>,
}

impl RunLock {
    /// Locks `folder`, which exists.
    ///
    /// # Errors
    /// Another process has it (named); the folder cannot be written.
    pub fn acquire(folder: &Path) -> Result<RunLock> {
        let path = folder.join(LOCK_FILE);
        let file = File::options().read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = file.map_err(|error| Error::io(&path, "open", error))?;
        let unsupported = match file.try_lock() {
            Ok(()) => None,
            Err(TryLockError::WouldBlock) => return Err(taken(folder, &mut file)),
            Err(TryLockError::Error(error)) => Some(error.to_string()),
        };
        let owner = format!("process {}\n", std::process::id());
        let written = file.set_len(0).and_then(|()| file.seek(SeekFrom::Start(0)));
        written.and_then(|_| file.write_all(owner.as_bytes())).map_err(|error| Error::io(&path, "write", error))?;
        Ok(RunLock { path, file, unsupported })
    }

    /// Why the file system cannot lock, if it cannot: two runs would not notice each other.
    pub fn unsupported(&self) -> Option<&str> {
        self.unsupported.as_deref()
    }

    /// Checks that the folder is still the one that was locked.
    ///
    /// # Errors
    /// It was removed, moved, or replaced by another one.
    pub fn check(&self) -> Result<()> {
        let folder = self.path.parent().unwrap_or(&self.path);
        if same_file(&self.file, &self.path) {
            return Ok(());
        }
        Err(Error::file(folder, "the run's folder was removed, moved or replaced while the run was going on")
            .hint("put it back under its name and resume"))
    }
}

impl Drop for RunLock {
    fn drop(&mut self) {
        // Closing alone would leave it to whoever has a copy of the file: a child between fork and exec, for a moment.
        // Where this fails, closing releases it all the same.
        let _ = self.file.unlock();
    }
}

/// Whether an open file still has this name.
#[cfg(unix)]
pub fn same_file(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let identity = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
    match (file.metadata(), std::fs::metadata(path)) {
        (Ok(held), Ok(found)) => identity(held) == identity(found),
        _ => false,
    }
}

/// Whether there is a file of this name; whether it is this one, the system does not tell.
#[cfg(not(unix))]
pub fn same_file(_: &File, path: &Path) -> bool {
    path.exists()
}

fn taken(folder: &Path, file: &mut File) -> Error {
    let mut owner = String::new();
    let _ = file.take(100).read_to_string(&mut owner);
    let owner = match owner.trim() {
        "" => "another process".to_string(),
        owner => owner.to_string(),
    };
    Error::file(folder, format!("another run is at work in this folder ({owner})"))
        .hint("wait until it is done, or choose another name (--set name=\"...\")")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_one_is_refused_until_the_first_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let first = RunLock::acquire(folder.path()).unwrap();
        assert_eq!(first.unsupported(), None);
        let error = RunLock::acquire(folder.path()).unwrap_err();
        assert!(error.message().contains(&format!("process {}", std::process::id())), "{error}");
        assert!(error.hint_text().is_some());
        drop(first);
        RunLock::acquire(folder.path()).unwrap();
    }

    #[test]
    fn a_folder_that_is_not_there_is_an_error_with_its_name() {
        let error = RunLock::acquire(Path::new("/nonexistent/run")).unwrap_err();
        assert!(error.message().starts_with("/nonexistent/run/.lock: cannot open"), "{error}");
    }

    #[test]
    fn a_folder_that_vanishes_or_is_replaced_is_noticed() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("run");
        std::fs::create_dir(&folder).unwrap();
        let lock = RunLock::acquire(&folder).unwrap();
        lock.check().unwrap();
        std::fs::rename(&folder, place.path().join("elsewhere")).unwrap();
        assert!(lock.check().is_err());
        std::fs::create_dir(&folder).unwrap();
        let second = RunLock::acquire(&folder).unwrap();
        assert!(lock.check().unwrap_err().message().contains("replaced"));
        second.check().unwrap();
    }
}
