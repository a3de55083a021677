//! What the machine computes with: which CPU instructions, how many threads, which number format.
//!
//! The kernel path is detected once; `LLAMANTINO_CPU=portable|neon|avx2|avx512|avx512bf16|amx` caps it (tests run every
//! path this way). A path that the machine lacks is refused, never emulated silently.

#[cfg(target_arch = "x86_64")]
mod amx;
pub mod choice;
pub mod cuda;
pub mod machine;
pub mod memory;

pub use choice::DeviceChoice;

use crate::error::{Error, Result};
use std::sync::OnceLock;

/// Operand format of the matrix products. Accumulation is f32 in both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compute {
    /// f32 operands (the default on a CPU).
    #[default]
    F32,
    /// Operands rounded to bf16, products accumulated in f32. What generates text may use what is nearer to f32 instead.
    Bf16,
}

/// A family of CPU kernels, from the least to the most capable of its architecture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CpuPath {
    /// Plain Rust; runs everywhere.
    Portable,
    /// 128-bit NEON (aarch64).
    Neon,
    /// 256-bit AVX2 with FMA (x86-64).
    Avx2,
    /// 512-bit AVX-512 F+BW+VL+DQ+VBMI (x86-64).
    Avx512,
    /// AVX-512 with `vdpbf16ps` (x86-64).
    Avx512Bf16,
    /// That and the tile registers of AMX with `tdpbf16ps` (x86-64, Linux).
    Amx,
}

impl CpuPath {
    /// The name used by `LLAMANTINO_CPU` and in reports.
    pub fn name(self) -> &'static str {
        match self {
            CpuPath::Portable => "portable",
            CpuPath::Neon => "neon",
            CpuPath::Avx2 => "avx2",
            CpuPath::Avx512 => "avx512",
            CpuPath::Avx512Bf16 => "avx512bf16",
            CpuPath::Amx => "amx",
        }
    }

    /// Every path that this machine can run, least capable first.
    pub fn available() -> Vec<CpuPath> {
        [CpuPath::Portable, CpuPath::Neon, CpuPath::Avx2, CpuPath::Avx512, CpuPath::Avx512Bf16, CpuPath::Amx]
            .into_iter()
            .filter(|path| path.is_available())
            .collect()
    }

    #[cfg(target_arch = "x86_64")]
    fn is_available(self) -> bool {
        let avx2 =
            is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
        let avx512 = avx2
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vbmi");
        let avx512bf16 = avx512 && is_x86_feature_detected!("avx512bf16");
        match self {
            CpuPath::Portable => true,
            CpuPath::Neon => false,
            CpuPath::Avx2 => avx2,
            CpuPath::Avx512 => avx512,
            CpuPath::Avx512Bf16 => avx512bf16,
            CpuPath::Amx => avx512bf16 && amx::is_usable(),
        }
    }

    #[cfg(target_arch = "aarch64")]
    fn is_available(self) -> bool {
        matches!(self, CpuPath::Portable | CpuPath::Neon)
    }

    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    fn is_available(self) -> bool {
        self == CpuPath::Portable
    }
}

/// The path asked for by `LLAMANTINO_CPU`, or the best one of this machine.
fn choose() -> Result<CpuPath> {
    let available = CpuPath::available();
    let best = *available.last().unwrap_or(&CpuPath::Portable);
    let Ok(wanted) = std::env::var("LLAMANTINO_CPU") else { return Ok(best) };
    match available.iter().find(|path| path.name() == wanted) {
        Some(&path) => Ok(path),
        None => {
            let names: Vec<_> = available.iter().map(|p| p.name()).collect();
            Err(Error::usage(format!("LLAMANTINO_CPU={wanted}: this machine has no such kernel path"))
                .hint(format!("use one of: {}", names.join(", "))))
        }
    }
}

/// Checks `LLAMANTINO_CPU` once, at start; afterwards [`cpu_path`] cannot be wrong.
pub fn check() -> Result<()> {
    choose().map(|_| ())
}

/// The kernel path in use.
pub fn cpu_path() -> CpuPath {
    static PATH: OnceLock<CpuPath> = OnceLock::new();
    *PATH.get_or_init(|| choose().unwrap_or(CpuPath::Portable))
}

/// Sizes the one thread pool. `None`: one thread for each core that the process may use.
pub fn set_threads(threads: Option<usize>) -> Result<()> {
    let Some(threads) = threads else { return Ok(()) };
    if threads == 0 || threads > 1024 {
        return Err(Error::usage(format!("threads = {threads}: expected 1 to 1024")));
    }
    // A pool that exists already keeps its size: only tests call this twice.
    let _ = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
    Ok(())
}

/// Resident memory of this process now, in bytes (0 where the system does not tell).
pub fn resident_bytes() -> u64 {
    let Ok(statm) = std::fs::read_to_string("/proc/self/statm") else { return 0 };
    let pages: u64 = statm.split_whitespace().nth(1).and_then(|p| p.parse().ok()).unwrap_or(0);
    pages * 4096
}

/// Largest resident memory of this process so far, in bytes (0 where the system does not tell).
pub fn peak_resident_bytes() -> u64 {
    let Ok(status) = std::fs::read_to_string("/proc/self/status") else { return 0 };
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let kib: u64 = line.and_then(|l| l.split_whitespace().nth(1)).and_then(|v| v.parse().ok()).unwrap_or(0);
    kib * 1024
}
