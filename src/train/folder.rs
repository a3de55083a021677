//! The run's folder: who may write to it, and where the run in it stands.
//!
//! ```text
//! runs/<name>/  .lock   config.toml (resolved)   log.jsonl   checkpoints/step-000100/ ...
//!               adapter/ (PEFT files) or model/ (method = "full")
//! ```
//!
//! Invariants: nothing of an earlier run is removed: `--fresh` moves its folder aside; a run never starts from the
//! beginning where there are checkpoints that cannot be read.

use super::config::RunConfig;
use super::config_change::{changes, Change};
use super::run::{Observer, RunOptions};
use super::save::result_path;
use super::stages::CHAIN_FILE;
use crate::checkpoint::{
    atomic, write_file, Checkpoints, Found, KeepPolicy, Maker, RealDisk, Rejected, Restored, RunLock,
};
use crate::error::{Error, Result};
use std::path::{Path, PathBuf};

/// Name of the resolved configuration.
pub const CONFIG_FILE: &str = "config.toml";
/// Name of the log.
pub const LOG_FILE: &str = "log.jsonl";

/// Where to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Beginning {
    /// From the newest checkpoint if there is a run of this name, from the start if not.
    #[default]
    Auto,
    /// From the newest checkpoint; there must be a run of this name.
    Resume,
    /// From the start; a run of this name is moved aside.
    Fresh,
}

/// The folder, locked while this lives.
pub struct RunFolder {
    /// Its path.
    pub path: PathBuf,
    /// Its checkpoints.
    pub checkpoints: Checkpoints,
    /// What computes in it now.
    pub maker: Maker,
    lock: RunLock,
}

impl RunFolder {
    /// Locks the run's folder, makes it if need be, and reads its newest whole checkpoint.
    ///
    /// # Errors
    /// Another process has it; nothing to resume; another configuration; no checkpoint can be read; what the file system
    /// says.
    pub fn open(
        config: &RunConfig,
        options: &RunOptions<'_>,
        observer: &mut dyn Observer,
    ) -> Result<(RunFolder, Option<Restored>)> {
        let (beginning, allow_config_change) = (options.beginning, options.allow_config_change);
        let path = config.folder();
        if path.join(CHAIN_FILE).exists() {
            return Err(Error::usage(format!("{}: holds a chain of stages", path.display()))
                .hint("choose another name (--set name=\"...\")"));
        }
        if beginning == Beginning::Resume && !is_run(&path) {
            return Err(Error::usage(format!("{}: there is no run to resume", path.display()))
                .hint("check the name, or leave out --resume to start it"));
        }
        std::fs::create_dir_all(&path).map_err(|error| Error::io(&path, "create", error))?;
        let mut lock = RunLock::acquire(&path)?;
        if beginning == Beginning::Fresh && is_run(&path) {
            lock = move_aside(&path, observer)?;
        }
        if let Some(reason) = lock.unsupported() {
            observer.warning(&format!("{}: this disk has no locks ({reason}): start one run only", path.display()));
        }
        atomic::remove_leftovers(&RealDisk, &path)?;
        let policy = KeepPolicy { last: config.training.keep_last, best: config.training.keep_best };
        let checkpoints = Checkpoints::open(&path.join("checkpoints"), policy)?;
        let maker = Maker::this(options.gpu.map(|gpu| gpu.driver().name()).as_deref());
        let folder = RunFolder { path, checkpoints, maker, lock };
        let Found { restored, rejected } = folder.checkpoints.newest_valid()?;
        if restored.is_none() {
            folder.check_beginning(config, &rejected)?;
        }
        folder.settle_config(config, restored.as_ref(), allow_config_change)?;
        if let Some(restored) = &restored {
            folder.report(restored, &rejected, observer)?;
        }
        Ok((folder, restored))
    }

    /// Checks that the folder is still this run's.
    ///
    /// # Errors
    /// It was removed, moved or replaced.
    pub fn check(&self) -> Result<()> {
        self.lock.check()
    }

    /// Without a checkpoint the run starts from the first step: not where there is something that this would spoil.
    fn check_beginning(&self, config: &RunConfig, rejected: &[Rejected]) -> Result<()> {
        if let Some(newest) = rejected.first() {
            let reasons: Vec<&str> = rejected.iter().map(|bad| bad.reason.message()).collect();
            return Err(Error::file(&newest.path, format!("no checkpoint can be used:\n  {}", reasons.join("\n  ")))
                .hint("restore the files, or start over with --fresh (what is there is kept under another name)"));
        }
        let result = result_path(config);
        match result.exists() {
            true => Err(Error::file(&result, "this run is finished, and its checkpoints are gone")
                .hint("start over with --fresh (what is there is kept under another name), or choose another name")),
            false => Ok(()),
        }
    }

