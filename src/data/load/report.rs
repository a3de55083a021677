//! What was read, and what became of it.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::data::config::Source;
use crate::data::corpus::part::Account;
use crate::data::corpus::TokenizedCorpus;
use crate::data::formats::BadLines;
use crate::error::{Error, Result};

/// How far reading is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of files that are done.
    pub bytes_done: u64,
    /// Bytes of all files.
    pub bytes_total: u64,
    /// Documents tokenised so far, those from the cache left out.
    pub documents: u64,
    /// Their tokens.
    pub tokens: u64,
    /// The file at hand.
    pub file: PathBuf,
}

/// What was read of all sources.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct DataReport {
    /// Files read.
    pub files: Vec<PathBuf>,
    /// Documents to train on.
    pub documents: u64,
    /// Documents held out.
    pub held_out_documents: u64,
    /// Documents that gave no token (left out).
    pub without_tokens: u64,
    /// UTF-8 bytes of all documents.
    pub text_bytes: u64,
    /// Tokens of all documents, BOS and EOS of raw text left out.
    pub text_tokens: u64,
    /// Records that could not be used.
    pub bad_lines: BadLines,
    /// Each source.
    pub sources: Vec<SourceReport>,
}

/// What was read of one source.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct SourceReport {
    /// Its name.
    pub name: String,
    /// What its files were found to be: format, container and template.
    pub recognised: Vec<String>,
    /// Number of files.
    pub files: u64,
    /// Documents to train on.
    pub documents: u64,
    /// Documents held out.
    pub held_out_documents: u64,
    /// UTF-8 bytes of both.
    pub text_bytes: u64,
    /// Tokens of both.
    pub tokens: u64,
    /// Of these, without BOS and EOS of raw text.
    pub text_tokens: u64,
    /// Trained tokens of both.
    pub trained_tokens: u64,
    /// Examples of which only the first turns are kept: the rest does not fit a window.
    pub cut: u64,
    /// Documents that take several windows.
    pub split: u64,
    /// Examples left out because they do not fit a window.
    pub dropped_long: u64,
    /// Documents that gave no token (left out).
    pub without_tokens: u64,
    /// Documents whose text names control tokens: `special_tokens_in_text` would change them.
    pub naming_control_tokens: u64,
    /// Records that could not be used.
    pub bad_lines: BadLines,
    /// Parts that were there already.
    pub parts_from_cache: u64,
    /// What is odd.
    pub warnings: Vec<String>,
    /// BOS and EOS that a document of raw text gets.
    #[serde(skip)]
    pub(super) added_tokens: usize,
}

impl SourceReport {
    pub(super) fn new(source: &Source) -> SourceReport {
        let bad_lines = BadLines::with_limit(source.max_bad_lines);
        SourceReport { name: source.name.clone(), bad_lines, ..SourceReport::default() }
    }

    /// Notes what a file was found to be.
    pub(super) fn recognised(&mut self, what: String) {
        self.files += 1;
        if !self.recognised.contains(&what) {
            self.recognised.push(what);
        }
    }

    /// Counts what happened to the records of a part.
    ///
    /// # Errors
    /// More bad records than allowed; an example that must not be trained on.
    pub(super) fn count(&mut self, path: &Path, account: &Account) -> Result<()> {
        for (line, reason) in &account.bad {
            self.bad_lines.add(path, *line, reason)?;
        }
        self.bad_lines.add_unseen(path, account.bad_count - account.bad.len() as u64)?;
        if let Some((line, reason)) = account.faults.first() {
            let more = match account.faults.len() {
                1 => String::new(),
                count => format!(" (and {} more)", count - 1),
            };
            return Err(Error::failed(format!("{}:{line}: {reason}{more}", path.display())).hint(
                "nothing was trained; change the template, its trained part, or the data (`llamantino data inspect` \
                 shows examples)",
            ));
        }
        self.without_tokens += account.without_tokens;
        self.naming_control_tokens += account.naming_controls;
        Ok(())
    }

    /// Whether something is held out if that was asked for.
    pub(super) fn check(&self, source: &Source, held_out: &TokenizedCorpus) -> Result<()> {
        if !source.holds_out() || held_out.total_rows() > 0 {
            return Ok(());
        }
        Err(Error::failed(format!("source {}: no held-out document among {}", self.name, self.documents))
            .hint("raise data.held_out_fraction, name files in data.held_out_files, or hold nothing out"))
    }
}

impl DataReport {
    /// Fills the totals.
    pub(super) fn sum_up(&mut self) {
        let sum = |of: fn(&SourceReport) -> u64| self.sources.iter().map(of).sum::<u64>();
        let (documents, held_out) = (sum(|s| s.documents), sum(|s| s.held_out_documents));
        let (without, bytes, tokens) = (sum(|s| s.without_tokens), sum(|s| s.text_bytes), sum(|s| s.text_tokens));
        let mut bad = BadLines { limit: sum(|s| s.bad_lines.limit), ..BadLines::default() };
        for source in &self.sources {
            bad.count += source.bad_lines.count;
            bad.first.extend(source.bad_lines.first.iter().cloned());
        }
        bad.first.truncate(5);
        (self.documents, self.held_out_documents, self.without_tokens) = (documents, held_out, without);
        (self.text_bytes, self.text_tokens, self.bad_lines) = (bytes, tokens, bad);
    }

    /// The account in one line, and the first unusable records in one each.
    pub(super) fn account(&self) -> String {
        let long: u64 = self.sources.iter().map(|source| source.dropped_long).sum();
        let first: String = self.bad_lines.first.iter().map(|line| format!("\n  {line}")).collect();
        format!(
            "{} file(s), {} held-out document(s), {long} too long for a window, {} without tokens, {} unusable record(s){first}",
            self.files.len(),
            self.held_out_documents,
            self.without_tokens,
            self.bad_lines.count
        )
    }
}
