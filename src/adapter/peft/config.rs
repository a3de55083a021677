//! `adapter_config.json`: PEFT's options, read strictly and written as far as PEFT needs them.

use crate::adapter::{LoraConfig, Modules, Target};
use crate::bail;
use crate::error::{Error, Result};
use serde_json::{Map, Value};
use std::path::Path;

/// What the file says, as far as we act on it.
#[derive(Debug)]
pub(super) struct PeftConfig {
    /// Options of the adapter; `modules.only` is still empty.
    pub lora: LoraConfig,
    /// `target_modules`, where it alone decides which linears have an adapter.
    pub targets: Option<Vec<String>>,
}

/// Keys that change nothing in how a finished adapter acts.
const HARMLESS: [&str; 13] = [
    "auto_mapping",
    "base_model_name_or_path",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "megatron_core",
    "modules_to_save",
    "peft_version",
    "qalora_group_size",
    "revision",
];

/// Keys that are read.
const READ: [&str; 12] = [
    "alpha_pattern",
    "bias",
    "init_lora_weights",
    "lora_alpha",
    "lora_dropout",
    "peft_type",
    "r",
    "rank_pattern",
    "target_modules",
    "task_type",
    "use_dora",
    "use_rslora",
];

impl PeftConfig {
    /// Reads and checks the file.
    pub(super) fn read(path: &Path) -> Result<PeftConfig> {
        let text = std::fs::read_to_string(path).map_err(|error| Error::io(path, "read", error))?;
        let value: Value =
            serde_json::from_str(&text).map_err(|error| Error::file(path, format!("not JSON: {error}")))?;
        let Value::Object(fields) = value else { return Err(Error::file(path, "expected a JSON object")) };
        parse(&Fields(fields)).map_err(|error| error.at(path.display()))
    }
}

struct Fields(Map<String, Value>);

fn parse(fields: &Fields) -> Result<PeftConfig> {
    fields.expect("peft_type", |value| value == "LORA", "\"LORA\"")?;
    fields.expect("task_type", |value| value.is_null() || value == "CAUSAL_LM", "\"CAUSAL_LM\"")?;
    fields.expect("bias", |value| value.is_null() || value == "none", "\"none\"")?;
    // The others (PiSSA, OLoRA, CorDA, LoftQ) change the base's weights too.
    let init = |value: &Value| {
        value.is_null() || value.is_boolean() || ["gaussian", "eva", "orthogonal"].iter().any(|name| value == *name)
    };
    fields.expect("init_lora_weights", init, "true, false or \"gaussian\" (others change the base model too)")?;
    for (key, value) in &fields.0 {
        if !READ.contains(&key.as_str()) && !HARMLESS.contains(&key.as_str()) && !is_off(value) {
            return Err(Error::failed(format!("{key} = {value}: this option is not supported")));
        }
    }
    let lora = LoraConfig {
        r: fields.natural("r")?,
        alpha: fields.number("lora_alpha", None)?,
        dropout: fields.number("lora_dropout", Some(0.0))? as f32,
        targets: Target::ALL.to_vec(),
        rslora: fields.flag("use_rslora")?,
        dora: fields.flag("use_dora")?,
        modules: Modules { only: None, ranks: fields.ranks()?, alphas: fields.alphas()? },
    };
    if let Some(problem) = lora.problems().first() {
        bail!("{problem}");
    }
    Ok(PeftConfig { lora, targets: fields.targets()? })
}

/// Null, false, and empty lists, objects and texts ask for nothing.
fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::String(text) => text.is_empty(),
        _ => false,
    }
}

impl Fields {
    fn get(&self, key: &str) -> &Value {
        self.0.get(key).unwrap_or(&Value::Null)
    }

    fn expect(&self, key: &str, fine: impl Fn(&Value) -> bool, expected: &str) -> Result<()> {
        let value = self.get(key);
        if !fine(value) {
            bail!("{key} = {value}: expected {expected}");
        }
        Ok(())
    }

    fn natural(&self, key: &str) -> Result<usize> {
        natural(key, self.get(key))
    }

    fn number(&self, key: &str, default: Option<f64>) -> Result<f64> {
        match (self.get(key), default) {
            (Value::Null, Some(default)) => Ok(default),
            (value, _) => number(key, value),
        }
    }

    fn flag(&self, key: &str) -> Result<bool> {
        match self.get(key) {
            Value::Null => Ok(false),
            Value::Bool(value) => Ok(*value),
            value => bail!("{key} = {value}: expected true or false"),
        }
    }

    fn ranks(&self) -> Result<Vec<(String, usize)>> {
        self.patterns("rank_pattern", natural)
    }

    fn alphas(&self) -> Result<Vec<(String, f64)>> {
        self.patterns("alpha_pattern", number)
    }

    /// Exceptions by name or end of name, in the file's order. PEFT takes the keys as regular expressions; plain names
    /// mean the same in both readings.
    fn patterns<T>(&self, key: &str, read: impl Fn(&str, &Value) -> Result<T>) -> Result<Vec<(String, T)>> {
        let entries = match self.get(key) {
            Value::Null => return Ok(Vec::new()),
            Value::Object(entries) => entries,
            value => bail!("{key} = {value}: expected an object"),
        };
        let entry = |(pattern, value): (&String, &Value)| {
            if !pattern.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '.') {
                bail!("{key}: {pattern:?}: expected the name of a module, regular expressions are not supported");
            }
            Ok((pattern.clone(), read(&format!("{key}.{pattern}"), value)?))
        };
        entries.iter().map(entry).collect()
    }

    /// The list `target_modules`, unless another key or a regular expression has a say: then the tensors alone tell.
    fn targets(&self) -> Result<Option<Vec<String>>> {
        let key = "target_modules";
        let restricted = !is_off(self.get("layers_to_transform")) || !is_off(self.get("exclude_modules"));
        match self.get(key) {
            Value::Array(items) => {
                let names: Option<Vec<String>> = items.iter().map(|item| item.as_str().map(String::from)).collect();
                match names {
                    Some(names) => Ok((!restricted).then_some(names)),
                    None => bail!("{key} = {}: expected a list of names", self.get(key)),
                }
            }
            Value::String(_) | Value::Null => Ok(None),
            value => bail!("{key} = {value}: expected a list of names"),
        }
    }
}

fn natural(key: &str, value: &Value) -> Result<usize> {
    match value.as_u64() {
        Some(number) if (1..=4096).contains(&number) => Ok(number as usize),
        _ => bail!("{key} = {value}: expected a number from 1 to 4096"),
    }
}

fn number(key: &str, value: &Value) -> Result<f64> {
    match value.as_f64() {
        Some(number) => Ok(number),
        None => bail!("{key} = {value}: expected a number"),
    }
}
