//! The memory planner: bytes of every part of a run before anything is loaded, and how to make it fit.
//!
//! [`job`] is what memory depends on, [`replay`] walks a step with sizes instead of values, this module adds up, chooses
//! what is computed again, and finds the largest batch; [`remedies`] says what to change where a run does not fit,
//! [`amount`] and [`time`] how much it will do and how long that takes, [`gpu`] plans the same run on a GPU.
//!
//! Invariant: what is predicted is the resident memory of the process at its peak, on the CPU, within a few percent
//! (`tests/bench/memory.rs` compares it with runs). Parts: exact sizes of weights, adapters, gradients, optimizer state
//! and arena; constants for the program itself.

pub mod amount;
pub mod gpu;
#[cfg(test)]
mod gpu_cache_tests;
mod gpu_replay;
#[cfg(test)]
mod gpu_tests;
pub mod job;
pub mod remedies;
pub mod replay;
pub mod time;

use super::config::RunConfig;
use super::recompute::Recompute;
use super::run::Observer;
use crate::adapter::peft;
use crate::data::formats;
use crate::device;
use crate::error::{Error, Result};
use crate::model::open::{config_of, with_description};
use crate::model::{Keep, Method, ModelConfig};
use crate::ops::gpu::Gpu;
use crate::ops::matrix::odd_stride;
use crate::ops::{attention, cross_entropy};
use job::{Adapters, Job};
use replay::ArenaBytes;
use serde::Serialize;
use std::path::Path;

/// Code, stacks and small heap that a run touches after its start.
pub const PROGRAM: u64 = 8 << 20;
/// A tokenizer in memory, for each byte of its tokenizer.json.
const TOKENIZER_FACTOR: u64 = 8;
/// Bytes of text that make a token, about.
const TEXT_BYTES_PER_TOKEN: u64 = 3;
/// How much text shrinks when it is compressed, about.
const COMPRESSION: u64 = 3;
/// Panels and tiles of a thread.
const THREAD: usize = (2 << 20) + (512 << 10);
/// Smallest buffer that products work in.
const BUFFER: usize = 2 << 20;

/// Bytes of the parts of a run at its peak. Their sum is the peak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Parts {
    /// Program, tokenizer, text.
    pub program: u64,
    /// Frozen linears of the blocks.
    pub base: u64,
    /// Frozen embedding and head, norms, rotation table, DoRA's norms.
    pub embeddings: u64,
    /// Trained values (adapters, or all weights).
    pub trained: u64,
    /// Their gradients.
    pub gradients: u64,
    /// The optimizer's state.
    pub optimizer: u64,
    /// What the blocks keep for their backward passes.
    pub saved: u64,
    /// Buffers of the step beside it, holes included.
    pub work: u64,
    /// The chunk of logits.
    pub logits: u64,
    /// Panels and converted operands of the products.
    pub packing: u64,
}

impl Parts {
    /// Name and bytes of each part, in the order of a table.
    pub fn list(&self) -> [(&'static str, u64); 10] {
        [
            ("program, tokenizer, text", self.program),
            ("base", self.base),
            ("embeddings and head", self.embeddings),
            ("trained values", self.trained),
            ("gradients", self.gradients),
            ("optimizer state", self.optimizer),
            ("kept activations", self.saved),
            ("work buffers", self.work),
            ("chunk of logits", self.logits),
            ("products", self.packing),
        ]
    }

    /// All of them.
    pub fn total(&self) -> u64 {
        self.list().iter().map(|(_, bytes)| bytes).sum()
    }
}

/// How much memory a run may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Budget {
    /// Bytes; `None` where the system does not tell and the configuration does not say.
    pub bytes: Option<u64>,
    /// Whether `training.memory_limit_gib` sets it.
    pub configured: bool,
}

impl Budget {
    /// The configured limit, or what this machine has left, but for a twentieth.
    pub fn new(limit_gib: f64) -> Budget {
        if limit_gib > 0.0 {
            return Budget { bytes: Some((limit_gib * f64::from(1 << 30)) as u64), configured: true };
        }
        let available = device::memory::available().map(|bytes| bytes + device::resident_bytes());
        Budget { bytes: available.map(|bytes| bytes - bytes / 20), configured: false }
    }

