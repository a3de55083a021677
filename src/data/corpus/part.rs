//! Some documents as tokens, in one block of memory: made once, then read from memory or mapped from a cache file.
//!
//! ```text
//! magic 8 | blake3 of all that follows 32 | documents u64 | tokens u64 | spans u64 | bytes of the account u64
//! hash u64 × documents        content, for the choice of held-out documents
//! length sums u64 × (tokens / 512 + 1)   Σ text bytes of tokens before every 512th
//! token ends u32 × documents | span ends u32 × documents | text bytes u32 × documents | lines u32 × documents
//! spans (start, end) u32 × 2 × spans     trained tokens, by place in their document
//! ids u32 × tokens
//! kinds u8 × documents | account (JSON) | zeros up to a multiple of 8
//! ```
//!
//! All little-endian. Invariant: an open part has the sizes that its header states, ends ascend, spans lie in their
//! documents, and its hash was right when it was opened.

use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::path::Path;

use memmap2::{Mmap, UncheckedAdvice};
use serde::{Deserialize, Serialize};

use crate::data::tokenize::bytes::TokenBytes;
use crate::error::{Error, Result};

/// First bytes of a part; the last one is the version.
const MAGIC: [u8; 8] = *b"llmtok\0\x01";
/// Where the hashed content begins.
const HASHED: usize = 40;
/// Where the sections begin.
const SECTIONS: usize = 72;
/// Token lengths are summed up at every so many ids, so that any stretch costs little.
pub const SUM_EVERY: usize = 512;

/// What a document is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Raw text between BOS and EOS (where the tokenizer has them).
    Text,
    /// An example whose trained tokens are its answers.
    Example,
    /// An example that is trained as a whole.
    Whole,
}

impl Kind {
    fn of(byte: u8) -> Kind {
        match byte {
            0 => Kind::Text,
            1 => Kind::Example,
            _ => Kind::Whole,
        }
    }
}

/// A document as it is added to a part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenizedDocument {
    /// All ids, BOS and EOS with them.
    pub ids: Vec<u32>,
    /// Trained stretches, ascending.
    pub spans: Vec<Range<usize>>,
    /// What it is.
    pub kind: Kind,
    /// UTF-8 bytes of its text.
    pub text_bytes: u64,
    /// First eight bytes of the blake3 of its content.
    pub hash: u64,
    /// Line in its file.
    pub line: u64,
}

/// What happened to the records behind a part.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// Records read, good and bad.
    pub records: u64,
    /// Line and reason of each that could not be used (the first [`SHOWN_BAD`]).
    pub bad: Vec<(u64, String)>,
    /// How many could not be used.
    pub bad_count: u64,
    /// Documents that gave no token.
    pub without_tokens: u64,
    /// Documents whose text names control tokens.
    pub naming_controls: u64,
    /// Examples that must stop the run: line and reason.
    pub faults: Vec<(u64, String)>,
}

/// Bad records of a part that are kept with their reason.
pub const SHOWN_BAD: usize = 20;

enum Store {
    Memory(Vec<u64>),
    Mapped(Mmap),
}

/// Documents as tokens.
pub struct Part {
    store: Store,
    documents: usize,
    tokens: usize,
    spans: usize,
    account: Account,
}

/// Sizes and places of the sections, in bytes from the start.
struct Layout {
    hashes: usize,
    sums: usize,
    token_ends: usize,
    span_ends: usize,
    text_bytes: usize,
    lines: usize,
    spans: usize,
    ids: usize,
    kinds: usize,
    account: usize,
}

impl Layout {
    fn new(documents: usize, tokens: usize, spans: usize) -> Layout {
        let hashes = SECTIONS;
        let sums = hashes + 8 * documents;
        let token_ends = sums + 8 * (tokens / SUM_EVERY + 1);
        let span_ends = token_ends + 4 * documents;
        let text_bytes = span_ends + 4 * documents;
        let lines = text_bytes + 4 * documents;
        let spans_at = lines + 4 * documents;
        let ids = spans_at + 8 * spans;
        let kinds = ids + 4 * tokens;
        let account = kinds + documents;
        Layout { hashes, sums, token_ends, span_ends, text_bytes, lines, spans: spans_at, ids, kinds, account }
    }
}

