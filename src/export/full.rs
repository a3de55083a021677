//! A fully trained model as a Hugging Face folder: every weight from the parameter store, rounded once.

use super::companions;
use super::safetensors::{write_json, ShardWriter, TensorSpec, Written, SHARD_BYTES};
use crate::checkpoint::AtomicFolder;
use crate::error::{Error, Result};
use crate::model::{RawTensor, StoredDtype};
use crate::ops::{Bytes, Param, ParamKind, ParamStore};
use half::{bf16, f16};
use serde_json::Value;
use std::path::Path;

/// dtype of written weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SaveDtype {
    /// Exactly what was trained.
    #[default]
    F32,
    /// Half precision.
    F16,
    /// bfloat16.
    Bf16,
}

/// Writes a model into `folder`: weights of `params`, `config` (with its dtype set), and the tokenizer files of `base`.
///
/// # Errors
/// A value that is not finite in `dtype`; what the file system says.
pub fn write(
    folder: &mut AtomicFolder<'_>,
    config: &Value,
    base: &Path,
    params: &ParamStore,
    dtype: SaveDtype,
) -> Result<Written> {
    let stored = match dtype {
        SaveDtype::F32 => StoredDtype::F32,
        SaveDtype::F16 => StoredDtype::F16,
        SaveDtype::Bf16 => StoredDtype::Bf16,
    };
    let groups = params.iter().map(|param| vec![TensorSpec::new(&param.name, stored, shape(param))]).collect();
    let mut writer = ShardWriter::new(folder.temporary(), "model", groups, SHARD_BYTES)?;
    for param in params.iter() {
        let bytes = Bytes::owned(&encode(&param.name, &param.value, dtype)?);
        writer.write(&param.name, &RawTensor { dtype: stored, shape: shape(param), bytes })?;
    }
    let written = writer.finish()?;
    write_json(&folder.temporary().join("config.json"), &config_of(config, dtype))?;
    companions::copy(base, folder)?;
    Ok(written)
}

/// A config.json that says that its weights are of `dtype`.
pub fn config_of(config: &Value, dtype: SaveDtype) -> Value {
    let mut config = config.clone();
    let name = match dtype {
        SaveDtype::F32 => "float32",
        SaveDtype::F16 => "float16",
        SaveDtype::Bf16 => "bfloat16",
    };
    let key = if config.get("dtype").is_some() { "dtype" } else { "torch_dtype" };
    config[key] = name.into();
    config
}

/// Norms and biases have one dimension in a checkpoint.
fn shape(param: &Param) -> Vec<usize> {
    match param.kind {
        ParamKind::Norm | ParamKind::Bias => vec![param.cols],
        _ => vec![param.rows, param.cols],
    }
}

/// The values rounded once.
///
/// # Errors
/// A value that is not finite in this dtype.
fn encode(name: &str, values: &[f32], dtype: SaveDtype) -> Result<Vec<u8>> {
    let fits = |value: &&f32| match dtype {
        SaveDtype::F32 => value.is_finite(),
        SaveDtype::F16 => f16::from_f32(**value).is_finite(),
        SaveDtype::Bf16 => bf16::from_f32(**value).is_finite(),
    };
    if let Some(value) = values.iter().find(|value| !fits(value)) {
        return Err(Error::failed(format!("{name}: {value} has no finite value in the dtype of the file"))
            .hint("write another one: save_dtype = \"f32\" holds whatever was trained"));
    }
    Ok(match dtype {
        SaveDtype::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        SaveDtype::F16 => values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
        SaveDtype::Bf16 => values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
    })
}
