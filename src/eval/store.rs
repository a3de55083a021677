//! Answers on disk, each written as it comes.
//!
//! `ANSWERS` of a task is a file of JSON lines: first what was asked and of whom ([`Identity`]), then a line for each
//! example. A later run of the same evaluation reads it and asks only what is missing; a last line that was cut off by a
//! crash is dropped. Another model, other data or other settings are refused, with the difference named.

use super::task::Answer;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// What answers depend on: names and values.
pub type Identity = Map<String, Value>;

/// The answers of one task.
pub struct Store {
    path: PathBuf,
    /// None: kept in memory only.
    file: Option<File>,
    answers: HashMap<String, Answer>,
}

#[derive(Serialize, Deserialize)]
struct Header {
    identity: Identity,
}

#[derive(Serialize, Deserialize)]
struct Line<'a> {
    id: std::borrow::Cow<'a, str>,
    answer: Answer,
}

impl Store {
    /// A store that keeps nothing on disk.
    pub fn in_memory() -> Store {
        Store { path: PathBuf::new(), file: None, answers: HashMap::new() }
    }

    /// Opens or starts the file at `path`.
    ///
    /// # Errors
    /// A file of another evaluation, or one that is no store; the file system.
    pub fn open(path: &Path, identity: &Identity) -> Result<Store> {
        let failed = |verb: &'static str| move |error| Error::io(path, verb, error);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(failed("open"))?;
        let mut store = Store { path: path.to_owned(), file: None, answers: HashMap::new() };
        let end = store.read(&file, identity)?;
        file.set_len(end).map_err(failed("shorten"))?;
        file.seek(SeekFrom::End(0)).map_err(failed("write"))?;
        if end == 0 {
            write_line(&mut file, &Header { identity: identity.clone() }).map_err(failed("write"))?;
        }
        store.file = Some(file);
        Ok(store)
    }

    /// Reads all whole lines; returns where they end.
    fn read(&mut self, file: &File, identity: &Identity) -> Result<u64> {
        let mut reader = BufReader::new(file);
        let (mut line, mut number, mut end) = (Vec::new(), 0u64, 0u64);
        loop {
            line.clear();
            let read = reader.read_until(b'\n', &mut line).map_err(|error| Error::io(&self.path, "read", error))?;
            // A line without its end was cut off while it was written.
            if line.last() != Some(&b'\n') {
                return Ok(end);
            }
            number += 1;
            let place = |error| {
                let name = self.path.display();
                Error::failed(format!("{name}:{number}: not a line of stored answers: {error}"))
                    .hint("this file was not written by `eval`, or is damaged: name another --out folder")
            };
            if number == 1 {
                let header: Header = serde_json::from_slice(&line).map_err(place)?;
                self.check(&header.identity, identity)?;
            } else {
                let line: Line<'_> = serde_json::from_slice(&line).map_err(place)?;
                self.answers.insert(line.id.into_owned(), line.answer);
            }
            end += read as u64;
        }
    }

    fn check(&self, found: &Identity, wanted: &Identity) -> Result<()> {
        let keys = found.keys().chain(wanted.keys().filter(|key| !found.contains_key(*key)));
        let different: Vec<String> = keys
            .filter(|key| found.get(*key) != wanted.get(*key))
            .map(|key| {
                let show = |map: &Identity| map.get(key).map_or("none".into(), Value::to_string);
                format!("{key}: {} then, {} now", show(found), show(wanted))
            })
            .collect();
        if different.is_empty() {
            return Ok(());
        }
        let path = &self.path;
        Err(Error::file(path, format_args!("answers of another evaluation:\n  {}", different.join("\n  ")))
            .hint("name another --out folder, or remove this file to begin anew"))
    }

    /// The answer to an example, if it has been given.
    pub fn get(&self, id: &str) -> Option<&Answer> {
        self.answers.get(id)
    }

    /// Answers so far.
    pub fn len(&self) -> usize {
        self.answers.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.answers.is_empty()
    }

    /// Keeps answers; those that are there already stay as they are.
    ///
    /// # Errors
    /// The file system.
    pub fn add<'a>(&mut self, answers: impl IntoIterator<Item = (&'a str, Answer)>) -> Result<()> {
        let mut text = Vec::new();
        for (id, answer) in answers {
            if self.answers.contains_key(id) {
                continue;
            }
            if self.file.is_some() {
                let line = Line { id: id.into(), answer: answer.clone() };
                write_line(&mut text, &line).map_err(|error| Error::io(&self.path, "write", error))?;
            }
            self.answers.insert(id.to_owned(), answer);
        }
        match &mut self.file {
            Some(file) => file.write_all(&text).map_err(|error| Error::io(&self.path, "write", error)),
            None => Ok(()),
        }
    }
}

fn write_line(out: &mut impl Write, value: &impl Serialize) -> std::io::Result<()> {
    let mut text = serde_json::to_vec(value)?;
    text.push(b'\n');
    out.write_all(&text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn identity(model: &str) -> Identity {
        json!({"model": model, "shots": 5}).as_object().unwrap().clone()
    }

    fn number(value: f64) -> Answer {
        Answer::Choices(vec![value, -0.1 - 0.2])
    }

    #[test]
    fn answers_survive_and_a_cut_line_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl");
        let mut store = Store::open(&path, &identity("m")).unwrap();
        store.add([("1", number(0.3)), ("2", Answer::Text("è \"così\"\n".into()))]).unwrap();
        drop(store);
        let whole = std::fs::read(&path).unwrap();
        for cut in 0..whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let mut store = Store::open(&path, &identity("m")).unwrap();
            store.add([("1", number(0.3)), ("2", Answer::Text("è \"così\"\n".into()))]).unwrap();
            assert_eq!(store.len(), 2);
            drop(store);
            assert_eq!(std::fs::read(&path).unwrap(), whole, "cut at {cut}");
        }
        assert_eq!(Store::open(&path, &identity("m")).unwrap().get("1"), Some(&number(0.3)), "bit for bit");
    }

    #[test]
    fn another_evaluation_and_another_file_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl");
        Store::open(&path, &identity("m")).unwrap();
        let error = Store::open(&path, &identity("n")).err().unwrap();
        assert!(error.to_string().contains("model: \"m\" then, \"n\" now"), "{error}");
        assert!(!error.to_string().contains("shots"));
        std::fs::write(&path, "something else\n").unwrap();
        let error = Store::open(&path, &identity("m")).err().unwrap();
        assert!(error.to_string().contains("a.jsonl:1:"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"something else\n", "left alone");
    }
}
