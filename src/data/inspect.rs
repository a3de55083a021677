//! What the model will really see of a dataset: counts, lengths, packing, and examples with their trained tokens.

mod html;

use serde::Serialize;

use super::batch::Batches;
use super::corpus::TokenizedCorpus;
use super::load::{Data, DataReport};
use super::tokenize::Tokenizer;
use crate::error::Result;
use crate::ops::RandomStream;

/// What [`inspect`] found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Inspection {
    /// What was read and what became of it.
    pub report: DataReport,
    /// Documents by length in tokens.
    pub lengths: Vec<LengthCount>,
    /// One pass over the training data.
    pub epoch: EpochSummary,
    /// Some of the documents to train on.
    pub examples: Vec<Example>,
}

/// How many documents have a length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct LengthCount {
    /// Tokens, from.
    pub from: usize,
    /// Tokens, to (with).
    pub to: usize,
    /// How many.
    pub documents: u64,
}

/// One pass over the training data.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct EpochSummary {
    /// Windows.
    pub windows: u64,
    /// Rows of all windows.
    pub rows: u64,
    /// Of these, rows that predict a trained token.
    pub trained_rows: u64,
    /// Most rows of a window.
    pub sequence_length: usize,
    /// Rows of all windows, as a part of what as many full windows would hold.
    pub efficiency: f64,
}

/// A document as the model sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Example {
    /// Its source.
    pub source: String,
    /// Line in its file.
    pub line: u64,
    /// Tokens.
    pub tokens: usize,
    /// Trained tokens.
    pub trained: usize,
    /// Tokens at the end that do not fit and are left out.
    pub cut: usize,
    /// Its text, control tokens by name, in stretches that are trained or not.
    pub stretches: Vec<Stretch>,
}

/// Consecutive tokens that are all trained or all not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Stretch {
    /// What they say.
    pub text: String,
    /// Whether they are targets.
    pub trained: bool,
    /// Their ids.
    pub ids: Vec<u32>,
}

/// Looks at `data` as `batches` deal it out, with `examples` documents of each source, chosen by `seed`.
///
/// # Errors
/// Tokens that the tokenizer cannot decode.
pub fn inspect(
    data: &Data,
    batches: &Batches,
    tokenizer: &Tokenizer,
    (examples, seed): (usize, u64),
) -> Result<Inspection> {
    let corpus = &data.train;
    let mut shown = Vec::new();
    for (number, source) in corpus.sources().iter().enumerate() {
        let order = RandomStream::derive(seed, "inspect", &[number as u64]).permutation(source.documents.len());
        let mut chosen: Vec<usize> = order.into_iter().take(examples).collect();
        chosen.sort_unstable();
        for place in chosen {
            shown.push(example(corpus, source.documents.start + place, &source.name, tokenizer)?);
        }
    }
    let rows: u64 = batches.rows_by_window().map(|rows| rows as u64).sum();
    let (windows, length) = (batches.windows() as u64, corpus.fit().sequence_length);
    let epoch = EpochSummary {
        windows,
        rows,
        trained_rows: batches.trained_rows(),
        sequence_length: length,
        efficiency: rows as f64 / (windows as f64 * length as f64),
    };
    Ok(Inspection { report: data.report.clone(), lengths: lengths(corpus), epoch, examples: shown })
}

/// Documents by length: up to 16 tokens, then doubling.
fn lengths(corpus: &TokenizedCorpus) -> Vec<LengthCount> {
    let mut counts: Vec<LengthCount> = Vec::new();
    for document in 0..corpus.len() {
        let length = corpus.ids(document).len();
        let step = length.max(16).next_power_of_two().trailing_zeros() as usize - 4;
        while counts.len() <= step {
            let to = 16 << counts.len();
            counts.push(LengthCount { from: if to == 16 { 1 } else { to / 2 + 1 }, to, documents: 0 });
        }
        counts[step].documents += 1;
    }
    counts
}

fn example(corpus: &TokenizedCorpus, document: usize, source: &str, tokenizer: &Tokenizer) -> Result<Example> {
    let (part, place) = corpus.place(document);
    let all = part.ids(place);
    let kept = corpus.rows(document) + 1;
    let mut trained = vec![false; kept];
    for span in part.spans(place).filter(|span| span.start < kept) {
        trained[span.start..span.end.min(kept)].fill(true);
    }
    // The first token is never predicted.
    trained[0] = false;
    let mut stretches = Vec::new();
    let mut start = 0;
    // Decoders look at neighbours, so a stretch's text is what it adds to that of all before it.
    let mut before = String::new();
    for end in 1..=kept {
        if end < kept && trained[end] == trained[start] {
            continue;
        }
        let text = tokenizer.decode(&all[..end], false)?;
        let added = match text.strip_prefix(before.as_str()) {
            Some(added) => added.to_owned(),
            None => tokenizer.decode(&all[start..end], false)?,
        };
        stretches.push(Stretch { text: added, trained: trained[start], ids: all[start..end].to_vec() });
        (before, start) = (text, end);
    }
    let count = trained.iter().filter(|trained| **trained).count();
    let (line, cut) = (part.line(place), all.len() - kept);
    Ok(Example { source: source.to_owned(), line, tokens: kept, trained: count, cut, stretches })
}

impl Inspection {
    /// As one page of HTML that needs nothing else.
    pub fn to_html(&self) -> String {
        html::page(self)
    }
}

#[cfg(test)]
#[path = "inspect_tests.rs"]
mod tests;
