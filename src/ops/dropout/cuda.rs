//! Dropout and NEFTune's noise on a GPU, with the CPU's masks; see `dropout.cu`.

use super::Mask;
use crate::error::Result;
use crate::ops::gpu::Buffer;
use crate::ops::RandomStream;
use half::bf16;

/// `out = x · mask / (1 − probability)`; same shapes.
pub fn apply(x: &Buffer<bf16>, out: &Buffer<bf16>, probability: f32, stream: RandomStream) -> Result<()> {
    masked("dropout_apply", x, out, Mask::new(probability, stream))
}

/// `dx += dy · mask / (1 − probability)`.
pub fn apply_add(dy: &Buffer<bf16>, dx: &Buffer<bf16>, probability: f32, stream: RandomStream) -> Result<()> {
    masked("dropout_apply_add", dy, dx, Mask::new(probability, stream))
}

fn masked(kernel: &'static str, from: &Buffer<bf16>, to: &Buffer<bf16>, mask: Mask) -> Result<()> {
    assert_eq!(from.len(), to.len());
    let (seed, stream) = mask.stream.names();
    let (count, factors) = ((from.len() as i64).into(), (mask.threshold.into(), mask.scale.into()));
    let arguments = [from.pointer(), to.pointer(), count, factors.0, factors.1, seed.into(), stream.into()];
    from.gpu().each(kernel, from.len().div_ceil(4), &arguments)
}

/// `x[i] += uniform in [−bound, bound)`.
pub fn add_uniform(x: &Buffer<bf16>, bound: f32, stream: RandomStream) -> Result<()> {
    let (seed, stream) = stream.names();
    let arguments = [x.pointer(), (x.len() as i64).into(), bound.into(), seed.into(), stream.into()];
    x.gpu().each("dropout_add_uniform", x.len().div_ceil(4), &arguments)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::dropout as on_cpu;
    use crate::ops::testing::{assert_halves, emulated_gpu, halves, normal, through_bf16};

    #[test]
    fn masks_equal_those_of_the_cpu() {
        let Some(gpu) = emulated_gpu() else { return };
        let stream = RandomStream::derive(u64::MAX - 5, "lora dropout", &[1, 2, 3]);
        for count in [1, 4, 1027] {
            let x = through_bf16(&normal("x", count));
            let device = |values: &[f32]| gpu.upload(&halves(values), 1, count).unwrap();
            let (gpu_x, out) = (device(&x), gpu.buffer(1, count).unwrap());
            apply(&gpu_x, &out, 0.3, stream).unwrap();
            let mut expected = vec![0.0; count];
            on_cpu::apply(&x, &mut expected, 0.3, stream);
            assert_eq!(out.read().unwrap(), halves(&expected));

            let sum = device(&x);
            apply_add(&gpu_x, &sum, 0.3, stream).unwrap();
            let mut expected = x.clone();
            on_cpu::apply_add(&x, &mut expected, 0.3, stream);
            assert_eq!(sum.read().unwrap(), halves(&expected));

            let noisy = device(&x);
            add_uniform(&noisy, 0.25, stream).unwrap();
            let mut expected = x;
            on_cpu::add_uniform(&mut expected, 0.25, stream);
            assert_halves("noise", &noisy.read().unwrap(), &expected, 0.0);
        }
    }
}
