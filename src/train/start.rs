//! Before the first step: text, model, adapters and optimizer from the configuration, and the state of a checkpoint on top.
//!
//! Everything is made exactly as for a new run; a checkpoint then replaces the master values, the optimizer's state and
//! the counters. The base and the data must hold what they held then.

use super::config::RunConfig;
use super::folder::{RunFolder, LOG_FILE};
use super::gpu::OnGpu;
use super::guards::{SkipCounter, SpikeDetector};
use super::kept::{self, Earlier};
use super::memory::Plan;
use super::metrics::{EvalRow, Log};
use super::run::{Observer, Run, RunOptions};
use super::step::{Engine, StepSettings};
use super::tensorboard::EventFile;
use crate::adapter::peft::{self, Provenance};
use crate::checkpoint::Restored;
use crate::data::batch::{evaluation_batches, BatchCursor, BatchSettings, Batches, MicroBatch};
use crate::data::corpus::TokenizedCorpus;
use crate::data::load::{self, Data};
use crate::data::tokenize::Tokenizer;
use crate::data::DataConfig;
use crate::device;
use crate::error::{Error, Result};
use crate::model::open::{config_of, with_description};
use crate::model::random::RandomWeights;
use crate::model::{self, LoadOptions, ModelConfig, OpenModel, TensorSource};
use crate::ops::gpu::Gpu;
use crate::ops::{Arena, Gradients};
use std::path::Path;
use std::sync::Arc;

/// What a run trains on and measures itself by.
pub struct Corpora {
    /// Training batches.
    pub train: Batches,
    /// Name and batches of each held-out set.
    pub held_out: Vec<(String, Vec<MicroBatch>)>,
}

impl Corpora {
    /// `model` is the folder that describes the model.
    fn load(
        (config, chain): (&RunConfig, Option<&[Earlier]>),
        (tokenizer, model): (&Tokenizer, &Path),
        observer: &mut dyn Observer,
    ) -> Result<Corpora> {
        let Data { train, held_out: mut sets, report } = read(&config.data, tokenizer, model, observer)?;
        if chain.is_some() {
            kept::keep(&config.folder(), &sets, tokenizer)?;
        }
        if report.bad_lines.count > 0 {
            let (count, first) = (report.bad_lines.count, report.bad_lines.first.join("\n  "));
            observer.warning(&format!("{count} unusable records skipped, the first:\n  {first}"));
        }
        for set in &config.evaluation {
            let section = DataConfig {
                format: set.format.clone(),
                template: set.template.clone(),
                sequence_length: config.data.sequence_length,
                cache: config.data.cache.clone(),
                ..DataConfig::of_paths(&set.paths)
            };
            sets.push((set.name.clone(), read(&section, tokenizer, model, observer)?.train));
        }
        for earlier in chain.into_iter().flatten() {
            match kept::of(earlier, tokenizer) {
                Ok(kept) => sets.extend(kept),
                Err(error) => observer.warning(&format!(
                    "what is left of stage {} cannot be measured by what it held out: {error}",
                    earlier.stage
                )),
            }
        }
        for (name, corpus) in [("training", &train)].into_iter().chain(sets.iter().map(|(n, c)| (n.as_str(), c))) {
            let (documents, tokens, bytes) = (corpus.len(), corpus.text_tokens(), corpus.text_bytes());
            observer.note(&format!("{name}: {documents} documents, {tokens} tokens, {:.1} KB", bytes as f64 / 1e3));
        }
        let settings = BatchSettings {
            sequence_length: config.data.sequence_length,
            packing: config.data.packing,
            group_by_length: config.data.group_by_length,
            windows: config.training.micro_batch,
            seed: config.seed,
        };
        let batches = |c: &TokenizedCorpus| evaluation_batches(c, settings.sequence_length, settings.windows).collect();
        let held_out = sets.iter().map(|(name, corpus)| (name.clone(), batches(corpus))).collect();
        Ok(Corpora { train: Batches::new(Arc::new(train), settings)?, held_out })
    }
}

