//! Data: files → documents → tokens → packed micro-batches.
//!
//! [`config`] says which data, [`formats`] read records, [`template`] writes conversations, [`tokenize`] makes tokens of them, [`corpus`] keeps them,
//! [`load`] does the three in one go, [`pack`] and [`batch`] deal them out.

pub mod batch;
pub mod config;
pub mod corpus;
pub mod formats;
pub mod load;
pub mod pack;
pub mod template;
#[cfg(test)]
pub(crate) mod testing;
pub mod tokenize;

pub use config::{DataConfig, SourceConfig};
