//! The commands as a person runs them: a whole way from training to a merged model, and every kind of wrong input.

mod support;

use std::fs;
use std::path::Path;
use std::process::Command;
use support::{configuration, fail, italian, run, skip, succeed, tiny_model, workspace, write_weights};

fn rows(log: &Path) -> Vec<serde_json::Value> {
    let text = fs::read_to_string(log).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn train_merge_and_generate() {
    let folder = workspace();
    let root = folder.path();
    configuration(root, "first", "");
    succeed(root, &["train", "first.toml"]);
    let log = rows(&root.join("runs/first/log.jsonl"));
    let steps: Vec<_> = log.iter().filter(|row| row["event"] == "step").collect();
    assert_eq!(steps.len(), 6);
    for key in ["step", "loss", "lr", "grad_norm", "tokens", "tokens_per_s", "rss_mib"] {
        assert!(steps.iter().all(|row| row[key].is_number()), "{key}");
    }
    let evaluations: Vec<_> = log.iter().filter(|row| row["event"] == "eval").collect();
    assert_eq!(evaluations.len(), 2, "before and after");
    let bits = |row: &serde_json::Value| row["bits_per_byte"].as_f64().unwrap();
    assert!(bits(evaluations[1]) < bits(evaluations[0]), "held-out text improves");
    assert!(evaluations.iter().all(|row| row["perplexity"].as_f64().unwrap() > 1.0 && row["set"].is_string()));
    assert!(root.join("runs/first/config.toml").exists());

    succeed(root, &["merge", "--base", "model", "--adapter", "runs/first/adapter", "--out", "merged"]);
    let prompt = ["--prompt", "il cane", "--max-tokens", "30"];
    let adapted =
        succeed(root, &[&["generate", "--model", "model", "--adapter", "runs/first/adapter"], &prompt[..]].concat());
    let merged = succeed(root, &[&["generate", "--model", "merged"], &prompt[..]].concat());
    assert_eq!(adapted, merged, "the merged model writes what base and adapter write");
    let base = succeed(root, &[&["generate", "--model", "model"], &prompt[..]].concat());
    assert_ne!(adapted, base);
    for file in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
        assert!(root.join("merged").join(file).exists(), "{file}");
    }
}

/// The printed commands are pasted into a shell, whatever the folders are called.
#[test]
fn printed_commands_can_be_pasted() {
    let folder = workspace();
    let root = folder.path();
    configuration(root, "first", "");
    let output = run(root, &["train", "first.toml", "--set", "output=l'anno \"d'oro\"", "--set", "training.steps=2"]);
    let screen = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{screen}");
    let commands: Vec<&str> = screen.lines().map(str::trim).filter(|line| line.starts_with("llamantino ")).collect();
    assert_eq!(commands.len(), 2, "{screen}");
    let program = Path::new(env!("CARGO_BIN_EXE_llamantino")).parent().unwrap();
    let path = format!("{}:{}", program.display(), std::env::var("PATH").unwrap());
    for command in commands {
        let output = Command::new("sh").args(["-c", command]).current_dir(root).env("PATH", &path).output().unwrap();
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    }
    assert!(root.join("l'anno \"d'oro\"/first-merged/model.safetensors").exists());
}

#[test]
fn an_nf4_folder_trains_to_the_same_bytes_as_quantising_on_load() {
    let folder = workspace();
    let root = folder.path();
    succeed(root, &["quantize", "--model", "model", "--out", "nf4"]);
    configuration(root, "loaded", "");
    configuration(root, "stored", "");
    succeed(root, &["train", "loaded.toml"]);
    succeed(root, &["train", "stored.toml", "--set", "model=nf4"]);
    let weights =
        |name: &str| fs::read(root.join("runs").join(name).join("adapter/adapter_model.safetensors")).unwrap();
    assert!(weights("loaded") == weights("stored"));
}

#[test]
fn the_same_seed_gives_the_same_bytes_with_one_and_two_threads() {
    let folder = workspace();
    let root = folder.path();
    configuration(root, "a", "[schedule]\nkind = \"linear\"\n");
    let settings =
        ["--set", "lora.dropout=0.1", "--set", "training.neftune_alpha=5", "--set", "training.accumulation=2"];
    for (name, threads) in [("one", "1"), ("two", "2")] {
        let threads = format!("training.threads={threads}");
        let name = format!("name={name}");
        succeed(root, &[&["train", "a.toml", "--set", &name, "--set", &threads], &settings[..]].concat());
    }
    succeed(root, &[&["train", "a.toml", "--set", "name=other", "--set", "seed=8"], &settings[..]].concat());
    let weights =
        |name: &str| fs::read(root.join("runs").join(name).join("adapter/adapter_model.safetensors")).unwrap();
    assert!(weights("one") == weights("two"));
    assert!(weights("one") != weights("other"));
}

