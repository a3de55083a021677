//! `llamantino.json`: what an adapter was trained on and by what, which PEFT's files have no place for.

use crate::error::{Error, Result};
use crate::model::Method;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Version of the file's form.
const FORMAT: u32 = 1;

/// Where an adapter comes from. Unknown keys of later versions are ignored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Provenance {
    /// Version of this file's form.
    pub format: u32,
    /// Folder or hub name of the base.
    pub base: String,
    /// Hash of the base's weights.
    pub base_hash: String,
    /// How it was trained: `qlora` (the base was NF4) or `lora`.
    pub method: Method,
    /// Name or text of the chat template, if one was used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// Program and version.
    pub created_by: String,
}

impl Provenance {
    /// Of an adapter made by this program on `base`.
    pub fn new(base: &str, base_hash: impl Into<String>, method: Method) -> Provenance {
        Provenance {
            format: FORMAT,
            base: base.into(),
            base_hash: base_hash.into(),
            method,
            template: None,
            created_by: concat!("llamantino ", env!("CARGO_PKG_VERSION")).into(),
        }
    }

    /// What is wrong with `base`, whose weights have this hash (of all their bytes), as the base of the adapter; `None`
    /// if nothing is.
    pub fn mismatch(&self, base: &Path, hash: &str) -> Option<String> {
        let short = |hash: &str| hash.get(..12).unwrap_or(hash).to_string();
        (hash != self.base_hash).then(|| {
            format!(
                "{}: not the base of the adapter, which was trained on {} (hash {}, this one has {})",
                base.display(),
                self.base,
                short(&self.base_hash),
                short(hash)
            )
        })
    }

    /// Reads the file; `None` where there is none.
    ///
    /// # Errors
    /// A file that is not what this program writes, or of a later version.
    pub fn read(path: &Path) -> Result<Option<Provenance>> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io(path, "read", error)),
        };
        let provenance: Provenance =
            serde_json::from_str(&text).map_err(|error| Error::file(path, format!("not as expected: {error}")))?;
        if provenance.format > FORMAT {
            return Err(Error::file(path, format!("format {}: expected at most {FORMAT}", provenance.format))
                .hint("a newer llamantino wrote this adapter: update this one"));
        }
        Ok(Some(provenance))
    }
}
