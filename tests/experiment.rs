//! `scripts/experiment_sources.py`: files in the form that their publishers chose become what the experiment reads.
//!
//! The samples are written by hand, with what is odd in the real files: turns in a row of one speaker, a system that
//! begins, sentences that come again, other languages beside Italian, attributes that a Mac leaves in archives.

mod support;

use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use serde_json::{json, Value};
use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Output};
use support::skip;

fn write(path: &Path, bytes: &[u8]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

/// One file of a tar archive: a header (POSIX ustar, 512 bytes) and the content, padded to whole blocks.
fn tar_entry(name: &str, content: &[u8]) -> Vec<u8> {
    let mut header = [0u8; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[100..107].copy_from_slice(b"0000644");
    header[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
    header[136..147].copy_from_slice(b"00000000000");
    header[156] = b'0';
    header[257..265].copy_from_slice(b"ustar\x0000");
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    let padding = vec![0; content.len().next_multiple_of(512) - content.len()];
    [&header[..], content, &padding].concat()
}

/// Records as EXAMS packs them: NAME.jsonl in NAME.jsonl.tar.gz.
fn pack(path: &Path, records: &[Value]) {
    let name = path.file_name().unwrap().to_str().unwrap().trim_end_matches(".tar.gz");
    let lines: String = records.iter().map(|record| format!("{record}\n")).collect();
    let attributes = tar_entry(&format!("._{name}"), b"\0\x05\x16\x07");
    let archive = [attributes, tar_entry(name, lines.as_bytes()), vec![0; 1024]].concat();
    let mut packed = GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(&archive).unwrap();
    write(path, &packed.finish().unwrap());
}

fn question(language: &str, paragraphs: &[&str]) -> Value {
    let choices: Vec<Value> = paragraphs
        .iter()
        .enumerate()
        .map(|(place, para)| json!({"text": format!("scelta {place}"), "label": "ABCD"[place..=place], "para": para}))
        .collect();
    json!({"id": language, "question": {"stem": "Che cos'è?", "choices": choices}, "answerKey": "A",
           "info": {"grade": 12, "subject": "Biology", "language": language}})
}

const DIALOGUES: &str = r#"<?xml version="1.0" encoding="UTF-8" standalone="no"?>
<dialogues>
  <dialogue>
    <speechAct act="OPENING" actId="13" id="S_1_S1">Ciao, come  stai?</speechAct>
    <speechAct act="STATEMENT" actId="5" id="S_1_U1">Bene &amp; tu?</speechAct>
    <speechAct act="ANSWER" actId="17" id="S_1_S2">Bene.</speechAct>
    <speechAct act="QUESTION" actId="12" id="S_1_S3">Che cosa mangi?</speechAct>
    <speechAct act="STATEMENT" actId="5" id="S_1_U2">Pane.</speechAct>
  </dialogue>
  <dialogue>
    <speechAct act="INFO-REQUEST" actId="1" id="T_2_U1">Il pesce fa bene?</speechAct>
    <speechAct act="ANSWER" actId="17" id="T_2_S1">Credo di sì</speechAct>
  </dialogue>
</dialogues>
"#;

const FAQS: &str = r#"<?xml version="1.0" encoding="utf-8" standalone="no"?>
<dataset>
  <faq><id>182</id><question>Che cos'è la  "bolletta"? </question><answer>Un documento.\n</answer><tag>a, b</tag></faq>
  <faq><id>183</id><question>Senza risposta?</question><answer> </answer><tag>a</tag></faq>
</dataset>
"#;

const CHOICE: &str =
    "{\"premise\": \"Piove.\", \"choice1\": \"A.\", \"choice2\": \"B.\", \"question\": \"effect\", \"label\": 0}\n";

/// Clones of the five repositories, as far as the script reads them.
fn clones(root: &Path) {
    let long = |word: &str| format!("{} è scritto a lungo {}.", word, "e ancora più a lungo ".repeat(10).trim());
    let exams = root.join("exams-qa/data/exams");
    let paragraphs = exams.join("cross-lingual/with_paragraphs");
    let first = format!("{}  {} Breve.", long("Uno"), long("Due"));
    let second = format!("{} {}\nBreve. Corto.", long("Due"), long("Tre"));
    pack(&paragraphs.join("train_it_with_para.jsonl.tar.gz"), &[question("Italian", &[&first, &second])]);
    pack(&paragraphs.join("dev_it_with_para.jsonl.tar.gz"), &[question("Italian", &[&first, "Troppo corto.", ""])]);
    let test = exams.join("multilingual/test.jsonl.tar.gz");
    pack(&test, &[question("Polish", &["", ""]), question("Italian", &["", ""])]);
    write(&root.join("xcopa/data/it/test.it.jsonl"), CHOICE.as_bytes());
    write(&root.join("evalita2018-data/ILISTEN/training.xml"), DIALOGUES.as_bytes());
    write(&root.join("evalita2016-data/qa4faq/qa4faq_dev_v3/faqs_uft8_QA.xml"), FAQS.as_bytes());
    for part in ["train", "dev"] {
        let rows = format!("{part}_1\thaspeede\tUn testo\u{2028}di due\tnon_odio\n");
        write(&root.join(format!("CLiC-it_2023_tutorial/data/{part}_100.txt")), rows.as_bytes());
    }
}

fn convert(root: &Path) -> Option<Output> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/experiment_sources.py");
    let (clones, sources) = (root.join("clones"), root.join("sources"));
    Command::new("python3").arg("-B").arg(script).arg(clones).arg(sources).output().ok()
}

fn records(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn public_files_become_what_the_experiment_reads() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    clones(&root.join("clones"));
    let Some(output) = convert(root) else { return skip("the experiment's sources", "a PATH with python3") };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let read = |name: &str| fs::read_to_string(root.join("sources").join(name)).unwrap();

    let mut text = String::new();
    let packed = fs::File::open(root.join("sources/wiki_it/paragraphs.json.gz")).unwrap();
    GzDecoder::new(packed).read_to_string(&mut text).unwrap();
    let paragraphs = records(&text);
    let texts: Vec<&str> = paragraphs.iter().map(|record| record["text"].as_str().unwrap()).collect();
    assert_eq!(texts.len(), 2, "the second part says nothing new: {texts:?}");
    assert!(texts[0].starts_with("Uno è scritto") && texts[0].contains("lungo. Due è") && texts[0].ends_with("Breve."));
    assert!(texts[1].starts_with("Tre è scritto") && texts[1].ends_with("lungo. Corto."), "{}", texts[1]);
    assert_eq!(paragraphs[1]["url"], "https://it.wikipedia.org/#exams-1");

    let exams = records(&read("exams_it/test.jsonl"));
    assert_eq!(exams, [question("Italian", &["", ""])]);
    assert_eq!(read("xcopa_it/test.it.jsonl"), CHOICE);
    let dialogues = records(&read("dialogue_it/ilisten_ultrachat.jsonl"));
    let first = ["Ciao!", "Ciao, come stai?", "Bene & tu?", "Bene. Che cosa mangi?"];
    let second = ["Il pesce fa bene?", "Credo di sì"];
    assert_eq!(dialogues, [json!({"id": "0", "data": first}), json!({"id": "1", "data": second})]);
    let faqs = records(&read("dialogue_it/qa4faq_dolly.jsonl"));
    let faq = json!({"instruction": "Che cos'è la  \"bolletta\"?", "context": "", "response": "Un documento.\\n",
                     "category": "open_qa"});
    assert_eq!(faqs, [faq]);
    assert_eq!(read("evalita/dev_100.tsv"), "dev_1\thaspeede\tUn testo\u{2028}di due\tnon_odio\n");
}

#[test]
fn a_source_without_italian_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    clones(&root.join("clones"));
    pack(&root.join("clones/exams-qa/data/exams/multilingual/test.jsonl.tar.gz"), &[question("Polish", &[""])]);
    let Some(output) = convert(root) else { return skip("the experiment's sources", "a PATH with python3") };
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && error.contains("exams_it/test.jsonl: nothing to write"), "{error}");
}

