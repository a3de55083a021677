//! `manifest.json`, the last file of a checkpoint: what it holds, by whom it was made, and a hash of everything.
//!
//! Invariant: a manifest that parses is byte for byte what [`Manifest::to_bytes`] wrote. `digest` is the BLAKE3 of the
//! manifest with an empty digest; beyond that the bytes are compared with the canonical text, so that not even a changed
//! space goes unnoticed. The hashes of the other files hang from it.

use super::exact;
use crate::device;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// Name of the file.
pub const MANIFEST_FILE: &str = "manifest.json";
/// Version of the checkpoint's form.
pub const FORMAT: u32 = 1;
/// Largest manifest that is read.
pub const LARGEST: u64 = 1 << 20;

/// Length and hash of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileRecord {
    /// Length.
    pub bytes: u64,
    /// BLAKE3, 64 hex digits.
    pub blake3: String,
}

impl fmt::Display for FileRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes with hash {}", self.bytes, self.blake3.get(..16).unwrap_or(&self.blake3))
    }
}

/// What computed a checkpoint: bits are promised to be the same only where this is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Maker {
    /// Program and version.
    pub program: String,
    /// Family of CPU kernels ([`device::CpuPath::name`]), or the GPU's name.
    pub kernel_path: String,
    /// Architecture and operating system.
    pub platform: String,
}

impl Maker {
    /// This program on this machine, which computes on the GPU of that name or on the CPU.
    pub fn this(gpu: Option<&str>) -> Maker {
        Maker {
            program: concat!("llamantino ", env!("CARGO_PKG_VERSION")).into(),
            kernel_path: gpu.unwrap_or(device::cpu_path().name()).into(),
            platform: format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS),
        }
    }

    /// What differs from `now`, for a warning; `None` where bits will be the same.
    pub fn difference(&self, now: &Maker) -> Option<String> {
        let pairs = [
            ("program", &self.program, &now.program),
            ("kernels", &self.kernel_path, &now.kernel_path),
            ("platform", &self.platform, &now.platform),
        ];
        let differences = pairs.iter().filter(|(_, then, now)| then != now);
        let text: Vec<String> =
            differences.map(|(what, then, now)| format!("{what}: {then} then, {now} now")).collect();
        (!text.is_empty()).then(|| text.join("; "))
    }
}

/// The manifest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    /// Who computed it.
    pub made_by: Maker,
    /// Optimizer steps done.
    pub step: u64,
    /// Held-out loss at this step, where it was measured: less is better.
    #[serde(with = "exact::option")]
    pub score: Option<f64>,
    /// Every other file.
    pub files: BTreeMap<String, FileRecord>,
    digest: String,
}

impl Manifest {
    /// A manifest of these files.
    pub fn new(made_by: Maker, step: u64, score: Option<f64>, files: BTreeMap<String, FileRecord>) -> Manifest {
        let mut manifest = Manifest { format: FORMAT, made_by, step, score, files, digest: String::new() };
        manifest.digest = manifest.computed_digest();
        manifest
    }

    fn computed_digest(&self) -> String {
        let blank = Manifest { digest: String::new(), ..self.clone() };
        blake3::hash(&blank.text()).to_hex().to_string()
    }

    fn text(&self) -> Vec<u8> {
        // Strings and whole numbers under string keys: serialisation into memory cannot fail.
        let mut text = serde_json::to_vec_pretty(self).unwrap_or_default();
        text.push(b'\n');
        text
    }

    /// The file's contents.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.text()
    }

    /// Reads the file's contents.
    ///
    /// # Errors
    /// What is wrong, to be put behind the file's name.
    pub fn parse(bytes: &[u8]) -> Result<Manifest, String> {
        #[derive(Deserialize)]
        struct FormatOnly {
            format: u32,
        }
        // The version first: a later format may have other fields.
        let version: FormatOnly = serde_json::from_slice(bytes).map_err(|error| format!("not a manifest: {error}"))?;
        if version.format != FORMAT {
            return Err(format!("format {}: expected {FORMAT}", version.format));
        }
        let manifest: Manifest = serde_json::from_slice(bytes).map_err(|error| format!("not a manifest: {error}"))?;
        if manifest.computed_digest() != manifest.digest || manifest.text() != bytes {
            return Err("does not match its own hash".into());
        }
        Ok(manifest)
    }
}
