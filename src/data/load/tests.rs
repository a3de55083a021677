//! From files to corpora: splits, accounts, empty data.

use super::*;
use crate::config::{load as load_config, Problems, Section};
use crate::data::config::LongExamples;
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

fn read(config: &DataConfig, tokenizer: &Tokenizer) -> Result<Data> {
    load(config, tokenizer, Path::new("no model"), &mut |_| ())
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
    let load_path = |path: &str| {
        let config = DataConfig { held_out_fraction: 0.1, ..config(&[path.to_owned()]) };
        read(&config, &tokenizer).unwrap()
    };
    let (data, again) = (load_path(&path), load_path(&reversed));
    let (train, held_out) = (documents(&data.train), documents(&data.held_out[0].1));
    assert!(train.is_disjoint(&held_out) && train.len() + held_out.len() == 3000);
    assert!((250..350).contains(&held_out.len()), "{} of 3000", held_out.len());
    assert_eq!(held_out, documents(&again.held_out[0].1));
    assert_eq!(data.report.text_bytes, lines.iter().map(|line| line.len() as u64).sum::<u64>());
}

#[test]
fn no_more_is_measured_than_asked_and_nothing_of_the_rest_is_trained() {
    let folder = tempfile::tempdir().unwrap();
    let mut lines = texts(2000);
    let path = write(folder.path(), "a.jsonl", &lines);
    lines.reverse();
    let reversed = write(folder.path(), "b.jsonl", &lines);
    let tokenizer = metaspace_folder().load();
    let load_path = |path: &str, max_held_out| {
        let config = DataConfig { held_out_fraction: 0.1, max_held_out, ..config(&[path.to_owned()]) };
        read(&config, &tokenizer).unwrap()
    };
    let (all, some, again) = (load_path(&path, 0), load_path(&path, 20), load_path(&reversed, 20));
    let of = |data: &Data| documents(&data.held_out[0].1);
    assert_eq!((of(&some).len(), some.held_out[0].1.sources()[0].documents.clone()), (20, 0..20));
    assert!(of(&some).is_subset(&of(&all)));
    assert_eq!(of(&some), of(&again));
    assert_eq!(documents(&all.train), documents(&some.train));
    assert_eq!(of(&load_path(&path, 1_000_000)), of(&all));
}

#[test]
fn held_out_files_are_taken_out_of_their_folder() {
    let folder = tempfile::tempdir().unwrap();
    let lines = texts(20);
    write(folder.path(), "a.jsonl", &lines[..15]);
    let held = write(folder.path(), "b.jsonl", &lines[15..]);
    let tokenizer = metaspace_folder().load();
    let mut config = config(&[folder.path().to_string_lossy().into_owned()]);
    assert!(read(&config, &tokenizer).unwrap().held_out.is_empty());
    config.held_out_files = vec![held];
    let mut last = Progress::default();
    let data = load(&config, &tokenizer, Path::new(""), &mut |progress| last = progress.clone()).unwrap();
    assert_eq!((data.train.len(), data.held_out[0].1.len()), (15, 5));
    assert_eq!((last.bytes_done, last.documents, last.tokens), (last.bytes_total, 20, data.report.sources[0].tokens));
}

#[test]
fn nothing_to_train_on_or_to_measure_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = metaspace_folder().load();
    let empty = write(folder.path(), "empty.jsonl", &[]);
    let load = |config: &DataConfig| read(config, &tokenizer);
    let error = load(&config(std::slice::from_ref(&empty))).unwrap_err();
    assert!(error.message().contains("nothing to train on (1 file(s)"), "{error}");
    let some = write(folder.path(), "some.jsonl", &texts(3));
    let all_held = DataConfig { held_out_files: vec![some.clone()], ..config(std::slice::from_ref(&some)) };
    assert!(load(&all_held).unwrap_err().message().contains("nothing to train on"));
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
        "c.toml:2: data.format: expected one of auto, text, messages, preference, ultrachat, dolly, alpaca, completion, evalita, found \"csv\"",
        "c.toml:3: data.sequence_length: expected",
        "c.toml:4: data.held_out_fraction: expected a fraction from 0 to below 1, found 1.0",
        "c.toml:5: data.held_out_files: ",
        "c.toml:6: data.max_bad_line: unknown key (did you mean `max_bad_lines`?)",
    ] {
        assert!(error.message().contains(part), "{part}\n{error}");
    }
}