#[test]
fn every_method_trains_and_full_gives_a_model() {
    let folder = workspace();
    let root = folder.path();
    configuration(root, "m", "");
    for method in ["lora", "full"] {
        let (name, method) = (format!("name={method}"), format!("method={method}"));
        let arguments = ["train", "m.toml", "--set", &name, "--set", &method, "--set", "optimizer.learning_rate=1e-3"];
        succeed(root, &arguments);
    }
    assert!(root.join("runs/lora/adapter/adapter_config.json").exists());
    let text = succeed(root, &["generate", "--model", "runs/full/model", "--prompt", "la luna", "--max-tokens", "5"]);
    assert!(!text.is_empty());
}

#[test]
fn an_adapter_can_be_continued() {
    let folder = workspace();
    let root = folder.path();
    configuration(root, "c", "");
    succeed(root, &["train", "c.toml"]);
    succeed(root, &["train", "c.toml", "--set", "name=d", "--set", "adapter=runs/c/adapter"]);
    let first = |name: &str| {
        let log = rows(&root.join("runs").join(name).join("log.jsonl"));
        log.iter().find(|row| row["event"] == "eval").unwrap()["bits_per_byte"].as_f64().unwrap()
    };
    assert!(first("d") < first("c"), "the second run starts where the first ended");
}

