//! `llamantino train` without a configuration, in an empty folder: what a person who has just installed the program does.

mod support;

use serde_json::Value;
use std::fs;
use std::path::Path;
use support::{run, succeed};

const FOLDER: &str = "llamantino-quickstart";
/// Enough for the held-out text to improve, little enough for a test.
const SHORT: [&str; 5] = ["train", "--set", "training.steps=12", "--set", "optimizer.learning_rate=2e-3"];

fn bits_per_byte(log: &Path) -> Vec<f64> {
    let text = fs::read_to_string(log).unwrap();
    let rows = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    rows.filter(|row| row["event"] == "eval").map(|row| row["bits_per_byte"].as_f64().unwrap()).collect()
}

/// The rest of the line that begins with `start` (and blanks before it).
fn line_after<'a>(text: &'a str, start: &str) -> &'a str {
    let line = text.lines().find_map(|line| line.trim_start().strip_prefix(start));
    line.unwrap_or_else(|| panic!("no line {start:?} in:\n{text}")).trim()
}

#[test]
fn the_quickstart_runs_in_an_empty_folder_and_its_next_commands_work() {
    let place = tempfile::tempdir().unwrap();
    let root = place.path();
    let output = run(root, &SHORT);
    let screen = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{screen}");
    assert!(output.stdout.is_empty(), "stdout is for data");

    let run_folder = root.join(FOLDER).join("runs/quickstart");
    for file in ["config.toml", "log.jsonl", "adapter/adapter_config.json", "adapter/adapter_model.safetensors"] {
        assert!(run_folder.join(file).is_file(), "{file}");
    }
    assert_eq!(fs::read_dir(root).unwrap().count(), 1, "everything is in one folder");
    let bits = bits_per_byte(&run_folder.join("log.jsonl"));
    let (first, last) = (bits[0], bits[bits.len() - 1]);
    assert!(last < first - 0.1, "held-out Italian: {first} to {last} bits per byte");
    for figure in [first, last] {
        assert!(screen.contains(&format!("{figure:.4}")), "{figure} is not shown:\n{screen}");
    }

    let (before, after) = (line_after(&screen, "before:"), line_after(&screen, "after:"));
    assert!(before != after && before.starts_with("La mattina") && after.starts_with("La mattina"), "{screen}");

    // The commands are run as they are printed, first the one that gives the shown text again.
    let commands: Vec<&str> = screen
        .lines()
        .map(str::trim)
        .filter(|line| line.starts_with("llamantino ") && !line.contains("my-texts"))
        .collect();
    assert_eq!(commands.len(), 3, "{screen}");
    let printed: Vec<String> = commands.iter().map(|command| succeed(root, &arguments(command))).collect();
    assert_eq!(printed[0].split_whitespace().collect::<Vec<_>>().join(" "), after, "the shown text comes again");
    assert!(root.join(FOLDER).join("merged/model.safetensors").is_file());
    assert!(!printed[2].trim().is_empty());
}

/// The words of a printed command after the program's name; quotes hold a word together.
fn arguments(command: &str) -> Vec<&str> {
    let parts = command.split('"').enumerate();
    let words = parts.flat_map(|(index, part)| match index % 2 {
        0 => part.split_whitespace().collect(),
        _ => vec![part],
    });
    words.skip(1).collect()
}

#[test]
fn a_second_quickstart_keeps_what_the_first_made_and_says_where_it_is() {
    let place = tempfile::tempdir().unwrap();
    let root = place.path();
    succeed(root, &SHORT);
    let adapter = root.join(FOLDER).join("runs/quickstart/adapter/adapter_model.safetensors");
    let weights = fs::read(&adapter).unwrap();
    let output = run(root, &SHORT);
    let screen = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(screen.contains("using the files in llamantino-quickstart/"), "{screen}");
    assert!(screen.contains("llamantino-quickstart/runs/quickstart"), "{screen}");
    assert!(!screen.contains("panicked"));
    assert!(fs::read(&adapter).unwrap() == weights, "the first run's adapter stays");
}