/// Reads a `[data]` section and tells what was found.
fn read(section: &DataConfig, tokenizer: &Tokenizer, model: &Path, observer: &mut dyn Observer) -> Result<Data> {
    let data = load::load(section, tokenizer, model, &mut |progress| {
        let mib = |bytes: u64| (bytes >> 20) as usize;
        observer.phase("reading the data (MiB)", mib(progress.bytes_done), mib(progress.bytes_total));
    })?;
    for source in &data.report.sources {
        observer.note(&format!("{}: {}", source.name, source.recognised.join("; ")));
        source.warnings.iter().for_each(|warning| observer.warning(warning));
        if source.dropped_long > 0 {
            let what = "do not fit data.sequence_length and are left out (data.long_examples)";
            observer.warning(&format!("{}: {} examples {what}", source.name, source.dropped_long));
        }
    }
    Ok(data)
}

impl Run {
    /// A run ready for its next step.
    ///
    /// # Errors
    /// Anything about model, adapter or text; nothing to train; a checkpoint of another base, other data or other
    /// parameters.
    pub(super) fn start(
        (config, options): (&RunConfig, &RunOptions<'_>),
        plan: Plan,
        folder: RunFolder,
        restored: Option<Restored>,
        observer: &mut dyn Observer,
    ) -> Result<Run> {
        let place = Path::new(&config.model);
        let model_config = config_of(place)?;
        let (source, base_hash): (Box<dyn TensorSource>, String) = match config.from_scratch {
            true => {
                let std = model_config.initializer_range() as f32;
                (Box::new(RandomWeights::new(config.seed, std)), "random weights".into())
            }
            false => {
                let base = OpenModel::open(place)?;
                let hash = base.hash()?;
                check_adapter(config, &base, &hash)?;
                (base.into_source(), hash)
            }
        };
        let then = restored.as_ref().map(|restored| (&*restored.path, &restored.state));
        check_same("the base model", "model", &base_hash, then.map(|(path, state)| (path, &state.base_hash)))?;
        let corpora = with_description(place, |description| {
            let tokenizer = Tokenizer::load(description, Some(model_config.vocab_size))?;
            tokenizer.warnings().iter().for_each(|warning| observer.warning(warning));
            Corpora::load((config, options.chain), (&tokenizer, description), observer)
        })?;
        let data_hash = corpora.train.fingerprint().to_hex().to_string();
        check_same("the training data", "data.paths", &data_hash, then.map(|(path, state)| (path, &state.data_hash)))?;
        device::memory::give_back();
        let engine = engine((config, options.gpu), plan, (&model_config, source.as_ref()), observer)?;
        let log_bytes = restored.as_ref().map_or(0, |restored| restored.state.log_bytes);
        let log = Log::open(&folder.path.join(LOG_FILE), log_bytes)?;
        if log.bytes() < log_bytes {
            observer.warning(&format!("{LOG_FILE} is shorter than it was: rows of earlier steps are missing"));
        }
        let events = EventFile::create(&folder.path, restored.as_ref().map_or(0, |restored| restored.state.step + 1))?;
        let total_steps = count_steps(config, &corpora.train);
        let mut run = Run {
            folder,
            data_hash,
            engine,
            corpora,
            log,
            events,
            config: config.clone(),
            base_hash,
            full_base_hash: None,
            total_steps,
            step: 0,
            tokens: 0,
            seconds: 0.0,
            evaluations: Vec::new(),
            skips: SkipCounter::new(config.training.max_skipped_steps),
            spike: SpikeDetector::new(&config.training.spike),
            saved: None,
            evaluated_since: false,
        };
        if let Some(restored) = restored {
            observer.note(&format!("resuming after step {} of {total_steps}", restored.state.step));
            run.restore(restored)?;
        }
        Ok(run)
    }

    fn restore(&mut self, restored: Restored) -> Result<()> {
        let path = restored.path.clone();
        let cursor: BatchCursor = serde_json::from_value(restored.state.cursor.clone())
            .map_err(|error| Error::file(&path, format!("state.json: cursor: {error}")))?;
        self.corpora.train.seek(cursor).map_err(|error| error.at(path.display()))?;
        let Engine { params, optimizer, .. } = &mut self.engine;
        let state = restored.apply(params, optimizer.as_mut())?;
        self.engine.upload()?;
        (self.step, self.tokens, self.seconds) = (state.step, state.tokens, state.seconds);
        self.evaluations = state.evaluations.iter().map(EvalRow::from).collect();
        self.skips.restore(state.skips);
        self.spike.restore(state.spike);
        self.saved = Some(self.step);
        Ok(())
    }
}

/// Refuses a checkpoint of another base or other data; `then` is its folder and its hash.
fn check_same(what: &str, key: &str, now: &String, then: Option<(&Path, &String)>) -> Result<()> {
    match then {
        Some((path, then)) if then != now => {
            let text = format!("{what} is not what it was when this checkpoint was made");
            let advice = format!("let {key} name the same files with the same contents, or start over with --fresh");
            Err(Error::file(path, text).hint(advice))
        }
        _ => Ok(()),
    }
}

/// Refuses to go on with an adapter that was trained on another base, whose `hash` is [`OpenModel::hash`]'s. Nothing is
/// known of an adapter that was made elsewhere.
fn check_adapter(config: &RunConfig, base: &OpenModel, hash: &str) -> Result<()> {
    let Some(folder) = &config.adapter else { return Ok(()) };
    let file = folder.join(peft::PROVENANCE_FILE);
    let Some(provenance) = Provenance::read(&file)? else { return Ok(()) };
    match provenance.mismatch(Path::new(&config.model), &base.full_hash(hash)?) {
        None => Ok(()),
        Some(what) => {
            Err(Error::failed(what)
                .hint(format!("let model name that base, or insist by moving {} away", file.display())))
        }
    }
}

/// Model, parameters and optimizer as a new run has them.
fn engine(
    (config, gpu): (&RunConfig, Option<&Gpu>),
    plan: Plan,
    (model_config, source): (&ModelConfig, &dyn TensorSource),
    observer: &mut dyn Observer,
) -> Result<Engine> {
    let continued = config.adapter.as_deref().map(peft::read).transpose()?;
    let mut options = LoadOptions::training(config.method, config.quantization, &config.lora, config.seed);
    options.positions = config.data.sequence_length;
    options.train_embeddings = config.train_embeddings;
    options.gpu = gpu.cloned();
    if let Some(adapter) = &continued {
        options.lora = Some(adapter.config.clone());
        // What the adapter saved comes with it, ready to train on.
        options.train_embeddings &= adapter.saved().is_empty();
    }
    let (mut model, mut params) = model::load(model_config, source, &options, &mut |done, total| {
        observer.phase("loading the model", done, total);
    })?;
    if let Some(adapter) = continued {
        adapter.apply(&mut model, &mut params)?;
    }
    if params.is_empty() {
        return Err(Error::usage("nothing would be trained: lora.targets names no linear of this model"));
    }
    let settings = StepSettings {
        compute: config.training.compute,
        keep: plan.keep,
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
    let gpu = gpu.map(|gpu| OnGpu::new(gpu, (&model, &params), &config.optimizer, plan.cached)).transpose()?;
    if gpu.as_ref().is_some_and(|gpu| !gpu.updates()) {
        observer.note(
            "optimizer.kind = \"adamw8bit\" has no kernel on a GPU: the CPU updates, with gradients and values copied each \
             step; \"adamw\" updates on the GPU",
        );
    }
    let optimizer = config.optimizer.build(&params);
    let grads = Gradients::zeros(&params);
    Ok(Engine { model, params, grads, optimizer, arena: Arena::new(), settings, gpu })
}

/// `training.steps`, or what `training.tokens` or `training.epochs` give.
pub(super) fn count_steps(config: &RunConfig, batches: &Batches) -> u64 {
    let training = &config.training;
    let accumulation = training.accumulation as u64;
    match (training.steps, training.tokens) {
        (0, 0) => ((batches.steps_per_epoch(accumulation) as f64 * training.epochs).ceil() as u64).max(1),
        (0, tokens) => batches.steps_for_rows(tokens, accumulation),
        (steps, _) => steps,
    }
}
