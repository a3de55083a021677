//! How near the memory planner comes to what runs take: `llamantino plan` against the peak resident memory of
//! `llamantino train`, for every method, operand format and keep policy.
//!
//! `cargo bench --bench memory`: a line for each case and the largest difference; it fails where that is above 5 %.
//! `cargo bench --bench memory -- bf16` runs the cases with that in their names. The model has random weights (13
//! million), the text is all of `data/italian` as one document: every window is full, which is what the plan is for.
//! Memory is not speed: a busy machine does not disturb it.

use serde_json::{json, Value};
use std::fs;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

const STEPS: usize = 12;
const BOUND: f64 = 0.05;

/// Name and settings of each case.
const CASES: [(&str, &[&str]); 16] = [
    ("qlora", &[]),
    ("qlora, bf16", &["training.compute=bf16"]),
    ("qlora, recompute", &["training.recompute=on"]),
    ("qlora, bf16, recompute", &["training.compute=bf16", "training.recompute=on"]),
    ("qlora, auto in 140 MiB", &["training.recompute=auto", "training.memory_limit_gib=0.1367"]),
    ("qlora, 1 x 256, accumulation 4", &["training.micro_batch=1", "training.accumulation=4"]),
    ("qlora, 1 x 1024", &["training.micro_batch=1", "data.sequence_length=1024"]),
    ("qlora, 16 x 64", &["training.micro_batch=16", "data.sequence_length=64"]),
    ("qlora, without packing", &["data.packing=false"]),
    ("qlora, rank 64, adamw8bit", &["lora.r=64", "lora.alpha=64", "optimizer.kind=adamw8bit"]),
    ("qlora, embeddings trained", &["train_embeddings=true"]),
    ("qlora, DoRA, dropout, NEFTune", &["lora.dora=true", "lora.dropout=0.1", "training.neftune_alpha=5"]),
    ("lora", &["method=lora"]),
    ("lora, bf16, recompute", &["method=lora", "training.compute=bf16", "training.recompute=on"]),
    ("full", &["method=full"]),
    ("full, bf16, adamw8bit", &["method=full", "training.compute=bf16", "optimizer.kind=adamw8bit"]),
];

fn main() {
    let place = tempfile::tempdir().expect("a temporary folder");
    write_model(&place.path().join("model"));
    write_text(&place.path().join("text.txt")).expect("a text");
    fs::write(place.path().join("run.toml"), "").expect("a configuration");
    let wanted = std::env::args().skip(1).find(|argument| !argument.starts_with('-')).unwrap_or_default();
    let cases: Vec<_> = CASES.iter().filter(|(name, _)| name.contains(&wanted)).collect();
    let mut worst: f64 = 0.0;
    println!("{:32} {:>13} {:>12} {:>10}", "", "predicted MiB", "measured MiB", "difference");
    for (name, settings) in &cases {
        let predicted = predicted(place.path(), settings);
        let measured = measured(place.path(), settings);
        let difference = predicted as f64 / measured as f64 - 1.0;
        worst = worst.max(difference.abs());
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        println!("{name:32} {:>13.1} {:>12.1} {:>+9.1}%", mib(predicted), mib(measured), 100.0 * difference);
    }
    let report = json!({"what": "memory", "cases": cases.len(), "largest_difference": worst, "bound": BOUND});
    println!("{report}");
    if worst > BOUND {
        eprintln!("the plan is more than {:.0} % off", 100.0 * BOUND);
        std::process::exit(1);
    }
}

/// A command of the program in `place`, with the settings that all cases share and their own.
fn llamantino(place: &Path, command: &str, settings: &[&str]) -> Command {
    let steps = format!("training.steps={STEPS}");
    let shared = [
        "name=run",
        "model=model",
        "lora.r=16",
        "lora.alpha=32",
        "training.threads=2",
        "data.paths=[\"text.txt\"]",
        &steps,
    ];
    let batch = ["training.micro_batch=4", "data.sequence_length=256", "training.recompute=off"];
    let mut arguments = Command::new(env!("CARGO_BIN_EXE_llamantino"));
    arguments.arg(command).arg("run.toml").current_dir(place);
    for setting in shared.iter().chain(&batch).chain(settings) {
        arguments.args(["--set", setting]);
    }
    arguments
}

