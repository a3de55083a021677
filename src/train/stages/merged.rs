//! Merged models between stages: made when a stage needs one, made again if it is gone, removed after the last use.
//!
//! A merged model stands in the folder of the stage whose adapter is in it, with the hash of that adapter beside it in
//! `merged.json`. Merging gives the same bits each time, so that a removed one can always be had again. It holds two
//! tensors and the adapter at a time: a stage, which holds a model, always takes more, and so the plan leaves merging out.

use super::config::{Handover, Stage};
use super::record::{self, Origin};
use crate::error::{Error, ErrorKind, Result};
use crate::export::merge::{merge_folder, MergeJob};
use crate::model::Method;
use crate::train::run::Observer;
use crate::train::save::result_path;
use std::path::{Path, PathBuf};

/// Largest shard, as Hugging Face's tools cut them.
const SHARD_BYTES: u64 = 5 << 30;

/// Name of the file that says which adapter is in the merged model beside it.
fn mark(stage: &Stage) -> PathBuf {
    stage.folder().join("merged.json")
}

/// Sees to it that the model which `stages[index]` starts from is there.
///
/// # Errors
/// A merge that fails.
pub fn ensure_base(stages: &[Stage], index: usize, observer: &mut dyn Observer) -> Result<()> {
    match stages[index].after {
        None => Ok(()),
        Some((parent, Handover::Adapter)) => ensure_base(stages, parent, observer),
        Some((parent, Handover::Merge)) => ensure_merged(stages, parent, observer),
    }
}

fn ensure_merged(stages: &[Stage], index: usize, observer: &mut dyn Observer) -> Result<()> {
    let stage = &stages[index];
    if stage.config.method == Method::Full {
        return Ok(());
    }
    let (out, adapter) = (stage.merged(), Origin::of(stage, Handover::Merge)?.result);
    if out.is_dir() && record::read::<String>(&mark(stage))?.as_ref() == Some(&adapter) {
        return Ok(());
    }
    ensure_base(stages, index, observer)?;
    remove(&out)?;
    observer.note(&format!("merging the adapter of stage {} into {}", stage.name, out.display()));
    let job = MergeJob {
        base: PathBuf::from(&stage.config.model),
        adapter: result_path(&stage.config),
        out,
        dtype: None,
        shard_bytes: SHARD_BYTES,
        any_base: false,
        dequantize_base: false,
    };
    let summary = merge_folder(&job, &mut |done, total, _| observer.phase("merging", done, total));
    let summary = summary.map_err(|error| match error.kind() {
        ErrorKind::Usage => error
            .hint("merging needs the unquantised model: name it as model, or let the stage start from = \"adapter\""),
        _ => error,
    })?;
    summary.warnings.iter().for_each(|warning| observer.warning(warning));
    record::write(&mark(stage), &adapter)
}

/// Removes merged models that nobody needs any more and whose users do not keep them.
///
/// # Errors
/// What the file system says.
pub fn tidy(stages: &[Stage], is_finished: &dyn Fn(usize) -> bool, observer: &mut dyn Observer) -> Result<()> {
    for stage in stages {
        let merged = stage.merged();
        let on_it = |user: &&Stage| Path::new(&user.config.model) == merged;
        let kept = stages.iter().filter(on_it).any(|user| user.keep_merged && takes_merged(user));
        if kept || !merged.is_dir() {
            continue;
        }
        // A stage on it that is not done needs it, and so does the merge of one that is, where that is still to come.
        let needed = stages.iter().enumerate().any(|(index, user)| {
            let own = |(index, later): (usize, &Stage)| {
                let from_user = later.after.is_some_and(|(parent, _)| stages[parent].name == user.name);
                from_user && takes_merged(later) && !is_finished(index)
            };
            on_it(&user) && (!is_finished(index) || stages.iter().enumerate().any(own) && !user.merged().is_dir())
        });
        if !needed {
            remove(&merged)?;
            observer.note(&format!("removed {}: nothing needs it any more", merged.display()));
        }
    }
    Ok(())
}

fn takes_merged(stage: &Stage) -> bool {
    matches!(stage.after, Some((_, Handover::Merge)))
}

fn remove(folder: &Path) -> Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io(folder, "remove", error)),
        _ => Ok(()),
    }
}
