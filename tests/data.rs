//! `llamantino data` and training on several sources, through the binary.

mod support;

use serde_json::{json, Value};
use std::path::Path;
use support::{fail, run, succeed, workspace};

/// Dialogues, instructions and text, and a configuration of all three.
fn three_sources(folder: &Path) {
    let lines = |values: Vec<Value>| values.iter().map(|value| format!("{value}\n")).collect::<String>();
    let words = ["sì", "no", "forse", "domani", "perché"];
    let chat = (0..60).map(|i| json!({"id": i.to_string(), "data": ["Ciao?", words[i % 5], "E poi?", words[i % 3]]}));
    std::fs::write(folder.join("chat.jsonl"), lines(chat.collect())).unwrap();
    let tasks: Vec<Value> =
        (0..30).map(|i| json!({"instruction": format!("Conta {i}"), "input": "", "output": words[i % 5]})).collect();
    std::fs::write(folder.join("tasks.json"), Value::Array(tasks).to_string()).unwrap();
    let config = "name = \"three\"\nmodel = \"model\"\nseed = 7\n\
        [data]\nsequence_length = 128\nheld_out_fraction = 0.1\ncache = \"tokens\"\n\
        [[data.source]]\nname = \"chat\"\npaths = [\"chat.jsonl\"]\ntemplate = \"llamantino-chat\"\nsystem = \"\"\nweight = 2\n\
        [[data.source]]\nname = \"tasks\"\npaths = [\"tasks.json\"]\ntemplate = \"extremita\"\nweight = 1\n\
        long_examples = 1\n\
        [[data.source]]\nname = \"text\"\npaths = [\"data.jsonl\"]\nweight = 1\n\
        [lora]\nr = 4\nalpha = 8\n[training]\ntokens = 6000\nmicro_batch = 2\n[optimizer]\nlearning_rate = 1e-2\n";
    std::fs::write(folder.join("wrong.toml"), config).unwrap();
    std::fs::write(folder.join("three.toml"), config.replace("long_examples = 1\n", "")).unwrap();
}

#[test]
fn sources_are_inspected_prepared_and_trained_on() {
    let place = workspace();
    let folder = place.path();
    three_sources(folder);
    let error = fail(folder, &["data", "inspect", "wrong.toml"], 2);
    assert!(
        error.contains("wrong.toml:19: data.source[1].long_examples: unknown key (did you mean `data.long_examples`?)"),
        "{error}"
    );

    // The tasks' template alone takes more than a window of 128 tokens: nothing of that source is left.
    let error = fail(folder, &["data", "inspect", "three.toml"], 1);
    assert!(error.contains("source tasks: no held-out document"), "{error}");
    let set = ["--set", "data.sequence_length=250"];
    let with = |arguments: &[&'static str]| -> Vec<&'static str> { [arguments, &set].concat() };

    let text = succeed(folder, &with(&["data", "inspect", "three.toml", "--examples", "1"]));
    assert!(text.contains("chat: 1 file(s), UltraChat dialogues (JSON lines), template llamantino-chat"), "{text}");
    assert!(text.contains("tasks: 1 file(s), Alpaca instructions (a JSON array), template extremita"), "{text}");
    assert!(text.contains("text: 1 file(s), raw text (JSON lines)"), "{text}");
    assert!(text.contains("[INST]Ciao?[/INST]⟦ ") && text.contains("### Risposta:⟦\n"), "{text}");
    assert!(!text.contains('\u{1b}'), "no colours in a pipe");

    let json: Value =
        serde_json::from_str(&succeed(folder, &with(&["data", "inspect", "three.toml", "--json"]))).unwrap();
    let sources = json["report"]["sources"].as_array().unwrap();
    assert_eq!(
        sources.iter().map(|source| source["name"].as_str().unwrap()).collect::<Vec<_>>(),
        ["chat", "tasks", "text"]
    );
    let documents: Vec<u64> =
        sources.iter().map(|s| s["documents"].as_u64().unwrap() + s["held_out_documents"].as_u64().unwrap()).collect();
    assert_eq!(documents, [60, 30, 120]);
    assert!(sources.iter().all(|source| source["parts_from_cache"] == 1), "made by the first inspection");
    // Weights 2 : 1 : 1 of the tokens.
    assert!(json["epoch"]["efficiency"].as_f64().unwrap() > 0.8, "{}", json["epoch"]);

    let page = succeed(folder, &with(&["data", "inspect", "three.toml", "--html"]));
    assert!(page.starts_with("<!doctype html>") && page.contains("<mark") && page.ends_with("</html>\n"));

    std::fs::remove_dir_all(folder.join("tokens")).unwrap();
    for expected in ["210 documents tokenised now", "0 documents tokenised now"] {
        let output = run(folder, &with(&["data", "prepare", "three.toml"]));
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && stderr.contains(expected), "{stderr}");
    }
    let error = fail(folder, &["data", "prepare", "three.toml", "--set", "data.cache=off"], 2);
    assert!(error.contains("data.cache is off"), "{error}");

    let output = run(folder, &with(&["train", "three.toml"]));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    let log = std::fs::read_to_string(folder.join("runs/three/log.jsonl")).unwrap();
    let rows: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let tokens: Vec<u64> = rows.iter().filter_map(|row| row["tokens"].as_u64()).collect();
    // The step that reaches the budget is the last.
    assert!(tokens[tokens.len() - 1] >= 6000 && tokens[tokens.len() - 2] < 6000, "{tokens:?}");
    for name in ["held-out chat", "held-out tasks", "held-out text"] {
        let losses: Vec<f64> =
            rows.iter().filter(|row| row["set"] == name).filter_map(|row| row["loss"].as_f64()).collect();
        assert!(losses.len() == 2 && losses[1] < losses[0], "{name}: {losses:?}\n{log}");
    }
}

