//! `config.json` of a Hugging Face model: LLaMA and Mistral, in the spellings of transformers 4 and 5.
//!
//! Invariant: a [`ModelConfig`] describes a model that the engine can compute exactly; whatever it could not is refused
//! here with file, key, expected and found. Defaults are those of transformers' `LlamaConfig` and `MistralConfig`.
//! The JSON itself is kept, in its order, so that a folder written later says everything that its source said.

use crate::error::{Error, Result};
use crate::ops::rope::{RopeConfig, RopeScaling};
use crate::quant::file::check_quantization_config;
use crate::quant::SourceDtype;
use serde_json::{Map, Value};
use std::path::Path;

/// A family of models that share their equations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// `model_type = "llama"` (LLaMA 1 to 3, TinyLlama, SmolLM, ...).
    Llama,
    /// `model_type = "mistral"`: the same equations where its sliding window never applies.
    Mistral,
}

/// What a model is made of. Sizes are at least 1.
#[derive(Debug, Clone)]
pub struct ModelConfig {
    /// Family.
    pub architecture: Architecture,
    /// Rows of the embedding and of the head.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width between gate/up and down.
    pub intermediate_size: usize,
    /// Decoder blocks.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head, even; `heads * head_dim` need not be `hidden_size`.
    pub head_dim: usize,
    /// Added to the mean square inside RMSNorm.
    pub rms_norm_eps: f64,
    /// Position embedding.
    pub rope: RopeConfig,
    /// Longest sequence that the model was made for.
    pub max_position_embeddings: usize,
    /// Whether the q, k, v and o projections have biases.
    pub attention_bias: bool,
    /// Whether the gate, up and down projections have biases.
    pub mlp_bias: bool,
    /// Whether the head is the embedding.
    pub tie_word_embeddings: bool,
    /// dtype that the weights are said to have, where it is one of the three.
    pub dtype: Option<SourceDtype>,
    /// First token of a sequence.
    pub bos: Option<u32>,
    /// Tokens that end one.
    pub eos: Vec<u32>,
    /// Padding; `None` also where the id lies outside the vocabulary (-1 and 32000 occur in the wild).
    pub pad: Option<u32>,
    /// Whether the linears of the blocks are stored in NF4.
    pub quantized: bool,
    /// The file as it was read.
    pub raw: Value,
}

impl ModelConfig {
    /// Reads `folder/config.json`.
    pub fn from_folder(folder: &Path) -> Result<ModelConfig> {
        let path = folder.join("config.json");
        if !path.exists() {
            return Err(Error::file(&path, "no such file").hint(
                "a model folder holds config.json, *.safetensors and tokenizer.json, as on the Hugging Face hub",
            ));
        }
        ModelConfig::from_file(&path)
    }

    /// Reads a config.json.
    pub fn from_file(path: &Path) -> Result<ModelConfig> {
        let text = std::fs::read(path).map_err(|e| Error::io(path, "read", e))?;
        let raw: Value = serde_json::from_slice(&text).map_err(|e| Error::file(path, format!("not JSON: {e}")))?;
        ModelConfig::from_json(raw).map_err(|e| e.at(path.display()))
    }

