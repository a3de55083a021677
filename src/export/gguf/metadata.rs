//! What a GGUF file says about its model: the keys of `config.json` under llama.cpp's names.
//!
//! Reference: the key list of the GGUF specification; llama.cpp's `convert_hf_to_gguf.py`.

use super::scheme::FileType;
use super::writer::{Metadata, Value};
use crate::error::{Error, Result};
use crate::model::ModelConfig;
use crate::ops::rope::RopeScaling;

/// The keys of a model, without those of its tokenizer.
///
/// # Errors
/// A size that the format has no room for.
pub fn of_model(name: &str, config: &ModelConfig, file_type: FileType) -> Result<Metadata> {
    let mut metadata = vec![
        text("general.architecture", "llama"),
        text("general.type", "model"),
        text("general.name", name),
        ("general.file_type".into(), Value::U32(file_type.number())),
    ];
    if file_type.is_quantised() {
        // Of the K types: the present one.
        metadata.push(("general.quantization_version".into(), Value::U32(2)));
    }
    let sizes = [
        ("block_count", config.layers),
        ("context_length", config.max_position_embeddings),
        ("embedding_length", config.hidden_size),
        ("feed_forward_length", config.intermediate_size),
        ("attention.head_count", config.heads),
        ("attention.head_count_kv", config.kv_heads),
        ("attention.key_length", config.head_dim),
        ("attention.value_length", config.head_dim),
        ("rope.dimension_count", config.head_dim),
        ("vocab_size", config.vocab_size),
    ];
    for (key, size) in sizes {
        let value = u32::try_from(size).map_err(|_| Error::failed(format!("{key}: {size} does not fit in 32 bits")))?;
        metadata.push((format!("llama.{key}"), Value::U32(value)));
    }
    let eps = config.rms_norm_eps as f32;
    metadata.push(("llama.attention.layer_norm_rms_epsilon".into(), Value::F32(eps)));
    metadata.push(("llama.rope.freq_base".into(), Value::F32(config.rope.theta as f32)));
    if let RopeScaling::Linear { factor } = config.rope.scaling {
        metadata.push(text("llama.rope.scaling.type", "linear"));
        metadata.push(("llama.rope.scaling.factor".into(), Value::F32(factor as f32)));
    }
    Ok(metadata)
}

/// A key with a text.
pub fn text(key: &str, value: &str) -> (String, Value) {
    (key.into(), Value::Text(value.into()))
}