#[test]
fn all_stages_of_a_chain_are_prepared_at_once() {
    let place = workspace();
    let folder = place.path();
    three_sources(folder);
    let chain = "name = \"chain\"\nmodel = \"model\"\n[data]\nsequence_length = 250\ncache = \"tokens\"\n\
        [[stage]]\nname = \"text\"\n[stage.data]\npaths = [\"data.jsonl\"]\n\
        [[stage]]\nname = \"chat\"\n[stage.data]\npaths = [\"chat.jsonl\"]\ntemplate = \"llamantino-chat\"\n";
    std::fs::write(folder.join("chain.toml"), chain).unwrap();
    for (arguments, stages, counts) in [
        (&["data", "prepare", "chain.toml", "--stage", "chat"][..], 0, &["60 documents"][..]),
        (&["data", "prepare", "chain.toml"], 2, &["120 documents", "0 documents"]),
    ] {
        let output = run(folder, arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{stderr}");
        assert_eq!(stderr.lines().filter(|line| line.starts_with("stage ")).count(), stages, "{stderr}");
        let found: Vec<&str> = stderr.lines().filter(|line| line.contains("tokenised now")).collect();
        assert_eq!(found.len(), counts.len(), "{stderr}");
        assert!(found.iter().zip(counts).all(|(line, count)| line.starts_with(count)), "{stderr}");
    }
}

#[test]
fn broken_data_stop_a_run_with_file_and_line() {
    let place = workspace();
    let folder = place.path();
    for (name, content, message) in [
        ("a.jsonl", "{\"text\": \"a\"}\n{\"text\": \"b\"\n", "a.jsonl:2: broken JSON"),
        (
            "b.jsonl",
            "{\"data\": [\"a\", \"b\"]}\n{\"data\": [\"a\"]}\n",
            "b.jsonl:2: message 1: the last turn is the user's",
        ),
        ("c.tsv", "1\thaspeede\ttesto\todio\n2\taltro\ttesto\tsì\n", "c.tsv:2: unknown task `altro`"),
        ("d.csv", "instruction,response\na,b\nc,\n", "d.csv:3: field `response` is empty"),
        ("e.json", "[{\"text\": \"a\"}", "e.json:1: the file ends before its array does"),
    ] {
        std::fs::write(folder.join(name), content).unwrap();
        let config =
            format!("name = \"x\"\nmodel = \"model\"\n[data]\npaths = [\"{name}\"]\ntemplate = \"llamantino-chat\"\n");
        std::fs::write(
            folder.join("x.toml"),
            config.replace("llamantino-chat", if name == "d.csv" { "extremita" } else { "llamantino-chat" }),
        )
        .unwrap();
        for command in [vec!["train", "x.toml"], vec!["data", "inspect", "x.toml"]] {
            let error = fail(folder, &command, 1);
            assert!(error.contains(message), "{name}: {error}");
        }
    }
}
