//! `eval` as a person runs it: texts, choices, open questions, going on, comparing, forms, wrong input — and, with the real
//! model of `scripts/assets.sh`, the numbers of transformers (`tests/golden/eval`, made by `scripts/golden_eval.py`).

mod support;

use serde_json::Value;
use std::fs;
use std::path::Path;
use support::{configuration, fail, run, skip, succeed, workspace};

/// Choices in the form of XCOPA.
fn write_choices(path: &Path, count: usize) {
    let line = |index: usize| {
        let (label, question) = (index % 2, if index.is_multiple_of(3) { "cause" } else { "effect" });
        format!(
            "{{\"premise\": \"Il cane numero {index} corre.\", \"choice1\": \"È sera.\", \"choice2\": \"La luna sale \
             {index}.\", \"question\": \"{question}\", \"label\": {label}, \"idx\": {index}}}\n"
        )
    };
    fs::write(path, (0..count).map(line).collect::<String>()).unwrap();
}

fn json(folder: &Path, arguments: &[&str]) -> Value {
    serde_json::from_str(&succeed(folder, &[arguments, &["--json"]].concat())).unwrap()
}

fn value(results: &Value, task: &str, metric: &str) -> f64 {
    results["tasks"][task]["metrics"][metric]["value"].as_f64().unwrap_or_else(|| panic!("{task} {metric}: {results}"))
}

#[test]
fn bits_per_byte_are_those_of_training() {
    let folder = workspace();
    let root = folder.path();
    support::italian(&root.join("other.jsonl"), 9);
    configuration(root, "t", "[[evaluation]]\nname = \"other\"\npaths = [\"other.jsonl\"]\n");
    succeed(root, &["train", "t.toml"]);
    let log = fs::read_to_string(root.join("runs/t/log.jsonl")).unwrap();
    let rows: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let logged: Vec<f64> = rows
        .iter()
        .filter(|row| row["event"] == "eval" && row["set"] == "other")
        .map(|row| row["bits_per_byte"].as_f64().unwrap())
        .collect();
    let measure = ["eval", "--model", "model", "--nf4", "--text", "other.jsonl", "--window", "64", "--stride", "64"];
    let before = value(&json(root, &measure), "text", "bits_per_byte");
    let after = value(&json(root, &[&measure[..], &["--adapter", "runs/t/adapter"]].concat()), "text", "bits_per_byte");
    assert!((before / logged[0] - 1.0).abs() < 1e-5, "{before}, while training {}", logged[0]);
    assert!((after / logged[logged.len() - 1] - 1.0).abs() < 1e-4, "{after}, while training {logged:?}");
    assert!(after < before);
}

