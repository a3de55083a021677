//! What a stage of a chain holds out, kept as tokens in its folder, so that every later stage shows what is left of it.
//!
//! ```text
//! <stage>/held-out/  0.tokens 1.tokens ... (parts, see [`crate::data::corpus::part`])   sets.json (names; written last)
//! ```
//!
//! Invariant: they are the tokens that the stage itself is measured by, whatever has become of its files since. They are
//! of one tokenizer, and nothing else reads them.

use crate::checkpoint::{write_file, RealDisk};
use crate::data::corpus::part::{Part, PartBuilder, TokenizedDocument};
use crate::data::corpus::{Fit, TokenizedCorpus};
use crate::data::tokenize::Tokenizer;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Name of the folder.
const FOLDER: &str = "held-out";
/// Name of the list.
const LIST: &str = "sets.json";

/// An earlier stage of a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Earlier {
    /// Its name.
    pub stage: String,
    /// Its folder.
    pub folder: PathBuf,
}

/// The sets that were kept: the set at place `i` lies in `i.tokens`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sets {
    tokenizer: String,
    names: Vec<String>,
}

/// A corpus with its name.
pub type Named = (String, TokenizedCorpus);

/// Keeps `sets` in the folder of a stage.
///
/// # Errors
/// What the file system refuses.
pub fn keep(folder: &Path, sets: &[Named], tokenizer: &Tokenizer) -> Result<()> {
    let folder = folder.join(FOLDER);
    std::fs::create_dir_all(&folder).map_err(|error| Error::io(&folder, "create", error))?;
    for (number, (_, corpus)) in sets.iter().enumerate() {
        let mut part = PartBuilder::default();
        (0..corpus.len()).for_each(|document| part.push(&kept_of(corpus, document), tokenizer.token_bytes()));
        write_file(&RealDisk, &folder.join(tokens_file(number)), part.finish().bytes())?;
    }
    let names = sets.iter().map(|(name, _)| name.clone()).collect();
    let list = folder.join(LIST);
    let sets = Sets { tokenizer: tokenizer.fingerprint().to_hex().to_string(), names };
    let text = serde_json::to_vec_pretty(&sets).map_err(|error| Error::file(&list, error))?;
    write_file(&RealDisk, &list, &text)
}

/// The document as far as it is kept, which needs no [`Fit`] any more.
fn kept_of(corpus: &TokenizedCorpus, document: usize) -> TokenizedDocument {
    let (part, place) = corpus.place(document);
    let length = corpus.rows(document) + 1;
    let spans = part.spans(place).filter(|span| span.start < length);
    TokenizedDocument {
        ids: part.ids(place)[..length].to_vec(),
        spans: spans.map(|span| span.start..span.end.min(length)).collect(),
        kind: part.kind(place),
        text_bytes: part.text_bytes(place),
        hash: part.content_hash(place),
        line: part.line(place),
    }
}

/// What an earlier stage kept, each set under the stage's name and its own.
///
/// # Errors
/// Nothing kept, damaged files, tokens of another tokenizer.
pub fn of(earlier: &Earlier, tokenizer: &Tokenizer) -> Result<Vec<Named>> {
    let folder = earlier.folder.join(FOLDER);
    let list = folder.join(LIST);
    let text = std::fs::read(&list).map_err(|error| Error::io(&list, "read", error))?;
    let sets: Sets = serde_json::from_slice(&text).map_err(|error| Error::file(&list, error))?;
    if sets.tokenizer != tokenizer.fingerprint().to_hex().as_str() {
        return Err(Error::file(&list, "these tokens are of another tokenizer"));
    }
    let read = |(number, name): (usize, &String)| {
        let mut corpus = TokenizedCorpus::new(tokenizer, Fit::ALL);
        corpus.begin_source(name, None);
        corpus.add(Arc::new(Part::open(&folder.join(tokens_file(number)))?), &|_, _| true);
        Ok((format!("{}: {name}", earlier.stage), corpus))
    };
    sets.names.iter().enumerate().map(read).collect()
}

fn tokens_file(number: usize) -> String {
    format!("{number}.tokens")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::batch::{evaluation_batches, MicroBatch};
    use crate::data::config::LongExamples;
    use crate::data::corpus::part::Kind;
    use crate::data::testing::{byte_level_folder, metaspace_folder};

    #[test]
    fn what_is_kept_is_what_was_measured() {
        let tokenizer = byte_level_folder().load();
        let document = |first: u32, kind| TokenizedDocument {
            ids: (first..first + 30).collect(),
            spans: vec![2..9, 12..30],
            kind,
            text_bytes: 30,
            hash: 1,
            line: 3,
        };
        // Of the example only what fits is kept; the others take two windows.
        let documents = [document(1, Kind::Example), document(40, Kind::Whole), document(80, Kind::Text)];
        let fit = Fit { sequence_length: 16, long_examples: LongExamples::Cut };
        let corpus = TokenizedCorpus::of_documents(&tokenizer, fit, &documents);
        let place = tempfile::tempdir().unwrap();
        let batches = |corpus: &TokenizedCorpus| evaluation_batches(corpus, 16, 2).collect::<Vec<MicroBatch>>();
        let expected = batches(&corpus);
        keep(place.path(), &[("held-out a/b".into(), corpus)], &tokenizer).unwrap();
        let earlier = Earlier { stage: "adapt".into(), folder: place.path().into() };
        let kept = of(&earlier, &tokenizer).unwrap();
        assert_eq!(kept.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["adapt: held-out a/b"]);
        assert_eq!(batches(&kept[0].1), expected);
        let other = of(&earlier, &metaspace_folder().load()).unwrap_err();
        assert!(other.message().contains("another tokenizer"), "{other}");
        assert!(of(&Earlier { folder: place.path().join("none"), ..earlier }, &tokenizer).is_err());
    }
}
