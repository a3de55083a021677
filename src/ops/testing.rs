//! Helpers of the operations' tests: inputs, comparison with f64 references, thread pools, finite differences.

use super::random::RandomStream;
use candle_core::{Device, Tensor};
use std::fmt::Debug;

/// Standard normal values, a function of the label.
pub(crate) fn normal(label: &str, len: usize) -> Vec<f32> {
    let stream = RandomStream::derive(1234, label, &[]);
    (0..len as u64).map(|i| stream.normal(i)).collect()
}

/// The values as an f64 tensor.
pub(crate) fn tensor(values: &[f32], shape: &[usize]) -> Tensor {
    let values: Vec<f64> = values.iter().map(|&v| f64::from(v)).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// The values of an f64 tensor, row-major.
pub(crate) fn flat(tensor: &Tensor) -> Vec<f64> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// Asserts that every element is within `tolerance` times the largest expected magnitude.
pub(crate) fn assert_close(what: &str, actual: &[f32], expected: &[f64], tolerance: f64) {
    assert_eq!(actual.len(), expected.len(), "{what}: length");
    let largest = expected.iter().fold(0f64, |m, v| m.max(v.abs()));
    for (i, (a, e)) in actual.iter().zip(expected).enumerate() {
        let error = (f64::from(*a) - e).abs();
        assert!(error <= tolerance * largest, "{what}[{i}]: {a} for {e}, error {error:e}, largest {largest}");
    }
}

/// The bits of the values: equal only if the values are, signs of zero and NaN included.
pub(crate) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// Runs the function in pools of 1, 2 and 3 threads and asserts equal results.
pub(crate) fn assert_same_in_every_pool<R: PartialEq + Debug + Send>(run: impl Fn() -> R + Sync) {
    let in_pool =
        |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(|| (threads, run()));
    let (_, expected) = in_pool(1);
    for (threads, actual) in [in_pool(2), in_pool(3)] {
        assert!(actual == expected, "{threads} threads give other bits than one");
    }
}

/// `Σ a[i] · b[i]` in f64.
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// Asserts that `gradient` is the derivative of `function` at `point` along a fixed random direction, by a central
/// difference: relative to the gradient's norm, within 1e-3.
pub(crate) fn assert_derivative(what: &str, point: &[f32], gradient: &[f32], mut function: impl FnMut(&[f32]) -> f64) {
    let direction = normal("direction", point.len());
    let step = 1.0 / 128.0;
    let mut at = |sign: f32| {
        let moved: Vec<f32> = point.iter().zip(&direction).map(|(x, d)| x + sign * step * d).collect();
        function(&moved)
    };
    let numeric = (at(1.0) - at(-1.0)) / (2.0 * f64::from(step));
    let analytic = dot(gradient, &direction);
    let norm = dot(gradient, gradient).sqrt();
    assert!((numeric - analytic).abs() <= 1e-3 * norm, "{what}: numeric {numeric}, analytic {analytic}, norm {norm}");
}

/// Counts a test that cannot run here: on stderr, and in the file that `LLAMANTINO_SKIPPED` names.
pub(crate) fn not_done(what: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "not done: {what}");
    if let Some(path) = std::env::var_os("LLAMANTINO_SKIPPED") {
        let file = std::fs::OpenOptions::new().append(true).create(true).open(path);
        let _ = file.and_then(|mut file| writeln!(file, "{what}"));
    }
}

/// An emulated GPU for kernels under test, or None where kernels cannot be compiled for the CPU.
pub(crate) fn emulated_gpu() -> Option<super::gpu::Gpu> {
    let driver = crate::device::cuda::emulator::emulator();
    if driver.is_none() {
        not_done("CUDA kernels on the CPU (install g++)");
    }
    driver.map(super::gpu::Gpu::new)
}

/// The values in bf16.
pub(crate) fn halves(values: &[f32]) -> Vec<half::bf16> {
    values.iter().map(|&value| half::bf16::from_f32(value)).collect()
}

/// Values rounded to bf16, as f32.
pub(crate) fn through_bf16(values: &[f32]) -> Vec<f32> {
    halves(values).iter().map(|value| value.to_f32()).collect()
}

/// Asserts that bf16 results equal f32 ones up to their rounding (2⁻⁸ of the value) and `noise` of the largest, or of
/// 0.001 where all are smaller (inputs are about 1).
pub(crate) fn assert_halves(what: &str, actual: &[half::bf16], expected: &[f32], noise: f32) {
    assert_eq!(actual.len(), expected.len(), "{what}: length");
    let largest = expected.iter().fold(1e-3f32, |largest, value| largest.max(value.abs()));
    for (i, (actual, expected)) in actual.iter().zip(expected).enumerate() {
        let allowed = expected.abs() / 256.0 + noise * largest;
        let error = (actual.to_f32() - expected).abs();
        assert!(error <= allowed, "{what}[{i}]: {actual} for {expected}, error {error:e}, allowed {allowed:e}");
    }
}
