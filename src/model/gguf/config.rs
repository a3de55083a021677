//! The `config.json` that a GGUF model would have as a Hugging Face folder.
//!
//! Invariant: what the JSON leaves out is computed by the engine as llama.cpp does; metadata that would change the
//! equations is refused. Reference: the key list of the GGUF specification; llama.cpp's `convert_hf_to_gguf.py` for how
//! a config.json became these keys.

use super::file::GgufFile;
use super::rope;
use crate::error::Result;
use crate::quant::SourceDtype;
use serde_json::{json, Map, Value};

/// Ids that end a generation, the padding and the beginning, as `config.json` and `generation_config.json` name them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenIds {
    /// First token of a sequence.
    pub bos: Option<u32>,
    /// End of a text, and of a turn where that is another token.
    pub eos: Vec<u32>,
    /// Padding.
    pub pad: Option<u32>,
}

impl TokenIds {
    /// Reads them; an id outside the vocabulary is as good as none.
    pub fn of(file: &GgufFile, vocab_size: usize) -> Result<TokenIds> {
        let id = |key: &str| -> Result<Option<u32>> {
            let id = file.number(&format!("tokenizer.ggml.{key}_token_id"))?;
            Ok(id.filter(|&id| id >= 0.0 && id < vocab_size as f64).map(|id| id as u32))
        };
        // The SentencePiece models of llama.cpp have these two where nothing is said.
        let sentencepiece = file.text("tokenizer.ggml.model")? == Some("llama");
        let or_default = |id: Option<u32>, default: u32| id.or(sentencepiece.then_some(default));
        let mut eos: Vec<u32> = or_default(id("eos")?, 2).into_iter().collect();
        for turn in [id("eot")?, id("eom")?].into_iter().flatten() {
            if !eos.contains(&turn) {
                eos.push(turn);
            }
        }
        Ok(TokenIds { bos: or_default(id("bos")?, 1), eos, pad: id("padding")? })
    }

    /// `eos` as one id, or as the list that several make.
    pub fn eos_json(&self) -> Option<Value> {
        match &self.eos[..] {
            [] => None,
            [one] => Some(json!(one)),
            many => Some(json!(many)),
        }
    }
}

/// `config.json` of the model in `file`. `dtype` is what most of its weights are handed out in.
///
/// Errors: an architecture or a key that the engine does not compute; a key that is missing or of the wrong kind.
pub fn config_json(file: &GgufFile, dtype: SourceDtype) -> Result<Value> {
    let prefix = architecture(file)?;
    let key = |name: &str| format!("{prefix}.{name}");
    refuse_what_is_not_computed(file, prefix)?;
    let needed = |name: &str| -> Result<usize> {
        file.size(&key(name))?.ok_or_else(|| file.wrong(&key(name), "a whole number from 1 to 2^31"))
    };
    let (hidden, heads) = (needed("embedding_length")?, needed("attention.head_count")?);
    let head_dim = head_dim(file, prefix, hidden, heads)?;
    let positions = needed("context_length")?;
    let vocab_size = vocab_size(file, prefix)?;
    let eps = file.number(&key("attention.layer_norm_rms_epsilon"))?;
    let ids = TokenIds::of(file, vocab_size)?;
    let mut config = Map::new();
    let mut set = |key: &str, value: Value| config.insert(key.into(), value);
    set("architectures", json!(["LlamaForCausalLM"]));
    set("model_type", json!("llama"));
    set("vocab_size", json!(vocab_size));
    set("hidden_size", json!(hidden));
    set("intermediate_size", json!(needed("feed_forward_length")?));
    set("num_hidden_layers", json!(needed("block_count")?));
    set("num_attention_heads", json!(heads));
    set("num_key_value_heads", json!(file.size(&key("attention.head_count_kv"))?.unwrap_or(heads)));
    set("head_dim", json!(head_dim));
    set("hidden_act", json!("silu"));
    set("rms_norm_eps", json!(eps.ok_or_else(|| file.wrong(&key("attention.layer_norm_rms_epsilon"), "a number"))?));
    set("max_position_embeddings", json!(positions));
    set("rope_theta", json!(rope::theta(file, prefix)?));
    set("rope_scaling", rope::scaling(file, prefix, head_dim)?);
    set("attention_bias", json!(file.tensor("blk.0.attn_q.bias").is_some()));
    set("mlp_bias", json!(file.tensor("blk.0.ffn_up.bias").is_some()));
    set("attention_dropout", json!(0.0));
    set("tie_word_embeddings", json!(file.tensor("output.weight").is_none()));
    set("bos_token_id", json!(ids.bos));
    set("eos_token_id", ids.eos_json().unwrap_or(Value::Null));
    set("pad_token_id", json!(ids.pad));
    let dtype = match dtype {
        SourceDtype::F32 => "float32",
        SourceDtype::F16 => "float16",
        SourceDtype::Bf16 => "bfloat16",
    };
    set("torch_dtype", json!(dtype));
    Ok(Value::Object(config))
}

