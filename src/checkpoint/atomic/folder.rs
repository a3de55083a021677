//! A folder that appears at once.
//!
//! Order: every file written and synced → folder synced → every file read back and compared with the hash of what was
//! written → rename → parent synced. Files that their own writer verified (`export::safetensors`) need not be read twice:
//! they are simply put into [`AtomicFolder::temporary`].

use super::{
    exists, parent, record_of, remove_if_there, sibling, sync_folder, write_synced, FileRecord, REPLACED, TEMPORARY,
};
use crate::checkpoint::disk::{Disk, RealDisk};
use crate::error::{Error, Result};
use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// A folder under its temporary name; removed again unless it is committed.
pub struct AtomicFolder<'d> {
    disk: &'d dyn Disk,
    temporary: PathBuf,
    path: PathBuf,
    /// Whether a folder that has the name already makes way.
    replaces: bool,
    files: BTreeMap<String, FileRecord>,
    committed: bool,
    /// Holds the lock on the temporary folder, where no run's lock keeps others out.
    _lock: Option<File>,
}

impl<'d> AtomicFolder<'d> {
    /// Starts the folder `path` within that of a run, whose lock the caller holds: its parent exists, and a folder that
    /// has the name already makes way at the end.
    ///
    /// # Errors
    /// What the file system says.
    pub fn begin(disk: &'d dyn Disk, path: &Path) -> Result<AtomicFolder<'d>> {
        let temporary = sibling(path, TEMPORARY)?;
        remove_if_there(disk, &temporary)?;
        disk.create_folder(&temporary).map_err(|error| Error::io(&temporary, "create", error))?;
        let (path, files) = (path.into(), BTreeMap::new());
        Ok(AtomicFolder { disk, temporary, path, replaces: true, files, committed: false, _lock: None })
    }

    /// Starts the new folder `path`, anywhere. It is locked while this process works in it, and what a killed one left
    /// behind is emptied and used again.
    ///
    /// # Errors
    /// Something is there already, but for an empty folder; another process is writing it; what the file system says.
    pub fn begin_new(path: &Path) -> Result<AtomicFolder<'static>> {
        let disk = &RealDisk;
        if std::fs::symlink_metadata(path).is_ok() && !disk.list(path).is_ok_and(|names| names.is_empty()) {
            return Err(Error::file(path, "exists already").hint("name another folder, or remove this one"));
        }
        let temporary = sibling(path, TEMPORARY)?;
        std::fs::create_dir_all(parent(path)).map_err(|error| Error::io(parent(path), "create", error))?;
        match disk.create_folder(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(Error::io(&temporary, "create", error));
            }
            _ => {}
        }
        let lock = lock(&temporary)?;
        let left = disk.list(&temporary).map_err(|error| Error::io(&temporary, "list", error))?;
        left.iter().try_for_each(|name| remove_if_there(disk, &temporary.join(name)))?;
        let (path, files) = (path.into(), BTreeMap::new());
        Ok(AtomicFolder { disk, temporary, path, replaces: false, files, committed: false, _lock: lock })
    }

    /// Where the folder is until it is committed.
    pub fn temporary(&self) -> &Path {
        &self.temporary
    }

    /// Length and hash of every file written so far.
    pub fn files(&self) -> &BTreeMap<String, FileRecord> {
        &self.files
    }

    /// Writes the file `name` with what `fill` gives, and syncs it.
    ///
    /// # Errors
    /// What the file system says; the folder cannot be committed then.
    pub fn write(&mut self, name: &str, fill: &mut dyn FnMut(&mut dyn Write) -> io::Result<()>) -> Result<()> {
        let record = write_synced(self.disk, &self.temporary.join(name), fill)?;
        self.files.insert(name.to_string(), record);
        Ok(())
    }

    /// Takes up a file that somebody else wrote into [`AtomicFolder::temporary`], synced and checked: it is hashed as it stands.
    ///
    /// # Errors
    /// What the file system says.
    pub fn adopt(&mut self, name: &str) -> Result<()> {
        let record = record_of(self.disk, &self.temporary.join(name))?;
        self.files.insert(name.to_string(), record);
        Ok(())
    }

    /// Reads everything back and gives the folder its final name.
    ///
    /// # Errors
    /// A file that reads back differently from what was written; what the file system says.
    pub fn commit(mut self) -> Result<()> {
        sync_folder(self.disk, &self.temporary)?;
        for (name, written) in &self.files {
            let path = self.temporary.join(name);
            let found = record_of(self.disk, &path)?;
            if found != *written {
                return Err(Error::file(&path, format!("wrote {written}, read back {found}")).hint("check the disk"));
            }
        }
        let replaced = sibling(&self.path, REPLACED)?;
        if self.replaces && exists(self.disk, &self.path) {
            remove_if_there(self.disk, &replaced)?;
            self.disk.rename(&self.path, &replaced).map_err(|error| Error::io(&self.path, "move aside", error))?;
        }
        let renamed = self.disk.rename(&self.temporary, &self.path);
        if let Err(error) = renamed {
            if self.replaces && exists(self.disk, &replaced) {
                // The old folder gets its name back where it can; the error below is what the user must hear of.
                let _ = self.disk.rename(&replaced, &self.path);
            }
            return Err(Error::io(&self.path, "rename into place", error));
        }
        self.committed = true;
        sync_folder(self.disk, parent(&self.path))?;
        match self.replaces {
            true => remove_if_there(self.disk, &replaced),
            false => Ok(()),
        }
    }
}

