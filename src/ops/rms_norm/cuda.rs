//! The norm on a GPU, over bf16 with f32 statistics; see `rms_norm.cu`.

use crate::error::Result;
use crate::ops::gpu::{count, Buffer};
use half::bf16;

/// Threads of a row's block.
const THREADS: u32 = 256;

/// `x += delta` where there is one, rounded; `y = norm(x) · weight`; `inv_rms [T,1]`. Shapes `[T,H]`, weight `[1,H]`.
pub fn forward(
    x: &Buffer<bf16>,
    delta: Option<&Buffer<bf16>>,
    weight: &Buffer<f32>,
    eps: f32,
    y: &Buffer<bf16>,
    inv_rms: &Buffer<f32>,
) -> Result<()> {
    let delta = delta.map_or(0u64.into(), Buffer::pointer);
    let features = count(x.cols())? as i32;
    let arguments = [x.pointer(), delta, weight.pointer(), y.pointer(), inv_rms.pointer(), features.into(), eps.into()];
    x.gpu().rows("rms_norm_forward", x.rows(), THREADS, &arguments)
}

/// `dx += ∂L/∂x` for the gradient `dy` of the output.
pub fn backward(
    x: &Buffer<bf16>,
    inv_rms: &Buffer<f32>,
    weight: &Buffer<f32>,
    dy: &Buffer<bf16>,
    dx: &Buffer<bf16>,
) -> Result<()> {
    let features = count(x.cols())? as i32;
    let arguments = [x.pointer(), inv_rms.pointer(), weight.pointer(), dy.pointer(), dx.pointer(), features.into()];
    x.gpu().rows("rms_norm_backward", x.rows(), THREADS, &arguments)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::rms_norm as on_cpu;
    use crate::ops::testing::{assert_halves, emulated_gpu, halves, normal, through_bf16};

    const EPS: f32 = 1e-5;

    #[test]
    fn equals_the_cpu_forward_and_backward() {
        let Some(gpu) = emulated_gpu() else { return };
        for (rows, features) in [(1, 8), (3, 64), (5, 200), (2, 4104)] {
            let (x, delta, dy) =
                (normal("x", rows * features), normal("delta", rows * features), normal("dy", rows * features));
            let [mut x, delta, dy] = [x, delta, dy].map(|values| through_bf16(&values));
            let weight = normal("weight", features);
            let device = |values: &[f32]| gpu.upload(&halves(values), rows, features).unwrap();
            let (gpu_x, gpu_delta, gpu_dy) = (device(&x), device(&delta), device(&dy));
            let gpu_weight = gpu.upload(&weight, 1, features).unwrap();
            let (gpu_y, inv) = (gpu.buffer(rows, features).unwrap(), gpu.buffer(rows, 1).unwrap());
            forward(&gpu_x, Some(&gpu_delta), &gpu_weight, EPS, &gpu_y, &inv).unwrap();

            // The sum is rounded where it is stored; everything after sees the rounded one.
            x.iter_mut().zip(&delta).for_each(|(x, delta)| *x += delta);
            let x = through_bf16(&x);
            let (mut y, mut inv_rms) = (vec![0.0; x.len()], vec![0.0; rows]);
            on_cpu::forward(&x, &weight, EPS, &mut y, &mut inv_rms);
            assert_eq!(gpu_x.read().unwrap(), halves(&x));
            assert_halves("y", &gpu_y.read().unwrap(), &y, 1e-6);

            let before = through_bf16(&normal("dx", x.len()));
            let gpu_dx = device(&before);
            backward(&gpu_x, &inv, &gpu_weight, &gpu_dy, &gpu_dx).unwrap();
            let mut dx = before;
            on_cpu::backward(on_cpu::Saved { x: &x, inv_rms: &inv_rms, weight: &weight }, &dy, &mut dx, None);
            assert_halves("dx", &gpu_dx.read().unwrap(), &dx, 1e-5);
        }
    }
}
