//! Text to tokens and back: a model folder's tokenizer, with control tokens closed to content.
//!
//! Invariant: [`Tokenizer::encode_plain`] adds nothing to the text, never returns the id of a control token, whatever
//! the text says, and never returns an id that the embedding has no row for. Only templates, which use
//! [`Tokenizer::encode_marked`], emit control tokens. The work is done by the `tokenizers` crate.

pub mod bytes;
pub mod closed;
pub mod pieces;
pub mod sections;
pub mod special;
mod words;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde_json::Value;

use crate::error::{Error, Result};
use bytes::{Alphabet, TokenBytes};
use pieces::Cuts;
use sections::{ControlToken, Prefixing};
pub use special::{NamedToken, SpecialTokens};
use special::{Oracle, TokenFiles};
use words::Tables;

/// The tokenizer of a model folder.
pub struct Tokenizer {
    open: tokenizers::Tokenizer,
    plain: tokenizers::Tokenizer,
    /// `plain` for text that continues a text: nothing is put before it. Made when first needed.
    continuing: OnceLock<tokenizers::Tokenizer>,
    prefixing: Prefixing,
    cuts: Cuts,
    words: Tables,
    controls: Vec<ControlToken>,
    special: SpecialTokens,
    closed: HashSet<u32>,
    unknown: Option<u32>,
    token_bytes: TokenBytes,
    embedding_rows: usize,
    fingerprint: blake3::Hash,
    warnings: Vec<String>,
    path: PathBuf,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("path", &self.path).field("special", &self.special).finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Loads `tokenizer.json` and what surrounds it. `embedding_rows` is the model's number of token embeddings; none
    /// takes `vocab_size` of `config.json`, and without that the tokenizer's own size.
    ///
    /// # Errors
    /// No or broken `tokenizer.json`; ids other than the file states; BOS or EOS missing or beyond the embedding.
    pub fn load(folder: &Path, embedding_rows: Option<usize>) -> Result<Tokenizer> {
        let path = folder.join("tokenizer.json");
        let bytes = std::fs::read(&path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => missing(folder),
            _ => Error::io(&path, "read", error),
        })?;
        let broken = |reason: &dyn std::fmt::Display| {
            Error::file(&path, format_args!("not a tokenizer this program can read: {reason}"))
                .hint("fetch the model's tokenizer.json again")
        };
        let mut json: Value = serde_json::from_slice(&bytes).map_err(|error| broken(&error))?;
        let open = tokenizers::Tokenizer::from_bytes(&bytes).map_err(|error| broken(&error))?;
        check_ids(&path, &json, &open)?;
        check_decoder(&path, &json["decoder"])?;

        let files = TokenFiles::read(folder)?;
        let mut warnings = Vec::new();
        let oracle = Oracle {
            folder,
            id: &|text| open.token_to_id(text),
            text: &|id| open.id_to_token(id),
            leading: leading_id(&open).map_err(|error| broken(&error))?,
        };
        let special = SpecialTokens::find(&files, &oracle, &mut warnings)?;
        let named = closed_tokens(&json, &special, &open);
        let alphabet = Alphabet::of(&json);
        let unknown = json["model"]["unk_token"].as_str().and_then(|name| open.token_to_id(name));
        let unknown = unknown.or_else(|| json["model"]["unk_id"].as_u64().map(|id| id as u32));
        let controls = sections::control_tokens(&json, &named);
        let prefixing = Prefixing::of(&json).map_err(|error| broken(&error))?;
        let cuts = Cuts::of(&json, &|text| named.contains_key(text));
        closed::close(&mut json, &named);
        let closed_json = serde_json::to_vec(&json).map_err(|error| broken(&error))?;
        let mut plain = tokenizers::Tokenizer::from_bytes(closed_json).map_err(|error| broken(&error))?;
        plain.set_encode_special_tokens(true);

