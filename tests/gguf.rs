//! A GGUF file wherever a model folder may stand: what comes out is what the folder gives, bit for bit.

mod support;

use llamantino::model::OpenModel;
use llamantino::train::folder::Beginning;
use llamantino::train::metrics::{EvalRow, StepRow};
use llamantino::train::run::{self, Observer, RunOptions};
use llamantino::train::RunConfig;
use serde_json::Value;
use std::fs;
use std::path::Path;
use support::{configuration, fail, run as start, succeed, workspace, write_weights};

const ADAPTER: &str = "adapter/adapter_model.safetensors";

/// `workspace()` with the tiny model as `NAME.gguf` of each of these types.
fn with_files(types: &[&str]) -> tempfile::TempDir {
    let place = workspace();
    for kind in types {
        let out = format!("{kind}.gguf");
        succeed(place.path(), &["export", "gguf", "--model", "model", "--type", kind, "--out", &out]);
    }
    place
}

/// What a run's log says of losses and gradients: everything but times and memory.
fn numbers(root: &Path, name: &str) -> Vec<String> {
    let log = fs::read_to_string(root.join("runs").join(name).join("log.jsonl")).unwrap();
    let rows = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let keys = ["event", "step", "loss", "grad_norm", "lr", "tokens", "set", "bits_per_byte"];
    let row = |row: Value| keys.map(|key| row[key].to_string()).join(" ");
    let numbers: Vec<String> = rows.map(row).collect();
    assert!(numbers.iter().any(|row| row.starts_with("\"step\"")) && numbers.iter().any(|row| row.contains("eval")));
    numbers
}

/// Trains on each model in turn; gives the numbers and the bytes of the result of each.
fn train(root: &Path, models: &[&str], method: &str, result: &str) -> Vec<(Vec<String>, Vec<u8>)> {
    let one = |model: &&str| {
        let name = format!("{method}-{}", model.replace('.', "-"));
        configuration(root, &name, "");
        let set = [format!("model=\"{model}\""), format!("method=\"{method}\"")];
        let path = format!("{name}.toml");
        let more = ["--set", &set[0], "--set", &set[1], "--set", "training.checkpoint_every=3"];
        succeed(root, &[&["train", &path], &more[..]].concat());
        (numbers(root, &name), fs::read(root.join("runs").join(&name).join(result)).unwrap())
    };
    models.iter().map(one).collect()
}

#[test]
fn training_from_an_f32_file_is_training_from_the_folder() {
    let place = with_files(&["f32"]);
    for (method, result) in [("qlora", ADAPTER), ("lora", ADAPTER), ("full", "model/model.safetensors")] {
        let runs = train(place.path(), &["model", "f32.gguf"], method, result);
        assert_eq!(runs[0].0, runs[1].0, "{method}");
        assert!(runs[0].1 == runs[1].1, "{method}: results differ");
    }
    // A fully trained model is whole: config, tokenizer, weights; and so is each of its checkpoints.
    let prompt = ["--prompt", "il cane", "--max-tokens", "20"];
    let text = |model: &str| succeed(place.path(), &[&["generate", "--model", model], &prompt[..]].concat());
    let runs = ["model", "f32-gguf"].map(|name| format!("runs/full-{name}"));
    assert_eq!(text(&format!("{}/model", runs[0])), text(&format!("{}/model", runs[1])));
    let checkpoint = fs::read_dir(place.path().join(&runs[1]).join("checkpoints")).unwrap().next().unwrap().unwrap();
    assert!(!text(checkpoint.path().to_str().unwrap()).is_empty());
}

#[test]
fn training_from_blocks_is_training_from_the_imported_folder() {
    let place = with_files(&["q8_0"]);
    succeed(place.path(), &["import", "q8_0.gguf", "--out", "imported"]);
    let runs = train(place.path(), &["imported", "q8_0.gguf", "model"], "qlora", ADAPTER);
    assert_eq!(runs[0].0, runs[1].0);
    assert!(runs[0].1 == runs[1].1, "adapters differ");
    assert_ne!(runs[1].0, runs[2].0, "the blocks are rounded");
}

