//! GGUF out: a model, alone or with an adapter folded in, as one file that llama.cpp and Ollama run.
//!
//! Streamed: the next tensor is merged and encoded while the last one is written. The file appears when it is complete,
//! was read back, and was opened by this program's own reader, whose tokenizer must give the tokens of the folder's.
//! Reference: the GGUF specification; llama.cpp's `convert_hf_to_gguf.py` and `llama-quantize`.

pub mod adapter;
mod encode;
mod metadata;
mod modelfile;
pub mod scheme;
mod tokenizer;
mod turns;
mod writer;

use super::merge::plan::{Item, Plan};
use super::merge::{check_base, refuse_rounded, MergeDtype};
use crate::adapter::peft;
use crate::checkpoint::{write_file, RealDisk};
use crate::data::template::model::find;
use crate::data::template::Template;
use crate::data::tokenize::Tokenizer;
use crate::error::{Error, Result};
use crate::model::gguf::{llama3_divisors, BlockType, Gguf, FREQUENCIES};
use crate::model::{ModelConfig, OpenModel};
use crate::ops::Bytes;
use scheme::{Fallback, FileType, Scheme};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use turns::Turns;
use writer::{GgufWriter, Metadata, TensorPlan};

/// What to export, and how.
#[derive(Debug, Clone)]
pub struct GgufJob {
    /// The model: a folder or a GGUF file.
    pub model: PathBuf,
    /// Folder of an adapter to fold in.
    pub adapter: Option<PathBuf>,
    /// File to write; must not exist.
    pub out: PathBuf,
    /// What matrices are stored in.
    pub file_type: FileType,
    /// Template to write into the file, as a user names it; none: the model's own.
    pub template: Option<String>,
    /// Fold in even if the adapter was trained on another base.
    pub any_base: bool,
    /// Allow an NF4 model: its rounded weights become the file's.
    pub dequantize_base: bool,
}

/// What was done.
#[derive(Debug, Clone)]
pub struct Summary {
    /// Tensors of the model.
    pub tensors: usize,
    /// Weights that an adapter changed or replaced.
    pub merged: usize,
    /// Length of the file.
    pub bytes: u64,
    /// Types of the matrices, and how many there are of each.
    pub types: BTreeMap<&'static str, usize>,
    /// Tensors whose rows did not fit the type meant for them, and how many are alike.
    pub fallbacks: BTreeMap<Fallback, usize>,
    /// Ollama's file beside it.
    pub modelfile: PathBuf,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// Exports. `progress` is told the tensors done, their number, and the name of the last one.
///
/// # Errors
/// A model or tokenizer that the format has no words for; an adapter that does not belong to the model; a value that is
/// not finite or does not fit; a file that reads back differently; `out` exists; the disk.
pub fn export_gguf(job: &GgufJob, progress: &mut dyn FnMut(usize, usize, &str)) -> Result<Summary> {
    let modelfile = modelfile_path(&job.out)?;
    let model = OpenModel::open(&job.model)?;
    refuse_rounded(&job.model, &model.config, job.dequantize_base)?;
    let adapter = job.adapter.as_deref().map(peft::read).transpose()?;
    let mut warnings = match &adapter {
        Some(adapter) => check_base(adapter, &model, job.any_base)?,
        None => Vec::new(),
    };
    // Everything is folded and read in f32, which holds the base exactly, and rounded once by the type of the file.
    let plan = Plan::new(&model.config, model.stored(), adapter.as_ref(), Some(MergeDtype::F32))?;
    let config = untied(model.config.clone(), plan.unties)?;
    let scheme = Scheme::new(&config, job.file_type);
    let source = Source::new(&plan, &scheme, &config)?;
    let description = model.with_description(|folder| Description::of(job, folder, &config))?;
    warnings.extend(description.notes);
    let mut writer = GgufWriter::create(&job.out, &description.metadata, source.plans())?;
    source.write(&mut writer, progress)?;
    let bytes = writer.finish(|file| {
        check(file, &config, &description.tokenizer)?;
        write_file(&RealDisk, &modelfile, description.modelfile.as_bytes())
    });
    if bytes.is_err() && !job.out.exists() {
        // Alone it would stand in the way of the next attempt; if it was never written, there is nothing to remove.
        let _ = std::fs::remove_file(&modelfile);
    }
    let bytes = bytes?;
    let mut types = BTreeMap::new();
    let matrices = scheme.tensors.iter().filter(|(place, _)| place.shape.len() > 1);
    matrices.for_each(|(_, kind)| *types.entry(kind.name()).or_insert(0) += 1);
    let merged = plan.items.iter().filter(|item| item.source.is_merged()).count();
    let tensors = scheme.tensors.len();
    Ok(Summary { tensors, merged, bytes, types, fallbacks: scheme.fallbacks, modelfile, warnings })
}

/// Programs know the format by the name.
fn expect_gguf_name(out: &Path) -> Result<()> {
    match out.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf")) {
        true => Ok(()),
        false => Err(Error::usage(format!("{}: expected a file name that ends in .gguf", out.display()))),
    }
}

