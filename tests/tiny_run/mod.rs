//! A run small enough for hundreds of it: a random two-layer model with a byte tokenizer, some text, a configuration.
//!
//! Everything is generated from fixed seeds; nothing is trained well, everything is trained exactly.

#![allow(dead_code)] // Each test target uses its part.

use llamantino::checkpoint::{MANIFEST_FILE, STATE_FILE};
use llamantino::model::Method;
use llamantino::train::folder::Beginning;
use llamantino::train::metrics::{EvalRow, StepRow};
use llamantino::train::run::{self, Observer, RunOptions, RunSummary};
use llamantino::train::RunConfig;
use serde_json::{json, Value};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

const HIDDEN: usize = 32;
const INNER: usize = 48;
const VOCAB: usize = 258;
const LAYERS: usize = 2;
const HEAD: usize = 8;

/// A sequence of numbers that looks random (splitmix64).
pub struct Numbers(pub u64);

impl Numbers {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In [-1, 1).
    pub fn signed(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}

/// Model, text and runs in a folder that is removed at the end.
pub struct Tiny {
    pub place: tempfile::TempDir,
}

impl Tiny {
    pub fn new() -> Tiny {
        Tiny::with_scale(0.25)
    }

    /// Matrices of values up to `scale`.
    pub fn with_scale(scale: f32) -> Tiny {
        let tiny = Tiny { place: tempfile::tempdir().unwrap() };
        fs::create_dir(tiny.model()).unwrap();
        write_model(&tiny.model(), scale);
        tiny.write_text("text.txt", 1, 3000);
        tiny.write_text("held-out.txt", 2, 400);
        tiny
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    pub fn model(&self) -> PathBuf {
        self.path("model")
    }

    /// A text of about so many bytes.
    pub fn write_text(&self, name: &str, seed: u64, bytes: usize) {
        let words = ["il", "cane", "corre", "verso", "la", "città", "perché", "non", "piove", "più", "e", "sole"];
        let mut numbers = Numbers(seed);
        let mut text = String::new();
        while text.len() < bytes {
            text += words[(numbers.next() % words.len() as u64) as usize];
            text += " ";
        }
        fs::write(self.path(name), text).unwrap();
    }

    /// Eight steps of QLoRA with everything random in them: dropout, noise, shuffling over several epochs.
    pub fn config(&self, name: &str) -> RunConfig {
        let text = |path: PathBuf| path.display().to_string();
        let mut config = RunConfig {
            name: name.into(),
            output: self.path("runs"),
            model: text(self.model()),
            ..RunConfig::default()
        };
        config.lora.r = 4;
        config.lora.alpha = 8.0;
        config.lora.dropout = 0.1;
        config.data.paths = vec![text(self.path("text.txt"))];
        config.data.held_out_files = vec![text(self.path("held-out.txt"))];
        config.data.sequence_length = 96;
        config.training.steps = 8;
        config.training.micro_batch = 3;
        config.training.accumulation = 4;
        config.training.neftune_alpha = 5.0;
        config.training.evaluate_every = 3;
        config.training.checkpoint_every = 4;
        config.optimizer.learning_rate = 2e-3;
        config
    }

    /// Writes the configuration as a file for the command line.
    pub fn write_config(&self, config: &RunConfig) -> PathBuf {
        let path = self.path(&format!("{}.toml", config.name));
        fs::write(&path, config.to_toml().unwrap()).unwrap();
        path
    }
}

/// What a run said.
#[derive(Default)]
pub struct Said {
    pub notes: Vec<String>,
    pub warnings: Vec<String>,
}

impl Observer for Said {
    fn note(&mut self, text: &str) {
        self.notes.push(text.into());
    }
    fn warning(&mut self, text: &str) {
        self.warnings.push(text.into());
    }
    fn phase(&mut self, _: &str, _: usize, _: usize) {}
    fn step(&mut self, _: &StepRow, _: u64) {}
    fn evaluation(&mut self, _: &EvalRow) {}
}

/// Runs until `stop` or the end.
pub fn go(
    config: &RunConfig,
    beginning: Beginning,
    stop: &dyn Fn(u64) -> Option<String>,
) -> (llamantino::error::Result<RunSummary>, Said) {
    let mut said = Said::default();
    let options = RunOptions { beginning, allow_config_change: false, stop };
    (run::run(config, &options, &mut said), said)
}

/// Runs to the end.
pub fn finish(config: &RunConfig) -> RunSummary {
    let (result, said) = go(config, Beginning::Auto, &|_| None);
    result.unwrap_or_else(|error| panic!("{error}\n{:?}", said.warnings))
}

/// Runs and is stopped after `step` steps.
pub fn stop_after(config: &RunConfig, step: u64) {
    let (result, _) = go(config, Beginning::Auto, &|done| (done >= step).then(|| "the test".into()));
    let error = result.unwrap_err();
    assert_eq!(error.exit_code(), 130, "{error}");
}

/// Everything that must be the same bits however often a run was interrupted: by name, as text or bytes.
pub fn outcome(config: &RunConfig) -> BTreeMap<String, Vec<u8>> {
    let folder = config.folder();
    let mut outcome = BTreeMap::new();
    let result = folder.join(if config.method == Method::Full { "model" } else { "adapter" });
    let last = folder.join(format!("checkpoints/step-{:06}", config.training.steps));
    for (name, path) in [("result", result), ("checkpoint", last)] {
        for file in fs::read_dir(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())) {
            let path = file.unwrap().path();
            let file = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_file() && file != MANIFEST_FILE && file != STATE_FILE {
                outcome.insert(format!("{name}/{file}"), fs::read(&path).unwrap());
            }
        }
        if name == "checkpoint" {
            let state = fs::read(path.join(STATE_FILE)).unwrap();
            let mut state: Value = serde_json::from_slice(&state).unwrap();
            // Times, and the length of the log, in which times have more or fewer digits. The configuration has the
            // name of the run in it.
            for key in ["seconds", "log_bytes", "config"] {
                assert!(state.as_object_mut().unwrap().remove(key).is_some(), "{key}");
            }
            outcome.insert("state".into(), state.to_string().into_bytes());
        }
    }
    outcome.insert("log".into(), log_without_times(&folder).into_bytes());
    outcome
}

/// The log but for time, speed and memory.
fn log_without_times(folder: &Path) -> String {
    let text = fs::read_to_string(folder.join("log.jsonl")).unwrap();
    let rows = text.lines().map(|line| {
        let mut row: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        for key in ["tokens_per_s", "rss_mib"] {
            row.as_object_mut().unwrap().remove(key);
        }
        format!("{row}\n")
    });
    rows.collect()
}

/// Fails with the names of what differs.
pub fn assert_same(found: &BTreeMap<String, Vec<u8>>, expected: &BTreeMap<String, Vec<u8>>, what: &str) {
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{what}");
    let differ: Vec<_> =
        expected.iter().filter(|(name, bytes)| found[*name] != **bytes).map(|(name, _)| name).collect();
    if let Some(text) = differ.iter().find(|name| ["log", "state"].contains(&name.as_str())) {
        let text = |from: &BTreeMap<String, Vec<u8>>| String::from_utf8_lossy(&from[*text]).into_owned();
        panic!("{what}: {differ:?} differ:\n{}\nexpected\n{}", text(found), text(expected));
    }
    assert!(differ.is_empty(), "{what}: {differ:?} differ");
}

fn write_model(folder: &Path, scale: f32) {
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": LAYERS,
        "num_attention_heads": HIDDEN / HEAD, "num_key_value_heads": 2, "head_dim": HEAD,
        "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "vocab_size": VOCAB,
        "tie_word_embeddings": false, "bos_token_id": 256, "eos_token_id": 257, "torch_dtype": "float32",
    });
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    fs::write(folder.join("tokenizer.json"), tokenizer().to_string()).unwrap();
    let special = json!({"bos_token": "<s>", "eos_token": "</s>", "tokenizer_class": "PreTrainedTokenizerFast"});
    fs::write(folder.join("tokenizer_config.json"), special.to_string()).unwrap();

    let mut shapes = vec![("model.embed_tokens.weight".to_string(), vec![VOCAB, HIDDEN])];
    for layer in 0..LAYERS {
        let keys = 2 * HEAD;
        for (name, shape) in [
            ("self_attn.q_proj", vec![HIDDEN, HIDDEN]),
            ("self_attn.k_proj", vec![keys, HIDDEN]),
            ("self_attn.v_proj", vec![keys, HIDDEN]),
            ("self_attn.o_proj", vec![HIDDEN, HIDDEN]),
            ("mlp.gate_proj", vec![INNER, HIDDEN]),
            ("mlp.up_proj", vec![INNER, HIDDEN]),
            ("mlp.down_proj", vec![HIDDEN, INNER]),
            ("input_layernorm", vec![HIDDEN]),
            ("post_attention_layernorm", vec![HIDDEN]),
        ] {
            shapes.push((format!("model.layers.{layer}.{name}.weight"), shape));
        }
    }
    shapes.push(("model.norm.weight".into(), vec![HIDDEN]));
    shapes.push(("lm_head.weight".into(), vec![VOCAB, HIDDEN]));
    let mut numbers = Numbers(7);
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = shapes
        .into_iter()
        .map(|(name, shape)| {
            let count = shape.iter().product::<usize>();
            let value = |numbers: &mut Numbers| if shape.len() == 1 { 1.0f32 } else { scale * numbers.signed() };
            let bytes = (0..count).flat_map(|_| value(&mut numbers).to_le_bytes()).collect();
            (name, shape, bytes)
        })
        .collect();
    let views = tensors.iter().map(|(name, shape, bytes)| {
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes).unwrap();
        (name.as_str(), view)
    });
    let bytes = safetensors::serialize(views, None).unwrap();
    fs::write(folder.join("model.safetensors"), bytes).unwrap();
}

/// One token a byte, `<s>` and `</s>`.
fn tokenizer() -> Value {
    // GPT-2's alphabet: printable bytes stand for themselves, the others for code points from 256 on.
    let printable = |byte: &u32| (33..=126).contains(byte) || (161..=172).contains(byte) || (174..=255).contains(byte);
    let mut next = 256;
    let mut vocab = serde_json::Map::new();
    for byte in 0u32..256 {
        let point = match printable(&byte) {
            true => byte,
            false => {
                next += 1;
                next - 1
            }
        };
        vocab.insert(char::from_u32(point).unwrap().to_string(), json!(byte));
    }
    let added = |id: usize, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    json!({"version": "1.0", "truncation": null, "padding": null,
           "added_tokens": [added(256, "<s>"), added(257, "</s>")], "normalizer": null,
           "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
           "post_processor": {"type": "TemplateProcessing",
               "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
               "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
               "special_tokens": {"<s>": {"id": "<s>", "ids": [256], "tokens": ["<s>"]}}},
           "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
           "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                     "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                     "vocab": vocab, "merges": []}})
}
