//! What to change where a run does not fit, the cheapest first.
//!
//! Cheap is what costs neither numbers nor time; dear is what changes what is learned. Each proposal alone is enough, as
//! the plan of the changed configuration says. Where single changes are not, they are put together in the same order.

use super::job::{Adapters, Job};
use super::{plan, shown, Situation};
use crate::device::Compute;
use crate::model::Method;
use crate::optim::OptimizerKind;
use crate::train::cache_weights::CacheWeights;
use crate::train::config::RunConfig;
use crate::train::recompute::Recompute;
use std::fmt;

/// Changes of a configuration that make a run fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remedy {
    /// `key=value` of each changed key.
    pub settings: Vec<String>,
    /// The peak with them.
    pub peak: u64,
    /// What they cost.
    pub cost: String,
}

impl fmt::Display for Remedy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let settings: Vec<String> = self.settings.iter().map(|setting| format!("--set {setting}")).collect();
        write!(f, "{}  ({}; {})", settings.join(" "), shown(self.peak), self.cost)
    }
}

/// One change and what it costs.
struct Change {
    settings: Vec<String>,
    cost: &'static str,
    apply: Box<dyn Fn(&mut RunConfig)>,
}

impl Change {
    fn new(settings: &[String], cost: &'static str, apply: impl Fn(&mut RunConfig) + 'static) -> Change {
        Change { settings: settings.to_vec(), cost, apply: Box::new(apply) }
    }
}

/// Everything that could be changed in `config`, the cheapest first. A GPU computes in bf16 anyway.
fn changes(config: &RunConfig, job: &Job, has_own_adapter: bool) -> Vec<Change> {
    let Job { on_gpu, is_quantized, .. } = *job;
    let mut changes = Vec::new();
    let set = |key: &str, value: &dyn fmt::Display| format!("{key}={value}");
    if config.training.recompute == Recompute::Off {
        changes.push(Change::new(
            &[set("training.recompute", &"auto")],
            "the same numbers, up to a third slower",
            |config| config.training.recompute = Recompute::Auto,
        ));
    }
    if on_gpu && config.training.cache_weights == CacheWeights::On {
        changes.push(Change::new(
            &[set("training.cache_weights", &"auto")],
            "the same numbers, a little slower",
            |config| config.training.cache_weights = CacheWeights::Auto,
        ));
    }
    let windows = config.training.micro_batch;
    if windows > 1 {
        let accumulation = config.training.accumulation.saturating_mul(windows);
        changes.push(Change::new(
            &[set("training.micro_batch", &1), set("training.accumulation", &accumulation)],
            "the same gradients, a little slower",
            move |config| (config.training.micro_batch, config.training.accumulation) = (1, accumulation),
        ));
    }
    if config.training.compute == Compute::F32 && !on_gpu {
        changes.push(Change::new(
            &[set("training.compute", &"bf16")],
            "operands and kept activations rounded to bf16, faster",
            |config| config.training.compute = Compute::Bf16,
        ));
    }
    if config.optimizer.kind == OptimizerKind::AdamW {
        let cost = match on_gpu {
            true => "optimizer state in 8 bits and masters in the machine's memory, where the CPU updates: slower",
            false => "optimizer state in 8 bits",
        };
        changes.push(Change::new(&[set("optimizer.kind", &"adamw8bit")], cost, |config| {
            config.optimizer.kind = OptimizerKind::AdamW8;
        }));
    }
    let is_quantized_here = config.method == Method::Qlora && !is_quantized;
    if is_quantized_here && !config.quantization.double {
        changes.push(Change::new(&[set("quantization.double", &true)], "scales of the base in 8 bits", |config| {
            config.quantization.double = true;
        }));
    }
    match config.method {
        Method::Qlora => {}
        Method::Lora => changes.push(Change::new(&[set("method", &"qlora")], "the base in 4 bits", |config| {
            config.method = Method::Qlora;
        })),
        Method::Full if !config.from_scratch => {
            changes.push(Change::new(&[set("method", &"lora")], "adapters instead of every weight", |config| {
                config.method = Method::Lora;
            }));
            changes.push(Change::new(
                &[set("method", &"qlora")],
                "adapters instead of every weight, the base in 4 bits",
                |config| config.method = Method::Qlora,
            ));
        }
        Method::Full => {}
    }
    if config.train_embeddings {
        changes.push(Change::new(
            &[set("train_embeddings", &false)],
            "embeddings and head stay as they are",
            |config| config.train_embeddings = false,
        ));
    }
    let rank = config.lora.r;
    if has_own_adapter && config.method != Method::Full && rank > 8 {
        changes.push(Change::new(&[set("lora.r", &8)], "a smaller adapter learns less", |config| config.lora.r = 8));
    }
    for part in [2, 4, 8] {
        let length = config.data.sequence_length / part;
        if length >= 64 {
            changes.push(Change::new(
                &[set("data.sequence_length", &length)],
                "the model sees less text at a time",
                move |config| config.data.sequence_length = length,
            ));
        }
    }
    changes
}

/// At most `count` ways to make the run of `config` fit.
pub fn cheapest(config: &RunConfig, situation: &Situation, count: usize) -> Vec<Remedy> {
    let has_own_adapter = config.adapter.is_none();
    let on_gpu = situation.job.on_gpu;
    let changes = changes(config, &situation.job, has_own_adapter);
    let peak = |config: &RunConfig| {
        let adapters = if has_own_adapter { Adapters::fresh(config) } else { situation.adapters.clone() };
        let job = Job { on_gpu, ..Job::new(config, &situation.model, &adapters, situation.job.batch.threads) };
        plan(&job, situation.program, situation.budget).peak()
    };
    let try_all = |chosen: &[&Change]| {
        let mut changed = config.clone();
        chosen.iter().for_each(|change| (change.apply)(&mut changed));
        let peak = peak(&changed);
        let costs: Vec<&str> = chosen.iter().map(|change| change.cost).collect();
        let settings: Vec<String> = chosen.iter().flat_map(|change| change.settings.clone()).collect();
        situation.budget.holds(peak).then(|| Remedy { settings: deduplicated(settings), peak, cost: costs.join("; ") })
    };
    let mut remedies: Vec<Remedy> = changes.iter().filter_map(|change| try_all(&[change])).take(count).collect();
    // Together: each prefix that is enough, from the shortest on.
    for length in 2..=changes.len() {
        if remedies.len() >= count {
            break;
        }
        let chosen: Vec<&Change> = changes[..length].iter().collect();
        let Some(remedy) = try_all(&chosen) else { continue };
        // One change of these that is enough alone says all there is to say.
        let is_news = remedies.iter().all(|known| !known.settings.iter().all(|s| remedy.settings.contains(s)));
        if is_news {
            remedies.push(remedy);
        }
    }
    remedies
}

/// The three cheapest ways for a hint, one a line; none where nothing is enough.
pub(super) fn lines(config: &RunConfig, situation: &Situation) -> Option<String> {
    let lines: Vec<String> = cheapest(config, situation, 3).iter().map(ToString::to_string).collect();
    (!lines.is_empty()).then(|| lines.join("\n  "))
}

/// The last value of each key, in the order of the keys' first mention.
fn deduplicated(settings: Vec<String>) -> Vec<String> {
    let key = |setting: &str| setting.split('=').next().unwrap_or(setting).to_string();
    let mut kept: Vec<String> = Vec::new();
    for setting in settings {
        match kept.iter_mut().find(|other| key(other) == key(&setting)) {
            Some(other) => *other = setting,
            None => kept.push(setting),
        }
    }
    kept
}