/// `NAME.Modelfile` beside `NAME.gguf`.
fn modelfile_path(out: &Path) -> Result<PathBuf> {
    expect_gguf_name(out)?;
    let path = out.with_extension("Modelfile");
    match std::fs::symlink_metadata(&path).is_ok() {
        true => Err(Error::file(&path, "exists already").hint("name another file, or remove this one")),
        false => Ok(path),
    }
}

/// The config of the model as it is written.
fn untied(config: ModelConfig, unties: bool) -> Result<ModelConfig> {
    if !unties {
        return Ok(config);
    }
    let mut json = config.raw;
    json["tie_word_embeddings"] = false.into();
    ModelConfig::from_json(json)
}

/// What the file says beside its tensors.
struct Description {
    metadata: Metadata,
    modelfile: String,
    tokenizer: Tokenizer,
    notes: Vec<String>,
}

impl Description {
    /// `model` is the folder that describes the job's model.
    fn of(job: &GgufJob, model: &Path, config: &ModelConfig) -> Result<Description> {
        let tokenizer = Tokenizer::load(model, Some(config.vocab_size))?;
        let described = tokenizer::describe(model, &tokenizer, config.vocab_size)?;
        let mut notes = described.notes;
        let name = job.out.file_stem().unwrap_or_default().to_string_lossy();
        let mut metadata = metadata::of_model(&name, config, job.file_type)?;
        metadata.extend(described.metadata);
        let template = match &job.template {
            Some(name) => Some(Template::named(name, model)?),
            None => Template::from_model(model)?,
        };
        let turns = template.as_ref().and_then(|template| Turns::of(template, &tokenizer));
        if let Some(template) = &template {
            let own = job.template.as_deref().is_none_or(|name| name == "model");
            let text = match (&turns, own) {
                (_, true) => find(model)?.map(|found| found.text),
                (Some(turns), false) => Some(turns.jinja()),
                (None, false) => None,
            };
            metadata.extend(text.map(|text| metadata::text("tokenizer.chat_template", &text)));
            if turns.is_none() {
                let name = template.name();
                notes.push(format!(
                    "{name} puts no fixed text around messages: the Modelfile has no TEMPLATE, Ollama goes by the file's"
                ));
            }
        }
        let mut stops = tokenizer.special().stop_ids.clone();
        stops.extend(template.iter().filter_map(|template| template.end_of_answer(&tokenizer).ok()));
        stops.sort_unstable();
        stops.dedup();
        let stops: Vec<String> = stops.into_iter().map(|id| tokenizer.token(id)).collect();
        let file = job.out.file_name().unwrap_or_default().to_string_lossy();
        let modelfile = modelfile::text(&file, turns.as_ref(), &stops);
        Ok(Description { metadata, modelfile, tokenizer, notes })
    }
}

/// Where the values of a file come from.
struct Source<'a> {
    plan: &'a Plan<'a>,
    scheme: &'a Scheme,
    items: HashMap<&'a str, &'a Item<'a>>,
    /// LLaMA 3's scaling, which stands in a tensor.
    divisors: Option<Vec<f32>>,
}

/// A tensor of the file.
type Encoded<'a> = (&'a str, Bytes);

