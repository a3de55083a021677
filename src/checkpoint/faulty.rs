//! A disk that fails on purpose: the n-th call goes wrong in a chosen way, or the power is cut there.
//!
//! Files live in the real file system (never synced: the loss of what was not synced is simulated). After a cut nothing
//! works any more, and [`FaultyDisk::restart`] leaves what a power cut would: contents that were not synced are torn in the
//! middle, and names that were not synced are all kept or all taken back, as the test chooses.

use super::disk::{Disk, DiskFile, RealDisk};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The call fails with this error number; a write stores half of its bytes first.
    Once(i32),
    /// This call and every later one that changes anything.
    Readonly,
    /// This call and every later one that needs space: a full disk. Renaming and removing work.
    Full,
    /// This call and every later one.
    PowerCut,
    /// The write says that all is well and stores half (only writes are counted).
    LyingWrite,
    /// The write says that all is well and stores one other bit (only writes are counted).
    FlippedBit,
    /// Every write takes at most so many bytes, which POSIX allows.
    ShortWrites(usize),
}

/// A name that is not durable yet, in the order of the calls.
#[derive(Debug, Clone)]
enum Pending {
    Created { path: PathBuf },
    Renamed { from: PathBuf, to: PathBuf },
    Removed { path: PathBuf, trash: PathBuf },
}

#[derive(Debug, Default)]
struct State {
    calls: usize,
    hit: bool,
    dead: bool,
    names: Vec<Pending>,
    /// Files whose contents are not durable.
    contents: Vec<PathBuf>,
    trashed: usize,
}

/// The disk.
#[derive(Clone)]
pub struct FaultyDisk {
    at: usize,
    fault: Fault,
    trash: Arc<tempfile::TempDir>,
    state: Arc<Mutex<State>>,
}

/// Kinds of calls, as far as faults tell them apart.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Call {
    Read,
    Write,
    NeedsSpace,
    Changes,
}

impl FaultyDisk {
    /// The call number `at` (from 0) goes wrong.
    pub fn new(at: usize, fault: Fault) -> FaultyDisk {
        let trash = Arc::new(tempfile::tempdir().unwrap());
        FaultyDisk { at, fault, trash, state: Arc::default() }
    }

    /// Whether the call was reached.
    pub fn hit(&self) -> bool {
        self.state.lock().unwrap().hit
    }

    /// Leaves what is left after a power cut; with `names_kept`, names that were not synced are there nevertheless.
    pub fn restart(&self, names_kept: bool) {
        let state = std::mem::take(&mut *self.state.lock().unwrap());
        for path in state.contents.iter().filter(|path| path.is_file()) {
            let half = fs::metadata(path).unwrap().len() / 2;
            File::options().write(true).open(path).unwrap().set_len(half).unwrap();
        }
        if names_kept {
            return;
        }
        for pending in state.names.into_iter().rev() {
            match pending {
                Pending::Created { path } => RealDisk.remove(&path).unwrap(),
                Pending::Renamed { from, to } => fs::rename(to, from).unwrap(),
                Pending::Removed { path, trash } => fs::rename(trash, path).unwrap(),
            }
        }
    }

    /// Counts a call; the lock if it is to be done.
    fn call(&self, call: Call) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.state.lock().unwrap();
        let only_writes = matches!(self.fault, Fault::LyingWrite | Fault::FlippedBit);
        let counts = call == Call::Write || !only_writes;
        let now = counts && state.calls == self.at;
        state.calls += usize::from(counts);
        state.hit |= now;
        let later = state.calls > self.at;
        let error = match self.fault {
            Fault::Once(error) if now && call != Call::Write => Some(error),
            Fault::Readonly if later && call != Call::Read => Some(libc::EROFS),
            Fault::Full if later && call == Call::NeedsSpace => Some(libc::ENOSPC),
            Fault::PowerCut if later => Some(libc::EIO),
            _ => None,
        };
        state.dead |= self.fault == Fault::PowerCut && later;
        match error {
            Some(error) => Err(io::Error::from_raw_os_error(error)),
            None => Ok(state),
        }
    }
}