    /// Says what is special about the checkpoint, and moves damaged newer ones aside.
    fn report(&self, restored: &Restored, rejected: &[Rejected], observer: &mut dyn Observer) -> Result<()> {
        let aside = self.checkpoints.set_aside(rejected)?;
        for (bad, aside) in rejected.iter().zip(&aside) {
            let (reason, aside, back) = (bad.reason.message(), aside.display(), restored.path.display());
            observer.warning(&format!("{reason}\n  this checkpoint is kept as {aside}; going back to {back}"));
        }
        if let Some(difference) = restored.made_by.difference(&self.maker) {
            observer.warning(&format!(
                "the checkpoint was made elsewhere ({difference}): the last bits of what follows may differ from an \
                 uninterrupted run"
            ));
        }
        Ok(())
    }

    /// Refuses another configuration than the run's; writes the file.
    fn settle_config(&self, config: &RunConfig, restored: Option<&Restored>, allow: bool) -> Result<()> {
        let path = self.path.join(CONFIG_FILE);
        let on_disk = match std::fs::read_to_string(&path) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(Error::io(&path, "read", error)),
        };
        // Before the first step there is nothing that another configuration could spoil.
        let begun = restored.is_some() || has_steps(&self.path.join(LOG_FILE))?;
        let then = restored.map(|restored| restored.state.config.clone()).or(on_disk.clone());
        if let Some(then) = then.filter(|_| begun) {
            compare(&self.path, &then, config, allow)?;
        } else if begun {
            return Err(Error::file(&self.path, format!("holds a log but no {CONFIG_FILE} and no checkpoint"))
                .hint("start over with --fresh (what is there is kept under another name)"));
        }
        let text = config.to_toml()?;
        match on_disk.as_ref() == Some(&text) {
            true => Ok(()),
            false => write_file(&RealDisk, &path, text.as_bytes()),
        }
    }
}

/// Whether a log tells of a step.
fn has_steps(path: &Path) -> Result<bool> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(text.contains("\"event\":\"step\"")),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::io(path, "read", error)),
    }
}

/// Refuses a configuration that the run in `path` was not started with; `allow` lets harmless changes pass.
///
/// # Errors
/// The keys that changed.
fn compare(path: &Path, then: &str, config: &RunConfig, allow: bool) -> Result<()> {
    let changes = changes(then, config).map_err(|error| error.at(path.display()))?;
    check_changes(path, &changes, allow)
}

/// The same for a run that is finished: what bears upon nothing any more may change.
///
/// # Errors
/// The keys that changed.
pub(super) fn compare_finished(path: &Path, config: &RunConfig, allow: bool) -> Result<()> {
    let file = path.join(CONFIG_FILE);
    let then = std::fs::read_to_string(&file).map_err(|error| Error::io(&file, "read", error))?;
    let mut changes = changes(&then, config).map_err(|error| error.at(path.display()))?;
    changes.retain(|change| !change.is_idle());
    check_changes(path, &changes, allow)
}

fn check_changes(path: &Path, changes: &[Change], allow: bool) -> Result<()> {
    let harmless = changes.iter().all(Change::is_harmless);
    match changes.is_empty() || (allow && harmless) {
        true => Ok(()),
        false => Err(refuse(path, changes, harmless)),
    }
}

fn refuse(path: &Path, changes: &[Change], harmless: bool) -> Error {
    let lines: Vec<String> =
        changes.iter().map(|change| format!("{}: {} then, {} now", change.key, change.then, change.now)).collect();
    let hint = match harmless {
        true => "add --allow-config-change: none of these changes what is trained",
        false => {
            "resume with the old values, choose another name (--set name=\"...\"), or start over with --fresh (what is \
             there is kept under another name)"
        }
    };
    let what = "there is a run of this name with another configuration:";
    Error::usage(format!("{}: {what}\n  {}", path.display(), lines.join("\n  "))).hint(hint)
}

/// Whether a run was started in the folder.
pub(super) fn is_run(path: &Path) -> bool {
    [CONFIG_FILE, LOG_FILE].iter().any(|name| path.join(name).exists())
}

/// Gives the folder another name and makes it anew; its lock is held throughout.
pub(super) fn move_aside(path: &Path, observer: &mut dyn Observer) -> Result<RunLock> {
    let aside = set_aside(path)?;
    observer.note(&format!("the earlier run is kept as {}", aside.display()));
    std::fs::create_dir_all(path).map_err(|error| Error::io(path, "create", error))?;
    RunLock::acquire(path)
}

/// Gives the folder a name that is free: nothing of an earlier run is ever removed.
pub(super) fn set_aside(path: &Path) -> Result<PathBuf> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let free = (1..).map(|i| path.with_file_name(format!("{name}.{i}"))).find(|path| !path.exists());
    let aside = free.unwrap_or_else(|| path.with_extension("old"));
    std::fs::rename(path, &aside).map_err(|error| Error::io(path, "move aside", error))?;
    Ok(aside)
}
