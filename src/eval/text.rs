//! Perplexity and bits per byte of any text.
//!
//! A document is `[BOS] text`, BOS where the tokenizer puts one in front. Windows of at most `window` tokens are read;
//! each but the first of a document starts `window − stride` tokens before what it predicts, so that every token is
//! predicted once and, but for the beginning of a document, from at least that many tokens. Without a BOS the first
//! token of a document is not predicted, and its bytes do not count. The end-of-text token is not predicted.
//! With `stride = window` the windows are those of the evaluation during training.
//!
//! Independent items are documents; where there are fewer than [`FEW_DOCUMENTS`], windows.

use super::metrics::{text, Metric};
use super::task::{Answer, Example, Gold, Question, Task, Unit, Window};
use crate::data::formats::{self, BadLines, Document, Reader, Record};
use crate::data::tokenize::bytes::DocumentBytes;
use crate::data::tokenize::Tokenizer;
use crate::error::{Error, Result};
use rayon::prelude::*;
use std::path::PathBuf;

/// Below this many documents, intervals come from windows.
pub const FEW_DOCUMENTS: usize = 20;

/// Text as a task; its name is the user's.
pub const TEXT: Task = Task {
    name: "text",
    about: "perplexity and bits per byte of text",
    source: "any text",
    load: |_| Err(Error::usage("text is given by --text")),
    judge,
    metrics: &[Metric::lower("bits_per_byte", text::bits_per_byte), Metric::lower("perplexity", text::perplexity)],
};

/// How text is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// Most tokens read at once.
    pub window: usize,
    /// Tokens predicted by each window but the first of a document.
    pub stride: usize,
}

/// Text to read.
#[derive(Debug, Clone)]
pub struct Source {
    /// Files, folders and globs.
    pub paths: Vec<String>,
    /// Documents to read; none: all.
    pub limit: Option<usize>,
    /// How many unusable lines to skip.
    pub max_bad_lines: u64,
}

/// What was read.
pub struct Text {
    /// Its windows.
    pub examples: Vec<Example>,
    /// The files.
    pub files: Vec<PathBuf>,
    /// Lines that could not be used.
    pub bad_lines: BadLines,
}

/// Documents encoded at a time: enough for all threads.
const CHUNK: usize = 1024;

/// The windows of all documents.
///
/// # Errors
/// Unreadable files; records that are no raw text; nothing to predict.
pub fn windows(source: &Source, tokenizer: &Tokenizer, cut: Cut) -> Result<Text> {
    let files = formats::find_files(&source.paths)?;
    let mut reader = Reader::new(files.clone(), None, source.max_bad_lines);
    let mut examples = Vec::new();
    let (mut texts, mut document) = (Vec::<String>::new(), 0);
    let limit = source.limit.unwrap_or(usize::MAX);
    while document < limit {
        texts.clear();
        while texts.len() < CHUNK.min(limit - document) {
            match reader.next().transpose()? {
                Some(found) => texts.push(raw_text(found, &files)?),
                None => break,
            }
        }
        if texts.is_empty() {
            break;
        }
        let encoded: Vec<Vec<u32>> =
            texts.par_iter().map(|text| tokenizer.encode_plain(text)).collect::<Result<_>>()?;
        for (text, ids) in texts.iter().zip(encoded) {
            examples.extend(document_windows(tokenizer, document, (text, &ids), cut));
            document += 1;
        }
    }
    if examples.is_empty() {
        return Err(Error::failed(format!("{}: no text with a token to predict", source.paths.join(", "))));
    }
    Ok(Text { examples, files, bad_lines: reader.bad_lines().clone() })
}

fn raw_text(document: Document, files: &[PathBuf]) -> Result<String> {
    match document.record {
        Record::Text(text) => Ok(text),
        _ => Err(Error::failed(format!("{}:{}: no raw text", files[document.file].display(), document.line))
            .hint("bits per byte are measured on text: .txt files, or JSON lines with a field `text`")),
    }
}