#[test]
fn an_evaluation_goes_on_where_it_was_and_is_compared() {
    let folder = workspace();
    let root = folder.path();
    write_choices(&root.join("x.jsonl"), 40);
    configuration(root, "t", "");
    succeed(root, &["train", "t.toml"]);
    let asked = ["--text", "it=data.jsonl", "--task", "xcopa_it=x.jsonl", "--shots", "2"];
    let base = [&["eval", "--model", "model", "--out", "out/base"], &asked[..]].concat();
    let first = json(root, &base);
    let answers = root.join("out/base/xcopa_it.answers.jsonl");
    let whole = fs::read(&answers).unwrap();
    assert_eq!(whole.iter().filter(|byte| **byte == b'\n').count(), 41);
    fs::write(&answers, &whole[..whole.len() / 3]).unwrap();
    assert_eq!(json(root, &base), first, "the same numbers");
    assert_eq!(fs::read(&answers).unwrap().len(), whole.len());
    assert_eq!(first["tasks"]["it"]["units"], 120, "documents");
    for (task, metric) in [("it", "bits_per_byte"), ("it", "perplexity"), ("xcopa_it", "acc")] {
        let measured = &first["tasks"][task]["metrics"][metric];
        let ends = measured["interval_95"].as_array().unwrap();
        assert!(
            ends[0].as_f64().unwrap() <= value(&first, task, metric) && measured["value"].as_f64() <= ends[1].as_f64(),
            "{measured}"
        );
    }
    let table = succeed(root, &base);
    assert!(table.contains("bits_per_byte") && table.contains("xcopa_it"), "{table}");

    let other = fail(root, &[&["eval", "--model", "model", "--no-bos", "--out", "out/base"], &asked[..]].concat(), 1);
    assert!(other.contains("another model") && other.contains("bos"), "{other}");
    let shots = ["eval", "--model", "model", "--out", "out/base", "--task", "xcopa_it=x.jsonl"];
    let other = fail(root, &shots, 1);
    assert!(other.contains("shots: 2 then, 0 now"), "{other}");

    let adapted = ["eval", "--model", "model", "--adapter", "runs/t/adapter", "--out", "out/adapted"];
    succeed(root, &[&adapted, &asked[..]].concat());
    let stored = json(root, &["eval", "--compare", "out/base", "out/adapted"]);
    let bits = &stored["rows"][0];
    assert_eq!((bits["name"].as_str(), bits["metric"].as_str()), (Some("it"), Some("bits_per_byte")));
    assert!(
        bits["difference"]["value"].as_f64().unwrap() < 0.0
            && bits["difference"]["p_bootstrap"].as_f64().unwrap() < 0.01
    );
    let acc = stored["rows"].as_array().unwrap().iter().find(|row| row["metric"] == "acc").unwrap();
    assert!(acc["mcnemar"]["p"].is_number());
    let now = json(root, &[&["eval", "--model", "model", "--compare", "model", "runs/t/adapter"], &asked[..]].concat());
    assert_eq!(now, stored, "measured now and read from folders");
}

#[test]
fn results_that_are_damaged_or_were_measured_otherwise_are_told_apart() {
    let folder = workspace();
    let root = folder.path();
    write_choices(&root.join("x.jsonl"), 6);
    let measure = |out: &str, more: &[&str]| {
        let arguments = ["eval", "--model", "model", "--task", "xcopa_it=x.jsonl", "--out", out];
        run(root, &[&arguments[..], more].concat())
    };
    for (out, more) in [("a", &[][..]), ("b", &["--nf4", "--no-bos"]), ("c", &["--limit", "4"])] {
        assert!(measure(out, more).status.success(), "{out}");
    }
    let notes = |first: &str, second: &str| json(root, &["eval", "--compare", first, second])["notes"].to_string();
    assert!(notes("a", "b").contains("not measured alike: nf4_on_load, bos differ"), "{}", notes("a", "b"));
    let same = notes("a", "c");
    assert!(same.contains("results of the same model") && same.contains("2 items that only one"), "{same}");
    let nothing = fail(root, &["eval", "--compare", "a", "b", "--text", "data.jsonl"], 2);
    assert!(nothing.contains("nothing is left to measure"), "{nothing}");

    let refused = |part: &str| {
        let error = fail(root, &["eval", "--compare", "a", "b"], 1);
        assert!(error.contains(part), "{error}");
    };
    let units = root.join("a/xcopa_it.units.jsonl");
    let whole = fs::read_to_string(&units).unwrap();
    for damaged in ["", "{\"id\":\"0\",\"evidence\":[]}\n", &whole.replacen('1', "2", 1), &whole[..whole.len() - 9]] {
        fs::write(&units, damaged).unwrap();
        refused("units.jsonl: not what results.json was computed from");
    }
    fs::remove_file(&units).unwrap();
    refused("units.jsonl: cannot read");
    assert!(measure("a", &[]).status.success());
    assert_eq!(fs::read_to_string(&units).unwrap(), whole, "the same command makes them good");
    for results in ["7", "{\"model\": {}}", "{\"model\": {}, \"tasks\": {\"xcopa_it\": 3}}"] {
        fs::write(root.join("a/results.json"), results).unwrap();
        refused("not results of an evaluation");
    }

    let answers = root.join("c/xcopa_it.answers.jsonl");
    let kept = fs::read_to_string(&answers).unwrap();
    let (head, rest) = kept.split_once('\n').unwrap();
    for other in [r#"{"choices":["-0x1p0"]}"#, r#"{"text":"sì"}"#, r#"{"choices":["-1.0"]}"#] {
        let first: Value = serde_json::from_str(rest.lines().next().unwrap()).unwrap();
        let line = format!("{{\"id\":{},\"answer\":{other}}}", first["id"]);
        let lines: Vec<&str> = [head, &line].into_iter().chain(rest.lines().skip(1)).collect();
        fs::write(&answers, lines.join("\n") + "\n").unwrap();
        let output = measure("c", &["--limit", "4"]);
        let error = String::from_utf8_lossy(&output.stderr);
        let named = error.contains("is not one to it") || error.contains("not a line of stored answers");
        assert!(output.status.code() == Some(1) && named, "{other}: {error}");
    }
}

