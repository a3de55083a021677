//! `training.recompute`: which activations are computed again in the backward pass. No bit of the result depends on it.

use serde::de::{Deserializer, Error, Visitor};
use serde::{Deserialize, Serialize};
use std::fmt;

/// How activations are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Recompute {
    /// As few as the memory demands.
    #[default]
    Auto,
    /// All: least memory, about a third more time.
    On,
    /// None: most memory.
    Off,
}

impl<'de> Deserialize<'de> for Recompute {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Recompute, D::Error> {
        deserializer.deserialize_any(Words)
    }
}

/// Accepts a truth value too, for what it means.
struct Words;

impl Visitor<'_> for Words {
    type Value = Recompute;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("\"auto\", \"on\" or \"off\"")
    }

    fn visit_bool<E: Error>(self, on: bool) -> Result<Recompute, E> {
        Ok(if on { Recompute::On } else { Recompute::Off })
    }

    fn visit_str<E: Error>(self, word: &str) -> Result<Recompute, E> {
        match word {
            "auto" => Ok(Recompute::Auto),
            "on" | "true" => Ok(Recompute::On),
            "off" | "false" => Ok(Recompute::Off),
            _ => Err(E::invalid_value(serde::de::Unexpected::Str(word), &self)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize, Serialize)]
    struct Section {
        recompute: Recompute,
    }

    #[test]
    fn words_and_truth_values_are_understood() {
        let of = |text: &str| toml::from_str::<Section>(&format!("recompute = {text}")).map(|s| s.recompute);
        assert_eq!(of("\"auto\"").unwrap(), Recompute::Auto);
        for (on, off) in [("true", "false"), ("\"on\"", "\"off\""), ("\"true\"", "\"false\"")] {
            assert_eq!((of(on).unwrap(), of(off).unwrap()), (Recompute::On, Recompute::Off));
        }
        let error = of("\"maybe\"").unwrap_err().to_string();
        assert!(error.contains("expected \"auto\", \"on\" or \"off\""), "{error}");
        assert_eq!(toml::to_string(&Section { recompute: Recompute::Auto }).unwrap(), "recompute = \"auto\"\n");
    }
}
