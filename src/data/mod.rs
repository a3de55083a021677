//! Data.
pub mod batch;
