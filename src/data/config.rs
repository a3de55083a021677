//! `[data]` and `[[data.source]]`: what a stage is trained on and how much of it is held out.
//!
//! A key of a source that is left out is that of `[data]`; without any source, `[data]` itself is the only one.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::formats;
use super::template::Trained;
use crate::config::{Problems, Section};

/// The `[data]` section.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DataConfig {
    /// Files, folders (searched to the bottom) and globs, read in this order and sorted within each. Relative ones
    /// start at the current folder. A file named twice is read once. Empty where `source` says it.
    pub paths: Vec<String>,
    /// How to read them: `auto` (recognised by extension and first record) or a format by name.
    pub format: String,
    /// How conversations and instructions are written: `model` for the model's own template, a built-in name, or a
    /// template file. Empty: the format's own, or else the model's. Raw text has none.
    pub template: String,
    /// Which tokens are trained, if not those that the template says: `assistant`, `response` or `all`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trained: Option<Trained>,
    /// System prompt of conversations that have none, in place of the template's; empty: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// Most documents to read; 0: all.
    pub max_documents: u64,
    /// `[[data.source]]`: several sources, each with its own paths, format, template and weight.
    pub source: Vec<SourceConfig>,
    /// Most tokens that attend to each other: longer documents are cut, shorter ones share a window.
    pub sequence_length: usize,
    /// What happens to conversations and instructions that are longer than a window.
    pub long_examples: LongExamples,
    /// Whether documents share windows. Without it each window holds one document (or piece of one).
    pub packing: bool,
    /// Without packing: put documents of like length into one micro-batch.
    pub group_by_length: bool,
    /// Part of the documents to measure on and not to train on, chosen by their content: 0 for none.
    pub held_out_fraction: f64,
    /// Files (folders, globs) to measure on, instead of a fraction. They are left out of `paths`.
    pub held_out_files: Vec<String>,
    /// Most documents to measure on, chosen by their content; the others that are held out are not trained on either. 0:
    /// all.
    pub max_held_out: u64,
    /// How many unusable records (broken JSON, no text, not UTF-8) to skip; one more stops the run.
    pub max_bad_lines: u64,
    /// Let control tokens that stand in the text of documents and messages be these tokens. Off: they are spelled out.
    pub special_tokens_in_text: bool,
    /// Where tokens are kept between runs: `auto` (the user's cache folder), `off`, or a folder.
    pub cache: String,
}

/// An example longer than a window. Raw text, and examples trained as a whole, are always cut into windows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LongExamples {
    /// Keep as many whole turns from the beginning as fit; dropped and counted if not even the first trained one fits.
    #[default]
    Cut,
    /// Cut into windows like raw text.
    Split,
    /// Dropped and counted.
    Drop,
}

/// `[[data.source]]`: one of several sources.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct SourceConfig {
    /// Its name in messages; empty: its first path.
    pub name: String,
    /// Files, folders and globs.
    pub paths: Vec<String>,
    /// As in `[data]`; empty: that of `[data]`.
    pub format: String,
    /// As in `[data]`; empty: that of `[data]`.
    pub template: String,
    /// As in `[data]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trained: Option<Trained>,
    /// As in `[data]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// Share of the tokens of an epoch, relative to the other sources' weights. All sources have one, or none; without,
    /// every document comes once an epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<f64>,
    /// Most documents to read; left out: as in `[data]`; 0: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_documents: Option<u64>,
    /// As in `[data]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held_out_fraction: Option<f64>,
    /// Files to measure on, of this source.
    pub held_out_files: Vec<String>,
    /// As in `[data]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_held_out: Option<u64>,
    /// As in `[data]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_bad_lines: Option<u64>,
}

