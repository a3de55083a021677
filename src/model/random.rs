//! Made-up weights of any shape: the start of training from scratch, and of benches.

use super::load::TensorSource;
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
        let count = shape.iter().product();
        let values = match shape.len() {
            1 if name.ends_with(".bias") => vec![0.0; count],
            1 => vec![1.0; count],
            _ => random_values(self.seed, name, count, self.std),
        };
        let bytes: Vec<u8> = values.into_iter().flat_map(f32::to_le_bytes).collect();
        Ok(RawTensor { dtype: StoredDtype::F32, shape: shape.to_vec(), bytes: Bytes::owned(&bytes) })
    }

    fn nf4(&self, _name: &str, _rows: usize, _cols: usize) -> Result<Option<Nf4Matrix>> {
        Ok(None)
    }

    fn place(&self) -> String {
        "random weights".into()
    }
}

/// `count` values of N(0, std²); they depend on the seed, the name and their index alone.
pub fn random_values(seed: u64, name: &str, count: usize, std: f32) -> Vec<f32> {
    const CHUNK: usize = 1 << 14;
    let stream = RandomStream::derive(seed, name, &[]);
    let mut values = vec![0.0f32; count];
    values.par_chunks_mut(CHUNK).enumerate().for_each(|(chunk, values)| {
        let base = (chunk * CHUNK) as u64;
        values.iter_mut().enumerate().for_each(|(i, value)| *value = std * stream.normal(base + i as u64));
    });
    values
}
