//! 4-bit NF4 storage of weights.
//!
//! [`nf4`] is the format, [`quantize`](mod@quantize) its CPU truth, [`double`] the 8-bit form of the scales,
//! [`file`](mod@file) the form on disk.

pub mod cuda;
pub mod double;
pub mod file;
mod kernels;
pub mod nf4;
pub mod quantize;

pub use nf4::{Nf4Matrix, Scales, SourceDtype};
pub use quantize::{quantize, QuantConfig, Values};

#[cfg(test)]
mod file_tests;
#[cfg(test)]
mod tests;