    /// Interprets the JSON of a config.json.
    pub fn from_json(raw: Value) -> Result<ModelConfig> {
        let fields = Fields::of(&raw)?;
        let architecture = architecture(&fields)?;
        refuse_what_is_not_computed(&fields, architecture)?;
        let (hidden_size, heads) = (fields.size("hidden_size")?, fields.size("num_attention_heads")?);
        let vocab_size = fields.size("vocab_size")?;
        let head_dim = head_dim(&fields, hidden_size, heads)?;
        Ok(ModelConfig {
            architecture,
            vocab_size,
            hidden_size,
            intermediate_size: fields.size("intermediate_size")?,
            layers: fields.size("num_hidden_layers")?,
            heads,
            kv_heads: kv_heads(&fields, heads, architecture)?,
            head_dim,
            rms_norm_eps: fields
                .number("rms_norm_eps", |eps| eps > 0.0 && eps < 1.0, "above 0 and below 1")?
                .unwrap_or(1e-6),
            rope: rope(&fields, head_dim)?,
            max_position_embeddings: max_positions(&fields, architecture)?,
            attention_bias: fields.flag("attention_bias")?,
            mlp_bias: fields.flag("mlp_bias")?,
            tie_word_embeddings: fields.flag("tie_word_embeddings")?,
            dtype: dtype(&fields),
            bos: fields.tokens("bos_token_id", vocab_size)?.first().copied(),
            eos: fields.tokens("eos_token_id", vocab_size)?,
            pad: fields
                .get("pad_token_id")
                .and_then(Value::as_u64)
                .filter(|&id| id < vocab_size as u64)
                .map(|id| id as u32),
            quantized: quantized(&fields)?,
            raw,
        })
    }

    /// Width of the queries, `heads * head_dim`.
    pub fn query_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of the keys and of the values, `kv_heads * head_dim`.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// The seven linears of a block: full name of the weight and `[rows, cols]`.
    pub fn linear_shapes(&self, layer: usize) -> [(String, [usize; 2]); 7] {
        let (hidden, inner) = (self.hidden_size, self.intermediate_size);
        let (query, kv) = (self.query_width(), self.kv_width());
        [
            ("self_attn.q_proj", [query, hidden]),
            ("self_attn.k_proj", [kv, hidden]),
            ("self_attn.v_proj", [kv, hidden]),
            ("self_attn.o_proj", [hidden, query]),
            ("mlp.gate_proj", [inner, hidden]),
            ("mlp.up_proj", [inner, hidden]),
            ("mlp.down_proj", [hidden, inner]),
        ]
        .map(|(module, shape)| (format!("model.layers.{layer}.{module}.weight"), shape))
    }

    /// Standard deviation of fresh weights (`initializer_range`; 0.02 where the file does not say).
    pub fn initializer_range(&self) -> f64 {
        self.raw.get("initializer_range").and_then(Value::as_f64).unwrap_or(0.02)
    }

    /// The JSON with `quantization_config` set, or removed.
    pub fn json_with_quantization(&self, quantization: Option<Value>) -> Value {
        let mut raw = self.raw.clone();
        if let Value::Object(fields) = &mut raw {
            match quantization {
                Some(value) => fields.insert("quantization_config".into(), value),
                None => fields.shift_remove("quantization_config"),
            };
        }
        raw
    }
}

/// An object of the JSON and where it stands in the file.
struct Fields<'v> {
    object: &'v Map<String, Value>,
    prefix: String,
}

