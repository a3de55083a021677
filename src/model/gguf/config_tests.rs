//! Metadata to config.json.

use super::*;
use crate::model::gguf::testing::Builder;
use crate::model::gguf::{Gguf, GgufFile};
use crate::model::ModelConfig;
use crate::ops::rope::{RopeConfig, RopeScaling};

fn config(builder: &Builder) -> Result<Value> {
    let (_place, path) = builder.write();
    config_json(&GgufFile::open(&path)?, SourceDtype::F32)
}

fn refusal(change: impl Fn(&mut Builder)) -> String {
    let mut builder = Builder::tiny();
    change(&mut builder);
    let (_place, path) = builder.write();
    let error = Gguf::open(&path, None).err().expect("refused");
    assert!(error.message().starts_with(path.to_str().unwrap()), "the file is named: {error}");
    error.message()[path.to_str().unwrap().len() + 2..].to_string()
}

#[test]
fn the_keys_of_a_config_come_from_the_metadata() {
    let expected = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 6, "hidden_size": 8,
        "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
        "head_dim": 4, "hidden_act": "silu", "rms_norm_eps": 1e-5, "max_position_embeddings": 64,
        "rope_theta": 500_000.0, "rope_scaling": null, "attention_bias": false, "mlp_bias": false,
        "attention_dropout": 0.0, "tie_word_embeddings": false, "bos_token_id": 0, "eos_token_id": 1,
        "pad_token_id": null, "torch_dtype": "float32",
    });
    assert_eq!(config(&Builder::tiny()).unwrap(), expected);
}

#[test]
fn ends_of_turns_end_generations_too() {
    let mut builder = Builder::tiny();
    builder.u32("tokenizer.ggml.eot_token_id", 4).u32("tokenizer.ggml.eom_token_id", 1);
    builder.u32("tokenizer.ggml.padding_token_id", u32::MAX);
    let config = config(&builder).unwrap();
    assert_eq!((&config["eos_token_id"], &config["pad_token_id"]), (&json!([1, 4]), &Value::Null));
}

#[test]
fn what_is_not_computed_is_refused() {
    let text = |key: &'static str, value: &'static str| {
        refusal(move |b| {
            b.without(key).text(key, value);
        })
    };
    assert!(text("general.architecture", "qwen3").starts_with("general.architecture: expected \"llama\""));
    assert!(text("llama.rope.scaling.type", "yarn").starts_with("llama.rope.scaling.type: expected \"none\""));
    let number = |key: &'static str, value: u32| {
        refusal(move |b| {
            b.without(key).u32(key, value);
        })
    };
    assert_eq!(number("split.count", 3), "split.count: expected 1, found 3");
    assert!(number("llama.expert_count", 8).starts_with("llama.expert_count: expected 0"));
    assert!(number("llama.attention.sliding_window", 32).contains("at least context_length = 64, found 32"));
    assert!(number("llama.rope.dimension_count", 2).contains("expected 4, the width of a head, found 2"));
    assert!(number("llama.attention.value_length", 8).contains("expected 4"));
    assert!(number("llama.attention.head_count", 3).contains("expected a divisor of llama.embedding_length = 8"));
    assert!(number("llama.attention.head_count", 0).contains("from 1 to 2^31, found 0"));
    assert!(number("llama.logit_scale", 2).contains("no such factor"));
    assert_eq!(
        number("llama.block_count", 2),
        "tensor blk.1.attn_norm.weight is missing (it would be model.layers.1.input_layernorm.weight [8])"
    );
    let missing = refusal(|b| {
        b.without("llama.context_length");
    });
    assert_eq!(missing, "llama.context_length: expected a whole number from 1 to 2^31, found nothing");
    let layers = refusal(|b| {
        b.without("llama.attention.head_count").i32s("llama.attention.head_count", &[2, 1]);
    });
    assert_eq!(layers, "llama.attention.head_count: expected one size for all layers, found a list of 2");
}

#[test]
fn a_list_of_equal_sizes_is_a_size() {
    let mut builder = Builder::tiny();
    builder.without("llama.attention.head_count_kv").i32s("llama.attention.head_count_kv", &[1, 1]);
    assert_eq!(config(&builder).unwrap()["num_key_value_heads"], 1);
}

