//! Where a model folder keeps its chat template, in transformers' order: `chat_template.jinja`, then the key
//! `chat_template` of `tokenizer_config.json` (a text, or a list with one named `default`), then that of
//! `chat_template.json`.

use std::path::Path;

use serde_json::Value;

use crate::data::tokenize::special::read_json;
use crate::error::{Error, Result};

/// A template and where it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// File, for messages.
    pub place: String,
    /// Jinja text.
    pub text: String,
}

/// The model's template, none if it has none.
///
/// # Errors
/// Files that cannot be read.
pub fn find(folder: &Path) -> Result<Option<Found>> {
    let file = folder.join("chat_template.jinja");
    if file.exists() {
        return Ok(Some(Found { place: file.display().to_string(), text: read_text(&file)? }));
    }
    for name in ["tokenizer_config.json", "chat_template.json"] {
        let file = folder.join(name);
        if let Some(text) = in_json(&read_json(&file)?["chat_template"]) {
            return Ok(Some(Found { place: format!("{} (chat_template)", file.display()), text }));
        }
    }
    Ok(None)
}

fn in_json(value: &Value) -> Option<String> {
    let named = |name: &str| {
        let list = value.as_array().into_iter().flatten();
        list.into_iter().find(|entry| name.is_empty() || entry["name"] == name)?["template"].as_str()
    };
    value.as_str().or_else(|| named("default")).or_else(|| named("")).map(str::to_owned)
}

/// A file's text.
///
/// # Errors
/// No such file; bytes that are not UTF-8.
pub fn read_text(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).map_err(|error| Error::io(path, "read", error))?;
    String::from_utf8(bytes)
        .map_err(|error| Error::file(path, format_args!("not UTF-8 at byte {}", error.utf8_error().valid_up_to())))
}
