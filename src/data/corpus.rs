//! A dataset as tokens in memory.
//!
//! A document is `[BOS] text ids [EOS]`, BOS and EOS where the tokenizer has them; only the text ids are stored. Row `t`
//! of a document feeds token `t` and predicts token `t + 1`, so a document of n tokens has n − 1 rows and each token
//! but the first is predicted exactly once. Without a BOS the first text token is never predicted, and its bytes do not
//! count in bits per byte.

use std::ops::Range;

use super::tokenize::bytes::{DocumentBytes, TokenBytes};
use super::tokenize::Tokenizer;

/// Token lengths are summed up at every so many ids, so that any stretch costs little.
const SUM_EVERY: usize = 512;

/// Documents as tokens.
#[derive(Debug, Clone)]
pub struct TokenizedCorpus {
    /// Text ids of all documents.
    ids: Vec<u32>,
    /// Document `d` holds `ids[ends[d - 1]..ends[d]]`.
    ends: Vec<usize>,
    /// UTF-8 bytes of each document's text.
    text_bytes: Vec<u64>,
    /// Sum of token lengths of `ids[..k * SUM_EVERY]`.
    sums: Vec<u64>,
    running: u64,
    token_bytes: TokenBytes,
    bos: Option<u32>,
    eos: Option<u32>,
}

impl TokenizedCorpus {
    /// An empty corpus for the tokens of `tokenizer`.
    pub fn new(tokenizer: &Tokenizer) -> TokenizedCorpus {
        TokenizedCorpus {
            ids: Vec::new(),
            ends: Vec::new(),
            text_bytes: Vec::new(),
            sums: vec![0],
            running: 0,
            token_bytes: tokenizer.token_bytes().clone(),
            bos: tokenizer.special().bos.as_ref().map(|token| token.id),
            eos: tokenizer.special().eos.as_ref().map(|token| token.id),
        }
    }

    /// Adds a document: its text ids and the UTF-8 bytes of its text.
    pub fn push(&mut self, ids: &[u32], text_bytes: u64) {
        for &id in ids {
            self.running += self.token_bytes.sum(&[id]);
            self.ids.push(id);
            if self.ids.len().is_multiple_of(SUM_EVERY) {
                self.sums.push(self.running);
            }
        }
        self.ends.push(self.ids.len());
        self.text_bytes.push(text_bytes);
    }

    /// Number of documents.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is no document.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Text tokens of all documents.
    pub fn text_tokens(&self) -> usize {
        self.ids.len()
    }

    /// UTF-8 bytes of all documents.
    pub fn text_bytes(&self) -> u64 {
        self.text_bytes.iter().sum()
    }

    /// Predictions of all documents: what one epoch trains on.
    pub fn total_rows(&self) -> usize {
        (0..self.len()).map(|document| self.rows(document)).sum()
    }

    /// Predictions of a document: its tokens with BOS and EOS, less one.
    pub fn rows(&self, document: usize) -> usize {
        self.tokens(document).saturating_sub(1)
    }

    /// Text ids of a document.
    pub fn text_ids(&self, document: usize) -> &[u32] {
        &self.ids[self.span(document)]
    }

    fn span(&self, document: usize) -> Range<usize> {
        let start = if document == 0 { 0 } else { self.ends[document - 1] };
        start..self.ends[document]
    }

    /// Tokens of a document with BOS and EOS.
    fn tokens(&self, document: usize) -> usize {
        self.span(document).len() + usize::from(self.bos.is_some()) + usize::from(self.eos.is_some())
    }

    /// Token `position` of a document (BOS first, EOS last), and whether it is text.
    pub fn token(&self, document: usize, position: usize) -> (u32, bool) {
        let text = self.text_ids(document);
        let position = match self.bos {
            Some(bos) if position == 0 => return (bos, false),
            Some(_) => position - 1,
            None => position,
        };
        match (text.get(position), self.eos) {
            (Some(&id), _) => (id, true),
            (None, Some(eos)) => (eos, false),
            (None, None) => panic!("a position beyond the document"),
        }
    }

    /// UTF-8 bytes of the text tokens among positions `tokens` of a document (positions as in
    /// [`TokenizedCorpus::token`]).
    pub fn bytes_of(&self, document: usize, tokens: Range<usize>) -> u64 {
        let span = self.span(document);
        let place = |position: usize| {
            let text = position.saturating_sub(usize::from(self.bos.is_some()));
            self.sum_before((span.start + text).min(span.end)) - self.sum_before(span.start)
        };
        let account = DocumentBytes {
            text: self.text_bytes[document],
            tokens: self.sum_before(span.end) - self.sum_before(span.start),
        };
        account.before(place(tokens.end)) - account.before(place(tokens.start))
    }

    /// Sum of token lengths of `ids[..place]`.
    fn sum_before(&self, place: usize) -> u64 {
        let block = place / SUM_EVERY;
        self.sums[block] + self.token_bytes.sum(&self.ids[block * SUM_EVERY..place])
    }

    /// blake3 of tokens and document borders: equal corpora make equal batches.
    pub fn fingerprint(&self) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        let number = |value: Option<u32>| value.map_or(u64::MAX, u64::from).to_le_bytes();
        hasher.update(&number(self.bos)).update(&number(self.eos));
        for ids in self.ids.chunks(1 << 14) {
            hasher.update(&ids.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<u8>>());
        }
        for ends in self.ends.chunks(1 << 13) {
            hasher.update(&ends.iter().flat_map(|&end| (end as u64).to_le_bytes()).collect::<Vec<u8>>());
        }
        hasher.finalize()
    }
}
