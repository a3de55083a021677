//! Micro-batches: every token predicted once, exact bytes, exact resume.

#![allow(clippy::single_range_in_vec_init)] // One trained stretch is meant.

use std::collections::HashMap;

use super::*;
use crate::data::config::LongExamples;
use crate::data::corpus::part::{Kind, TokenizedDocument};
use crate::data::corpus::Fit;
use crate::data::examples::raw_text;
use crate::data::testing::{byte_level, byte_level_folder, metaspace_folder, ModelFolder};
use crate::data::tokenize::Tokenizer;

const TEXTS: &[&str] = &[
    "un dio",
    "città, perché no?",
    "a",
    "🦙🦙 lama",
    "dio di dio di dio di dio",
    "x",
    "  due  spazi ",
    "più giù laggiù",
];

fn documents(tokenizer: &Tokenizer, texts: &[String]) -> TokenizedCorpus {
    let document = |text: &String| raw_text(tokenizer, tokenizer.encode_plain(text).unwrap(), text, 1);
    TokenizedCorpus::of_documents(tokenizer, Fit::ALL, &texts.iter().map(document).collect::<Vec<_>>())
}

fn corpus(tokenizer: &Tokenizer, copies: usize) -> TokenizedCorpus {
    let texts = (0..copies).flat_map(|copy| TEXTS.iter().map(move |text| text.repeat(copy % 3 + 1)));
    documents(tokenizer, &texts.collect::<Vec<_>>())
}

/// Without BOS and EOS.
fn bare_folder() -> ModelFolder {
    let mut json = byte_level();
    json["post_processor"] = serde_json::Value::Null;
    ModelFolder::new(&json)
}

fn settings() -> BatchSettings {
    BatchSettings { sequence_length: 16, packing: true, group_by_length: false, windows: 3, seed: 7 }
}

fn check_shape(batch: &MicroBatch) {
    let rows = batch.rows();
    assert_eq!([batch.targets.len(), batch.positions.len(), batch.text_target.len()], [rows; 3]);
    let covered: Vec<usize> = batch.segments.iter().cloned().flatten().collect();
    assert_eq!(covered, (0..rows).collect::<Vec<_>>());
    for segment in &batch.segments {
        assert!(batch.positions[segment.clone()].iter().copied().eq(0..segment.len() as u32));
        let inner = segment.start..segment.end - 1;
        assert!(inner.into_iter().all(|row| batch.targets[row] == batch.ids[row + 1] as i32));
    }
}

#[test]
fn an_epoch_predicts_every_text_token_and_every_end_once() {
    for packing in [true, false] {
        for folder in [byte_level_folder(), metaspace_folder()] {
            let tokenizer = folder.load();
            let corpus = Arc::new(corpus(&tokenizer, 5));
            let mut expected: HashMap<i32, usize> = HashMap::new();
            for document in 0..corpus.len() {
                corpus.text_ids(document).iter().for_each(|&id| *expected.entry(id as i32).or_default() += 1);
            }
            let eos = tokenizer.special().eos.as_ref().unwrap().id as i32;
            expected.insert(eos, corpus.len());
            let mut batches = Batches::new(corpus.clone(), BatchSettings { packing, ..settings() }).unwrap();
            for _ in 0..2 {
                let (mut found, mut bytes) = (HashMap::new(), 0);
                for _ in 0..batches.micro_batches_per_epoch() {
                    let batch = batches.next_micro_batch();
                    check_shape(&batch);
                    bytes += batch.text_bytes;
                    batch.targets.iter().for_each(|&target| *found.entry(target).or_default() += 1);
                    assert!(batch
                        .text_target
                        .iter()
                        .zip(&batch.targets)
                        .all(|(&text, &target)| text == (target != eos)));
                }
                assert_eq!(found, expected);
                assert_eq!(bytes, corpus.text_bytes());
            }
        }
    }
}

#[test]
fn evaluation_counts_exactly_the_predicted_bytes_whatever_the_window() {
    for folder in [byte_level_folder(), metaspace_folder(), bare_folder()] {
        let tokenizer = folder.load();
        let corpus = corpus(&tokenizer, 3);
        // Without BOS the first token of each document is not predicted; byte-level tokens decode to what they cover.
        let unpredicted: u64 = match tokenizer.special().bos {
            Some(_) => 0,
            None => (0..corpus.len()).map(|d| tokenizer.token_bytes().sum(&corpus.text_ids(d)[..1])).sum(),
        };
        for length in [1, 2, 5, 64, 4096] {
            let batches: Vec<MicroBatch> = evaluation_batches(&corpus, length, 2).collect();
            batches.iter().for_each(check_shape);
            let bytes: u64 = batches.iter().map(|batch| batch.text_bytes).sum();
            assert_eq!(bytes, corpus.text_bytes() - unpredicted, "length {length}");
            assert_eq!(batches.iter().map(MicroBatch::rows).sum::<usize>(), corpus.total_rows());
        }
        let first = evaluation_batches(&corpus, 4096, 1).next().unwrap();
        let document = first.segments[0].clone();
        assert_eq!(first.ids[document.clone()].len(), corpus.rows(0));
        let text: Vec<u32> = corpus.text_ids(0).to_vec();
        let fed = &first.ids[document];
        assert!(fed.windows(text.len()).any(|stretch| stretch == text) || fed == &text[..text.len() - 1]);
    }
}

