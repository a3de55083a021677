//! From a `[data]` section to tokenised documents, training and held-out.
//!
//! Held-out documents are chosen by file (`held_out_files`) or by content: a document is held out if the first eight
//! bytes of the blake3 hash of its text, as a little-endian number, are below `held_out_fraction` · 2⁶⁴. The choice does
//! not depend on the order of files or on the seed, and copies of a document fall on the same side.

use std::collections::HashSet;
use std::path::PathBuf;

use super::corpus::TokenizedCorpus;
use super::formats::{self, BadLines, Reader, Record};
use super::tokenize::Tokenizer;
use super::DataConfig;
use crate::error::{Error, Result};

/// Text tokenised at a time: enough for all threads, little beside the corpus.
const BATCH_BYTES: usize = 4 << 20;
const BATCH_DOCUMENTS: usize = 4096;

/// What was read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DataReport {
    /// Files read, held-out ones last.
    pub files: Vec<PathBuf>,
    /// Documents to train on.
    pub documents: u64,
    /// Documents held out.
    pub held_out_documents: u64,
    /// Documents that gave no token (left out).
    pub without_tokens: u64,
    /// UTF-8 bytes of all documents.
    pub text_bytes: u64,
    /// Text tokens of all documents.
    pub text_tokens: u64,
    /// Lines that could not be used.
    pub bad_lines: BadLines,
}

/// A dataset, tokenised.
#[derive(Debug, Clone)]
pub struct TextData {
    /// What to train on; never empty.
    pub train: TokenizedCorpus,
    /// What to measure on; none if nothing is held out, never empty otherwise.
    pub held_out: Option<TokenizedCorpus>,
    /// The account.
    pub report: DataReport,
}

/// Whether the content of a document holds it out; `fraction` in [0, 1).
pub fn is_held_out(text: &str, fraction: f64) -> bool {
    let hash = blake3::hash(text.as_bytes());
    let mut start = [0; 8];
    start.copy_from_slice(&hash.as_bytes()[..8]);
    (u64::from_le_bytes(start) as f64) < fraction * 2f64.powi(64)
}

/// Reads and tokenises everything that `config` names. `progress` is called after each batch of documents.
///
/// # Errors
/// Unreadable files, more bad lines than allowed, text without embeddings, nothing to train on, or nothing held out
/// although it was asked for.
pub fn load_text(
    config: &DataConfig,
    tokenizer: &Tokenizer,
    progress: &mut dyn FnMut(&DataReport),
) -> Result<TextData> {
    if !config.source.is_empty() {
        return Err(Error::usage("several sources ([[data.source]]) cannot be read yet"));
    }
    let held_files = formats::find_files(&config.held_out_files)?;
    let mut files = formats::find_files(&config.paths)?;
    let identity = |file: &PathBuf| file.canonicalize().unwrap_or_else(|_| file.clone());
    let held: HashSet<PathBuf> = held_files.iter().map(identity).collect();
    files.retain(|file| !held.contains(&identity(file)));
    let first_held_file = files.len();
    files.extend(held_files);

    let mut loader = Loader {
        tokenizer,
        train: TokenizedCorpus::new(tokenizer),
        held_out: TokenizedCorpus::new(tokenizer),
        report: DataReport { files: files.clone(), ..DataReport::default() },
        texts: Vec::new(),
        sides: Vec::new(),
        bytes: 0,
    };
    let mut reader = Reader::new(files, formats::by_name(&config.format)?, config.max_bad_lines);
    while let Some(document) = reader.next().transpose()? {
        let Record::Text(text) = document.record;
        let side = document.file >= first_held_file || is_held_out(&text, config.held_out_fraction);
        loader.add(text, side);
        if loader.bytes >= BATCH_BYTES || loader.texts.len() >= BATCH_DOCUMENTS {
            loader.flush()?;
            loader.report.bad_lines = reader.bad_lines().clone();
            progress(&loader.report);
        }
    }
    loader.flush()?;
    loader.report.bad_lines = reader.bad_lines().clone();
    progress(&loader.report);
    loader.finish(config)
}

struct Loader<'a> {
    tokenizer: &'a Tokenizer,
    train: TokenizedCorpus,
    held_out: TokenizedCorpus,
    report: DataReport,
    texts: Vec<String>,
    /// Whether each text is held out.
    sides: Vec<bool>,
    bytes: usize,
}

impl Loader<'_> {
    fn add(&mut self, text: String, held_out: bool) {
        self.bytes += text.len();
        self.texts.push(text);
        self.sides.push(held_out);
    }

    fn flush(&mut self) -> Result<()> {
        let ids = self.tokenizer.encode_batch(&self.texts)?;
        for ((text, ids), held_out) in self.texts.iter().zip(ids).zip(&self.sides) {
            if ids.is_empty() {
                self.report.without_tokens += 1;
                continue;
            }
            let (corpus, count) = match held_out {
                true => (&mut self.held_out, &mut self.report.held_out_documents),
                false => (&mut self.train, &mut self.report.documents),
            };
            corpus.push(&ids, text.len() as u64);
            *count += 1;
            self.report.text_bytes += text.len() as u64;
            self.report.text_tokens += ids.len() as u64;
        }
        self.texts.clear();
        self.sides.clear();
        self.bytes = 0;
        Ok(())
    }

    fn finish(self, config: &DataConfig) -> Result<TextData> {
        let Loader { train, held_out, report, .. } = self;
        let account = format!(
            "{} file(s), {} held-out document(s), {} without tokens, {} unusable line(s)",
            report.files.len(),
            report.held_out_documents,
            report.without_tokens,
            report.bad_lines.count
        );
        if train.total_rows() == 0 {
            return Err(Error::failed(format!("{}: no text to train on ({account})", config.paths.join(", ")))
                .hint("check data.paths, data.format and what is held out"));
        }
        let wanted = config.held_out_fraction > 0.0 || !config.held_out_files.is_empty();
        if wanted && held_out.total_rows() == 0 {
            return Err(Error::failed(format!("no held-out document among {} ({account})", report.documents))
                .hint("raise data.held_out_fraction, name files in data.held_out_files, or hold nothing out"));
        }
        Ok(TextData { train, held_out: wanted.then_some(held_out), report })
    }
}

#[cfg(test)]
mod tests;
