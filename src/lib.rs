//! `llamantino`: QLoRA fine-tuning of LLaMA-architecture models, from Hugging Face weights to an Italian model.
//!
//! The modules in data-flow order:
//! [`config`] turns a TOML file into typed settings;
//! [`data`] reads text and makes packed batches of tokens;
//! [`quant`] is NF4, the 4-bit format of the frozen base;
//! [`ops`] are the operations of the step, forward and backward;
//! [`device`] and [`error`] stand below everything.

pub mod config;
pub mod data;
pub mod device;
pub mod error;
pub mod ops;
pub mod quant;