#[test]
fn windows_are_cut_where_the_previous_one_ended() {
    let tokenizer = metaspace_folder().load();
    let text = "abcdefghil".repeat(5);
    let ids = tokenizer.encode_plain(&text).unwrap();
    let corpus = documents(&tokenizer, &[text]);
    let mut targets = Vec::new();
    let mut bytes = Vec::new();
    for batch in evaluation_batches(&corpus, 20, 1) {
        assert_eq!(batch.positions[0], 0);
        targets.extend(batch.targets.iter().map(|&target| target as u32));
        bytes.push(batch.text_bytes);
    }
    assert_eq!(targets[..ids.len()], ids);
    assert_eq!(targets.len(), ids.len() + 1);
    // The first token is the inserted space alone, so the first 20 predictions cover 19 bytes.
    assert_eq!(bytes, [19, 20, 11]);
}

#[test]
fn resuming_at_any_position_gives_the_same_batches() {
    let tokenizer = byte_level_folder().load();
    let corpus = Arc::new(corpus(&tokenizer, 6));
    let mut straight = Batches::new(corpus.clone(), settings()).unwrap();
    let total = straight.micro_batches_per_epoch() as usize * 2 + 1;
    let mut run = Vec::new();
    for _ in 0..total {
        let cursor = serde_json::to_string(&straight.cursor()).unwrap();
        run.push((cursor, straight.next_micro_batch()));
    }
    for start in 0..total {
        let mut resumed = Batches::new(corpus.clone(), settings()).unwrap();
        resumed.seek(serde_json::from_str(&run[start].0).unwrap()).unwrap();
        for (_, batch) in &run[start..] {
            assert_eq!(&resumed.next_micro_batch(), batch);
        }
    }
    let mut other = Batches::new(corpus, settings()).unwrap();
    let count = other.micro_batches_per_epoch();
    let error = other.seek(BatchCursor { epoch: 0, index: count }).unwrap_err();
    assert!(error.message().contains("the saved position"), "{error}");
}

#[test]
fn seed_and_epoch_change_the_order_and_nothing_else() {
    let tokenizer = byte_level_folder().load();
    let corpus = Arc::new(corpus(&tokenizer, 8));
    let epoch = |seed: u64, epoch: u64| {
        let mut batches = Batches::new(corpus.clone(), BatchSettings { seed, ..settings() }).unwrap();
        batches.seek(BatchCursor { epoch, index: 0 }).unwrap();
        let ids: Vec<u32> =
            (0..batches.micro_batches_per_epoch()).flat_map(|_| batches.next_micro_batch().ids).collect();
        let mut sorted = ids.clone();
        sorted.sort_unstable();
        (ids, sorted, batches.micro_batches_per_epoch())
    };
    let [a, again, later, other] = [epoch(1, 0), epoch(1, 0), epoch(1, 1), epoch(2, 0)];
    assert_eq!(a, again);
    assert_ne!(a.0, later.0);
    assert_ne!(a.0, other.0);
    assert_eq!((a.1.clone(), a.2), (later.1, later.2));
    assert_eq!(a.1, other.1);
}

#[test]
fn fingerprints_tell_data_and_settings_apart() {
    let tokenizer = byte_level_folder().load();
    let make = |copies, settings| Batches::new(Arc::new(corpus(&tokenizer, copies)), settings).unwrap().fingerprint();
    assert_eq!(make(2, settings()), make(2, settings()));
    assert_ne!(make(2, settings()), make(3, settings()));
    assert_ne!(make(2, settings()), make(2, BatchSettings { sequence_length: 17, ..settings() }));
}

#[test]
fn a_corpus_without_predictions_is_an_error() {
    let tokenizer = bare_folder().load();
    assert!(Batches::new(Arc::new(documents(&tokenizer, &[])), settings()).is_err());
    let corpus = documents(&tokenizer, &["a".into()]);
    let error = Batches::new(Arc::new(corpus), settings()).unwrap_err();
    assert!(error.message().contains("none with a token to predict"), "{error}");
}

/// An example of `length` tokens with these trained stretches; token `i` has id `first + i`.
fn example(first: u32, length: usize, spans: &[Range<usize>]) -> TokenizedDocument {
    TokenizedDocument {
        ids: (first..first + length as u32).collect(),
        spans: spans.to_vec(),
        kind: Kind::Example,
        text_bytes: length as u64,
        hash: u64::from(first),
        line: 1,
    }
}

