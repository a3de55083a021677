//! The state of a run on disk: atomic, self-verifying, bit-exact.
//!
//! ```text
//! checkpoints/step-000100/  params.safetensors     f32 master values of everything trained
//!                           optimizer.safetensors  the optimizer's state
//!                           state.json             step, data cursor, configuration, hashes, counters ([`RunState`])
//!                           adapter/ ...           what makes it usable as it is, chosen by the caller
//!                           manifest.json          size and hash of the others; written last
//! ```
//!
//! Invariants: a folder named `step-N` was complete, synced and read back before it got that name; it is pruned only
//! after a newer one was; nothing that is not finite is ever written. [`atomic`] makes files and folders appear at once,
//! [`disk`] is what it asks of the file system, [`RunLock`] keeps a second run out.

pub mod atomic;
pub mod disk;
pub mod exact;
pub mod lock;
mod manifest;
mod prune;
mod state;
mod tensors;

#[cfg(test)]
mod faulty;

pub use atomic::{write_file, AtomicFolder};
pub use disk::{Disk, RealDisk};
pub use lock::RunLock;
pub use manifest::{FileRecord, Maker, Manifest, MANIFEST_FILE};
pub use prune::KeepPolicy;
pub use state::{Measured, RunState, Skips, SpikeMemory};
pub use tensors::Tensor;

use crate::error::{Error, Result};
use crate::ops::{Param, ParamKind, ParamStore};
use crate::optim::{Optimizer, OptimizerState, StateTensor, StateValues};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tensors::TensorRef;

/// Name of the file of master values.
pub const PARAMS_FILE: &str = "params.safetensors";
/// Name of the file of the optimizer's state.
pub const OPTIMIZER_FILE: &str = "optimizer.safetensors";
/// Name of the file of everything else.
pub const STATE_FILE: &str = "state.json";
/// How the name begins of a checkpoint that was found to be damaged.
pub const BAD: &str = "bad-";
/// How the name begins of a checkpoint that is being removed.
const PRUNED: &str = ".tmp-pruned-";

/// What a checkpoint is made of.
pub struct Snapshot<'a> {
    /// Everything that is not a tensor.
    pub state: &'a RunState,
    /// Master values.
    pub params: &'a ParamStore,
    /// State of the optimizer.
    pub optimizer: &'a dyn Optimizer,
    /// Held-out loss at this step, where it was measured: less is better.
    pub score: Option<f64>,
    /// What computed it.
    pub made_by: Maker,
}

/// The checkpoints of a run.
#[derive(Clone)]
pub struct Checkpoints {
    disk: Arc<dyn Disk>,
    folder: PathBuf,
    policy: KeepPolicy,
}

/// A checkpoint that cannot be used, and why.
#[derive(Debug)]
pub struct Rejected {
    /// Its folder.
    pub path: PathBuf,
    /// What is wrong with it, naming the file.
    pub reason: Error,
}

/// What [`Checkpoints::newest_valid`] found.
#[derive(Debug)]
pub struct Found {
    /// The newest one that is whole.
    pub restored: Option<Restored>,
    /// Newer ones that are not.
    pub rejected: Vec<Rejected>,
}

/// A checkpoint read back and verified.
#[derive(Debug)]
pub struct Restored {
    /// Its folder.
    pub path: PathBuf,
    /// What computed it.
    pub made_by: Maker,
    /// Everything that is not a tensor.
    pub state: RunState,
    /// Master values.
    pub params: Vec<Tensor>,
    /// State of the optimizer.
    pub optimizer: OptimizerState,
}

impl Checkpoints {
    /// The checkpoints in `folder`, which is created if need be. What dead processes left half-done is removed: the caller
    /// holds the run's [`RunLock`].
    ///
    /// # Errors
    /// What the file system says.
    pub fn open(folder: &Path, policy: KeepPolicy) -> Result<Checkpoints> {
        Checkpoints::on(Arc::new(RealDisk), folder, policy)
    }

