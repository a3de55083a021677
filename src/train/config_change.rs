//! What changed in a configuration since a run was started, and whether the run can go on with it.
//!
//! A key is harmless if no bit of what is trained depends on it. `model` and `data.paths` are, because the contents are
//! compared by hash; `name` and `output` say where the folder is, which was just found there, and are not compared. A model
//! or an adapter below `output` moves with it.

use super::config::RunConfig;
use crate::error::{Error, Result};
use std::collections::BTreeMap;
use std::path::Path;
use toml::Value;

/// Keys (or sections) whose change leaves every trained bit the same.
const HARMLESS: &[&str] = &[
    "model",
    "save_dtype",
    "data.paths",
    "data.max_bad_lines",
    "data.cache",
    "data.source[].name",
    "data.source[].paths",
    "data.source[].max_bad_lines",
    "evaluation",
    "training.recompute",
    "training.cache_weights",
    "training.memory_limit_gib",
    // What differs are last bits, of which a checkpoint made elsewhere warns.
    "training.device",
    "training.threads",
    "training.evaluate_every",
    "training.checkpoint_every",
    "training.keep_last",
    "training.keep_best",
    "training.max_hours",
    "training.max_skipped_steps",
    "training.spike",
];

/// Keys among them that name contents: another value may bring another run, as the hashes tell where they are compared.
const CONTENTS: &[&str] = &["model", "data.paths", "data.source[].paths"];

/// Keys that only say where the run is.
const PLACE: &[&str] = &["name", "output"];

/// A key with another value than before.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// Dotted path.
    pub key: String,
    /// Value that the run was started with.
    pub then: String,
    /// Value now.
    pub now: String,
}

impl Change {
    /// Whether the trained values do not depend on the key.
    pub fn is_harmless(&self) -> bool {
        self.is_among(HARMLESS)
    }

    /// Whether it is a harmless one that bears upon nothing either once the run is finished.
    pub fn is_idle(&self) -> bool {
        self.is_harmless() && !self.is_among(CONTENTS)
    }

    fn is_among(&self, keys: &[&str]) -> bool {
        keys.iter().any(|key| is_at_or_below(&without_numbers(&self.key), key))
    }
}

/// What differs between the configuration `then`, a resolved TOML file, and `now`.
///
/// # Errors
/// `then` is not a configuration.
pub fn changes(then: &str, now: &RunConfig) -> Result<Vec<Change>> {
    // Through the type, so that keys which `then` does not know yet have their defaults.
    let then: RunConfig =
        toml::from_str(then).map_err(|error| Error::failed(format!("the run's configuration: {}", error.message())))?;
    let (then, now) = (flat(&then)?, flat(now)?);
    let mut keys: Vec<&String> = then.keys().chain(now.keys()).collect();
    keys.sort_unstable();
    keys.dedup();
    let shown = |values: &BTreeMap<String, Value>, key| values.get(key).map_or("(none)".into(), Value::to_string);
    let differs = keys.into_iter().filter(|key| then.get(*key) != now.get(*key));
    let compared = differs.filter(|key| !PLACE.contains(&key.as_str()));
    Ok(compared.map(|key| Change { key: key.clone(), then: shown(&then, key), now: shown(&now, key) }).collect())
}

/// All values by dotted path; lists of plain values are one value.
fn flat(config: &RunConfig) -> Result<BTreeMap<String, Value>> {
    let mut config = config.clone();
    let below_output = |path: &Path| Some(Path::new("<output>").join(path.strip_prefix(&config.output).ok()?));
    let model = below_output(Path::new(&config.model)).map(|path| path.to_string_lossy().into_owned());
    let adapter = config.adapter.as_deref().and_then(below_output);
    config.model = model.unwrap_or(config.model);
    config.adapter = adapter.or(config.adapter);
    let table = Value::try_from(&config).map_err(|error| Error::usage(format!("the configuration: {error}")))?;
    let mut values = BTreeMap::new();
    flatten("", table, &mut values);
    Ok(values)
}

fn flatten(path: &str, value: Value, values: &mut BTreeMap<String, Value>) {
    let below = |key: &str| if path.is_empty() { key.to_string() } else { format!("{path}.{key}") };
    match value {
        Value::Table(table) => table.into_iter().for_each(|(key, value)| flatten(&below(&key), value, values)),
        Value::Array(list) if list.first().is_some_and(Value::is_table) => {
            list.into_iter().enumerate().for_each(|(i, value)| flatten(&format!("{path}[{i}]"), value, values));
        }
        value => drop(values.insert(path.to_string(), value)),
    }
}

