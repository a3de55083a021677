//! `llamantino plan`: what a run will take in memory and time, before anything is loaded.

use super::{hub, output};
use crate::config;
use crate::device;
use crate::error::Result;
use crate::model::{Keep, Method};
use crate::train::config::RunConfig;
use crate::train::memory::amount::{self, Amount};
use crate::train::memory::{self, gpu, shown, time, Parts, Plan, Situation};
use crate::train::recompute::Recompute;
use crate::train::stages::{Recipe, Stage};
use clap::Args;
use serde_json::{json, Value};
use std::fmt::Write;
use std::path::PathBuf;

/// Arguments of `plan`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  llamantino plan my.toml\n  \
    llamantino plan my.toml --set training.micro_batch=8 --no-data --json")]
pub struct PlanArgs {
    /// The run's configuration (TOML). Of the model only its configuration and tokenizer are read.
    pub config: PathBuf,
    /// Replace a value of the configuration, e.g. `lora.r=32`; may be given again.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
    /// Of a chain of stages, plan those up to this one.
    #[arg(long, value_name = "NAME")]
    pub stage: Option<String>,
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

/// Everything that is shown.
struct Outlook {
    situation: Situation,
    plan: Plan,
    gpu: Parts,
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
    if recipe.stage.is_empty() {
        let outlook = Outlook::of(&recipe.run, &args, &mut None)?;
        match args.json {
            true => output::data(&format!("{}\n", outlook.json())),
            false => output::data(&outlook.table(&recipe.run)),
        }
        return memory::check(&recipe.run, &outlook.situation, &outlook.plan);
    }
    let stages = recipe.stages()?;
    let mut rate = None;
    let mut outlooks = Vec::with_capacity(wanted.len());
    for stage in wanted.iter().map(|&index| &stages[index]) {
        let outlook = Outlook::of(&stage.planned, &args, &mut rate);
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
        memory::check(&stage.planned, &outlook.situation, &outlook.plan)
            .map_err(|error| error.at(format_args!("stage {}", stage.name)))
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
    /// Plans a run. `rate`, the operations a second of this machine, is measured once.
    fn of(config: &RunConfig, args: &PlanArgs, rate: &mut Option<f64>) -> Result<Outlook> {
        let situation = Situation::of(config)?;
        let plan = situation.plan();
        let amount = match args.no_data {
            true => None,
            false => amount::of_text(config, situation.model.vocab_size).map(Some).unwrap_or_else(|error| {
                output::warning(&format!("steps are not counted: {error}"));
                None
            }),
        };
        let speed = (!args.no_time).then(|| {
            let rate = *rate.get_or_insert_with(|| time::measured_rate(&situation.job));
            (rate, time::seconds_per_token(&situation.job, &plan.keep, rate))
        });
        let keep = if situation.job.recompute == Recompute::On { Keep::Input } else { Keep::Light };
        Ok(Outlook {
            gpu: gpu::parts(&situation.job, keep),
            largest: largest(&situation),
            amount: amount.or_else(|| amount::of_steps(config)),
            speed,
            plan,
            situation,
        })
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
        let _ = writeln!(text, "{:<28} {:>10} {:>16}", "", "CPU", "GPU (estimate)");
        for ((name, bytes), (_, gpu)) in self.plan.parts.list().iter().zip(self.gpu.list()) {
            let _ = writeln!(text, "{name:<28} {:>10} {:>16}", shown(*bytes), shown(gpu));
        }
        let total = self.plan.parts.total();
        let _ = writeln!(text, "{:<28} {:>10} {:>16}", "while training", shown(total), shown(self.gpu.total()));
        let _ = writeln!(text, "{:<28} {:>10}", "while loading", shown(self.plan.loading));
        let _ = writeln!(text, "{:<28} {:>10}", "while writing the result", shown(self.plan.saving));
        let limit = budget.bytes.map_or("unknown".into(), shown);
        let name = if budget.configured { "limit" } else { "available" };
        let _ = writeln!(text, "{:<28} {:>10}\n{name:<28} {limit:>10}", "peak", shown(self.plan.peak()));
        let _ = writeln!(text, "{:<28} {:>4} of {}\n", "blocks computed again", self.plan.recomputed(), model.layers);
        let _ = writeln!(text, "{:<28} {:>10} {:>16}", "largest micro-batch (CPU)", "all kept", "all again");
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
            "gpu_estimate": {"parts": self.gpu, "peak": self.gpu.total()},
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
