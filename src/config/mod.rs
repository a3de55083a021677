//! Configuration files: TOML in, one typed value out, every problem reported at once.
//!
//! A configuration is made of [`Section`]s, flat structs that live beside what they configure. [`load`] finds, in one
//! pass: syntax errors, unknown keys (with the nearest valid one), values of a wrong type and values out of range, each
//! with `file:line`. All of them are usage errors. Nothing but the text, the files that it extends and the overrides decides
//! the result.
//!
//! Which keys exist is read off an example value in which every key is present, so that a key is declared once, as a
//! field. Which type a key has is asked of serde, one key at a time, which is what lets all mistakes be listed.

pub mod nearest;
pub mod toml_file;

use std::fmt::Debug;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::Serialize;
use toml::{Table, Value};

use crate::error::{Error, Result};
use nearest::nearest;
pub use toml_file::overlay;
use toml_file::{join, TomlFile, EXTENDS};

/// A group of settings, or a whole configuration made of such groups.
///
/// Fields are plain values, lists, `Option`s, sections, or lists of sections; `#[serde(default)]` on the struct gives
/// absent keys their default. Floats are `f64` (an `f32` would be written back with a tail of digits).
pub trait Section: DeserializeOwned + Serialize + Default {
    /// A value in which every key is present: `Option`s filled, lists of sections with one entry. Only keys matter, and
    /// an empty table means that any key is allowed in it.
    fn example() -> Self {
        Self::default()
    }

    /// Reports values that make no sense. `path` is this section's own, empty for a whole configuration;
    /// [`Problems::section`] checks the sections below.
    fn check(&self, problems: &mut Problems);
}

/// What is wrong with a configuration, collected.
#[derive(Debug, Default)]
pub struct Problems {
    path: String,
    found: Vec<Problem>,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Dotted path of the key.
    pub key: String,
    /// What is wrong, what was expected, what was found.
    pub what: String,
}

impl Problems {
    /// Reports `key` of the section being checked.
    pub fn add(&mut self, key: &str, what: impl Into<String>) {
        self.found.push(Problem { key: join(&self.path, key), what: what.into() });
    }

    /// Reports `key` unless `holds`: `expected ..., found ...`.
    pub fn expect(&mut self, holds: bool, key: &str, expected: &str, found: impl Debug) {
        if !holds {
            self.add(key, format!("expected {expected}, found {found:?}"));
        }
    }

    /// Checks a section below this one.
    pub fn section<S: Section>(&mut self, key: &str, section: &S) {
        let path = join(&self.path, key);
        let above = std::mem::replace(&mut self.path, path);
        section.check(self);
        self.path = above;
    }

    /// Checks a list of sections below this one.
    pub fn sections<S: Section>(&mut self, key: &str, sections: &[S]) {
        for (index, section) in sections.iter().enumerate() {
            self.section(&format!("{key}[{index}]"), section);
        }
    }

    /// What was found.
    pub fn found(&self) -> &[Problem] {
        &self.found
    }
}

/// Reads a configuration file and applies `overrides`; see [`load`].
///
/// # Errors
/// An unreadable file (usage); see [`load`].
pub fn load_file<C: Section>(path: &Path, overrides: &[String]) -> Result<C> {
    let bytes = std::fs::read(path)
        .map_err(|error| Error::usage(format!("{}: cannot read the configuration: {error}", path.display())))?;
    let text = String::from_utf8(bytes).map_err(|error| {
        Error::usage(format!("{}: not UTF-8 (at byte {})", path.display(), error.utf8_error().valid_up_to()))
    })?;
    load(&text, path, overrides)
}