impl Drop for AtomicFolder<'_> {
    fn drop(&mut self) {
        if !self.committed {
            // Nothing can be done about a failure here; the next start removes the leftover.
            let _ = self.disk.remove(&self.temporary);
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(folder: &mut AtomicFolder<'_>) {
        folder.write("a", &mut |file| file.write_all(b"1")).unwrap();
    }

    #[test]
    fn a_new_folder_appears_when_it_is_committed_and_not_before() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("deep/model");
        let mut folder = AtomicFolder::begin_new(&path).unwrap();
        fill(&mut folder);
        assert!(!path.exists());
        folder.commit().unwrap();
        assert_eq!(std::fs::read_to_string(path.join("a")).unwrap(), "1");
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn a_dropped_folder_leaves_nothing() {
        let place = tempfile::tempdir().unwrap();
        let mut folder = AtomicFolder::begin_new(&place.path().join("model")).unwrap();
        fill(&mut folder);
        drop(folder);
        assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_exists_is_not_overwritten() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("model");
        std::fs::create_dir(&path).unwrap();
        AtomicFolder::begin_new(&path).unwrap().commit().unwrap(); // an empty folder is as good as none
        std::fs::write(path.join("a"), "1").unwrap();
        for taken in [path.clone(), path.join("a")] {
            let error = AtomicFolder::begin_new(&taken).err().unwrap();
            assert!(error.message().ends_with("exists already") && error.hint_text().is_some());
        }
        assert!(AtomicFolder::begin_new(Path::new("/")).is_err());
    }

    #[test]
    fn what_appears_while_a_new_folder_is_filled_stays() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("model");
        let folder = AtomicFolder::begin_new(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        std::fs::write(path.join("theirs"), "1").unwrap();
        let error = folder.commit().unwrap_err();
        assert!(error.message().contains("model: cannot rename into place"), "{error}");
        assert_eq!(RealDisk.list(place.path()).unwrap(), ["model"]);
        assert_eq!(RealDisk.list(&path).unwrap(), ["theirs"]);
    }

    #[test]
    fn leftovers_are_emptied_and_a_working_process_is_respected() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("model");
        std::fs::create_dir_all(place.path().join(".tmp-model/old")).unwrap();
        std::fs::write(place.path().join(".tmp-model/half.safetensors"), "x").unwrap();
        let first = AtomicFolder::begin_new(&path).unwrap();
        assert!(RealDisk.list(first.temporary()).unwrap().is_empty());
        let error = AtomicFolder::begin_new(&path).err().unwrap();
        assert!(error.message().contains("another process"), "{error}");
        assert!(first.temporary().exists(), "the refused one must not clean up");
        first.commit().unwrap();
    }
}