    /// Whether so many bytes are within it.
    pub fn holds(&self, bytes: u64) -> bool {
        self.bytes.is_none_or(|limit| bytes <= limit)
    }
}

/// A run's memory, decided.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// At the peak of training.
    pub parts: Parts,
    /// Peak while the model is loaded.
    pub loading: u64,
    /// Peak while the result is written.
    pub saving: u64,
    /// What each block keeps.
    pub keep: Vec<Keep>,
    /// Blocks, from the first on, whose weights a GPU keeps decoded.
    pub cached: usize,
}

impl Plan {
    /// The largest resident memory of the process.
    pub fn peak(&self) -> u64 {
        self.parts.total().max(self.loading).max(self.saving)
    }

    /// Blocks that are computed again.
    pub fn recomputed(&self) -> usize {
        self.keep.iter().filter(|keep| **keep == Keep::Input).count()
    }
}

/// Plans `job` in a process that takes `program` bytes beside it: the least recompute that `budget` allows, and on a GPU
/// decoded weights in what is left.
pub fn plan(job: &Job, program: u64, budget: Budget) -> Plan {
    let plan = least_recompute(job, program, budget);
    match job.on_gpu {
        true => gpu::with_cached_weights(job, plan, budget),
        false => plan,
    }
}

fn least_recompute(job: &Job, program: u64, budget: Budget) -> Plan {
    let layers = job.model.blocks.len();
    // The last blocks run backward first: what they keep is gone before the others need room to compute again.
    let keeping = |light: usize| {
        let keep = |block| if block + light < layers { Keep::Input } else { Keep::Light };
        with_keep(job, program, (0..layers).map(keep).collect())
    };
    match job.recompute {
        Recompute::On => keeping(0),
        Recompute::Off => keeping(layers),
        Recompute::Auto => {
            let all = keeping(layers);
            if budget.holds(all.peak()) {
                return all;
            }
            most_blocks(layers, budget, keeping)
        }
    }
}

/// The plan of the most blocks, fewer than `too_many`, that `budget` holds, found by halving; that of none at least.
fn most_blocks(mut too_many: usize, budget: Budget, plan_of: impl Fn(usize) -> Plan) -> Plan {
    let (mut fits, mut best) = (0, plan_of(0));
    while too_many - fits > 1 {
        let middle = (fits + too_many) / 2;
        let plan = plan_of(middle);
        if budget.holds(plan.peak()) {
            (fits, best) = (middle, plan);
        } else {
            too_many = middle;
        }
    }
    best
}

/// The memory of `job` with these keep policies; on a GPU the card's, whatever `program` says.
pub fn with_keep(job: &Job, program: u64, keep: Vec<Keep>) -> Plan {
    if job.on_gpu {
        return gpu::with_keep(job, keep, 0);
    }
    let arena = replay::arena(&job.model, &job.batch, &keep, job.evaluates);
    let parts = Parts { program, ..parts(job, arena) };
    let state = parts.program + parts.base + parts.embeddings + parts.trained;
    let tensor = job.linears().map(|linear| linear.rows * linear.cols).max().unwrap_or(0) * job.stored_bytes;
    // The result is read back when it is written; the activations are given back before.
    let copies = if job.method == Method::Full { 0 } else { 2 * parts.trained };
    Plan {
        loading: state + tensor as u64,
        saving: state + parts.gradients + parts.optimizer + parts.packing + copies,
        parts,
        keep,
        cached: 0,
    }
}

fn parts(job: &Job, arena: ArenaBytes) -> Parts {
    let full = job.method == Method::Full;
    let linears = job.linear_values();
    let trained = job.trained_tensors();
    let trained_bytes = 4 * trained.iter().sum::<usize>();
    let base = match job.quantization {
        _ if full => 0,
        Some(config) => job.linears().map(|linear| config.bytes(linear.rows * linear.cols) + (1 << 10)).sum(),
        None => linears * job.stored_bytes,
    };
    let dora: usize = job.linears().filter(|linear| linear.dora).map(|linear| 3 * 4 * linear.rows).sum();
    let embeddings = if job.trains_embeddings { 0 } else { job.embedding_values() * job.stored_bytes };
    let vectors = if full { 0 } else { 4 * job.vector_values };
    Parts {
        program: 0,
        base: base as u64,
        embeddings: (embeddings + vectors + dora + 4 * job.rope_values) as u64,
        trained: trained_bytes as u64,
        gradients: trained_bytes as u64,
        optimizer: trained.iter().map(|&values| job.optimizer.state_bytes(values)).sum::<usize>() as u64,
        saved: arena.saved as u64,
        work: arena.touched.saturating_sub(arena.saved + arena.logits) as u64,
        logits: arena.logits as u64,
        packing: packing(job) as u64,
    }
}