/// Makes a configuration of TOML text and overrides `a.b=value`, applied in order. A value that is not TOML, or any
/// value for a key that holds text, is taken as text without quotes; `a.0.b` names an entry of a list of sections by its
/// number, `a.x.b` by its `name`.
///
/// # Errors
/// Usage, with all problems, one line each.
pub fn load<C: Section>(text: &str, origin: &Path, overrides: &[String]) -> Result<C> {
    let mut file = match TomlFile::parse_extended(text, origin) {
        Ok(file) => file,
        Err(lines) => return Err(problem_list(lines)),
    };
    let example = to_table(&C::example())?;
    let default = to_table(&C::default())?;
    let mut lines = Vec::new();
    for given in overrides {
        if let Err(reason) = apply(&mut file, &example, given) {
            lines.push(format!("--set {given}: {reason}"));
        }
    }
    let mut sieve = Sieve {
        example: &example,
        default: &default,
        problems: Vec::new(),
        deserialise: |tree| Value::Table(tree).try_into::<C>().err().map(|error| error.message().to_owned()),
    };
    let user = std::mem::take(&mut file.root);
    let kept = sieve.table(user, &example, &mut Vec::new());
    let mut problems = sieve.problems;

    let mut merged = default.clone();
    overlay(&mut merged, kept);
    match Value::Table(merged).try_into::<C>() {
        Ok(config) => {
            let mut checks = Problems::default();
            config.check(&mut checks);
            problems.extend(checks.found);
            if problems.is_empty() && lines.is_empty() {
                return Ok(config);
            }
        }
        // Every key alone is right, so this is about keys together.
        Err(error) if problems.is_empty() => {
            problems.push(Problem { key: String::new(), what: error.message().to_owned() })
        }
        Err(_) => {}
    }
    problems.sort_by_key(|problem| file.order(&problem.key));
    lines.extend(problems.iter().map(|problem| match problem.key.as_str() {
        "" => format!("{}: {}", origin.display(), problem.what),
        key => format!("{}: {key}: {}", file.place(key), problem.what),
    }));
    Err(problem_list(lines))
}

/// A configuration as TOML, with every key that has a value: what a run keeps of its own settings.
///
/// # Errors
/// A value that TOML cannot hold (an integer beyond 63 bits).
pub fn to_toml<C: Section>(config: &C) -> Result<String> {
    toml::to_string_pretty(config)
        .map_err(|error| Error::usage(format!("the configuration cannot be written: {error}")))
}

fn to_table<C: Section>(config: &C) -> Result<Table> {
    Table::try_from(config).map_err(|error| Error::usage(format!("the configuration cannot be written: {error}")))
}

fn problem_list(lines: Vec<String>) -> Error {
    match lines.as_slice() {
        [line] => Error::usage(line.clone()),
        _ => Error::usage(format!("{} problems in the configuration:\n  {}", lines.len(), lines.join("\n  "))),
    }
}

/// Applies one override.
fn apply(file: &mut TomlFile, example: &Table, given: &str) -> Result<(), String> {
    let (key, text) = given.split_once('=').ok_or("expected key=value")?;
    let (key, text) = (key.trim(), text.trim());
    let path: Vec<&str> = key.split('.').collect();
    if path.iter().any(|part| part.is_empty()) {
        return Err("expected key=value, with a key such as section.name".into());
    }
    let parsed = toml::from_str::<Table>(&format!("value = {text}")).ok().and_then(|mut table| {
        // A line end in the value could smuggle in a second key.
        (table.len() == 1).then(|| table.remove("value")).flatten()
    });
    let holds_text = matches!(find(example, &path), Some(Value::String(_)));
    let value = match parsed {
        Some(value) if value.is_str() || !holds_text => value,
        _ => Value::String(text.to_owned()),
    };
    file.set(&path, value, given)
}

/// The example value at a path; the single entry of a list stands for all of its entries.
fn find<'a>(example: &'a Table, path: &[&str]) -> Option<&'a Value> {
    let (first, rest) = path.split_first()?;
    let value = example.get(*first)?;
    match (value, rest) {
        (value, []) => Some(value),
        (Value::Table(table), rest) => find(table, rest),
        (Value::Array(list), [_, rest @ ..]) => find(list.first()?.as_table()?, rest),
        _ => None,
    }
}

/// Goes through the user's tree key by key and keeps what is right.
struct Sieve<'a, F> {
    example: &'a Table,
    default: &'a Table,
    problems: Vec<Problem>,
    /// The reason why a whole tree is not a configuration.
    deserialise: F,
}

/// One step down from the root.
#[derive(Clone)]
enum Step {
    Key(String),
    Entry(usize),
}

fn dotted(path: &[Step]) -> String {
    path.iter().fold(String::new(), |path, step| match step {
        Step::Key(key) => join(&path, key),
        Step::Entry(index) => format!("{path}[{index}]"),
    })
}

