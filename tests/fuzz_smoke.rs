//! The saved inputs of the fuzzer, run once: whoever changes a reader hears of it without a fuzzer.
//!
//! `scripts/fuzz.sh` looks for new ones. An input that was found there and is fixed is kept under `tests/fuzz/seeds`.

#[path = "fuzz/targets/mod.rs"]
mod targets;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz").join(name)
}

/// Names in a folder, sorted, without what `ending` they have.
fn names(folder: &Path, ending: &str) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let names = entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> = names.map(|name| name.trim_end_matches(ending).to_string()).collect();
    names.sort_unstable();
    names
}

#[test]
fn saved_inputs_are_read_or_refused() {
    for (name, run) in targets::ALL {
        let seeds = folder("seeds").join(name);
        let inputs = names(&seeds, "");
        assert!(inputs.len() >= 3, "{name}: {inputs:?}");
        for input in inputs {
            let bytes = fs::read(seeds.join(&input)).unwrap();
            assert!(bytes.len() <= 1 << 14, "{name}/{input} is too long to be kept");
            // Whole, and cut in the middle: a panic names the input above the message.
            println!("{name}/{input}");
            let start = Instant::now();
            run(&bytes);
            run(&bytes[..bytes.len() / 2]);
            assert!(start.elapsed() < Duration::from_secs(60), "{name}/{input} takes {:?}", start.elapsed());
        }
    }
}

#[test]
fn every_target_is_a_program_of_the_fuzzer_and_has_seeds() {
    let targets: Vec<&str> = targets::ALL.iter().map(|(name, _)| *name).collect();
    assert_eq!(names(&folder("bin"), ".rs"), targets);
    assert_eq!(names(&folder("seeds"), ""), targets);
    let files = names(&folder("targets"), ".rs");
    assert_eq!(files.iter().filter(|name| *name != "mod").collect::<Vec<_>>(), targets.iter().collect::<Vec<_>>());
    let manifest = fs::read_to_string(folder("Cargo.toml")).unwrap();
    for name in targets {
        assert!(manifest.contains(&format!("name = \"{name}\"\npath = \"bin/{name}.rs\"")), "{name}");
    }
}
