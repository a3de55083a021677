//! A linear layer with an optional low-rank adapter on a GPU. The mathematics is in mod.rs; DoRA is not here.
//!
//! A 4-bit weight is decoded into one buffer that all layers share, and the product is the library's: at training shapes
//! nothing beats its tensor-core kernels, and the decoding takes a few percent of the product. Operands are bf16, sums
//! f32, and the gradients of A and B are added up in f32.

use crate::error::Result;
use crate::ops::dropout::cuda as dropout;
use crate::ops::embedding::cuda::add_bias;
use crate::ops::gpu::{Buffer, View};
use crate::ops::RandomStream;
use crate::quant::cuda::GpuNf4;
use half::bf16;

/// A frozen `[N, K]` weight in GPU memory.
pub enum GpuWeight {
    /// 4-bit codes.
    Nf4(Box<GpuNf4>),
    /// bf16.
    Dense(Buffer<bf16>),
}

impl GpuWeight {
    /// N.
    pub fn rows(&self) -> usize {
        match self {
            GpuWeight::Nf4(weight) => weight.rows(),
            GpuWeight::Dense(weight) => weight.rows(),
        }
    }

    /// K.
    pub fn cols(&self) -> usize {
        match self {
            GpuWeight::Nf4(weight) => weight.cols(),
            GpuWeight::Dense(weight) => weight.cols(),
        }
    }

    /// The values in bf16: decoded into `scratch`, which holds the largest weight, until the next call.
    fn values(&self, scratch: &Buffer<bf16>) -> Result<View> {
        match self {
            GpuWeight::Dense(weight) => Ok(weight.view()),
            GpuWeight::Nf4(weight) => {
                weight.dequantize(scratch)?;
                Ok(scratch.view_as(weight.rows(), weight.cols()))
            }
        }
    }
}

/// The adapter of a layer in one pass.
pub struct GpuAdapter<'a> {
    /// A, `[R, K]`.
    pub a: &'a Buffer<bf16>,
    /// B, `[N, R]`.
    pub b: &'a Buffer<bf16>,
    /// Gradients of A and B, added to; absent outside of training.
    pub gradients: Option<[&'a Buffer<f32>; 2]>,
    /// Factor of the adapter's output.
    pub scale: f32,
    /// Probability and mask of the dropout on its input.
    pub dropout: Option<(f32, RandomStream)>,
}

/// A layer in one pass.
pub struct GpuLinear<'a> {
    /// `[N, K]`.
    pub weight: &'a GpuWeight,
    /// `[1, N]`.
    pub bias: Option<&'a Buffer<f32>>,
    /// Low-rank adapter.
    pub adapter: Option<GpuAdapter<'a>>,
    /// Memory for decoded weights.
    pub scratch: &'a Buffer<bf16>,
}

/// Computes `y [T,N]` (overwritten, or added to with `accumulate`) from `x [T,K]`; returns `u [T,R]` for
/// [`backward_params`].
pub fn forward(
    linear: &GpuLinear<'_>,
    x: &Buffer<bf16>,
    y: &Buffer<bf16>,
    accumulate: bool,
) -> Result<Option<Buffer<bf16>>> {
    let gpu = x.gpu();
    gpu.product(x.view(), linear.weight.values(linear.scratch)?.t(), y, 1.0, f32::from(u8::from(accumulate)))?;
    if let Some(bias) = linear.bias {
        add_bias(y, bias)?;
    }
    let Some(adapter) = &linear.adapter else { return Ok(None) };
    let dropped = dropped_input(adapter, x)?;
    let hidden = gpu.buffer(x.rows(), adapter.a.rows())?;
    gpu.product(dropped.as_ref().unwrap_or(x).view(), adapter.a.view().t(), &hidden, 1.0, 0.0)?;
    gpu.product(hidden.view(), adapter.b.view().t(), y, adapter.scale, 1.0)?;
    Ok(Some(hidden))
}

/// `dropout(x)`, or None where dropout is off and x serves itself.
fn dropped_input(adapter: &GpuAdapter<'_>, x: &Buffer<bf16>) -> Result<Option<Buffer<bf16>>> {
    let Some((probability, stream)) = adapter.dropout else { return Ok(None) };
    let dropped = x.gpu().buffer(x.rows(), x.cols())?;
    dropout::apply(x, &dropped, probability, stream)?;
    Ok(Some(dropped))
}

/// Computes `dx [T,K]` (overwritten, or added to with `accumulate`) from `dy [T,N]`; returns `du [T,R]` for
/// [`backward_params`].
pub fn backward_input(
    linear: &GpuLinear<'_>,
    dy: &Buffer<bf16>,
    dx: &Buffer<bf16>,
    accumulate: bool,
) -> Result<Option<Buffer<bf16>>> {
    let gpu = dy.gpu();
    gpu.product(dy.view(), linear.weight.values(linear.scratch)?, dx, 1.0, f32::from(u8::from(accumulate)))?;
    let Some(adapter) = &linear.adapter else { return Ok(None) };
    let gradient = gpu.buffer(dy.rows(), adapter.b.cols())?;
    gpu.product(dy.view(), adapter.b.view(), &gradient, adapter.scale, 0.0)?;
    match adapter.dropout {
        None => gpu.product(gradient.view(), adapter.a.view(), dx, 1.0, 1.0)?,
        Some((probability, stream)) => {
            let part = gpu.buffer(dx.rows(), dx.cols())?;
            gpu.product(gradient.view(), adapter.a.view(), &part, 1.0, 0.0)?;
            dropout::apply_add(&part, dx, probability, stream)?;
        }
    }
    Ok(Some(gradient))
}

/// Adds the gradients of A and B. `hidden` is u of the forward pass, computed again when absent; `hidden_gradient` is du
/// of [`backward_input`].
pub fn backward_params(
    linear: &GpuLinear<'_>,
    x: &Buffer<bf16>,
    dy: &Buffer<bf16>,
    hidden: Option<&Buffer<bf16>>,
    hidden_gradient: Option<&Buffer<bf16>>,
) -> Result<()> {
    let (Some(adapter), Some(hidden_gradient)) = (&linear.adapter, hidden_gradient) else { return Ok(()) };
    let Some([da, db]) = adapter.gradients else { return Ok(()) };
    let gpu = x.gpu();
    let dropped = dropped_input(adapter, x)?;
    let input = dropped.as_ref().unwrap_or(x);
    let mut computed = None;
    let hidden = match hidden {
        Some(hidden) => hidden,
        None => {
            let again = gpu.buffer(x.rows(), adapter.a.rows())?;
            gpu.product(input.view(), adapter.a.view().t(), &again, 1.0, 0.0)?;
            computed.insert(again)
        }
    };
    gpu.product(hidden_gradient.view().t(), input.view(), da, 1.0, 1.0)?;
    gpu.product(dy.view().t(), hidden.view(), db, adapter.scale, 1.0)
}
