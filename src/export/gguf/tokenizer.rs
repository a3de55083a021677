//! A model folder's tokenizer as the metadata of a GGUF file.
//!
//! Two kinds exist in LLaMA models: byte-level BPE (llama.cpp's `gpt2`, [`byte_level`]) and SentencePiece BPE with byte
//! fallback (its `llama`, [`sentencepiece`]). llama.cpp knows a few ways to cut and join text by name; a tokenizer that
//! works in another way is refused, because the model would read other tokens than it was trained on.

mod byte_level;
mod sentencepiece;

use super::writer::{Metadata, Value};
use crate::data::tokenize::special::read_json;
use crate::data::tokenize::Tokenizer;
use crate::error::{Error, Result};
use crate::model::gguf::tokenizer::Role;
use serde_json::Value as Json;
use std::path::Path;

/// The keys, and what the user should know about them.
pub struct Described {
    /// Keys `tokenizer.*`.
    pub metadata: Metadata,
    /// What the format cannot say.
    pub notes: Vec<String>,
}

/// One token for each row of the embedding.
struct Vocabulary {
    tokens: Vec<String>,
    /// Role of each; rows without a token are unused.
    roles: Vec<Role>,
}

/// Describes the tokenizer in `folder`, which was loaded as `tokenizer`. `rows` is the number of embeddings.
///
/// # Errors
/// A kind of tokenizer that llama.cpp has no equal of.
pub fn describe(folder: &Path, tokenizer: &Tokenizer, rows: usize) -> Result<Described> {
    let path = folder.join("tokenizer.json");
    let json = read_json(&path)?;
    let mut notes = Vec::new();
    let model = &json["model"];
    if model["type"] != "BPE" {
        return Err(Error::file(&path, format!("model.type: expected \"BPE\", found {}", model["type"]))
            .hint("LLaMA models have byte-level BPE or SentencePiece BPE; llama.cpp computes no other kind for them"));
    }
    let byte_fallback = model["byte_fallback"] == Json::Bool(true);
    let vocabulary = Vocabulary::of(&json, tokenizer, rows, byte_fallback, &mut notes);
    let mut metadata = match byte_fallback {
        true => sentencepiece::keys(&json, &vocabulary, &mut notes),
        false => byte_level::keys(&json, &mut notes),
    }
    .map_err(|error| error.at(path.display()))?;
    let roles = vocabulary.roles.iter().map(|&role| role as i32).collect();
    metadata.push(("tokenizer.ggml.tokens".into(), Value::Texts(vocabulary.tokens)));
    metadata.push(("tokenizer.ggml.token_type".into(), Value::I32s(roles)));
    metadata.extend(special_keys(tokenizer, &mut notes)?);
    Ok(Described { metadata, notes })
}

impl Vocabulary {
    fn of(json: &Json, tokenizer: &Tokenizer, rows: usize, byte_fallback: bool, notes: &mut Vec<String>) -> Vocabulary {
        let filler = |id: usize| format!("[PAD{id}]");
        let mut vocabulary = Vocabulary { tokens: (0..rows).map(filler).collect(), roles: vec![Role::Unused; rows] };
        let mut beyond = std::collections::BTreeSet::new();
        let mut set = |id: Option<u64>, text: &str, role: Role| match id.map(|id| id as usize) {
            Some(id) if id < rows => {
                vocabulary.tokens[id] = text.to_string();
                vocabulary.roles[id] = role;
            }
            _ => {
                beyond.insert(text.to_string());
            }
        };
        for (text, id) in json["model"]["vocab"].as_object().into_iter().flatten() {
            let role = if byte_fallback && is_byte(text) { Role::Byte } else { Role::Normal };
            set(id.as_u64(), text, role);
        }
        let mut stripping = 0;
        for token in json["added_tokens"].as_array().into_iter().flatten() {
            let Some(text) = token["content"].as_str() else { continue };
            // Names such as <|im_start|> are control tokens to this program even where the file forgot to say so.
            let id = token["id"].as_u64();
            let closed = id.is_some_and(|id| tokenizer.is_closed(id as u32));
            set(id, text, if token["special"] == true || closed { Role::Control } else { Role::UserDefined });
            stripping += usize::from(token["lstrip"] == true || token["rstrip"] == true);
        }
        let unknown = json["model"]["unk_token"].as_str();
        let unknown = vocabulary.tokens.iter().position(|token| byte_fallback && Some(token.as_str()) == unknown);
        if let Some(id) = unknown {
            vocabulary.roles[id] = Role::Unknown;
        }
        if !beyond.is_empty() {
            notes.push(format!("{} token(s) beyond the {rows} rows of the embedding are left out", beyond.len()));
        }
        if stripping > 0 {
            notes.push(format!(
                "{stripping} added token(s) take the white space beside them along; a GGUF file cannot say that"
            ));
        }
        vocabulary
    }
}

