//! Rows about files and processes: merge, start-up, help.

use crate::{product::Random, Figure, Measured};
use llamantino::bench::Shape;
use llamantino::export::merge::{merge_folder, MergeJob};
use llamantino::export::quantize::quantize_folder;
use llamantino::export::safetensors::{write_json, ShardWriter, TensorSpec, SHARD_BYTES};
use llamantino::model::{ModelConfig, RawTensor, StoredDtype};
use llamantino::ops::Bytes;
use llamantino::quant::QuantConfig;
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

const PROGRAM: &str = env!("CARGO_BIN_EXE_llamantino");

/// Writes a bf16 model of a shape with small random weights.
fn write_model(folder: &Path, shape: Shape) -> Outcome<ModelConfig> {
    std::fs::create_dir_all(folder)?;
    let config = shape.config()?;
    let (vocab, hidden) = (config.vocab_size, config.hidden_size);
    let mut tensors = vec![("model.embed_tokens.weight".to_string(), vec![vocab, hidden])];
    if !config.tie_word_embeddings {
        tensors.push(("lm_head.weight".into(), vec![vocab, hidden]));
    }
    for layer in 0..config.layers {
        tensors.extend(config.linear_shapes(layer).into_iter().map(|(name, shape)| (name, shape.to_vec())));
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            tensors.push((format!("model.layers.{layer}.{norm}.weight"), vec![hidden]));
        }
    }
    tensors.push(("model.norm.weight".into(), vec![hidden]));
    let groups = tensors.iter().map(|(name, shape)| vec![TensorSpec::new(name, StoredDtype::Bf16, shape.clone())]);
    let mut writer = ShardWriter::new(folder, "model", groups.collect(), SHARD_BYTES)?;
    let mut random = Random(1);
    for (name, shape) in tensors {
        let count = shape.iter().product::<usize>();
        let bytes = Bytes::filled(2 * count, |bytes| {
            for pair in bytes.chunks_exact_mut(2) {
                // 1.0 for a norm; else ±0.02 or so: sign and low bits at random, the exponent fixed.
                let bits = if shape.len() == 1 { 0x3f80 } else { 0x3c80 | (random.next() as u16 & 0x807f) };
                pair.copy_from_slice(&bits.to_le_bytes());
            }
        });
        writer.write(&name, &RawTensor { dtype: StoredDtype::Bf16, shape, bytes })?;
    }
    writer.finish()?;
    let mut json = config.raw.clone();
    json["torch_dtype"] = "bfloat16".into();
    write_json(&folder.join("config.json"), &json)?;
    Ok(config)
}

/// Writes a tokenizer of single bytes.
fn write_tokenizer(folder: &Path) -> Outcome<()> {
    let mut vocabulary = serde_json::Map::from_iter([("<s>".into(), 1.into()), ("</s>".into(), 2.into())]);
    for byte in 0x20u8..0x7f {
        vocabulary.insert(char::from(byte).to_string().replace(' ', "Ġ"), (u32::from(byte) + 3).into());
    }
    let special = |id: u32, content: &str| {
        serde_json::json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    let level =
        serde_json::json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let json = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [special(1, "<s>"), special(2, "</s>")],
        "normalizer": null, "pre_tokenizer": level, "post_processor": null, "decoder": level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocabulary, "merges": []},
    });
    write_json(&folder.join("tokenizer.json"), &json)?;
    let config = serde_json::json!({"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": true});
    write_json(&folder.join("tokenizer_config.json"), &config)?;
    Ok(())
}

/// Runs the program and demands success.
fn run(folder: &Path, arguments: &[&str]) -> Outcome<()> {
    let output = Command::new(PROGRAM).args(arguments).current_dir(folder).output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&output.stderr).into())
}

/// A run of so many steps on the model in `model`; the run's folder is `runs/NAME`.
fn training(model: &str, name: &str) -> Vec<String> {
    let mut arguments = vec!["train".to_string(), "run.toml".into()];
    for pair in [format!("model={model:?}"), format!("name={name:?}")] {
        arguments.extend(["--set".to_string(), pair]);
    }
    arguments
}

fn write_run(folder: &Path) -> Outcome<()> {
    std::fs::write(folder.join("text.txt"), "il cielo sopra il mare, e la sera che viene piano. ".repeat(40))?;
    let text = "[data]\npaths = [\"text.txt\"]\nsequence_length = 64\nheld_out_fraction = 0.0\n\
        [training]\nsteps = 1\nmicro_batch = 1\n";
    std::fs::write(folder.join("run.toml"), text)?;
    Ok(())
}

