//! Adapters on disk, exactly in PEFT's form: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! Beside them stands `llamantino.json`, which PEFT ignores: the hash of the base that the adapter was trained on, and how.
//! Reading refuses, naming the first mismatch, whatever would not act on our model exactly as it acts under PEFT.
//! Reference: PEFT `save_and_load.py`, `tuners/lora/config.py`; files written by PEFT 0.21.

mod attach;
mod config;
mod fingerprint;
mod keys;
mod provenance;
mod tensors;
mod write;

pub use attach::write;
pub use provenance::Provenance;

use super::delta::Delta;
use super::LoraConfig;
use crate::bail;
use crate::error::{Error, Result};
use crate::model::Checkpoint;
use crate::ops::MatRef;
use config::PeftConfig;
use keys::{Key, Part};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tensors::Tensor;

/// Name of the configuration's file.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// Name of the tensors' file.
pub const TENSOR_FILE: &str = "adapter_model.safetensors";
/// Name of our own file beside them.
pub const PROVENANCE_FILE: &str = "llamantino.json";

/// The embedding's name, as a weight trained as a whole.
pub const EMBEDDING: &str = "model.embed_tokens.weight";
/// The head's name, as a weight trained as a whole.
pub const HEAD: &str = "lm_head.weight";

/// An adapter read from its folder; consistent in itself, not yet compared with a model.
#[derive(Debug, Clone)]
pub struct PeftAdapter {
    /// Where it came from.
    pub folder: PathBuf,
    /// Options that give its parameters; `modules.only` names its linears.
    pub config: LoraConfig,
    /// `target_modules`, if it is a list that every linear of the model must obey.
    targets: Option<Vec<String>>,
    /// What `llamantino.json` says; `None` for an adapter made elsewhere.
    pub provenance: Option<Provenance>,
    linears: BTreeMap<String, LinearAdapter>,
    saved: BTreeMap<String, SavedWeight>,
}

/// The adapter of one linear.
#[derive(Debug, Clone, PartialEq)]
pub struct LinearAdapter {
    /// Output features, N.
    pub rows: usize,
    /// Input features, K.
    pub cols: usize,
    /// R.
    pub rank: usize,
    /// s.
    pub scale: f32,
    /// `[R, K]`.
    pub a: Vec<f32>,
    /// `[N, R]`.
    pub b: Vec<f32>,
    /// `[N]`, with DoRA.
    pub magnitude: Option<Vec<f32>>,
}

impl LinearAdapter {
    /// What it does to its weight.
    pub fn delta(&self) -> Delta<'_> {
        Delta {
            a: MatRef::new(&self.a, self.rank, self.cols),
            b: MatRef::new(&self.b, self.rows, self.rank),
            scale: self.scale,
            magnitude: self.magnitude.as_deref(),
        }
    }
}

/// A weight trained as a whole (`modules_to_save`): it replaces the base's.
#[derive(Debug, Clone, PartialEq)]
pub struct SavedWeight {
    /// Vocabulary.
    pub rows: usize,
    /// Hidden size.
    pub cols: usize,
    /// `[rows, cols]`.
    pub values: Vec<f32>,
}

/// Reads the adapter in `folder`.
///
/// # Errors
/// The first thing that is missing, damaged, inconsistent or not supported.
pub fn read(folder: &Path) -> Result<PeftAdapter> {
    let settings = PeftConfig::read(&folder.join(CONFIG_FILE))?;
    let path = folder.join(TENSOR_FILE);
    if !path.exists() && folder.join("adapter_model.bin").exists() {
        return Err(Error::file(folder, "holds adapter_model.bin, expected adapter_model.safetensors")
            .hint("load it with PEFT and call save_pretrained(..., safe_serialization=True)"));
    }
    let file = Checkpoint::open(&path)?;
    let place = path.display().to_string();
    // What the file itself says names it already.
    let at = |error: Error| if error.message().starts_with(&place) { error } else { error.at(&place) };
    let (parts, saved) = sort_tensors(&file).map_err(at)?;
    let mut config = settings.lora;
    let linears = parts.into_iter().map(|(linear, parts)| {
        let adapter = parts.check(&linear, &config).map_err(at)?;
        Ok((linear, adapter))
    });
    let linears: BTreeMap<_, _> = linears.collect::<Result<_>>()?;
    if linears.is_empty() && saved.is_empty() {
        return Err(Error::file(&path, "holds no tensor"));
    }
    config.modules.only = Some(linears.keys().cloned().collect());
    let provenance = Provenance::read(&folder.join(PROVENANCE_FILE))?;
    Ok(PeftAdapter { folder: folder.into(), config, targets: settings.targets, provenance, linears, saved })
}

type Sorted = (BTreeMap<String, Parts>, BTreeMap<String, SavedWeight>);

/// Every tensor of the file where it belongs.
fn sort_tensors(file: &Checkpoint) -> Result<Sorted> {
    let mut parts: BTreeMap<String, Parts> = BTreeMap::new();
    let mut saved = BTreeMap::new();
    for name in file.names() {
        match keys::parse(name)? {
            Key::Linear(linear, part) => {
                let found = (name.to_string(), Tensor::read(file, name)?);
                if let Some((other, _)) = parts.entry(linear).or_default().slot(part).replace(found) {
                    bail!("{name}: the same tensor as {other}");
                }
            }
            Key::Saved(weight) => {
                let values = Tensor::read(file, name)?.saved().map_err(|error| error.at(name))?;
                if saved.insert(weight, values).is_some() {
                    bail!("{name}: stored twice");
                }
            }
        }
    }
    Ok((parts, saved))
}

