//! `training.cache_weights`: which blocks' 4-bit weights a GPU decodes once instead of in every pass. The decoded values are
//! the same, so that no bit of the result depends on it.

use serde::{Deserialize, Serialize};

/// How many blocks' weights stay decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CacheWeights {
    /// As many as the GPU has room for when everything else is there.
    #[default]
    Auto,
    /// All: four times the memory of the codes on top.
    On,
    /// None.
    Off,
}
