//! Which tensor of a GGUF file is which tensor of a Hugging Face checkpoint, and whether all are there.
//!
//! | checkpoint | GGUF |
//! |---|---|
//! | `model.embed_tokens`, `model.norm`, `lm_head` | `token_embd`, `output_norm`, `output` |
//! | `model.layers.N.{input_layernorm, post_attention_layernorm}` | `blk.N.{attn_norm, ffn_norm}` |
//! | `model.layers.N.self_attn.{q,k,v,o}_proj` | `blk.N.attn_{q,k,v,output}`, rows of q and k interleaved |
//! | `model.layers.N.mlp.{gate,up,down}_proj` | `blk.N.ffn_{gate,up,down}` |

use super::file::GgufFile;
use super::header::TensorInfo;
use super::values::Form;
use crate::error::Result;
use crate::model::ModelConfig;
use crate::quant::SourceDtype;
use std::collections::HashSet;

/// One tensor under both names.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Name in the checkpoint.
    pub name: String,
    /// Name in the file.
    pub stored: String,
    /// Its place.
    pub info: TensorInfo,
    /// How it is handed out.
    pub form: Form,
}

/// A tensor of a model under both names, before any file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Name in a checkpoint.
    pub name: String,
    /// Name in a GGUF file.
    pub stored: String,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Heads whose rows are interleaved in a GGUF file; 0 where rows stay.
    pub heads: usize,
}

/// Every tensor of a model, in the model's order. They are named one at a time: the number of layers may come from a
/// damaged file.
pub fn layout(config: &ModelConfig) -> impl Iterator<Item = Place> + '_ {
    let (vocab, hidden) = (config.vocab_size, config.hidden_size);
    let outer = |name: &str, stored: &str, shape: &[usize]| Place {
        name: format!("{name}.weight"),
        stored: format!("{stored}.weight"),
        shape: shape.to_vec(),
        heads: 0,
    };
    let head = (!config.tie_word_embeddings).then(|| outer("lm_head", "output", &[vocab, hidden]));
    [outer("model.embed_tokens", "token_embd", &[vocab, hidden])]
        .into_iter()
        .chain((0..config.layers).flat_map(|layer| block(config, layer)))
        .chain([outer("model.norm", "output_norm", &[hidden])])
        .chain(head)
}

fn block(config: &ModelConfig, layer: usize) -> Vec<Place> {
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let (queries, keys) = (config.query_width(), config.kv_width());
    let norms = [("input_layernorm", "attn_norm"), ("post_attention_layernorm", "ffn_norm")];
    let linears = [
        ("self_attn.q_proj", "attn_q", [queries, hidden], config.heads, config.attention_bias),
        ("self_attn.k_proj", "attn_k", [keys, hidden], config.kv_heads, config.attention_bias),
        ("self_attn.v_proj", "attn_v", [keys, hidden], 0, config.attention_bias),
        ("self_attn.o_proj", "attn_output", [hidden, queries], 0, config.attention_bias),
        ("mlp.gate_proj", "ffn_gate", [inner, hidden], 0, config.mlp_bias),
        ("mlp.up_proj", "ffn_up", [inner, hidden], 0, config.mlp_bias),
        ("mlp.down_proj", "ffn_down", [hidden, inner], 0, config.mlp_bias),
    ];
    let place = |name: &str, stored: &str, part: &str, shape: &[usize], heads: usize| Place {
        name: format!("model.layers.{layer}.{name}.{part}"),
        stored: format!("blk.{layer}.{stored}.{part}"),
        shape: shape.to_vec(),
        heads,
    };
    let mut places: Vec<Place> =
        norms.iter().map(|(name, stored)| place(name, stored, "weight", &[hidden], 0)).collect();
    for (name, stored, shape, heads, bias) in linears {
        places.push(place(name, stored, "weight", &shape, heads));
        if bias {
            places.push(place(name, stored, "bias", &shape[..1], heads));
        }
    }
    places
}

/// Every tensor of the model, in the model's order. Errors: one is missing, has another shape, or belongs to something
/// that the engine does not compute.
pub fn entries(file: &GgufFile, config: &ModelConfig, dtype: Option<SourceDtype>) -> Result<Vec<Entry>> {
    let entries = layout(config).map(|place| entry(file, place, dtype)).collect::<Result<Vec<_>>>()?;
    let known: HashSet<&str> = entries.iter().map(|entry| entry.stored.as_str()).collect();
    let unknown = file.tensors().map(|(name, _)| name).find(|name| !known.contains(name) && !is_table(name));
    match unknown {
        Some(name) => Err(file
            .error(format!("tensor {name}: no part of a LLaMA model of {} layers", config.layers))
            .hint("the model computes something that this engine does not")),
        None => Ok(entries),
    }
}

fn entry(file: &GgufFile, place: Place, dtype: Option<SourceDtype>) -> Result<Entry> {
    let Place { name, stored, shape, heads } = place;
    let Some(info) = file.tensor(&stored) else {
        return Err(file.error(format!("tensor {stored} is missing (it would be {name} {shape:?})")));
    };
    if info.shape != shape {
        return Err(file.error(format!("tensor {stored}: expected shape {shape:?}, found {:?}", info.shape)));
    }
    Ok(Entry { name, stored, info: info.clone(), form: Form { heads, dtype } })
}

/// Tables of the rotary embedding: read elsewhere, or implied by the config.
fn is_table(name: &str) -> bool {
    name == "rope_freqs.weight" || name.ends_with(".attn_rot_embd.weight") || name.ends_with(".rope_freqs.weight")
}