impl<'a> Source<'a> {
    fn new(plan: &'a Plan<'a>, scheme: &'a Scheme, config: &ModelConfig) -> Result<Source<'a>> {
        let items: HashMap<&str, &Item<'_>> = plan.items.iter().map(|item| (item.name.as_str(), item)).collect();
        for (place, _) in &scheme.tensors {
            let shape = items.get(place.name.as_str()).map(|item| &item.shape);
            if shape != Some(&place.shape) {
                let found = shape.map_or("nothing".to_string(), |shape| format!("{shape:?}"));
                let what = format!("tensor {}: expected shape {:?}, found {found}", place.name, place.shape);
                return Err(Error::file(plan.base.path_of(&place.name), what));
            }
        }
        Ok(Source { plan, scheme, items, divisors: llama3_divisors(&config.rope) })
    }

    fn plans(&self) -> Vec<TensorPlan> {
        let divisors = self.divisors.as_ref().map(|divisors| TensorPlan {
            name: FREQUENCIES.into(),
            shape: vec![divisors.len()],
            kind: BlockType::F32,
        });
        divisors.into_iter().chain(self.scheme.plans()).collect()
    }

    fn write(&self, writer: &mut GgufWriter, progress: &mut dyn FnMut(usize, usize, &str)) -> Result<()> {
        if let Some(divisors) = &self.divisors {
            let bytes: Vec<u8> = divisors.iter().flat_map(|value| value.to_le_bytes()).collect();
            writer.write(FREQUENCIES, &bytes)?;
        }
        let total = self.scheme.tensors.len();
        let mut ready: Option<Encoded<'_>> = None;
        for index in 0..=total {
            let write = |writer: &mut GgufWriter| ready.iter().try_for_each(|(name, bytes)| writer.write(name, bytes));
            let (next, written) = rayon::join(|| self.encoded(index), || write(writer));
            written?;
            if let Some((name, _)) = &ready {
                progress(index, total, name);
            }
            ready = next?;
        }
        Ok(())
    }

    /// The tensor of this place in the order, none behind the last.
    fn encoded(&self, index: usize) -> Result<Option<Encoded<'a>>> {
        let Some((place, kind)) = self.scheme.tensors.get(index) else { return Ok(None) };
        let Some(item) = self.items.get(place.name.as_str()) else { return Ok(None) };
        let tensor = item.read(self.plan.base)?;
        let bytes = encode::encode(&tensor, place.heads, *kind);
        item.release(self.plan.base);
        Ok(Some((&place.stored, bytes.map_err(|error| error.at(format!("tensor {}", place.name)))?)))
    }
}

/// Opens the result as a user of it would: the model must be the same, and so must the tokens of text.
fn check(file: &Path, config: &ModelConfig, tokenizer: &Tokenizer) -> Result<()> {
    let gguf = Gguf::open(file, None)?;
    let found = gguf.config();
    let sizes = |config: &ModelConfig| {
        let ModelConfig { vocab_size, hidden_size, intermediate_size, layers, heads, kv_heads, head_dim, .. } = *config;
        [vocab_size, hidden_size, intermediate_size, layers, heads, kv_heads, head_dim]
    };
    let ties = |config: &ModelConfig| (config.tie_word_embeddings, config.attention_bias, config.mlp_bias);
    if sizes(found) != sizes(config) || ties(found) != ties(config) || found.rope.inv_freq() != config.rope.inv_freq() {
        return Err(Error::file(file, "reads back as another model: this is a mistake of this program"));
    }
    let read = gguf.load_tokenizer()?;
    for text in tokenizer::PROBES {
        if read.encode_plain(text).ok() != tokenizer.encode_plain(text).ok() {
            let what = format!("as GGUF the tokenizer would cut {text:?} into other tokens");
            return Err(Error::file(file, what).hint("llama.cpp has no equal of this tokenizer"));
        }
    }
    match read.special().bos == tokenizer.special().bos && read.special().eos == tokenizer.special().eos {
        true => Ok(()),
        false => Err(Error::file(file, "reads back with other BOS and EOS tokens: this is a mistake of this program")),
    }
}

#[cfg(test)]
mod tests;
