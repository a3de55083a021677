//! The operations of the step, each with its forward and backward, its reference and its tests in one folder.

pub mod attention;
pub mod bytes;
pub mod cross_entropy;
pub mod dropout;
pub mod embedding;
pub mod gemm;
pub mod gpu;
pub mod half_matrix;
pub mod linear;
pub mod matrix;
pub mod params;
pub mod profile;
pub mod random;
pub mod rms_norm;
pub mod rope;
pub mod space;
pub mod swiglu;
pub mod team;
#[cfg(test)]
pub(crate) mod testing;
pub(crate) mod vector;
pub(crate) mod vector_exp;

pub use bytes::Bytes;
pub use gemm::WeightRef;
pub use half_matrix::HalfMatrix;
pub use matrix::{Arena, MatMut, MatRef, Matrix};
pub use params::{Gradients, Param, ParamId, ParamKind, ParamStore};
pub use random::RandomStream;