#[test]
fn a_chain_of_stages_is_planned_run_and_summed_up() {
    let folder = workspace();
    let root = folder.path();
    let stages = "[[stage]]\nname = \"adapt\"\n[[stage]]\nname = \"chat\"\nfrom = \"merge\"\nkeep_merged = false\n\
                  [stage.training]\nsteps = 4\n";
    configuration(root, "chain", stages);
    let plan = succeed(root, &["plan", "chain.toml", "--json", "--no-time", "--set", "stage.chat.training.steps=3"]);
    let plan: serde_json::Value = serde_json::from_str(&plan).unwrap();
    let named: Vec<_> = plan["stages"].as_array().unwrap().iter().map(|stage| stage["stage"].clone()).collect();
    assert_eq!(named, ["adapt", "chat"]);
    assert_eq!(plan["stages"][1]["plan"]["amount"]["steps"], 3);
    let table = succeed(root, &["plan", "chain.toml", "--no-time", "--stage", "adapt"]);
    assert!(table.contains("stage adapt") && !table.contains("stage chat"), "{table}");

    let message = fail(root, &["train", "chain.toml", "--stage", "chatt"], 2);
    assert!(message.contains("--stage chatt: there is no such stage") && message.contains("did you mean chat?"));
    succeed(root, &["train", "chain.toml", "--stage", "adapt"]);
    let output = run(root, &["train", "chain.toml"]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    for part in
        ["stage 1 of 2: adapt (runs/chain/1-adapt)", "stage adapt is finished", "stage 2 of 2: chat", "removed "]
    {
        assert!(text.contains(part), "{part} is not in:\n{text}");
    }
    let table: Vec<&str> = text.lines().skip_while(|line| !line.starts_with("stage  ")).collect();
    assert!(
        table[0].contains("bits per byte") && table[1].starts_with("adapt") && table[2].starts_with("chat"),
        "{text}"
    );
    assert!(table[1].contains("held-out") && table[1].contains(" → "), "{text}");
    let message = fail(root, &["train", "chain.toml", "--set", "stage.adapt.seed=9"], 2);
    assert!(message.contains("stage adapt: ") && message.contains("seed: 7 then, 9 now"), "{message}");
}

#[test]
fn trained_embeddings_are_saved_merged_and_continued() {
    let folder = workspace();
    let root = folder.path();
    configuration(root, "e", "");
    let settings = ["--set", "train_embeddings=true", "--set", "optimizer.embedding_learning_rate=1e-3"];
    succeed(root, &[&["train", "e.toml"], &settings[..]].concat());
    let file = fs::read(root.join("runs/e/adapter/adapter_model.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&file).unwrap();
    assert!(tensors.tensor("base_model.model.model.embed_tokens.weight").is_ok());
    succeed(root, &["merge", "--base", "model", "--adapter", "runs/e/adapter", "--out", "merged"]);
    let prompt = ["--prompt", "il cane", "--max-tokens", "20"];
    let adapted =
        succeed(root, &[&["generate", "--model", "model", "--adapter", "runs/e/adapter"], &prompt[..]].concat());
    assert_eq!(adapted, succeed(root, &[&["generate", "--model", "merged"], &prompt[..]].concat()));
    let again = ["train", "e.toml", "--set", "name=f", "--set", "adapter=runs/e/adapter"];
    succeed(root, &[&again[..], &settings[..]].concat());
}

#[test]
fn generation_is_streamed_whole_and_seeded() {
    let folder = workspace();
    let root = folder.path();
    let sample = |seed: &str| {
        let arguments = ["generate", "--model", "model", "--prompt", "è", "--temperature", "1.2", "--seed", seed];
        succeed(root, &[&arguments[..], &["--max-tokens", "40"]].concat())
    };
    assert_eq!(sample("1"), sample("1"));
    assert_ne!(sample("1"), sample("2"));
}

#[test]
fn bad_configurations_name_every_problem() {
    let folder = workspace();
    let root = folder.path();
    fs::write(root.join("bad.toml"), "modell = \"model\"\nseed = \"x\"\n[lora]\nr = 0\n[training]\nmicro_batch = 0\n")
        .unwrap();
    let message = fail(root, &["train", "bad.toml"], 2);
    for part in ["modell", "model", "seed", "lora", "micro_batch", "bad.toml:1"] {
        assert!(message.contains(part), "{part} is not in:\n{message}");
    }
    assert!(fail(root, &["train", "absent.toml"], 2).contains("absent.toml"));
    assert!(fail(root, &["train", "bad.toml", "--sett", "x=1"], 2).contains("--set"));
    assert!(!root.join("runs").exists(), "nothing was started");
}

#[test]
fn bad_data_names_file_and_line() {
    let folder = workspace();
    let root = folder.path();
    configuration(root, "r", "");
    let train = |text: &[u8]| {
        fs::write(root.join("data.jsonl"), text).unwrap();
        let _ = fs::remove_dir_all(root.join("runs"));
        fail(root, &["train", "r.toml"], 1)
    };
    assert!(train(b"").contains("data.jsonl"));
    let message = train(b"{\"text\": \"uno due tre\"}\n{\"testo\": \"x\"}\n");
    assert!(message.contains("data.jsonl:2") && message.contains("text"), "{message}");
    assert!(train(b"{\"text\": \"uno\"}\n{\"text\": \n").contains("data.jsonl:2"));
    assert!(train(b"{\"text\": \"uno\"}\n{\"text\": \"\xff\xfe\"}\n").contains("data.jsonl:2"));
    fs::remove_file(root.join("data.jsonl")).unwrap();
    let message = fail(root, &["train", "r.toml"], 1);
    assert!(message.contains("data.jsonl"), "{message}");
}

#[test]
fn bad_weights_name_tensor_and_place() {
    let folder = workspace();
    let root = folder.path();
    let weights = root.join("model/model.safetensors");
    configuration(root, "w", "");
    let train = |root: &Path| {
        let _ = fs::remove_dir_all(root.join("runs"));
        let message = fail(root, &["train", "w.toml"], 1);
        assert!(!root.join("runs/w/adapter").exists());
        message
    };
    write_weights(&weights, |name, values| {
        if name == "model.layers.1.mlp.up_proj.weight" {
            values[77] = f32::NAN;
        }
    });
    let message = train(root);
    assert!(message.contains("model.layers.1.mlp.up_proj.weight") && message.contains("77"), "{message}");

    write_weights(&weights, |name, values| {
        if name == "model.embed_tokens.weight" {
            values.truncate(64 * 100);
            values.resize(64 * 260, 0.0);
        }
    });
    let whole = fs::read(&weights).unwrap();
    fs::write(&weights, &whole[..whole.len() - 1000]).unwrap();
    assert!(train(root).contains("model.safetensors"));
    fs::write(&weights, &whole[..5]).unwrap();
    assert!(train(root).contains("model.safetensors"));
    fs::write(&weights, b"<html>not found</html>").unwrap();
    assert!(train(root).contains("model.safetensors"));
    fs::remove_file(&weights).unwrap();
    assert!(train(root).contains("model"));

    tiny_model(root);
    let config = fs::read_to_string(root.join("model/config.json")).unwrap();
    fs::write(
        root.join("model/config.json"),
        config.replace("\"intermediate_size\": 96", "\"intermediate_size\": 128"),
    )
    .unwrap();
    let message = train(root);
    assert!(message.contains("gate_proj") && message.contains("128") && message.contains("96"), "{message}");
    fs::write(root.join("model/config.json"), "{").unwrap();
    assert!(train(root).contains("config.json"));
}

#[test]
fn a_token_without_an_embedding_is_an_error_that_names_it() {
    let folder = workspace();
    let root = folder.path();
    // The embedding has the 256 bytes only: `<s>` (256) has no row, as `<pad>` = 32000 has none in some LLaMA-2 models.
    let path = root.join("model/config.json");
    let mut config: serde_json::Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    config["vocab_size"] = 256.into();
    config["bos_token_id"] = serde_json::Value::Null;
    config["eos_token_id"] = serde_json::Value::Null;
    fs::write(&path, config.to_string()).unwrap();
    support::write_weights_of(256, &root.join("model/model.safetensors"), |_, _| {});
    configuration(root, "p", "");
    let message = fail(root, &["train", "p.toml"], 1);
    assert!(message.contains("<s>") && message.contains("256"), "{message}");
    assert!(!root.join("runs/p/adapter").exists());
}

#[test]
fn adapters_for_another_base_are_refused() {
    let folder = workspace();
    let root = folder.path();
    configuration(root, "x", "");
    succeed(root, &["train", "x.toml"]);
    write_weights(&root.join("model/model.safetensors"), |name, values| {
        if name == "model.layers.0.mlp.up_proj.weight" {
            values[3] += 0.5;
        }
    });
    let merge = ["merge", "--base", "model", "--adapter", "runs/x/adapter", "--out", "merged"];
    let message = fail(root, &merge, 1);
    assert!(message.contains("another") || message.contains("base"), "{message}");
    assert!(!root.join("merged").exists());
    succeed(root, &[&merge[..], &["--any-base"]].concat());

    fs::remove_file(root.join("runs/x/adapter/llamantino.json")).unwrap();
    let output = run(root, &["merge", "--base", "model", "--adapter", "runs/x/adapter", "--out", "foreign"]);
    assert!(output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("warning"), "a foreign adapter gets a warning");
}

#[test]
fn a_second_run_of_the_same_name_and_an_existing_output_are_not_overwritten() {
    let folder = workspace();
    let root = folder.path();
    configuration(root, "s", "");
    succeed(root, &["train", "s.toml"]);
    let before = fs::read(root.join("runs/s/adapter/adapter_model.safetensors")).unwrap();
    let _ = run(root, &["train", "s.toml"]);
    assert!(fs::read(root.join("runs/s/adapter/adapter_model.safetensors")).unwrap() == before);
    fs::create_dir(root.join("out")).unwrap();
    fs::write(root.join("out/precious"), "x").unwrap();
    fail(root, &["merge", "--base", "model", "--adapter", "runs/s/adapter", "--out", "out"], 1);
    assert!(root.join("out/precious").exists());
}

#[test]
fn usage_errors_exit_with_2_and_help_is_data() {
    let folder = workspace();
    let root = folder.path();
    assert!(fail(root, &["trian"], 2).contains("train"));
    for bare in [&[][..], &["data"], &["export"], &["diff"], &["bench"]] {
        let stderr = fail(root, bare, 2);
        assert!(stderr.contains("Usage: llamantino") && !stderr.contains("error: QLoRA"), "{bare:?}: {stderr}");
        assert!(stderr.ends_with("error: a command is missing, or what it works on\n"), "{bare:?}: {stderr}");
    }
    fail(root, &["generate"], 2);
    fail(root, &["generate", "--model", "model", "--temperature", "-1"], 2);
    for command in ["train", "merge", "generate", "quantize", "bench"] {
        let help = succeed(root, &[command, "--help"]);
        assert!(help.contains("Example"), "{command} --help has an example");
    }
    assert!(succeed(root, &["--version"]).contains(env!("CARGO_PKG_VERSION")));
}

#[test]
fn the_version_tells_how_the_program_was_built() {
    let here = std::env::current_dir().unwrap();
    assert_eq!(succeed(&here, &["-V"]), concat!("llamantino ", env!("CARGO_PKG_VERSION"), "\n"));
    let long = succeed(&here, &["--version"]);
    let lines: Vec<&str> = long.lines().collect();
    assert_eq!(lines[0], concat!("llamantino ", env!("CARGO_PKG_VERSION")));
    assert!(lines[1].contains(std::env::consts::ARCH) && lines[1].contains("features: "), "{long}");
    assert!(lines[2].starts_with("CPU kernels: portable") && lines[2].contains("in use: "), "{long}");
    let refused = Command::new(env!("CARGO_BIN_EXE_llamantino")).arg("--version").env("LLAMANTINO_CPU", "mmx").output();
    assert_eq!(refused.unwrap().status.code(), Some(2), "scripts/check.sh asks this way which kernels there are");
}

#[test]
fn bench_prints_one_json_line() {
    let folder = workspace();
    let line = succeed(folder.path(), &["bench", "train", "--shape", "tiny", "--seq", "64", "--steps", "2"]);
    let value: serde_json::Value = serde_json::from_str(line.trim()).unwrap();
    assert!(value["tokens_per_s"].as_f64().unwrap() > 0.0);
    assert!(value["peak_rss_mib"].as_u64().unwrap() > 0);
    assert_eq!(value["losses"].as_array().unwrap().len(), 3);
}

#[test]
fn stories260k_writes_its_known_text() {
    let Some(models) = std::env::var_os("LLAMANTINO_TEST_MODELS") else {
        return skip("stories260k_writes_its_known_text", "LLAMANTINO_TEST_MODELS to a folder with stories260K/");
    };
    let model = Path::new(&models).join("stories260K");
    let folder = tempfile::tempdir().unwrap();
    let model = model.to_str().unwrap();
    let known = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. \
                 One day, she saw a big, red ball.";
    for nf4 in [false, true] {
        let arguments = ["generate", "--model", model, "--max-tokens", "60"];
        let text = succeed(folder.path(), &[&arguments[..], if nf4 { &["--nf4"] } else { &[] }].concat());
        if nf4 {
            assert!(text.starts_with("Once upon a time, there was a little"), "{text}");
        } else {
            assert!(text.starts_with(known), "{text}");
        }
    }
}

#[test]
fn twenty_steps_follow_peft_and_bitsandbytes() {
    let Some(models) = std::env::var_os("LLAMANTINO_TEST_MODELS") else {
        return skip(
            "twenty_steps_follow_peft_and_bitsandbytes",
            "LLAMANTINO_TEST_MODELS to a folder with stories260K/",
        );
    };
    let model = Path::new(&models).join("stories260K");
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/peft_stories260k");
    let stored: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(golden.join("losses.json")).unwrap()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (seq, batch) = (stored["seq"].to_string(), stored["batch"].to_string());
    let (model, golden) = (model.to_str().unwrap(), golden.to_str().unwrap());
    let arguments = ["bench", "train", "--model", model, "--adapter", golden, "--warmup", "0", "--steps", "20"];
    let line = succeed(folder.path(), &[&arguments[..], &["--seq", &seq, "--batch", &batch]].concat());
    let found: serde_json::Value = serde_json::from_str(line.trim()).unwrap();
    let list = |value: &serde_json::Value| -> Vec<f64> {
        value["losses"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
    };
    for (step, (expected, found)) in list(&stored).iter().zip(list(&found)).enumerate() {
        assert!(((expected - found) / expected).abs() < 1e-4, "step {step}: expected {expected}, found {found}");
    }
}

#[test]
fn held_out_text_is_chosen_by_content() {
    let folder = workspace();
    let root = folder.path();
    italian(&root.join("more.jsonl"), 240);
    configuration(root, "h", "");
    let train = |name: &str, paths: &str| {
        let (name_key, paths) = (format!("name={name}"), format!("data.paths={paths}"));
        succeed(root, &["train", "h.toml", "--set", &name_key, "--set", &paths, "--set", "training.steps=1"]);
        rows(&root.join("runs").join(name).join("log.jsonl"))[0]["loss"].as_f64().unwrap()
    };
    let once = train("once", "[\"more.jsonl\"]");
    let twice = train("twice", "[\"more.jsonl\", \"data.jsonl\"]");
    assert!((once - twice).abs() < 0.5, "copies of a document fall on the same side");
}

#[test]
fn a_gguf_file_is_the_merged_model_however_it_is_made() {
    let folder = workspace();
    let root = folder.path();
    configuration(root, "first", "");
    succeed(root, &["train", "first.toml"]);
    succeed(root, &["merge", "--base", "model", "--adapter", "runs/first/adapter", "--out", "merged"]);
    fs::create_dir(root.join("two")).unwrap();
    succeed(root, &["export", "gguf", "--model", "merged", "--type", "f32", "--out", "it.gguf"]);
    let from_base = ["export", "gguf", "--model", "model", "--adapter", "runs/first/adapter", "--type", "f32"];
    succeed(root, &[&from_base[..], &["--out", "two/it.gguf"]].concat());
    assert!(fs::read(root.join("it.gguf")).unwrap() == fs::read(root.join("two/it.gguf")).unwrap());
    let prompt = ["--prompt", "il cane", "--max-tokens", "30"];
    let text = |model: &str| succeed(root, &[&["generate", "--model", model], &prompt[..]].concat());
    assert_eq!(text("it.gguf"), text("merged"));
    let modelfile = fs::read_to_string(root.join("it.Modelfile")).unwrap();
    assert_eq!(modelfile, "FROM ./it.gguf\nPARAMETER stop \"</s>\"\n");

    // Rows of 64 and 96 are no whole number of K blocks: the types that are used instead are listed.
    let small = ["export", "gguf", "--model", "merged", "--type", "q4_k_m", "--out", "small.gguf"];
    let output = run(root, &[&small[..], &["--template", "llamantino-chat"]].concat());
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(
        output.status.success() && stderr.contains("2 x blk.N.ffn_gate.weight, rows of 64: Q4_K → Q5_0"),
        "{stderr}"
    );
    assert!(!text("small.gguf").is_empty());
    let modelfile = fs::read_to_string(root.join("small.Modelfile")).unwrap();
    assert!(
        modelfile.contains("[INST]<<SYS>>\n{{ $.System }}\n<</SYS>>")
            && modelfile.contains("<<SYS>>\nSei un assistente")
    );
    fail(root, &small, 1);

    let adapter = ["export", "adapter-gguf", "--model", "model", "--adapter", "runs/first/adapter", "--out", "a.gguf"];
    succeed(root, &adapter);
    assert!(fs::read(root.join("a.gguf")).unwrap().starts_with(b"GGUF"));
    let stderr =
        fail(root, &["export", "adapter-gguf", "--model", "model", "--adapter", "model", "--out", "b.gguf"], 1);
    assert!(stderr.contains("adapter_config.json"), "{stderr}");
    let stderr = fail(root, &["export", "gguf", "--model", "merged", "--out", "it.bin"], 2);
    assert!(stderr.contains("expected a file name that ends in .gguf"), "{stderr}");
}

#[test]
fn a_report_shows_the_run_and_samples_of_it() {
    let folder = workspace();
    let root = folder.path();
    configuration(root, "r", "");
    succeed(root, &["train", "r.toml", "--set", "training.checkpoint_every=3"]);
    succeed(root, &["report", "runs/r", "--prompt", "il <b>", "--max-tokens", "5"]);
    let page = fs::read_to_string(root.join("runs/r/report.html")).unwrap();
    assert!(page.contains("how “il &lt;b&gt;” goes on") && page.contains("<b>base</b>"));
    assert!(page.contains("<b>step 3</b>") && page.contains("<b>result</b>") && !page.contains("<b>step 6</b>"));
    assert_eq!(fs::read_to_string(root.join("runs/r/samples.jsonl")).unwrap().lines().count(), 3);
    // Without a prompt the samples stay; a page is replaced, another file is not.
    succeed(root, &["report", "runs/r"]);
    assert!(fs::read_to_string(root.join("runs/r/report.html")).unwrap().contains("<b>step 3</b>"));
    let stderr = fail(root, &["report", "runs/r", "--out", "r.toml"], 1);
    assert!(stderr.contains("exists already and is no report"), "{stderr}");
    let stderr = fail(root, &["report", "model"], 1);
    assert!(stderr.contains("hint: expected the folder of a run"), "{stderr}");
}