/// Working memory of the products: panels of each thread, the largest left operands that are converted together, and what
/// attention converts.
fn packing(job: &Job) -> usize {
    let (rows, model) = (job.batch.rows(), &job.model);
    let chunk = cross_entropy::chunk_rows(model.vocab, rows).min(rows);
    let word = if job.is_bf16() { 2 } else { 4 };
    let copy = |rows: usize, depth: usize| rows * odd_stride((word * depth).div_ceil(4)) * 4;
    let (mut largest, mut words) = (0, 0);
    if job.is_bf16() {
        words = attention::word_bytes(model.attention, rows);
        // Inputs, the gradients of linears that share one, and the gradients of the logits.
        for [q, k, v, o, gate, up, down] in &model.blocks {
            for group in [&[q, k, v][..], &[o], &[gate, up], &[down]] {
                let gradients = group.iter().map(|linear| copy(rows, linear.rows)).sum();
                largest = largest.max(gradients).max(copy(rows, group[0].cols));
            }
        }
        largest = largest.max(copy(chunk, model.vocab)).max(copy(chunk, model.hidden));
    }
    if job.method == Method::Full {
        // Transposed gradients.
        let widths = job.linears().map(|linear| copy(linear.rows, rows)).max().unwrap_or(0);
        largest = largest.max(widths);
    }
    if job.trains_embeddings {
        largest = largest.max(copy(model.vocab, chunk));
    }
    job.batch.threads * THREAD + 2 * BUFFER + largest + words
}

/// The most windows of `length` rows that `budget` holds with `recompute`; 0 if not even one.
pub fn largest_micro_batch(job: &Job, program: u64, budget: Budget, recompute: Recompute, length: usize) -> usize {
    const MOST: usize = 1024;
    let fits = |windows: usize| {
        let job = Job { recompute, ..job.with_batch(windows, length) };
        budget.holds(plan(&job, program, budget).peak())
    };
    let (mut low, mut high) = (0, 1);
    while high <= MOST && fits(high) {
        (low, high) = (high, 2 * high);
    }
    while high - low > 1 && low < MOST {
        let middle = (low + high) / 2;
        if fits(middle) {
            low = middle;
        } else {
            high = middle;
        }
    }
    low.min(MOST)
}

/// A run's job, the memory of the process beside it, and its budget.
#[derive(Debug, Clone)]
pub struct Situation {
    /// What the run's memory depends on.
    pub job: Job,
    /// Those of the configuration, or what it continues from.
    pub adapters: Adapters,
    /// The model's own configuration.
    pub model: ModelConfig,
    /// Program, tokenizer and text.
    pub program: u64,
    /// What the run may take.
    pub budget: Budget,
}

impl Situation {
    /// Reads what the plan of `config` depends on: config.json, the sizes of tokenizer and text, an adapter's options.
    ///
    /// # Errors
    /// A model without a sound configuration; an adapter that cannot be read.
    pub fn of(config: &RunConfig) -> Result<Situation> {
        let place = Path::new(&config.model);
        let model = config_of(place)?;
        let adapters = match config.adapter.as_deref().map(peft::read).transpose()? {
            Some(adapter) => {
                let embeddings = config.train_embeddings || !adapter.saved().is_empty();
                Adapters { lora: adapter.config, embeddings }
            }
            None => Adapters::fresh(config),
        };
        let threads = match config.training.threads {
            0 => rayon::current_num_threads(),
            threads => threads,
        };
        let job = Job::new(config, &model, &adapters, threads);
        let size = |path: &Path| std::fs::metadata(path).map_or(0, |about| about.len());
        let tokenizer = with_description(place, |folder| Ok(TOKENIZER_FACTOR * size(&folder.join("tokenizer.json"))))?;
        let program = device::resident_bytes() + PROGRAM + tokenizer + text_bytes(config);
        Ok(Situation { job, adapters, model, program, budget: Budget::new(config.training.memory_limit_gib) })
    }