#[test]
fn one_model_in_every_form() {
    let folder = workspace();
    let root = folder.path();
    configuration(root, "t", "");
    succeed(root, &["train", "t.toml"]);
    let all = ["--as", "nf4,base,merged,nf4-again,gguf-f16,gguf-q8_0,gguf", "--text", "data.jsonl", "--limit", "8"];
    let found = json(root, &[&["eval", "--model", "model", "--adapter", "runs/t/adapter"], &all[..]].concat());
    assert_eq!(found["reference"], "nf4", "qlora was trained on NF4");
    let kl = |row: usize| found["rows"][row]["kl_per_token"]["value"].as_f64().unwrap();
    assert!(kl(0) < 1e-9, "the reference itself");
    assert!(kl(1) > 1e-6 && (kl(1) / kl(2) - 1.0).abs() < 0.05, "merging an f32 model changes nothing: {found}");
    assert!(kl(3) > 1e-6);
    let forms: Vec<&str> = (4..7).map(|row| found["rows"][row]["form"].as_str().unwrap()).collect();
    assert_eq!(forms, ["gguf-f16", "gguf-q8_0", "gguf"]);
    assert!(kl(4) > 1e-6 && (kl(4) / kl(2) - 1.0).abs() < 0.1, "16 bits change next to nothing: {found}");
    assert!(kl(5) > 1e-6 && kl(6) > kl(5), "fewer bits, further away: {found}");
    let without = fail(root, &[&["eval", "--model", "model"], &all[..]].concat(), 2);
    assert!(without.contains("nothing to merge"), "{without}");
}

#[test]
fn open_questions_are_answered_with_and_without_a_template() {
    let folder = workspace();
    let root = folder.path();
    let squad = r#"{"data": [{"paragraphs": [{"context": "Il cane corre nel prato.", "qas": [
        {"id": "a", "question": "Chi corre?", "answers": [{"text": "Il cane", "answer_start": 0}]},
        {"id": "b", "question": "Dove?", "answers": [{"text": "nel prato", "answer_start": 14}]}]}]}]}"#;
    fs::write(root.join("squad.json"), squad).unwrap();
    for template in ["none", "extremita"] {
        let out = format!("out-{template}");
        let arguments =
            ["eval", "--model", "model", "--task", "squad_it=squad.json", "--template", template, "--out", &out];
        let results = json(root, &arguments);
        assert_eq!(results["tasks"]["squad_it"]["questions"], 2);
        assert_eq!(results["tasks"]["squad_it"]["template"], template);
        assert!((0.0..=1.0).contains(&value(&results, "squad_it", "f1")));
        let answers = fs::read_to_string(root.join(&out).join("squad_it.answers.jsonl")).unwrap();
        assert_eq!(answers.matches("\"text\"").count(), 2, "{answers}");
    }
    let shots = ["eval", "--model", "model", "--task", "squad_it=squad.json", "--shots", "1"];
    let refused = fail(root, &shots, 2);
    assert!(refused.contains("--template none"), "{refused}");
    succeed(root, &[&shots[..], &["--template", "none"]].concat());
}