impl<'v> Fields<'v> {
    fn of(value: &'v Value) -> Result<Fields<'v>> {
        match value {
            Value::Object(object) => Ok(Fields { object, prefix: String::new() }),
            other => Err(Error::failed(format!("expected a JSON object, found {}", shortened(other)))),
        }
    }

    /// A field that is there and not null.
    fn get(&self, key: &str) -> Option<&'v Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    fn object(&self, key: &str) -> Result<Option<Fields<'v>>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(object)) => Ok(Some(Fields { object, prefix: format!("{}{key}.", self.prefix) })),
            Some(_) => Err(self.wrong(key, "an object")),
        }
    }

    /// `key: expected ..., found ...`
    fn wrong(&self, key: &str, expected: &str) -> Error {
        let found = self.object.get(key).map_or("nothing".to_string(), shortened);
        Error::failed(format!("{}{key}: expected {expected}, found {found}", self.prefix))
    }

    /// A whole number from 1 to 2^31 - 1, which no product of two overflows.
    fn optional_size(&self, key: &str) -> Result<Option<usize>> {
        match self.get(key).map(Value::as_u64) {
            None => Ok(None),
            Some(Some(size)) if (1..=i32::MAX as u64).contains(&size) => Ok(Some(size as usize)),
            Some(_) => Err(self.wrong(key, "a whole number from 1 to 2147483647")),
        }
    }

    fn size(&self, key: &str) -> Result<usize> {
        self.optional_size(key)?.ok_or_else(|| self.wrong(key, "a whole number from 1 to 2147483647"))
    }

    fn flag(&self, key: &str) -> Result<bool> {
        match self.get(key) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(_) => Err(self.wrong(key, "true or false")),
        }
    }

    fn number(&self, key: &str, valid: impl Fn(f64) -> bool, range: &str) -> Result<Option<f64>> {
        match self.get(key).map(Value::as_f64) {
            None => Ok(None),
            Some(Some(number)) if valid(number) => Ok(Some(number)),
            Some(_) => Err(self.wrong(key, &format!("a number {range}"))),
        }
    }

    fn text(&self, key: &str) -> Result<Option<&'v str>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.wrong(key, "a text")),
        }
    }

    /// One token id, a list of them, or none.
    fn tokens(&self, key: &str, vocab_size: usize) -> Result<Vec<u32>> {
        let values = match self.get(key) {
            None => return Ok(Vec::new()),
            Some(Value::Array(values)) => values.as_slice(),
            Some(value) => std::slice::from_ref(value),
        };
        let ids: Option<Vec<u32>> =
            values.iter().map(|v| v.as_u64().filter(|&id| id < vocab_size as u64).map(|id| id as u32)).collect();
        ids.ok_or_else(|| self.wrong(key, &format!("token ids below vocab_size = {vocab_size}")))
    }
}

