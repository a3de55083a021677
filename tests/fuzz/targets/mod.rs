//! What is done with an input that nobody vouches for: one file for each thing that is read from outside.
//!
//! Invariant of each target: an error is fine, whatever the input; a panic, a hang, or memory that the input only
//! promises to need is not. What is read without an error must keep its own promises, which the targets assert.
//! Inputs are files as users have them; where a reader takes several, the parts follow each other, parted by
//! [`SEPARATOR`].

pub mod adapter_config;
pub mod chat_template;
pub mod config;
pub mod data_lines;
pub mod gguf;
pub mod model_config;
pub mod safetensors;
pub mod tokenizer;

use std::path::{Path, PathBuf};

/// A target by its name, which is also that of its folder of seeds.
pub type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const ALL: [Target; 8] = [
    ("adapter_config", adapter_config::run),
    ("chat_template", chat_template::run),
    ("config", config::run),
    ("data_lines", data_lines::run),
    ("gguf", gguf::run),
    ("model_config", model_config::run),
    ("safetensors", safetensors::run),
    ("tokenizer", tokenizer::run),
];

/// What stands between the parts of an input.
const SEPARATOR: &[u8] = b"\n=====\n";

/// The first `N` parts of an input; the last one is all that is left, and parts that are not there are empty.
fn parts<const N: usize>(input: &[u8]) -> [&[u8]; N] {
    let mut rest = input;
    let mut parts = [&input[..0]; N];
    for part in &mut parts[..N - 1] {
        let end = rest.windows(SEPARATOR.len()).position(|window| window == SEPARATOR);
        let end = end.unwrap_or(rest.len());
        *part = &rest[..end];
        rest = rest.get(end + SEPARATOR.len()..).unwrap_or_default();
    }
    parts[N - 1] = rest;
    parts
}

/// A folder for the files of one input, in memory where the system has such a place.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Folder {
        let memory = Path::new("/dev/shm");
        Folder(tempfile::tempdir_in(memory).or_else(|_| tempfile::tempdir()).expect("a temporary folder"))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Writes a file; gives its path.
    fn write(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.path().join(name);
        std::fs::write(&path, content).expect("a file in a temporary folder");
        path
    }

    /// Writes a file unless it has no content.
    fn write_if_any(&self, name: &str, content: &[u8]) {
        if !content.is_empty() {
            self.write(name, content);
        }
    }
}
