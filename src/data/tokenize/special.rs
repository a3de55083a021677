//! What a model folder says about its control tokens: `tokenizer_config.json`, `special_tokens_map.json`,
//! `config.json`, `generation_config.json`, `added_tokens.json`.
//!
//! The files contradict each other in real models; the order of belief is stated at each field. A name beats a number,
//! and a role that the tokenizer never acts on is not believed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;

use crate::error::{Error, Result};

/// A control token that templates may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedToken {
    /// Its text, such as `</s>`.
    pub text: String,
    /// Its id.
    pub id: u32,
}

/// The control tokens of a model.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    /// Beginning of a document, if transformers puts one there: as `add_bos_token` says for the LLaMA tokenizer
    /// classes, as the post-processor of tokenizer.json does for others. A `bos_token` that is only named is not one.
    pub bos: Option<NamedToken>,
    /// The `bos_token` by name, whether or not it is put in front of text: what templates write for `bos_token`.
    pub bos_token: Option<NamedToken>,
    /// End of a document: `eos_token` by name, else the first `eos_token_id` of `config.json`.
    pub eos: Option<NamedToken>,
    /// Padding, if named and present. Nothing here pads; it is kept to be written with the model.
    pub pad: Option<NamedToken>,
    /// Unknown text, for vocabularies that do not cover every byte.
    pub unk: Option<NamedToken>,
    /// Ids that end a generation, ascending: `eos`, and every `eos_token_id` of `config.json` and
    /// `generation_config.json`.
    pub stop_ids: Vec<u32>,
    /// Every other token the configuration calls special, by name.
    pub additional: Vec<NamedToken>,
}

/// The JSON files of a model folder that speak of tokens; absent ones are null.
pub struct TokenFiles {
    /// Names and classes, as transformers writes them.
    pub tokenizer_config: Value,
    /// Names, in older folders.
    pub special_tokens_map: Value,
    /// The model: `model_type`, `vocab_size`, ids.
    pub config: Value,
    /// Further ids that end a generation.
    pub generation_config: Value,
    /// Ids of tokens added to a sentencepiece vocabulary, in older folders.
    pub added_tokens: Value,
}

impl TokenFiles {
    /// Reads them.
    ///
    /// # Errors
    /// A file that exists and is not JSON.
    pub fn read(folder: &Path) -> Result<TokenFiles> {
        let read = |name: &str| read_json(&folder.join(name));
        Ok(TokenFiles {
            tokenizer_config: read("tokenizer_config.json")?,
            special_tokens_map: read("special_tokens_map.json")?,
            config: read("config.json")?,
            generation_config: read("generation_config.json")?,
            added_tokens: read("added_tokens.json")?,
        })
    }

    /// The text of `bos_token`, `eos_token`, ...: a string, or an object with `content`.
    fn name(&self, key: &str) -> Option<&str> {
        // A null in tokenizer_config.json is a statement; only a missing key lets the older file speak.
        let value = match self.tokenizer_config.get(key) {
            Some(value) => value,
            None => self.special_tokens_map.get(key)?,
        };
        token_text(value)
    }

    /// Names the configuration calls special beyond the four roles.
    fn additional_names(&self) -> BTreeSet<&str> {
        let lists = [&self.tokenizer_config, &self.special_tokens_map];
        let listed = lists.into_iter().flat_map(|file| file["additional_special_tokens"].as_array()).flatten();
        let decoder =
            self.tokenizer_config["added_tokens_decoder"].as_object().into_iter().flatten().map(|(_, token)| token);
        let marked = decoder.filter(|token| token["special"] == Value::Bool(true));
        listed.chain(marked).filter_map(token_text).collect()
    }

    /// `eos_token_id` of a file: a number or a list.
    fn stop_ids(file: &Value) -> Vec<u32> {
        let ids = match &file["eos_token_id"] {
            Value::Array(ids) => ids.clone(),
            id => vec![id.clone()],
        };
        ids.iter().filter_map(|id| u32::try_from(id.as_u64()?).ok()).collect()
    }

    /// Tokens named in any file with an id of their own: the old `added_tokens.json` and `added_tokens_decoder`.
    pub fn declared_ids(&self) -> BTreeMap<&str, u32> {
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        let old = self.added_tokens.as_object().into_iter().flatten();
        let old = old.filter_map(|(text, value)| Some((text.as_str(), id(value)?)));
        let new = self.tokenizer_config["added_tokens_decoder"].as_object().into_iter().flatten();
        let new = new.filter_map(|(id, token)| Some((token_text(token)?, id.parse().ok()?)));
        old.chain(new).collect()
    }
}