/// A JSON value, cut where it would fill the screen.
fn shortened(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

fn architecture(fields: &Fields<'_>) -> Result<Architecture> {
    match fields.text("model_type")? {
        Some("llama") => Ok(Architecture::Llama),
        Some("mistral") => Ok(Architecture::Mistral),
        _ => Err(fields.wrong("model_type", "\"llama\" or \"mistral\"").hint(
            "supported are models of the LLaMA architecture: LLaMA 1, 2 and 3, TinyLlama, SmolLM, and Mistral \
                 without a sliding window",
        )),
    }
}

/// Fields that change the equations in a way the engine does not have.
fn refuse_what_is_not_computed(fields: &Fields<'_>, architecture: Architecture) -> Result<()> {
    if !matches!(fields.text("hidden_act")?, None | Some("silu")) {
        return Err(fields.wrong("hidden_act", "\"silu\""));
    }
    fields.number("attention_dropout", |p| p == 0.0, "0 (the engine has no attention dropout)")?;
    if architecture == Architecture::Mistral {
        let positions = max_positions(fields, architecture)?;
        // MistralConfig's window is 4096 where the key is missing, and none where it is null.
        let window = match fields.object.get("sliding_window") {
            None => Some(4096),
            Some(Value::Null) => None,
            Some(_) => fields.optional_size("sliding_window")?,
        };
        if window.is_some_and(|window| window < positions) {
            let expected = format!("null, or at least max_position_embeddings = {positions}");
            return Err(fields.wrong("sliding_window", &expected).hint(
                "attention here is over the whole sequence; set max_position_embeddings to the window's size to use \
                 the model up to that length, where both are the same",
            ));
        }
    }
    Ok(())
}

fn max_positions(fields: &Fields<'_>, architecture: Architecture) -> Result<usize> {
    let default = match architecture {
        Architecture::Llama => 2048,
        Architecture::Mistral => 4096 * 32,
    };
    Ok(fields.optional_size("max_position_embeddings")?.unwrap_or(default))
}

fn head_dim(fields: &Fields<'_>, hidden_size: usize, heads: usize) -> Result<usize> {
    let head_dim = match fields.optional_size("head_dim")? {
        Some(head_dim) => head_dim,
        None if hidden_size.is_multiple_of(heads) => hidden_size / heads,
        None => {
            return Err(fields.wrong("num_attention_heads", &format!("a divisor of hidden_size = {hidden_size}")));
        }
    };
    if !head_dim.is_multiple_of(2) {
        crate::bail!("head_dim: expected an even number (rotary embedding turns pairs), found {head_dim}");
    }
    Ok(head_dim)
}

fn kv_heads(fields: &Fields<'_>, heads: usize, architecture: Architecture) -> Result<usize> {
    let default = match architecture {
        Architecture::Llama => heads,
        Architecture::Mistral => 8,
    };
    // A null means "as many as query heads" in either family.
    let missing = if fields.object.contains_key("num_key_value_heads") { heads } else { default };
    let kv_heads = fields.optional_size("num_key_value_heads")?.unwrap_or(missing);
    if heads.is_multiple_of(kv_heads) {
        return Ok(kv_heads);
    }
    Err(fields.wrong("num_key_value_heads", &format!("a divisor of num_attention_heads = {heads}")))
}

/// `rope_parameters` (transformers 5, theta inside) or `rope_theta` + `rope_scaling`.
fn rope(fields: &Fields<'_>, head_dim: usize) -> Result<RopeConfig> {
    let positive = |value: f64| value > 0.0 && value.is_finite();
    let outer_theta = fields.number("rope_theta", positive, "above 0")?;
    fields.number("partial_rotary_factor", |factor| factor == 1.0, "1 (all of the head is turned)")?;
    let inner = match fields.object("rope_parameters")? {
        Some(parameters) => Some(parameters),
        None => fields.object("rope_scaling")?,
    };
    let Some(inner) = inner else {
        return Ok(RopeConfig { theta: outer_theta.unwrap_or(10_000.0), head_dim, scaling: RopeScaling::Default });
    };
    inner.number("partial_rotary_factor", |factor| factor == 1.0, "1 (all of the head is turned)")?;
    let inner_theta = inner.number("rope_theta", positive, "above 0")?;
    let scaling = rope_scaling(&inner)?;
    Ok(RopeConfig { theta: inner_theta.or(outer_theta).unwrap_or(10_000.0), head_dim, scaling })
}

fn rope_scaling(inner: &Fields<'_>) -> Result<RopeScaling> {
    let key = if inner.get("rope_type").is_some() { "rope_type" } else { "type" };
    let factor = || {
        let factor = inner.number("factor", |factor| factor >= 1.0 && factor.is_finite(), "of at least 1")?;
        factor.ok_or_else(|| inner.wrong("factor", "a number of at least 1"))
    };
    match inner.text(key)? {
        Some("default") => Ok(RopeScaling::Default),
        Some("linear") => Ok(RopeScaling::Linear { factor: factor()? }),
        Some("llama3") => {
            let wavelength = |key: &str| {
                let value = inner.number(key, |value| value > 0.0 && value.is_finite(), "above 0")?;
                value.ok_or_else(|| inner.wrong(key, "a number above 0"))
            };
            let (low, high) = (wavelength("low_freq_factor")?, wavelength("high_freq_factor")?);
            if high <= low {
                return Err(inner.wrong("high_freq_factor", &format!("a number above low_freq_factor = {low}")));
            }
            Ok(RopeScaling::Llama3 {
                factor: factor()?,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_position_embeddings: inner.size("original_max_position_embeddings")?,
            })
        }
        _ => Err(inner.wrong(key, "\"default\", \"linear\" or \"llama3\"").hint(
            "dynamic, yarn and longrope scaling are not computed; a model that uses one would give wrong numbers",
        )),
    }
}

fn dtype(fields: &Fields<'_>) -> Option<SourceDtype> {
    let name = fields.get("dtype").or_else(|| fields.get("torch_dtype"))?.as_str()?;
    match name.trim_start_matches("torch.") {
        "float32" => Some(SourceDtype::F32),
        "float16" => Some(SourceDtype::F16),
        "bfloat16" => Some(SourceDtype::Bf16),
        _ => None,
    }
}

fn quantized(fields: &Fields<'_>) -> Result<bool> {
    match fields.get("quantization_config") {
        None => Ok(false),
        Some(value) => check_quantization_config(value).map(|()| true),
    }
}

#[cfg(test)]
#[path = "hf_config_tests.rs"]
mod tests;