fn of_examples(tokenizer: &Tokenizer, long_examples: LongExamples, examples: &[TokenizedDocument]) -> TokenizedCorpus {
    TokenizedCorpus::of_documents(tokenizer, Fit { sequence_length: 16, long_examples }, examples)
}

/// Targets by their fed token, ignored rows left out.
fn targets(batches: &mut Batches) -> Vec<(u32, i32)> {
    let mut found = Vec::new();
    for _ in 0..batches.micro_batches_per_epoch() {
        let batch = batches.next_micro_batch();
        found.extend(batch.ids.iter().copied().zip(batch.targets).filter(|(_, target)| *target != IGNORE));
    }
    found.sort_unstable();
    found
}

#[test]
fn only_trained_tokens_are_targets() {
    let tokenizer = byte_level_folder().load();
    let examples = [example(10, 8, &[3..5, 6..8]), example(30, 5, &[0..5]), example(40, 4, &[2..4])];
    let corpus = Arc::new(of_examples(&tokenizer, LongExamples::Cut, &examples));
    assert_eq!((corpus.total_rows(), corpus.trained_tokens()), (7 + 4 + 3, 4 + 4 + 2));
    for packing in [true, false] {
        let mut batches = Batches::new(corpus.clone(), BatchSettings { packing, ..settings() }).unwrap();
        let expected =
            [(12, 13), (13, 14), (15, 16), (16, 17), (30, 31), (31, 32), (32, 33), (33, 34), (41, 42), (42, 43)];
        assert_eq!(targets(&mut batches), expected);
    }
}

#[test]
fn long_examples_are_cut_at_the_end_of_a_turn_or_dropped_or_split() {
    let tokenizer = byte_level_folder().load();
    // Three turns that end at 9, 17 and 30: a window of 16 rows takes 17 tokens.
    let long = example(10, 31, &[5..9, 12..17, 20..30]);
    let hopeless = example(60, 30, &[20..30]);
    let corpus = |rule| of_examples(&tokenizer, rule, &[long.clone(), hopeless.clone(), example(100, 4, &[1..4])]);
    let cut = corpus(LongExamples::Cut);
    assert_eq!((cut.len(), cut.rows(0), cut.trained_tokens()), (2, 16, 4 + 5 + 3));
    let dropped = corpus(LongExamples::Drop);
    assert_eq!((dropped.len(), dropped.rows(0)), (1, 3));
    let split = Arc::new(corpus(LongExamples::Split));
    assert_eq!((split.len(), split.trained_tokens()), (3, 19 + 10 + 3));
    let mut batches = Batches::new(split, settings()).unwrap();
    // The first window of the hopeless one predicts nothing that is trained, and is left out.
    assert_eq!(batches.rows_by_window().sum::<usize>(), 30 + 13 + 3);
    assert_eq!(targets(&mut batches).len(), 32);
}

#[test]
fn windows_of_like_length_come_together_if_asked() {
    let tokenizer = byte_level_folder().load();
    let examples: Vec<_> = (0..90).map(|i| example(0, 3 + (i * 7) % 13, &[1..3])).collect();
    let corpus = Arc::new(of_examples(&tokenizer, LongExamples::Cut, &examples));
    let spread = |group_by_length| {
        let settings = BatchSettings { packing: false, group_by_length, ..settings() };
        let mut batches = Batches::new(corpus.clone(), settings).unwrap();
        let mut total = 0;
        let mut all = Vec::new();
        for _ in 0..batches.micro_batches_per_epoch() {
            let batch = batches.next_micro_batch();
            let mut lengths: Vec<usize> = batch.segments.iter().map(ExactSizeIterator::len).collect();
            total += lengths.iter().max().unwrap() - lengths.iter().min().unwrap();
            all.append(&mut lengths);
        }
        all.sort_unstable();
        (total, all)
    };
    let (grouped, mixed) = (spread(true), spread(false));
    assert_eq!(grouped.1, mixed.1);
    assert!(grouped.0 * 4 < mixed.0, "{} against {}", grouped.0, mixed.0);
}

#[test]
fn a_budget_of_rows_ends_with_the_step_that_reaches_it() {
    let tokenizer = byte_level_folder().load();
    let batches = Batches::new(Arc::new(corpus(&tokenizer, 6)), settings()).unwrap();
    let mut walk = batches.clone();
    let mut seen = vec![0];
    while seen.len() < 40 {
        let count = walk.left_in_epoch().min(2);
        let rows: usize = (0..count).map(|_| walk.next_micro_batch().rows()).sum();
        seen.push(seen[seen.len() - 1] + rows as u64);
    }
    for (steps, rows) in seen.iter().enumerate().skip(1) {
        assert_eq!(batches.steps_for_rows(*rows, 2), steps as u64);
        assert_eq!(batches.steps_for_rows(rows - 1, 2), steps as u64);
        assert_eq!(batches.steps_for_rows(rows + 1, 2), steps as u64 + 1);
    }
}
