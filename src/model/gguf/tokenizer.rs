//! The tokenizer of a GGUF file as Hugging Face files: `tokenizer.json`, `tokenizer_config.json`,
//! `generation_config.json`.
//!
//! Two kinds exist in LLaMA models: byte-level BPE (`gpt2`, see [`byte_level`]) and SentencePiece BPE with byte fallback
//! (`llama`, see [`sentencepiece`]). Invariant: the `tokenizers` crate reads the JSON, and every token has its id.
//! Control tokens (type 3) become special added tokens, user-defined ones (type 4) plain added tokens.

pub mod byte_level;
pub mod sentencepiece;

use super::config::TokenIds;
use super::file::GgufFile;
use crate::error::Result;
use serde_json::{json, Map, Value};
use std::collections::HashMap;

/// The three files.
#[derive(Debug, Clone)]
pub struct TokenizerFiles {
    /// `tokenizer.json`.
    pub tokenizer: Value,
    /// `tokenizer_config.json`, with the chat template.
    pub tokenizer_config: Value,
    /// `generation_config.json`.
    pub generation_config: Value,
    /// What was odd: the metadata said less than it should.
    pub notes: Vec<String>,
}

/// What a token is for, by its number in `tokenizer.ggml.token_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A piece of text.
    Normal = 1,
    /// What stands for text that no token covers.
    Unknown,
    /// Never text.
    Control,
    /// Cut out of text before anything else.
    UserDefined,
    /// A row of the embedding without a token.
    Unused,
    /// One byte.
    Byte,
}

impl Role {
    fn of(number: f64) -> Option<Role> {
        const ROLES: [Role; 6] =
            [Role::Normal, Role::Unknown, Role::Control, Role::UserDefined, Role::Unused, Role::Byte];
        ROLES.into_iter().zip(1u8..).find(|(_, known)| f64::from(*known) == number).map(|(role, _)| role)
    }
}

/// The vocabulary as the file has it.
struct Vocabulary {
    /// Text of each id.
    tokens: Vec<String>,
    /// Role of each id.
    roles: Vec<Role>,
    /// Id of each text; the first where a text occurs twice.
    ids: HashMap<String, u32>,
}

impl Vocabulary {
    fn of(file: &GgufFile, embedding_rows: usize, notes: &mut Vec<String>) -> Result<Vocabulary> {
        const TOKENS: &str = "tokenizer.ggml.tokens";
        const TYPES: &str = "tokenizer.ggml.token_type";
        let tokens = file.texts(TOKENS)?.ok_or_else(|| file.wrong(TOKENS, "a list of texts"))?;
        if tokens.is_empty() || tokens.len() > embedding_rows {
            return Err(file.wrong(TOKENS, &format!("at most {embedding_rows}, the rows of the embedding")));
        }
        let roles = match file.numbers(TYPES)? {
            None => {
                notes.push(format!("{TYPES} is missing: only the tokens with a role of their own are special"));
                vec![Role::Normal; tokens.len()]
            }
            Some(numbers) if numbers.len() == tokens.len() => {
                let roles: Option<Vec<Role>> = numbers.iter().map(|&number| Role::of(number)).collect();
                roles.ok_or_else(|| file.wrong(TYPES, "types from 1 to 6"))?
            }
            Some(_) => return Err(file.wrong(TYPES, &format!("{} types, one for each token", tokens.len()))),
        };
        let mut ids = HashMap::with_capacity(tokens.len());
        for (id, token) in tokens.iter().enumerate() {
            ids.entry(token.clone()).or_insert(id as u32);
        }
        if ids.len() < tokens.len() {
            notes.push(format!("{} tokens have the text of an earlier one and are left out", tokens.len() - ids.len()));
        }
        Ok(Vocabulary { tokens, roles, ids })
    }

    fn token(&self, id: u32) -> Option<&str> {
        self.tokens.get(id as usize).map(String::as_str)
    }

    /// `vocab` of the model: every text with its id.
    fn json(&self) -> Value {
        let first = |(id, token): &(usize, &String)| self.ids.get(*token) == Some(&(*id as u32));
        let entries = self.tokens.iter().enumerate().filter(first);
        Value::Object(entries.map(|(id, token)| (token.clone(), json!(id))).collect())
    }

    /// `added_tokens`: those that are cut out of text before anything else, by ascending id.
    fn added_json(&self, specials: &[u32]) -> Vec<Value> {
        let added = |(id, token): (usize, &String)| {
            let id = id as u32;
            let role = self.roles[id as usize];
            let special = matches!(role, Role::Control | Role::Unknown) || specials.contains(&id);
            if !(special || role == Role::UserDefined) || token.is_empty() || self.ids.get(token) != Some(&id) {
                return None;
            }
            Some(json!({
                "id": id,
                "content": token,
                "single_word": false,
                "lstrip": false,
                "rstrip": false,
                "normalized": false,
                "special": special,
            }))
        };
        self.tokens.iter().enumerate().filter_map(added).collect()
    }
}

/// The parts of `tokenizer.json` in which the kinds of tokenizer differ.
struct Parts {
    normalizer: Value,
    pre_tokenizer: Value,
    decoder: Value,
    model: Value,
    /// What follows the model where nothing is added to text.
    post_processor: Value,
    /// Whether BOS is put before text unless the file says otherwise.
    adds_bos: bool,
    /// Id of the token for what cannot be encoded.
    unknown: Option<u32>,
}

