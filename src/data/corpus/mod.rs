//! A dataset as tokens.
//!
//! A document of raw text is `[BOS] text ids [EOS]`, BOS and EOS where the tokenizer has them, and all of it but BOS is
//! trained; what is trained of an example is for its template to say. Row `t` of a document feeds token `t` and predicts
//! token `t + 1`, so a document of n tokens has n − 1 rows and each token but the first is predicted exactly once.
//! Without a BOS the first token is never predicted, and its bytes do not count in bits per byte.
//!
//! A corpus is a choice of documents from [`Part`]s, which may lie in memory or in cache files. How much of a long
//! example is kept is decided here ([`Fit`]), so that one cache serves any window.

pub mod part;

use std::ops::Range;
use std::sync::Arc;

use super::config::LongExamples;
use super::tokenize::bytes::{DocumentBytes, TokenBytes};
use super::tokenize::Tokenizer;
use part::{Kind, Part, PartBuilder, TokenizedDocument};

/// Which documents are kept, and how much of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fit {
    /// Most rows of a window.
    pub sequence_length: usize,
    /// What happens to longer examples.
    pub long_examples: LongExamples,
}

impl Fit {
    /// Everything is kept.
    pub const ALL: Fit = Fit { sequence_length: usize::MAX, long_examples: LongExamples::Split };

    /// Rows of a document that are kept; 0 for none of it.
    pub fn rows(&self, part: &Part, document: usize) -> usize {
        let rows = part.ids(document).len().saturating_sub(1);
        if rows <= self.sequence_length || part.kind(document) != Kind::Example {
            return rows;
        }
        match self.long_examples {
            LongExamples::Split => rows,
            LongExamples::Drop => 0,
            // A span ends with the token that ends a turn: the last one that fits ends what is kept.
            LongExamples::Cut => {
                let fits = part.spans(document).rev().find(|span| span.end <= self.sequence_length + 1);
                fits.map_or(0, |span| span.end - 1)
            }
        }
    }
}

/// Documents of one source, side by side in a corpus.
#[derive(Debug, Clone, PartialEq)]
pub struct CorpusSource {
    /// Its name.
    pub name: String,
    /// Share of the tokens of an epoch, relative to the others; none: every document once.
    pub weight: Option<f64>,
    /// Its documents.
    pub documents: Range<usize>,
}

/// Documents as tokens.
#[derive(Clone)]
pub struct TokenizedCorpus {
    parts: Vec<Arc<Part>>,
    /// Part `p` holds the documents numbered `starts[p]..starts[p + 1]`.
    starts: Vec<u32>,
    /// Numbers of the documents chosen.
    chosen: Vec<u32>,
    sources: Vec<CorpusSource>,
    fit: Fit,
    token_bytes: TokenBytes,
    has_bos: bool,
    has_eos: bool,
}

impl std::fmt::Debug for TokenizedCorpus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenizedCorpus").field("documents", &self.len()).finish_non_exhaustive()
    }
}

impl TokenizedCorpus {
    /// An empty corpus for the tokens of `tokenizer`.
    pub fn new(tokenizer: &Tokenizer, fit: Fit) -> TokenizedCorpus {
        TokenizedCorpus {
            parts: Vec::new(),
            starts: vec![0],
            chosen: Vec::new(),
            sources: Vec::new(),
            fit,
            token_bytes: tokenizer.token_bytes().clone(),
            has_bos: tokenizer.special().bos.is_some(),
            has_eos: tokenizer.special().eos.is_some(),
        }
    }

    /// A corpus of documents in memory.
    pub fn of_documents(tokenizer: &Tokenizer, fit: Fit, documents: &[TokenizedDocument]) -> TokenizedCorpus {
        let mut corpus = TokenizedCorpus::new(tokenizer, fit);
        let mut part = PartBuilder::default();
        documents.iter().for_each(|document| part.push(document, &corpus.token_bytes));
        corpus.begin_source("", None);
        corpus.add(Arc::new(part.finish()), &|_, _| true);
        corpus
    }

    /// Begins a source: parts added from now on are its.
    pub fn begin_source(&mut self, name: &str, weight: Option<f64>) {
        let documents = self.len()..self.len();
        self.sources.push(CorpusSource { name: name.to_owned(), weight, documents });
    }

    /// Adds those documents of a part that `wanted` names and of which something is kept.
    pub fn add(&mut self, part: Arc<Part>, wanted: &dyn Fn(&Part, usize) -> bool) {
        let first = self.starts.last().copied().unwrap_or(0);
        let kept = (0..part.len()).filter(|&place| wanted(&part, place) && self.fit.rows(&part, place) > 0);
        self.chosen.extend(kept.map(|place| first + place as u32));
        self.starts.push(first + part.len() as u32);
        self.parts.push(part);
        let end = self.chosen.len();
        if let Some(source) = self.sources.last_mut() {
            source.documents.end = end;
        }
    }

    /// Keeps so many documents of a corpus of one source: those whose content has the least hashes, in their order. Which
    /// these are does not depend on the order of the files.
    pub fn keep_least(&mut self, count: usize) {
        if count >= self.len() {
            return;
        }
        let hash = |document: usize| {
            let (part, place) = self.place(document);
            part.content_hash(place)
        };
        let mut order: Vec<(u64, u32)> =
            (0..self.len()).map(|document| (hash(document), self.chosen[document])).collect();
        order.sort_unstable();
        self.chosen = order[..count].iter().map(|(_, number)| *number).collect();
        self.chosen.sort_unstable();
        if let Some(source) = self.sources.last_mut() {
            source.documents.end = self.chosen.len();
        }
    }

