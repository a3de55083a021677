//! Every configuration of the repository loads, and can be planned; its header tells the truth about memory.

use llamantino::config;
use llamantino::train::memory::{self, Budget, Situation};
use llamantino::train::stages::Recipe;
use llamantino::train::RunConfig;
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};

/// Models that are not at hand: shape of the config.json that a plan needs.
struct Shape {
    model: &'static str,
    hidden: usize,
    inner: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    vocabulary: usize,
    tied: bool,
}

impl Shape {
    const fn new(model: &'static str, [hidden, inner, layers, heads, kv_heads, vocabulary]: [usize; 6]) -> Shape {
        // Of these models the small ones have one matrix for embedding and head.
        Shape { model, hidden, inner, layers, heads, kv_heads, vocabulary, tied: hidden < 1000 }
    }
}

const SHAPES: &[Shape] = &[
    Shape::new("meta-llama/Llama-2-7b-hf", [4096, 11008, 32, 32, 32, 32000]),
    Shape::new("meta-llama/Llama-2-7b-chat-hf", [4096, 11008, 32, 32, 32, 32000]),
    Shape::new("models/llama-7b", [4096, 11008, 32, 32, 32, 32000]),
    Shape::new("meta-llama/Llama-2-13b-hf", [5120, 13824, 40, 40, 40, 32000]),
    Shape::new("NousResearch/Llama-2-13b-chat-hf", [5120, 13824, 40, 40, 40, 32000]),
    Shape::new("meta-llama/Llama-2-70b-hf", [8192, 28672, 80, 64, 8, 32000]),
    Shape::new("meta-llama/Meta-Llama-3-8B-Instruct", [4096, 14336, 32, 32, 8, 128256]),
    Shape::new("SmolLM2-135M-Instruct.Q4_1.gguf", [576, 1536, 30, 9, 3, 49152]),
    Shape::new("smollm2", [576, 1536, 30, 9, 3, 49152]),
    Shape::new("smollm2-135m", [576, 1536, 30, 9, 3, 49152]),
    Shape::new("models/stories260K", [64, 172, 5, 8, 4, 512]),
    Shape::new("quickstart-base/start", [192, 512, 6, 6, 3, 4096]),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn configs() -> Vec<PathBuf> {
    let entries = fs::read_dir(root().join("configs")).unwrap().map(|entry| entry.unwrap().path());
    let mut paths: Vec<PathBuf> = entries.collect();
    paths.sort();
    assert!(paths.len() >= 10 && paths.iter().all(|path| path.extension().is_some_and(|e| e == "toml")), "{paths:?}");
    paths
}

/// The runs of a configuration, each as the planner sees it.
fn runs(path: &Path) -> Vec<RunConfig> {
    let recipe: Recipe = config::load_file(path, &[]).unwrap_or_else(|error| panic!("{error}"));
    let stages = recipe.stages().unwrap();
    match stages.is_empty() {
        true => vec![recipe.run],
        false => stages.into_iter().map(|stage| stage.planned).collect(),
    }
}

/// A folder with the config.json of the model that is named.
fn model_folder(name: &str, place: &Path) -> PathBuf {
    let own = root().join(name);
    if own.join("config.json").exists() {
        return own;
    }
    let shape = SHAPES.iter().find(|shape| shape.model == name);
    let shape = shape.unwrap_or_else(|| panic!("{name}: no shape in this test"));
    let folder = place.join("model");
    fs::create_dir_all(&folder).unwrap();
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden, "intermediate_size": shape.inner, "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads, "num_key_value_heads": shape.kv_heads, "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": shape.tied,
        "torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2,
    });
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    folder
}

/// Peak of the configuration in bytes, with nothing computed again.
fn peak(run: &RunConfig) -> u64 {
    let place = tempfile::tempdir().unwrap();
    let mut run = run.clone();
    run.model = model_folder(&run.model, place.path()).display().to_string();
    run.training.threads = 16;
    let Situation { job, .. } = Situation::of(&run).unwrap_or_else(|error| panic!("{error}"));
    memory::plan(&job, memory::PROGRAM, Budget { bytes: None, configured: false }).peak()
}

#[test]
fn every_configuration_loads_and_can_be_planned() {
    for path in configs() {
        for run in runs(&path) {
            assert!(peak(&run) > 1 << 20, "{}", path.display());
        }
    }
}

#[test]
fn headers_say_how_to_run_and_what_memory_it_takes() {
    for path in configs() {
        let text = fs::read_to_string(&path).unwrap();
        let header: Vec<&str> = text.lines().take_while(|line| line.starts_with('#')).collect();
        let header = header.join("\n");
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        assert!(header.contains(&format!("llamantino train configs/{name}")), "{name}: no command");
        let Some(line) = header.lines().find_map(|line| line.trim_start_matches(['#', ' ']).strip_prefix("memory"))
        else {
            assert!(!text.contains("[[stage]]"), "{name}: no line about memory");
            continue;
        };
        let stated: f64 = line.split_whitespace().next().unwrap().parse().unwrap();
        let needed = runs(&path).iter().map(peak).max().unwrap() as f64 / f64::from(1 << 30);
        let fits = (stated - needed).abs() <= 0.2 * needed + 0.1;
        assert!(fits, "{name}: its header says {stated} GiB, the plan {needed:.1} GiB");
    }
}

#[test]
fn the_family_is_what_its_pages_say() {
    let stage = |file: &str, index: usize| runs(&root().join("configs").join(file)).swap_remove(index);
    let (small, large) = (stage("llamantino-chat.toml", 1), stage("llamantino-chat-70b.toml", 1));
    assert_eq!(
        (small.data.template.as_str(), large.data.template.as_str()),
        ("llamantino-chat", "llamantino-chat-70b")
    );
    assert_eq!((small.optimizer.learning_rate, large.optimizer.learning_rate), (2e-4, 1e-4));
    assert_eq!((large.lora.r, large.data.sequence_length), (64, 512));
    let dolly = stage("llamantino-13b.toml", 1);
    assert_eq!((dolly.model.as_str(), dolly.training.accumulation), ("meta-llama/Llama-2-13b-hf", 128));
    let (sft, adapt) = (stage("anita.toml", 0), stage("anita.toml", 1));
    assert_eq!((sft.lora.r, sft.lora.alpha, adapt.lora.r, adapt.lora.alpha), (16, 8.0, 64, 16.0));
}
