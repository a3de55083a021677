//! What belongs to a model beside its weights: tokenizer, templates, generation settings, licences.

use crate::checkpoint::AtomicFolder;
use crate::error::{Error, Result};
use crate::model::companions::is_companion;
use std::path::Path;

/// Copies the companions of the model in `from` into a new folder; gives their names, in order.
///
/// # Errors
/// What the file system says.
pub fn copy(from: &Path, folder: &mut AtomicFolder<'_>) -> Result<Vec<String>> {
    let names = files_of(from, is_companion)?;
    for name in &names {
        let path = from.join(name);
        // Written and not `fs::copy`-ed: a read-only source must not make a read-only copy.
        let bytes = std::fs::read(&path).map_err(|error| Error::io(&path, "read", error))?;
        folder.write(name, &mut |file| file.write_all(&bytes))?;
    }
    Ok(names)
}

/// Everything in a model's folder but its weights: config, index, and the companions. In name order.
///
/// # Errors
/// The folder cannot be read.
pub(super) fn with_config(folder: &Path) -> Result<Vec<String>> {
    files_of(folder, |name| name == "config.json" || name.ends_with(".safetensors.index.json") || is_companion(name))
}

/// Names of the files in `folder` that are `wanted`, sorted.
fn files_of(folder: &Path, wanted: impl Fn(&str) -> bool) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(folder).map_err(|error| Error::io(folder, "read", error))?;
    let files = entries.flatten().filter(|entry| entry.path().is_file());
    let names = files.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> = names.filter(|name| wanted(name)).collect();
    names.sort_unstable();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn companions_are_copied_and_nothing_else() {
        let place = tempfile::tempdir().unwrap();
        let from = place.path().join("from");
        std::fs::create_dir_all(from.join("LICENSES")).unwrap();
        for name in ["tokenizer.json", "LICENSE.txt", "config.json", "model.safetensors", "README.md"] {
            std::fs::write(from.join(name), name).unwrap();
        }
        let mut folder = AtomicFolder::begin_new(&place.path().join("to")).unwrap();
        assert_eq!(copy(&from, &mut folder).unwrap(), ["LICENSE.txt", "tokenizer.json"]);
        assert_eq!(std::fs::read_to_string(folder.temporary().join("LICENSE.txt")).unwrap(), "LICENSE.txt");
    }
}
