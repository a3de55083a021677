//! A TOML text as a tree whose keys know their lines.
//!
//! Values stand in the tree as plain [`toml::Value`]s; where they stand in the file is kept beside, by dotted path.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};
use toml::{Table, Value};

/// A parsed file and the places of its keys.
pub struct TomlFile {
    /// The content.
    pub root: Table,
    origin: PathBuf,
    /// Line of each key, or the override that set it, by dotted path.
    places: HashMap<String, Place>,
}

enum Place {
    Line(usize),
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
            Ok(root) => Ok(TomlFile { root, origin: origin.to_owned(), places }),
            Err(error) => Err(vec![format!("{}: {}", origin.display(), error.message())]),
        }
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
            let index = rest.peek().and_then(|part| part.parse::<usize>().ok());
            if let (true, Some(index)) = (next.is_array(), index) {
                rest.next();
                let count = next.as_array().map_or(0, Vec::len);
                walked = format!("{walked}[{index}]");
                next = next
                    .get_mut(index)
                    .ok_or_else(|| format!("{walked} does not exist, the list has {count} entries"))?;
            }
            table = next.as_table_mut().ok_or_else(|| format!("{walked} is not a section"))?;
        }
        table.insert((*last).to_owned(), value);
        self.places.insert(join(&walked, last), Place::Override(format!("--set {given}")));
        Ok(())
    }

    /// What problems are sorted by: the line of [`TomlFile::place`], overrides after all lines.
    pub fn order(&self, key: &str) -> usize {
        match self.nearest_place(key) {
            Some(Place::Line(line)) => *line,
            Some(Place::Override(_)) => usize::MAX,
            None => 0,
        }
    }

    /// `file:line` of the key, of the nearest section above it, or the file alone.
    pub fn place(&self, key: &str) -> String {
        match self.nearest_place(key) {
            Some(Place::Line(line)) => format!("{}:{line}", self.origin.display()),
            Some(Place::Override(given)) => given.clone(),
            None => self.origin.display().to_string(),
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
        places.insert(path.clone(), Place::Line(line_of(key.span().start)));
        match value.get_ref() {
            DeValue::Table(table) => locate(table, &path, line_of, places),
            DeValue::Array(list) => {
                for (index, entry) in list.iter().enumerate() {
                    let path = format!("{path}[{index}]");
                    places.insert(path.clone(), Place::Line(line_of(entry.span().start)));
                    if let DeValue::Table(table) = entry.get_ref() {
                        locate(table, &path, line_of, places);
                    }
                }
            }
            _ => {}
        }
    }
}
