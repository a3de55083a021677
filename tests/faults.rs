//! Every way of saving, on a disk that goes wrong: each call that changes a file or a name fails once, one after the
//! other, and so does every call from it on. No final name ever holds a bad file, nothing that was there is lost, the
//! error names its file, and the same command then does its work.
//!
//! The faults come from below the program ([`shim`](faults/shim.rs)), so that no write can be forgotten here. In the
//! normal tests each call has one of the faults, in turn; `LLAMANTINO_FAULTS=all` (`scripts/fault-test.sh`) gives each
//! call all of them.

#![cfg(target_os = "linux")]

mod tiny_run;

use llamantino::checkpoint::{Checkpoints, KeepPolicy};
use llamantino::model::Method;
use llamantino::train::RunConfig;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use tiny_run::{assert_same, finish, outcome, stop_after, Tiny};

/// Error number, and whether later calls fail too: a full disk, a bad block, a disk that was remounted read-only.
const FAULTS: [(i32, bool); 5] =
    [(libc::ENOSPC, false), (libc::EIO, false), (libc::EROFS, true), (libc::ENOSPC, true), (libc::EDQUOT, false)];

/// The library that makes calls fail, built once.
fn shim() -> &'static Path {
    static BUILT: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = BUILT.get_or_init(|| {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("libfaults.so");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/faults/shim.rs");
        let compiler = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let built = Command::new(compiler)
            .args(["--edition", "2021", "-O", "--crate-type", "cdylib", "-o"])
            .args([&path, &source])
            .output()
            .expect("rustc is where cargo is");
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        (place, path)
    });
    path
}

/// A command and the folder that it works in.
struct Job {
    tiny: Tiny,
    arguments: Vec<String>,
}

