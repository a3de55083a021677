//! Two small tokenizers for the tests of this module, as model folders.

use std::path::Path;

use serde_json::{json, Value};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

use super::tokenize::Tokenizer;

/// A model folder that lives as long as this value.
pub struct ModelFolder(tempfile::TempDir);

impl ModelFolder {
    /// A folder with this `tokenizer.json`.
    pub fn new(tokenizer: &Value) -> ModelFolder {
        let folder = ModelFolder(tempfile::tempdir().unwrap());
        folder.write("tokenizer.json", tokenizer);
        folder
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn write(&self, name: &str, content: &Value) {
        std::fs::write(self.0.path().join(name), content.to_string()).unwrap();
    }

    pub fn load(&self) -> Tokenizer {
        Tokenizer::load(self.path(), None).unwrap()
    }
}

fn added(id: usize, content: &str, special: bool) -> Value {
    json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
           "normalized": false, "special": special})
}

fn template(bos: &str, id: usize) -> Value {
    json!({"type": "TemplateProcessing",
           "single": [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
           "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
           "special_tokens": {bos: {"id": bos, "ids": [id], "tokens": [bos]}}})
}

/// Vocabulary entries in order plus the results of `merges`; ids are places.
fn vocabulary(start: Vec<String>, merges: &[[&str; 2]]) -> Value {
    let results = merges.iter().map(|merge| merge.concat());
    let mut entries = serde_json::Map::new();
    for token in start.into_iter().chain(results) {
        let id = entries.len();
        entries.entry(token).or_insert(id.into());
    }
    Value::Object(entries)
}

/// Byte-level BPE in the manner of LLaMA 3: `<|begin_of_text|>` before documents, control tokens after the vocabulary,
/// one of them (`<|im_end|>`) not marked as special, and one ordinary added token.
pub fn byte_level() -> Value {
    let merges = [["i", "o"], ["Ġ", "d"], ["e", "r"], ["Ã", "¨"], ["Ġ", "Ã¨"], ["<", "|"], ["Ġd", "i"]];
    let mut alphabet: Vec<String> = ByteLevel::alphabet().into_iter().map(String::from).collect();
    alphabet.sort();
    let vocab = vocabulary(alphabet, &merges);
    let size = vocab.as_object().unwrap().len();
    let names = [("<|begin_of_text|>", true), ("<|end_of_text|>", true), ("<|im_end|>", false), ("<table>", false)];
    let tokens: Vec<Value> =
        names.iter().enumerate().map(|(i, (text, special))| added(size + i, text, *special)).collect();
    json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": tokens, "normalizer": null,
           "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
           "post_processor": template("<|begin_of_text|>", size),
           "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
           "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                     "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": true,
                     "vocab": vocab, "merges": merges}})
}

/// A folder with [`byte_level`] and the configuration that names its EOS.
pub fn byte_level_folder() -> ModelFolder {
    let folder = ModelFolder::new(&byte_level());
    folder.write("tokenizer_config.json", &json!({"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}));
    folder
}

/// Metaspace BPE with byte fallback in the manner of LLaMA 2, whose merges can spell `<s>` and `</s>`.
pub fn metaspace() -> Value {
    let merges = [
        ["▁", "d"],
        ["i", "o"],
        ["<", "s"],
        ["<s", ">"],
        ["<", "/"],
        ["</", "s"],
        ["</s", ">"],
        ["▁d", "io"],
        ["c", "i"],
    ];
    let control = ["<unk>", "<s>", "</s>"].map(String::from);
    let bytes = (0..256).map(|byte| format!("<0x{byte:02X}>"));
    let letters = "▁abcdefghilmnopqrstuvz<>/|.,'_àèéìòù".chars().map(String::from);
    let vocab = vocabulary(control.into_iter().chain(bytes).chain(letters).collect(), &merges);
    let tokens = [added(0, "<unk>", true), added(1, "<s>", true), added(2, "</s>", true)];
    json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": tokens,
           "normalizer": {"type": "Sequence", "normalizers": [
               {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
           "pre_tokenizer": null, "post_processor": template("<s>", 1),
           "decoder": {"type": "Sequence", "decoders": [
               {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
               {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
           "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
                     "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
                     "vocab": vocab, "merges": merges}})
}

/// A folder with [`metaspace`] and a LLaMA `config.json`.
pub fn metaspace_folder() -> ModelFolder {
    let folder = ModelFolder::new(&metaspace());
    let rows = metaspace()["model"]["vocab"].as_object().unwrap().len();
    folder.write(
        "config.json",
        &json!({"model_type": "llama", "vocab_size": rows, "bos_token_id": 1, "eos_token_id": 2}),
    );
    folder
}