/// Prefix of the model's keys.
fn architecture(file: &GgufFile) -> Result<&'static str> {
    match file.text("general.architecture")? {
        Some("llama") => Ok("llama"),
        Some("mistral") => Ok("mistral"),
        _ => Err(file.wrong("general.architecture", "\"llama\" or \"mistral\"").hint(
            "supported are models of the LLaMA architecture: LLaMA 1, 2 and 3, TinyLlama, SmolLM, Mistral without a sliding window",
        )),
    }
}

fn refuse_what_is_not_computed(file: &GgufFile, prefix: &str) -> Result<()> {
    let key = |name: &str| format!("{prefix}.{name}");
    if file.whole("split.count")?.is_some_and(|count| count > 1) {
        return Err(file.wrong("split.count", "1").hint(
            "this is one part of a split model: join them first with `llama-gguf-split --merge FIRST_PART OUT`",
        ));
    }
    if file.whole(&key("expert_count"))?.is_some_and(|count| count > 0) {
        return Err(file.wrong(&key("expert_count"), "0: mixtures of experts are not computed"));
    }
    let window = key("attention.sliding_window");
    if let Some(size) = file.whole(&window)?.filter(|&size| size > 0) {
        let positions = file.whole(&key("context_length"))?.unwrap_or(u64::MAX);
        if size < positions {
            return Err(file.wrong(&window, &format!("none, or at least context_length = {positions}")));
        }
    }
    let factors = ["logit_scale", "embedding_scale", "residual_scale", "attention.scale"];
    for name in factors.map(key) {
        if file.number(&name)?.is_some_and(|factor| factor != 0.0 && factor != 1.0) {
            return Err(file.wrong(&name, "no such factor: it is not computed"));
        }
    }
    let clamp = key("attention.clamp_kqv");
    match file.number(&clamp)?.is_some_and(|limit| limit > 0.0) {
        true => Err(file.wrong(&clamp, "no limit: it is not computed")),
        false => Ok(()),
    }
}

fn head_dim(file: &GgufFile, prefix: &str, hidden: usize, heads: usize) -> Result<usize> {
    let key = |name: &str| format!("{prefix}.{name}");
    let head_dim = match file.size(&key("attention.key_length"))? {
        Some(size) => size,
        None if hidden.is_multiple_of(heads) => hidden / heads,
        None => {
            let expected = format!("a divisor of {prefix}.embedding_length = {hidden}");
            return Err(file.wrong(&key("attention.head_count"), &expected));
        }
    };
    for name in ["attention.value_length", "rope.dimension_count"] {
        if file.size(&key(name))?.is_some_and(|size| size != head_dim) {
            return Err(file.wrong(&key(name), &format!("{head_dim}, the width of a head")));
        }
    }
    Ok(head_dim)
}

/// Rows of the embedding; of a vocabulary without a model, its tokens.
fn vocab_size(file: &GgufFile, prefix: &str) -> Result<usize> {
    if let Some(embedding) = file.tensor("token_embd.weight") {
        return Ok(embedding.shape[0]);
    }
    let key = format!("{prefix}.vocab_size");
    file.size(&key)?.ok_or_else(|| file.wrong(&key, "a whole number from 1 to 2^31"))
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
