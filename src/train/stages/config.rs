//! `[[stage]]`: a stage's own keys, and what it sets over the top of the file.

use crate::config::{Problems, Section};
use crate::train::config::RunConfig;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use std::path::PathBuf;
use toml::{Table, Value};

/// Keys of a run that a stage cannot set: where it starts and where it goes is decided by the chain.
const OF_THE_CHAIN: [&str; 5] = ["name", "output", "model", "from_scratch", "adapter"];

/// How a stage starts from the one before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Handover {
    /// Its adapter is trained on; the base stays as it was.
    #[default]
    Adapter,
    /// Its adapter is merged into its base; a fresh adapter starts on the merged model, quantised again.
    Merge,
}

/// One `[[stage]]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StageConfig {
    /// Its name, part of its folder's.
    pub name: String,
    /// Name of the earlier stage that it starts from, if that is not the one before it in the file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// `adapter` (default) goes on training the earlier stage's adapter, `merge` starts a new one on the merged model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<Handover>,
    /// With `from = "merge"`: keep the merged model, which this stage's adapter belongs to. Otherwise it is removed after
    /// its last use; the same merge gives it again, bit for bit.
    pub keep_merged: bool,
    /// Everything else: any key of a run, over the top of the file.
    #[serde(flatten)]
    pub changes: Changes,
}

impl Default for StageConfig {
    fn default() -> Self {
        StageConfig { name: String::new(), after: None, from: None, keep_merged: true, changes: Changes::default() }
    }
}

impl Section for StageConfig {
    fn example() -> Self {
        StageConfig {
            after: Some(String::new()),
            from: Some(Handover::default()),
            changes: Changes::example(),
            ..StageConfig::default()
        }
    }

    fn check(&self, problems: &mut Problems) {
        let starts_well = |name: &str| !name.starts_with(|c: char| c.is_ascii_digit() || c == '.');
        let plain = !self.name.is_empty() && !self.name.contains(['/', '\\', '.']) && starts_well(&self.name);
        problems.expect(plain, "name", "a folder name that starts with a letter, without dots", &self.name);
    }
}

/// Keys of a run with other values; each fits the type that it has in [`RunConfig`].
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
#[serde(transparent)]
pub struct Changes(pub Table);

impl Changes {
    /// Every key that a stage may set.
    fn example() -> Changes {
        // Plain values and lists under text keys always make a table.
        let mut table = Table::try_from(RunConfig::example()).unwrap_or_default();
        OF_THE_CHAIN.iter().for_each(|key| drop(table.remove(*key)));
        Changes(table)
    }

    /// Whether the stage sets `key` (dotted, `[i]` for entries of a list), or the section or list that it stands in.
    pub fn contain(&self, key: &str) -> bool {
        let list = key.split('[').next().unwrap_or(key);
        let mut parts = list.split('.');
        let first = parts.next().and_then(|part| self.0.get(part));
        parts
            .try_fold(first, |value, part| match value? {
                Value::Table(table) => Some(table.get(part)),
                _ => None,
            })
            .flatten()
            .is_some()
    }
}

impl<'de> Deserialize<'de> for Changes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let table = Table::deserialize(deserializer)?;
        match Value::Table(table.clone()).try_into::<RunConfig>() {
            Ok(_) => Ok(Changes(table)),
            Err(error) => Err(D::Error::custom(error.message())),
        }
    }
}

/// A stage as it runs.
#[derive(Debug, Clone, PartialEq)]
pub struct Stage {
    /// Its name.
    pub name: String,
    /// Index of the stage that it starts from, and how; `None` starts from the file's own model.
    pub after: Option<(usize, Handover)>,
    /// Whether the merged model that it starts from is kept.
    pub keep_merged: bool,
    /// Its run: an ordinary one, in a folder of its own.
    pub config: RunConfig,
    /// The same for the planner while the stages before are not done: a model that is there already and has the same shapes.
    pub planned: RunConfig,
}

impl Stage {
    /// Its folder.
    pub fn folder(&self) -> PathBuf {
        self.config.folder()
    }

    /// Where its merged model stands while a later stage needs it.
    pub fn merged(&self) -> PathBuf {
        self.folder().join("merged")
    }
}
