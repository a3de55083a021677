//! `llamantino plan`: what a run will take in memory and time, before anything is loaded.

use super::model_args::DeviceArgs;
use super::{hub, output};
use crate::config;
use crate::device;
use crate::error::Result;
use crate::model::Method;
use crate::train::config::RunConfig;
use crate::train::memory::amount::{self, Amount};
use crate::train::memory::{self, gpu, shown, time, Budget, Plan, Situation};
use crate::train::recompute::Recompute;
use crate::train::stages::{Recipe, Stage};
use clap::Args;
use serde_json::{json, Value};
use std::fmt::Write;
use std::path::PathBuf;

/// Arguments of `plan`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  llamantino plan my.toml\n  \
    llamantino plan my.toml --set training.micro_batch=8 --no-data --json\n  \
    llamantino plan my.toml --gpu-memory 24\n\n\
    Both columns are always shown: the CPU and a GPU. What is checked (and what batches are sought for) is the device\n\
    that --device or --gpu-memory names.")]
pub struct PlanArgs {
    /// The run's configuration (TOML). Of the model only its configuration and tokenizer are read.
    pub config: PathBuf,
    /// Replace a value of the configuration, e.g. `lora.r=32`; may be given again.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
    /// Of a chain of stages, plan those up to this one.
    #[arg(long, value_name = "NAME")]
    pub stage: Option<String>,
    /// Where the run is to compute.
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Plan for a GPU with so much free memory, in GiB, without asking for one.
    #[arg(long, value_name = "GIB", conflicts_with = "device", value_parser = gibibytes)]
    pub gpu_memory: Option<f64>,
    /// Leave the text alone: no count of steps and tokens from it.
    #[arg(long)]
    pub no_data: bool,
    /// Do not measure how fast this machine multiplies: no estimate of the time.
    #[arg(long)]
    pub no_time: bool,
    /// One JSON object instead of tables.
    #[arg(long)]
    pub json: bool,
}

/// GiB of a card.
fn gibibytes(text: &str) -> std::result::Result<f64, String> {
    let gib = text.parse().ok().filter(|gib| (0.1..=1e5).contains(gib));
    gib.ok_or_else(|| format!("expected GiB from 0.1 to 100000, found \"{text}\""))
}

/// Free bytes of the GPU that is planned for; `None`: the run computes on the CPU.
fn free_on_gpu(args: &PlanArgs) -> Result<Option<u64>> {
    if let Some(gib) = args.gpu_memory {
        return Ok(Some((gib * f64::from(1 << 30)) as u64));
    }
    let opened = args.device.device.open().map_err(|error| {
        let hint = error.hint_text().map_or(String::new(), |hint| format!("{hint}; "));
        error.hint(format!("{hint}`plan --gpu-memory 24` plans for a card that is not here"))
    })?;
    opened.note.iter().for_each(|note| output::note(note));
    opened.gpu.map(|driver| Ok(driver.memory()?.free as u64)).transpose()
}

/// What is planned beside the configuration.
struct Planner<'a> {
    args: &'a PlanArgs,
    free_on_gpu: Option<u64>,
    /// Operations a second of this machine, measured once.
    rate: Option<f64>,
}

/// Everything that is shown.
struct Outlook {
    situation: Situation,
    plan: Plan,
    on_gpu: Situation,
    gpu_plan: Plan,
    /// Whether a GPU is to compute it.
    uses_gpu: bool,
    /// `(length, most windows without recompute, most with)`.
    largest: Vec<(usize, usize, usize)>,
    amount: Option<Amount>,
    /// Operations a second, and seconds a token.
    speed: Option<(f64, f64)>,
}