    /// [`Checkpoints::open`] on another disk.
    pub fn on(disk: Arc<dyn Disk>, folder: &Path, policy: KeepPolicy) -> Result<Checkpoints> {
        match disk.create_folder(folder) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(Error::io(folder, "create", error));
            }
            _ => {}
        }
        atomic::remove_leftovers(&*disk, folder)?;
        Ok(Checkpoints { disk, folder: folder.into(), policy })
    }

    /// Folder of the checkpoint after `step` steps.
    pub fn path(&self, step: u64) -> PathBuf {
        self.folder.join(format!("step-{step:06}"))
    }

    /// Steps that have a folder, newest first; whether they are whole is not known.
    ///
    /// # Errors
    /// What the file system says.
    pub fn steps(&self) -> Result<Vec<u64>> {
        let names = self.disk.list(&self.folder).map_err(|error| Error::io(&self.folder, "list", error))?;
        let mut steps: Vec<u64> = names.iter().filter_map(|name| name.strip_prefix("step-")?.parse().ok()).collect();
        // `step-7` and `step-000007` would be the same step: only the name that is written counts.
        steps.retain(|&step| names.iter().any(|name| *name == format!("step-{step:06}")));
        steps.sort_unstable_by(|a, b| b.cmp(a));
        steps.dedup();
        Ok(steps)
    }

    /// Writes a checkpoint, with the further files that `extra` puts into its folder: when this returns, it is durable and
    /// was read back.
    ///
    /// # Errors
    /// A value that is not finite; what the file system says. Every earlier checkpoint stands then.
    pub fn save(
        &self,
        snapshot: &Snapshot<'_>,
        extra: &mut dyn FnMut(&mut AtomicFolder<'_>) -> Result<()>,
    ) -> Result<PathBuf> {
        let optimizer = snapshot.optimizer.state();
        check_finite(snapshot.params, &optimizer)?;
        let params: Vec<TensorRef<'_>> = snapshot.params.iter().map(param_tensor).collect();
        let optimizer: Vec<TensorRef<'_>> = optimizer.iter().map(state_tensor).collect();
        let path = self.path(snapshot.state.step);
        let state = RunState { optimizer_steps: snapshot.optimizer.steps(), ..snapshot.state.clone() };
        let state = serde_json::to_vec_pretty(&state).map_err(|error| Error::file(&path, error))?;
        let mut folder = AtomicFolder::begin(&*self.disk, &path)?;
        folder.write(PARAMS_FILE, &mut |file| tensors::write(&params, file))?;
        folder.write(OPTIMIZER_FILE, &mut |file| tensors::write(&optimizer, file))?;
        folder.write(STATE_FILE, &mut |file| file.write_all(&state))?;
        extra(&mut folder)?;
        let manifest =
            Manifest::new(snapshot.made_by.clone(), snapshot.state.step, snapshot.score, folder.files().clone());
        folder.write(MANIFEST_FILE, &mut |file| file.write_all(&manifest.to_bytes()))?;
        folder.commit()?;
        Ok(path)
    }

    /// Removes what the policy lets go, after [`Checkpoints::save`]; gives the steps. A checkpoint whose manifest cannot be
    /// read neither counts nor goes.
    ///
    /// # Errors
    /// What the file system says.
    pub fn prune(&self) -> Result<Vec<u64>> {
        let scores = self.steps()?.into_iter().filter_map(|step| Some((step, self.manifest(step).ok()?.score)));
        let expendable = prune::expendable(&scores.collect::<Vec<_>>(), self.policy);
        for &step in &expendable {
            // Renamed first: a folder that is half gone must not bear the name of a checkpoint.
            let (path, going) = (self.path(step), self.folder.join(format!("{PRUNED}step-{step:06}")));
            atomic::remove_if_there(&*self.disk, &going)?;
            self.disk.rename(&path, &going).map_err(|error| Error::io(&path, "move aside", error))?;
            atomic::sync_folder(&*self.disk, &self.folder)?;
            atomic::remove_if_there(&*self.disk, &going)?;
        }
        Ok(expendable)
    }

    /// Reads and verifies the newest checkpoint that is whole, and says what is wrong with those after it.
    ///
    /// # Errors
    /// The folder cannot be listed.
    pub fn newest_valid(&self) -> Result<Found> {
        let mut rejected = Vec::new();
        for step in self.steps()? {
            match self.load(step) {
                Ok(restored) => return Ok(Found { restored: Some(restored), rejected }),
                Err(reason) => rejected.push(Rejected { path: self.path(step), reason }),
            }
        }
        Ok(Found { restored: None, rejected })
    }

    /// Renames damaged checkpoints to `bad-…`, so that the run can write those steps anew; gives the new names.
    ///
    /// # Errors
    /// What the file system says.
    pub fn set_aside(&self, rejected: &[Rejected]) -> Result<Vec<PathBuf>> {
        let mut aside = Vec::with_capacity(rejected.len());
        for Rejected { path, .. } in rejected {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let to = self.folder.join(format!("{BAD}{name}"));
            atomic::remove_if_there(&*self.disk, &to)?;
            self.disk.rename(path, &to).map_err(|error| Error::io(path, "move aside", error))?;
            aside.push(to);
        }
        Ok(aside)
    }

    /// Reads and verifies the checkpoint after `step` steps.
    ///
    /// # Errors
    /// The first thing that is missing, damaged or inconsistent, with its file.
    pub fn load(&self, step: u64) -> Result<Restored> {
        let folder = self.path(step);
        let manifest = self.manifest(step)?;
        let read = |name: &str| {
            let path = folder.join(name);
            let Some(record) = manifest.files.get(name) else {
                return Err(Error::file(&folder.join(MANIFEST_FILE), format!("lists no {name}")));
            };
            Ok((self.read_recorded(&path, record)?, path))
        };
        let (bytes, path) = read(STATE_FILE)?;
        let state: RunState = serde_json::from_slice(&bytes).map_err(|error| Error::file(&path, error))?;
        if state.step != step {
            return Err(Error::file(&path, format!("step {}: expected {step}", state.step)));
        }
        for (name, record) in &manifest.files {
            if ![STATE_FILE, PARAMS_FILE, OPTIMIZER_FILE].contains(&name.as_str()) {
                self.check_recorded(&folder.join(name), record)?;
            }
        }
        let (bytes, path) = read(PARAMS_FILE)?;
        let params = tensors::read(&bytes).map_err(|what| Error::file(&path, what))?;
        drop(bytes);
        let (bytes, path) = read(OPTIMIZER_FILE)?;
        let tensors = tensors::read(&bytes).map_err(|what| Error::file(&path, what))?;
        let tensors = tensors.into_iter().map(|tensor| (tensor.name, tensor.values)).collect();
        let optimizer = OptimizerState { steps: state.optimizer_steps, tensors };
        Ok(Restored { path: folder, made_by: manifest.made_by, state, params, optimizer })
    }

    fn manifest(&self, step: u64) -> Result<Manifest> {
        let path = self.path(step).join(MANIFEST_FILE);
        let bytes = self.size(&path)?;
        if bytes > manifest::LARGEST {
            return Err(Error::file(&path, format!("{bytes} bytes: expected at most {}", manifest::LARGEST)));
        }
        let manifest = Manifest::parse(&self.read(&path, bytes)?).map_err(|what| Error::file(&path, what))?;
        if manifest.step != step {
            return Err(Error::file(&path, format!("step {}: expected {step}", manifest.step)));
        }
        Ok(manifest)
    }

    fn read_recorded(&self, path: &Path, record: &FileRecord) -> Result<Vec<u8>> {
        let bytes = self.size(path)?;
        if bytes != record.bytes {
            // Nothing is read that is not as long as it should be: the length decides how much memory is asked for.
            return Err(Error::file(path, format!("{bytes} bytes: expected {}", record.bytes)));
        }
        let contents = self.read(path, bytes)?;
        let found = FileRecord {
            bytes: contents.len() as u64,
            blake3: blake3::Hasher::new().update_rayon(&contents).finalize().to_hex().to_string(),
        };
        match found == *record {
            true => Ok(contents),
            false => Err(Error::file(path, format!("damaged: expected {record}, found {found}"))),
        }
    }

    fn check_recorded(&self, path: &Path, record: &FileRecord) -> Result<()> {
        let found = atomic::record_of(&*self.disk, path)?;
        match found == *record {
            true => Ok(()),
            false => Err(Error::file(path, format!("damaged: expected {record}, found {found}"))),
        }
    }

    fn size(&self, path: &Path) -> Result<u64> {
        self.disk.size(path).map_err(|error| Error::io(path, "read", error))
    }

    fn read(&self, path: &Path, bytes: u64) -> Result<Vec<u8>> {
        let io = |error| Error::io(path, "read", error);
        let mut contents = Vec::with_capacity(bytes as usize);
        // A file that grows while it is read is not read without end: it fails the hash.
        self.disk.open(path).map_err(io)?.take(bytes + 1).read_to_end(&mut contents).map_err(io)?;
        Ok(contents)
    }
}