        let rows = embedding_rows.or_else(|| files.config["vocab_size"].as_u64().map(|rows| rows as usize));
        let mut tokenizer = Tokenizer {
            embedding_rows: rows.unwrap_or_else(|| open.get_vocab_size(true)),
            token_bytes: token_bytes(&open, alphabet, &named),
            closed: named.into_values().collect(),
            unknown,
            fingerprint: blake3::hash(&bytes),
            open,
            plain,
            continuing: OnceLock::new(),
            prefixing,
            cuts,
            words: Tables::new(),
            controls,
            special,
            warnings,
            path,
        };
        tokenizer.check_rows(&files)?;
        tokenizer.fingerprint = tokenizer.full_fingerprint();
        Ok(tokenizer)
    }

    fn full_fingerprint(&self) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        let mut closed: Vec<u32> = self.closed.iter().copied().collect();
        closed.sort_unstable();
        // Debug text names every role with its token; it holds no map, so that it is the same each time.
        let rest = format!("{:?} {closed:?} {}", self.special, self.embedding_rows);
        hasher.update(self.fingerprint.as_bytes()).update(rest.as_bytes());
        hasher.finalize()
    }

    /// BOS and EOS must have embeddings; other tokens beyond the last row are only worth a word.
    fn check_rows(&mut self, files: &TokenFiles) -> Result<()> {
        let rows = self.embedding_rows;
        for (role, token) in [("BOS", &self.special.bos), ("EOS", &self.special.eos)] {
            if let Some(token) = token.as_ref().filter(|token| token.id as usize >= rows) {
                let what =
                    format_args!("{role} `{}` is id {}, but the model has {rows} embeddings", token.text, token.id);
                return Err(Error::file(&self.path, what).hint("this tokenizer belongs to another model"));
            }
        }
        let vocabulary = self.open.get_vocab(true);
        let mut beyond: Vec<(u32, &str)> = vocabulary.iter().map(|(text, &id)| (id, text.as_str())).collect();
        beyond.extend(files.declared_ids().into_iter().map(|(text, id)| (id, text)));
        beyond.retain(|(id, _)| *id as usize >= rows);
        beyond.sort_unstable();
        beyond.dedup();
        if let Some((id, text)) = beyond.first() {
            self.warnings.push(format!(
                "{} token(s) have no embedding: `{text}` is id {id}, the model has {rows}; text that needs one is refused",
                beyond.len()
            ));
        }
        if self.special.eos.is_none() {
            self.warnings.push("the tokenizer has no EOS token: documents will have no end mark".into());
        }
        Ok(())
    }

    /// The ids of content: no control token, nothing added before or after.
    ///
    /// # Errors
    /// Text that needs a token without an embedding.
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>> {
        self.encode_long(text, true)
    }

    /// The ids of text by `plain` or its sibling that puts nothing before it.
    fn encode_closed(&self, tokenizer: &tokenizers::Tokenizer, text: &str) -> Result<Vec<u32>> {
        let encoding = tokenizer.encode_fast(text, false).map_err(|error| self.encode_error(text, &error))?;
        let ids = encoding.get_ids().to_vec();
        // The unknown token is the one control token that text may give: where no other token covers a character.
        if let Some(id) = ids.iter().find(|&id| self.closed.contains(id) && Some(*id) != self.unknown) {
            return Err(self.encode_error(text, &format_args!("it gives control token {id}")));
        }
        self.check_embedding(text, &ids)?;
        Ok(ids)
    }

    /// The ids of template text, in which names of control tokens are control tokens. Nothing is added.
    ///
    /// # Errors
    /// As [`Tokenizer::encode_plain`].
    pub fn encode_template(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.encode_marked(text, &self.find_controls(text), &[])?.ids)
    }

    fn check_embedding(&self, text: &str, ids: &[u32]) -> Result<()> {
        match ids.iter().find(|&&id| id as usize >= self.embedding_rows) {
            None => Ok(()),
            Some(&id) => Err(self
                .encode_error(
                    text,
                    &format_args!(
                        "it needs token `{}` (id {id}), but the model has {} embeddings",
                        self.token(id),
                        self.embedding_rows
                    ),
                )
                .hint("this tokenizer has tokens that were added after the model was trained")),
        }
    }

    fn encode_error(&self, text: &str, reason: &dyn std::fmt::Display) -> Error {
        let start: String = text.chars().take(40).collect();
        Error::file(&self.path, format_args!("cannot encode text that begins {start:?}: {reason}"))
    }

    /// Ids as text. `skip_special` leaves control tokens out.
    ///
    /// # Errors
    /// What the tokenizer's decoder refuses.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        self.open
            .decode(ids, skip_special)
            .map_err(|error| Error::file(&self.path, format_args!("cannot decode: {error}")))
    }

    /// The vocabulary's name of a token, `?` beyond it.
    pub fn token(&self, id: u32) -> String {
        self.open.id_to_token(id).unwrap_or_else(|| "?".into())
    }

    /// Id of a token by its name.
    pub fn token_id(&self, text: &str) -> Option<u32> {
        self.open.token_to_id(text)
    }

    /// Whether content can never hold this id.
    pub fn is_closed(&self, id: u32) -> bool {
        self.closed.contains(&id)
    }

    /// BOS, EOS, stop ids and the rest.
    pub fn special(&self) -> &SpecialTokens {
        &self.special
    }

    /// Bytes of text per token.
    pub fn token_bytes(&self) -> &TokenBytes {
        &self.token_bytes
    }

    /// Number of ids that have an embedding.
    pub fn embedding_rows(&self) -> usize {
        self.embedding_rows
    }

    /// blake3 of `tokenizer.json` and of what else decides ids: the control tokens, BOS and EOS, the number of
    /// embeddings. Tells whether tokens made earlier are still the right ones.
    pub fn fingerprint(&self) -> blake3::Hash {
        self.fingerprint
    }

    /// What was odd at loading.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The underlying tokenizer, for decoding streams.
    pub fn inner(&self) -> &tokenizers::Tokenizer {
        &self.open
    }
}

