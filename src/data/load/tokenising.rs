//! One file on its way to tokens: read by one thread, tokenised by all, gathered into parts.
//!
//! Invariant: where a part ends depends on the file's content alone, so that a part made after an interruption is the
//! same, byte for byte, as without.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{sync_channel, Receiver};
use std::sync::Arc;

use rayon::prelude::*;

use crate::data::config::Source;
use crate::data::corpus::part::{Account, Part, PartBuilder, SHOWN_BAD};
use crate::data::examples::{Examples, Outcome};
use crate::data::formats::{self, Entries, Entry, Recognised, Record};
use crate::data::tokenize::Tokenizer;
use crate::error::{Error, Result};

/// Content tokenised at a time: enough for all threads, little beside a part.
const BATCH_BYTES: usize = 2 << 20;
const BATCH_RECORDS: usize = 2048;
/// Batches that the reading thread may be ahead.
const AHEAD: usize = 2;
/// A part ends with the batch in which it reaches one of these.
const PART_BYTES: usize = 16 << 20;
const PART_RECORDS: u64 = 1 << 16;

/// A file that is being tokenised.
pub struct FileTokens<'a> {
    path: PathBuf,
    tokenizer: &'a Tokenizer,
    examples: Examples<'a>,
    recognised: Recognised,
    /// The records, until the reading thread starts.
    entries: Option<Entries>,
    read: Arc<AtomicU64>,
    batches: Option<Receiver<Result<Vec<Entry>>>>,
    /// Records that parts made earlier hold.
    done: u64,
}

impl<'a> FileTokens<'a> {
    /// Opens a file of a source and finds out what it is.
    ///
    /// # Errors
    /// As [`Entries::open`] and [`Examples::new`].
    pub fn open(
        path: &Path,
        source: &Source,
        (tokenizer, model): (&'a Tokenizer, &Path),
        open_content: bool,
    ) -> Result<FileTokens<'a>> {
        let opened = formats::source::open(path)?;
        let read = opened.read.clone();
        let entries = Entries::of(opened, formats::by_name(&source.format)?)?;
        let recognised = entries.recognised;
        let examples = Examples::new(source, recognised, (tokenizer, model), open_content)?;
        let path = path.to_owned();
        Ok(FileTokens { path, tokenizer, examples, recognised, entries: Some(entries), read, batches: None, done: 0 })
    }

    /// What the file was found to be, with the template that writes it.
    pub fn recognised(&self) -> String {
        let Recognised { summary, container, .. } = self.recognised;
        match self.examples.template() {
            None => format!("{summary} ({container})"),
            Some(template) => format!("{summary} ({container}), template {}", template.name()),
        }
    }

    /// Everything beside the file's content that decides the tokens.
    pub fn describe(&self) -> String {
        format!("{} {} {}", self.recognised.format, self.recognised.container, self.examples.describe())
    }

    /// Passes over what `parts` hold already.
    pub fn resume(&mut self, parts: &[Arc<Part>]) {
        self.done = parts.iter().map(|part| part.account().records).sum();
    }

    /// The next part; none at the end of the file. `progress` is told the bytes read so far, and the documents and
    /// tokens made since the last time.
    ///
    /// # Errors
    /// The file cannot be read further.
    pub fn next_part(&mut self, progress: &mut dyn FnMut(u64, u64, u64)) -> Result<Option<Part>> {
        let mut part = PartBuilder::default();
        let mut bytes = 0;
        while bytes < PART_BYTES && part.account.records < PART_RECORDS {
            let Some(batch) = self.next_batch()? else { break };
            let (documents, tokens) = (part.len(), part.tokens());
            bytes += batch.iter().map(size).sum::<usize>();
            self.add(&mut part, &batch);
            let (documents, tokens) = (part.len() - documents, part.tokens() - tokens);
            progress(self.read.load(Ordering::Relaxed), documents as u64, tokens as u64);
        }
        Ok((part.account.records > 0).then(|| part.finish()))
    }

    fn add(&self, part: &mut PartBuilder, batch: &[Entry]) {
        let examples = &self.examples;
        let make = |entry: &Entry| match &entry.content {
            Err(reason) => (Outcome::Bad(reason.clone()), false),
            Ok(record) => (examples.make(record, entry.line), examples.names_controls(record)),
        };
        let outcomes: Vec<(Outcome, bool)> = batch.par_iter().map(make).collect();
        for (entry, (outcome, names_controls)) in batch.iter().zip(outcomes) {
            let account = &mut part.account;
            account.records += 1;
            match outcome {
                Outcome::Made(document) => {
                    account.naming_controls += u64::from(names_controls);
                    part.push(&document, self.tokenizer.token_bytes());
                }
                Outcome::Empty => account.without_tokens += 1,
                Outcome::Bad(reason) => note_bad(account, entry.line, reason),
                Outcome::Fault(reason) => account.faults.push((entry.line, reason)),
            }
        }
    }

    fn next_batch(&mut self) -> Result<Option<Vec<Entry>>> {
        if let Some(entries) = self.entries.take() {
            let (sender, receiver) = sync_channel(AHEAD);
            let done = self.done;
            let read = move || {
                let mut entries = entries;
                for _ in 0..done {
                    match entries.next() {
                        Some(Ok(_)) => {}
                        Some(Err(error)) => return drop(sender.send(Err(error))),
                        None => return,
                    }
                }
                while let Some(batch) = batch(&mut entries) {
                    let last = batch.is_err();
                    // Nobody listens any more when enough documents were read.
                    if sender.send(batch).is_err() || last {
                        return;
                    }
                }
            };
            let thread = std::thread::Builder::new().name("data".into());
            thread.spawn(read).map_err(|error| Error::io(&self.path, "start a thread to read", error))?;
            self.batches = Some(receiver);
        }
        self.batches.as_ref().and_then(|batches| batches.recv().ok()).transpose()
    }
}

fn note_bad(account: &mut Account, line: u64, reason: String) {
    account.bad_count += 1;
    if account.bad.len() < SHOWN_BAD {
        account.bad.push((line, reason));
    }
}

/// The next records; none at the end.
fn batch(entries: &mut Entries) -> Option<Result<Vec<Entry>>> {
    let (mut batch, mut bytes) = (Vec::new(), 0);
    while bytes < BATCH_BYTES && batch.len() < BATCH_RECORDS {
        match entries.next() {
            None => break,
            Some(Err(error)) => return Some(Err(error)),
            Some(Ok(entry)) => {
                bytes += size(&entry);
                batch.push(entry);
            }
        }
    }
    (!batch.is_empty()).then_some(Ok(batch))
}

/// Bytes of a record's content.
fn size(entry: &Entry) -> usize {
    match &entry.content {
        Err(_) => 0,
        Ok(Record::Text(text)) => text.len(),
        Ok(Record::Conversation(conversation)) => {
            conversation.messages.iter().map(|message| message.content.len()).sum()
        }
        Ok(Record::Instruction(task)) => task.instruction.len() + task.input.len() + task.response.len(),
        Ok(Record::Preference(pair)) => pair.chosen.len() + pair.rejected.len(),
    }
}