/// An adapter knows its base by what it holds, not by how it is stored.
#[test]
fn an_adapter_of_the_folder_fits_the_file_and_the_other_way_round() {
    let place = with_files(&["f32"]);
    let root = place.path();
    let models = ["model", "f32.gguf"];
    let opened = models.map(|model| OpenModel::open(&root.join(model)).unwrap());
    let hashes = opened.each_ref().map(|model| model.hash().unwrap());
    assert!(hashes[0].starts_with("whole ") && hashes[0] == hashes[1], "{hashes:?}");
    train(root, &models, "qlora", ADAPTER);
    let mut merged = Vec::new();
    for base in models {
        for adapter in ["model", "f32-gguf"] {
            let (adapter, out) = (format!("runs/qlora-{adapter}/adapter"), format!("merged-{}", merged.len()));
            let output = start(root, &["merge", "--base", base, "--adapter", &adapter, "--out", &out]);
            let stderr = String::from_utf8(output.stderr).unwrap();
            assert!(output.status.success() && !stderr.contains("warning"), "{stderr}");
            merged.push(fs::read(root.join(&out).join("model.safetensors")).unwrap());
            assert!(root.join(&out).join("tokenizer.json").is_file());
        }
    }
    assert!(merged.iter().all(|bytes| *bytes == merged[0]));
    let resumed = ["train", "qlora-model.toml", "--set", "model=\"f32.gguf\"", "--set", "name=\"on\""];
    succeed(root, &[&resumed[..], &["--set", "adapter=\"runs/qlora-model/adapter\""]].concat());

    write_weights(&root.join("model/model.safetensors"), |_, values| values[0] += 0.5);
    succeed(root, &["export", "gguf", "--model", "model", "--type", "f32", "--out", "other.gguf"]);
    let other = ["merge", "--base", "other.gguf", "--adapter", "runs/qlora-model/adapter", "--out", "none"];
    let stderr = fail(root, &other, 1);
    assert!(stderr.contains("other.gguf: not the base of the adapter"), "{stderr}");
}

#[test]
fn a_file_is_quantised_and_exported_as_its_folder_is() {
    let place = with_files(&["f32"]);
    let root = place.path();
    fs::create_dir_all(root.join("a")).unwrap();
    fs::create_dir_all(root.join("b")).unwrap();
    train(root, &["model"], "qlora", ADAPTER);
    let adapter = ["--adapter", "runs/qlora-model/adapter"];
    for (model, out) in [("model", "a"), ("f32.gguf", "b")] {
        let to = |name: &str| format!("{out}/{name}");
        succeed(root, &["quantize", "--model", model, "--out", &to("nf4")]);
        succeed(root, &["export", "gguf", "--model", model, "--type", "q8_0", "--out", &to("small.gguf")]);
        let lora = ["export", "adapter-gguf", "--model", model, "--out", &to("lora.gguf")];
        succeed(root, &[&lora[..], &adapter].concat());
    }
    for name in ["nf4/model.safetensors", "small.Modelfile", "lora.gguf"] {
        let [a, b] = ["a", "b"].map(|folder| fs::read(root.join(folder).join(name)).unwrap());
        assert!(a == b, "{name}");
    }
    // Rows of the embedding without a token have a name in a file and none in a folder.
    let [a, b] = ["a", "b"].map(|folder| OpenModel::open(&root.join(folder).join("small.gguf")).unwrap());
    assert_eq!(a.hash().unwrap(), b.hash().unwrap());
    let prompt = ["generate", "--prompt", "il cane", "--max-tokens", "8", "--model"];
    let text = |model: &str| succeed(root, &[&prompt[..], &[model]].concat());
    assert_eq!(text("a/nf4"), text("b/nf4"));
    let again = ["quantize", "--model", "b/nf4", "--out", "c"];
    assert!(fail(root, &again, 1).contains("quantized already"));
}