fn lines(folder: &Path, name: &str, lines: &[String]) -> String {
    let path = folder.join(name);
    std::fs::write(&path, lines.join("\n") + "\n").unwrap();
    path.to_string_lossy().into_owned()
}

fn dialogue(turns: usize, length: usize) -> String {
    let turns: Vec<String> = (0..turns).map(|turn| "parola ".repeat(length) + &turn.to_string()).collect();
    serde_json::json!({ "data": turns }).to_string()
}

/// `[data]` with UltraChat dialogues and raw text, written by the completion template's kind of simple template.
fn two_sources(folder: &Path, more: &str) -> DataConfig {
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
    let chat = lines(folder, "chat.jsonl", &(0..40).map(|i| dialogue(2 + 2 * (i % 3), 1 + i % 5)).collect::<Vec<_>>());
    let text = write(folder, "text.jsonl", &texts(60));
    let toml = format!(
        "[data]\n{more}\n[[data.source]]\nname = \"chat\"\npaths = [{chat:?}]\ntemplate = \"llamantino-chat\"\nsystem = \"\"\n\
         weight = 3\n[[data.source]]\nname = \"text\"\npaths = [{text:?}]\nweight = 1\n"
    );
    load_config::<Whole>(&toml, Path::new("c.toml"), &[]).unwrap().data
}

#[test]
fn several_sources_are_read_each_in_its_way() {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = metaspace_folder().load();
    let config = two_sources(folder.path(), "sequence_length = 4096\nheld_out_fraction = 0.2\ncache = \"off\"");
    let data = read(&config, &tokenizer).unwrap();
    let names: Vec<&str> = data.held_out.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["held-out chat", "held-out text"]);
    let [chat, text] = &data.report.sources[..] else { panic!("two sources") };
    assert_eq!(chat.recognised, ["UltraChat dialogues (JSON lines), template llamantino-chat"]);
    assert_eq!(text.recognised, ["raw text (JSON lines)"]);
    // Three different numbers of turns times five lengths: copies of a dialogue fall on one side.
    assert_eq!(chat.documents + chat.held_out_documents, 40);
    assert_eq!(text.documents + text.held_out_documents, 60);
    assert_eq!(data.train.sources()[1].documents, chat.documents as usize..data.train.len());
    assert!(chat.trained_tokens < chat.tokens / 2 && text.trained_tokens == text.tokens - 60);
    // The training ids of a dialogue are those of the template.
    let template = crate::data::template::Template::builtin("llamantino-chat").unwrap();
    let (part, place) = data.train.place(0);
    let line = std::fs::read_to_string(folder.path().join("chat.jsonl")).unwrap();
    let line = line.lines().nth(part.line(place) as usize - 1).unwrap();
    let turns: Vec<String> =
        serde_json::from_value(serde_json::from_str::<serde_json::Value>(line).unwrap()["data"].clone()).unwrap();
    use crate::data::template::{Conversation, Message, Mode, Role};
    let roles = [Role::User, Role::Assistant].into_iter().cycle();
    let system = Message::new(Role::System, "");
    let messages =
        std::iter::once(system).chain(roles.zip(turns).map(|(role, text)| Message::new(role, text))).collect();
    let rendered = template.render(&tokenizer, &Conversation { messages }, Mode::Training).unwrap();
    assert_eq!(part.ids(place), rendered.ids);
    assert_eq!(data.train.spans(0), rendered.spans.into_iter().map(|span| span.tokens).collect::<Vec<_>>());
}

#[test]
fn examples_that_do_not_fit_are_cut_or_dropped_and_counted() {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = metaspace_folder().load();
    let mut config = two_sources(folder.path(), "sequence_length = 60\ncache = \"off\"");
    let data = read(&config, &tokenizer).unwrap();
    let chat = &data.report.sources[0];
    assert!(chat.cut > 0 && chat.dropped_long > 0, "{chat:?}");
    assert_eq!(chat.documents + chat.dropped_long, 40);
    for document in data.train.sources()[0].documents.clone() {
        let (rows, spans) = (data.train.rows(document), data.train.spans(document));
        assert!(rows <= 60 && spans.iter().any(|span| span.end == rows + 1), "{rows} {spans:?}");
    }
    config.long_examples = LongExamples::Split;
    let split = read(&config, &tokenizer).unwrap().report.sources[0].clone();
    assert_eq!((split.documents, split.cut, split.dropped_long), (40, 0, 0));
    assert!(split.split > 0);
}

