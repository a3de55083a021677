//! Frozen weights on their way to a GPU, and how a pass sees a linear layer there.

use super::PassContext;
use crate::adapter::LoraParams;
use crate::error::{Error, Result};
use crate::model::layer::{DenseDtype, LinearLayer, Vector, Weight};
use crate::model::{Llama, LoadOptions};
use crate::ops::gpu::{Buffer, Gpu};
use crate::ops::linear::cuda::{GpuAdapter, GpuLinear, GpuWeight};
use crate::ops::{ParamKind, ParamStore, RandomStream};
use crate::quant::cuda::{stored, GpuNf4};
use crate::quant::SourceDtype;
use half::bf16;
use std::sync::Arc;

/// Refuses what the GPU cannot train: anything but LoRA's A and B.
pub(super) fn check_trainable(model: &Llama, params: &ParamStore) -> Result<()> {
    let other = params.iter().find(|param| !matches!(param.kind, ParamKind::LoraA | ParamKind::LoraB));
    if let Some(param) = other {
        return Err(refusal(&param.name));
    }
    debug_assert!(model.row_norms.is_empty(), "DoRA without magnitudes");
    Ok(())
}

/// Refuses options whose parameters [`check_trainable`] would refuse once they are there.
pub(in crate::model) fn check_options(options: &LoadOptions) -> Result<()> {
    let asked = [
        (options.train_all, "every weight"),
        (options.train_embeddings, "embeddings and head"),
        (options.lora.as_ref().is_some_and(|lora| lora.dora), "DoRA's magnitudes"),
    ];
    asked.into_iter().find(|(asked, _)| *asked).map_or(Ok(()), |(_, what)| Err(refusal(what)))
}

fn refusal(what: &str) -> Error {
    Error::failed(format!("{what}: a GPU can run and train LoRA's A and B only"))
        .hint("use method = \"qlora\" or \"lora\" without dora or train_embeddings, or --device cpu")
}

/// A dtype as the kernels number it.
pub(super) fn stored_dtype(dtype: DenseDtype) -> i32 {
    stored(match dtype {
        DenseDtype::F32 => SourceDtype::F32,
        DenseDtype::F16 => SourceDtype::F16,
        DenseDtype::Bf16 => SourceDtype::Bf16,
    })
}

/// A dense weight in bf16. It passes through GPU memory in its own dtype, and leaves the machine's memory.
pub(super) fn dense(gpu: &Gpu, weight: &Weight) -> Result<Buffer<bf16>> {
    let Weight::Dense { dtype, bytes, rows, cols } = weight else {
        crate::bail!("the GPU's embeddings and head must be dense and frozen");
    };
    let source = gpu.upload(&bytes[..], 1, bytes.len())?;
    bytes.release();
    to_bf16(&source, stored_dtype(*dtype), [*rows, *cols])
}

/// The first values of `source` as a `[rows, cols]` weight in bf16.
pub(super) fn to_bf16(source: &Buffer<u8>, dtype: i32, [rows, cols]: [usize; 2]) -> Result<Buffer<bf16>> {
    let out = source.gpu().buffer(rows, cols)?;
    let count = (rows * cols) as i64;
    let arguments = [source.pointer(), dtype.into(), out.pointer(), count.into()];
    source.gpu().each("weights_to_bf16", rows * cols, &arguments)?;
    Ok(out)
}

/// A frozen vector in f32.
pub(super) fn vector(gpu: &Gpu, vector: &Vector) -> Result<Buffer<f32>> {
    match vector {
        Vector::Frozen(values) => gpu.upload(values, 1, values.len()),
        Vector::Trained(_) => crate::bail!("on a GPU norms and biases cannot be trained yet"),
    }
}

/// A linear layer in GPU memory.
pub(super) struct GpuLayer {
    index: usize,
    weight: Arc<GpuWeight>,
    /// The 4-bit weight's values, where they are kept.
    decoded: Option<Buffer<bf16>>,
    bias: Option<Buffer<f32>>,
    lora: Option<LoraParams>,
}

impl GpuLayer {
    pub(super) fn new(gpu: &Gpu, layer: &LinearLayer) -> Result<GpuLayer> {
        let weight = match &layer.weight {
            Weight::OnGpu(weight) => weight.clone(),
            Weight::Nf4(matrix) => Arc::new(GpuWeight::Nf4(Box::new(GpuNf4::new(gpu, matrix)?))),
            Weight::Dense { .. } => Arc::new(GpuWeight::Dense(dense(gpu, &layer.weight)?)),
            Weight::Trained(_) => crate::bail!("{}: on a GPU weights cannot be trained yet", layer.name),
        };
        let bias = layer.bias.as_ref().map(|bias| vector(gpu, bias)).transpose()?;
        Ok(GpuLayer { index: layer.index, weight, decoded: None, bias, lora: layer.lora })
    }

    /// Keeps the values of a 4-bit weight.
    pub(super) fn cache_weight(&mut self, gpu: &Gpu) -> Result<()> {
        if let GpuWeight::Nf4(weight) = &*self.weight {
            let values = gpu.buffer(weight.rows(), weight.cols())?;
            weight.dequantize(&values)?;
            self.decoded = Some(values);
        }
        Ok(())
    }

    /// Output features.
    pub(super) fn rows(&self) -> usize {
        self.weight.rows()
    }

    /// Input features.
    pub(super) fn cols(&self) -> usize {
        self.weight.cols()
    }

    /// The layer as a pass sees it.
    pub(super) fn view<'a>(&'a self, context: &'a PassContext<'_>) -> GpuLinear<'a> {
        let adapter = self.lora.as_ref().map(|lora| GpuAdapter {
            a: context.params.value(lora.a),
            b: context.params.value(lora.b),
            gradients: context.training.then(|| [context.params.gradient(lora.a), context.params.gradient(lora.b)]),
            scale: lora.scale,
            dropout: context.noise.filter(|_| lora.dropout > 0.0).map(|noise| {
                let numbers = [noise.step, noise.micro_step, self.index as u64];
                (lora.dropout, RandomStream::derive(noise.seed, "lora dropout", &numbers))
            }),
        });
        let decoded = self.decoded.as_ref();
        GpuLinear { weight: &self.weight, decoded, bias: self.bias.as_ref(), adapter, scratch: context.scratch }
    }
}
