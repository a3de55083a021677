//! What `--version` says: the version, how the program was built, and which CPU kernels of it this machine runs.

use crate::device::{cpu_path, CpuPath};
use std::sync::OnceLock;

/// Cargo features that this build has.
pub fn features() -> Vec<&'static str> {
    let known = [("cuda", cfg!(feature = "cuda"))];
    known.into_iter().filter(|(_, there)| *there).map(|(name, _)| name).collect()
}

/// The version in one line (`-V`) needs no more; this is `--version`.
pub fn long() -> &'static str {
    static TEXT: OnceLock<String> = OnceLock::new();
    TEXT.get_or_init(|| {
        let features = features();
        let features = if features.is_empty() { "none".into() } else { features.join(", ") };
        let kernels: Vec<&str> = CpuPath::available().into_iter().map(CpuPath::name).collect();
        format!(
            "{}\nbuild: {}, {} {}, features: {features}\nCPU kernels: {} (in use: {})",
            env!("CARGO_PKG_VERSION"),
            if cfg!(debug_assertions) { "debug" } else { "release" },
            std::env::consts::ARCH,
            std::env::consts::OS,
            kernels.join(", "),
            cpu_path().name()
        )
    })
}
