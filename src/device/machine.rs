//! What this machine is, as far as it can be seen without asking a driver: processor, pages, disks, NVIDIA's files.
//!
//! Reference: Linux `/proc/cpuinfo`, `/sys/kernel/mm/transparent_hugepage`, and the places where NVIDIA's driver and
//! toolkit put their libraries. What cannot be read is `None`, never a guess.

use super::CpuPath;
use std::path::{Path, PathBuf};

/// The processor's name.
pub fn cpu_model() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name") || line.starts_with("Model"))?;
    Some(line.split_once(':')?.1.trim().to_string())
}

/// Instruction sets that kernels are written for, and whether this processor has them.
pub fn cpu_features() -> Vec<(&'static str, bool)> {
    #[cfg(target_arch = "x86_64")]
    return vec![
        ("avx2", is_x86_feature_detected!("avx2")),
        ("fma", is_x86_feature_detected!("fma")),
        ("f16c", is_x86_feature_detected!("f16c")),
        ("avx512f", is_x86_feature_detected!("avx512f")),
        ("avx512bw", is_x86_feature_detected!("avx512bw")),
        ("avx512vl", is_x86_feature_detected!("avx512vl")),
        ("avx512dq", is_x86_feature_detected!("avx512dq")),
        ("avx512vbmi", is_x86_feature_detected!("avx512vbmi")),
        ("avx512bf16", is_x86_feature_detected!("avx512bf16")),
        ("amx-bf16", super::amx::is_usable()),
    ];
    #[cfg(target_arch = "aarch64")]
    return vec![("neon", true)];
    #[allow(unreachable_code)] // Every other processor.
    Vec::new()
}

/// Why kernels of this path run and no better ones.
pub fn why(path: CpuPath) -> String {
    let best = CpuPath::available().last().copied();
    if best.is_some_and(|best| best > path) {
        return "LLAMANTINO_CPU asks for it".into();
    }
    let missing: Vec<&str> = cpu_features().into_iter().filter(|(_, has)| !has).map(|(name, _)| name).collect();
    match missing.is_empty() {
        true => "the best there is".into(),
        false => format!("this processor lacks {}", missing.join(", ")),
    }
}

/// `always`, `madvise` or `never`: whether large buffers get huge pages. The arena asks for them, so `madvise` is enough.
pub fn huge_pages() -> Option<String> {
    let text = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").ok()?;
    let chosen = text.split_whitespace().find_map(|word| word.strip_prefix('[')?.strip_suffix(']'))?;
    Some(chosen.to_string())
}

/// Bytes that this user can still write on the disk of `path`, or of its nearest folder that exists.
pub fn disk_free(path: &Path) -> Option<u64> {
    let absolute = std::path::absolute(path).ok()?;
    let existing = absolute.ancestors().find(|folder| folder.exists())?;
    #[cfg(unix)]
    {
        use std::os::unix::ffi::OsStrExt;
        let name = std::ffi::CString::new(existing.as_os_str().as_bytes()).ok()?;
        // SAFETY: an all-zero statvfs is valid, the name ends with a zero byte, and the result is read on success only.
        let about = unsafe {
            let mut about: libc::statvfs = std::mem::zeroed();
            (libc::statvfs(name.as_ptr(), &mut about) == 0).then_some(about)
        }?;
        #[allow(clippy::unnecessary_cast)] // The fields are narrower on some systems.
        return Some(about.f_bavail as u64 * about.f_frsize as u64);
    }
    #[cfg(not(unix))]
    {
        let _ = existing;
        None
    }
}

/// What there is of NVIDIA's driver and libraries.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Nvidia {
    /// Version of the loaded kernel module.
    pub driver: Option<String>,
    /// Names of the cards.
    pub cards: Vec<String>,
    /// `libcuda.so.1`, which comes with the driver.
    pub cuda: Option<PathBuf>,
    /// `libcublas.so.*`, which comes with the toolkit.
    pub cublas: Option<PathBuf>,
}