/// `scripts/experiment_tables.py` on a folder with one of everything: searches of the first and of the last stage, one that
/// was stopped, a chain, results.
#[test]
fn what_was_found_becomes_tables() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let texts = ["italian", "out-of-domain", "english"];
    let eval =
        |step: u64, set: &str, bits: f64| json!({"event": "eval", "step": step, "set": set, "bits_per_byte": bits});
    let step = json!({"event": "step", "step": 9, "tokens": 12345, "rss_mib": 800});
    let log = |path: &str, rows: &[Value]| {
        let lines: String = rows.iter().map(|row| format!("{row}\n")).collect();
        write(&root.join(path).join("log.jsonl"), lines.as_bytes());
    };
    let first: Vec<Value> = [(0, 2.5), (9, 2.25)]
        .iter()
        .flat_map(|(at, bits)| texts.map(|text| eval(*at, text, *bits)))
        .chain([step.clone()])
        .collect();
    for name in ["search-rate-1e-3", "search-stopped", "search-tasks-replay", "seed-1"] {
        log(&format!("runs/{name}/1-adapt"), if name.starts_with("search-rate") { &first } else { &first[6..] });
        if name != "search-stopped" {
            fs::create_dir_all(root.join(format!("runs/{name}/1-adapt/adapter"))).unwrap();
        }
    }
    log("runs/search-tasks-replay/3-tasks", &[eval(0, "held-out", 2.0), eval(9, "held-out", 0.375)]);
    let value = |value: f64| json!({"value": value, "interval_95": [value - 0.125, value + 0.125]});
    let mut tasks = json!({"xcopa_it": {"metrics": {"acc": value(0.5)}}});
    texts.iter().for_each(|text| tasks[*text] = json!({"metrics": {"bits_per_byte": value(1.5)}}));
    let results = json!({"tasks": tasks}).to_string();
    for place in ["results/base", "validation/search-tasks-replay", "validation/chat"] {
        write(&root.join(place).join("results.json"), results.as_bytes());
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/experiment_tables.py");
    let Ok(output) = Command::new("python3").arg("-B").arg(script).arg(root).output() else {
        return skip("the experiment's tables", "a PATH with python3");
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let tables = String::from_utf8(output.stdout).unwrap();
    let expected = [
        "| before | 2.500 | 2.500 | 2.500 |\n| rate-1e-3 | 2.250 | 2.250 | 2.250 |\n\n",
        "| chat | 1.500 | 1.500 | 1.500 | - |\n| replay | 1.500 | 1.500 | 1.500 | 0.375 |\n",
        "| seed-1 | 12,345 tokens, 800 MiB | - | - |\n",
        "| italian, bits per byte | 1.500 (1.375 to 1.625) |\n",
        "| xcopa_it, acc | 0.50 (0.38 to 0.62) |\n| exams_it, acc_norm | - |\n",
    ];
    for part in expected {
        assert!(tables.contains(part), "{part}\nin\n{tables}");
    }
}