fn token_text(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value["content"].as_str())
}

/// A JSON file's content, null if there is no such file.
pub fn read_json(path: &Path) -> Result<Value> {
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| {
            let reason = error.to_string();
            let reason = reason.split(" at line ").next().unwrap_or(&reason).to_owned();
            Error::failed(format!("{}:{}:{}: broken JSON: {reason}", path.display(), error.line(), error.column()))
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Value::Null),
        Err(error) => Err(Error::io(path, "read", error)),
    }
}

/// What [`SpecialTokens::find`] needs to ask the tokenizer.
pub struct Oracle<'a> {
    /// The model folder, for messages.
    pub folder: &'a Path,
    /// Id of a token by name.
    pub id: &'a dyn Fn(&str) -> Option<u32>,
    /// Name of a token by id.
    pub text: &'a dyn Fn(u32) -> Option<String>,
    /// The id that the tokenizer's own post-processor puts before text.
    pub leading: Option<u32>,
}

impl SpecialTokens {
    /// Settles the control tokens of a model; the notes say what was odd.
    ///
    /// # Errors
    /// A configured BOS or EOS that the vocabulary does not have.
    pub fn find(files: &TokenFiles, oracle: &Oracle<'_>, notes: &mut Vec<String>) -> Result<SpecialTokens> {
        let named = |key: &str| {
            let text = files.name(key)?;
            (oracle.id)(text).map(|id| NamedToken { text: text.to_owned(), id })
        };
        let by_id = |id: u32| (oracle.text)(id).map(|text| NamedToken { text, id });
        for key in ["bos_token", "eos_token"] {
            if let Some(text) = files.name(key).filter(|text| (oracle.id)(text).is_none()) {
                let place = oracle.folder.join("tokenizer.json");
                return Err(Error::file(
                    &place,
                    format_args!("no token `{text}`, which the configuration names as {key}"),
                )
                .hint("the files of this folder belong to different tokenizers; fetch the model again"));
            }
        }
        for key in ["pad_token", "unk_token"] {
            if let Some(text) = files.name(key).filter(|text| (oracle.id)(text).is_none()) {
                notes.push(format!(
                    "the configuration names {key} `{text}`, which tokenizer.json does not have; ignored"
                ));
            }
        }
        let no_names = files.tokenizer_config.is_null() && files.special_tokens_map.is_null();
        let config_id = |key: &str| files.config[key].as_u64().and_then(|id| u32::try_from(id).ok());
        let bos_token =
            named("bos_token").or_else(|| no_names.then(|| config_id("bos_token_id").and_then(by_id)).flatten());
        let eos = named("eos_token").or_else(|| TokenFiles::stop_ids(&files.config).first().copied().and_then(by_id));
        let stop_ids: BTreeSet<u32> = [&files.config, &files.generation_config]
            .into_iter()
            .flat_map(TokenFiles::stop_ids)
            .chain(eos.as_ref().map(|token| token.id))
            .collect();
        let additional = files.additional_names().into_iter();
        let bos = match files.puts_bos() {
            Some(true) => bos_token.clone().or_else(|| oracle.leading.and_then(by_id)),
            Some(false) => None,
            None => oracle.leading.and_then(by_id),
        };
        Ok(SpecialTokens {
            bos_token: bos_token.or_else(|| bos.clone()),
            bos,
            eos,
            pad: named("pad_token"),
            unk: named("unk_token"),
            stop_ids: stop_ids.into_iter().collect(),
            additional: additional.filter_map(|t| Some(NamedToken { text: t.into(), id: (oracle.id)(t)? })).collect(),
        })
    }
}

impl TokenFiles {
    /// Whether documents start with `bos_token`; none leaves it to the post-processor of tokenizer.json. The LLaMA
    /// classes of transformers replace that post-processor as `add_bos_token` says, true by default.
    fn puts_bos(&self) -> Option<bool> {
        let class = self.tokenizer_config["tokenizer_class"].as_str().unwrap_or_default();
        let llama = class.starts_with("LlamaTokenizer") || class.starts_with("CodeLlamaTokenizer");
        let bare_llama = self.tokenizer_config.is_null() && self.config["model_type"] == "llama";
        match &self.tokenizer_config["add_bos_token"] {
            Value::Bool(add) if llama => Some(*add),
            _ => (llama || bare_llama).then_some(true),
        }
    }
}
