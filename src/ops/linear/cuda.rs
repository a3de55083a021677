//! A linear layer with an optional low-rank adapter on a GPU. The mathematics is in mod.rs; DoRA is not here.
//!
//! A 4-bit weight is decoded into one buffer that all layers share, and the product is the library's: at training shapes
//! nothing beats its tensor-core kernels, and the decoding takes a few percent of the product. Operands are bf16, sums
//! f32, and the gradients of A and B are added up in f32.

use crate::device::cuda::Argument;
use crate::error::Result;
use crate::ops::dropout::cuda as dropout;
use crate::ops::embedding::cuda::add_bias;
use crate::ops::gpu::{count, Buffer, View, THREADS};
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

    /// Bytes that it takes.
    pub fn bytes(&self) -> usize {
        match self {
            GpuWeight::Nf4(weight) => weight.bytes(),
            GpuWeight::Dense(weight) => size_of::<bf16>() * weight.len(),
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
    /// The same as its bf16 values, where a 4-bit weight was decoded once.
    pub decoded: Option<&'a Buffer<bf16>>,
    /// `[1, N]`.
    pub bias: Option<&'a Buffer<f32>>,
    /// Low-rank adapter.
    pub adapter: Option<GpuAdapter<'a>>,
    /// Memory for decoded weights.
    pub scratch: &'a Buffer<bf16>,
}

impl GpuLinear<'_> {
    /// The weight in bf16, until the next call.
    fn values(&self) -> Result<View> {
        self.decoded.map_or_else(|| self.weight.values(self.scratch), |decoded| Ok(decoded.view()))
    }
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
    gpu.product(x.view(), linear.values()?.t(), y, 1.0, f32::from(u8::from(accumulate)))?;
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

/// [`forward`] of a single row `x [1,K]`, without dropout: the step of decoding, which reads the weight once, as codes.
pub fn forward_row(linear: &GpuLinear<'_>, x: &Buffer<bf16>, y: &Buffer<bf16>, accumulate: bool) -> Result<()> {
    let (rows, cols) = (linear.weight.rows(), linear.weight.cols());
    let gpu = x.gpu();
    let hidden = match &linear.adapter {
        None => None,
        Some(adapter) => {
            let hidden = gpu.buffer(1, adapter.a.rows())?;
            dense_row(adapter.a, x, RowOutput::Halves { y: &hidden, accumulate: false }, Tail::default())?;
            Some(hidden)
        }
    };
    let low_rank = linear.adapter.as_ref().zip(hidden.as_ref()).map(|(adapter, u)| (adapter.b, u, adapter.scale));
    let tail = Tail { bias: linear.bias, low_rank };
    let weight = match linear.weight {
        GpuWeight::Dense(weight) => return dense_row(weight, x, RowOutput::Halves { y, accumulate }, tail),
        GpuWeight::Nf4(weight) => weight,
    };
    assert!(x.len() == cols && y.len() == rows && cols.is_multiple_of(8), "[1,{cols}] to [1,{rows}]");
    let kernel = if cols.is_multiple_of(32) { "nf4_row_product" } else { "nf4_row_product_narrow" };
    let row = [x.pointer(), y.pointer(), (count(rows)? as i32).into(), (count(cols)? as i32).into()];
    let arguments = [&weight.arguments()[..], &row, &tail.arguments(accumulate)?].concat();
    gpu.rows(kernel, rows.div_ceil(ROWS_OF_A_BLOCK), THREADS, &arguments)
}

/// Outputs of a block of the kernels for one row: a warp each.
const ROWS_OF_A_BLOCK: usize = THREADS as usize / 32;

/// Where a row of outputs goes.
pub enum RowOutput<'a> {
    /// Rounded to `y [1,N]`, or added to what is there.
    Halves {
        /// The row.
        y: &'a Buffer<bf16>,
        /// Whether it is added to.
        accumulate: bool,
    },
    /// As it is.
    Floats(&'a Buffer<f32>),
}

/// What a row of outputs gets beside its product with the weight.
#[derive(Clone, Copy, Default)]
pub struct Tail<'a> {
    /// `[1, N]`.
    pub bias: Option<&'a Buffer<f32>>,
    /// B `[N, R]`, u `[1, R]`, and the factor of their product.
    pub low_rank: Option<(&'a Buffer<bf16>, &'a Buffer<bf16>, f32)>,
}

impl Tail<'_> {
    fn arguments(&self, accumulate: bool) -> Result<[Argument; 6]> {
        let bias = self.bias.map_or(0u64.into(), Buffer::pointer);
        let (b, u, rank, scale) = match self.low_rank {
            None => (0u64.into(), 0u64.into(), 0, 0.0),
            Some((b, u, scale)) => (b.pointer(), u.pointer(), count(u.len())? as i32, scale),
        };
        Ok([bias, b, u, rank.into(), scale.into(), i32::from(accumulate).into()])
    }
}

