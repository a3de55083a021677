//! The operations of the step, each with its forward and backward, its reference and its tests in one folder.

pub mod attention;
pub mod bytes;
pub mod gemm;
pub mod matrix;
pub mod params;
pub mod random;

pub use bytes::Bytes;
pub use gemm::WeightRef;
pub use matrix::{Arena, MatMut, MatRef, Matrix};
pub use params::{Gradients, Param, ParamId, ParamKind, ParamStore};
pub use random::RandomStream;