#[test]
fn the_cache_gives_the_same_tokens_and_survives_damage() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("cache");
    let tokenizer = metaspace_folder().load();
    let off = two_sources(folder.path(), "held_out_fraction = 0.2\ncache = \"off\"");
    let on = DataConfig { cache: cache.to_string_lossy().into_owned(), ..off.clone() };
    let print = |config: &DataConfig| {
        let data = read(config, &tokenizer).unwrap();
        let held: Vec<_> = data.held_out.iter().map(|(_, corpus)| corpus.fingerprint()).collect();
        let cached: u64 = data.report.sources.iter().map(|source| source.parts_from_cache).sum();
        let warnings: usize = data.report.sources.iter().map(|source| source.warnings.len()).sum();
        (data.train.fingerprint(), held, cached, warnings)
    };
    let plain = print(&off);
    let first = print(&on);
    let again = print(&on);
    assert_eq!((&plain.0, &plain.1), (&first.0, &first.1));
    assert_eq!((&plain.0, &plain.1), (&again.0, &again.1));
    assert_eq!([plain.2, first.2, again.2], [0, 0, 2]);
    let prepared = prepare(&on, &tokenizer, Path::new(""), &mut |_| ()).unwrap();
    assert_eq!(prepared.sources.iter().map(|source| source.parts_from_cache).sum::<u64>(), 2);
    assert!(prepare(&off, &tokenizer, Path::new(""), &mut |_| ()).unwrap_err().message().contains("data.cache is off"));
    // Any byte of any part: noticed and made again.
    for entry in std::fs::read_dir(&cache).unwrap() {
        let part = entry.unwrap().path().join("00000.tokens");
        let mut bytes = std::fs::read(&part).unwrap();
        for place in [0, 20, 45, 80, bytes.len() / 2, bytes.len() - 1] {
            bytes[place] ^= 4;
            std::fs::write(&part, &bytes).unwrap();
            let (train, held, cached, warnings) = print(&on);
            assert_eq!((train, held, cached, warnings), (plain.0, plain.1.clone(), 1, 1), "byte {place}");
            bytes = std::fs::read(&part).unwrap();
        }
        std::fs::write(&part, &bytes[..bytes.len() - 8]).unwrap();
        assert_eq!(print(&on).3, 1);
    }
    // Another template, another key; the text is still there.
    let other = DataConfig { trained: Some(crate::data::template::Trained::All), ..on.clone() };
    let data = read(&other, &tokenizer).unwrap();
    assert_eq!([data.report.sources[0].parts_from_cache, data.report.sources[1].parts_from_cache], [0, 1]);
    std::fs::remove_dir_all(&cache).unwrap();
    assert_eq!(print(&on).0, plain.0);
}

