//! Model shapes known by name, and the deterministic token batches of the benches.

use crate::error::Result;
use crate::model::ModelConfig;

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
