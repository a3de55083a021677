//! Sources with weights: which documents an epoch takes.
//!
//! Weights are shares of the tokens. An epoch ends when the first source is used up, so of the other sources it takes a
//! part. Each source is walked through again and again in an order that is drawn anew for each pass; an epoch goes on
//! where the one before stopped, so that every document comes once before any comes a second time (an epoch in which a
//! pass ends may therefore meet a document of that pass again in the next). Which documents those are depends on corpus,
//! seed and the epoch's number alone.

use super::corpus::TokenizedCorpus;
use crate::error::{Error, Result};
use crate::ops::RandomStream;

/// How an epoch is put together.
#[derive(Debug, Clone)]
pub struct Mix {
    seed: u64,
    sources: Vec<Share>,
}

/// What an epoch takes of one source.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Share {
    first: usize,
    documents: usize,
    /// Documents an epoch, from 1 to `documents`.
    take: usize,
}

impl Mix {
    /// The mix that the corpus's weights ask for; none if it has none.
    ///
    /// # Errors
    /// A weighted source without a document.
    pub fn of(corpus: &TokenizedCorpus, seed: u64) -> Result<Option<Mix>> {
        let weights: Option<Vec<f64>> = corpus.sources().iter().map(|source| source.weight).collect();
        let Some(weights) = weights.filter(|weights| weights.len() > 1) else { return Ok(None) };
        let rows = |documents: std::ops::Range<usize>| documents.map(|document| corpus.rows(document)).sum::<usize>();
        let rows: Vec<usize> = corpus.sources().iter().map(|source| rows(source.documents.clone())).collect();
        if let Some(empty) = rows.iter().position(|&rows| rows == 0) {
            let name = &corpus.sources()[empty].name;
            return Err(Error::failed(format!("source {name}: nothing to train on, but it has a weight"))
                .hint("check its paths and what is held out, or take it out of the configuration"));
        }
        // An epoch's rows for a weight of 1.
        let unit = rows.iter().zip(&weights).map(|(&rows, weight)| rows as f64 / weight).fold(f64::INFINITY, f64::min);
        let sources = corpus.sources().iter().zip(rows).zip(weights).map(|((source, rows), weight)| {
            let documents = source.documents.len();
            let take = (documents as f64 * unit * weight / rows as f64).round() as usize;
            Share { first: source.documents.start, documents, take: take.clamp(1, documents) }
        });
        Ok(Some(Mix { seed, sources: sources.collect() }))
    }

    /// The documents of an epoch, in random order.
    pub fn documents(&self, epoch: u64) -> Vec<usize> {
        let mut taken = Vec::new();
        for (number, share) in self.sources.iter().enumerate() {
            let (first, last) = (epoch * share.take as u64, (epoch + 1) * share.take as u64);
            let mut place = first;
            while place < last {
                let pass = place / share.documents as u64;
                let stream = RandomStream::derive(self.seed, "pass", &[number as u64, pass]);
                let order = stream.permutation(share.documents);
                let from = (place % share.documents as u64) as usize;
                let until = (from + (last - place) as usize).min(share.documents);
                taken.extend(order[from..until].iter().map(|place| share.first + place));
                place += (until - from) as u64;
            }
        }
        let order = RandomStream::derive(self.seed, "mix", &[epoch]).permutation(taken.len());
        order.into_iter().map(|place| taken[place]).collect()
    }
}

#[cfg(test)]
#[path = "mix_tests.rs"]
mod tests;
