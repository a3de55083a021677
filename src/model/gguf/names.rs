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

/// Every tensor of the model, in the model's order. Errors: one is missing, has another shape, or belongs to something
/// that the engine does not compute.
pub fn entries(file: &GgufFile, config: &ModelConfig, dtype: Option<SourceDtype>) -> Result<Vec<Entry>> {
    let mut collector = Collector { file, dtype, entries: Vec::new() };
    let (vocab, hidden) = (config.vocab_size, config.hidden_size);
    collector.add("model.embed_tokens.weight", "token_embd.weight", &[vocab, hidden], 0)?;
    for layer in 0..config.layers {
        collector.block(config, layer)?;
    }
    collector.add("model.norm.weight", "output_norm.weight", &[hidden], 0)?;
    if !config.tie_word_embeddings {
        collector.add("lm_head.weight", "output.weight", &[vocab, hidden], 0)?;
    }
    let known: HashSet<&str> = collector.entries.iter().map(|entry| entry.stored.as_str()).collect();
    let unknown = file.tensors().map(|(name, _)| name).find(|name| !known.contains(name) && !is_table(name));
    match unknown {
        Some(name) => Err(file
            .error(format!("tensor {name}: no part of a LLaMA model of {} layers", config.layers))
            .hint("the model computes something that this engine does not")),
        None => Ok(collector.entries),
    }
}

/// Tables of the rotary embedding: read elsewhere, or implied by the config.
fn is_table(name: &str) -> bool {
    name == "rope_freqs.weight" || name.ends_with(".attn_rot_embd.weight") || name.ends_with(".rope_freqs.weight")
}

struct Collector<'a> {
    file: &'a GgufFile,
    dtype: Option<SourceDtype>,
    entries: Vec<Entry>,
}

impl Collector<'_> {
    fn block(&mut self, config: &ModelConfig, layer: usize) -> Result<()> {
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
        let both = |name: &str, stored: &str, part: &str| {
            (format!("model.layers.{layer}.{name}.{part}"), format!("blk.{layer}.{stored}.{part}"))
        };
        for (name, stored) in norms {
            let (name, stored) = both(name, stored, "weight");
            self.add(&name, &stored, &[hidden], 0)?;
        }
        for (short, short_stored, shape, heads, bias) in linears {
            let (name, stored) = both(short, short_stored, "weight");
            self.add(&name, &stored, &shape, heads)?;
            if bias {
                let (name, stored) = both(short, short_stored, "bias");
                self.add(&name, &stored, &shape[..1], heads)?;
            }
        }
        Ok(())
    }

    fn add(&mut self, name: &str, stored: &str, shape: &[usize], heads: usize) -> Result<()> {
        let Some(info) = self.file.tensor(stored) else {
            return Err(self.file.error(format!("tensor {stored} is missing (it would be {name} {shape:?})")));
        };
        if info.shape != shape {
            return Err(self.file.error(format!("tensor {stored}: expected shape {shape:?}, found {:?}", info.shape)));
        }
        let form = Form { heads, dtype: self.dtype };
        self.entries.push(Entry { name: name.into(), stored: stored.into(), info: info.clone(), form });
        Ok(())
    }
}
