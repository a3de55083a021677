//! Weights of a model in memory, frozen or trained, and how a pass borrows them.
//!
//! A frozen weight is a slice of the mapped file or NF4 codes; a trained one lives in the [`ParamStore`]. The model
//! itself holds no gradient and no optimizer state.

use super::pass::Pass;
use crate::adapter::LoraParams;
use crate::ops::gemm::RowTables;
use crate::ops::linear::cuda::GpuWeight;
use crate::ops::linear::{Adapter, Dora, Linear};
use crate::ops::{Bytes, MatRef, ParamId, ParamStore, RandomStream, WeightRef};
use crate::quant::Nf4Matrix;
use std::sync::Arc;

/// Element type of a dense weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DenseDtype {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
}

/// A `[rows, cols]` weight, row-major.
pub enum Weight {
    /// Dense and frozen.
    Dense {
        /// Element type of `bytes`.
        dtype: DenseDtype,
        /// `rows * cols` elements.
        bytes: Bytes,
        /// Output features.
        rows: usize,
        /// Input features.
        cols: usize,
    },
    /// 4-bit and frozen.
    Nf4(Nf4Matrix),
    /// Frozen and in the memory of a GPU, which alone can compute with it.
    OnGpu(Arc<GpuWeight>),
    /// Trained: f32, in the parameter store.
    Trained(ParamId),
}

impl Weight {
    /// Rows and columns.
    pub fn shape(&self, params: &ParamStore) -> [usize; 2] {
        match self {
            Weight::Dense { rows, cols, .. } => [*rows, *cols],
            Weight::Nf4(matrix) => [matrix.rows, matrix.cols],
            Weight::OnGpu(weight) => [weight.rows(), weight.cols()],
            Weight::Trained(id) => [params.get(*id).rows, params.get(*id).cols],
        }
    }

    /// Borrows the values, which are not in a GPU's memory.
    pub fn view<'a>(&'a self, params: &'a ParamStore) -> WeightRef<'a> {
        match self {
            Weight::Dense { dtype, bytes, rows, cols } => dense(*dtype, bytes, *rows, *cols),
            Weight::Nf4(matrix) => WeightRef::Nf4(matrix),
            Weight::OnGpu(_) => unreachable!("a model loaded to a GPU computes there"),
            Weight::Trained(id) => {
                let param = params.get(*id);
                WeightRef::F32(MatRef::new(&param.value, param.rows, param.cols))
            }
        }
    }

    /// Borrows the values of a dense and frozen weight.
    pub fn frozen_dense(&self) -> Option<WeightRef<'_>> {
        match self {
            Weight::Dense { dtype, bytes, rows, cols } => Some(dense(*dtype, bytes, *rows, *cols)),
            _ => None,
        }
    }

    /// The parameter that holds this weight, if it is trained.
    pub fn id(&self) -> Option<ParamId> {
        match self {
            Weight::Trained(id) => Some(*id),
            _ => None,
        }
    }

    /// Bytes that the frozen values take in memory, the machine's or a GPU's (0 for a trained weight).
    pub fn frozen_bytes(&self) -> usize {
        match self {
            Weight::Dense { bytes, .. } => bytes.len(),
            Weight::Nf4(matrix) => matrix.stored_bytes(),
            Weight::OnGpu(weight) => weight.bytes(),
            Weight::Trained(_) => 0,
        }
    }
}

fn dense(dtype: DenseDtype, bytes: &Bytes, rows: usize, cols: usize) -> WeightRef<'_> {
    match dtype {
        DenseDtype::F32 => WeightRef::F32(MatRef::new(bytes.as_f32(), rows, cols)),
        DenseDtype::F16 => WeightRef::F16 { bits: bytes.as_u16(), rows, cols },
        DenseDtype::Bf16 => WeightRef::Bf16 { bits: bytes.as_u16(), rows, cols },
    }
}

/// A vector (norm weight or bias), f32.
pub enum Vector {
    /// Frozen.
    Frozen(Vec<f32>),
    /// Trained: in the parameter store.
    Trained(ParamId),
}

impl Vector {
    /// Borrows the values.
    pub fn view<'a>(&'a self, params: &'a ParamStore) -> &'a [f32] {
        match self {
            Vector::Frozen(values) => values,
            Vector::Trained(id) => params.value(*id),
        }
    }

    /// The parameter that holds this vector, if it is trained.
    pub fn id(&self) -> Option<ParamId> {
        match self {
            Vector::Frozen(_) => None,
            Vector::Trained(id) => Some(*id),
        }
    }
}

/// A linear layer: weight, bias and adapter.
pub struct LinearLayer {
    /// The model's name of the layer, e.g. `model.layers.0.self_attn.q_proj`.
    pub name: String,
    /// Position among all linears of the model: names the dropout mask.
    pub index: usize,
    /// `[out, in]`.
    pub weight: Weight,
    /// `[out]`.
    pub bias: Option<Vector>,
    /// Low-rank adapter.
    pub lora: Option<LoraParams>,
    /// What single rows are multiplied with, where that was made.
    pub row_tables: Option<RowTables>,
}

impl LinearLayer {
    /// The layer as `pass` sees it.
    pub fn view<'a>(&'a self, pass: &'a Pass<'_>) -> Linear<'a> {
        Linear {
            weight: self.weight.view(pass.params),
            weight_id: self.weight.id(),
            bias: self.bias.as_ref().map(|bias| bias.view(pass.params)),
            bias_id: self.bias.as_ref().and_then(Vector::id),
            adapter: self.lora.as_ref().map(|lora| self.adapter(lora, pass)),
            compute: pass.compute,
        }
    }

    fn adapter<'a>(&'a self, lora: &'a LoraParams, pass: &'a Pass<'_>) -> Adapter<'a> {
        let (a, b) = (pass.params.get(lora.a), pass.params.get(lora.b));
        let dora = lora.magnitude.zip(pass.dora.get(self.index)).map(|(magnitude_id, columns)| Dora {
            factor: &columns.factor,
            norm: &columns.norm,
            magnitude_id,
        });
        Adapter {
            a: MatRef::new(&a.value, a.rows, a.cols),
            b: MatRef::new(&b.value, b.rows, b.cols),
            a_id: lora.a,
            b_id: lora.b,
            scale: lora.scale,
            dropout: pass.noise.filter(|_| lora.dropout > 0.0).map(|noise| {
                let numbers = [noise.step, noise.micro_step, self.index as u64];
                (lora.dropout, RandomStream::derive(noise.seed, "lora dropout", &numbers))
            }),
            dora,
        }
    }
}