impl Restored {
    /// Puts master values and the optimizer's state where they belong; `params` and `optimizer` are as a fresh run of the
    /// same configuration makes them.
    ///
    /// # Errors
    /// A tensor that is missing, unknown or of another shape: neither is to be used then.
    pub fn apply(self, params: &mut ParamStore, optimizer: &mut dyn Optimizer) -> Result<RunState> {
        let Restored { path, state, params: saved, optimizer: optimizer_state, .. } = self;
        let file = path.join(PARAMS_FILE);
        if saved.len() != params.len() {
            let what = format!("{} tensors: this run trains {}", saved.len(), params.len());
            return Err(Error::file(&file, what));
        }
        let mut saved: std::collections::HashMap<String, Tensor> =
            saved.into_iter().map(|tensor| (tensor.name.clone(), tensor)).collect();
        for param in params.iter_mut() {
            let Some(tensor) = saved.remove(&param.name) else {
                return Err(Error::file(&file, format!("{}: missing", param.name)));
            };
            match tensor.values {
                StateValues::F32(values) if tensor.shape == shape(param) => param.value = values,
                _ => {
                    let expected = format!("expected f32 of {:?}", shape(param));
                    return Err(Error::file(&file, format!("{}: {expected}, found {:?}", param.name, tensor.shape)));
                }
            }
        }
        optimizer.restore(optimizer_state).map_err(|error| error.at(path.join(OPTIMIZER_FILE).display()))?;
        Ok(state)
    }
}

