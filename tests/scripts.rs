//! The scripts: that shell and Python can read each of them, and what the GPU's check says where there is no GPU.

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;
use support::skip;

/// Scripts of the repository that end like this.
fn scripts(ending: &str) -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folders = ["scripts", "tests/bench", "tests/golden"].map(|folder| root.join(folder));
    let entries = folders.iter().flat_map(|folder| std::fs::read_dir(folder).unwrap().flatten());
    let found: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    found.into_iter().filter(|path| path.extension().is_some_and(|extension| extension == ending)).collect()
}

#[test]
fn shell_and_python_can_read_every_script() {
    let (shell, python) = (scripts("sh"), scripts("py"));
    assert!(shell.len() >= 10 && python.len() >= 10, "{shell:?} {python:?}");
    for path in shell {
        let Ok(output) = Command::new("bash").arg("-n").arg(&path).output() else {
            return skip("the scripts' syntax", "a PATH with bash");
        };
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let read = "import ast, sys\nfor path in sys.argv[1:]: ast.parse(open(path).read(), path)";
    let Ok(output) = Command::new("python3").args(["-B", "-c", read]).args(python).output() else {
        return skip("the scripts' syntax", "a PATH with python3");
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_check_of_a_gpu_says_that_there_is_none() {
    if Path::new("/proc/driver/nvidia").exists() && cfg!(feature = "cuda") {
        return skip("gpu-check.sh without a GPU", "a machine without one");
    }
    let folder = tempfile::tempdir().unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/gpu-check.sh");
    let mut command = Command::new("bash");
    command.arg(script).args(["--binary", env!("CARGO_BIN_EXE_llamantino"), "--out"]).arg(folder.path().join("out"));
    let Ok(output) = command.output() else { return skip("gpu-check.sh without a GPU", "a PATH with bash") };
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("nothing was checked") && text.contains("no GPU to check here"), "{text}");
    // Once, and with the reason, not seven times.
    assert_eq!(text.matches("error:").count(), 1, "{text}");
    assert!(text.contains("--features cuda") || text.contains("driver"), "{text}");
}
