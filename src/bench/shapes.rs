//! Model shapes known by name, and the deterministic token batches of the benches.

use crate::error::Result;
use crate::model::ModelConfig;

/// A model shape known by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// SmolLM2-135M.
    M135,
    /// SmolLM2-360M.
    M360,
    /// TinyLlama-1.1B.
    B1,
    /// LLaMA 2 7B.
    B7,
    /// LLaMA 2 13B.
    B13,
    /// A toy.
    Tiny,
}

impl Shape {
    /// What it is called on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Shape::M135 => "135m",
            Shape::M360 => "360m",
            Shape::B1 => "1.1b",
            Shape::B7 => "7b",
            Shape::B13 => "13b",
            Shape::Tiny => "tiny",
        }
    }

    /// Its configuration.
    pub fn config(self) -> Result<ModelConfig> {
        let (vocab, hidden, inner, layers, heads, kv_heads, tied, theta) = match self {
            Shape::M135 => (49152, 576, 1536, 30, 9, 3, true, 100_000.0),
            Shape::M360 => (49152, 960, 2560, 32, 15, 5, true, 100_000.0),
            Shape::B1 => (32000, 2048, 5632, 22, 32, 4, false, 10_000.0),
            Shape::B7 => (32000, 4096, 11008, 32, 32, 32, false, 10_000.0),
            Shape::B13 => (32000, 5120, 13824, 40, 40, 40, false, 10_000.0),
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

/// Weights that each token is multiplied with: those of the blocks' linears, and those of the head.
fn weights(config: &ModelConfig) -> [f64; 2] {
    let shapes = (0..config.layers).flat_map(|layer| config.linear_shapes(layer));
    let linears: usize = shapes.map(|(_, [rows, cols])| rows * cols).sum();
    [linears as f64, (config.vocab_size * config.hidden_size) as f64]
}

/// Products of attention a token and matrix product, where a row sees half the sequence on average.
fn attention(config: &ModelConfig, sequence: usize) -> f64 {
    (config.layers * sequence * config.query_width()) as f64
}

/// Floating-point operations a token of a QLoRA step without recompute: frozen weights forward and their input gradients,
/// seven products of attention (two forward, five backward), adapters of rank `rank` on all linears three times.
pub fn step_operations(config: &ModelConfig, sequence: usize, rank: usize) -> f64 {
    let [linears, head] = weights(config);
    let shapes = (0..config.layers).flat_map(|layer| config.linear_shapes(layer));
    let adapters: usize = shapes.map(|(_, [rows, cols])| rank * (rows + cols)).sum();
    4.0 * (linears + head) + 7.0 * attention(config, sequence) + 6.0 * adapters as f64
}

/// Floating-point operations a token of reading a prompt: the linears, two products of attention, one row of logits.
pub fn prompt_operations(config: &ModelConfig, prompt: usize) -> f64 {
    let [linears, head] = weights(config);
    2.0 * linears + 2.0 * attention(config, prompt) + 2.0 * head / prompt as f64
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_of_known_shapes() {
        let giga = |shape: Shape, sequence| step_operations(&shape.config().unwrap(), sequence, 16) / 1e9;
        for (shape, sequence, expected) in
            [(Shape::M135, 512, 0.629), (Shape::B1, 512, 4.375), (Shape::B1, 2048, 4.859)]
        {
            assert!((giga(shape, sequence) - expected).abs() < 1e-3, "{shape:?} {sequence}: {}", giga(shape, sequence));
        }
    }
}
