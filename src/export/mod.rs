//! Writing models: sharded safetensors ([`safetensors`](mod@safetensors)), whole folders that appear at once
//! ([`folder`]), and the NF4 form of a model ([`quantize`](mod@quantize)).

pub mod folder;
pub mod quantize;
pub mod safetensors;

pub use folder::NewFolder;
pub use quantize::quantize_folder;
pub use safetensors::{ShardWriter, TensorSpec, Written, SHARD_BYTES};