    /// Number of documents.
    pub fn len(&self) -> usize {
        self.chosen.len()
    }

    /// Whether there is no document.
    pub fn is_empty(&self) -> bool {
        self.chosen.is_empty()
    }

    /// The sources, in order.
    pub fn sources(&self) -> &[CorpusSource] {
        &self.sources
    }

    /// What is kept of documents.
    pub fn fit(&self) -> Fit {
        self.fit
    }

    /// Part and place of a document.
    pub fn place(&self, document: usize) -> (&Part, usize) {
        let number = self.chosen[document];
        let part = self.starts.partition_point(|&start| start <= number) - 1;
        (&self.parts[part], (number - self.starts[part]) as usize)
    }

    /// All ids of a document, also those beyond what is kept.
    pub fn ids(&self, document: usize) -> &[u32] {
        let (part, place) = self.place(document);
        part.ids(place)
    }

    /// Ids of a document of raw text without BOS and EOS.
    pub fn text_ids(&self, document: usize) -> &[u32] {
        let ids = self.ids(document);
        let (first, last) = (usize::from(self.has_bos), usize::from(self.has_eos));
        ids.get(first..ids.len() - last).unwrap_or_default()
    }

    /// Trained stretches of a document.
    pub fn spans(&self, document: usize) -> Vec<Range<usize>> {
        let (part, place) = self.place(document);
        part.spans(place).collect()
    }

    /// Text tokens of all documents: BOS and EOS of raw text are left out.
    pub fn text_tokens(&self) -> usize {
        let added = usize::from(self.has_bos) + usize::from(self.has_eos);
        let count = |document| {
            let (part, place) = self.place(document);
            let ids = part.ids(place).len();
            if part.kind(place) == Kind::Text {
                ids - added
            } else {
                ids
            }
        };
        (0..self.len()).map(count).sum()
    }

    /// UTF-8 bytes of all documents.
    pub fn text_bytes(&self) -> u64 {
        let bytes = |document| {
            let (part, place) = self.place(document);
            part.text_bytes(place)
        };
        (0..self.len()).map(bytes).sum()
    }

    /// Rows of all documents: what one pass over everything sees.
    pub fn total_rows(&self) -> usize {
        (0..self.len()).map(|document| self.rows(document)).sum()
    }

    /// Trained tokens among what is kept of all documents.
    pub fn trained_tokens(&self) -> usize {
        let all = |document| self.trained_rows(document, 0..self.rows(document));
        (0..self.len()).map(all).sum()
    }

    /// Rows of a document that are kept.
    pub fn rows(&self, document: usize) -> usize {
        let (part, place) = self.place(document);
        self.fit.rows(part, place)
    }

    /// How many of some rows of a document predict a trained token.
    pub fn trained_rows(&self, document: usize, rows: Range<usize>) -> usize {
        let (part, place) = self.place(document);
        let predicted = rows.start + 1..rows.end + 1;
        part.spans(place).map(|span| span.end.min(predicted.end).saturating_sub(span.start.max(predicted.start))).sum()
    }

    /// Whether token `place` of a document is text, as bits per byte count it: neither BOS nor EOS.
    pub(super) fn is_text(&self, kind: Kind, id: u32, place: usize, length: usize) -> bool {
        match kind {
            Kind::Text => !(self.has_bos && place == 0 || self.has_eos && place + 1 == length),
            Kind::Example | Kind::Whole => self.token_bytes.length(id) > 0,
        }
    }

    /// UTF-8 bytes of the trained text among `tokens` of a document.
    pub fn bytes_of(&self, document: usize, tokens: Range<usize>) -> u64 {
        let (part, place) = self.place(document);
        if part.kind(place) != Kind::Text {
            let within = |span: Range<usize>| span.start.max(tokens.start)..span.end.min(tokens.end);
            let ids = part.ids(place);
            return part
                .spans(place)
                .filter_map(|span| ids.get(within(span)))
                .map(|ids| self.token_bytes.sum(ids))
                .sum();
        }
        let before = |count: usize| part.bytes_before(place, count, &self.token_bytes);
        let account = DocumentBytes { text: part.text_bytes(place), tokens: before(part.ids(place).len()) };
        account.before(before(tokens.end)) - account.before(before(tokens.start))
    }

    /// blake3 of everything that decides which tokens are trained: equal corpora make equal batches.
    pub fn fingerprint(&self) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        for part in &self.parts {
            hasher.update(part.hash());
        }
        for chosen in self.chosen.chunks(1 << 14) {
            hasher.update(&chosen.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<u8>>());
        }
        for source in &self.sources {
            hasher.update(&source.weight.map_or(u64::MAX, f64::to_bits).to_le_bytes());
            hasher.update(&(source.documents.end as u64).to_le_bytes());
        }
        hasher.update(&(self.fit.sequence_length as u64).to_le_bytes()).update(&[self.fit.long_examples as u8]);
        hasher.finalize()
    }
}
