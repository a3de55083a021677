//! A model: its description ([`hf_config`]) and its weights on disk ([`weights`]).

pub mod hf_config;
pub mod weights;

pub use hf_config::{Architecture, ModelConfig};
pub use weights::{Checkpoint, RawTensor, StoredDtype};