fn missing(folder: &Path) -> Error {
    let error = Error::file(&folder.join("tokenizer.json"), "no such file");
    if !folder.is_dir() {
        return error.hint("is this the model's folder? It should hold config.json, tokenizer.json and the weights");
    }
    match folder.join("tokenizer.model").exists() {
        true => error.hint(
            "the folder has only the sentencepiece tokenizer.model; take tokenizer.json from the same model on the hub, \
             or write it with transformers: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)",
        ),
        false => error.hint("copy tokenizer.json from the model's page into this folder"),
    }
}

/// The id that the post-processor puts before text.
fn leading_id(tokenizer: &tokenizers::Tokenizer) -> tokenizers::Result<Option<u32>> {
    let (with, without) = (tokenizer.encode_fast("a", true)?, tokenizer.encode_fast("a", false)?);
    let (with, without) = (with.get_ids(), without.get_ids());
    Ok(match with {
        [first, rest @ ..] if !without.is_empty() && rest.starts_with(without) => Some(*first),
        _ => None,
    })
}

/// The library numbers added tokens itself; where that differs from the file, every later id would be another token.
fn check_ids(path: &Path, json: &Value, tokenizer: &tokenizers::Tokenizer) -> Result<()> {
    for token in json["added_tokens"].as_array().into_iter().flatten() {
        let (Some(text), Some(id)) = (token["content"].as_str(), token["id"].as_u64()) else { continue };
        let found = tokenizer.token_to_id(text).map(u64::from);
        if found != Some(id) && !text.is_empty() {
            let found = found.map_or("none".into(), |id| id.to_string());
            return Err(Error::file(
                path,
                format_args!("added token `{text}`: the file says id {id}, its place gives {found}"),
            )
            .hint("the added tokens must follow the vocabulary without gaps, in ascending order"));
        }
    }
    Ok(())
}

/// Refuses what the library cannot decode: a `Strip` at the end panics on a token that is shorter than what it strips.
fn check_decoder(path: &Path, decoder: &Value) -> Result<()> {
    if decoder["type"] == "Strip" && decoder["stop"].as_u64().is_some_and(|stop| stop > 0) {
        let what = format_args!("its decoder strips {} characters at the end of texts", decoder["stop"]);
        return Err(Error::file(path, what)
            .hint("only a decoder that strips at the start can be used: set \"stop\" to 0 if the model allows it"));
    }
    let mut parts = decoder["decoders"].as_array().into_iter().flatten();
    parts.try_for_each(|part| check_decoder(path, part))
}

/// The tokens that content must never give: those the files call special, those with a role, and added tokens of the
/// shape `<|...|>`, which some models forget to mark.
fn closed_tokens(json: &Value, special: &SpecialTokens, open: &tokenizers::Tokenizer) -> HashMap<String, u32> {
    let mut closed = HashMap::new();
    for token in json["added_tokens"].as_array().into_iter().flatten() {
        let Some(text) = token["content"].as_str() else { continue };
        let control = token["special"] == Value::Bool(true) || (text.starts_with("<|") && text.ends_with("|>"));
        if let Some(id) = open.token_to_id(text).filter(|_| control) {
            closed.insert(text.to_owned(), id);
        }
    }
    let roles = [&special.bos, &special.bos_token, &special.eos, &special.pad, &special.unk];
    let roles = roles.into_iter().flatten().chain(&special.additional);
    closed.extend(roles.map(|token| (token.text.clone(), token.id)));
    // A stop id may be ordinary text, such as a line end: only added tokens are closed for stopping a generation.
    let added = open.get_added_tokens_decoder();
    closed.extend(special.stop_ids.iter().filter_map(|&id| Some((added.get(&id)?.content.clone(), id))));
    closed
}

fn token_bytes(open: &tokenizers::Tokenizer, alphabet: Alphabet, closed: &HashMap<String, u32>) -> TokenBytes {
    let added = open.get_added_tokens_decoder();
    let vocabulary = open.get_vocab(true);
    let size = vocabulary.values().max().map_or(0, |&id| id as usize + 1);
    let mut lengths = vec![0; size];
    for (text, &id) in &vocabulary {
        let length = match (closed.contains_key(text), added.contains_key(&id)) {
            (true, _) => 0,
            (false, true) => text.len(),
            (false, false) => alphabet.length(text),
        };
        lengths[id as usize] = length as u32;
    }
    TokenBytes::new(lengths)
}

#[cfg(test)]
mod tests;
