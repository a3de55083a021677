//! A run from configuration to results: folder, data, model, evaluations, steps, adapter.
//!
//! ```text
//! runs/<name>/  config.toml (resolved)   log.jsonl   adapter/ (PEFT files) or model/ (method = "full")
//! ```

use super::config::RunConfig;
use super::evaluate::{evaluate, Evaluation};
use super::metrics::{EvalRow, Log, Row, StepRow};
use super::step::{Engine, StepReport, StepSettings};
use crate::adapter::peft::{self, Provenance};
use crate::data::batch::{evaluation_batches, BatchSettings, Batches, MicroBatch};
use crate::data::corpus::TokenizedCorpus;
use crate::data::load::{load_text, TextData};
use crate::data::tokenize::Tokenizer;
use crate::data::TextDataConfig;
use crate::device;
use crate::error::{Error, Result};
use crate::export::full;
use crate::model::random::RandomWeights;
use crate::model::weights::{base_hash, HashDepth};
use crate::model::{self, Checkpoint, Keep, LoadOptions, Method, ModelConfig, TensorSource};
use crate::ops::{Arena, Gradients};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// What a run tells as it goes on.
pub trait Observer {
    /// Something worth knowing.
    fn note(&mut self, text: &str);
    /// Something that may be wrong.
    fn warning(&mut self, text: &str);
    /// Part `done` of `total` of a phase such as "loading the model" is finished.
    fn phase(&mut self, what: &str, done: usize, total: usize);
    /// A step is done.
    fn step(&mut self, row: &StepRow, total: u64);
    /// An evaluation is done.
    fn evaluation(&mut self, row: &EvalRow);
}

/// What a run leaves behind.
#[derive(Debug, Clone)]
pub struct RunSummary {
    /// The run's folder.
    pub folder: PathBuf,
    /// The adapter's folder, or the model's with `method = "full"`.
    pub result: PathBuf,
    /// Optimizer steps done.
    pub steps: u64,
    /// Rows seen.
    pub tokens: u64,
    /// Seconds of the steps.
    pub seconds: f64,
    /// First and last evaluation of each held-out set.
    pub evaluations: Vec<(EvalRow, EvalRow)>,
}