fn param_tensor(param: &Param) -> TensorRef<'_> {
    TensorRef { name: &param.name, shape: shape(param), values: StateValues::F32(&param.value) }
}

/// Norms and biases have one dimension, as in a model's own files.
fn shape(param: &Param) -> Vec<usize> {
    match param.kind {
        ParamKind::Norm | ParamKind::Bias => vec![param.cols],
        _ => vec![param.rows, param.cols],
    }
}

fn state_tensor<'a>(tensor: &'a StateTensor<'_>) -> TensorRef<'a> {
    let (values, len) = match tensor.values {
        StateValues::F32(values) => (StateValues::F32(values), values.len()),
        StateValues::U8(values) => (StateValues::U8(values), values.len()),
    };
    TensorRef { name: &tensor.name, shape: vec![len], values }
}

/// Refuses values that must not get a final name.
///
/// # Errors
/// The first tensor with a value that is not finite.
pub fn check_finite(params: &ParamStore, optimizer: &[StateTensor<'_>]) -> Result<()> {
    let values = params.iter().map(|param| (&param.name, &param.value[..]));
    let state = optimizer.iter().filter_map(|tensor| match tensor.values {
        StateValues::F32(values) => Some((&tensor.name, values)),
        StateValues::U8(_) => None,
    });
    for (name, values) in values.chain(state) {
        if let Some(place) = values.iter().position(|value| !value.is_finite()) {
            let what = format!("{name}: value {place} is {}: not saved", values[place]);
            return Err(Error::failed(what).hint("lower optimizer.learning_rate and resume from the last checkpoint"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod corruption_tests;
#[cfg(test)]
mod fault_tests;
#[cfg(test)]
mod tests;