/// A source with everything that it inherits.
#[derive(Debug, Clone, PartialEq)]
pub struct Source {
    /// Its name in messages.
    pub name: String,
    /// Files, folders and globs.
    pub paths: Vec<String>,
    /// A format's name, or `auto`.
    pub format: String,
    /// A template's name; empty: the format's own, or else the model's.
    pub template: String,
    /// Which tokens are trained, if not those that the template says.
    pub trained: Option<Trained>,
    /// System prompt of conversations that have none.
    pub system: Option<String>,
    /// Share of the tokens of an epoch.
    pub weight: Option<f64>,
    /// Most documents to read; 0: all.
    pub max_documents: u64,
    /// Part of the documents to measure on.
    pub held_out_fraction: f64,
    /// Files to measure on.
    pub held_out_files: Vec<String>,
    /// Most documents to measure on; 0: all.
    pub max_held_out: u64,
    /// How many unusable records to skip.
    pub max_bad_lines: u64,
}

impl Default for DataConfig {
    fn default() -> Self {
        DataConfig {
            paths: Vec::new(),
            format: "auto".into(),
            template: String::new(),
            trained: None,
            system: None,
            max_documents: 0,
            source: Vec::new(),
            sequence_length: 512,
            long_examples: LongExamples::Cut,
            packing: true,
            group_by_length: false,
            held_out_fraction: 0.0,
            held_out_files: Vec::new(),
            max_held_out: 0,
            max_bad_lines: 0,
            special_tokens_in_text: false,
            cache: "auto".into(),
        }
    }
}

impl DataConfig {
    /// A section for one set of texts with everything else as it is by default.
    pub fn of_paths(paths: &[String]) -> DataConfig {
        DataConfig { paths: paths.to_vec(), ..DataConfig::default() }
    }

    /// The sources, each with everything that it inherits.
    pub fn sources(&self) -> Vec<Source> {
        let own = SourceConfig { paths: self.paths.clone(), ..SourceConfig::default() };
        let written: Vec<&SourceConfig> = match self.source.is_empty() {
            true => vec![&own],
            false => self.source.iter().collect(),
        };
        let inherited = |value: &str, above: &str| if value.is_empty() { above.to_owned() } else { value.to_owned() };
        let resolve = |source: &&SourceConfig| {
            let first = source.paths.first().map_or("", String::as_str);
            let rule = source.held_out_fraction.is_none() && source.held_out_files.is_empty();
            Source {
                name: inherited(&source.name, first),
                paths: source.paths.clone(),
                format: inherited(&source.format, &self.format),
                template: inherited(&source.template, &self.template),
                trained: source.trained.or(self.trained),
                system: source.system.clone().or_else(|| self.system.clone()),
                weight: source.weight,
                max_documents: source.max_documents.unwrap_or(self.max_documents),
                // Held-out files of one's own replace the fraction of [data], and the other way round.
                held_out_fraction: match rule {
                    true => self.held_out_fraction,
                    false => source.held_out_fraction.unwrap_or(0.0),
                },
                // Files belong to one source: those of [data] only where it is itself the source.
                held_out_files: match self.source.is_empty() {
                    true => self.held_out_files.clone(),
                    false => source.held_out_files.clone(),
                },
                max_held_out: source.max_held_out.unwrap_or(self.max_held_out),
                max_bad_lines: source.max_bad_lines.unwrap_or(self.max_bad_lines),
            }
        };
        written.iter().map(resolve).collect()
    }

    /// Every path of every source, held-out ones last.
    pub fn all_paths(&self) -> Vec<String> {
        let sources = self.sources();
        let paths = sources.iter().flat_map(|source| source.paths.clone());
        paths.chain(sources.iter().flat_map(|source| source.held_out_files.clone())).collect()
    }

