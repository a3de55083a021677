//! Which tensor is stored in which type.
//!
//! The plain and the simple types are one type for every matrix; `Q4_K_M` is llama.cpp's mixture: 6 bits for the head and
//! for half of the value and down projections, 4 for the rest. Vectors are F32 in all. A row that is no whole number of
//! blocks gets the next larger type with smaller blocks. Reference: `llama_tensor_get_type` of llama.cpp's
//! `llama-quant.cpp`, which does the same.

use super::writer::TensorPlan;
use crate::model::gguf::{layout, BlockType, Place};
use crate::model::ModelConfig;
use std::collections::BTreeMap;

/// What a file is stored in, by llama.cpp's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileType {
    /// 32 bits a value: exact.
    F32,
    /// 16 bits a value, IEEE.
    F16,
    /// 16 bits a value, bfloat16.
    Bf16,
    /// 8.5 bits a value.
    Q8_0,
    /// 4.5 bits a value.
    Q4_0,
    /// About 4.8 bits a value.
    Q4KM,
}

impl FileType {
    /// The type of an ordinary matrix.
    fn matrix(self) -> BlockType {
        match self {
            FileType::F32 => BlockType::F32,
            FileType::F16 => BlockType::F16,
            FileType::Bf16 => BlockType::BF16,
            FileType::Q8_0 => BlockType::Q8_0,
            FileType::Q4_0 => BlockType::Q4_0,
            FileType::Q4KM => BlockType::Q4_K,
        }
    }

    /// `general.file_type`.
    pub fn number(self) -> u32 {
        match self {
            FileType::F32 => 0,
            FileType::F16 => 1,
            FileType::Q4_0 => 2,
            FileType::Q8_0 => 7,
            FileType::Q4KM => 15,
            FileType::Bf16 => 32,
        }
    }

    /// Whether values are stored in blocks.
    pub fn is_quantised(self) -> bool {
        self.matrix().plain().is_none()
    }
}

/// Tensors that could not have the type that was meant for them, alike but for their layer.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fallback {
    /// Name, with `N` for the layer.
    pub name: String,
    /// Values of a row.
    pub row: usize,
    /// Type that was meant.
    pub wanted: &'static str,
    /// Type that it is.
    pub found: &'static str,
}

/// The tensors of a file, in its order.
pub struct Scheme {
    /// What is written, under both names.
    pub tensors: Vec<(Place, BlockType)>,
    /// Rows that did not fit, and how many tensors of each kind.
    pub fallbacks: BTreeMap<Fallback, usize>,
}

impl Scheme {
    /// Chooses the type of every tensor.
    pub fn new(config: &ModelConfig, file_type: FileType) -> Scheme {
        let mut fallbacks = BTreeMap::new();
        let choose = |place: Place| {
            let [_, row] = place.shape[..] else { return (place, BlockType::F32) };
            let wanted = wanted(&place.stored, row, config, file_type);
            let found = fitting(wanted, row);
            if found != wanted {
                let (wanted, found) = (wanted.name(), found.name());
                *fallbacks.entry(Fallback { name: without_layer(&place.stored), row, wanted, found }).or_insert(0) += 1;
            }
            (place, found)
        };
        let tensors = layout(config).map(choose).collect();
        Scheme { tensors, fallbacks }
    }

    /// What the writer needs to know.
    pub fn plans(&self) -> impl Iterator<Item = TensorPlan> + '_ {
        let plan = |(place, kind): &(Place, BlockType)| TensorPlan {
            name: place.stored.clone(),
            shape: place.shape.clone(),
            kind: *kind,
        };
        self.tensors.iter().map(plan)
    }
}

/// The type of a matrix if its rows allow it.
fn wanted(name: &str, row: usize, config: &ModelConfig, file_type: FileType) -> BlockType {
    let matrix = file_type.matrix();
    if !file_type.is_quantised() {
        return matrix;
    }
    let is_head = name == "output.weight" || config.tie_word_embeddings && name == "token_embd.weight";
    if is_head {
        return match matrix {
            BlockType::Q8_0 => matrix,
            _ if !row.is_multiple_of(matrix.values()) => BlockType::Q8_0,
            _ => BlockType::Q6_K,
        };
    }
    if file_type != FileType::Q4KM {
        return matrix;
    }
    let more = layer_of(name).is_some_and(|layer| takes_more_bits(layer, config.layers));
    if more && (name.ends_with(".ffn_down.weight") || name.ends_with(".attn_v.weight")) {
        return BlockType::Q6_K;
    }
    // Eight heads of a 70B model share one value projection: a little more for it costs nearly nothing.
    let is_70b = config.layers == 80 && config.heads != config.kv_heads;
    match name.ends_with(".attn_v.weight") && is_70b {
        true => BlockType::Q5_K,
        false => matrix,
    }
}

/// The first and the last eighth of the layers, and every third between.
fn takes_more_bits(layer: usize, layers: usize) -> bool {
    layer < layers / 8 || layer >= 7 * layers / 8 || (layer - layers / 8) % 3 == 2
}

/// The type itself where rows are whole blocks of it, else the next that fits.
fn fitting(wanted: BlockType, row: usize) -> BlockType {
    if row.is_multiple_of(wanted.values()) {
        return wanted;
    }
    let smaller = match wanted {
        BlockType::Q4_K => BlockType::Q5_0,
        BlockType::Q5_K => BlockType::Q5_1,
        BlockType::Q6_K => BlockType::Q8_0,
        _ => BlockType::F16,
    };
    match row.is_multiple_of(smaller.values()) {
        true => smaller,
        false => BlockType::F16,
    }
}