impl Job {
    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_llamantino"));
        command.args(&self.arguments).current_dir(self.tiny.place.path());
        command
    }

    fn succeed(&self) {
        let output = self.command().output().unwrap();
        assert!(output.status.success(), "{:?}: {}", self.arguments, stderr(&output));
    }

    /// Runs it on a disk on which call `at` fails; what it said, or none if there is no such call.
    fn with_fault(&self, at: usize, (errno, lasts): (i32, bool)) -> Option<Output> {
        let log = tempfile::NamedTempFile::new().unwrap();
        let mut command = self.faulty();
        command.env("FAULT_AT", at.to_string()).env("FAULT_ERRNO", errno.to_string()).env("FAULT_LOG", log.path());
        if lasts {
            command.env("FAULT_LASTS", "1");
        }
        let output = command.output().unwrap();
        let hit = fs::metadata(log.path()).unwrap().len() > 0;
        hit.then_some(output)
    }

    /// The command on the faulty disk; without further settings nothing fails.
    fn faulty(&self) -> Command {
        let mut command = self.command();
        command.env("LD_PRELOAD", shim()).env("FAULT_UNDER", self.tiny.place.path());
        command
    }

    /// Makes every call fail in turn. `reset` puts everything back before, `check` looks at what is left after the
    /// command said what it is given; then the command is run again and must succeed, and `check_end` looks again.
    fn sweep(&self, reset: &dyn Fn(), check: &dyn Fn(&str), check_end: &dyn Fn(&str)) {
        let all = std::env::var("LLAMANTINO_FAULTS").is_ok_and(|value| value == "all");
        let (mut calls, mut failures) = (0, 0);
        for at in 0.. {
            let faults = (0..FAULTS.len()).filter(|&fault| all || fault == at % FAULTS.len());
            let mut hit = false;
            for fault in faults.map(|fault| FAULTS[fault]) {
                reset();
                let Some(output) = self.with_fault(at, fault) else { break };
                hit = true;
                let what = format!("{:?}, call {at}, {fault:?}:\n{}", self.arguments, stderr(&output));
                assert!(!what.contains("panicked"), "{what}");
                match output.status.code() {
                    // What failed was not needed: a checkpoint that could not be removed, say.
                    Some(0) => {}
                    Some(1) => {
                        failures += 1;
                        assert!(what.contains("error: ") && what.contains("os error"), "{what}");
                    }
                    code => panic!("exit code {code:?}: {what}"),
                }
                check(&what);
                check_end(&what);
            }
            if !hit {
                calls = at;
                break;
            }
        }
        println!("{}: {calls} calls, {failures} failures", self.arguments[0]);
        assert!(calls >= 5, "{:?}: only {calls} calls were made to fail", self.arguments);
        assert!(failures * 10 >= calls * 9, "{:?}: {calls} calls, {failures} failures", self.arguments);
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Every file at or below `path`, by its relative name; nothing if there is no such path.
fn files(path: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![path.to_path_buf()];
    while let Some(next) = waiting.pop() {
        if next.is_dir() {
            waiting.extend(fs::read_dir(&next).unwrap().map(|entry| entry.unwrap().path()));
        } else if next.exists() {
            found.insert(next.strip_prefix(path).unwrap().to_path_buf(), fs::read(&next).unwrap());
        }
    }
    found
}

fn remove(path: &Path) {
    match path.is_dir() {
        true => fs::remove_dir_all(path).unwrap(),
        false if path.exists() => fs::remove_file(path).unwrap(),
        false => {}
    }
}

/// A command that makes `out` from the files beside it.
fn makes_one_thing(tiny: Tiny, arguments: &[&str], out: &str) {
    let job = Job { arguments: arguments.iter().map(|argument| argument.to_string()).collect(), tiny };
    let out = job.tiny.path(out);
    job.succeed();
    let expected = files(job.tiny.place.path());
    let without_out: BTreeMap<_, _> =
        expected.iter().filter(|(name, _)| !job.tiny.path(&name.to_string_lossy()).starts_with(&out)).collect();
    let made = files(&out);
    let check = |what: &str| {
        let left = files(&out);
        assert!(left.is_empty() || left == made, "{:?} under its final name after {what}", left.keys());
        // Nothing else is touched, and nothing half-done is left where names could still be removed.
        remove(&out);
        assert_eq!(files(job.tiny.place.path()).iter().collect::<BTreeMap<_, _>>(), without_out, "{what}");
    };
    let check_end = |what: &str| {
        job.succeed();
        assert!(files(job.tiny.place.path()) == expected, "another result after {what}");
    };
    job.sweep(&|| remove(&out), &check, &check_end);

    remove(&out);
    for most in ["1000", "7"] {
        let output = job.faulty().env("FAULT_SHORT", most).output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        assert!(files(job.tiny.place.path()) == expected, "short writes of {most}");
        remove(&out);
    }
}

/// A command that makes files in the folder `folder`, each of which appears at once.
fn makes_files(tiny: Tiny, arguments: &[&str], folder: &str) {
    let job = Job { arguments: arguments.iter().map(|argument| argument.to_string()).collect(), tiny };
    let folder = job.tiny.path(folder);
    let reset = || {
        remove(&folder);
        fs::create_dir(&folder).unwrap();
    };
    reset();
    let rest = files(job.tiny.place.path());
    job.succeed();
    let expected = files(job.tiny.place.path());
    let made = files(&folder);
    assert!(!made.is_empty());
    let check = |what: &str| {
        for (name, bytes) in files(&folder) {
            // Nothing half-done under another name either: it could still be removed.
            assert!(made.get(&name) == Some(&bytes), "{} after {what}", name.display());
        }
        reset();
        assert!(files(job.tiny.place.path()) == rest, "{what}");
    };
    let check_end = |what: &str| {
        job.succeed();
        assert!(files(job.tiny.place.path()) == expected, "another result after {what}");
    };
    job.sweep(&reset, &check, &check_end);

    for most in ["1000", "7"] {
        reset();
        let output = job.faulty().env("FAULT_SHORT", most).output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        assert!(files(job.tiny.place.path()) == expected, "short writes of {most}");
    }
}

/// A small adapter in `runs/trained/adapter`, and the tiny model.
fn trained() -> Tiny {
    let tiny = Tiny::new();
    let mut config = tiny.config("trained");
    config.training.steps = 1;
    finish(&config);
    tiny
}

#[test]
fn quantize() {
    makes_one_thing(Tiny::new(), &["quantize", "--model", "model", "--out", "nf4"], "nf4");
}

#[test]
fn merge_into_shards() {
    let adapter = "runs/trained/adapter";
    let arguments = ["merge", "--base", "model", "--adapter", adapter, "--out", "merged", "--shard-gib", "0.0001"];
    makes_one_thing(trained(), &arguments, "merged");
}

#[test]
fn diffs() {
    let tiny = trained();
    let merge = ["merge", "--base", "model", "--adapter", "runs/trained/adapter", "--out", "tuned"];
    let job = Job { arguments: merge.map(String::from).into(), tiny };
    job.succeed();
    makes_one_thing(job.tiny, &["diff", "make", "--out", "new.diff", "model", "tuned"], "new.diff");
    let job = Job { arguments: merge.map(String::from).into(), tiny: trained() };
    job.succeed();
    let make = ["diff", "make", "--out", "a.diff", "model", "tuned"].map(String::from).into();
    let job = Job { arguments: make, tiny: job.tiny };
    job.succeed();
    makes_one_thing(job.tiny, &["diff", "apply", "--out", "again", "model", "a.diff"], "again");
}

#[test]
fn import_gguf() {
    let tiny = Tiny::new();
    let gguf = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/seeds/gguf/q4_0");
    fs::copy(gguf, tiny.path("small.gguf")).unwrap();
    makes_one_thing(tiny, &["import", "small.gguf", "--out", "imported"], "imported");
}

#[test]
fn export_gguf() {
    let model = ["export", "gguf", "--model", "model", "--adapter", "runs/trained/adapter", "--type", "q8_0"];
    makes_files(trained(), &[&model[..], &["--out", "out/model.gguf"]].concat(), "out");
    let adapter = ["export", "adapter-gguf", "--model", "model", "--adapter", "runs/trained/adapter"];
    makes_files(trained(), &[&adapter[..], &["--out", "out/adapter.gguf"]].concat(), "out");
}

#[test]
fn data_prepare() {
    let tiny = Tiny::new();
    let mut config = tiny.config("prepared");
    config.data.cache = tiny.path("cache").display().to_string();
    let path = tiny.write_config(&config).display().to_string();
    makes_files(tiny, &["data", "prepare", &path], "cache");
}

/// A run that saves after each of its two steps, and prunes.
fn short_run(tiny: &Tiny, method: Method) -> RunConfig {
    let mut config = RunConfig { method, ..tiny.config("run") };
    config.training.steps = 2;
    config.training.accumulation = 1;
    config.training.checkpoint_every = 1;
    config.training.evaluate_every = 1;
    config.training.keep_last = 1;
    config.data.held_out_files.clear();
    config
}

/// A run of `method`; `begun` is where it stands when its disk goes wrong.
fn run_survives(method: Method, begun: &dyn Fn(&RunConfig)) {
    let tiny = Tiny::new();
    let config = short_run(&tiny, method);
    let whole = RunConfig { name: "whole".into(), ..config.clone() };
    finish(&whole);
    let expected = outcome(&whole);
    let result = finish(&whole).result;
    let path = tiny.write_config(&config).display().to_string();
    let job = Job { arguments: vec!["train".into(), path], tiny };
    begun(&config);
    let beginning = files(&config.folder());
    let reset = || {
        remove(&config.folder());
        for (name, bytes) in &beginning {
            let path = config.folder().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
    };
    let check = |what: &str| {
        let folder = config.folder();
        let settings = fs::read_to_string(folder.join("config.toml")).ok();
        assert!(settings.is_none_or(|text| text == config.to_toml().unwrap()), "{what}");
        let made = files(&folder.join(result.file_name().unwrap()));
        assert!(made.is_empty() || made == files(&result), "a bad result under its final name after {what}");
        if !folder.join("checkpoints").is_dir() {
            return;
        }
        let steps = names_of_checkpoints(&folder);
        assert!(beginning.is_empty() || !steps.is_empty(), "what was saved before is lost: {what}");
        let checkpoints = Checkpoints::open(&folder.join("checkpoints"), KeepPolicy { last: 1, best: 0 }).unwrap();
        for step in steps {
            checkpoints.load(step).unwrap_or_else(|error| panic!("a bad checkpoint: {error}\n{what}"));
        }
    };
    let check_end = |what: &str| {
        job.succeed();
        assert_same(&outcome(&config), &expected, what);
        let left = files(&config.folder());
        let half = left.keys().find(|name| name.to_string_lossy().contains(".tmp-"));
        assert_eq!(half, None, "{what}");
    };
    job.sweep(&reset, &check, &check_end);

    reset();
    let output = job.faulty().env("FAULT_SHORT", "7").output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert_same(&outcome(&config), &expected, "short writes");
}

/// Steps that have a checkpoint under its final name, before anything is cleared up.
fn names_of_checkpoints(folder: &Path) -> Vec<u64> {
    let entries = fs::read_dir(folder.join("checkpoints")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    names.filter_map(|name| name.strip_prefix("step-")?.parse().ok()).collect()
}

#[test]
fn a_qlora_run() {
    run_survives(Method::Qlora, &|_| {});
}

#[test]
fn a_full_run() {
    run_survives(Method::Full, &|_| {});
}

#[test]
fn a_resumed_run() {
    run_survives(Method::Qlora, &|config| stop_after(config, 1));
}
