//! The norm on a GPU, over bf16 with f32 statistics; see `rms_norm.cu`.

use crate::error::Result;
use crate::ops::gpu::{count, Buffer};
use half::bf16;

/// Threads of a row's block.
const THREADS: u32 = 256;

/// A weight for each feature, a number for each row; threads take eight features at a time.
fn check(x: &Buffer<bf16>, weight: &Buffer<f32>, inv_rms: &Buffer<f32>) {
    assert!(weight.len() == x.cols() && inv_rms.len() == x.rows() && x.cols().is_multiple_of(8));
}

/// `x += delta` where there is one, rounded; `y = norm(x) · weight`; `inv_rms [T,1]`. Shapes `[T,H]`, weight `[1,H]`.
pub fn forward(
    x: &Buffer<bf16>,
    delta: Option<&Buffer<bf16>>,
    weight: &Buffer<f32>,
    eps: f32,
    y: &Buffer<bf16>,
    inv_rms: &Buffer<f32>,
) -> Result<()> {
    let shape = (x.rows(), x.cols());
    assert!((y.rows(), y.cols()) == shape && delta.is_none_or(|delta| (delta.rows(), delta.cols()) == shape));
    check(x, weight, inv_rms);
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
    assert!([dy, dx].iter().all(|buffer| (buffer.rows(), buffer.cols()) == (x.rows(), x.cols())));
    check(x, weight, inv_rms);
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
    #[test]
    fn shapes_that_do_not_fit_are_not_read() {
        let Some(gpu) = emulated_gpu() else { return };
        let [x, y, dx] = [(); 3].map(|()| gpu.zeros(2, 16).unwrap());
        for (rows, width) in [(2, 16), (1, 16), (2, 8)] {
            let (weight, inv_rms) = (gpu.zeros(1, width).unwrap(), gpu.zeros(rows, 1).unwrap());
            let run = || {
                forward(&x, None, &weight, EPS, &y, &inv_rms)?;
                backward(&x, &inv_rms, &weight, &y, &dx)
            };
            let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
            assert_eq!(ended.is_ok(), (rows, width) == (2, 16), "{rows} and {width}");
        }
    }
}
