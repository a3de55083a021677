//! 4-bit NF4 storage of weights: the format and its CPU truth ([`nf4`]), and its form on disk.

pub mod nf4;

pub use nf4::{Nf4Matrix, Scales, SourceDtype};
