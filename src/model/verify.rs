//! Checks a model on disk in full: every tensor there, of its shape, finite; the 4-bit ones consistent; the hash of all.

use super::gguf::{is_gguf, Gguf};
use super::hf_config::ModelConfig;
use super::source::TensorSource;
use super::weights::{base_hash, check_finite, Checkpoint, HashDepth};
use crate::data::tokenize::Tokenizer;
use crate::error::{Error, Result};
use crate::quant::file::PART_SUFFIXES;
use crate::quant::{Nf4Matrix, Scales};
use std::collections::BTreeSet;
use std::path::Path;

/// What was found to be sound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// Tensors of the model.
    pub tensors: usize,
    /// How many of them are in NF4.
    pub nf4: usize,
    /// Hash (BLAKE3, 64 hex digits) of all of it, as adapters keep it of their base.
    pub hash: String,
    /// Odd, but not wrong.
    pub warnings: Vec<String>,
}

/// Checks the model folder or GGUF file at `path`. `progress` is told how many tensors are done, and of how many.
///
/// # Errors
/// The first thing that is missing, damaged, of another shape or not finite.
pub fn verify(path: &Path, progress: &mut dyn FnMut(usize, usize)) -> Result<Verified> {
    if is_gguf(path) {
        let model = Gguf::open(path, None)?;
        let mut verified = check_tensors(model.config(), &model, progress)?;
        verified.warnings.extend(model.load_tokenizer()?.warnings().iter().cloned());
        verified.hash = base_hash(&model, HashDepth::Full)?;
        return Ok(verified);
    }
    let config = ModelConfig::from_folder(path)?;
    let checkpoint = Checkpoint::open(path)?;
    let mut verified = check_tensors(&config, &checkpoint, progress)?;
    verified.warnings.extend(strangers(&config, &checkpoint));
    if config.quantized != (verified.nf4 > 0) {
        let (says, has) = if config.quantized { ("NF4", "plain") } else { ("plain", "NF4") };
        return Err(Error::file(path, format!("config.json says that the linears are {says}, the weights are {has}"))
            .hint("fetch the model again, or write it again with `llamantino quantize`"));
    }
    verified.warnings.extend(Tokenizer::load(path, Some(config.vocab_size))?.warnings().iter().cloned());
    verified.hash = base_hash(&checkpoint, HashDepth::Full)?;
    Ok(verified)
}

/// Names and shapes of everything that a model of this configuration is made of.
fn expected(config: &ModelConfig) -> Vec<(String, Vec<usize>)> {
    let hidden = config.hidden_size;
    let mut tensors = vec![("model.embed_tokens.weight".to_string(), vec![config.vocab_size, hidden])];
    for layer in 0..config.layers {
        for (index, (name, [rows, cols])) in config.linear_shapes(layer).into_iter().enumerate() {
            let has_bias = if index < 4 { config.attention_bias } else { config.mlp_bias };
            if has_bias {
                tensors.push((name.replace(".weight", ".bias"), vec![rows]));
            }
            tensors.push((name, vec![rows, cols]));
        }
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            tensors.push((format!("model.layers.{layer}.{norm}.weight"), vec![hidden]));
        }
    }
    tensors.push(("model.norm.weight".into(), vec![hidden]));
    if !config.tie_word_embeddings {
        tensors.push(("lm_head.weight".into(), vec![config.vocab_size, hidden]));
    }
    tensors
}

fn check_tensors(
    config: &ModelConfig,
    source: &dyn TensorSource,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Verified> {
    let tensors = expected(config);
    let mut nf4 = 0;
    for (index, (name, shape)) in tensors.iter().enumerate() {
        let quantised = match shape[..] {
            [rows, cols] => source.nf4(name, rows, cols)?,
            _ => None,
        };
        match quantised {
            Some(matrix) => {
                check_scales(name, &matrix).map_err(|error| error.at(source.place()))?;
                nf4 += 1;
            }
            None => {
                let tensor = source.tensor(name, shape)?;
                check_finite(name, &tensor).map_err(|error| error.at(source.place()))?;
                tensor.bytes.release();
            }
        }
        progress(index + 1, tensors.len());
    }
    Ok(Verified { tensors: tensors.len(), nf4, hash: String::new(), warnings: Vec::new() })
}

/// Codes of 4 bits cannot be wrong; scales can.
fn check_scales(name: &str, matrix: &Nf4Matrix) -> Result<()> {
    let blocks = matrix.len().div_ceil(matrix.block);
    let bad = (0..blocks).find(|&block| !matrix.scale(block).is_finite());
    if let Scales::Plain(bytes) = &matrix.scales {
        bytes.release();
    }
    match bad {
        None => Ok(()),
        Some(block) => Err(Error::failed(format!("tensor {name}: the scale of block {block} is not finite"))
            .hint("the weights are damaged: fetch or quantise the model again")),
    }
}

/// Tensors that the model has no use for.
fn strangers(config: &ModelConfig, checkpoint: &Checkpoint) -> Option<String> {
    let known: BTreeSet<String> = expected(config).into_iter().map(|(name, _)| name).collect();
    let is_known = |name: &str| {
        let weight = PART_SUFFIXES.iter().find_map(|suffix| name.strip_suffix(suffix)).unwrap_or(name);
        // A tied head may be stored; rotation frequencies are old ballast of transformers.
        known.contains(weight) || weight == "lm_head.weight" || name.ends_with("rotary_emb.inv_freq")
    };
    let strange: Vec<&str> = checkpoint.names().filter(|name| !is_known(name)).collect();
    let first = strange.first()?;
    Some(format!("{} tensors are not part of this model, the first is {first}", strange.len()))
}