/// A part under construction.
#[derive(Default)]
pub struct PartBuilder {
    hashes: Vec<u64>,
    sums: Vec<u64>,
    token_ends: Vec<u32>,
    span_ends: Vec<u32>,
    text_bytes: Vec<u32>,
    lines: Vec<u32>,
    spans: Vec<u32>,
    ids: Vec<u32>,
    kinds: Vec<u8>,
    running: u64,
    /// What happened to the records.
    pub account: Account,
}

impl PartBuilder {
    /// Adds a document. `token_bytes` are the lengths of the tokenizer that made it.
    pub fn push(&mut self, document: &TokenizedDocument, token_bytes: &TokenBytes) {
        if self.sums.is_empty() {
            self.sums.push(0);
        }
        for &id in &document.ids {
            self.running += token_bytes.length(id);
            self.ids.push(id);
            if self.ids.len().is_multiple_of(SUM_EVERY) {
                self.sums.push(self.running);
            }
        }
        for span in &document.spans {
            self.spans.extend([span.start as u32, span.end as u32]);
        }
        self.hashes.push(document.hash);
        self.token_ends.push(self.ids.len() as u32);
        self.span_ends.push((self.spans.len() / 2) as u32);
        self.text_bytes.push(u32::try_from(document.text_bytes).unwrap_or(u32::MAX));
        self.lines.push(u32::try_from(document.line).unwrap_or(u32::MAX));
        self.kinds.push(match document.kind {
            Kind::Text => 0,
            Kind::Example => 1,
            Kind::Whole => 2,
        });
    }

    /// Number of documents so far.
    pub fn len(&self) -> usize {
        self.kinds.len()
    }

    /// Whether there is none so far.
    pub fn is_empty(&self) -> bool {
        self.kinds.is_empty()
    }

    /// Number of tokens so far.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// The finished part, in memory.
    pub fn finish(mut self) -> Part {
        if self.sums.is_empty() {
            self.sums.push(0);
        }
        // A text of strings and numbers always serialises.
        let account = serde_json::to_vec(&self.account).unwrap_or_default();
        let (documents, tokens, spans) = (self.kinds.len(), self.ids.len(), self.spans.len() / 2);
        let layout = Layout::new(documents, tokens, spans);
        let end = layout.account + account.len();
        let mut words = vec![0u64; end.div_ceil(8)];
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut words);
        let mut put = |place: usize, content: &[u8]| bytes[place..place + content.len()].copy_from_slice(content);
        put(0, &MAGIC);
        let sizes = [documents, tokens, spans, account.len()];
        sizes.iter().enumerate().for_each(|(i, size)| put(HASHED + 8 * i, &(*size as u64).to_le_bytes()));
        put(layout.hashes, bytemuck::cast_slice(&self.hashes));
        put(layout.sums, bytemuck::cast_slice(&self.sums));
        put(layout.token_ends, bytemuck::cast_slice(&self.token_ends));
        put(layout.span_ends, bytemuck::cast_slice(&self.span_ends));
        put(layout.text_bytes, bytemuck::cast_slice(&self.text_bytes));
        put(layout.lines, bytemuck::cast_slice(&self.lines));
        put(layout.spans, bytemuck::cast_slice(&self.spans));
        put(layout.ids, bytemuck::cast_slice(&self.ids));
        put(layout.kinds, &self.kinds);
        put(layout.account, &account);
        let hash = blake3::hash(&bytes[HASHED..]);
        bytes[8..HASHED].copy_from_slice(hash.as_bytes());
        Part { store: Store::Memory(words), documents, tokens, spans, account: self.account }
    }
}

