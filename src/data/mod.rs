//! Data: files → documents → tokens → packed micro-batches.
//!
//! [`formats`] read records, [`tokenize`] makes tokens of them.

pub mod batch;
pub mod formats;
#[cfg(test)]
mod testing;
pub mod tokenize;
