//! From a `[data]` section to tokenised documents, training and held-out.
//!
//! Files are read by one thread and tokenised by all, a batch at a time, into parts of bounded size that the cache keeps
//! ([`super::cache`]); what is kept already is not read again. Nothing but the parts stays, and those of a cache are only
//! mapped.
//!
//! Held-out documents are chosen by file (`held_out_files`) or by content: a document is held out if the first eight
//! bytes of the blake3 hash of its content, as a little-endian number, are below `held_out_fraction` · 2⁶⁴. The choice
//! does not depend on the order of files or on the seed, and copies of a document fall on the same side.

mod report;
mod tokenising;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;
pub use report::{DataReport, Progress, SourceReport};

use super::cache::TokenCache;
use super::config::{DataConfig, Source};
use super::corpus::part::{Kind, Part};
use super::corpus::{Fit, TokenizedCorpus};
use super::formats;
use super::tokenize::Tokenizer;
use crate::error::{Error, Result};
use tokenising::FileTokens;

/// Files that the cache `auto` does not keep: they are tokenised again in about a second.
pub const SMALL_FILE_BYTES: u64 = 4 << 20;
/// Files up to this size are tokenised side by side rather than each by all threads; so many at a time.
const TINY_FILE_BYTES: u64 = 64 << 10;
const TINY_FILES: usize = 512;

/// A dataset, tokenised.
#[derive(Debug, Clone)]
pub struct Data {
    /// What to train on; never empty.
    pub train: TokenizedCorpus,
    /// What to measure on, by name: none if nothing is held out, never empty otherwise.
    pub held_out: Vec<(String, TokenizedCorpus)>,
    /// The account.
    pub report: DataReport,
}

/// Whether the hash of a document's content holds it out; `fraction` in [0, 1).
pub fn is_held_out(hash: u64, fraction: f64) -> bool {
    (hash as f64) < fraction * 2f64.powi(64)
}

/// Reads and tokenises everything that `config` names. `model` is the model's folder, for its chat template. `progress`
/// is called now and then.
///
/// # Errors
/// Unreadable files, more bad records than allowed, text without embeddings, an example that would not be trained
/// properly, nothing to train on, or nothing held out although it was asked for.
pub fn load(
    config: &DataConfig,
    tokenizer: &Tokenizer,
    model: &Path,
    progress: &mut dyn FnMut(&Progress),
) -> Result<Data> {
    let fit = Fit { sequence_length: config.sequence_length, long_examples: config.long_examples };
    let mut loader = Loader::new(config, tokenizer, model, progress)?;
    let mut train = TokenizedCorpus::new(tokenizer, fit);
    let mut held_out = Vec::new();
    let sources = config.sources();
    for source in &sources {
        let mut held = TokenizedCorpus::new(tokenizer, fit);
        train.begin_source(&source.name, source.weight);
        held.begin_source(&source.name, None);
        let report = loader.read(source, &mut |part, chosen, report| {
            let corpus = if chosen.side == Side::HeldOut { &mut held } else { &mut train };
            choose(corpus, part, chosen, source, report);
        })?;
        report.check(source, &held)?;
        loader.report.sources.push(report);
        if source.holds_out() {
            if source.max_held_out > 0 {
                held.keep_least(usize::try_from(source.max_held_out).unwrap_or(usize::MAX));
            }
            let name = if sources.len() == 1 { "held-out".to_owned() } else { format!("held-out {}", source.name) };
            held_out.push((name, held));
        }
    }
    let mut report = loader.report;
    report.sum_up();
    if train.total_rows() == 0 {
        let names: Vec<&str> = sources.iter().map(|source| source.name.as_str()).collect();
        return Err(Error::failed(format!("{}: nothing to train on ({})", names.join(", "), report.account()))
            .hint("check data.paths, data.format and what is held out"));
    }
    Ok(Data { train, held_out, report })
}

/// Fills the cache with everything that `config` names.
///
/// # Errors
/// As [`load`]; a cache that is off.
pub fn prepare(
    config: &DataConfig,
    tokenizer: &Tokenizer,
    model: &Path,
    progress: &mut dyn FnMut(&Progress),
) -> Result<DataReport> {
    let mut loader = Loader::new(config, tokenizer, model, progress)?;
    if loader.cache.folder().is_none() {
        return Err(Error::usage("data.cache is off: there is nothing to prepare")
            .hint("set data.cache to \"auto\" or to a folder"));
    }
    let fit = Fit { sequence_length: config.sequence_length, long_examples: config.long_examples };
    for source in &config.sources() {
        let report = loader.read(source, &mut |part, chosen, report| {
            choose(&mut TokenizedCorpus::new(tokenizer, fit), part, chosen, source, report);
        })?;
        loader.report.sources.push(report);
    }
    loader.report.sum_up();
    Ok(loader.report)
}

