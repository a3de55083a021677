//! What a run writes beside its log: checkpoints, and at the end the adapter or the model.
//!
//! Every checkpoint can be used as it is: `adapter/` in it is an adapter in PEFT's form; with `method = "full"` the
//! checkpoint's own folder is a model in Hugging Face's form, whose index points at `params.safetensors`.

use super::config::RunConfig;
use super::run::Run;
use crate::adapter::peft::{self, Provenance};
use crate::checkpoint::{check_finite, AtomicFolder, Measured, RealDisk, RunState, Snapshot, PARAMS_FILE};
use crate::error::{Error, Result};
use crate::export::{companions, full};
use crate::model::open::with_description;
use crate::model::{Method, OpenModel};
use crate::ops::ParamStore;
use serde_json::{json, Value};
use std::path::{Path, PathBuf};

/// Where a run of this configuration leaves its result.
pub fn result_path(config: &RunConfig) -> PathBuf {
    config.folder().join(match config.method {
        Method::Full => "model",
        Method::Lora | Method::Qlora => "adapter",
    })
}

impl Run {
    /// Writes a checkpoint and prunes older ones; gives its folder, and why pruning failed if it did.
    ///
    /// # Errors
    /// A value that is not finite; what the file system says. Earlier checkpoints stand.
    pub(super) fn save_checkpoint(&mut self) -> Result<(PathBuf, Option<Error>)> {
        self.folder.check()?;
        self.log.sync()?;
        self.engine.download()?;
        self.engine.arena.trim();
        let provenance = self.provenance()?;
        let state = self.state()?;
        let score = self.evaluations.iter().find(|row| row.step == self.step).map(|row| row.loss);
        let engine = &self.engine;
        let made_by = self.folder.maker.clone();
        let snapshot =
            Snapshot { state: &state, params: &engine.params, optimizer: &*engine.optimizer, score, made_by };
        let mut extra = |folder: &mut AtomicFolder<'_>| match &provenance {
            Some(provenance) => self.add_adapter(folder, provenance),
            None => self.add_model_files(folder),
        };
        let path = self.folder.checkpoints.save(&snapshot, &mut extra).map_err(|error| self.keep_calm(error))?;
        (self.saved, self.evaluated_since) = (Some(self.step), false);
        Ok((path, self.folder.checkpoints.prune().err()))
    }

    /// Writes the adapter, or the model with `method = "full"`, under its final name.
    pub(super) fn save_result(&mut self) -> Result<PathBuf> {
        self.folder.check()?;
        self.engine.download()?;
        self.engine.arena.trim();
        let provenance = self.provenance()?;
        let (config, engine) = (&self.config, &self.engine);
        check_finite(&engine.params, &[])?;
        let out = result_path(config);
        let mut folder = AtomicFolder::begin(&RealDisk, &out)?;
        match &provenance {
            Some(provenance) => peft::write(folder.temporary(), &engine.model, &engine.params, provenance)?,
            None => {
                let raw = &engine.model.config.raw;
                with_description(Path::new(&config.model), |base| {
                    full::write(&mut folder, raw, base, &engine.params, config.save_dtype)
                })?;
            }
        }
        folder.commit()?;
        Ok(out)
    }

    fn state(&self) -> Result<RunState> {
        let cursor = serde_json::to_value(self.corpora.train.cursor());
        Ok(RunState {
            step: self.step,
            total_steps: self.total_steps,
            tokens: self.tokens,
            seed: self.config.seed,
            cursor: cursor.map_err(|error| Error::failed(format!("the data cursor: {error}")))?,
            config: self.config.to_toml()?,
            base_hash: self.base_hash.clone(),
            data_hash: self.data_hash.clone(),
            optimizer_steps: self.engine.optimizer.steps(),
            log_bytes: self.log.bytes(),
            evaluations: self.evaluations.iter().map(Measured::from).collect(),
            skips: self.skips.skips(),
            spike: self.spike.memory().clone(),
            seconds: self.seconds,
        })
    }

    /// Where the adapter comes from; `None` with `method = "full"`.
    fn provenance(&mut self) -> Result<Option<Provenance>> {
        if self.config.method == Method::Full {
            return Ok(None);
        }
        let hash = match &self.full_base_hash {
            Some(hash) => hash.clone(),
            None => OpenModel::open(Path::new(&self.config.model))?.full_hash(&self.base_hash)?,
        };
        self.full_base_hash = Some(hash.clone());
        Ok(Some(Provenance::new(&self.config.model, hash, self.config.method)))
    }

    fn add_adapter(&self, folder: &mut AtomicFolder<'_>, provenance: &Provenance) -> Result<()> {
        let path = folder.temporary().join("adapter");
        peft::write(&path, &self.engine.model, &self.engine.params, provenance)?;
        [peft::CONFIG_FILE, peft::TENSOR_FILE, peft::PROVENANCE_FILE]
            .iter()
            .try_for_each(|name| folder.adopt(&format!("adapter/{name}")))
    }

    /// What makes a Hugging Face model of a checkpoint: configuration, tokenizer, and an index that names `params.safetensors`.
    fn add_model_files(&self, folder: &mut AtomicFolder<'_>) -> Result<()> {
        let mut write = |name: &str, bytes: &[u8]| folder.write(name, &mut |file| file.write_all(bytes));
        let config = full::config_of(&self.engine.model.config.raw, full::SaveDtype::F32);
        write("config.json", format!("{config:#}\n").as_bytes())?;
        let index = format!("{:#}\n", index_of(&self.engine.params));
        write("model.safetensors.index.json", index.as_bytes())?;
        with_description(Path::new(&self.config.model), |base| companions::copy(base, folder).map(drop))
    }

    /// An error of saving, with where the run can go on from.
    fn keep_calm(&self, error: Error) -> Error {
        let last = match self.saved {
            Some(step) => format!("{} stands", self.folder.checkpoints.path(step).display()),
            None => "there is no earlier checkpoint".into(),
        };
        let hint = match error.hint_text() {
            Some(hint) => format!("{hint}; {last}"),
            None => format!("{last}: once that is put right, the same command goes on from there"),
        };
        error.hint(hint)
    }
}

fn index_of(params: &ParamStore) -> Value {
    let bytes = params.numel() * size_of::<f32>();
    let map: serde_json::Map<String, Value> =
        params.iter().map(|param| (param.name.clone(), json!(PARAMS_FILE))).collect();
    json!({"metadata": {"total_size": bytes}, "weight_map": map})
}