impl<F: Fn(Table) -> Option<String>> Sieve<'_, F> {
    fn report(&mut self, path: &[Step], what: String) {
        self.problems.push(Problem { key: dotted(path), what });
    }

    /// The right part of a user's table, whose valid keys are those of `valid`.
    fn table(&mut self, user: Table, valid: &Table, path: &mut Vec<Step>) -> Table {
        let mut kept = Table::new();
        for (key, value) in user {
            path.push(Step::Key(key.clone()));
            match valid.get(&key) {
                Some(valid) => kept.extend(self.value(value, valid, path).map(|value| (key, value))),
                None => self.unknown(&key, valid, path),
            }
            path.pop();
        }
        kept
    }

    fn value(&mut self, user: Value, valid: &Value, path: &mut Vec<Step>) -> Option<Value> {
        match (user, valid) {
            (Value::Table(user), Value::Table(valid)) if !valid.is_empty() => {
                Some(Value::Table(self.table(user, valid, path)))
            }
            (user, Value::Table(valid)) if !valid.is_empty() => {
                self.report(path, format!("expected a section, found {}", describe(&user)));
                None
            }
            (Value::Array(user), Value::Array(valid)) if valid.first().is_some_and(Value::is_table) => {
                Some(Value::Array(self.entries(user, &valid[0], path)))
            }
            (user, _) => match (self.deserialise)(self.probe(path, user.clone())) {
                None => Some(user),
                Some(reason) => {
                    self.report(path, reworded(&reason));
                    None
                }
            },
        }
    }

    /// A list of sections.
    fn entries(&mut self, user: Vec<Value>, valid: &Value, path: &mut Vec<Step>) -> Vec<Value> {
        let mut kept = Vec::new();
        for (index, entry) in user.into_iter().enumerate() {
            path.push(Step::Entry(index));
            // An entry that is wrong leaves a right one in its place, so that later ones keep their numbers.
            let entry = self.value(entry, valid, path);
            kept.push(entry.unwrap_or_else(|| valid.clone()));
            path.pop();
        }
        kept
    }

    /// The default configuration with one value put in: what is wrong with it is wrong with that value.
    fn probe(&self, path: &[Step], value: Value) -> Table {
        let single = path.iter().rev().fold(value, |value, step| match step {
            Step::Key(key) => Value::Table(Table::from_iter([(key.clone(), value)])),
            Step::Entry(_) => Value::Array(vec![value]),
        });
        let mut tree = self.default.clone();
        if let Value::Table(single) = single {
            overlay(&mut tree, single);
        }
        tree
    }

    fn unknown(&mut self, key: &str, valid: &Table, path: &[Step]) {
        let mut elsewhere = Vec::new();
        places_of(self.example, key, "", &mut elsewhere);
        // In the same section of the file if it is there too, and as little deep as possible.
        let section = path.first().map(|step| dotted(std::slice::from_ref(step)) + ".").unwrap_or_default();
        let other = elsewhere.iter().min_by_key(|other| (!other.starts_with(&section), other.matches('.').count()));
        let at_the_top = (path.len() == 1).then_some(EXTENDS);
        let near = nearest(key, valid.keys().map(String::as_str).chain(at_the_top));
        let advice = match (near, other) {
            (Some(near), _) => format!(" (did you mean `{near}`?)"),
            (None, Some(other)) => format!(" (did you mean `{other}`?)"),
            (None, None) => {
                let keys: Vec<&str> = valid.keys().map(String::as_str).collect();
                format!(" (valid here: {})", keys.join(", "))
            }
        };
        self.report(path, format!("unknown key{advice}"));
    }
}

/// Full paths of keys called `key`.
fn places_of(table: &Table, key: &str, path: &str, found: &mut Vec<String>) {
    for (name, value) in table {
        let path = join(path, name);
        if name == key {
            found.push(path.clone());
        }
        match value {
            Value::Table(table) => places_of(table, key, &path, found),
            Value::Array(list) => {
                let tables = list.first().and_then(Value::as_table);
                tables.into_iter().for_each(|table| places_of(table, key, &path, found));
            }
            _ => {}
        }
    }
}

fn describe(value: &Value) -> String {
    match value {
        Value::String(text) => format!("the text {text:?}"),
        Value::Array(_) => "a list".into(),
        Value::Table(_) => "a section".into(),
        other => format!("`{other}`"),
    }
}

/// serde's message in the words of the others: `invalid type: string "x", expected u64` → `expected u64, found string "x"`.
fn reworded(reason: &str) -> String {
    let reason = reason.lines().next().unwrap_or(reason).trim_end();
    let Some((_, rest)) = reason.split_once("invalid type: ").or_else(|| reason.split_once("invalid value: ")) else {
        return reason.to_owned();
    };
    let Some((found, expected)) = rest.rsplit_once(", expected ") else { return reason.to_owned() };
    let expected = match expected {
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number, 0 or more",
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number",
        "f32" | "f64" => "a number",
        "a boolean" => "true or false",
        "a string" => "text",
        "a sequence" => "a list",
        other => other,
    };
    format!("expected {expected}, found {found}")
}

#[cfg(test)]
mod tests;
