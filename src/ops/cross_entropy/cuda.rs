//! Cross-entropy over a chunk of logits on a GPU; see `cross_entropy.cu`.

use crate::error::Result;
use crate::ops::gpu::{count, Buffer};
use half::bf16;

/// Threads of a row's block: vocabularies are long.
const THREADS: u32 = 1024;

/// The loss of each row `[A,1]`, and where asked for `gradient = (softmax(logits) − onehot) · scale`, `[A,V]`. Every target
/// is an id below V.
pub fn rows(
    logits: &Buffer<f32>,
    targets: &Buffer<i32>,
    loss: &Buffer<f32>,
    gradient: Option<&Buffer<bf16>>,
    scale: f32,
) -> Result<()> {
    assert!(targets.len() == logits.rows() && loss.len() == logits.rows());
    let vocabulary = count(logits.cols())? as i32;
    let gradient = gradient.map_or(0u64.into(), Buffer::pointer);
    let arguments = [logits.pointer(), targets.pointer(), loss.pointer(), gradient, vocabulary.into(), scale.into()];
    logits.gpu().rows("cross_entropy_rows", logits.rows(), THREADS, &arguments)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{assert_halves, emulated_gpu, normal};

    #[test]
    fn losses_and_gradients_equal_their_definition() {
        let Some(gpu) = emulated_gpu() else { return };
        // Fewer classes than threads, a single one, and more than one pass of the block.
        for (count, vocabulary) in [(1, 1), (3, 40), (2, 2500)] {
            let logits: Vec<f32> = normal("logits", count * vocabulary).iter().map(|z| 8.0 * z).collect();
            let targets: Vec<i32> = (0..count).map(|row| (row * 1237 % vocabulary) as i32).collect();
            let loss = gpu.buffer::<f32>(count, 1).unwrap();
            let gradient = gpu.buffer(count, vocabulary).unwrap();
            let gpu_logits = gpu.upload(&logits, count, vocabulary).unwrap();
            let gpu_targets = gpu.upload(&targets, count, 1).unwrap();
            rows(&gpu_logits, &gpu_targets, &loss, Some(&gradient), 0.125).unwrap();
            let (losses, gradients) = (loss.read().unwrap(), gradient.read().unwrap());
            for row in 0..count {
                let z = &logits[row * vocabulary..][..vocabulary];
                let top = z.iter().copied().fold(f32::MIN, f32::max);
                let sum: f64 = z.iter().map(|z| f64::from(z - top).exp()).sum();
                let target = targets[row] as usize;
                let expected = sum.ln() + f64::from(top - z[target]);
                assert!((f64::from(losses[row]) - expected).abs() < 1e-5, "{} for {expected}", losses[row]);
                let dz = |(v, z): (usize, &f32)| {
                    let p = f64::from(z - top).exp() / sum;
                    ((p - f64::from(u8::from(v == target))) * 0.125) as f32
                };
                let expected: Vec<f32> = z.iter().enumerate().map(dz).collect();
                assert_halves("gradient", &gradients[row * vocabulary..][..vocabulary], &expected, 1e-6);
            }
            rows(&gpu_logits, &gpu_targets, &loss, None, 0.0).unwrap();
            assert_eq!(loss.read().unwrap(), losses);
        }
    }

    #[test]
    fn a_logit_that_is_nan_shows_in_the_loss_and_minus_infinity_is_probability_zero() {
        let Some(gpu) = emulated_gpu() else { return };
        let vocabulary = 1500;
        let loss_of = |value: f32, target: i32| {
            let mut logits = vec![0.5; vocabulary];
            // A thread's first value, its second, and its only one.
            [3, 3 + 1024, 700].iter().for_each(|&at| logits[at] = value);
            let loss = gpu.buffer::<f32>(1, 1).unwrap();
            let logits = gpu.upload(&logits, 1, vocabulary).unwrap();
            rows(&logits, &gpu.upload(&[target], 1, 1).unwrap(), &loss, None, 1.0).unwrap();
            loss.read().unwrap()[0]
        };
        assert!(loss_of(f32::NAN, 0).is_nan());
        let expected = ((vocabulary - 3) as f32).ln();
        assert!((loss_of(f32::NEG_INFINITY, 0) - expected).abs() < 1e-5);
    }
}