#[test]
fn wrong_input_is_named() {
    let folder = workspace();
    let root = folder.path();
    let model = ["eval", "--model", "model"];
    let refused = |arguments: &[&str], code: i32, part: &str| {
        let error = fail(root, &[&model[..], arguments].concat(), code);
        assert!(error.contains(part), "{arguments:?}: {error}");
    };
    refused(&[], 2, "nothing to evaluate");
    refused(&["--task", "xcopa_ti=x.jsonl"], 2, "did you mean `xcopa_it`");
    refused(&["--task", "xcopa_it"], 2, "NAME=FILE");
    refused(&["--task", "xcopa_it=missing.jsonl"], 1, "missing.jsonl");
    refused(&["--text", "data.jsonl", "--text", "data.jsonl"], 2, "given twice");
    refused(&["--text", "data.jsonl", "--window", "8", "--stride", "9"], 2, "--stride 9");
    refused(&["--text", "data.jsonl", "--window", "100000"], 2, "--window 100000");
    refused(&["--text", "data.jsonl", "--limit", "0"], 2, "--limit 0");
    refused(&["--compare", "model", "nowhere"], 2, "no results of an evaluation");
    refused(&["--text", "nowhere.jsonl"], 1, "check the path");
    fs::write(root.join("q.jsonl"), "{\"instruction\": \"Chi?\", \"context\": \"\", \"response\": \"Io.\"}\n").unwrap();
    refused(&["--text", "q.jsonl"], 1, "q.jsonl:1: no raw text");
    fs::write(root.join("long.jsonl"), XCOPA_WITH_LONG_CHOICE.replace("LONG", &"casa ".repeat(2000))).unwrap();
    refused(&["--task", "xcopa_it=long.jsonl"], 1, "question `0`: a choice of");
    let lines = [
        (
            "{\"premise\": \"A.\", \"choice1\": \"B\", \"choice2\": \"C\", \"question\": \"why\", \"label\": 0}",
            "`cause`",
        ),
        (
            "{\"premise\": \"A.\", \"choice1\": \"B\", \"choice2\": \"C\", \"question\": \"cause\", \"label\": 2}",
            "2 choices",
        ),
        ("{\"premise\": \"A.\", \"choice1\": \"B\", \"question\": \"cause\", \"label\": 1}", "choice2"),
        ("{\"premise\": ", "x.jsonl:1: broken JSON"),
        ("7", "no JSON object"),
        ("", "no example"),
    ];
    for (line, part) in lines {
        fs::write(root.join("x.jsonl"), line).unwrap();
        refused(&["--task", "xcopa_it=x.jsonl"], 1, part);
    }
    write_choices(&root.join("x.jsonl"), 3);
    refused(&["--task", "xcopa_it=x.jsonl", "--shots", "3"], 2, "4 examples are needed");
    let missing = fail(root, &["eval", "--text", "data.jsonl"], 2);
    assert!(missing.contains("--model"), "{missing}");
    let list = succeed(root, &["eval", "--list"]);
    assert!(list.contains("m_mmlu_it") && list.contains("acc_norm"), "{list}");
}

const XCOPA_WITH_LONG_CHOICE: &str =
    r#"{"premise": "A.", "choice1": "LONG", "choice2": "C", "question": "cause", "label": 0}"#;

