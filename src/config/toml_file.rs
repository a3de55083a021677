//! A TOML text, and what it extends, as a tree whose keys know their lines.
//!
//! Values stand in the tree as plain [`toml::Value`]s; where they stand in which file is kept beside, by dotted path.
//! `extends = "other.toml"` at the top puts the file on top of another one, whose path starts at the file's own folder:
//! table by table, lists replaced whole.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};
use toml::{Table, Value};

/// The key that names the file below.
pub const EXTENDS: &str = "extends";
/// Files on top of each other, at most: more are a mistake.
const MOST_FILES: usize = 8;

/// A parsed file and the places of its keys.
pub struct TomlFile {
    /// The content.
    pub root: Table,
    /// The file and those that it extends.
    origins: Vec<PathBuf>,
    /// Line of each key, or the override that set it, by dotted path.
    places: HashMap<String, Place>,
}

enum Place {
    /// Which of the files, and the line in it.
    Line(usize, usize),
    Override(String),
}

impl TomlFile {
    /// Parses `text`, which came from `origin` (for messages).
    ///
    /// # Errors
    /// All syntax errors, one line each.
    pub fn parse(text: &str, origin: &Path) -> Result<TomlFile, Vec<String>> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let line_of =
            |offset: usize| 1 + text.as_bytes()[..offset.min(text.len())].iter().filter(|&&b| b == b'\n').count();
        let (table, errors) = DeTable::parse_recoverable(text);
        if !errors.is_empty() {
            let line = |error: &toml::de::Error| {
                error.span().map_or(String::new(), |span| format!(":{}", line_of(span.start)))
            };
            return Err(errors.iter().map(|e| format!("{}{}: {}", origin.display(), line(e), e.message())).collect());
        }
        let mut places = HashMap::new();
        locate(table.get_ref(), "", &line_of, &mut places);
        match toml::from_str::<Table>(text) {
            Ok(root) => Ok(TomlFile { root, origins: vec![origin.to_owned()], places }),
            Err(error) => Err(vec![format!("{}: {}", origin.display(), error.message())]),
        }
    }

    /// [`TomlFile::parse`], with everything that the text extends below it.
    ///
    /// # Errors
    /// All syntax errors of a file; a file below that cannot be read, or that extends itself.
    pub fn parse_extended(text: &str, origin: &Path) -> Result<TomlFile, Vec<String>> {
        let mut file = TomlFile::parse(text, origin)?;
        while let Some(below) = file.root.remove(EXTENDS) {
            let place = file.place(EXTENDS);
            file.places.remove(EXTENDS);
            let wrong = |what: String| vec![format!("{place}: {EXTENDS}: {what}")];
            let Value::String(below) = below else {
                return Err(wrong(format!("expected the path of a configuration, found {below}")));
            };
            let folder = file.origins.last().and_then(|path| path.parent()).unwrap_or(Path::new(""));
            let path = folder.join(below);
            if file.origins.contains(&path) || file.origins.len() >= MOST_FILES {
                return Err(wrong(format!("{}: a file cannot extend itself", path.display())));
            }
            let text = std::fs::read_to_string(&path)
                .map_err(|error| wrong(format!("{}: cannot read the configuration: {error}", path.display())))?;
            file = file.on_top_of(TomlFile::parse(&text, &path)?);
        }
        Ok(file)
    }

    /// Puts this tree over `below`.
    fn on_top_of(mut self, below: TomlFile) -> TomlFile {
        let mut root = below.root;
        overlay(&mut root, self.root);
        let count = self.origins.len();
        let own: HashSet<String> = self.places.keys().cloned().collect();
        for (key, place) in below.places {
            let list = key.split('[').next().unwrap_or(&key);
            let is_replaced = list != key && own.contains(list);
            let Place::Line(file, line) = place else { continue };
            if !is_replaced {
                self.places.entry(key).or_insert(Place::Line(count + file, line));
            }
        }
        // The next file to look for is the one that `below` names.
        self.origins.extend(below.origins);
        TomlFile { root, ..self }
    }

    /// Puts a value into the tree; tables on the way are made. `given` is the override as the user wrote it.
    ///
    /// # Errors
    /// The part of the path that is there already and is no table or list entry.
    pub fn set(&mut self, path: &[&str], value: Value, given: &str) -> Result<(), String> {
        let Some((last, above)) = path.split_last() else { return Err("no key".into()) };
        let mut table = &mut self.root;
        let mut rest = above.iter().peekable();
        let mut walked = String::new();
        while let Some(name) = rest.next() {
            walked = join(&walked, name);
            self.places.entry(walked.clone()).or_insert_with(|| Place::Override(format!("--set {given}")));
            let mut next = table.entry(*name).or_insert_with(|| Value::Table(Table::new()));
            if let (Some(list), Some(entry)) = (next.as_array(), rest.peek()) {
                let index = index_of(list, entry).ok_or_else(|| missing(&walked, list, entry))?;
                rest.next();
                walked = format!("{walked}[{index}]");
                next = next.get_mut(index).ok_or_else(|| format!("{walked} does not exist"))?;
            }
            table = next.as_table_mut().ok_or_else(|| format!("{walked} is not a section"))?;
        }
        table.insert((*last).to_owned(), value);
        self.places.insert(join(&walked, last), Place::Override(format!("--set {given}")));
        Ok(())
    }

    /// What problems are sorted by: file and line of [`TomlFile::place`], overrides after all lines.
    pub fn order(&self, key: &str) -> (usize, usize) {
        match self.nearest_place(key) {
            Some(Place::Line(file, line)) => (*file, *line),
            Some(Place::Override(_)) => (usize::MAX, 0),
            None => (0, 0),
        }
    }

    /// `file:line` of the key, of the nearest section above it, or the file alone.
    pub fn place(&self, key: &str) -> String {
        match self.nearest_place(key) {
            Some(Place::Line(file, line)) => format!("{}:{line}", self.origins[*file].display()),
            Some(Place::Override(given)) => given.clone(),
            None => self.origins[0].display().to_string(),
        }
    }

    fn nearest_place(&self, key: &str) -> Option<&Place> {
        let mut path = key;
        loop {
            if let Some(place) = self.places.get(path) {
                return Some(place);
            }
            path = &path[..path.rfind(['.', '['])?];
        }
    }
}

