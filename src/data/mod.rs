//! Data: files → documents → tokens → packed micro-batches.
//!
//! [`formats`] read records, [`tokenize`] makes tokens of them, [`corpus`] keeps them, [`pack`] and [`batch`] deal them
//! out.

pub mod batch;
pub mod corpus;
pub mod formats;
pub mod pack;
#[cfg(test)]
mod testing;
pub mod tokenize;
