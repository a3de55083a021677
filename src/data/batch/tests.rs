//! Micro-batches: every token predicted once, exact bytes, exact resume.

use std::collections::HashMap;

use super::*;
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

fn corpus(tokenizer: &Tokenizer, copies: usize) -> TokenizedCorpus {
    let mut corpus = TokenizedCorpus::new(tokenizer);
    for copy in 0..copies {
        for text in TEXTS {
            let text = text.repeat(copy % 3 + 1);
            corpus.push(&tokenizer.encode_plain(&text).unwrap(), text.len() as u64);
        }
    }
    corpus
}

/// Without BOS and EOS.
fn bare_folder() -> ModelFolder {
    let mut json = byte_level();
    json["post_processor"] = serde_json::Value::Null;
    ModelFolder::new(&json)
}

fn settings() -> BatchSettings {
    BatchSettings { sequence_length: 16, packing: true, windows: 3, seed: 7 }
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
    let mut corpus = TokenizedCorpus::new(&tokenizer);
    let text = "abcdefghil".repeat(5);
    let ids = tokenizer.encode_plain(&text).unwrap();
    corpus.push(&ids, text.len() as u64);
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
    let mut corpus = TokenizedCorpus::new(&tokenizer);
    assert!(Batches::new(Arc::new(corpus.clone()), settings()).is_err());
    corpus.push(&tokenizer.encode_plain("a").unwrap(), 1);
    let error = Batches::new(Arc::new(corpus), settings()).unwrap_err();
    assert!(error.message().contains("1 documents, none with a token to predict"), "{error}");
}