#[test]
fn tokens_of_a_file_that_was_left_half_done_are_completed_to_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = metaspace_folder().load();
    // A part takes 65,536 records, and one of these is bad.
    let mut records: Vec<String> = (0..140_000).map(|i| format!("{{\"text\":\"di {i}\"}}")).collect();
    records[100_000] = "{\"text\":".into();
    let path = lines(folder.path(), "a.jsonl", &records);
    let with = |cache: &str, max_documents| DataConfig {
        cache: folder.path().join(cache).to_string_lossy().into_owned(),
        max_bad_lines: 1,
        max_documents,
        ..config(std::slice::from_ref(&path))
    };
    let parts = |cache: &str| -> Vec<(String, Vec<u8>)> {
        let entry = std::fs::read_dir(folder.path().join(cache)).unwrap().next().unwrap().unwrap().path();
        let files = std::fs::read_dir(entry).unwrap().map(|file| file.unwrap());
        let mut files: Vec<_> = files
            .map(|file| (file.file_name().to_string_lossy().into_owned(), std::fs::read(file.path()).unwrap()))
            .collect();
        files.sort();
        files
    };
    let whole = read(&with("whole", 0), &tokenizer).unwrap();
    let expected = parts("whole");
    let names: Vec<&str> = expected.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["00000.tokens", "00001.tokens", "00002.tokens", "complete"]);
    // A run that needs less leaves the rest; one that needs all completes it.
    let some = read(&with("half", 70_000), &tokenizer).unwrap();
    assert_eq!((some.train.len(), parts("half").len()), (70_000, 2));
    let prepared = prepare(&with("half", 0), &tokenizer, Path::new(""), &mut |_| ()).unwrap();
    assert_eq!((prepared.sources[0].parts_from_cache, prepared.bad_lines.count), (2, 1));
    assert!(prepared.bad_lines.first[0].contains("a.jsonl:100001: broken JSON"), "{:?}", prepared.bad_lines);
    assert_eq!(parts("half"), expected);
    // As a process leaves it that was killed while it wrote.
    let entry = std::fs::read_dir(folder.path().join("half")).unwrap().next().unwrap().unwrap().path();
    std::fs::remove_file(entry.join("complete")).unwrap();
    std::fs::write(entry.join("00002.tokens"), &expected[2].1[..1000]).unwrap();
    let again = read(&with("half", 0), &tokenizer).unwrap();
    assert_eq!(parts("half"), expected);
    assert_eq!(again.train.fingerprint(), whole.train.fingerprint());
    assert_eq!(again.report.sources[0].warnings.len(), 1);
}

#[test]
fn max_documents_takes_the_first() {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = metaspace_folder().load();
    let paths = [write(folder.path(), "a.jsonl", &texts(30)), write(folder.path(), "b.jsonl", &texts(30))];
    let config = DataConfig { max_documents: 40, held_out_fraction: 0.25, ..config(&paths) };
    let report = read(&config, &tokenizer).unwrap().report;
    assert_eq!(report.documents + report.held_out_documents, 40);
    let few = DataConfig { max_documents: 7, held_out_fraction: 0.0, ..config };
    assert_eq!(read(&few, &tokenizer).unwrap().report.documents, 7);
}

#[test]
fn what_would_not_be_trained_properly_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let chat = lines(folder.path(), "chat.jsonl", &[dialogue(2, 1), dialogue(4, 2)]);
    let base = config(std::slice::from_ref(&chat));
    let tokenizer = metaspace_folder().load();
    let error = read(&base, &tokenizer).unwrap_err();
    assert!(error.message().contains("UltraChat dialogues need a template, and the model has none"), "{error}");
    assert!(error.hint_text().unwrap().contains("llamantino-chat"));
    // An instruction template takes one exchange.
    let error = read(&DataConfig { template: "llamantino-instruct".into(), ..base.clone() }, &tokenizer).unwrap_err();
    assert!(error.message().contains("chat.jsonl:2: template llamantino-instruct: 4 messages"), "{error}");
    // A tokenizer without EOS cannot end an answer.
    let mut json = crate::data::testing::byte_level();
    json["post_processor"] = serde_json::Value::Null;
    let bare = crate::data::testing::ModelFolder::new(&json).load();
    let error = read(&DataConfig { template: "llamantino-chat".into(), ..base.clone() }, &bare).unwrap_err();
    assert!(error.message().contains("the tokenizer has no EOS token"), "{error}");
    let pairs = lines(folder.path(), "p.jsonl", &["{\"prompt\":\"a\",\"chosen\":\"b\",\"rejected\":\"c\"}".into()]);
    let error = read(&config(&[pairs]), &tokenizer).unwrap_err();
    assert!(error.message().contains("preferences are read, but nothing trains on them"), "{error}");
}

#[test]
fn control_tokens_in_text_are_counted_and_closed_unless_asked() {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = metaspace_folder().load();
    let path = write(folder.path(), "a.jsonl", &["un dio".into(), "finto </s> segno".into()]);
    let closed = read(&config(std::slice::from_ref(&path)), &tokenizer).unwrap();
    assert_eq!(closed.report.sources[0].naming_control_tokens, 1);
    assert!(!closed.train.text_ids(1).contains(&2));
    let open = DataConfig { special_tokens_in_text: true, ..config(&[path]) };
    assert!(read(&open, &tokenizer).unwrap().train.text_ids(1).contains(&2));
}
