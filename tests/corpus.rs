//! The bundled Italian corpus keeps its promises: size, no repetition, nothing shared between training and held-out.
//!
//! A figure on held-out text means something only if the text is varied and was not trained on.

use flate2::{write::GzEncoder, Compression};
use std::collections::{HashMap, HashSet};
use std::io::Write;
use std::path::Path;

/// Texts of one part, by file name.
fn texts(part: &str) -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/italian").join(part);
    let mut texts: Vec<(String, String)> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.file_name().unwrap().to_str().unwrap().into(), std::fs::read_to_string(&path).unwrap()))
        .collect();
    texts.sort();
    texts
}

/// Words in lower case, without punctuation.
fn words(text: &str) -> Vec<String> {
    let parts = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    parts.map(str::to_lowercase).collect()
}

/// Sentences as their words: cut at line ends and after `.`, `!`, `?`, `…`.
fn sentences(text: &str) -> Vec<String> {
    let cut = text.split(['.', '!', '?', '…', '\n']);
    cut.map(|sentence| words(sentence).join(" ")).filter(|sentence| !sentence.is_empty()).collect()
}

/// How often each sequence of eight words occurs; sequences do not cross texts.
fn eight_word_sequences(part: &str) -> HashMap<String, usize> {
    let mut counts = HashMap::new();
    for (_, text) in texts(part) {
        for sequence in words(&text).windows(8) {
            *counts.entry(sequence.join(" ")).or_insert(0) += 1;
        }
    }
    counts
}

#[test]
fn there_is_enough_text_in_both_parts() {
    let bytes = |part| texts(part).iter().map(|(_, text)| text.len()).sum::<usize>();
    let (train, held_out) = (bytes("train"), bytes("held-out"));
    assert!(train >= 60_000, "{train} bytes to train on");
    assert!(held_out >= 10_000, "{held_out} bytes held out");
}

#[test]
fn no_sentence_comes_twice() {
    let mut seen: HashMap<String, String> = HashMap::new();
    for (name, text) in texts("train").into_iter().chain(texts("held-out")) {
        for sentence in sentences(&text) {
            let before = seen.insert(sentence.clone(), name.clone());
            assert_eq!(before, None, "{name}: {sentence:?} was there before");
        }
    }
    assert!(seen.len() > 500, "only {} sentences found", seen.len());
}

#[test]
fn eight_words_in_a_row_come_at_most_three_times_and_in_one_part_only() {
    let (train, held_out) = (eight_word_sequences("train"), eight_word_sequences("held-out"));
    for (sequence, count) in train.iter().chain(&held_out) {
        assert!(*count <= 3, "{count} times: {sequence:?}");
    }
    let trained: HashSet<&String> = train.keys().collect();
    let shared: Vec<&String> = held_out.keys().filter(|sequence| trained.contains(sequence)).collect();
    assert!(shared.is_empty(), "in training and held-out: {shared:?}");
    assert!(train.len() > 8_000 && held_out.len() > 1_500, "{} and {} sequences", train.len(), held_out.len());
}

#[test]
fn the_text_is_not_repetitive() {
    for part in ["train", "held-out"] {
        let all: String = texts(part).into_iter().map(|(_, text)| text).collect();
        let mut gzip = GzEncoder::new(Vec::new(), Compression::best());
        gzip.write_all(all.as_bytes()).unwrap();
        let ratio = gzip.finish().unwrap().len() as f64 / all.len() as f64;
        assert!(ratio >= 0.35, "{part}: gzip leaves {ratio:.3} of the bytes");
    }
}

#[test]
fn the_letters_are_those_of_italian() {
    for (name, text) in texts("train").into_iter().chain(texts("held-out")) {
        let foreign = |c: &char| !c.is_ascii() && !"àèéìíòóùúÀÈÉÌÒÙ«»’…—–".contains(*c);
        let found: Vec<char> = text.chars().filter(foreign).collect();
        assert!(found.is_empty(), "{name}: {found:?}");
        assert!(text.contains(['à', 'è', 'é', 'ì', 'ò', 'ù']), "{name}: no accented letter");
    }
}
