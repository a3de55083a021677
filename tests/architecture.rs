//! The layering rule: modules depend one way, and the top level holds what it should.
//!
//! cli → {bench, report} → {train, export, generate, eval} → {data, model, adapter, optim, checkpoint} → {ops, quant, config} →
//! {device, error}. `config` is the machinery that reads a file into sections; the sections live beside what they
//! configure.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Layer of each top-level module: it may use modules of its own layer and of lower ones.
const LAYERS: &[(&str, u32)] = &[
    ("error", 0),
    ("device", 0),
    ("ops", 1),
    ("quant", 1),
    ("config", 1),
    ("data", 2),
    ("model", 2),
    ("adapter", 2),
    ("optim", 2),
    ("checkpoint", 2),
    ("train", 3),
    ("export", 3),
    ("generate", 3),
    ("eval", 3),
    ("bench", 4),
    ("report", 4),
    ("cli", 5),
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn rust_files(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// Names used as `crate::NAME` in code (comments left out).
fn used_modules(text: &str) -> Vec<String> {
    let code: Vec<&str> = text.lines().map(|line| line.split("//").next().unwrap_or("")).collect();
    let code = code.join("\n");
    let mut names = Vec::new();
    for (start, _) in code.match_indices("crate::") {
        let rest = &code[start + "crate::".len()..];
        let name: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        names.push(name);
        if let Some(group) = rest.strip_prefix('{') {
            let group = group.split('}').next().unwrap_or("");
            names.extend(group.split(',').map(|part| part.trim().split("::").next().unwrap_or("").to_string()));
        }
    }
    names
}

#[test]
fn modules_depend_one_way() {
    let layers: BTreeMap<&str, u32> = LAYERS.iter().copied().collect();
    let source = root().join("src");
    let mut files = Vec::new();
    rust_files(&source, &mut files);
    let mut wrong = Vec::new();
    for file in files {
        let relative = file.strip_prefix(&source).unwrap();
        let first = relative.components().next().unwrap().as_os_str().to_str().unwrap();
        let module = first.strip_suffix(".rs").unwrap_or(first);
        if matches!(module, "lib" | "main") {
            continue;
        }
        let Some(&own) = layers.get(module) else {
            wrong.push(format!("{}: module {module} has no layer in tests/architecture.rs", relative.display()));
            continue;
        };
        for used in used_modules(&fs::read_to_string(&file).unwrap()) {
            if let Some(&layer) = layers.get(used.as_str()) {
                if layer > own {
                    wrong.push(format!("{}: {module} (layer {own}) uses {used} (layer {layer})", relative.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn only_cli_output_prints() {
    let mut files = Vec::new();
    rust_files(&root().join("src"), &mut files);
    let prints = ["println!", "eprintln!", "print!(", "eprint!(", "dbg!"];
    let wrong: Vec<_> = files
        .iter()
        .filter(|file| !file.ends_with("cli/output.rs"))
        .filter(|file| {
            let text = fs::read_to_string(file).unwrap();
            text.lines().any(|line| {
                let code = line.split("//").next().unwrap_or("");
                prints.iter().any(|print| code.contains(print)) && !file.ends_with("tests.rs")
            })
        })
        .collect();
    assert!(wrong.is_empty(), "these print: {wrong:?}");
}

#[test]
fn every_file_says_what_it_is() {
    let mut files = Vec::new();
    rust_files(&root().join("src"), &mut files);
    rust_files(&root().join("tests"), &mut files);
    let silent: Vec<_> = files
        .iter()
        .filter(|file| {
            let text = fs::read_to_string(file).unwrap();
            !text.trim_start_matches(|c: char| c.is_whitespace()).starts_with("//!")
        })
        .collect();
    assert!(silent.is_empty(), "no header: {silent:?}");
}