fn document_windows(tokenizer: &Tokenizer, document: usize, (text, ids): (&str, &[u32]), cut: Cut) -> Vec<Example> {
    let bytes = DocumentBytes { text: text.len() as u64, tokens: tokenizer.token_bytes().sum(ids) };
    let bos = tokenizer.special().bos.as_ref().map(|token| token.id);
    let tokens: Vec<u32> = bos.into_iter().chain(ids.iter().copied()).collect();
    // Bytes of text before each token. Token 0 is never predicted.
    let mut before = Vec::with_capacity(tokens.len() + 1);
    let mut sum = 0;
    before.push(0);
    for &id in &tokens {
        // The BOS stands for no text.
        sum += tokenizer.token_bytes().sum(&[id]);
        before.push(bytes.before(sum));
    }
    let mut examples = Vec::new();
    let mut done = 1;
    while done < tokens.len() {
        let (start, step) = match done {
            1 => (0, cut.window),
            _ => (done - 1 - (cut.window - cut.stride), cut.stride),
        };
        let end = tokens.len().min(done + step);
        let window = Window {
            document,
            ids: tokens[start..end].to_vec(),
            scored: done - start..end - start,
            bytes: before[end] - before[done],
        };
        let id = format!("{document}:{done}");
        examples.push(Example { id, question: Question::Window(window), gold: Gold::None });
        done = end;
    }
    examples
}

fn judge(answered: &[(&Example, &Answer)]) -> Vec<Unit> {
    let mut units: Vec<(usize, Unit)> = Vec::new();
    for (example, answer) in answered {
        let (Question::Window(window), Answer::Nats(nats)) = (&example.question, answer) else { continue };
        let evidence = vec![*nats, window.scored.len() as f64, window.bytes as f64];
        units.push((window.document, Unit { id: example.id.clone(), evidence }));
    }
    let documents = units.chunk_by(|(a, _), (b, _)| a == b);
    if documents.clone().count() < FEW_DOCUMENTS {
        return units.into_iter().map(|(_, unit)| unit).collect();
    }
    documents
        .map(|windows| {
            let sum = |column: usize| windows.iter().map(|(_, unit)| unit.evidence[column]).sum();
            Unit { id: windows[0].0.to_string(), evidence: [0, 1, 2].map(sum).to_vec() }
        })
        .collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::data::testing::{byte_level_folder, metaspace_folder};

    pub(in crate::eval) fn windows_of(tokenizer: &Tokenizer, document: usize, text: &str, cut: Cut) -> Vec<Example> {
        document_windows(tokenizer, document, (text, &tokenizer.encode_plain(text).unwrap()), cut)
    }

    #[test]
    fn every_token_is_predicted_once_from_enough_context() {
        for folder in [byte_level_folder(), metaspace_folder()] {
            let tokenizer = folder.load();
            let text = "la casa di mio zio è vicina al mare, e d'estate ci andiamo tutti";
            let ids = tokenizer.encode_plain(text).unwrap();
            let first = usize::from(tokenizer.special().bos.is_none());
            for (window, stride) in [(8, 8), (8, 3), (5, 1), (500, 250)] {
                let cut = Cut { window, stride };
                let mut predicted = Vec::new();
                let mut bytes = 0;
                for example in windows_of(&tokenizer, 0, text, cut) {
                    let Question::Window(found) = example.question else { panic!() };
                    assert!(found.ids.len() <= window + 1, "one more than is read: the last one is only predicted");
                    assert!(predicted.is_empty() || found.scored.start > window - stride);
                    predicted.extend_from_slice(&found.ids[found.scored]);
                    bytes += found.bytes;
                }
                assert_eq!(predicted, ids[first..], "window {window}, stride {stride}");
                let skipped = if first == 1 { tokenizer.token_bytes().sum(&ids[..1]) } else { 0 };
                assert_eq!(bytes + skipped, text.len() as u64);
            }
        }
    }

    #[test]
    fn few_documents_are_judged_by_windows_and_many_by_documents() {
        let tokenizer = byte_level_folder().load();
        for (documents, per_document) in [(3, 4), (FEW_DOCUMENTS, 1)] {
            let cut = Cut { window: 3, stride: 3 };
            let examples: Vec<Example> =
                (0..documents).flat_map(|d| windows_of(&tokenizer, d, "abcdefghijkl", cut)).collect();
            let answers: Vec<Answer> = examples.iter().map(|_| Answer::Nats(1.5)).collect();
            let pairs: Vec<(&Example, &Answer)> = examples.iter().zip(&answers).collect();
            let units = judge(&pairs);
            assert_eq!(units.len(), documents * per_document);
            let total = |column: usize| units.iter().map(|unit| unit.evidence[column]).sum::<f64>();
            assert_eq!([total(0), total(1), total(2)], [6.0, 12.0, 12.0].map(|v| v * documents as f64));
        }
    }
}
