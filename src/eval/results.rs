//! A folder of results: `results.json`, and for each task its answers and its units.
//!
//! ```text
//! results.json            of whom, how, and every metric with its interval
//! NAME.answers.jsonl      each answer as it came (super::store)
//! NAME.units.jsonl        what the metrics are computed from; comparisons read it
//! ```
//!
//! Invariant: a folder holds results of one model with one set of settings. `results.json` has a hash of each task's units,
//! so what is compared is what was measured.

use super::run::Outcome;
use super::store::{Identity, Store};
use super::task::{Task, Unit};
use crate::error::{Error, Result};
use serde_json::{json, Map, Value};
use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Results of one model.
pub struct Results {
    /// Where they are kept; none: nowhere.
    folder: Option<PathBuf>,
    /// Of whom and how: what all tasks have in common.
    pub model: Identity,
    /// What each task came to.
    pub tasks: Map<String, Value>,
    /// Units of the tasks of this run.
    units: HashMap<String, Vec<Unit>>,
}

impl Results {
    /// Results of `model`, kept in `folder`, which may hold earlier ones of the same model.
    ///
    /// # Errors
    /// A folder of another model; the file system.
    pub fn open(folder: Option<PathBuf>, model: Identity) -> Result<Results> {
        let mut results = Results { folder, model, tasks: Map::new(), units: HashMap::new() };
        let Some(folder) = &results.folder else { return Ok(results) };
        std::fs::create_dir_all(folder).map_err(|error| Error::io(folder, "make the folder", error))?;
        if folder.join(RESULTS).exists() {
            let earlier = Results::read(folder)?;
            if earlier.model != results.model {
                let keys = results.model.keys().filter(|key| earlier.model.get(*key) != results.model.get(*key));
                let keys: Vec<&str> = keys.map(String::as_str).collect();
                return Err(Error::file(
                    folder,
                    format_args!("holds results of another model: {} differ", keys.join(", ")),
                )
                .hint("name another --out folder"));
            }
            results.tasks = earlier.tasks;
        }
        Ok(results)
    }

    /// Results as they stand in a folder.
    ///
    /// # Errors
    /// No such folder; a file that holds something else.
    pub fn read(folder: &Path) -> Result<Results> {
        let path = folder.join(RESULTS);
        let bytes = std::fs::read(&path).map_err(|error| {
            Error::io(&path, "read", error).hint("expected a folder that `llamantino eval --out` wrote")
        })?;
        let wrong = |what: String| Error::file(&path, format_args!("not results of an evaluation: {what}"));
        let mut value: Value = serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?;
        let mut part = |name: &str| match value.get_mut(name).map(Value::take) {
            Some(Value::Object(map)) => Ok(map),
            _ => Err(wrong(format!("no `{name}`"))),
        };
        let (model, tasks) = (part("model")?, part("tasks")?);
        if let Some((name, _)) = tasks.iter().find(|(_, task)| !task["task"].is_string()) {
            return Err(wrong(format!("`{name}` does not say which task it is")));
        }
        Ok(Results { model, tasks, folder: Some(folder.to_owned()), units: HashMap::new() })
    }

    /// Where they are kept.
    pub fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }

    /// The store of a task's answers; `task` says what belongs to it alone.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn store(&self, name: &str, task: &Identity) -> Result<Store> {
        let Some(folder) = &self.folder else { return Ok(Store::in_memory()) };
        let identity = self.model.iter().chain(task).map(|(key, value)| (key.clone(), value.clone())).collect();
        Store::open(&folder.join(format!("{name}.answers.jsonl")), &identity)
    }

    /// Takes in what a task came to, and writes it.
    ///
    /// # Errors
    /// The file system.
    pub fn add(&mut self, name: &str, task: &Task, identity: &Identity, outcome: &Outcome) -> Result<()> {
        let mut value = json!({"task": task.name});
        for (key, part) in identity.iter().chain(outcome.to_json().as_object().into_iter().flatten()) {
            value[key.as_str()] = part.clone();
        }
        let mut lines = Vec::new();
        for unit in &outcome.units {
            serde_json::to_writer(&mut lines, unit).map_err(|error| Error::failed(error.to_string()))?;
            lines.push(b'\n');
        }
        value[UNITS_HASH] = blake3::hash(&lines).to_hex().as_str().into();
        self.tasks.insert(name.to_owned(), value);
        self.units.insert(name.to_owned(), outcome.units.clone());
        let Some(folder) = &self.folder else { return Ok(()) };
        write_whole(&folder.join(format!("{name}.units.jsonl")), &lines)?;
        write_whole(&folder.join(RESULTS), format!("{:#}\n", self.to_json()).as_bytes())
    }

    /// The units of a task.
    ///
    /// # Errors
    /// A file that is missing or is not the one that was written with the results.
    pub fn units(&self, name: &str) -> Result<Vec<Unit>> {
        if let Some(units) = self.units.get(name) {
            return Ok(units.clone());
        }
        let path = self.folder.as_deref().unwrap_or(Path::new(".")).join(format!("{name}.units.jsonl"));
        let again = "give the command that wrote it once more: its answers are kept";
        let text = std::fs::read_to_string(&path).map_err(|error| Error::io(&path, "read", error).hint(again))?;
        if self.tasks[name][UNITS_HASH] != blake3::hash(text.as_bytes()).to_hex().as_str() {
            let message = format_args!("not what {RESULTS} was computed from (hash)");
            return Err(Error::file(&path, message).hint(again));
        }
        let unit = |(index, line): (usize, &str)| {
            let place = format_args!("{}:{}", path.display(), index + 1).to_string();
            serde_json::from_str(line).map_err(|error| Error::failed(format!("{place}: not a unit: {error}")))
        };
        text.lines().enumerate().map(unit).collect()
    }

    /// As they stand in `results.json`.
    pub fn to_json(&self) -> Value {
        json!({"program": concat!("llamantino ", env!("CARGO_PKG_VERSION")), "model": self.model, "tasks": self.tasks})
    }
}

/// Name of the file of all results.
pub const RESULTS: &str = "results.json";
/// Key of a task's hash (BLAKE3) of its file of units.
const UNITS_HASH: &str = "units_blake3";

/// Writes a file whole or not at all.
fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let write = |mut file: tempfile::NamedTempFile| {
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|error| error.error)
    };
    tempfile::NamedTempFile::new_in(folder).and_then(write).map(drop).map_err(|error| Error::io(path, "write", error))
}

/// Hash (BLAKE3) of the bytes of files, one after the other.
///
/// # Errors
/// Files that cannot be read.
pub fn hash_files(paths: &[PathBuf]) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    for path in paths {
        let file = std::fs::File::open(path).map_err(|error| Error::io(path, "open", error))?;
        hasher.update_reader(file).map_err(|error| Error::io(path, "read", error))?;
    }
    Ok(hasher.finalize().to_hex().to_string())
}
