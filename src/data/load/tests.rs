//! From files to corpora: splits, accounts, empty data.

use super::*;
use crate::config::{load as load_config, Problems, Section};
use crate::data::testing::metaspace_folder;

fn write(folder: &std::path::Path, name: &str, texts: &[String]) -> String {
    let lines: Vec<String> = texts.iter().map(|text| serde_json::json!({ "text": text }).to_string()).collect();
    let path = folder.join(name);
    std::fs::write(&path, lines.join("\n")).unwrap();
    path.to_string_lossy().into_owned()
}

fn texts(count: usize) -> Vec<String> {
    (0..count).map(|i| format!("dio di città {}", "a ".repeat(i % 50) + &i.to_string())).collect()
}

fn config(paths: &[String]) -> DataConfig {
    DataConfig::of_paths(paths)
}

fn documents(corpus: &TokenizedCorpus) -> HashSet<Vec<u32>> {
    (0..corpus.len()).map(|document| corpus.text_ids(document).to_vec()).collect()
}

#[test]
fn the_split_is_by_content_and_near_its_fraction() {
    let folder = tempfile::tempdir().unwrap();
    let mut lines = texts(3000);
    let path = write(folder.path(), "a.jsonl", &lines);
    lines.reverse();
    let reversed = write(folder.path(), "b.jsonl", &lines);
    let tokenizer = metaspace_folder().load();
    let load = |path: &str| {
        let config = DataConfig { held_out_fraction: 0.1, ..config(&[path.to_owned()]) };
        load_text(&config, &tokenizer, &mut |_| ()).unwrap()
    };
    let (data, again) = (load(&path), load(&reversed));
    let (train, held_out) = (documents(&data.train), documents(data.held_out.as_ref().unwrap()));
    assert!(train.is_disjoint(&held_out) && train.len() + held_out.len() == 3000);
    assert!((250..350).contains(&held_out.len()), "{} of 3000", held_out.len());
    assert_eq!(held_out, documents(again.held_out.as_ref().unwrap()));
    assert_eq!(data.report.text_bytes, lines.iter().map(|line| line.len() as u64).sum::<u64>());
}

#[test]
fn held_out_files_are_taken_out_of_their_folder() {
    let folder = tempfile::tempdir().unwrap();
    let lines = texts(20);
    write(folder.path(), "a.jsonl", &lines[..15]);
    let held = write(folder.path(), "b.jsonl", &lines[15..]);
    let tokenizer = metaspace_folder().load();
    let mut config = config(&[folder.path().to_string_lossy().into_owned()]);
    assert!(load_text(&config, &tokenizer, &mut |_| ()).unwrap().held_out.is_none());
    config.held_out_files = vec![held];
    let mut calls = 0;
    let data = load_text(&config, &tokenizer, &mut |_| calls += 1).unwrap();
    assert_eq!((data.train.len(), data.held_out.unwrap().len(), calls), (15, 5, 1));
}

#[test]
fn nothing_to_train_on_or_to_measure_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = metaspace_folder().load();
    let empty = write(folder.path(), "empty.jsonl", &[]);
    let load = |config: &DataConfig| load_text(config, &tokenizer, &mut |_| ());
    let error = load(&config(std::slice::from_ref(&empty))).unwrap_err();
    assert!(error.message().contains("no text to train on (1 file(s)"), "{error}");
    let some = write(folder.path(), "some.jsonl", &texts(3));
    let all_held = DataConfig { held_out_files: vec![some.clone()], ..config(std::slice::from_ref(&some)) };
    assert!(load(&all_held).unwrap_err().message().contains("no text to train on"));
    let none_held = DataConfig { held_out_fraction: 1e-9, ..config(std::slice::from_ref(&some)) };
    assert!(load(&none_held).unwrap_err().message().contains("no held-out document among 3"));
    assert!(load(&config(&["/no/such/place".into()])).unwrap_err().message().contains("no such file or folder"));
}

#[test]
fn the_section_finds_its_own_mistakes() {
    #[derive(Default, serde::Serialize, serde::Deserialize)]
    #[serde(default)]
    struct Whole {
        data: DataConfig,
    }
    impl Section for Whole {
        fn example() -> Whole {
            Whole { data: DataConfig::example() }
        }

        fn check(&self, problems: &mut Problems) {
            problems.section("data", &self.data);
        }
    }
    let text = "[data]\nformat = \"csv\"\nsequence_length = 1\nheld_out_fraction = 1.0\nheld_out_files = [\"b\"]\nmax_bad_line = 3\n";
    let error = load_config::<Whole>(text, std::path::Path::new("c.toml"), &[]).err().unwrap();
    for part in [
        "c.toml:1: data.paths: expected at least one",
        "c.toml:2: data.format: expected one of auto, text, jsonl, found \"csv\"",
        "c.toml:3: data.sequence_length: expected",
        "c.toml:4: data.held_out_fraction: expected a fraction from 0 to below 1, found 1.0",
        "c.toml:5: data.held_out_files: ",
        "c.toml:6: data.max_bad_line: unknown key (did you mean `max_bad_lines`?)",
    ] {
        assert!(error.message().contains(part), "{part}\n{error}");
    }
}
