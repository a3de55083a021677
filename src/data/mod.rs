//! Data: files → documents → tokens → packed micro-batches.
//!
//! [`config`] says which data, [`formats`] read records, [`template`] writes conversations, [`tokenize`] makes tokens of
//! them, [`examples`] says which of these are trained, [`corpus`] keeps them, [`cache`] between runs too. [`load`] does
//! all of this in one go; [`mix`], [`pack`] and [`batch`] deal them out.

pub mod batch;
pub mod cache;
pub mod config;
pub mod corpus;
pub mod examples;
pub mod formats;
pub mod inspect;
pub mod load;
pub mod mix;
pub mod pack;
pub mod template;
#[cfg(test)]
pub(crate) mod testing;
pub mod tokenize;

pub use config::{DataConfig, SourceConfig};
