//! Writing models: sharded safetensors ([`safetensors`](mod@safetensors)), what lies
//! beside them ([`companions`]), the NF4 form of a model ([`quantize`](mod@quantize)), an adapter folded into it ([`merge`]), what a
//! tuned model changes in its base ([`diff`]), GGUF files out ([`gguf`]) and as folders ([`import`]).

pub mod companions;
pub mod diff;
pub mod full;
pub mod gguf;
pub mod import;
pub mod merge;
pub mod quantize;
pub mod safetensors;

pub use import::{import_gguf, ImportSummary};
pub use merge::{merge_folder, MergeDtype, MergeJob};
pub use quantize::quantize_folder;
pub use safetensors::{ShardWriter, TensorSpec, Written, SHARD_BYTES};
