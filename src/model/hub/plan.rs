//! Which files of a model are needed, and whether a folder has them.

use super::download::RemoteFile;
use crate::error::{Error, Result};
use crate::model::companions::is_companion;
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;

const INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";
const ADAPTER: [&str; 2] = ["adapter_config.json", "adapter_model.safetensors"];
/// Longest list of weights files; the largest models have some hundreds.
const MAX_SHARDS: usize = 10_000;

/// What the hub says of a commit.
#[derive(Debug, Clone)]
pub struct Listing {
    /// The commit.
    pub commit: String,
    files: Vec<RemoteFile>,
}

/// Whether a text is the name of a commit: it becomes a folder's name.
pub fn is_commit(text: &str) -> bool {
    (7..=64).contains(&text.len()) && text.chars().all(|c| c.is_ascii_hexdigit())
}

fn is_plain_name(name: &str) -> bool {
    let fit = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    name.len() <= 128 && !name.starts_with('.') && name.chars().all(fit)
}

impl Listing {
    /// Reads the answer of `api/models/ORG/NAME/revision/REVISION?blobs=true`. Errors: it is another document.
    pub fn of(json: &Value) -> Result<Listing> {
        let wrong = |what: &str| {
            Error::failed(format!("the hub's answer has no {what}"))
                .hint("check that HF_ENDPOINT is a Hugging Face hub")
        };
        let commit = json["sha"].as_str().filter(|commit| is_commit(commit)).ok_or_else(|| wrong("commit"))?;
        let siblings = json["siblings"].as_array().ok_or_else(|| wrong("list of files"))?;
        let file = |entry: &Value| {
            let name = entry["rfilename"].as_str().filter(|name| is_plain_name(name))?;
            let size = entry["lfs"]["size"].as_u64().or_else(|| entry["size"].as_u64());
            let hex = |text: &&str| text.len() == 64 && text.chars().all(|c| c.is_ascii_hexdigit());
            let sha256 = entry["lfs"]["sha256"].as_str().filter(hex).map(str::to_string);
            Some(RemoteFile { name: name.to_string(), size, sha256 })
        };
        Ok(Listing { commit: commit.to_string(), files: siblings.iter().filter_map(file).collect() })
    }

    fn find(&self, name: &str) -> Option<&RemoteFile> {
        self.files.iter().find(|file| file.name == name)
    }

    fn is_adapter(&self) -> bool {
        self.find("config.json").is_none() && self.find(ADAPTER[0]).is_some()
    }

    /// All but the weights. Errors: neither a model nor an adapter.
    pub fn description(&self) -> Result<Vec<RemoteFile>> {
        if self.find("config.json").is_none() && !self.is_adapter() {
            let gguf: Vec<&str> =
                self.files.iter().map(|file| &file.name[..]).filter(|name| name.ends_with(".gguf")).collect();
            let error = Error::failed("no config.json: expected a model in the transformers format");
            return Err(match gguf.first() {
                Some(first) => {
                    error.hint(format!("download one of its GGUF files, such as {first}, and name that file"))
                }
                None => error.hint("look for the model's version with config.json and *.safetensors"),
            });
        }
        let wanted = |file: &&RemoteFile| {
            file.name == "config.json" || is_companion(&file.name) || self.is_adapter() && file.name == ADAPTER[0]
        };
        Ok(self.files.iter().filter(wanted).cloned().collect())
    }

    /// The index of the weights, where they are in shards.
    pub fn index(&self) -> Option<RemoteFile> {
        let sharded = self.find(SINGLE).is_none() && !self.is_adapter();
        self.find(INDEX).filter(|_| sharded).cloned()
    }

    /// The files of weights; an index must be in `snapshot`. Errors: there are none that can be used; the index names
    /// files that are not there.
    pub fn weights(&self, snapshot: &Path) -> Result<Vec<RemoteFile>> {
        if self.is_adapter() {
            let file = self.find(ADAPTER[1]).cloned();
            return file
                .map(|file| vec![file])
                .ok_or_else(|| Error::failed(format!("an adapter without {}", ADAPTER[1])));
        }
        if let Some(single) = self.find(SINGLE) {
            return Ok(vec![single.clone()]);
        }
        if self.find(INDEX).is_some() {
            let shards = shards(&snapshot.join(INDEX))?;
            let listed = |shard: &String| {
                let missing = || Error::failed(format!("{INDEX} names {shard}, which the model does not have"));
                self.find(shard).cloned().ok_or_else(missing)
            };
            return shards.iter().map(listed).collect();
        }
        let weights: Vec<&RemoteFile> = self.files.iter().filter(|file| file.name.ends_with(".safetensors")).collect();
        match weights[..] {
            [only] => Ok(vec![only.clone()]),
            [] => {
                let pickled = self.files.iter().any(|file| file.name.ends_with(".bin") || file.name.ends_with(".pth"));
                let found = if pickled { "only pickled weights (*.bin, which can run code)" } else { "none" };
                Err(Error::failed(format!("expected weights in *.safetensors, found {found}"))
                    .hint("many models have a conversion in a revision refs/pr/N: see the model's Community page"))
            }
            _ => Err(Error::failed(format!("several *.safetensors and no {INDEX}"))),
        }
    }
}

/// The files that an index names.
fn shards(index: &Path) -> Result<BTreeSet<String>> {
    let text = std::fs::read(index).map_err(|e| Error::io(index, "read", e))?;
    let json: Value = serde_json::from_slice(&text).map_err(|e| Error::file(index, format!("not JSON: {e}")))?;
    let map = json["weight_map"].as_object().ok_or_else(|| Error::file(index, "weight_map: expected an object"))?;
    let mut names = BTreeSet::new();
    for (tensor, shard) in map {
        match shard.as_str().filter(|name| is_plain_name(name) && name.ends_with(".safetensors")) {
            Some(name) if names.len() < MAX_SHARDS => names.insert(name.to_string()),
            _ => return Err(Error::file(index, format!("weight_map.{tensor}: expected a file name, found {shard}"))),
        };
    }
    Ok(names)
}

/// Whether a snapshot has all that is needed. Weights are fetched last, so with them all the rest is there, unless the
/// snapshot is another program's, which may have wanted less: its tokenizer, say, in another form.
pub fn is_complete(snapshot: &Path) -> bool {
    has_model(snapshot) && (snapshot.join("tokenizer.json").exists() || !snapshot.join("config.json").exists())
}

/// Whether a snapshot has a model's config and all of its weights, or an adapter.
pub fn has_model(snapshot: &Path) -> bool {
    let has = |name: &str| snapshot.join(name).exists();
    if has(ADAPTER[0]) && !has("config.json") {
        return has(ADAPTER[1]);
    }
    let weights = has(SINGLE)
        || match has(INDEX) {
            true => {
                shards(&snapshot.join(INDEX)).is_ok_and(|shards| !shards.is_empty() && shards.iter().all(|s| has(s)))
            }
            false => only_weights(snapshot),
        };
    has("config.json") && weights
}

fn only_weights(snapshot: &Path) -> bool {
    let Ok(entries) = std::fs::read_dir(snapshot) else { return false };
    let names = entries.flatten().map(|entry| entry.path());
    names.filter(|path| path.extension().is_some_and(|e| e == "safetensors") && path.exists()).count() == 1
}
