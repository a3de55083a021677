//! What is trained, on a GPU: bf16 copies of A and B for the products, and their gradients in f32.
//!
//! The f32 masters and the optimizer stay with the CPU's store: a step uploads new values and downloads the gradients
//! once, whatever the number of its micro-batches. So checkpoints, resuming and every optimizer are the same on both.

use crate::error::Result;
use crate::ops::gpu::{Buffer, Gpu};
use crate::ops::{Gradients, ParamId, ParamStore};
use half::bf16;

/// Values and gradients of all parameters, in the store's order.
pub struct GpuParams {
    values: Vec<Buffer<bf16>>,
    gradients: Vec<Buffer<f32>>,
    /// The f32 values on their way to bf16, as large as the largest parameter.
    staging: Buffer<f32>,
}

impl GpuParams {
    /// Copies the values of a store; gradients are zero.
    pub fn new(gpu: &Gpu, store: &ParamStore) -> Result<GpuParams> {
        let gradients = store.iter().map(|param| gpu.zeros(param.rows, param.cols)).collect::<Result<_>>()?;
        Ok(GpuParams { gradients, ..GpuParams::frozen(gpu, store)? })
    }

    /// Copies the values of a store, which get no gradients.
    pub fn frozen(gpu: &Gpu, store: &ParamStore) -> Result<GpuParams> {
        let values = store.iter().map(|param| gpu.buffer(param.rows, param.cols)).collect::<Result<_>>()?;
        let largest = store.iter().map(|param| param.value.len()).max().unwrap_or(0);
        let params = GpuParams { values, gradients: Vec::new(), staging: gpu.buffer(1, largest)? };
        params.upload(store)?;
        Ok(params)
    }

    /// Takes over the store's values.
    pub fn upload(&self, store: &ParamStore) -> Result<()> {
        for (param, value) in store.iter().zip(&self.values) {
            let count = param.value.len();
            let staged = self.staging.part(0, count);
            staged.write(&param.value)?;
            value.gpu().each("floats_to_bf16", count, &[staged.pointer(), value.pointer(), (count as i64).into()])?;
        }
        Ok(())
    }

    /// Sets all gradients to zero.
    pub fn clear_gradients(&self) -> Result<()> {
        self.gradients.iter().try_for_each(Buffer::clear)
    }

    /// Waits for the GPU and adds its gradients to `into`.
    pub fn add_gradients_to(&self, into: &mut Gradients) -> Result<()> {
        for (gradient, into) in self.gradients.iter().zip(into.iter_mut()) {
            for (into, value) in into.iter_mut().zip(gradient.read()?) {
                *into += value;
            }
        }
        Ok(())
    }

    /// The bf16 value of a parameter.
    pub fn value(&self, id: ParamId) -> &Buffer<bf16> {
        &self.values[id.0]
    }

    /// The gradient of a parameter; there is none of [`GpuParams::frozen`].
    pub fn gradient(&self, id: ParamId) -> &Buffer<f32> {
        &self.gradients[id.0]
    }
}
