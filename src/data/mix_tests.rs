//! Weighted sources: shares, coverage, the same documents whoever asks.

#![allow(clippy::single_range_in_vec_init)] // One trained stretch is meant.

use std::sync::Arc;

use super::*;
use crate::data::batch::{BatchCursor, BatchSettings, Batches};
use crate::data::corpus::part::{Kind, PartBuilder, TokenizedDocument};
use crate::data::corpus::Fit;
use crate::data::testing::byte_level_folder;

fn corpus(sources: &[(usize, usize, Option<f64>)]) -> TokenizedCorpus {
    let tokenizer = byte_level_folder().load();
    let mut corpus = TokenizedCorpus::new(&tokenizer, Fit::ALL);
    for (number, &(documents, length, weight)) in sources.iter().enumerate() {
        let mut part = PartBuilder::default();
        for place in 0..documents {
            let ids = vec![(100 * number) as u32; length];
            let (spans, text_bytes, hash, line) = (vec![0..length], 1, place as u64, 1);
            let document = TokenizedDocument { ids, spans, kind: Kind::Whole, text_bytes, hash, line };
            part.push(&document, tokenizer.token_bytes());
        }
        corpus.begin_source(&format!("s{number}"), weight);
        corpus.add(Arc::new(part.finish()), &|_, _| true);
    }
    corpus
}

#[test]
fn shares_of_tokens_are_those_of_the_weights() {
    // 9 000 rows and 19 000 rows; 90 % and 10 % of the tokens: the first source is used up.
    let corpus = corpus(&[(1000, 10, Some(9.0)), (1000, 20, Some(1.0))]);
    let mix = Mix::of(&corpus, 1).unwrap().unwrap();
    let documents = mix.documents(0);
    let first = documents.iter().filter(|&&document| document < 1000).count();
    assert_eq!((first, documents.len() - first), (1000, 53));
    let rows = |documents: &[usize]| documents.iter().map(|&document| corpus.rows(document)).sum::<usize>() as f64;
    let share =
        rows(&documents.iter().copied().filter(|&document| document < 1000).collect::<Vec<_>>()) / rows(&documents);
    assert!((share - 0.9).abs() < 0.001, "{share}");
}

#[test]
fn no_document_comes_again_before_all_others_came() {
    let corpus = corpus(&[(30, 10, Some(1.0)), (100, 10, Some(1.0))]);
    let mix = Mix::of(&corpus, 3).unwrap().unwrap();
    let mut counts = vec![0; 130];
    for epoch in 0..10 {
        let documents = mix.documents(epoch);
        assert_eq!(documents, mix.documents(epoch));
        assert_eq!((documents.len(), documents.iter().filter(|&&document| document < 30).count()), (60, 30));
        documents.iter().for_each(|&document| counts[document] += 1);
        let (least, most) = (counts[30..].iter().min().unwrap(), counts[30..].iter().max().unwrap());
        assert!(most - least <= 1, "epoch {epoch}: {counts:?}");
    }
    assert!(counts[..30].iter().all(|&count| count == 10));
    assert!(counts[30..].iter().all(|&count| count == 3), "{counts:?}");
}

#[test]
fn batches_of_a_mix_resume_in_any_epoch() {
    let corpus = Arc::new(corpus(&[(40, 9, Some(1.0)), (90, 5, Some(2.0))]));
    let settings = BatchSettings { sequence_length: 32, packing: true, group_by_length: false, windows: 2, seed: 5 };
    let mut straight = Batches::new(corpus.clone(), settings).unwrap();
    let mut run = Vec::new();
    while straight.cursor().epoch < 4 {
        run.push((straight.cursor(), straight.next_micro_batch()));
    }
    for start in (0..run.len()).step_by(3) {
        let mut resumed = Batches::new(corpus.clone(), settings).unwrap();
        resumed.seek(run[start].0).unwrap();
        assert!(run[start..].iter().all(|(_, batch)| &resumed.next_micro_batch() == batch), "from {start}");
    }
    assert_ne!(
        run[0].1,
        run[run.iter().position(|(cursor, _)| *cursor == BatchCursor { epoch: 1, index: 0 }).unwrap()].1
    );
}

#[test]
fn without_weights_there_is_no_mix_and_empty_sources_are_refused() {
    assert!(Mix::of(&corpus(&[(3, 4, None), (3, 4, None)]), 1).unwrap().is_none());
    assert!(Mix::of(&corpus(&[(3, 4, Some(1.0))]), 1).unwrap().is_none());
    let error = Mix::of(&corpus(&[(3, 4, Some(1.0)), (0, 4, Some(1.0))]), 1).unwrap_err();
    assert!(error.message().contains("source s1: nothing to train on"), "{error}");
}