/// Which entry of a list of sections is meant: its number, or its `name`.
fn index_of(list: &[Value], entry: &str) -> Option<usize> {
    let has_name = |value: &Value| value.get("name").and_then(Value::as_str) == Some(entry);
    list.iter().position(has_name).or_else(|| entry.parse().ok().filter(|index| *index < list.len()))
}

fn missing(walked: &str, list: &[Value], entry: &str) -> String {
    let count = list.len();
    match entry.parse::<usize>() {
        Ok(index) => format!("{walked}[{index}] does not exist, the list has {count} entries"),
        Err(_) if list.iter().any(Value::is_table) => {
            let names: Vec<&str> = list.iter().filter_map(|value| value.get("name")?.as_str()).collect();
            format!("{walked} has no entry named {entry} (there: {}), and {entry} is no number", names.join(", "))
        }
        Err(_) => format!("{walked} is not a section"),
    }
}

/// Puts `over` on top of `under`, table by table; lists are replaced whole.
pub fn overlay(under: &mut Table, over: Table) {
    for (key, value) in over {
        match (under.get_mut(&key), value) {
            (Some(Value::Table(under)), Value::Table(over)) => overlay(under, over),
            (_, value) => drop(under.insert(key, value)),
        }
    }
}

/// `section.key`, or `key` at the top.
pub fn join(path: &str, key: &str) -> String {
    if path.is_empty() {
        key.to_owned()
    } else {
        format!("{path}.{key}")
    }
}

fn locate(table: &DeTable<'_>, path: &str, line_of: &dyn Fn(usize) -> usize, places: &mut HashMap<String, Place>) {
    for (key, value) in table {
        let path = join(path, key.get_ref());
        places.insert(path.clone(), Place::Line(0, line_of(key.span().start)));
        match value.get_ref() {
            DeValue::Table(table) => locate(table, &path, line_of, places),
            DeValue::Array(list) => {
                for (index, entry) in list.iter().enumerate() {
                    let path = format!("{path}[{index}]");
                    places.insert(path.clone(), Place::Line(0, line_of(entry.span().start)));
                    if let DeValue::Table(table) = entry.get_ref() {
                        locate(table, &path, line_of, places);
                    }
                }
            }
            _ => {}
        }
    }
}
