//! Chains of stages: Italian text, then dialogues, then instructions, each an ordinary run that starts from the one before.
//!
//! ```text
//! runs/<name>/  .lock   chain.toml (the recipe)
//!               1-adapt/  stage.json, and a run as in [`super::folder`]   merged/ where a later stage starts from it
//!                         held-out/ ([`super::kept`])
//!               2-chat/   ...
//! ```
//!
//! Invariants: a finished stage is not run again; a stage whose configuration changed is refused with the difference; a
//! stage that began from a result which is no longer there is moved aside, never removed, and done again. Each stage is
//! resumed as any run, so that a chain that was stopped anywhere ends with the bits of one that never was.

pub mod config;
mod merged;
mod recipe;
mod record;
#[cfg(test)]
mod tests;

pub use config::{Handover, Stage, StageConfig};
pub use recipe::Recipe;

use super::config::RunConfig;
use super::folder::{self, Beginning};
use super::kept::Earlier;
use super::memory::{self, Situation};
use super::run::{self, Observer, RunOptions, RunSummary};
use super::save::result_path;
use crate::checkpoint::{atomic, write_file, RealDisk, RunLock};
use crate::data::formats;
use crate::device;
use crate::error::{Error, ErrorKind, Result};
use record::{Finish, Origin, Record, RECORD_FILE};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Name of the recipe in the chain's folder.
pub const CHAIN_FILE: &str = "chain.toml";

/// What a chain tells, beside what its runs do.
pub trait ChainObserver: Observer {
    /// Stage `number` of `total` begins or goes on.
    fn begin(&mut self, number: usize, total: usize, stage: &Stage);
    /// It is finished.
    fn end(&mut self, stage: &Stage, summary: &RunSummary);
}

/// Runs the stages of `recipe` up to the one named `until` (all without it), each from where it stands.
/// [`Beginning::Fresh`] starts over: the stage `until` where one is named, otherwise the whole chain.
///
/// # Errors
/// As [`run::run`], with the stage's name; a stage that cannot run, before any is begun.
pub fn run_chain(
    recipe: &Recipe,
    until: Option<&str>,
    options: &RunOptions<'_>,
    observer: &mut dyn ChainObserver,
) -> Result<Vec<(Stage, RunSummary)>> {
    let stages = recipe.stages()?;
    let wanted = recipe.stages_up_to(until)?;
    let (lock, folder) = open(recipe, until, options.beginning, observer)?;
    let start = Instant::now();
    let mut chain = Chain { stages: &stages, options, start, fresh: None };
    if let (Beginning::Fresh, Some(_)) = (options.beginning, until) {
        chain.fresh = wanted.last().copied();
    }
    chain.check(&wanted)?;
    write_file(&RealDisk, &folder.join(CHAIN_FILE), recipe.to_toml()?.as_bytes())?;
    let mut done = Vec::with_capacity(wanted.len());
    for (number, &index) in wanted.iter().enumerate() {
        lock.check()?;
        let stage = &stages[index];
        observer.begin(number + 1, wanted.len(), stage);
        let summary = chain.stage(index, observer).map_err(|error| at(stage, error))?;
        observer.end(stage, &summary);
        done.push((stage.clone(), summary));
        merged::tidy(&stages, &|index| is_finished(&stages[index]), observer)?;
        device::memory::give_back();
    }
    Ok(done)
}

/// Locks the chain's folder.
fn open(
    recipe: &Recipe,
    until: Option<&str>,
    beginning: Beginning,
    observer: &mut dyn Observer,
) -> Result<(RunLock, PathBuf)> {
    let path = recipe.run.folder();
    if folder::is_run(&path) {
        return Err(Error::usage(format!("{}: holds a run without stages", path.display()))
            .hint("choose another name (--set name=\"...\")"));
    }
    let exists = path.join(CHAIN_FILE).exists();
    if beginning == Beginning::Resume && !exists {
        return Err(Error::usage(format!("{}: there is no chain to resume", path.display()))
            .hint("check the name, or leave out --resume to start it"));
    }
    std::fs::create_dir_all(&path).map_err(|error| Error::io(&path, "create", error))?;
    let mut lock = RunLock::acquire(&path)?;
    if beginning == Beginning::Fresh && until.is_none() && exists {
        lock = folder::move_aside(&path, observer)?;
    }
    atomic::remove_leftovers(&RealDisk, &path)?;
    Ok((lock, path))
}

/// What the stages of a chain have in common while they run.
struct Chain<'a> {
    stages: &'a [Stage],
    options: &'a RunOptions<'a>,
    start: Instant,
    /// The stage to start over.
    fresh: Option<usize>,
}