/// Which files of a source a part belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    /// Documents to train on, but for those that their content holds out.
    Train,
    /// The second look at such a file: those that their content holds out.
    HeldOut,
}

/// Which documents of a part count.
#[derive(Debug, Clone, Copy)]
struct Chosen {
    /// So many from its beginning.
    first: usize,
    /// Whether the whole file is held out.
    all_held: bool,
    /// Those of this side.
    side: Side,
}

/// Adds the chosen documents of a part to a corpus, and counts them.
fn choose(corpus: &mut TokenizedCorpus, part: &Arc<Part>, chosen: Chosen, source: &Source, report: &mut SourceReport) {
    let fit = corpus.fit();
    let Chosen { first, all_held, side } = chosen;
    let held = |part: &Part, place| all_held || is_held_out(part.content_hash(place), source.held_out_fraction);
    let wanted = |part: &Part, place: usize| place < first && held(part, place) == (side == Side::HeldOut);
    for place in (0..part.len()).filter(|&place| wanted(part, place)) {
        let (length, rows) = (part.ids(place).len(), fit.rows(part, place));
        if rows == 0 {
            report.dropped_long += u64::from(length > 1);
            continue;
        }
        *if side == Side::HeldOut { &mut report.held_out_documents } else { &mut report.documents } += 1;
        report.cut += u64::from(rows + 1 < length);
        report.split += u64::from(rows > fit.sequence_length);
        report.text_bytes += part.text_bytes(place);
        report.tokens += length as u64;
        report.text_tokens += (length - if part.kind(place) == Kind::Text { report.added_tokens } else { 0 }) as u64;
        // The first token is never predicted, and what is cut off is not trained.
        let trained = part.spans(place).map(|span| span.end.min(rows + 1).saturating_sub(span.start.max(1)));
        report.trained_tokens += trained.sum::<usize>() as u64;
    }
    corpus.add(part.clone(), &wanted);
}

/// What receives the parts of a source.
type Take<'t> = &'t mut dyn FnMut(&Arc<Part>, Chosen, &mut SourceReport);

struct Loader<'a> {
    config: &'a DataConfig,
    tokenizer: &'a Tokenizer,
    model: &'a Path,
    cache: TokenCache,
    report: DataReport,
    state: Progress,
    progress: &'a mut dyn FnMut(&Progress),
}