impl PeftAdapter {
    /// The adapters of all linears by the linear's name.
    pub fn linears(&self) -> &BTreeMap<String, LinearAdapter> {
        &self.linears
    }

    /// Weights trained as a whole, by tensor name: `model.embed_tokens.weight`, `lm_head.weight`.
    pub fn saved(&self) -> &BTreeMap<String, SavedWeight> {
        &self.saved
    }

    /// Checks one linear of the model against the adapter, and returns its adapter if it has one.
    ///
    /// # Errors
    /// Another shape, or no tensors for a linear that `target_modules` names.
    pub fn for_linear(&self, name: &str, rows: usize, cols: usize) -> Result<Option<&LinearAdapter>> {
        let Some(adapter) = self.linears.get(name) else {
            let wanted = self.targets.iter().flatten().find(|target| super::config::names(target, name));
            return match wanted {
                Some(target) => Err(self
                    .misfit(format!("no tensors for {name}, though target_modules of {CONFIG_FILE} names {target}"))),
                None => Ok(None),
            };
        };
        if (adapter.rows, adapter.cols) != (rows, cols) {
            let found = format!("found one for [{}, {}]", adapter.rows, adapter.cols);
            return Err(self.misfit(format!("{name}: expected an adapter for a [{rows}, {cols}] weight, {found}")));
        }
        Ok(Some(adapter))
    }

    /// Refuses linears and weights of the adapter that the model does not have.
    pub fn check_names<'a>(&self, linears: impl Iterator<Item = &'a str>) -> Result<()> {
        let known: std::collections::BTreeSet<&str> = linears.collect();
        match self.linears.keys().find(|name| !known.contains(name.as_str())) {
            Some(name) => Err(self.misfit(format!("the model has no linear {name}"))),
            None => Ok(()),
        }
    }

    /// Checks a weight trained as a whole, and returns it if the adapter has it.
    pub fn for_weight(&self, name: &str, rows: usize, cols: usize) -> Result<Option<&SavedWeight>> {
        let Some(weight) = self.saved.get(name) else { return Ok(None) };
        if (weight.rows, weight.cols) != (rows, cols) {
            let found = format!("found [{}, {}]", weight.rows, weight.cols);
            return Err(self.misfit(format!("{name}: expected [{rows}, {cols}] as in the model, {found}")));
        }
        Ok(Some(weight))
    }

    fn misfit(&self, what: String) -> Error {
        Error::file(&self.folder.join(TENSOR_FILE), what)
            .hint("use the model that this adapter was trained on (base_model_name_or_path of its adapter_config.json)")
    }
}

/// Tensors of one linear as they are found, with their names in the file.
#[derive(Default)]
struct Parts {
    a: Option<(String, Tensor)>,
    b: Option<(String, Tensor)>,
    magnitude: Option<(String, Tensor)>,
}

impl Parts {
    fn slot(&mut self, part: Part) -> &mut Option<(String, Tensor)> {
        match part {
            Part::A => &mut self.a,
            Part::B => &mut self.b,
            Part::Magnitude => &mut self.magnitude,
        }
    }

    /// Both halves, of the rank that the configuration gives, and a magnitude exactly with DoRA.
    fn check(self, linear: &str, config: &LoraConfig) -> Result<LinearAdapter> {
        let Some((a_name, a)) = self.a else { bail!("{linear}: lora_A is missing") };
        let Some((b_name, b)) = self.b else { bail!("{linear}: lora_B is missing") };
        let rank = config.rank_of(linear);
        let cols = match a.shape[..] {
            [rows, cols] if rows == rank => cols,
            _ => bail!("{a_name}: expected shape [{rank}, in] (r of {CONFIG_FILE}), found {:?}", a.shape),
        };
        let rows = match b.shape[..] {
            [rows, cols] if cols == rank => rows,
            _ => bail!("{b_name}: expected shape [out, {rank}] (r of {CONFIG_FILE}), found {:?}", b.shape),
        };
        let magnitude = match (self.magnitude, config.dora) {
            (Some((name, tensor)), true) => {
                // Old PEFT versions kept it with leading or trailing dimensions of one.
                if tensor.values.len() != rows || tensor.shape.iter().any(|&size| size != rows && size != 1) {
                    bail!("{name}: expected shape [{rows}], found {:?}", tensor.shape);
                }
                Some(tensor.values)
            }
            (None, true) => bail!("{linear}: lora_magnitude_vector is missing, though use_dora is true"),
            (Some((name, _)), false) => bail!("{name}: unexpected, as use_dora of {CONFIG_FILE} is false"),
            (None, false) => None,
        };
        let scale = config.scale_of(linear);
        Ok(LinearAdapter { rows, cols, rank, scale, a: a.values, b: b.values, magnitude })
    }
}

#[cfg(test)]
mod tests;