impl Chain<'_> {
    /// Finds what would only fail days later: data that is not there, memory that does not suffice.
    fn check(&self, wanted: &[usize]) -> Result<()> {
        for stage in wanted.iter().map(|&index| &self.stages[index]).filter(|stage| !is_finished(stage)) {
            find_data(&stage.config).map_err(|error| at(stage, error))?;
            let situation = Situation::of(&stage.planned).map_err(|error| at(stage, error))?;
            let fits = match self.options.gpu {
                None => memory::check(&stage.planned, &situation, &situation.plan()),
                Some(gpu) => memory::gpu::admit(&stage.planned, situation, gpu).map(drop),
            };
            fits.map_err(|error| at(stage, error))?;
        }
        Ok(())
    }

    fn stage(&self, index: usize, observer: &mut dyn Observer) -> Result<RunSummary> {
        let stage = &self.stages[index];
        let path = stage.folder();
        let record_path = path.join(RECORD_FILE);
        let origin = match stage.after {
            Some((parent, handover)) => Some(Origin::of(&self.stages[parent], handover)?),
            None => None,
        };
        let record = self.valid_record(index, origin.as_ref(), observer)?;
        if let Some(finish) = record.as_ref().and_then(|record| record.finished.as_ref()) {
            if result_path(&stage.config).is_dir() {
                folder::compare_finished(&path, &stage.config, self.options.allow_config_change)?;
                observer.note(&format!("stage {} is finished", stage.name));
                return Ok(finish.summary(&stage.config));
            }
        }
        if record.is_none() {
            std::fs::create_dir_all(&path).map_err(|error| Error::io(&path, "create", error))?;
            record::write(&record_path, &Record { began_from: origin.clone(), finished: None })?;
        }
        merged::ensure_base(self.stages, index, observer)?;
        let limit = stage.config.training.max_hours;
        let stop = |step: u64| {
            let late = limit > 0.0 && self.start.elapsed() >= Duration::from_secs_f64(limit * 3600.0);
            (self.options.stop)(step).or_else(|| late.then(|| format!("the limit of {limit} hours")))
        };
        let earlier = self.earlier(index);
        let options = RunOptions { beginning: Beginning::Auto, stop: &stop, chain: Some(&earlier), ..*self.options };
        let summary = run::run(&stage.config, &options, observer)?;
        record::write(&record_path, &Record { began_from: origin, finished: Some(Finish::of(&summary)) })?;
        Ok(summary)
    }

    /// The stages that a stage builds upon, the first one first.
    fn earlier(&self, index: usize) -> Vec<Earlier> {
        let mut earlier = Vec::new();
        let mut at = index;
        while let Some((parent, _)) = self.stages[at].after {
            earlier.push(Earlier { stage: self.stages[parent].name.clone(), folder: self.stages[parent].folder() });
            at = parent;
        }
        earlier.reverse();
        earlier
    }

    /// The stage's record if the stage began from what is there now; otherwise the folder makes way.
    fn valid_record(
        &self,
        index: usize,
        origin: Option<&Origin>,
        observer: &mut dyn Observer,
    ) -> Result<Option<Record>> {
        let stage = &self.stages[index];
        let path = stage.folder();
        let record: Option<Record> = record::read(&path.join(RECORD_FILE))?;
        let mut aside = |why: &str| -> Result<Option<Record>> {
            let to = folder::set_aside(&path)?;
            observer.note(&format!("stage {}: {why}; what was there is kept as {}", stage.name, to.display()));
            Ok(None)
        };
        match record {
            _ if self.fresh == Some(index) && path.exists() => aside("starting over"),
            Some(record) if record.began_from.as_ref() != origin => match &record.began_from {
                Some(then) => aside(&format!("it began from another result of {}", then.stage)),
                None => aside("it began from the model itself"),
            },
            None if folder::is_run(&path) && origin.is_some() => {
                Err(Error::file(&path, format!("holds a run but no {RECORD_FILE}: what it began from is not known"))
                    .hint(format!("start this stage over with --stage {} --fresh", stage.name)))
            }
            record => Ok(record),
        }
    }
}

/// Whether the stage's result stands, whatever it began from.
fn is_finished(stage: &Stage) -> bool {
    let record = record::read::<Record>(&stage.folder().join(RECORD_FILE));
    record.is_ok_and(|record| record.is_some_and(|record| record.finished.is_some()))
        && result_path(&stage.config).is_dir()
}

/// Looks for every file that the configuration names.
fn find_data(config: &RunConfig) -> Result<()> {
    formats::find_files(&config.data.all_paths())?;
    config.evaluation.iter().try_for_each(|set| formats::find_files(&set.paths).map(drop))
}

/// An error with the stage that it happened in.
fn at(stage: &Stage, error: Error) -> Error {
    let hint = error.hint_text().unwrap_or_default().to_string();
    let restart = format!("; --stage {} --fresh starts over from this stage", stage.name);
    let error = match error.kind() {
        ErrorKind::Usage if hint.contains("--fresh") && !hint.contains("--stage") => error.hint(hint + &restart),
        _ => error,
    };
    error.at(format_args!("stage {}", stage.name))
}
