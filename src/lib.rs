//! `llamantino`: QLoRA fine-tuning of LLaMA-architecture models, from Hugging Face weights to an Italian model.
//!
//! The modules in data-flow order:
//! [`config`] is the TOML file of a run, resolved and checked;
//! [`config`] turns a TOML file into typed settings;
//! [`data`] reads text and makes packed batches of tokens;
//! [`model`] reads a model and runs it: decoder blocks forward and backward, the stack, the cache;
//! [`adapter`] are LoRA's parameters and files;
//! [`optim`] turns gradients into new parameter values;
//! [`checkpoint`] keeps the state of a run on disk;
//! [`train`] is the step and the loop around it;
//! [`export`] writes models: merged, quantised, sharded;
//! [`generate`] continues text;
//! [`eval`] measures what a model knows: bits per byte, multiple choice, tasks in Italian;
//! [`report`] is the page about a run, [`bench`] measures, [`cli`] is the command line.
//!
//! Below them, [`ops`] are the operations of the step, forward and backward; [`quant`] is NF4, the 4-bit format of the
//! frozen base; [`device`] and [`error`] stand below everything.

pub mod adapter;
pub mod bench;
pub mod checkpoint;
pub mod cli;
pub mod config;
pub mod data;
pub mod device;
pub mod error;
pub mod eval;
pub mod export;
pub mod generate;
pub mod model;
pub mod ops;
pub mod optim;
pub mod quant;
pub mod report;
pub mod train;
