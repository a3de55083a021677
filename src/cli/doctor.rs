//! `llamantino doctor`: what this machine offers, what is missing and how to get it.

pub mod gpu;

use super::{output, progress};
use crate::device::machine;
use crate::device::{cpu_path, memory};
use crate::error::{Error, Result};
use crate::model::hub::HubSettings;
use crate::model::verify;
use crate::train::memory::shown;
use clap::Args;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Less free memory than this is too little for anything.
const LITTLE_MEMORY: u64 = 256 << 20;
/// Less free disk than this is too little for anything.
const LITTLE_DISK: u64 = 256 << 20;

/// Arguments of `doctor`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  llamantino doctor\n  llamantino doctor --verify models/Llama-2-7b-hf")]
pub struct DoctorArgs {
    /// One JSON object instead of a table.
    #[arg(long)]
    pub json: bool,
    /// Read a model (folder or GGUF file) from end to end: everything there, finite, consistent; prints its hash.
    #[arg(long, value_name = "MODEL")]
    pub verify: Option<PathBuf>,
}

/// How it stands with something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    /// As it should be.
    Fine,
    /// Works, could be better.
    Note,
    /// Something that is needed is missing.
    Missing,
}

/// A line of the report.
#[derive(Debug, Clone, Serialize)]
struct Item {
    name: &'static str,
    state: State,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
}

impl Item {
    fn new(name: &'static str, state: State, found: impl Into<String>) -> Item {
        Item { name, state, found: found.into(), hint: None }
    }

    fn hint(self, hint: impl Into<String>) -> Item {
        Item { hint: Some(hint.into()), ..self }
    }
}

/// Runs `doctor`.
pub fn run(args: DoctorArgs) -> Result<()> {
    let answer = gpu::ask();
    let mut items = vec![program(&answer)];
    items.extend(processor());
    items.extend(memory_items());
    items.push(disk("disk, this folder", Path::new(".")));
    items.extend(gpu::items(&machine::nvidia(), &answer));
    items.extend(hub());
    if let Some(model) = &args.verify {
        items.push(verified(model));
    }
    match args.json {
        true => {
            let missing = items.iter().any(|item| item.state == State::Missing);
            output::data(&format!("{}\n", serde_json::json!({"ready": !missing, "items": items})));
        }
        false => output::data(&table(&items)),
    }
    let missing: Vec<&str> = items.iter().filter(|i| i.state == State::Missing).map(|i| i.name).collect();
    match missing.is_empty() {
        true => Ok(()),
        false => Err(Error::failed(format!("not ready: {}", missing.join(", ")))),
    }
}

fn table(items: &[Item]) -> String {
    let mut text = String::new();
    for item in items {
        let mark = match item.state {
            State::Fine => "ok",
            State::Note => "--",
            State::Missing => "!!",
        };
        text += &format!("{mark} {:<18} {}\n", item.name, item.found);
        if let Some(hint) = &item.hint {
            text += &format!("   {:<18} {hint}\n", "");
        }
    }
    text
}

fn program(answer: &gpu::Answer) -> Item {
    let form = format!("{} {}, built {}", std::env::consts::ARCH, std::env::consts::OS, gpu::build(answer));
    Item::new("llamantino", State::Fine, format!("{} ({form})", env!("CARGO_PKG_VERSION")))
}

fn processor() -> Vec<Item> {
    let path = cpu_path();
    let model = machine::cpu_model().unwrap_or_else(|| "unknown".into());
    let features: Vec<&str> =
        machine::cpu_features().into_iter().filter(|(_, has)| *has).map(|(name, _)| name).collect();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let slow = if path == crate::device::CpuPath::Portable { State::Note } else { State::Fine };
    vec![
        Item::new("processor", State::Fine, model),
        Item::new(
            "instructions",
            State::Fine,
            if features.is_empty() { "none used".into() } else { features.join(" ") },
        ),
        Item::new("kernels", slow, format!("{}: {}", path.name(), machine::why(path))),
        Item::new("threads", State::Fine, format!("{cores} (cores that this process may use)")),
    ]
}