/// Runs the configuration.
pub fn run(config: &RunConfig, observer: &mut dyn Observer) -> Result<RunSummary> {
    let folder = prepare_folder(config)?;
    let mut run = Run::load(config, &folder, observer)?;
    let first = run.evaluate(0, observer)?;
    let start = Instant::now();
    let total = run.total_steps;
    let mut skipped = 0;
    for step in 0..total {
        let report = run.step(step, observer)?;
        if !report.updated {
            skipped += 1;
            if skipped >= config.training.max_skipped_steps {
                return Err(Error::failed(format!("{skipped} steps in a row had a non-finite loss or gradient"))
                    .hint("lower optimizer.learning_rate, or check the data with a small run"));
            }
        } else {
            skipped = 0;
        }
        let every = config.training.evaluate_every;
        if every > 0 && (step + 1).is_multiple_of(every) && step + 1 < total {
            run.evaluate(step + 1, observer)?;
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    let last = run.evaluate(total, observer)?;
    let result = run.save(config)?;
    let evaluations = first.into_iter().zip(last).collect();
    Ok(RunSummary { folder, result, steps: total, tokens: run.tokens, seconds, evaluations })
}

/// Creates the run's folder and writes the resolved configuration into it.
fn prepare_folder(config: &RunConfig) -> Result<PathBuf> {
    let folder = config.folder();
    if folder.join("log.jsonl").exists() {
        return Err(Error::usage(format!("{}: a run of this name exists", folder.display()))
            .hint("choose another name (--set name=\"...\") or remove that folder"));
    }
    std::fs::create_dir_all(&folder).map_err(|error| Error::io(&folder, "create", error))?;
    let path = folder.join("config.toml");
    std::fs::write(&path, config.to_toml()?).map_err(|error| Error::io(&path, "write", error))?;
    Ok(folder)
}

/// What a run trains on and measures itself by.
struct Corpora {
    train: Batches,
    held_out: Vec<(String, Vec<MicroBatch>)>,
}

impl Corpora {
    fn load(config: &RunConfig, tokenizer: &Tokenizer, observer: &mut dyn Observer) -> Result<Corpora> {
        let TextData { train, held_out, report } = load_text(&config.data, tokenizer, &mut |_| {})?;
        if report.bad_lines.count > 0 {
            let (count, first) = (report.bad_lines.count, report.bad_lines.first.join("\n  "));
            observer.warning(&format!("{count} unusable lines skipped, the first:\n  {first}"));
        }
        let mut sets: Vec<(String, TokenizedCorpus)> = held_out.into_iter().map(|c| ("held-out".into(), c)).collect();
        for set in &config.evaluation {
            let section = TextDataConfig { paths: set.paths.clone(), ..TextDataConfig::default() };
            sets.push((set.name.clone(), load_text(&section, tokenizer, &mut |_| {})?.train));
        }
        for (name, corpus) in [("training", &train)].into_iter().chain(sets.iter().map(|(n, c)| (n.as_str(), c))) {
            let (documents, tokens, bytes) = (corpus.len(), corpus.text_tokens(), corpus.text_bytes());
            observer.note(&format!("{name}: {documents} documents, {tokens} tokens, {:.1} KB", bytes as f64 / 1e3));
        }
        let settings = BatchSettings {
            sequence_length: config.data.sequence_length,
            packing: config.data.packing,
            windows: config.training.micro_batch,
            seed: config.seed,
        };
        let batches = |c: &TokenizedCorpus| evaluation_batches(c, settings.sequence_length, settings.windows).collect();
        let held_out = sets.iter().map(|(name, corpus)| (name.clone(), batches(corpus))).collect();
        Ok(Corpora { train: Batches::new(Arc::new(train), settings)?, held_out })
    }
}

struct Run {
    engine: Engine,
    corpora: Corpora,
    log: Log,
    config: RunConfig,
    total_steps: u64,
    tokens: u64,
}

impl Run {
    fn load(config: &RunConfig, folder: &Path, observer: &mut dyn Observer) -> Result<Run> {
        let model_folder = PathBuf::from(&config.model);
        let model_config = ModelConfig::from_folder(&model_folder)?;
        let source: Box<dyn TensorSource> = match config.from_scratch {
            true => Box::new(RandomWeights::new(config.seed, model_config.initializer_range() as f32)),
            false => Box::new(Checkpoint::open(&model_folder)?),
        };
        let tokenizer = Tokenizer::load(&model_folder, Some(model_config.vocab_size))?;
        tokenizer.warnings().iter().for_each(|warning| observer.warning(warning));
        let corpora = Corpora::load(config, &tokenizer, observer)?;

        let continued = config.adapter.as_deref().map(peft::read).transpose()?;
        let mut options = LoadOptions::training(config.method, config.quantization, &config.lora, config.seed);
        options.positions = config.data.sequence_length;
        if let Some(adapter) = &continued {
            options.lora = Some(adapter.config.clone());
        }
        let (mut model, mut params) = model::load(&model_config, source.as_ref(), &options, &mut |done, total| {
            observer.phase("loading the model", done, total);
        })?;
        if let Some(adapter) = continued {
            adapter.apply(&mut model, &mut params)?;
        }
        if params.is_empty() {
            return Err(Error::usage("nothing would be trained: lora.targets names no linear of this model"));
        }
        let keep = if config.training.recompute { Keep::Input } else { Keep::Light };
        let settings = StepSettings {
            compute: config.training.compute,
            keep: vec![keep; model.blocks.len()],
            max_grad_norm: config.optimizer.max_grad_norm,
            neftune_alpha: config.training.neftune_alpha,
            sequence_length: config.data.sequence_length,
            seed: config.seed,
        };
        observer.note(&format!(
            "{} trainable values in {} tensors, base {:.1} MiB in memory",
            params.numel(),
            params.len(),
            model.frozen_bytes() as f64 / f64::from(1 << 20),
        ));
        let optimizer = config.optimizer.build(&params);
        let grads = Gradients::zeros(&params);
        let engine = Engine { model, params, grads, optimizer, arena: Arena::new(), settings };
        let log = Log::append(&folder.join("log.jsonl"))?;
        let config = config.clone();
        let mut run = Run { engine, corpora, log, config, total_steps: 0, tokens: 0 };
        run.total_steps = run.count_steps();
        Ok(run)
    }

    /// `training.steps`, or what `training.epochs` give.
    fn count_steps(&self) -> u64 {
        let training = &self.config.training;
        if training.steps > 0 {
            return training.steps;
        }
        let per_epoch = self.corpora.train.steps_per_epoch(training.accumulation as u64) as f64;
        ((per_epoch * training.epochs).ceil() as u64).max(1)
    }

    fn step(&mut self, step: u64, observer: &mut dyn Observer) -> Result<StepReport> {
        let (training, total) = (&self.config.training, self.total_steps);
        let count = self.corpora.train.left_in_epoch().min(training.accumulation as u64);
        let batches: Vec<_> = (0..count).map(|_| self.corpora.train.next_micro_batch()).collect();
        let rates = self.config.optimizer.learning_rates(self.config.schedule.multiplier(step, total));
        let start = Instant::now();
        let report = self.engine.step(step, &batches, &rates);
        self.tokens += report.tokens as u64;
        let row = StepRow {
            step: step + 1,
            loss: report.loss,
            lr: rates.base,
            grad_norm: report.grad_norm,
            tokens: self.tokens,
            tokens_per_s: report.tokens as f64 / start.elapsed().as_secs_f64(),
            rss_mib: device::resident_bytes() >> 20,
        };
        if report.updated {
            observer.step(&row, total);
            self.log.write(&Row::Step(row))?;
        } else {
            let reason = format!("loss {}, gradient norm {}", report.loss, report.grad_norm);
            observer.warning(&format!("step {} left out: {reason}", step + 1));
            self.log.write(&Row::Skip { step: step + 1, reason })?;
        }
        Ok(report)
    }

    fn evaluate(&mut self, step: u64, observer: &mut dyn Observer) -> Result<Vec<EvalRow>> {
        let mut results = Vec::new();
        for (name, batches) in &self.corpora.held_out {
            let Engine { model, params, arena, settings, .. } = &mut self.engine;
            let evaluation = Evaluation { params, arena, compute: settings.compute };
            let row = evaluate(model, evaluation, batches, (name, step), &mut |done, total| {
                observer.phase("evaluating", done, total);
            });
            observer.evaluation(&row);
            self.log.write(&Row::Eval(row.clone()))?;
            results.push(row);
        }
        Ok(results)
    }

    fn save(&self, config: &RunConfig) -> Result<PathBuf> {
        let Engine { model, params, .. } = &self.engine;
        if config.method == Method::Full {
            let out = config.folder().join("model");
            full::write(&out, &model.config.raw, Path::new(&config.model), params, config.save_dtype)?;
            return Ok(out);
        }
        let out = config.folder().join("adapter");
        let hash = base_hash(&Checkpoint::open(Path::new(&config.model))?, HashDepth::Full)?;
        let provenance = Provenance::new(&config.model, hash, config.method);
        peft::write(&out, model, params, &provenance)?;
        Ok(out)
    }
}