/// The tokenizer's files. `embedding_rows` bounds its size.
///
/// Errors: a kind of tokenizer or a pre-tokenizer that is not known here; lists that do not fit each other.
pub fn files(file: &GgufFile, embedding_rows: usize) -> Result<TokenizerFiles> {
    let mut notes = Vec::new();
    let kind = file.text("tokenizer.ggml.model")?;
    if !matches!(kind, Some("gpt2" | "llama")) {
        let hint = "put the tokenizer.json of the original model beside the imported weights";
        return Err(file.wrong("tokenizer.ggml.model", "\"gpt2\" or \"llama\"").hint(hint));
    }
    let vocabulary = Vocabulary::of(file, embedding_rows, &mut notes)?;
    let parts = match kind {
        Some("gpt2") => byte_level::parts(file, &vocabulary, &mut notes)?,
        _ => sentencepiece::parts(file, &vocabulary)?,
    };
    let ids = TokenIds::of(file, vocabulary.tokens.len())?;
    let adds_bos = file.flag("tokenizer.ggml.add_bos_token")?.unwrap_or(parts.adds_bos);
    let adds_eos = file.flag("tokenizer.ggml.add_eos_token")?.unwrap_or(false);
    let before = ids.bos.filter(|_| adds_bos);
    let after = ids.eos.first().copied().filter(|_| adds_eos);
    let post_processor = match (before, after) {
        (None, None) => parts.post_processor,
        _ => template(&vocabulary, before, after),
    };
    let specials: Vec<u32> = ids.bos.into_iter().chain(ids.eos.iter().copied()).chain(ids.pad).collect();
    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": vocabulary.added_json(&specials),
        "normalizer": parts.normalizer,
        "pre_tokenizer": parts.pre_tokenizer,
        "post_processor": post_processor,
        "decoder": parts.decoder,
        "model": parts.model,
    });
    let roles = Roles { ids: &ids, adds_bos: before.is_some(), adds_eos: after.is_some(), unknown: parts.unknown };
    Ok(TokenizerFiles {
        tokenizer,
        tokenizer_config: tokenizer_config(file, &vocabulary, &roles)?,
        generation_config: generation_config(&ids),
        notes,
    })
}

/// Puts tokens before and after each text.
fn template(vocabulary: &Vocabulary, before: Option<u32>, after: Option<u32>) -> Value {
    let special = |id: Option<u32>, sequence: u32| {
        let token = id.and_then(|id| vocabulary.token(id));
        token.map(|token| json!({"SpecialToken": {"id": token, "type_id": sequence}}))
    };
    let around = |name: &str, sequence: u32| {
        let text = json!({"Sequence": {"id": name, "type_id": sequence}});
        [special(before, sequence), Some(text), special(after, sequence)].into_iter().flatten().collect::<Vec<_>>()
    };
    let named = |id: u32| {
        let token = vocabulary.token(id).unwrap_or_default();
        (token.to_string(), json!({"id": token, "ids": [id], "tokens": [token]}))
    };
    let tokens: Map<String, Value> = before.into_iter().chain(after).map(named).collect();
    let pair = [around("A", 0), around("B", 1)].concat();
    json!({
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": pair,
        "special_tokens": tokens,
    })
}

struct Roles<'a> {
    ids: &'a TokenIds,
    adds_bos: bool,
    adds_eos: bool,
    unknown: Option<u32>,
}

/// The class is the one that takes `tokenizer.json` as it is.
fn tokenizer_config(file: &GgufFile, vocabulary: &Vocabulary, roles: &Roles<'_>) -> Result<Value> {
    let mut config = Map::new();
    config.insert("tokenizer_class".into(), json!("PreTrainedTokenizerFast"));
    config.insert("add_bos_token".into(), json!(roles.adds_bos));
    config.insert("add_eos_token".into(), json!(roles.adds_eos));
    let named = [
        ("bos_token", roles.ids.bos),
        ("eos_token", roles.ids.eos.first().copied()),
        ("pad_token", roles.ids.pad),
        ("unk_token", roles.unknown),
    ];
    for (key, id) in named {
        if let Some(token) = id.and_then(|id| vocabulary.token(id)) {
            config.insert(key.into(), json!(token));
        }
    }
    config.insert("clean_up_tokenization_spaces".into(), json!(false));
    if let Some(prefix) = file.text("general.architecture")? {
        if let Some(length) = file.whole(&format!("{prefix}.context_length"))? {
            config.insert("model_max_length".into(), json!(length));
        }
    }
    if let Some(template) = file.text("tokenizer.chat_template")? {
        config.insert("chat_template".into(), json!(template));
    }
    Ok(Value::Object(config))
}

fn generation_config(ids: &TokenIds) -> Value {
    let mut config = Map::new();
    let named = [("bos_token_id", ids.bos.map(|id| json!(id))), ("eos_token_id", ids.eos_json())];
    let named = named.into_iter().chain([("pad_token_id", ids.pad.map(|id| json!(id)))]);
    config.extend(named.filter_map(|(key, value)| Some((key.to_string(), value?))));
    Value::Object(config)
}

#[cfg(test)]
#[path = "tokenizer_tests.rs"]
mod tests;
