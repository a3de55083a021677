//! Names of PEFT's tensors and what they mean.

use crate::adapter::Target;
use crate::error::{Error, Result};

/// A part of a linear's adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    A,
    B,
    Magnitude,
}

/// What a tensor is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Key {
    /// Part of the adapter of the linear of this name.
    Linear(String, Part),
    /// The weight of this name, trained as a whole.
    Saved(String),
}

/// What PEFT puts before the model's own names.
const PREFIX: &str = "base_model.model.";

/// Endings of a part's name: today's, and those of older versions.
const ENDINGS: [(&str, Part); 8] = [
    (".lora_A.weight", Part::A),
    (".lora_A.default.weight", Part::A),
    (".lora_B.weight", Part::B),
    (".lora_B.default.weight", Part::B),
    (".lora_magnitude_vector", Part::Magnitude),
    (".lora_magnitude_vector.weight", Part::Magnitude),
    (".lora_magnitude_vector.default", Part::Magnitude),
    (".lora_magnitude_vector.default.weight", Part::Magnitude),
];

/// Weights that may be trained as a whole.
const SAVED: [&str; 2] = ["model.embed_tokens", "lm_head"];

/// Reads a tensor's name.
pub(super) fn parse(name: &str) -> Result<Key> {
    let refuse = |what: &str| Error::failed(format!("{name}: {what}"));
    let Some(own) = name.strip_prefix(PREFIX) else {
        return Err(refuse(&format!("unknown tensor (expected a name that begins with {PREFIX})")));
    };
    for (ending, part) in ENDINGS {
        let Some(linear) = own.strip_suffix(ending) else { continue };
        return match Target::of(linear) {
            Some(_) => Ok(Key::Linear(linear.into(), part)),
            None => Err(refuse("only the seven linears of the decoder block can carry an adapter")),
        };
    }
    for module in SAVED {
        let endings = [".weight", ".modules_to_save.weight", ".modules_to_save.default.weight"];
        if own.strip_prefix(module).is_some_and(|rest| endings.contains(&rest)) {
            return Ok(Key::Saved(format!("{module}.weight")));
        }
    }
    Err(refuse("unknown tensor (expected lora_A, lora_B, lora_magnitude_vector, embed_tokens or lm_head)"))
}

/// Name in the file of a part of a linear's adapter.
pub(super) fn linear_key(linear: &str, part: Part) -> String {
    let ending = match part {
        Part::A => ".lora_A.weight",
        Part::B => ".lora_B.weight",
        Part::Magnitude => ".lora_magnitude_vector",
    };
    format!("{PREFIX}{linear}{ending}")
}

/// Name in the file of a weight trained as a whole.
pub(super) fn saved_key(weight: &str) -> String {
    format!("{PREFIX}{weight}")
}
