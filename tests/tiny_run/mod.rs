//! A run small enough for hundreds of it: the tiny model of [`support`], some text, a configuration.
//!
//! Everything is generated from fixed seeds; nothing is trained well, everything is trained exactly.

#![allow(dead_code)] // Each test target uses its part.

pub mod chain;
#[path = "../support/mod.rs"]
mod support;

use llamantino::checkpoint::{MANIFEST_FILE, STATE_FILE};
use llamantino::model::Method;
use llamantino::train::folder::Beginning;
use llamantino::train::metrics::{EvalRow, StepRow};
use llamantino::train::run::{self, Observer, RunOptions, RunSummary};
use llamantino::train::RunConfig;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// A sequence of numbers that looks random (splitmix64).
pub struct Numbers(pub u64);

impl Numbers {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// Model, text and runs in a folder that is removed at the end.
pub struct Tiny {
    pub place: tempfile::TempDir,
}

impl Tiny {
    pub fn new() -> Tiny {
        let tiny = Tiny { place: tempfile::tempdir().unwrap() };
        support::tiny_model(tiny.place.path());
        tiny.write_text("text.txt", 1, 3000);
        tiny.write_text("held-out.txt", 2, 400);
        tiny
    }

    /// Makes all values of the model zero.
    pub fn zero_weights(&self) {
        support::write_weights(&self.model().join("model.safetensors"), |_, values| values.fill(0.0));
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    pub fn model(&self) -> PathBuf {
        self.path("model")
    }

    /// A text of about so many bytes.
    pub fn write_text(&self, name: &str, seed: u64, bytes: usize) {
        let words = ["il", "cane", "corre", "verso", "la", "città", "perché", "non", "piove", "più", "e", "sole"];
        let mut numbers = Numbers(seed);
        let mut text = String::new();
        while text.len() < bytes {
            text += words[(numbers.next() % words.len() as u64) as usize];
            text += " ";
        }
        fs::write(self.path(name), text).unwrap();
    }

    /// Eight steps of QLoRA with everything random in them: dropout, noise, shuffling over several epochs.
    pub fn config(&self, name: &str) -> RunConfig {
        let text = |path: PathBuf| path.display().to_string();
        let mut config = RunConfig {
            name: name.into(),
            output: self.path("runs"),
            model: text(self.model()),
            ..RunConfig::default()
        };
        config.lora.r = 4;
        config.lora.alpha = 8.0;
        config.lora.dropout = 0.1;
        config.data.paths = vec![text(self.path("text.txt"))];
        config.data.held_out_files = vec![text(self.path("held-out.txt"))];
        config.data.sequence_length = 96;
        config.training.steps = 8;
        config.training.micro_batch = 3;
        config.training.accumulation = 4;
        config.training.neftune_alpha = 5.0;
        config.training.evaluate_every = 3;
        config.training.checkpoint_every = 4;
        config.optimizer.learning_rate = 2e-3;
        config
    }

    /// Writes the configuration as a file for the command line.
    pub fn write_config(&self, config: &RunConfig) -> PathBuf {
        let path = self.path(&format!("{}.toml", config.name));
        fs::write(&path, config.to_toml().unwrap()).unwrap();
        path
    }
}

/// What a run said.
#[derive(Default)]
pub struct Said {
    pub notes: Vec<String>,
    pub warnings: Vec<String>,
}

impl Observer for Said {
    fn note(&mut self, text: &str) {
        self.notes.push(text.into());
    }
    fn warning(&mut self, text: &str) {
        self.warnings.push(text.into());
    }
    fn phase(&mut self, _: &str, _: usize, _: usize) {}
    fn step(&mut self, _: &StepRow, _: u64) {}
    fn evaluation(&mut self, _: &EvalRow) {}
}

/// Runs until `stop` or the end.
pub fn go(
    config: &RunConfig,
    beginning: Beginning,
    stop: &dyn Fn(u64) -> Option<String>,
) -> (llamantino::error::Result<RunSummary>, Said) {
    let mut said = Said::default();
    let options = RunOptions { beginning, allow_config_change: false, stop, chain: None, gpu: None };
    (run::run(config, &options, &mut said), said)
}

/// Runs to the end.
pub fn finish(config: &RunConfig) -> RunSummary {
    let (result, said) = go(config, Beginning::Auto, &|_| None);
    result.unwrap_or_else(|error| panic!("{error}\n{:?}", said.warnings))
}

/// Runs and is stopped after `step` steps.
pub fn stop_after(config: &RunConfig, step: u64) {
    let (result, _) = go(config, Beginning::Auto, &|done| (done >= step).then(|| "the test".into()));
    let error = result.unwrap_err();
    assert_eq!(error.exit_code(), 130, "{error}");
}

/// Everything that must be the same bits however often a run was interrupted: by name, as text or bytes.
pub fn outcome(config: &RunConfig) -> BTreeMap<String, Vec<u8>> {
    let folder = config.folder();
    let mut outcome = BTreeMap::new();
    let result = folder.join(if config.method == Method::Full { "model" } else { "adapter" });
    let last = folder.join(format!("checkpoints/step-{:06}", config.training.steps));
    for (name, path) in [("result", result), ("checkpoint", last)] {
        for file in fs::read_dir(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())) {
            let path = file.unwrap().path();
            let file = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_file() && file != MANIFEST_FILE && file != STATE_FILE {
                outcome.insert(format!("{name}/{file}"), fs::read(&path).unwrap());
            }
        }
        if name == "checkpoint" {
            let state = fs::read(path.join(STATE_FILE)).unwrap();
            let mut state: Value = serde_json::from_slice(&state).unwrap();
            // Times, and the length of the log, in which times have more or fewer digits. The configuration has the
            // name of the run in it.
            for key in ["seconds", "log_bytes", "config"] {
                assert!(state.as_object_mut().unwrap().remove(key).is_some(), "{key}");
            }
            outcome.insert("state".into(), state.to_string().into_bytes());
        }
    }
    outcome.insert("log".into(), log_without_times(&folder).into_bytes());
    outcome
}

/// The log but for time, speed and memory.
fn log_without_times(folder: &Path) -> String {
    let text = fs::read_to_string(folder.join("log.jsonl")).unwrap();
    let rows = text.lines().map(|line| {
        let mut row: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        for key in ["tokens_per_s", "rss_mib"] {
            row.as_object_mut().unwrap().remove(key);
        }
        format!("{row}\n")
    });
    rows.collect()
}

/// Fails with the names of what differs.
pub fn assert_same(found: &BTreeMap<String, Vec<u8>>, expected: &BTreeMap<String, Vec<u8>>, what: &str) {
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{what}");
    let differ: Vec<_> =
        expected.iter().filter(|(name, bytes)| found[*name] != **bytes).map(|(name, _)| name).collect();
    if let Some(text) = differ.iter().find(|name| ["log", "state"].contains(&name.as_str())) {
        let text = |from: &BTreeMap<String, Vec<u8>>| String::from_utf8_lossy(&from[*text]).into_owned();
        panic!("{what}: {differ:?} differ:\n{}\nexpected\n{}", text(found), text(expected));
    }
    assert!(differ.is_empty(), "{what}: {differ:?} differ");
}