struct FaultyFile {
    disk: FaultyDisk,
    path: PathBuf,
    file: File,
}

impl Write for FaultyFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let at = self.disk.at;
        let now = self.disk.state.lock().unwrap().calls == at;
        let half = bytes.len() / 2;
        let state = match self.disk.call(Call::Write) {
            Ok(state) => state,
            Err(error) => {
                if now {
                    self.file.write_all(&bytes[..half])?;
                }
                return Err(error);
            }
        };
        let late = state.calls > at;
        drop(state);
        match self.disk.fault {
            Fault::Once(error) if now => {
                self.file.write_all(&bytes[..half])?;
                return Err(io::Error::from_raw_os_error(error));
            }
            Fault::Full if late => {
                self.file.write_all(&bytes[..half])?;
                return Err(io::Error::from_raw_os_error(libc::ENOSPC));
            }
            Fault::LyingWrite if now => self.file.write_all(&bytes[..half])?,
            Fault::FlippedBit if now && !bytes.is_empty() => {
                let mut changed = bytes.to_vec();
                changed[half] ^= 4;
                self.file.write_all(&changed)?;
            }
            Fault::ShortWrites(most) => return self.file.write(&bytes[..bytes.len().min(most)]),
            _ => self.file.write_all(bytes)?,
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl DiskFile for FaultyFile {
    fn sync(&mut self) -> io::Result<()> {
        self.disk.call(Call::Changes)?.contents.retain(|path| *path != self.path);
        Ok(())
    }
}

impl Disk for FaultyDisk {
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.call(Call::NeedsSpace)?;
        if !path.exists() {
            state.names.push(Pending::Created { path: path.into() });
        }
        state.contents.push(path.into());
        Ok(Box::new(FaultyFile { disk: self.clone(), path: path.into(), file: File::create(path)? }))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn Read>> {
        drop(self.call(Call::Read)?);
        RealDisk.open(path)
    }

    fn size(&self, path: &Path) -> io::Result<u64> {
        drop(self.call(Call::Read)?);
        RealDisk.size(path)
    }

    fn create_folder(&self, path: &Path) -> io::Result<()> {
        let mut state = self.call(Call::NeedsSpace)?;
        RealDisk.create_folder(path)?;
        state.names.push(Pending::Created { path: path.into() });
        Ok(())
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        let mut state = self.call(Call::Changes)?;
        let inside = |path: &Path| path.parent() == Some(folder);
        state.names.retain(|pending| match pending {
            Pending::Created { path } | Pending::Removed { path, .. } => !inside(path),
            Pending::Renamed { to, .. } => !inside(to),
        });
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.call(Call::Changes)?;
        if to.is_file() {
            // The old file is what a rename that is taken back must bring back.
            let trash = self.trash.path().join(state.trashed.to_string());
            state.trashed += 1;
            fs::copy(to, &trash)?;
            fs::rename(from, to)?;
            state.names.push(Pending::Removed { path: to.into(), trash });
        } else {
            fs::rename(from, to)?;
        }
        state.contents.iter_mut().for_each(|path| moved(path, from, to));
        state.names.push(Pending::Renamed { from: from.into(), to: to.into() });
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.call(Call::Changes)?;
        fs::symlink_metadata(path)?;
        let trash = self.trash.path().join(state.trashed.to_string());
        state.trashed += 1;
        fs::rename(path, &trash)?;
        state.contents.iter_mut().for_each(|file| moved(file, path, &trash));
        state.names.push(Pending::Removed { path: path.into(), trash });
        Ok(())
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<String>> {
        drop(self.call(Call::Read)?);
        RealDisk.list(folder)
    }
}

fn moved(path: &mut PathBuf, from: &Path, to: &Path) {
    if let Ok(rest) = path.strip_prefix(from) {
        *path = match rest.as_os_str().is_empty() {
            true => to.into(),
            false => to.join(rest),
        };
    }
}