impl Part {
    /// Maps a part that was written to a file.
    ///
    /// # Errors
    /// A file that is no part, or whose content is not what was written.
    pub fn open(path: &Path) -> Result<Part> {
        let file = File::open(path).map_err(|error| Error::io(path, "open", error))?;
        Part::map(&file, path)
    }

    /// The same part in a file of `folder` that has no name, and is gone when the part is.
    ///
    /// # Errors
    /// What the file system refuses.
    pub fn spill(self, folder: &Path) -> Result<Part> {
        let failed = |error| {
            Error::io(folder, "keep tokens in a file in", error)
                .hint("let TMPDIR name a folder with space, or data.cache one to keep them in")
        };
        let mut file = tempfile::tempfile_in(folder).map_err(failed)?;
        file.write_all(self.bytes()).map_err(failed)?;
        drop(self);
        Part::map(&file, folder)
    }

    fn map(file: &File, path: &Path) -> Result<Part> {
        // SAFETY: cache files are written under another name, renamed when complete and never changed in place; a file
        // that somebody cuts short while it is mapped ends the process with SIGBUS, as it does any program that maps it.
        let map = unsafe { Mmap::map(file) }.map_err(|error| Error::io(path, "map", error))?;
        let part = Part::of_store(Store::Mapped(map));
        let part = part.map_err(|what| Error::file(path, format_args!("damaged tokens: {what}")))?;
        part.release();
        Ok(part)
    }

    /// Takes the pages of a mapped part out of this process's memory; each comes back from the file when it is read.
    fn release(&self) {
        if let Store::Mapped(map) = &self.store {
            // SAFETY: the map is read-only and shared: a page holds what the file holds, before as after.
            let _ = unsafe { map.unchecked_advise(UncheckedAdvice::DontNeed) };
        }
    }

