//! Model shapes with made-up weights, and the deterministic token batches of the benches.

use crate::error::Result;
use crate::model::{ModelConfig, TensorSource};
use crate::ops::{Bytes, RandomStream};
use crate::quant::file::{RawTensor, StoredDtype};
use crate::quant::Nf4Matrix;
use rayon::prelude::*;

/// A model shape known by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// SmolLM2-135M.
    M135,
    /// TinyLlama-1.1B.
    B1,
    /// A toy.
    Tiny,
}

impl Shape {
    /// Its configuration.
    pub fn config(self) -> Result<ModelConfig> {
        let (vocab, hidden, inner, layers, heads, kv_heads, tied, theta) = match self {
            Shape::M135 => (49152, 576, 1536, 30, 9, 3, true, 100_000.0),
            Shape::B1 => (32000, 2048, 5632, 22, 32, 4, false, 10_000.0),
            Shape::Tiny => (512, 128, 384, 2, 4, 2, true, 10_000.0),
        };
        let json = serde_json::json!({
            "model_type": "llama", "vocab_size": vocab, "hidden_size": hidden, "intermediate_size": inner,
            "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
            "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "tie_word_embeddings": tied, "rope_theta": theta,
            "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "float32",
        });
        ModelConfig::from_json(json)
    }
}

/// Weights drawn from N(0, 0.02²); norm weights are 1.
pub struct RandomWeights {
    seed: u64,
}

impl RandomWeights {
    /// Weights named by `seed`.
    pub fn new(seed: u64) -> RandomWeights {
        RandomWeights { seed }
    }
}

impl TensorSource for RandomWeights {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<RawTensor> {
        let count = shape.iter().product();
        let values = if shape.len() == 1 { vec![1.0; count] } else { random_values(self.seed, name, count) };
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

/// `count` values of N(0, 0.02²).
pub fn random_values(seed: u64, name: &str, count: usize) -> Vec<f32> {
    let stream = RandomStream::derive(seed, name, &[]);
    let mut values = vec![0.0f32; count];
    values.par_chunks_mut(1 << 14).enumerate().for_each(|(chunk, values)| {
        let base = (chunk << 14) as u64;
        values.iter_mut().enumerate().for_each(|(i, value)| *value = 0.02 * stream.normal(base + i as u64));
    });
    values
}

/// The token rows of a step: `state = 88172645463325252 + step`, and for each token
/// `state = state·6364136223846793005 + 1442695040888963407 (mod 2⁶⁴)`, `token = 3 + (state >> 33) % min(vocab-3, 997)`.
pub fn token_ids(step: u64, rows: usize, len: usize, vocab: usize) -> Vec<Vec<u32>> {
    let mut state = 88_172_645_463_325_252u64.wrapping_add(step);
    let range = (vocab as u64).saturating_sub(3).clamp(1, 997);
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        3 + ((state >> 33) % range) as u32
    };
    (0..rows).map(|_| (0..len).map(|_| next()).collect()).collect()
}