#[test]
fn tensors_of_other_architectures_are_refused() {
    let unknown = refusal(|b| {
        b.f32_tensor("blk.0.attn_q_norm.weight", &[4], &[1.0; 4]);
    });
    assert_eq!(unknown, "tensor blk.0.attn_q_norm.weight: no part of a LLaMA model of 1 layers");
    let shape = refusal(|b| b.tensors().iter_mut().for_each(|t| t.shape.reverse())); // k is [4, 8]
    assert!(shape.contains("expected shape"), "{shape}");
    // A bias in q but none in o is Qwen's way.
    let bias = refusal(|b| {
        b.f32_tensor("blk.0.attn_q.bias", &[8], &[1.0; 8]);
    });
    assert!(bias.starts_with("tensor blk.0.attn_k.bias is missing"), "{bias}");
}

#[test]
fn a_model_without_a_head_is_tied() {
    let mut builder = Builder::tiny();
    builder.tensors().retain(|tensor| tensor.name != "output.weight");
    assert_eq!(config(&builder).unwrap()["tie_word_embeddings"], true);
}

#[test]
fn linear_scaling_is_read_in_both_spellings() {
    let mut new = Builder::tiny();
    new.text("llama.rope.scaling.type", "linear").f32("llama.rope.scaling.factor", 4.0);
    let mut old = Builder::tiny();
    old.f32("llama.rope.scale_linear", 4.0);
    for builder in [new, old] {
        assert_eq!(config(&builder).unwrap()["rope_scaling"], json!({"rope_type": "linear", "factor": 4.0}));
    }
    let mut none = Builder::tiny();
    none.text("llama.rope.scaling.type", "none").f32("llama.rope.scaling.factor", 4.0);
    assert_eq!(config(&none).unwrap()["rope_scaling"], Value::Null);
}

/// The divisors that a converter writes for a scaling, in f32.
fn divisors(rope: &RopeConfig) -> Vec<f32> {
    let plain = RopeConfig { scaling: RopeScaling::Default, ..*rope };
    plain.inv_freq().iter().zip(rope.inv_freq()).map(|(plain, scaled)| plain / scaled).collect()
}

#[test]
fn the_scaling_of_llama_3_is_found_in_its_divisors() {
    let cases = [(500_000.0, 128, 8.0, 8192), (500_000.0, 64, 32.0, 8192), (10_000.0, 64, 2.0, 1024)];
    for (theta, head_dim, factor, context) in cases {
        let scaling = RopeScaling::Llama3 {
            factor,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: context,
        };
        let rope = RopeConfig { theta, head_dim, scaling };
        let mut builder = Builder::new();
        builder.f32("llama.rope.freq_base", theta as f32);
        builder.f32_tensor("rope_freqs.weight", &[head_dim / 2], &divisors(&rope));
        let (_place, path) = builder.write();
        let file = GgufFile::open(&path).unwrap();
        let found = crate::model::gguf::rope::scaling(&file, "llama", head_dim).unwrap();
        let expected = json!({
            "rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": context,
        });
        assert_eq!(found, expected);
    }
}

#[test]
fn other_divisors_are_refused() {
    let with = |values: &[f32]| {
        let mut builder = Builder::tiny();
        builder.f32_tensor("rope_freqs.weight", &[values.len()], values);
        builder
    };
    assert_eq!(config(&with(&[1.0, 1.0])).unwrap()["rope_scaling"], Value::Null);
    assert_eq!(config(&with(&[8.0, 8.0])).unwrap()["rope_scaling"], json!({"rope_type": "linear", "factor": 8.0}));
    for values in [[3.0, 8.0], [0.5, 1.0], [f32::NAN, 1.0], [1.0, f32::INFINITY]] {
        let error = config(&with(&values)).unwrap_err();
        assert!(error.message().contains("not those of a LLaMA 3 scaling") && error.hint_text().is_some());
    }
    assert!(config(&with(&[1.0; 3])).unwrap_err().message().contains("expected shape [2], found [3]"));
}

#[test]
fn a_read_config_is_one_that_the_engine_takes() {
    let model = ModelConfig::from_json(config(&Builder::tiny()).unwrap()).unwrap();
    assert_eq!((model.head_dim, model.kv_heads, model.bos, &model.eos[..]), (4, 1, Some(0), &[1][..]));
}
