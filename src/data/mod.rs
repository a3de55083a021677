//! Data: files → documents → tokens → packed micro-batches.
//!
//! [`formats`] read records, [`template`] writes conversations, [`tokenize`] makes tokens of them, [`corpus`] keeps them,
//! [`load`] does the three in one go, [`pack`] and [`batch`] deal them out.

pub mod batch;
pub mod corpus;
pub mod formats;
pub mod load;
pub mod pack;
pub mod template;
#[cfg(test)]
pub(crate) mod testing;
pub mod tokenize;

use serde::{Deserialize, Serialize};

use crate::config::{Problems, Section};

/// The `[data]` section of a raw-text stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TextDataConfig {
    /// Files, folders (searched to the bottom) and globs, read in this order and sorted within each. Relative ones
    /// start at the current folder. A file named twice is read once.
    pub paths: Vec<String>,
    /// How to read them: `auto` (by extension and content), `text` (one document a file), `jsonl` (field `text`).
    pub format: String,
    /// Most tokens that attend to each other: longer documents are cut, shorter ones share a window.
    pub sequence_length: usize,
    /// Whether documents share windows. Without it each window holds one document (or piece of one).
    pub packing: bool,
    /// Part of the documents to measure on and not to train on, chosen by their content: 0 for none.
    pub held_out_fraction: f64,
    /// Files (folders, globs) to measure on, instead of a fraction. They are left out of `paths`.
    pub held_out_files: Vec<String>,
    /// How many unusable lines (broken JSON, no text, not UTF-8) to skip; one more stops the run.
    pub max_bad_lines: u64,
}

impl Default for TextDataConfig {
    fn default() -> Self {
        TextDataConfig {
            paths: Vec::new(),
            format: "auto".into(),
            sequence_length: 512,
            packing: true,
            held_out_fraction: 0.0,
            held_out_files: Vec::new(),
            max_bad_lines: 0,
        }
    }
}

impl Section for TextDataConfig {
    fn check(&self, problems: &mut Problems) {
        problems.expect(!self.paths.is_empty(), "paths", "at least one file, folder or glob", &self.paths);
        let known: Vec<&str> =
            std::iter::once("auto").chain(formats::FORMATS.iter().map(|format| format.name)).collect();
        let known_format = known.contains(&self.format.as_str());
        problems.expect(known_format, "format", &format!("one of {}", known.join(", ")), &self.format);
        let length = self.sequence_length;
        problems.expect((2..=1 << 20).contains(&length), "sequence_length", "from 2 to 1048576", length);
        let fraction = self.held_out_fraction;
        problems.expect((0.0..1.0).contains(&fraction), "held_out_fraction", "a fraction from 0 to below 1", fraction);
        if fraction > 0.0 && !self.held_out_files.is_empty() {
            problems.add("held_out_files", "held_out_fraction is set as well; use one of the two");
        }
    }
}
