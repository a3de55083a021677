//! Made-up weights of any shape: the start of training from scratch, and of benches.

use super::source::TensorSource;
use super::weights::{RawTensor, StoredDtype};
use crate::error::Result;
use crate::ops::{Bytes, RandomStream};
use crate::quant::Nf4Matrix;
use rayon::prelude::*;

/// Matrices drawn from N(0, std²), norm weights 1, biases 0, as transformers initialises a LLaMA model.
pub struct RandomWeights {
    seed: u64,
    std: f32,
}

impl RandomWeights {
    /// Weights named by `seed`; transformers' `initializer_range` is 0.02 by default.
    pub fn new(seed: u64, std: f32) -> RandomWeights {
        RandomWeights { seed, std }
    }
}

impl TensorSource for RandomWeights {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<RawTensor> {
        let count: usize = shape.iter().product();
        let bytes = Bytes::filled(count * size_of::<f32>(), |bytes| match shape.len() {
            1 if name.ends_with(".bias") => {}
            1 => bytes.chunks_exact_mut(4).for_each(|value| value.copy_from_slice(&1.0f32.to_le_bytes())),
            _ => fill(self.seed, name, self.std, bytes.par_chunks_mut(4 * CHUNK), |drawn, bytes| {
                bytes.as_chunks_mut::<4>().0.iter_mut().zip(drawn).for_each(|(b, v)| *b = v.to_le_bytes());
            }),
        });
        Ok(RawTensor { dtype: StoredDtype::F32, shape: shape.to_vec(), bytes })
    }

    fn nf4(&self, _name: &str, _rows: usize, _cols: usize) -> Result<Option<Nf4Matrix>> {
        Ok(None)
    }

    fn place(&self) -> String {
        "random weights".into()
    }
}

/// Values drawn by one task.
const CHUNK: usize = 1 << 14;

/// `count` values of N(0, std²); they depend on the seed, the name and their index alone.
pub fn random_values(seed: u64, name: &str, count: usize, std: f32) -> Vec<f32> {
    let mut values = vec![0.0f32; count];
    fill(seed, name, std, values.par_chunks_mut(CHUNK), |drawn, values| {
        values.iter_mut().zip(drawn).for_each(|(value, drawn)| *value = drawn);
    });
    values
}

/// Has `put` write the drawn values into each chunk of [`CHUNK`] values.
fn fill<C: Send>(
    seed: u64,
    name: &str,
    std: f32,
    chunks: impl IndexedParallelIterator<Item = C>,
    put: impl Fn(&mut dyn Iterator<Item = f32>, C) + Sync,
) {
    let stream = RandomStream::derive(seed, name, &[]);
    chunks.enumerate().for_each(|(chunk, target)| {
        let base = (chunk * CHUNK) as u64;
        put(&mut (base..).map(|index| std * stream.normal(index)), target);
    });
}