/// The published forms of each file, with one record each.
#[test]
fn every_published_form_is_read() {
    let folder = workspace();
    let root = folder.path();
    let files = [
        (
            "arc_it",
            r#"[{"id": "A/1", "instruction": "Che cosa [sic] è?", "option_a": "uno", "option_b": "due", "option_c": "tre", "option_d": "quattro", "option_e": "", "answer": "B"}]"#,
        ),
        (
            "hellaswag_it",
            r#"{"ind": 4, "activity_label": "Sport", "ctx_a": "Un uomo corre.", "ctx_b": "poi LUI", "endings": ["cade", "salta [x]", "ride", "dorme"], "label": "1"}"#,
        ),
        (
            "m_mmlu_it",
            r#"{"id": "algebra/1", "instruction": " Quanto? ", "option_a": "1", "option_b": "2", "option_c": "3", "option_d": "4", "answer": "D"}"#,
        ),
        ("lambada_it", r#"{"text": "Il cane corre nel prato"}"#),
        (
            "belebele_ita",
            r#"{"flores_passage": "Un passo.", "question": "Chi? ", "mc_answer1": "a", "mc_answer2": "b", "mc_answer3": "c", "mc_answer4": "d", "correct_answer_num": "2"}"#,
        ),
        (
            "exams_it",
            r#"{"id": "x", "question": {"stem": "Che cosa?", "choices": [{"text": "uno", "label": "A"}, {"text": "due", "label": "B"}]}, "answerKey": "B"}"#,
        ),
    ];
    for (task, text) in files {
        let file = format!("{task}.json");
        fs::write(root.join(&file), text).unwrap();
        let results = json(root, &["eval", "--model", "model", "--task", &format!("{task}={file}")]);
        assert_eq!(results["tasks"][task]["questions"], 1, "{task}");
    }
}

#[test]
fn the_real_model_gives_the_numbers_of_transformers() {
    let Some(model) = std::env::var_os("LLAMANTINO_SMOLLM2") else {
        return skip("eval against transformers", "LLAMANTINO_SMOLLM2");
    };
    let model = model.to_str().unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let golden: Value =
        serde_json::from_slice(&fs::read(root.join("tests/golden/eval/smollm2.json")).unwrap()).unwrap();
    let out = tempfile::tempdir().unwrap();
    let arguments = [
        "eval",
        "--model",
        model,
        "--text",
        "data/italian/held-out",
        "--window",
        "256",
        "--stride",
        "128",
        "--task",
        "hellaswag_it=tests/golden/eval/choices.jsonl",
        "--out",
        out.path().to_str().unwrap(),
    ];
    let results = json(root, &arguments);
    let close = |found: f64, wanted: &Value, what: &str| {
        let wanted = wanted.as_f64().unwrap();
        assert!((found / wanted - 1.0).abs() < 1e-3, "{what}: {found}, transformers {wanted}");
    };
    close(value(&results, "text", "perplexity"), &golden["perplexity"], "perplexity");
    close(value(&results, "text", "bits_per_byte"), &golden["bits_per_byte"], "bits per byte");
    for metric in ["acc", "acc_norm"] {
        assert_eq!(value(&results, "hellaswag_it", metric), golden[metric].as_f64().unwrap(), "{metric}");
    }
    let answers = fs::read_to_string(out.path().join("hellaswag_it.answers.jsonl")).unwrap();
    let wanted = golden["log_likelihoods"].as_array().unwrap();
    let mut worst = 0f64;
    let mut count = 0;
    for line in answers.lines().skip(1) {
        let line: Value = serde_json::from_str(line).unwrap();
        let index: usize = line["id"].as_str().unwrap().parse().unwrap();
        let found = line["answer"]["choices"].as_array().unwrap();
        for (found, wanted) in found.iter().zip(wanted[index].as_array().unwrap()) {
            worst = worst.max((found.as_str().unwrap().parse::<f64>().unwrap() - wanted.as_f64().unwrap()).abs());
            count += 1;
        }
    }
    assert_eq!(count, 200);
    assert!(worst < 1e-3, "the worst log-likelihood differs by {worst}");
}