/// The key with `[]` for each `[7]`.
fn without_numbers(key: &str) -> String {
    let mut parts = key.split('[');
    let first = parts.next().unwrap_or_default().to_string();
    parts.fold(first, |key, part| format!("{key}[{}", part.trim_start_matches(|c: char| c.is_ascii_digit())))
}

fn is_at_or_below(key: &str, section: &str) -> bool {
    key.strip_prefix(section).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::SourceConfig;
    use crate::train::config::EvaluationConfig;

    fn changed(change: impl Fn(&mut RunConfig)) -> Vec<Change> {
        let then = RunConfig { model: "m".into(), ..RunConfig::default() };
        let mut now = then.clone();
        change(&mut now);
        changes(&then.to_toml().unwrap(), &now).unwrap()
    }

    #[test]
    fn the_same_configuration_has_no_changes_and_its_place_does_not_count() {
        assert_eq!(changed(|_| {}), []);
        assert_eq!(changed(|config| (config.name, config.output) = ("other".into(), "elsewhere".into())), []);
    }

    #[test]
    fn a_model_or_adapter_below_the_output_folder_moves_with_it() {
        let placed = |output: &str, model: &str| RunConfig {
            output: output.into(),
            model: model.into(),
            adapter: Some(format!("{output}/1-adapt/adapter").into()),
            ..RunConfig::default()
        };
        let then = placed("runs/a", "runs/a/1-adapt/merged").to_toml().unwrap();
        assert_eq!(changes(&then, &placed("/elsewhere/b", "/elsewhere/b/1-adapt/merged")).unwrap(), []);
        let other = changes(&then, &placed("runs/a", "runs/a/2-chat/merged")).unwrap();
        assert_eq!(other.iter().map(|change| change.key.as_str()).collect::<Vec<_>>(), ["model"]);
    }

    #[test]
    fn a_change_names_key_and_values() {
        let changes = changed(|config| {
            config.training.steps = 7;
            config.training.spike.window = 200;
            config.data.paths.push("x".into());
            config.adapter = Some("a".into());
        });
        let text: Vec<_> = changes.iter().map(|c| format!("{}: {} -> {}", c.key, c.then, c.now)).collect();
        assert_eq!(
            text,
            [
                "adapter: (none) -> \"a\"",
                "data.paths: [] -> [\"x\"]",
                "training.spike.window: 100 -> 200",
                "training.steps: 0 -> 7"
            ]
        );
        let harmless: Vec<_> = changes.iter().map(Change::is_harmless).collect();
        assert_eq!(harmless, [false, true, true, false]);
    }

    #[test]
    fn lists_of_sections_are_compared_entry_by_entry() {
        let set = EvaluationConfig { name: "english".into(), paths: vec!["e".into()], ..EvaluationConfig::default() };
        let changes = changed(|config| config.evaluation.push(set.clone()));
        assert!(changes.iter().any(|change| change.key == "evaluation[0].name"), "{changes:?}");
        assert!(changes.iter().all(Change::is_harmless));
    }

    #[test]
    fn sources_may_lie_elsewhere_but_not_weigh_more() {
        let source = |path: &str, weight| SourceConfig {
            paths: vec![path.into()],
            weight: Some(weight),
            ..SourceConfig::default()
        };
        let config = |path, weight| {
            let mut config = RunConfig { model: "m".into(), ..RunConfig::default() };
            config.data.source = vec![source("a", 1.0), source(path, weight)];
            config
        };
        let then = config("b", 0.1).to_toml().unwrap();
        let changes = changes(&then, &config("c", 0.2)).unwrap();
        let found: Vec<_> = changes.iter().map(|change| (change.key.as_str(), change.is_harmless())).collect();
        assert_eq!(found, [("data.source[1].paths", true), ("data.source[1].weight", false)]);
    }

    #[test]
    fn keys_that_a_section_begins_like_are_not_in_it() {
        let change = Change { key: "model_revision".into(), then: String::new(), now: String::new() };
        assert!(!change.is_harmless());
    }

    #[test]
    fn a_file_of_an_older_version_lacks_keys_and_has_their_defaults() {
        let now = RunConfig { model: "m".into(), ..RunConfig::default() };
        assert_eq!(changes("model = \"m\"\n", &now).unwrap(), []);
    }
}
