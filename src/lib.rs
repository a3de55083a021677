//! `llamantino`: QLoRA fine-tuning of LLaMA-architecture models, from Hugging Face weights to an Italian model.
//!
//! The modules in data-flow order:
//! [`export`] writes models: shards, NF4 folders;
//! [`model`] reads the description and the weights of a model;
//! [`data`] reads text and makes packed batches of tokens;
//! [`quant`] is NF4, the 4-bit format of the frozen base;
//! [`ops`] are the operations of the step, forward and backward;
//! [`optim`] turns gradients into new parameter values;
//! [`device`] and [`error`] stand below everything.

pub mod adapter;
pub mod data;
pub mod device;
pub mod error;
pub mod export;
pub mod model;
pub mod ops;
pub mod optim;
pub mod quant;
pub mod train;
