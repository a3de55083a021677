//! What the tests of the binary share: a tiny model folder with a byte-level tokenizer, Italian lines, and running it.

#![allow(dead_code)] // not every test file uses every helper

use safetensors::tensor::{Dtype, TensorView};
use serde_json::{json, Map, Value};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Vocabulary of the tiny model: 256 bytes, `<s>`, `</s>`, and two rows that no token has.
pub const VOCABULARY: usize = 260;

/// Ends of a test that cannot run here: says what is missing and counts it.
pub fn skip(test: &str, missing: &str) {
    println!("skipped: {test}: set {missing}");
    if let Some(path) = std::env::var_os("LLAMANTINO_SKIPPED") {
        use std::io::Write;
        let file = std::fs::OpenOptions::new().append(true).create(true).open(path);
        let _ = file.and_then(|mut file| writeln!(file, "{test} (set {missing})"));
    }
}

/// Runs the binary in `folder` with `arguments`.
pub fn run(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_llamantino"))
        .args(arguments)
        .current_dir(folder)
        .env("NO_COLOR", "1")
        .output()
        .expect("the binary starts")
}

/// Runs the binary and demands success; returns stdout.
pub fn succeed(folder: &Path, arguments: &[&str]) -> String {
    let output = run(folder, arguments);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?} failed:\n{stderr}");
    String::from_utf8(output.stdout).expect("stdout is UTF-8")
}

/// Runs the binary and demands this exit code; returns stderr.
pub fn fail(folder: &Path, arguments: &[&str], code: i32) -> String {
    let output = run(folder, arguments);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}:\n{stderr}");
    assert!(!stderr.contains("panicked"), "{arguments:?} panicked:\n{stderr}");
    stderr
}

/// A number in (-1, 1) that depends on its place alone.
fn noise(place: u64) -> f32 {
    let mut state = place.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0xD1B5_4A32_D192_ED03;
    state = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    state = (state ^ (state >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((state >> 40) as f32 / (1u64 << 23) as f32) - 1.0
}

/// Writes the tiny model into `folder/model`: 2 blocks, hidden 64, byte-level tokenizer with `<s>` and `</s>`.
pub fn tiny_model(folder: &Path) -> PathBuf {
    let model = folder.join("model");
    std::fs::create_dir_all(&model).unwrap();
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": VOCABULARY, "hidden_size": 64,
        "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
        "tie_word_embeddings": true, "torch_dtype": "float32", "bos_token_id": 256, "eos_token_id": 257,
    });
    std::fs::write(model.join("config.json"), format!("{config:#}")).unwrap();
    write_tokenizer(&model);
    write_weights(&model.join("model.safetensors"), |_, _| {});
    model
}

/// Writes the tiny model's weights; `change` may spoil the values of a tensor.
pub fn write_weights(path: &Path, change: impl Fn(&str, &mut Vec<f32>)) {
    write_weights_of(VOCABULARY, path, change);
}

/// [`write_weights`] with another number of embedding rows.
pub fn write_weights_of(vocabulary: usize, path: &Path, change: impl Fn(&str, &mut Vec<f32>)) {
    let mut shapes: Vec<(String, Vec<usize>)> =
        vec![("model.embed_tokens.weight".into(), vec![vocabulary, 64]), ("model.norm.weight".into(), vec![64])];
    for layer in 0..2 {
        let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
        shapes.extend([
            (name("input_layernorm"), vec![64]),
            (name("post_attention_layernorm"), vec![64]),
            (name("self_attn.q_proj"), vec![64, 64]),
            (name("self_attn.k_proj"), vec![32, 64]),
            (name("self_attn.v_proj"), vec![32, 64]),
            (name("self_attn.o_proj"), vec![64, 64]),
            (name("mlp.gate_proj"), vec![96, 64]),
            (name("mlp.up_proj"), vec![96, 64]),
            (name("mlp.down_proj"), vec![64, 96]),
        ]);
    }
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = shapes
        .into_iter()
        .enumerate()
        .map(|(index, (name, shape))| {
            let count: usize = shape.iter().product();
            let value = |i: usize| noise((index as u64) << 32 | i as u64);
            let mut values: Vec<f32> = match shape.len() {
                1 => (0..count).map(|i| 1.0 + 0.1 * value(i)).collect(),
                _ => (0..count).map(|i| 0.15 * value(i)).collect(),
            };
            change(&name, &mut values);
            (name, shape, values.iter().flat_map(|v| v.to_le_bytes()).collect())
        })
        .collect();
    let views = tensors.iter().map(|(name, shape, bytes)| {
        (name.clone(), TensorView::new(Dtype::F32, shape.clone(), bytes).expect("a valid tensor"))
    });
    safetensors::serialize_to_file(views, None, path).expect("weights are written");
}

/// A byte-level tokenizer without merges: id = byte for printable names, `<s>` 256 and `</s>` 257.
fn write_tokenizer(folder: &Path) {
    let mut vocabulary = Map::new();
    let mut next = 256u32;
    for byte in 0..=255u32 {
        let printable = (33..=126).contains(&byte) || (161..=172).contains(&byte) || (174..=255).contains(&byte);
        let character = if printable {
            byte
        } else {
            next += 1;
            next - 1
        };
        vocabulary.insert(char::from_u32(character).unwrap().to_string(), byte.into());
    }
    let special = |id: u32, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(256, "<s>"), special(257, "</s>")],
        "normalizer": null, "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                  "vocab": Value::Object(vocabulary), "merges": []},
    });
    std::fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let config = json!({"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>",
                        "add_bos_token": true, "add_eos_token": false});
    std::fs::write(folder.join("tokenizer_config.json"), config.to_string()).unwrap();
}

/// Writes `count` short Italian documents as JSON lines.
pub fn italian(path: &Path, count: usize) {
    let words = ["il", "cane", "corre", "nel", "prato", "verde", "mentre", "la", "luna", "sale", "perché", "è", "sera"];
    let lines: Vec<String> = (0..count)
        .map(|document| {
            let length = 8 + document * 7 % 30;
            let text: Vec<&str> = (0..length).map(|i| words[(i * i + document * 5 + i) % words.len()]).collect();
            json!({"text": format!("{}.", text.join(" ")), "url": "https://example.it"}).to_string()
        })
        .collect();
    std::fs::write(path, lines.join("\n") + "\n").unwrap();
}

/// A configuration of a short run on [`tiny_model`] and [`italian`] lines in `data.jsonl`; `more` is added to it.
pub fn configuration(folder: &Path, name: &str, more: &str) -> PathBuf {
    let text = format!(
        "name = \"{name}\"\nmodel = \"model\"\nseed = 7\n\
         [data]\npaths = [\"data.jsonl\"]\nsequence_length = 64\nheld_out_fraction = 0.1\n\
         [lora]\nr = 4\nalpha = 8\n[training]\nsteps = 6\nmicro_batch = 2\n[optimizer]\nlearning_rate = 1e-2\n{more}"
    );
    let path = folder.join(format!("{name}.toml"));
    std::fs::write(&path, text).unwrap();
    path
}

/// Everything that a run of the tiny model needs, in a fresh temporary folder.
pub fn workspace() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    tiny_model(folder.path());
    italian(&folder.path().join("data.jsonl"), 120);
    folder
}