    /// The plan.
    pub fn plan(&self) -> Plan {
        plan(&self.job, self.program, self.budget)
    }
}

/// Memory of the tokens of all text of a run, from the sizes of its files; 0 for what cannot be found.
fn text_bytes(config: &RunConfig) -> u64 {
    let own = config.data.all_paths();
    let sets = [&own].into_iter().chain(config.evaluation.iter().map(|set| &set.paths));
    let files = sets.flat_map(|paths| formats::find_files(paths).unwrap_or_default());
    let bytes: u64 = files
        .map(|file| {
            let packed = file.extension().is_some_and(|ending| ending == "gz" || ending == "zst");
            std::fs::metadata(&file).map_or(0, |about| about.len()) * if packed { COMPRESSION } else { 1 }
        })
        .sum();
    bytes / TEXT_BYTES_PER_TOKEN * size_of::<u32>() as u64
}

/// Decides before anything is loaded what each block keeps, and which stay decoded, and says what the run will take: of
/// the machine's memory, or of the GPU that is to compute it.
///
/// # Errors
/// The run cannot fit: with the cheapest changes that make it fit.
pub fn admit(config: &RunConfig, gpu: Option<&Gpu>, observer: &mut dyn Observer) -> Result<Plan> {
    let situation = Situation::of(config)?;
    let (plan, what, limit) = match gpu {
        None => {
            let plan = situation.plan();
            check(config, &situation, &plan)?;
            (plan, "memory", situation.budget.bytes)
        }
        Some(gpu) => {
            let (plan, limit) = gpu::admit(config, situation, gpu)?;
            (plan, "GPU memory", limit)
        }
    };
    let of = limit.map_or(String::new(), |limit| format!(" of {}", shown(limit)));
    observer.note(&format!("{what}: about {}{of}{}", shown(plan.peak()), choices(&plan)));
    Ok(plan)
}

/// What a plan chose: `; 2 of 8 blocks are computed again; ...`; nothing where it chose nothing.
fn choices(plan: &Plan) -> String {
    let layers = plan.keep.len();
    let again = match plan.recomputed() {
        0 => String::new(),
        blocks => format!("; {blocks} of {layers} blocks are computed again"),
    };
    match plan.cached {
        0 => again,
        blocks => format!("{again}; the weights of {blocks} of {layers} blocks stay decoded"),
    }
}

/// Refuses a plan that its budget does not hold.
///
/// # Errors
/// As [`admit`].
pub fn check(config: &RunConfig, situation: &Situation, plan: &Plan) -> Result<()> {
    match situation.budget.bytes.filter(|limit| plan.peak() > *limit) {
        None => Ok(()),
        Some(limit) => Err(refusal(config, situation, plan, limit)),
    }
}

fn refusal(config: &RunConfig, situation: &Situation, plan: &Plan, limit: u64) -> Error {
    let activations = plan.parts.saved + plan.parts.work + plan.parts.logits;
    let what = match situation.budget.configured {
        true => format!("training.memory_limit_gib allows {}", shown(limit)),
        false => format!("{} are free", shown(limit)),
    };
    let text = format!(
        "the run does not fit: it needs {} ({} of it for activations), {what}",
        shown(plan.peak()),
        shown(activations)
    );
    let hint = match remedies::lines(config, situation) {
        None => "no setting makes this model fit: use a smaller model, or a machine with more memory".to_string(),
        Some(lines) => format!("each of these is enough:\n  {lines}"),
    };
    Error::failed(text).hint(hint)
}

/// Bytes for a person.
pub fn shown(bytes: u64) -> String {
    let mib = bytes as f64 / f64::from(1 << 20);
    match mib {
        mib if mib >= 1024.0 => format!("{:.2} GiB", mib / 1024.0),
        mib if mib >= 10.0 => format!("{mib:.0} MiB"),
        mib => format!("{mib:.1} MiB"),
    }
}

#[cfg(test)]
mod tests;
