//! What is trained, on a GPU: bf16 copies of A and B for the products, and their gradients in f32.
//!
//! Masters and the optimizer's state are beside them ([`crate::optim::cuda`]), or with the CPU's store: then a step uploads
//! new values and downloads the gradients once, whatever the number of its micro-batches.

use crate::error::Result;
use crate::ops::gpu::{Buffer, Gpu};
use crate::ops::{Gradients, Param, ParamId, ParamStore};
use crate::optim::cuda::Trained;
use half::bf16;
use std::sync::Arc;

/// Values and gradients of all parameters, in the store's order.
pub struct GpuParams {
    values: Vec<Arc<Buffer<bf16>>>,
    gradients: Vec<Arc<Buffer<f32>>>,
}

impl GpuParams {
    /// Copies the values of a store; gradients are zero.
    pub fn new(gpu: &Gpu, store: &ParamStore) -> Result<GpuParams> {
        let zeros = |param: &Param| gpu.zeros(param.rows, param.cols).map(Arc::new);
        let gradients = store.iter().map(zeros).collect::<Result<_>>()?;
        Ok(GpuParams { gradients, ..GpuParams::frozen(gpu, store)? })
    }

    /// Copies the values of a store, which get no gradients.
    pub fn frozen(gpu: &Gpu, store: &ParamStore) -> Result<GpuParams> {
        let buffer = |param: &Param| gpu.buffer(param.rows, param.cols).map(Arc::new);
        let values = store.iter().map(buffer).collect::<Result<_>>()?;
        let params = GpuParams { values, gradients: Vec::new() };
        params.upload(store)?;
        Ok(params)
    }

    /// Takes over the store's values. They pass through GPU memory in f32, which is the largest one's size.
    pub fn upload(&self, store: &ParamStore) -> Result<()> {
        let Some(gpu) = self.values.first().map(|value| value.gpu()) else { return Ok(()) };
        let largest = store.iter().map(|param| param.value.len()).max().unwrap_or(0);
        let staging = gpu.buffer::<f32>(1, largest)?;
        for (param, value) in store.iter().zip(&self.values) {
            let count = param.value.len();
            let staged = staging.part(0, count);
            staged.write(&param.value)?;
            gpu.each("floats_to_bf16", count, &[staged.pointer(), value.pointer(), (count as i64).into()])?;
        }
        Ok(())
    }

    /// Sets all gradients to zero.
    pub fn clear_gradients(&self) -> Result<()> {
        self.gradients.iter().try_for_each(|gradient| gradient.clear())
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

    /// The buffers of every parameter, for an optimizer on the GPU.
    pub fn trained(&self) -> Vec<Trained> {
        let both = self.values.iter().zip(&self.gradients);
        both.map(|(values, gradient)| Trained { values: values.clone(), gradient: gradient.clone() }).collect()
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