/// Folders that may hold NVIDIA's libraries.
fn library_folders() -> Vec<PathBuf> {
    let paths = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let named: Vec<PathBuf> = std::env::split_paths(&paths).filter(|path| path.is_absolute()).collect();
    let usual = [
        "/usr/lib/x86_64-linux-gnu",
        "/usr/lib/aarch64-linux-gnu",
        "/usr/lib64",
        "/usr/lib",
        "/usr/lib/wsl/lib",
        "/usr/local/cuda/lib64",
        "/usr/local/cuda/targets/x86_64-linux/lib",
        "/usr/local/nvidia/lib64",
        "/opt/cuda/lib64",
    ];
    named.into_iter().chain(usual.map(PathBuf::from)).collect()
}

/// Looks for NVIDIA's files; nothing is loaded.
pub fn nvidia() -> Nvidia {
    nvidia_under(Path::new("/"), &library_folders())
}

fn nvidia_under(root: &Path, folders: &[PathBuf]) -> Nvidia {
    let proc = root.join("proc/driver/nvidia");
    let version = std::fs::read_to_string(proc.join("version")).ok();
    let driver = version.as_deref().and_then(|text| text.lines().next()).and_then(module_version);
    let cards = std::fs::read_dir(proc.join("gpus")).into_iter().flatten().flatten();
    let mut cards: Vec<String> = cards
        .filter_map(|card| {
            let text = std::fs::read_to_string(card.path().join("information")).ok()?;
            Some(text.lines().find_map(|line| line.strip_prefix("Model:"))?.trim().to_string())
        })
        .collect();
    cards.sort_unstable();
    let library = |stem: &str| {
        folders.iter().find_map(|folder| {
            let names = std::fs::read_dir(folder).ok()?.flatten().map(|entry| entry.file_name());
            let mut found: Vec<_> = names.filter(|name| name.to_string_lossy().starts_with(stem)).collect();
            found.sort_unstable();
            Some(folder.join(found.first()?))
        })
    };
    Nvidia { driver, cards, cuda: library("libcuda.so.1"), cublas: library("libcublas.so.") }
}

/// `NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue ...` → `550.54.15`.
fn module_version(line: &str) -> Option<String> {
    let is_version = |word: &&str| word.contains('.') && word.chars().all(|c| c.is_ascii_digit() || c == '.');
    line.split_whitespace().find(is_version).map(str::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nvidias_files_are_found_where_they_lie() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let folders = [root.path().join("none"), root.path().join("lib")];
        assert_eq!(nvidia_under(root.path(), &folders), Nvidia::default());
        write("proc/driver/nvidia/version", "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar 5\n");
        write("proc/driver/nvidia/gpus/0000:01:00.0/information", "Model: \t\t NVIDIA H200\nIRQ: 5\n");
        write("lib/libcuda.so.1", "");
        write("lib/libcublas.so.12", "");
        write("lib/libcublasLt.so.12", "");
        let found = nvidia_under(root.path(), &folders);
        assert_eq!(found.driver.as_deref(), Some("550.54.15"));
        assert_eq!(found.cards, ["NVIDIA H200"]);
        assert_eq!(found.cuda, Some(root.path().join("lib/libcuda.so.1")));
        assert_eq!(found.cublas, Some(root.path().join("lib/libcublas.so.12")));
    }

    #[test]
    fn a_disk_has_some_room_also_below_folders_that_are_not_there_yet() {
        if cfg!(unix) {
            let root = tempfile::tempdir().unwrap();
            assert!(disk_free(root.path()).unwrap() > 0);
            assert!(disk_free(&root.path().join("a/b/c")).unwrap() > 0);
        }
    }

    #[test]
    fn the_reason_for_a_path_names_what_is_missing_or_asked_for() {
        let available = CpuPath::available();
        if available.len() > 1 {
            assert_eq!(why(CpuPath::Portable), "LLAMANTINO_CPU asks for it");
        }
        let best = why(*available.last().unwrap());
        assert!(best == "the best there is" || best.starts_with("this processor lacks "), "{best}");
    }
}
