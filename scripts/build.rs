//! Build script. Without the feature `cuda` it does nothing. With it, every `src/**/*.cu` becomes a fat binary that the
//! program embeds: machine code for compute capability 8.0, 8.6, 8.9 and 9.0, and PTX that the driver translates for newer
//! GPUs.
//!
//! nvcc is `$NVCC`, or `$CUDA_HOME/bin/nvcc`, or the one on the path; `scripts/cuda-toolchain.sh` fetches one. What ptxas
//! makes of registers is watched by `scripts/cuda_registers.py`, which reads flags and architectures out of this file.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

const ARCHITECTURES: [&str; 4] = ["80", "86", "89", "90"];

fn main() {
    println!("cargo:rerun-if-changed=scripts/build.rs");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    for variable in ["NVCC", "CUDA_HOME"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    for header in ["src/device/cuda/kernel.cuh", "src/quant/nf4.cuh"] {
        println!("cargo:rerun-if-changed={header}");
    }
    let mut sources = Vec::new();
    find_sources(Path::new("src"), &mut sources);
    sources.sort();
    // All at once: nvcc is mostly one thread, and there are about ten sources.
    let running: Vec<(&PathBuf, Child)> = sources.iter().map(|source| (source, compile(source, &out))).collect();
    let mut table = String::from("&[\n");
    for (source, child) in running {
        println!("cargo:rerun-if-changed={}", source.display());
        let output = child.wait_with_output().expect("nvcc's output");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "nvcc could not compile {}:\n{text}", source.display());
        let binary = out.join(binary_name(source));
        table += &format!("    ({:?}, include_bytes!({:?})),\n", source.display().to_string(), binary);
    }
    fs::write(out.join("kernels.rs"), table + "]").expect("a writable OUT_DIR");
    fs::write(out.join("cuda_version.rs"), cuda_version().to_string()).expect("a writable OUT_DIR");
}

/// nvcc's CUDA version as drivers number theirs: `release 13.0, V13.0.88` is 13000.
fn cuda_version() -> u32 {
    let output = Command::new(nvcc()).arg("--version").output().expect("nvcc's version");
    let text = String::from_utf8_lossy(&output.stdout);
    let release = text.split("release ").nth(1).and_then(|rest| rest.split(',').next());
    let numbers = release.and_then(|release| release.split_once('.'));
    let version = numbers.and_then(|(major, minor)| Some((major.parse::<u32>().ok()?, minor.parse::<u32>().ok()?)));
    let (major, minor) = version.unwrap_or_else(|| panic!("nvcc --version names no release:\n{text}"));
    1000 * major + 10 * minor
}

fn find_sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for path in fs::read_dir(folder).expect("a readable folder").flatten().map(|entry| entry.path()) {
        if path.is_dir() {
            find_sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "cu") {
            found.push(path);
        }
    }
}

/// A name of its own for each source, whatever folder it lies in: `src/ops/rope/rope.cu` is `src-ops-rope-rope.fatbin`.
fn binary_name(source: &Path) -> String {
    let parts: Vec<&str> =
        source.components().map(|part| part.as_os_str().to_str().expect("a plain file name")).collect();
    parts.join("-").replace(".cu", ".fatbin")
}

fn nvcc() -> PathBuf {
    let in_toolkit = || env::var_os("CUDA_HOME").map(|home| Path::new(&home).join("bin/nvcc"));
    env::var_os("NVCC").map(PathBuf::from).or_else(in_toolkit).unwrap_or_else(|| PathBuf::from("nvcc"))
}

fn compile(source: &Path, out: &Path) -> Child {
    let mut command = Command::new(nvcc());
    command.args(["-fatbin", "-O3", "-std=c++17", "--expt-relaxed-constexpr", "-Isrc/device/cuda"]);
    for architecture in ARCHITECTURES {
        command.arg(format!("-gencode=arch=compute_{architecture},code=sm_{architecture}"));
    }
    let newest = ARCHITECTURES[ARCHITECTURES.len() - 1];
    command.arg(format!("-gencode=arch=compute_{newest},code=compute_{newest}"));
    command.arg("-o").arg(out.join(binary_name(source))).arg(source);
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    command.spawn().unwrap_or_else(|error| {
        panic!(
            "{}: {error}. The feature `cuda` needs nvcc: set CUDA_HOME to a CUDA toolkit, or run \
             `eval \"$(scripts/cuda-toolchain.sh)\"` first",
            nvcc().display()
        )
    })
}