fn memory_items() -> Vec<Item> {
    let state = memory::state();
    let mut items = Vec::new();
    let total = state.total.map_or("unknown".into(), shown);
    items.push(match state.available() {
        None => Item::new("memory", State::Note, format!("{total}; how much is free is not known on this system"))
            .hint("set training.memory_limit_gib, so that a run is planned to fit"),
        Some(free) if free < LITTLE_MEMORY => {
            Item::new("memory", State::Missing, format!("{} free of {total}", shown(free)))
                .hint("end other programs, or raise the container's limit")
        }
        Some(free) => Item::new("memory", State::Fine, format!("{} free of {total}", shown(free))),
    });
    if let Some(limit) = state.limit {
        let left = state.left.map_or("unknown".into(), shown);
        items.push(Item::new("control group", State::Fine, format!("limit {}, {left} left", shown(limit))));
    }
    items.push(match machine::huge_pages().as_deref() {
        Some("never") => Item::new("huge pages", State::Note, "never")
            .hint("echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled makes products a little faster"),
        Some(mode) => Item::new("huge pages", State::Fine, mode),
        None => Item::new("huge pages", State::Note, "not known on this system"),
    });
    items
}

fn disk(name: &'static str, path: &Path) -> Item {
    match machine::disk_free(path) {
        Some(free) if free < LITTLE_DISK => Item::new(name, State::Missing, format!("{} free", shown(free)))
            .hint(format!("free some space on the disk of {}", path.display())),
        Some(free) => Item::new(name, State::Fine, format!("{} free", shown(free))),
        None => Item::new(name, State::Note, "free space is not known on this system"),
    }
}

fn hub() -> Vec<Item> {
    let settings = match HubSettings::from_env() {
        Ok(settings) => settings,
        Err(error) => {
            let item = Item::new("hub", State::Missing, error.message());
            return vec![error.hint_text().map_or(item.clone(), |hint| item.hint(hint))];
        }
    };
    let is_set = |name: &str| std::env::var(name).is_ok_and(|value| !value.trim().is_empty());
    let token = match (&settings.token, ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"].into_iter().find(|name| is_set(name))) {
        (None, _) => "none: open models only".to_string(),
        (Some(_), Some(variable)) => format!("there, from {variable}"),
        (Some(_), None) => "there, from its file".to_string(),
    };
    let (models, bytes) = cache_size(&settings.cache);
    let folder = settings.cache.display();
    let cache = match models {
        0 => format!("{folder}: empty"),
        _ => format!("{folder}: {models} models, {}", shown(bytes)),
    };
    let offline: Vec<&str> =
        ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"].into_iter().filter(|name| is_set(name)).collect();
    let network = match (settings.offline, offline.is_empty()) {
        (true, _) => format!("never used: {} is set", offline.join(", ")),
        _ => format!("for models named org/name only, from {}", settings.endpoint),
    };
    vec![
        Item::new("hub token", State::Fine, token),
        Item::new("hub cache", State::Fine, cache),
        disk("disk, hub cache", &settings.cache),
        Item::new("network", State::Fine, network),
    ]
}

/// Models in the cache, and the bytes of their files (each once: snapshots are links).
fn cache_size(cache: &Path) -> (usize, u64) {
    let entries = |path: &Path| std::fs::read_dir(path).into_iter().flatten().flatten();
    let models: Vec<_> =
        entries(cache).filter(|entry| entry.file_name().to_string_lossy().starts_with("models--")).collect();
    let files = models.iter().flat_map(|model| entries(&model.path().join("blobs")));
    let bytes = files.filter_map(|file| file.metadata().ok()).map(|about| about.len()).sum();
    (models.len(), bytes)
}

fn verified(model: &Path) -> Item {
    let bar = progress::counted(0, "verifying");
    let result = verify::verify(model, &mut |done, total| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
    });
    bar.finish_and_clear();
    match result {
        Err(error) => {
            let item = Item::new("model", State::Missing, error.message());
            error.hint_text().map_or(item.clone(), |hint| item.hint(hint))
        }
        Ok(found) => {
            let form = if found.nf4 > 0 { format!(", {} of them in NF4", found.nf4) } else { String::new() };
            let text = format!("{}: {} tensors{form}, all sound; hash {}", model.display(), found.tensors, found.hash);
            match found.warnings.is_empty() {
                true => Item::new("model", State::Fine, text),
                false => Item::new("model", State::Note, text).hint(found.warnings.join("; ")),
            }
        }
    }
}