fn predicted(place: &Path, settings: &[&str]) -> u64 {
    let mut command = llamantino(place, "plan", settings);
    let output = command.args(["--json", "--no-time", "--no-data"]).output().expect("the program starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let plan: Value = serde_json::from_slice(&output.stdout).expect("the plan is JSON");
    plan["cpu"]["peak"].as_u64().expect("a peak")
}

fn measured(place: &Path, settings: &[&str]) -> u64 {
    let runs = place.join("runs");
    if runs.exists() {
        fs::remove_dir_all(&runs).expect("the last run goes");
    }
    let mut command = llamantino(place, "train", settings);
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the program starts");
    peak(child)
}

/// Waits for a process; its largest resident memory in bytes.
#[cfg(target_os = "linux")]
fn peak(child: Child) -> u64 {
    let mut status = 0;
    // SAFETY: a usage of zeros is one; the pointers are to values of the right types; nobody else waits for the child.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        assert_eq!(libc::wait4(child.id() as libc::pid_t, &mut status, 0, &mut usage), child.id() as libc::pid_t);
        usage
    };
    assert_eq!(status, 0, "the run failed: try the settings with `llamantino train`");
    usage.ru_maxrss as u64 * 1024
}

#[cfg(not(target_os = "linux"))]
fn peak(_: Child) -> u64 {
    eprintln!("peaks are measured on Linux only");
    std::process::exit(1);
}

/// The files of `data/italian/train`, one after the other.
fn write_text(path: &Path) -> std::io::Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/italian/train");
    let entries: std::io::Result<Vec<_>> = fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect();
    let mut files = entries?;
    files.sort_unstable();
    let mut out = fs::File::create(path)?;
    files.iter().try_for_each(|file| out.write_all(&fs::read(file)?))
}

/// A model of random weights that has the quickstart's tokenizer.
fn write_model(folder: &Path) {
    const HIDDEN: usize = 384;
    const INNER: usize = 1024;
    const LAYERS: usize = 6;
    let quickstart = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/quickstart/model");
    fs::create_dir_all(folder).expect("a folder");
    for name in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
        fs::copy(quickstart.join(name), folder.join(name)).expect("the quickstart's files");
    }
    let text = fs::read_to_string(quickstart.join("config.json")).expect("the quickstart's config.json");
    let mut config: Value = serde_json::from_str(&text).expect("JSON");
    let sizes = [("hidden_size", HIDDEN), ("intermediate_size", INNER), ("num_hidden_layers", LAYERS)];
    let heads = [("num_attention_heads", 6), ("num_key_value_heads", 3), ("head_dim", 64)];
    sizes.iter().chain(&heads).for_each(|(key, value)| config[key] = json!(value));
    config["tie_word_embeddings"] = json!(false);
    config["torch_dtype"] = json!("float32");
    fs::write(folder.join("config.json"), config.to_string()).expect("config.json");

    let vocabulary = config["vocab_size"].as_u64().expect("a size") as usize;
    let mut shapes = vec![("model.embed_tokens".to_string(), vec![vocabulary, HIDDEN])];
    shapes.extend([("model.norm".to_string(), vec![HIDDEN]), ("lm_head".to_string(), vec![vocabulary, HIDDEN])]);
    for layer in 0..LAYERS {
        let linear = |part: &str, rows, cols| (format!("model.layers.{layer}.{part}"), vec![rows, cols]);
        shapes.extend(["q_proj", "o_proj"].map(|part| linear(&format!("self_attn.{part}"), HIDDEN, HIDDEN)));
        shapes.extend(["k_proj", "v_proj"].map(|part| linear(&format!("self_attn.{part}"), HIDDEN / 2, HIDDEN)));
        shapes.extend(["gate_proj", "up_proj"].map(|part| linear(&format!("mlp.{part}"), INNER, HIDDEN)));
        shapes.push(linear("mlp.down_proj", HIDDEN, INNER));
        let norm = |part: &str| (format!("model.layers.{layer}.{part}"), vec![HIDDEN]);
        shapes.extend(["input_layernorm", "post_attention_layernorm"].map(norm));
    }
    write_weights(&folder.join("model.safetensors"), &shapes).expect("weights");
}

/// Writes f32 tensors of these shapes one value at a time: this process must stay small, because a child's peak begins
/// at its parent's. Norms are 1, the others uniform in ±0.035.
fn write_weights(path: &Path, shapes: &[(String, Vec<usize>)]) -> std::io::Result<()> {
    let (mut header, mut end) = (serde_json::Map::new(), 0);
    for (name, shape) in shapes {
        let start = end;
        end += 4 * shape.iter().product::<usize>();
        header.insert(format!("{name}.weight"), json!({"dtype": "F32", "shape": shape, "data_offsets": [start, end]}));
    }
    let mut header = Value::Object(header).to_string();
    header += &" ".repeat(header.len().next_multiple_of(8) - header.len());
    let mut file = BufWriter::new(fs::File::create(path)?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    let mut state = 1u64;
    for (_, shape) in shapes {
        for _ in 0..shape.iter().product::<usize>() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let uniform = (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5;
            let value = if shape.len() == 1 { 1.0 } else { 0.07 * uniform };
            file.write_all(&value.to_le_bytes())?;
        }
    }
    file.into_inner()?.sync_all()
}