/// `<0x00>` to `<0xFF>`.
fn is_byte(text: &str) -> bool {
    let digits = text.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    digits.is_some_and(|digits| digits.len() == 2 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// Ids with a role, and what is put around text.
fn special_keys(tokenizer: &Tokenizer, notes: &mut Vec<String>) -> Result<Metadata> {
    let special = tokenizer.special();
    let eos = special.eos.as_ref().map(|token| token.id);
    // Further ends of an answer: of a turn, and of a message that waits for a tool.
    let mut ends = special.stop_ids.iter().copied().filter(|id| Some(*id) != eos);
    let (turn, message) = (ends.next(), ends.next());
    if ends.next().is_some() {
        notes.push("the model has more than three tokens that end an answer; a GGUF file names three".into());
    }
    let id = |token: &Option<crate::data::tokenize::NamedToken>| token.as_ref().map(|token| token.id);
    let ids = [
        ("bos", id(&special.bos).or(id(&special.bos_token))),
        ("eos", eos.or(turn)),
        ("eot", turn.filter(|_| eos.is_some())),
        ("eom", message),
        ("unknown", id(&special.unk)),
        ("padding", id(&special.pad)),
    ];
    let rows = tokenizer.embedding_rows();
    let ids = ids.into_iter().filter_map(|(key, id)| Some((key, id.filter(|&id| (id as usize) < rows)?)));
    let mut metadata: Metadata =
        ids.map(|(key, id)| (format!("tokenizer.ggml.{key}_token_id"), Value::U32(id))).collect();
    metadata.push(("tokenizer.ggml.add_bos_token".into(), Value::Flag(special.bos.is_some())));
    metadata.push(("tokenizer.ggml.add_eos_token".into(), Value::Flag(adds_eos(tokenizer)?)));
    Ok(metadata)
}

/// Whether the post-processor puts EOS behind text.
fn adds_eos(tokenizer: &Tokenizer) -> Result<bool> {
    let encode = |special| {
        let encoding = tokenizer.inner().encode_fast("a", special);
        encoding.map(|encoding| encoding.get_ids().to_vec()).map_err(|e| Error::failed(format!("tokenizer.json: {e}")))
    };
    let (with, without) = (encode(true)?, encode(false)?);
    let eos = tokenizer.special().eos.as_ref().map(|token| token.id);
    Ok(eos.is_some() && with.len() > without.len() && with.last() == eos.as_ref() && with.last() != without.last())
}

/// Texts on which the tokenizers of two files are compared, and ways of cutting are told apart.
pub const PROBES: [&str; 10] = [
    "C'era una volta, nell'anno 1234567890, un re; perché no? L'ha già DETTO: \"città\" — 12.345,67 €!",
    "I'm sure they'LL say we'Ve won, it's  THEIR'S\t\tx\r\n\r\n\n  indented\u{a0}text   ",
    "camelCase HTTPServer XMLHttpRequest2 été Ångström ǅungla ΑΒΓαβγ ЖЗИжзи",
    "fn main() {\n    write!(\"{}\", a+b==c && d<=e);\n}\n\n\n/* x/y */ <=>^~|`$ §°#@_-",
    "日本語のテキスト 한국어 नमस्ते ไทย עברית العربية 🦙🇮🇹👩‍👩‍👧 e\u{301} ﬁ Ⅷ ½ ٣٤٥",
    "   tre spazi davanti e dietro   ",
    "                     ventuno, poi trentasette:                                     x",
    "\n",
    "a\u{0}b\u{7f}\u{200b}c\u{feff}",
    "ciao",
];

#[cfg(test)]
#[path = "tokenizer_tests.rs"]
mod tests;