/// Runs `plan`.
pub fn run(args: PlanArgs) -> Result<()> {
    let mut recipe: Recipe = config::load_file(&args.config, &args.overrides)?;
    let wanted = recipe.stages_up_to(args.stage.as_deref())?;
    recipe.run.model = hub::resolve_local(&recipe.run.model)?.to_string_lossy().into_owned();
    device::set_threads(Some(recipe.run.training.threads).filter(|threads| *threads > 0))?;
    let mut planner = Planner { args: &args, free_on_gpu: free_on_gpu(&args)?, rate: None };
    if recipe.stage.is_empty() {
        let outlook = Outlook::of(&recipe.run, &mut planner)?;
        match args.json {
            true => output::data(&format!("{}\n", outlook.json())),
            false => output::data(&outlook.table(&recipe.run)),
        }
        return outlook.check(&recipe.run);
    }
    let stages = recipe.stages()?;
    let mut outlooks = Vec::with_capacity(wanted.len());
    for stage in wanted.iter().map(|&index| &stages[index]) {
        let outlook = Outlook::of(&stage.planned, &mut planner);
        outlooks.push((stage, outlook.map_err(|error| error.at(format_args!("stage {}", stage.name)))?));
    }
    match args.json {
        true => {
            let named = |(stage, outlook): &(&Stage, Outlook)| json!({"stage": stage.name, "plan": outlook.json()});
            let stages: Vec<Value> = outlooks.iter().map(named).collect();
            output::data(&format!("{}\n", json!({ "stages": stages })));
        }
        false => outlooks.iter().for_each(|(stage, outlook)| {
            output::data(&format!("stage {}\n{}\n", stage.name, outlook.table(&stage.planned)));
        }),
    }
    outlooks.iter().try_for_each(|(stage, outlook)| {
        outlook.check(&stage.planned).map_err(|error| error.at(format_args!("stage {}", stage.name)))
    })
}

/// The largest micro-batches of some lengths around the configured one.
fn largest(situation: &Situation) -> Vec<(usize, usize, usize)> {
    let (job, own) = (&situation.job, situation.job.batch.length);
    let longest = situation.model.max_position_embeddings.max(own);
    let mut lengths: Vec<usize> = [256, 512, 1024, 2048, 4096].into_iter().filter(|l| *l <= longest).collect();
    lengths.push(own);
    lengths.sort_unstable();
    lengths.dedup();
    let most =
        |recompute, length| memory::largest_micro_batch(job, situation.program, situation.budget, recompute, length);
    lengths.into_iter().map(|length| (length, most(Recompute::Off, length), most(Recompute::On, length))).collect()
}

impl Outlook {
    /// Plans a run.
    fn of(config: &RunConfig, planner: &mut Planner<'_>) -> Result<Outlook> {
        let Planner { args, free_on_gpu, rate } = planner;
        let situation = Situation::of(config)?;
        let on_gpu = situation.clone().on_gpu(*free_on_gpu);
        let (plan, gpu_plan) = (situation.plan(), on_gpu.plan());
        let amount = match args.no_data {
            true => None,
            false => amount::of_text(config, situation.model.vocab_size).map(Some).unwrap_or_else(|error| {
                output::warning(&format!("steps are not counted: {error}"));
                None
            }),
        };
        let uses_gpu = free_on_gpu.is_some();
        // What is measured is the CPU.
        let speed = (!args.no_time && !uses_gpu).then(|| {
            let rate = *rate.get_or_insert_with(|| time::measured_rate(&situation.job));
            (rate, time::seconds_per_token(&situation.job, &plan.keep, rate))
        });
        Ok(Outlook {
            largest: largest(if uses_gpu { &on_gpu } else { &situation }),
            amount: amount.or_else(|| amount::of_steps(config)),
            speed,
            situation,
            plan,
            on_gpu,
            gpu_plan,
            uses_gpu,
        })
    }

    /// Refuses a run that does not fit where it is to compute.
    fn check(&self, config: &RunConfig) -> Result<()> {
        match self.uses_gpu {
            false => memory::check(config, &self.situation, &self.plan),
            true => memory::check(config, &self.on_gpu, &self.gpu_plan),
        }
    }