impl<'a> Loader<'a> {
    fn new(
        config: &'a DataConfig,
        tokenizer: &'a Tokenizer,
        model: &'a Path,
        progress: &'a mut dyn FnMut(&Progress),
    ) -> Result<Loader<'a>> {
        let mut state = Progress::default();
        for source in &config.sources() {
            for file in files(source)?.into_iter().map(|(file, _)| file) {
                state.bytes_total += std::fs::metadata(&file).map_or(0, |about| about.len());
            }
        }
        let cache = TokenCache::named(&config.cache);
        Ok(Loader { config, tokenizer, model, cache, report: DataReport::default(), state, progress })
    }

    /// Reads a source and hands out its parts.
    fn read(&mut self, source: &Source, take: Take) -> Result<SourceReport> {
        let special = self.tokenizer.special();
        let mut report = SourceReport::new(source);
        report.added_tokens = usize::from(special.bos.is_some()) + usize::from(special.eos.is_some());
        let mut left = if source.max_documents == 0 { u64::MAX } else { source.max_documents };
        let files = files(source)?;
        let mut rest = files.as_slice();
        while let Some((path, all_held)) = rest.first() {
            let all_held = *all_held;
            if left == 0 && !all_held {
                rest = &rest[1..];
                continue;
            }
            let tiny = self.tiny(rest);
            let parts = match tiny {
                0 | 1 => self.tokens(path, source, if all_held { u64::MAX } else { left }, &mut report)?,
                _ => self.tokens_of_tiny(&rest[..tiny], source, &mut report)?,
            };
            for part in parts {
                let wanted = if all_held { u64::MAX } else { left };
                let first = usize::try_from(wanted).unwrap_or(usize::MAX).min(part.len());
                if !all_held {
                    left -= first as u64;
                    take(&part, Chosen { first, all_held, side: Side::Train }, &mut report);
                }
                if all_held || source.held_out_fraction > 0.0 {
                    take(&part, Chosen { first, all_held, side: Side::HeldOut }, &mut report);
                }
            }
            let (done, further) = rest.split_at(tiny.max(1));
            self.report.files.extend(done.iter().map(|(path, _)| path.clone()));
            rest = further;
        }
        Ok(report)
    }

    /// How many of the next files are so small that each is one piece of work, and kept nowhere.
    fn tiny(&self, files: &[(PathBuf, bool)]) -> usize {
        if !matches!(self.config.cache.as_str(), "auto" | "off") {
            return 0;
        }
        let size = |path: &Path| std::fs::metadata(path).map_or(u64::MAX, |about| about.len());
        let alike = |(path, held): &&(PathBuf, bool)| *held == files[0].1 && size(path) <= TINY_FILE_BYTES;
        files.iter().take(TINY_FILES).take_while(alike).count()
    }

    /// The parts of files that are tokenised side by side.
    fn tokens_of_tiny(
        &mut self,
        files: &[(PathBuf, bool)],
        source: &Source,
        report: &mut SourceReport,
    ) -> Result<Vec<Arc<Part>>> {
        let (tokenizer, model, open) = (self.tokenizer, self.model, self.config.special_tokens_in_text);
        let read = |(path, _): &(PathBuf, bool)| {
            let mut file = FileTokens::open(path, source, (tokenizer, model), open)?;
            let mut parts = Vec::new();
            while let Some(part) = file.next_part(&mut |_, _, _| ())? {
                parts.push(part);
            }
            Ok((file.recognised(), parts))
        };
        let read: Vec<Result<(String, Vec<Part>)>> = files.par_iter().map(read).collect();
        let mut all = Vec::new();
        for ((path, _), read) in files.iter().zip(read) {
            let (what, parts) = read?;
            report.recognised(what);
            for part in parts {
                report.count(path, part.account())?;
                self.state.documents += part.len() as u64;
                self.state.tokens += part.tokens() as u64;
                all.push(self.cache.settle(part)?);
            }
            self.state.bytes_done += std::fs::metadata(path).map_or(0, |about| about.len());
            self.state.file.clone_from(path);
        }
        (self.progress)(&self.state);
        Ok(all)
    }

    /// The parts of a file, up to about `limit` documents.
    fn tokens(
        &mut self,
        path: &Path,
        source: &Source,
        limit: u64,
        report: &mut SourceReport,
    ) -> Result<Vec<Arc<Part>>> {
        let before = self.state.bytes_done;
        let size = std::fs::metadata(path).map_or(0, |about| about.len());
        let small = self.config.cache == "auto" && size < SMALL_FILE_BYTES;
        let off = self.cache.switched_off();
        let cache = if small { &off } else { &self.cache };
        let mut file =
            FileTokens::open(path, source, (self.tokenizer, self.model), self.config.special_tokens_in_text)?;
        report.recognised(file.recognised());
        let (mut entry, damage) = cache.entry(path, &file.describe())?;
        report.warnings.extend(damage);
        for part in entry.parts() {
            report.count(path, part.account())?;
        }
        report.parts_from_cache += entry.parts().len() as u64;
        let state = &mut self.state;
        state.file = path.to_owned();
        file.resume(entry.parts());
        let mut documents: u64 = entry.parts().iter().map(|part| part.len() as u64).sum();
        while !entry.is_complete() && documents < limit {
            let part = file.next_part(&mut |read, count, tokens| {
                state.bytes_done = before + read;
                (state.documents, state.tokens) = (state.documents + count, state.tokens + tokens);
                (self.progress)(state);
            })?;
            match part {
                None => entry.finish()?,
                Some(part) => {
                    report.count(path, part.account())?;
                    documents += part.len() as u64;
                    entry.add(part)?;
                }
            }
        }
        state.bytes_done = before + size;
        (self.progress)(state);
        Ok(entry.parts().to_vec())
    }
}

/// The files of a source with whether they are held out: those to train on first, none twice.
fn files(source: &Source) -> Result<Vec<(PathBuf, bool)>> {
    let held = formats::find_files(&source.held_out_files)?;
    let identity = |file: &PathBuf| file.canonicalize().unwrap_or_else(|_| file.clone());
    let identities: HashSet<PathBuf> = held.iter().map(identity).collect();
    let train = formats::find_files(&source.paths)?.into_iter().filter(|file| !identities.contains(&identity(file)));
    Ok(train.map(|file| (file, false)).chain(held.into_iter().map(|file| (file, true))).collect())
}

#[cfg(test)]
mod tests;