    /// Whether some tokens will not be targets, as far as the names of formats and the first records tell.
    pub fn ignores_tokens(&self) -> bool {
        self.sources().iter().any(|source| {
            let first = || formats::find_files(&source.paths).ok()?.into_iter().next();
            let recognised =
                |path: PathBuf| formats::Entries::open(&path, None).ok().map(|entries| entries.recognised.format);
            let format = match formats::by_name(&source.format) {
                Ok(Some(format)) => Some(format.name),
                _ => first().and_then(recognised),
            };
            format.is_some_and(|format| format != "text") && source.trained != Some(Trained::All)
        })
    }

    /// Whether some source holds something out.
    pub fn holds_out(&self) -> bool {
        self.sources().iter().any(Source::holds_out)
    }
}

impl Source {
    /// Whether it holds something out.
    pub fn holds_out(&self) -> bool {
        self.held_out_fraction > 0.0 || !self.held_out_files.is_empty()
    }
}

/// Reports a format that is none; `also` are further allowed values.
fn check_format(problems: &mut Problems, format: &str, also: &[&str]) {
    let known: Vec<&str> = ["auto"].into_iter().chain(formats::names()).collect();
    let holds = known.contains(&format) || also.contains(&format) || formats::by_name(format).is_ok();
    problems.expect(holds, "format", &format!("one of {}", known.join(", ")), format);
}

fn check_held_out(problems: &mut Problems, fraction: f64, files: &[String]) {
    problems.expect((0.0..1.0).contains(&fraction), "held_out_fraction", "a fraction from 0 to below 1", fraction);
    if fraction > 0.0 && !files.is_empty() {
        problems.add("held_out_files", "held_out_fraction is set as well; use one of the two");
    }
}

impl Section for DataConfig {
    fn example() -> DataConfig {
        DataConfig {
            trained: Some(Trained::Assistant),
            system: Some(String::new()),
            source: vec![SourceConfig::example()],
            ..DataConfig::default()
        }
    }

    fn check(&self, problems: &mut Problems) {
        if self.source.is_empty() {
            problems.expect(!self.paths.is_empty(), "paths", "at least one file, folder or glob", &self.paths);
        } else if !self.paths.is_empty() {
            problems.add("paths", "there are [[data.source]] entries as well; give these paths an entry of their own");
        }
        check_format(problems, &self.format, &[]);
        let length = self.sequence_length;
        problems.expect((2..=1 << 20).contains(&length), "sequence_length", "from 2 to 1048576", length);
        let grouped = self.group_by_length && self.packing;
        problems.expect(!grouped, "group_by_length", "false, or packing = false", self.group_by_length);
        check_held_out(problems, self.held_out_fraction, &self.held_out_files);
        if !self.source.is_empty() && !self.held_out_files.is_empty() {
            problems
                .add("held_out_files", "there are [[data.source]] entries; give these files to the one they belong to");
        }
        problems.expect(!self.cache.is_empty(), "cache", "auto, off or a folder", &self.cache);
        problems.sections("source", &self.source);
        let weighted = self.source.iter().filter(|source| source.weight.is_some()).count();
        if weighted > 0 && weighted < self.source.len() {
            let what = format!("{weighted} of {} sources have a weight; expected all or none", self.source.len());
            problems.add("source", what);
        }
    }
}

impl Section for SourceConfig {
    fn example() -> SourceConfig {
        SourceConfig {
            trained: Some(Trained::Assistant),
            system: Some(String::new()),
            weight: Some(1.0),
            max_documents: Some(0),
            held_out_fraction: Some(0.0),
            max_held_out: Some(0),
            max_bad_lines: Some(0),
            ..SourceConfig::default()
        }
    }

    fn check(&self, problems: &mut Problems) {
        problems.expect(!self.paths.is_empty(), "paths", "at least one file, folder or glob", &self.paths);
        check_format(problems, &self.format, &[""]);
        let weight = self.weight.unwrap_or(1.0);
        problems.expect(weight > 0.0 && weight.is_finite(), "weight", "a number above 0", weight);
        check_held_out(problems, self.held_out_fraction.unwrap_or(0.0), &self.held_out_files);
    }
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