fn layer_of(name: &str) -> Option<usize> {
    name.strip_prefix("blk.")?.split('.').next()?.parse().ok()
}

fn without_layer(name: &str) -> String {
    match (name.strip_prefix("blk."), layer_of(name)) {
        (Some(rest), Some(_)) => {
            format!("blk.N{}", rest.trim_start_matches(|c: char| c.is_ascii_digit()))
        }
        _ => name.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn config(hidden: usize, inner: usize, layers: usize, heads: [usize; 2], tied: bool) -> ModelConfig {
        let json = json!({
            "model_type": "llama", "vocab_size": 32000, "hidden_size": hidden, "intermediate_size": inner,
            "num_hidden_layers": layers, "num_attention_heads": heads[0], "num_key_value_heads": heads[1],
            "tie_word_embeddings": tied,
        });
        ModelConfig::from_json(json).unwrap()
    }

    fn types(scheme: &Scheme, ending: &str) -> Vec<&'static str> {
        let wanted = |(place, _): &&(Place, BlockType)| place.stored.ends_with(ending);
        scheme.tensors.iter().filter(wanted).map(|(_, kind)| kind.name()).collect()
    }

    /// LLaMA-2-7B as llama-quantize stores it: 193 Q4_K, 33 Q6_K, 65 F32.
    #[test]
    fn q4_k_m_of_llama_2_7b_is_the_known_mixture() {
        let scheme = Scheme::new(&config(4096, 11008, 32, [32, 32], false), FileType::Q4KM);
        let mut counts = BTreeMap::new();
        scheme.tensors.iter().for_each(|(_, kind)| *counts.entry(kind.name()).or_insert(0) += 1);
        assert_eq!(counts, BTreeMap::from([("F32", 65), ("Q4_K", 193), ("Q6_K", 33)]));
        assert!(scheme.fallbacks.is_empty());
        assert_eq!(types(&scheme, "output.weight")[32..], ["Q6_K"], "after 32 attn_output");
        assert_eq!(types(&scheme, "token_embd.weight"), ["Q4_K"]);
        let down = types(&scheme, "ffn_down.weight");
        let more: Vec<usize> = (0..32).filter(|&layer| down[layer] == "Q6_K").collect();
        assert_eq!(more, [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]);
        assert_eq!(down, types(&scheme, "attn_v.weight"));
    }

    #[test]
    fn a_70b_model_has_better_values() {
        let scheme = Scheme::new(&config(8192, 28672, 80, [64, 8], false), FileType::Q4KM);
        let values = types(&scheme, "attn_v.weight");
        assert!(values.iter().all(|kind| matches!(*kind, "Q6_K" | "Q5_K")) && values[10] == "Q5_K");
    }

    /// SmolLM2: rows of 576 are no whole blocks of 256, rows of 1536 are.
    #[test]
    fn rows_that_do_not_divide_fall_back_and_are_listed() {
        let smol = config(576, 1536, 30, [9, 3], true);
        let scheme = Scheme::new(&smol, FileType::Q4KM);
        assert_eq!(types(&scheme, "token_embd.weight"), ["Q8_0"]);
        assert_eq!(types(&scheme, "attn_q.weight")[0], "Q5_0");
        assert_eq!(types(&scheme, "attn_v.weight")[..5], ["Q8_0", "Q8_0", "Q8_0", "Q5_0", "Q5_0"]);
        assert_eq!(types(&scheme, "ffn_down.weight")[..5], ["Q6_K", "Q6_K", "Q6_K", "Q4_K", "Q4_K"]);
        let listed: Vec<String> = scheme
            .fallbacks
            .iter()
            .map(|(f, count)| format!("{count} {} {} {}>{}", f.name, f.row, f.wanted, f.found))
            .collect();
        let expected = [
            "30 blk.N.attn_k.weight 576 Q4_K>Q5_0",
            "30 blk.N.attn_output.weight 576 Q4_K>Q5_0",
            "30 blk.N.attn_q.weight 576 Q4_K>Q5_0",
            "16 blk.N.attn_v.weight 576 Q4_K>Q5_0",
            "14 blk.N.attn_v.weight 576 Q6_K>Q8_0",
            "30 blk.N.ffn_gate.weight 576 Q4_K>Q5_0",
            "30 blk.N.ffn_up.weight 576 Q4_K>Q5_0",
        ];
        assert_eq!(listed, expected);
        // stories260K: 172 is no whole number of any block.
        let stories = Scheme::new(&config(64, 172, 5, [8, 4], true), FileType::Q8_0);
        assert_eq!(types(&stories, "ffn_down.weight")[0], "F16");
        assert_eq!(types(&stories, "ffn_up.weight")[0], "Q8_0");
        assert!(Scheme::new(&smol, FileType::F16).fallbacks.is_empty());
    }

    #[test]
    fn a_head_of_four_bits_has_six() {
        let scheme = Scheme::new(&config(4096, 11008, 2, [32, 32], false), FileType::Q4_0);
        assert_eq!(types(&scheme, "token_embd.weight"), ["Q4_0"]);
        assert_eq!(types(&scheme, "output.weight").last(), Some(&"Q6_K"));
        let scheme = Scheme::new(&config(4096, 11008, 2, [32, 32], false), FileType::Q8_0);
        assert_eq!(types(&scheme, "output.weight").last(), Some(&"Q8_0"));
    }
}
