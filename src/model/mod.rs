//! LLaMA-architecture models: configuration, weights, the decoder block forward and backward, the stack, the KV cache.

pub mod block;
pub mod cache;
pub mod companions;
pub mod cuda;
mod decode;
pub mod extend;
pub mod gguf;
mod head;
pub mod hf_config;
pub mod hub;
pub mod layer;
pub mod llama;
pub mod load;
pub mod open;
pub mod pass;
pub mod random;
pub mod source;
pub mod verify;
pub mod weights;

pub use block::Keep;
pub use cache::KvCache;
pub use extend::Extension;
pub use hf_config::ModelConfig;
pub use llama::{Batch, Llama};
pub use load::{load, LoadOptions, Method};
pub use open::OpenModel;
pub use pass::{DoraScales, Noise, Pass, Rows};
pub use source::{StoredTensors, TensorSource};
pub use weights::{Checkpoint, RawTensor, StoredDtype};