/// A dense `[N, K]` weight times one row `x [1,K]`; K is a multiple of 8.
pub fn dense_row(weight: &Buffer<bf16>, x: &Buffer<bf16>, output: RowOutput<'_>, tail: Tail<'_>) -> Result<()> {
    let (rows, cols) = (weight.rows(), weight.cols());
    let (y, whole, len, accumulate) = match output {
        RowOutput::Halves { y, accumulate } => (y.pointer(), 0u64.into(), y.len(), accumulate),
        RowOutput::Floats(y) => (0u64.into(), y.pointer(), y.len(), false),
    };
    assert!(x.len() == cols && len == rows && cols.is_multiple_of(8), "[1,{cols}] to [1,{rows}]");
    let sizes = [(count(rows)? as i32).into(), (count(cols)? as i32).into()];
    let arguments = [&[weight.pointer(), x.pointer(), y, whole][..], &sizes, &tail.arguments(accumulate)?].concat();
    x.gpu().rows("dense_row_product", rows.div_ceil(ROWS_OF_A_BLOCK), THREADS, &arguments)
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
    gpu.product(dy.view(), linear.values()?, dx, 1.0, f32::from(u8::from(accumulate)))?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::gpu::Gpu;
    use crate::ops::testing::{assert_halves, emulated_gpu, halves, normal, through_bf16};
    use crate::quant::{self, QuantConfig, Values};

    /// A layer's values on the host.
    struct Host {
        weight: Vec<f32>,
        bias: Option<Vec<f32>>,
        adapter: Option<(Vec<f32>, Vec<f32>, f32)>,
    }

    impl Host {
        /// `y` for `x`, on top of `start`.
        fn output(&self, x: &[f32], start: &[f32]) -> Vec<f32> {
            let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
            let mut y = start.to_vec();
            for (row, y) in y.iter_mut().enumerate() {
                *y += dot(&self.weight[row * x.len()..][..x.len()], x);
                *y += self.bias.as_ref().map_or(0.0, |bias| bias[row]);
            }
            if let Some((a, b, scale)) = &self.adapter {
                let hidden: Vec<f32> = through_bf16(&a.chunks(x.len()).map(|a| dot(a, x)).collect::<Vec<_>>());
                y.iter_mut().zip(b.chunks(hidden.len())).for_each(|(y, b)| *y += scale * dot(b, &hidden));
            }
            y
        }
    }

    fn check(gpu: &Gpu, (rows, cols): (usize, usize), quantize: Option<QuantConfig>, rank: usize) {
        let values = through_bf16(&normal("weight", rows * cols));
        let bits: Vec<u16> = halves(&values).iter().map(|value| value.to_bits()).collect();
        let (weight, values) = match quantize {
            None => (GpuWeight::Dense(gpu.upload(&halves(&values), rows, cols).unwrap()), values),
            Some(config) => {
                let matrix = quant::quantize(Values::Bf16(&bits), rows, cols, config).unwrap();
                let values = (0..rows * cols).map(|i| matrix.value(i)).collect();
                (GpuWeight::Nf4(Box::new(GpuNf4::new(gpu, &matrix).unwrap())), values)
            }
        };
        let bias = (rank % 2 == 1).then(|| normal("bias", rows));
        let adapter =
            (rank > 0).then(|| (through_bf16(&normal("a", rank * cols)), through_bf16(&normal("b", rows * rank)), 0.5));
        let host = Host { weight: values, bias, adapter };
        let (x, start) = (through_bf16(&normal("x", cols)), through_bf16(&normal("start", rows)));

        let device = |values: &[f32], rows, cols| gpu.upload(&halves(values), rows, cols).unwrap();
        let factors = host.adapter.as_ref().map(|(a, b, _)| (device(a, rank, cols), device(b, rows, rank)));
        let bias = host.bias.as_ref().map(|bias| gpu.upload(bias, 1, rows).unwrap());
        let scratch = gpu.buffer(1, rows * cols).unwrap();
        let linear = GpuLinear {
            decoded: None,
            weight: &weight,
            bias: bias.as_ref(),
            adapter: factors.as_ref().map(|(a, b)| GpuAdapter { a, b, gradients: None, scale: 0.5, dropout: None }),
            scratch: &scratch,
        };
        for accumulate in [false, true] {
            let y = device(&start, 1, rows);
            forward_row(&linear, &device(&x, 1, cols), &y, accumulate).unwrap();
            let start = if accumulate { start.clone() } else { vec![0.0; rows] };
            let what = format!("[{rows},{cols}] {quantize:?} rank {rank} accumulate {accumulate}");
            // Codes times scale are not rounded to bf16 here, as they are in `value`: 2^-9 of each term.
            assert_halves(&what, &y.read().unwrap(), &host.output(&x, &start), 4e-3);
        }
    }

    #[test]
    fn one_row_is_multiplied_by_codes_and_by_dense_weights() {
        let Some(gpu) = emulated_gpu() else { return };
        let forms = [(64, true), (64, false), (32, true), (4096, false)];
        let forms = forms.map(|(block, double)| Some(QuantConfig { block, double }));
        for form in forms.into_iter().chain([None]) {
            for (shape, rank) in [((1, 8), 0), ((9, 40), 3), ((17, 96), 16), ((5, 1056), 33), ((64, 2048), 0)] {
                check(&gpu, shape, form, rank);
            }
        }
    }
}
