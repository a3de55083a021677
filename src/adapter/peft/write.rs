//! Writing an adapter's folder. Every file gets its whole content under another name, is synced and then renamed; the
//! configuration comes last, so that a folder that has one is complete.

use super::keys::{linear_key, saved_key, Part};
use super::{Provenance, CONFIG_FILE, PROVENANCE_FILE, TENSOR_FILE};
use crate::adapter::Target;
use crate::error::{Error, Result};
use safetensors::tensor::{Dtype, View};
use serde_json::{json, Map, Value};
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::path::Path;

/// Everything that goes into the files.
pub(super) struct Content<'a> {
    /// The adapters, in the model's order.
    pub linears: Vec<LinearContent<'a>>,
    /// Weights trained as a whole: tensor name, shape, values.
    pub saved: Vec<(&'static str, [usize; 2], &'a [f32])>,
    /// Linears of the model that have no adapter.
    pub others: Vec<&'a str>,
    /// Dropout of the adapters' input.
    pub dropout: f32,
}

/// The adapter of one linear.
pub(super) struct LinearContent<'a> {
    pub name: &'a str,
    pub rank: usize,
    pub alpha: f64,
    pub rslora: bool,
    pub rows: usize,
    pub cols: usize,
    pub a: &'a [f32],
    pub b: &'a [f32],
    pub magnitude: Option<&'a [f32]>,
}

/// Writes the three files into `folder`, which is made if it is not there.
pub(super) fn write(folder: &Path, content: &Content<'_>, provenance: &Provenance) -> Result<()> {
    fs::create_dir_all(folder).map_err(|error| Error::io(folder, "create", error))?;
    let config = folder.join(CONFIG_FILE);
    if let Err(error) = fs::remove_file(&config) {
        if error.kind() != std::io::ErrorKind::NotFound {
            return Err(Error::io(&config, "replace", error));
        }
    }
    replace(&folder.join(TENSOR_FILE), |path| {
        let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
        safetensors::serialize_to_file(tensors(content), Some(metadata), path).map_err(|error| match error {
            safetensors::SafeTensorError::IoError(error) => error,
            other => std::io::Error::other(other.to_string()),
        })
    })?;
    let provenance = serde_json::to_value(provenance).map_err(|error| Error::file(folder, error))?;
    write_json(&folder.join(PROVENANCE_FILE), &provenance)?;
    write_json(&config, &config_json(content, provenance["base"].as_str().unwrap_or_default()))?;
    sync(folder)
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    replace(path, |path| fs::write(path, format!("{value:#}\n")))
}

/// Has `fill` make the file under another name, then puts it, synced, in the place of `path`.
fn replace(path: &Path, fill: impl FnOnce(&Path) -> std::io::Result<()>) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.part"));
    fill(&temporary).map_err(|error| Error::io(&temporary, "write", error))?;
    readable(&temporary)?;
    sync(&temporary)?;
    fs::rename(&temporary, path).map_err(|error| Error::io(path, "replace", error))
}

/// The safetensors crate makes its files readable by their owner alone; these are as public as any other.
#[cfg(unix)]
fn readable(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).map_err(|error| Error::io(path, "write", error))
}

#[cfg(not(unix))]
fn readable(_: &Path) -> Result<()> {
    Ok(())
}

fn sync(path: &Path) -> Result<()> {
    File::open(path).and_then(|file| file.sync_all()).map_err(|error| Error::io(path, "sync", error))
}

/// A tensor to write.
struct Values<'a> {
    shape: Vec<usize>,
    values: &'a [f32],
}

impl View for Values<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        self.values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    fn data_len(&self) -> usize {
        size_of_val(self.values)
    }
}

fn tensors<'a>(content: &'a Content<'_>) -> BTreeMap<String, Values<'a>> {
    let mut tensors = BTreeMap::new();
    for linear in &content.linears {
        let mut add = |part, shape: Vec<usize>, values| {
            tensors.insert(linear_key(linear.name, part), Values { shape, values });
        };
        add(Part::A, vec![linear.rank, linear.cols], linear.a);
        add(Part::B, vec![linear.rows, linear.rank], linear.b);
        if let Some(magnitude) = linear.magnitude {
            add(Part::Magnitude, vec![linear.rows], magnitude);
        }
    }
    for &(name, shape, values) in &content.saved {
        tensors.insert(saved_key(name), Values { shape: shape.to_vec(), values });
    }
    tensors
}

/// The configuration that makes PEFT build the same adapters.
fn config_json(content: &Content<'_>, base: &str) -> Value {
    let (rank, alpha) = content.linears.first().map_or((1, 1.0), |first| (first.rank, first.alpha));
    let (mut ranks, mut alphas) = (Map::new(), Map::new());
    for linear in &content.linears {
        if linear.rank != rank {
            ranks.insert(linear.name.into(), json!(linear.rank));
        }
        if linear.alpha != alpha {
            alphas.insert(linear.name.into(), number(linear.alpha));
        }
    }
    let saved: Vec<&str> = content.saved.iter().map(|&(name, ..)| module_name(name)).collect();
    json!({
        "alpha_pattern": alphas,
        "auto_mapping": null,
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "layers_pattern": null,
        "layers_to_transform": null,
        "lora_alpha": number(alpha),
        "lora_dropout": f64::from(content.dropout),
        "modules_to_save": if saved.is_empty() { Value::Null } else { json!(saved) },
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": ranks,
        "revision": null,
        "target_modules": target_modules(content),
        "task_type": "CAUSAL_LM",
        "use_dora": content.linears.iter().any(|linear| linear.magnitude.is_some()),
        "use_rslora": content.linears.iter().any(|linear| linear.rslora),
    })
}

/// Integers without a fraction, as PEFT's own files have them.
fn number(value: f64) -> Value {
    match value.fract() == 0.0 && value.abs() < 1e15 {
        true => json!(value as i64),
        false => json!(value),
    }
}

/// `model.embed_tokens.weight` is the module `embed_tokens`.
fn module_name(weight: &str) -> &str {
    let module = weight.strip_suffix(".weight").unwrap_or(weight);
    module.rsplit('.').next().unwrap_or(module)
}

/// Short names where they mean exactly the linears that have an adapter, otherwise full names.
fn target_modules(content: &Content<'_>) -> Vec<String> {
    let targets = |names: &mut dyn Iterator<Item = &str>| -> Vec<Target> {
        let mut targets: Vec<Target> = names.filter_map(Target::of).collect();
        targets.sort_unstable();
        targets.dedup();
        targets
    };
    let with = targets(&mut content.linears.iter().map(|linear| linear.name));
    let without = targets(&mut content.others.iter().copied());
    let mut names: Vec<String> = match with.iter().any(|target| without.contains(target)) {
        true => content.linears.iter().map(|linear| linear.name.to_string()).collect(),
        false => with.iter().map(|target| target.name().to_string()).collect(),
    };
    names.sort_unstable();
    names
}