/// Merging against copying, syncing and hashing the same bytes.
pub fn merge(shape: Shape) -> Measured {
    let place = tempfile::tempdir()?;
    let folder = place.path();
    write_model(&folder.join("model"), shape)?;
    write_tokenizer(&folder.join("model"))?;
    write_run(folder)?;
    run(folder, &training("model", "run").iter().map(String::as_str).collect::<Vec<_>>())?;
    let (mut ours, mut bound) = (Vec::new(), Vec::new());
    for round in 0..3 {
        let job = MergeJob {
            base: folder.join("model"),
            adapter: folder.join("runs/run/adapter"),
            out: folder.join(format!("merged-{round}")),
            dtype: None,
            shard_bytes: SHARD_BYTES,
            any_base: false,
            dequantize_base: false,
        };
        let start = Instant::now();
        merge_folder(&job, &mut |_, _, _| {})?;
        ours.push(start.elapsed().as_secs_f64());
        std::fs::remove_dir_all(&job.out)?;
        let start = Instant::now();
        copy(&folder.join("model"), &folder.join("copy"))?;
        bound.push(start.elapsed().as_secs_f64());
        std::fs::remove_dir_all(folder.join("copy"))?;
    }
    ours.sort_by(f64::total_cmp);
    bound.sort_by(f64::total_cmp);
    Ok(Figure::time(ours[1], bound[1]))
}

/// Copies the weights, hashing what is read on all threads and syncing what is written.
fn copy(from: &Path, to: &Path) -> Outcome<()> {
    std::fs::create_dir(to)?;
    for entry in std::fs::read_dir(from)?.flatten() {
        if entry.path().extension().is_none_or(|extension| extension != "safetensors") {
            continue;
        }
        let (mut source, mut target) = (File::open(entry.path())?, File::create(to.join(entry.file_name()))?);
        let mut hasher = blake3::Hasher::new();
        let mut block = vec![0; 8 << 20];
        loop {
            let count = source.read(&mut block)?;
            if count == 0 {
                break;
            }
            hasher.update_rayon(&block[..count]);
            target.write_all(&block[..count])?;
        }
        target.sync_all()?;
        std::hint::black_box(hasher.finalize());
    }
    Ok(())
}

/// From the start of the process to the beginning of the first step, from a folder in NF4; the bound is the goal.
pub fn start(shape: Shape) -> Measured {
    const GOAL: f64 = 0.5;
    let place = tempfile::tempdir()?;
    let folder = place.path();
    write_model(&folder.join("model"), shape)?;
    write_tokenizer(&folder.join("model"))?;
    write_run(folder)?;
    quantize_folder(&folder.join("model"), &folder.join("nf4"), QuantConfig::default(), &mut |_, _, _| {})?;
    let mut times = Vec::new();
    for round in 0..5 {
        let name = format!("run-{round}");
        let log = folder.join("runs").join(&name).join("log.jsonl");
        let begin = Instant::now();
        let mut command = Command::new(PROGRAM);
        command.args(training("nf4", &name)).current_dir(folder).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn()?;
        let step = loop {
            if let Some(seconds) = first_step(&log) {
                break begin.elapsed().as_secs_f64() - seconds;
            }
            if child.try_wait()?.is_some_and(|status| !status.success()) {
                return Err("the run failed".into());
            }
            std::thread::sleep(Duration::from_micros(500));
        };
        child.wait()?;
        times.push(step);
    }
    times.sort_by(f64::total_cmp);
    Ok(Figure::time(times[times.len() / 2], GOAL))
}

/// Seconds that the first step took, once it is logged.
fn first_step(log: &Path) -> Option<f64> {
    let text = std::fs::read_to_string(log).ok()?;
    let rows = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let row = rows.into_iter().find(|row| row["event"] == "step")?;
    Some(row["tokens"].as_f64()? / row["tokens_per_s"].as_f64()?)
}

/// `--help`; the bound is the goal.
pub fn help() -> Measured {
    const GOAL: f64 = 0.02;
    let mut times = Vec::new();
    for _ in 0..21 {
        let start = Instant::now();
        Command::new(PROGRAM).arg("--help").output()?;
        times.push(start.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    Ok(Figure::time(times[times.len() / 2], GOAL))
}