    fn table(&self, config: &RunConfig) -> String {
        let Situation { job, model, budget, .. } = &self.situation;
        let mut text = String::new();
        let form = match (job.method, job.quantization) {
            (Method::Full, _) => "every weight trained".to_string(),
            (_, Some(config)) => format!("base in NF4 (block {})", config.block),
            (_, None) => format!("base in {} bytes a weight", job.stored_bytes),
        };
        let _ = writeln!(
            text,
            "{}: {} blocks, hidden {}, vocabulary {}; {form}",
            config.model, model.layers, model.hidden_size, model.vocab_size
        );
        let _ = writeln!(
            text,
            "micro-batch {} x {} rows, {} to a step, {:?} operands, {} threads\n",
            job.batch.windows, job.batch.length, config.training.accumulation, job.batch.compute, job.batch.threads
        );
        let mut row = |name: &str, cpu: &str, gpu: &str| {
            let _ = writeln!(text, "{}", format!("{name:<28} {cpu:>10} {gpu:>10}").trim_end());
        };
        row("", "CPU", "GPU");
        for ((name, bytes), (_, gpu)) in self.plan.parts.list().iter().zip(self.gpu_plan.parts.list()) {
            row(name, &shown(*bytes), &shown(gpu));
        }
        let gpu_peak = self.gpu_plan.peak();
        row("while training", &shown(self.plan.parts.total()), &shown(self.gpu_plan.parts.total()));
        row("while loading", &shown(self.plan.loading), &shown(self.gpu_plan.loading));
        row("while writing the result", &shown(self.plan.saving), "");
        row("peak", &shown(self.plan.peak()), &shown(gpu_peak));
        let known = |budget: &Budget| budget.bytes.map_or("unknown".into(), shown);
        let name = if budget.configured { "limit" } else { "available" };
        row(name, &known(budget), &known(&self.on_gpu.budget));
        let again = |plan: &Plan| format!("{} of {}", plan.recomputed(), model.layers);
        row("blocks computed again", &again(&self.plan), &again(&self.gpu_plan));
        row("blocks decoded once", "", &format!("{} of {}", self.gpu_plan.cached, model.layers));
        let host = shown(gpu::host_bytes(&self.situation));
        let _ =
            writeln!(text, "A run on a GPU takes {host} of the machine's memory as well. No GPU was compared yet.\n");
        let device = if self.uses_gpu { "largest micro-batch (GPU)" } else { "largest micro-batch (CPU)" };
        let _ = writeln!(text, "{device:<28} {:>10} {:>16}", "all kept", "all again");
        for (length, kept, again) in &self.largest {
            let _ = writeln!(text, "  length {length:<19} {:>10} {:>16}", most(*kept), most(*again));
        }
        text + &self.duration()
    }

    fn duration(&self) -> String {
        let mut text = String::from("\n");
        if let Some(Amount { steps, rows, epoch }) = self.amount {
            let _ = writeln!(text, "{steps} steps, {rows} tokens");
            if let Some(epoch) = epoch {
                let (documents, windows) = (epoch.documents, epoch.windows);
                let _ = writeln!(
                    text,
                    "an epoch: {documents} documents in {windows} windows, {} tokens, {} steps",
                    epoch.rows, epoch.steps
                );
            }
        }
        if let Some((rate, seconds)) = self.speed {
            let speed = 1.0 / seconds;
            let _ = writeln!(text, "about {speed:.0} tokens/s ({:.0} GFLOP/s measured on products)", rate / 1e9);
            if let Some(amount) = self.amount {
                let _ = writeln!(text, "about {} of training", lasting(seconds * amount.rows as f64));
            }
        }
        text
    }

    fn json(&self) -> Value {
        let Situation { job, budget, .. } = &self.situation;
        let largest: Vec<Value> = self
            .largest
            .iter()
            .map(|(length, kept, again)| json!({"length": length, "all_kept": kept, "all_again": again}))
            .collect();
        json!({
            "cpu": {
                "parts": self.plan.parts, "training": self.plan.parts.total(), "loading": self.plan.loading,
                "saving": self.plan.saving, "peak": self.plan.peak(), "keep": self.plan.keep,
                "recomputed_blocks": self.plan.recomputed(), "fits": budget.holds(self.plan.peak()),
            },
            "gpu_estimate": {
                "parts": self.gpu_plan.parts, "peak": self.gpu_plan.peak(), "keep": self.gpu_plan.keep,
                "recomputed_blocks": self.gpu_plan.recomputed(), "decoded_blocks": self.gpu_plan.cached,
                "loading": self.gpu_plan.loading, "budget": self.on_gpu.budget,
                "fits": self.on_gpu.budget.holds(self.gpu_plan.peak()), "host": gpu::host_bytes(&self.situation),
            },
            "device": if self.uses_gpu { "cuda" } else { "cpu" },
            "budget": budget, "threads": job.batch.threads, "largest_micro_batch": largest, "amount": self.amount,
            "flops_per_s": self.speed.map(|(rate, _)| rate), "tokens_per_s": self.speed.map(|(_, s)| 1.0 / s),
            "seconds": self.speed.zip(self.amount).map(|((_, seconds), amount)| seconds * amount.rows as f64),
        })
    }
}

fn most(windows: usize) -> String {
    match windows {
        0 => "none".into(),
        1024 => "1024 or more".into(),
        windows => windows.to_string(),
    }
}

/// Seconds for a person.
fn lasting(seconds: f64) -> String {
    match seconds {
        s if s < 90.0 => format!("{s:.0} s"),
        s if s < 5400.0 => format!("{:.0} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.1} h", s / 3600.0),
        s => format!("{:.1} days", s / 86_400.0),
    }
}
