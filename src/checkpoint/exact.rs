//! Floating-point numbers in JSON that come back bit for bit, infinities and NaN included.
//!
//! They are written as strings in the shortest decimal form that Rust's own parser reads back exactly: serde_json's fast
//! number parser may be off by one in the last place.

use serde::{de::Error, Deserialize, Deserializer, Serialize, Serializer};

fn parse<'de, D: Deserializer<'de>>(text: &str) -> Result<f64, D::Error> {
    text.parse().map_err(|_| D::Error::custom(format!("{text:?}: expected a number")))
}

/// `#[serde(with = "exact")]` on an `f64`.
pub fn serialize<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    format!("{value:?}").serialize(serializer)
}

/// See [`serialize`].
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    parse::<D>(&String::deserialize(deserializer)?)
}

/// `#[serde(with = "exact::option")]` on an `Option<f64>`.
pub mod option {
    use super::*;

    /// See [`super::serialize`].
    pub fn serialize<S: Serializer>(value: &Option<f64>, serializer: S) -> Result<S::Ok, S::Error> {
        value.map(|value| format!("{value:?}")).serialize(serializer)
    }

    /// See [`super::serialize`].
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
        Option::<String>::deserialize(deserializer)?.map(|text| parse::<D>(&text)).transpose()
    }
}

/// `#[serde(with = "exact::list")]` on a list of `f64` of any kind.
pub mod list {
    use super::*;

    /// See [`super::serialize`].
    pub fn serialize<S: Serializer, L>(values: &L, serializer: S) -> Result<S::Ok, S::Error>
    where
        for<'a> &'a L: IntoIterator<Item = &'a f64>,
    {
        values.into_iter().map(|value| format!("{value:?}")).collect::<Vec<_>>().serialize(serializer)
    }

    /// See [`super::serialize`].
    pub fn deserialize<'de, D: Deserializer<'de>, L: FromIterator<f64>>(deserializer: D) -> Result<L, D::Error> {
        Vec::<String>::deserialize(deserializer)?.iter().map(|text| parse::<D>(text)).collect()
    }
}