/// The template of dialogues comes out of the file, and what is said of it names the file.
#[test]
fn data_and_plan_are_those_of_the_folder() {
    let place = workspace();
    let root = place.path();
    let path = root.join("model/tokenizer_config.json");
    let mut tokenizer: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    tokenizer["chat_template"] =
        "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}".into();
    fs::write(&path, tokenizer.to_string()).unwrap();
    succeed(root, &["export", "gguf", "--model", "model", "--type", "f32", "--out", "f32.gguf"]);
    let lines = (0..30).map(|i| {
        format!(
            "{{\"messages\": [{{\"role\": \"user\", \"content\": \"Conta {i}\"}}, \
             {{\"role\": \"assistant\", \"content\": \"uno due tre\"}}]}}\n"
        )
    });
    fs::write(root.join("talk.jsonl"), lines.collect::<String>()).unwrap();
    configuration(root, "talk", "");
    let set = ["--set", "data.paths=[\"talk.jsonl\"]", "--set", "data.template=\"model\""];
    let of = |command: &[&str], model: &str| {
        let model = format!("model=\"{model}\"");
        succeed(root, &[command, &set, &["--set", &model]].concat())
    };
    let inspect = |model: &str| -> Value {
        serde_json::from_str(&of(&["data", "inspect", "talk.toml", "--json"], model)).unwrap()
    };
    let (folder, file) = (inspect("model"), inspect("f32.gguf"));
    assert_eq!(folder["examples"], file["examples"]);
    assert_eq!(folder["epoch"], file["epoch"]);
    assert!(file.to_string().contains("f32.gguf/tokenizer_config.json"), "{file}");

    let plan = |model: &str| -> Value {
        serde_json::from_str(&of(&["plan", "talk.toml", "--json", "--no-time"], model)).unwrap()
    };
    let (folder, file) = (plan("model"), plan("f32.gguf"));
    assert_eq!(folder["amount"], file["amount"]);
    assert_eq!(folder["cpu"]["parts"]["base"], file["cpu"]["parts"]["base"]);
    of(&["train", "talk.toml"], "f32.gguf");
}

#[test]
fn what_is_wrong_with_a_file_is_said_before_anything_is_written() {
    let place = with_files(&["q8_0"]);
    let root = place.path();
    let whole = fs::read(root.join("q8_0.gguf")).unwrap();
    configuration(root, "cut", "");
    for part in 1..20 {
        fs::write(root.join("cut.gguf"), &whole[..whole.len() * part / 20]).unwrap();
        let stderr = fail(root, &["train", "cut.toml", "--set", "model=\"cut.gguf\""], 1);
        assert!(stderr.contains("cut.gguf") && stderr.contains("hint: "), "{part}: {stderr}");
    }
    assert!(!root.join("runs/cut/checkpoints").exists());
    let stderr = fail(root, &["diff", "make", "q8_0.gguf", "model", "--out", "d.safetensors"], 1);
    assert!(stderr.contains("expected safetensors, found a GGUF file") && stderr.contains("import"), "{stderr}");
    fs::write(root.join("text.gguf"), "not a model at all").unwrap();
    let stderr = fail(root, &["train", "cut.toml", "--set", "model=\"text.gguf\""], 1);
    assert!(stderr.contains("text.gguf"), "{stderr}");
}

struct Silent;

impl Observer for Silent {
    fn note(&mut self, _: &str) {}
    fn warning(&mut self, _: &str) {}
    fn phase(&mut self, _: &str, _: usize, _: usize) {}
    fn step(&mut self, _: &StepRow, _: u64) {}
    fn evaluation(&mut self, _: &EvalRow) {}
}

/// A run of `steps` steps of 8, or the rest.
fn go(config: &RunConfig, steps: u64) -> llamantino::error::Result<()> {
    let stop = |step: u64| (step >= steps).then(|| "the test".to_string());
    let options =
        RunOptions { beginning: Beginning::Auto, allow_config_change: false, stop: &stop, chain: None, gpu: None };
    run::run(config, &options, &mut Silent).map(drop)
}

#[test]
fn a_run_on_a_file_resumes_bit_for_bit_and_on_no_other_file() {
    let place = with_files(&["q8_0"]);
    let root = place.path();
    let config = |name: &str| {
        let text = |name: &str| root.join(name).display().to_string();
        let mut config = RunConfig {
            name: name.into(),
            output: root.join("runs"),
            model: text("q8_0.gguf"),
            ..RunConfig::default()
        };
        config.lora.dropout = 0.1;
        config.data.paths = vec![text("data.jsonl")];
        config.data.sequence_length = 64;
        config.training.steps = 8;
        config
    };
    let (whole, stopped) = (config("whole"), config("stopped"));
    go(&whole, u64::MAX).unwrap();
    let error = go(&stopped, 3).unwrap_err();
    assert_eq!(error.exit_code(), 130, "{error}");
    let original = fs::read(root.join("q8_0.gguf")).unwrap();
    let mut changed = original.clone();
    let last = changed.len() - 40;
    changed[last] ^= 1;
    fs::write(root.join("q8_0.gguf"), changed).unwrap();
    let error = go(&stopped, u64::MAX).unwrap_err();
    assert!(error.message().contains("the base model is not what it was"), "{error}");
    fs::write(root.join("q8_0.gguf"), original).unwrap();
    go(&stopped, u64::MAX).unwrap();
    let result = |config: &RunConfig| fs::read(config.folder().join(ADAPTER)).unwrap();
    assert!(result(&whole) == result(&stopped));
}