    fn of_store(store: Store) -> Result<Part, &'static str> {
        let mut part = Part { store, documents: 0, tokens: 0, spans: 0, account: Account::default() };
        let bytes = part.bytes();
        if bytes.len() < SECTIONS || bytes[..8] != MAGIC {
            return Err("not a part of a token cache of this version");
        }
        if blake3::hash(&bytes[HASHED..]).as_bytes() != &bytes[8..HASHED] {
            return Err("its hash is not that of its content");
        }
        let size = |place: usize| {
            let number = bytes[place..place + 8].try_into().map_or(u64::MAX, u64::from_le_bytes);
            usize::try_from(number).ok().filter(|size| *size <= bytes.len())
        };
        let sizes = [size(HASHED), size(HASHED + 8), size(HASHED + 16), size(HASHED + 24)];
        let [Some(documents), Some(tokens), Some(spans), Some(account)] = sizes else { return Err("impossible sizes") };
        let layout = Layout::new(documents, tokens, spans);
        if (layout.account + account).div_ceil(8) * 8 != bytes.len() {
            return Err("sizes that do not add up");
        }
        let account = serde_json::from_slice(&bytes[layout.account..layout.account + account]);
        let account = account.map_err(|_| "its account is no JSON")?;
        (part.documents, part.tokens, part.spans, part.account) = (documents, tokens, spans, account);
        match part.is_sound() {
            true => Ok(part),
            false => Err("documents or spans out of order"),
        }
    }

    fn is_sound(&self) -> bool {
        let layout = self.layout();
        let (ends, spans) = (self.u32s(layout.token_ends, self.documents), self.u32s(layout.span_ends, self.documents));
        let complete = ends.last().is_none_or(|end| *end as usize == self.tokens)
            && spans.last().is_none_or(|end| *end as usize == self.spans);
        complete
            && ends.is_sorted()
            && spans.is_sorted()
            && (0..self.documents).all(|document| {
                let length = self.ids(document).len();
                let mut before = 0;
                self.spans(document).all(|span| {
                    let right = before <= span.start && span.start <= span.end && span.end <= length;
                    before = span.end;
                    right
                })
            })
    }

    /// The whole part as it is written to a file.
    pub fn bytes(&self) -> &[u8] {
        match &self.store {
            Store::Memory(words) => bytemuck::cast_slice(words),
            Store::Mapped(map) => map,
        }
    }

    /// Whether it lies in a file.
    pub fn is_mapped(&self) -> bool {
        matches!(self.store, Store::Mapped(_))
    }

    /// blake3 of the content.
    pub fn hash(&self) -> &[u8] {
        &self.bytes()[8..HASHED]
    }

    fn layout(&self) -> Layout {
        Layout::new(self.documents, self.tokens, self.spans)
    }

    /// Sections are aligned: the block begins at a multiple of 8 (maps at a page), and so does each section of u64.
    fn u32s(&self, place: usize, count: usize) -> &[u32] {
        bytemuck::cast_slice(&self.bytes()[place..place + 4 * count])
    }

    fn u64s(&self, place: usize, count: usize) -> &[u64] {
        bytemuck::cast_slice(&self.bytes()[place..place + 8 * count])
    }

    /// Number of documents.
    pub fn len(&self) -> usize {
        self.documents
    }

    /// Whether there is no document.
    pub fn is_empty(&self) -> bool {
        self.documents == 0
    }

    /// Tokens of all documents.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// What happened to the records.
    pub fn account(&self) -> &Account {
        &self.account
    }

    fn stretch(ends: &[u32], document: usize) -> Range<usize> {
        let start = if document == 0 { 0 } else { ends[document - 1] as usize };
        start..ends[document] as usize
    }

    fn token_range(&self, document: usize) -> Range<usize> {
        Part::stretch(self.u32s(self.layout().token_ends, self.documents), document)
    }

    /// All ids of a document.
    pub fn ids(&self, document: usize) -> &[u32] {
        let all = self.u32s(self.layout().ids, self.tokens);
        &all[self.token_range(document)]
    }

    /// Trained stretches of a document, ascending.
    pub fn spans(&self, document: usize) -> impl DoubleEndedIterator<Item = Range<usize>> + '_ {
        let layout = self.layout();
        let stretch = Part::stretch(self.u32s(layout.span_ends, self.documents), document);
        let spans = &self.u32s(layout.spans, 2 * self.spans)[2 * stretch.start..2 * stretch.end];
        spans.chunks_exact(2).map(|span| span[0] as usize..span[1] as usize)
    }

    /// What a document is.
    pub fn kind(&self, document: usize) -> Kind {
        Kind::of(self.bytes()[self.layout().kinds + document])
    }

    /// Line of a document in its file.
    pub fn line(&self, document: usize) -> u64 {
        self.u32s(self.layout().lines, self.documents)[document].into()
    }

    /// UTF-8 bytes of a document's text.
    pub fn text_bytes(&self, document: usize) -> u64 {
        self.u32s(self.layout().text_bytes, self.documents)[document].into()
    }

    /// First bytes of the hash of a document's content.
    pub fn content_hash(&self, document: usize) -> u64 {
        self.u64s(self.layout().hashes, self.documents)[document]
    }

    /// Sum of the lengths of the first `count` tokens of a document.
    pub fn bytes_before(&self, document: usize, count: usize, token_bytes: &TokenBytes) -> u64 {
        let range = self.token_range(document);
        self.sum_before(range.start + count, token_bytes) - self.sum_before(range.start, token_bytes)
    }

    fn sum_before(&self, place: usize, token_bytes: &TokenBytes) -> u64 {
        let layout = self.layout();
        let block = place / SUM_EVERY;
        let sum = self.u64s(layout.sums, self.tokens / SUM_EVERY + 1)[block];
        sum + token_bytes.sum(&self.u32s(layout.ids, self.tokens)[block * SUM_EVERY..place])
    }
}

#[cfg(test)]
#[path = "part_tests.rs"]
mod tests;
