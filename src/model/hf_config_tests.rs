//! Every spelling that is read, and every nonsense that is refused with its key.

use super::*;
use serde_json::json;

/// LLaMA 2 7B as transformers 4 wrote it.
fn old() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
        "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 11008, "max_position_embeddings": 4096,
        "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32,
        "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": null, "tie_word_embeddings": false,
        "torch_dtype": "float16", "transformers_version": "4.32.0", "use_cache": true, "vocab_size": 32000
    })
}

fn with(changes: &[(&str, Value)]) -> Value {
    let mut value = old();
    for (key, change) in changes {
        value[*key] = change.clone();
    }
    value
}

fn without(key: &str) -> Value {
    let mut value = old();
    value.as_object_mut().unwrap().shift_remove(key);
    value
}

fn refused(value: Value, parts: &[&str]) {
    let error = ModelConfig::from_json(value).unwrap_err();
    for part in parts {
        assert!(error.message().contains(part), "expected {part:?} in: {error}");
    }
}

fn parsed(value: Value) -> ModelConfig {
    ModelConfig::from_json(value).unwrap()
}

#[test]
fn the_old_spelling_is_read() {
    let config = parsed(old());
    assert_eq!(config.architecture, Architecture::Llama);
    assert_eq!((config.vocab_size, config.hidden_size, config.intermediate_size), (32000, 4096, 11008));
    assert_eq!((config.layers, config.heads, config.kv_heads, config.head_dim), (32, 32, 32, 128));
    assert_eq!((config.query_width(), config.kv_width()), (4096, 4096));
    assert_eq!(config.rope, RopeConfig { theta: 10_000.0, head_dim: 128, scaling: RopeScaling::Default });
    assert_eq!((config.rms_norm_eps, config.max_position_embeddings), (1e-5, 4096));
    assert_eq!((config.bos, &config.eos[..], config.pad), (Some(1), &[2][..], None));
    assert_eq!(config.dtype, Some(SourceDtype::F16));
    assert!(!config.attention_bias && !config.mlp_bias && !config.tie_word_embeddings && !config.quantized);
}

#[test]
fn both_spellings_of_rope_give_the_same() {
    let llama3 = json!({
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192, "rope_type": "llama3"
    });
    let mut inside = llama3.clone();
    inside["rope_theta"] = json!(500000.0);
    let old = parsed(with(&[("rope_theta", json!(500000.0)), ("rope_scaling", llama3)]));
    let new = parsed(with(&[("rope_parameters", inside), ("dtype", json!("bfloat16"))]));
    assert_eq!(old.rope, new.rope);
    assert_eq!(new.rope.theta, 500_000.0);
    let scaling = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    };
    assert_eq!(new.rope.scaling, scaling);
    assert_eq!(new.dtype, Some(SourceDtype::Bf16));
}

#[test]
fn linear_scaling_is_read_under_both_names_of_its_type() {
    for key in ["type", "rope_type"] {
        let config = parsed(with(&[("rope_scaling", json!({key: "linear", "factor": 4}))]));
        assert_eq!(config.rope.scaling, RopeScaling::Linear { factor: 4.0 });
    }
}

#[test]
fn rope_scalings_that_are_not_computed_are_refused() {
    for kind in ["dynamic", "yarn", "longrope", "su", "mrope"] {
        let value = with(&[("rope_scaling", json!({"type": kind, "factor": 2.0}))]);
        refused(value, &["rope_scaling.type", "\"llama3\"", kind]);
    }
    refused(with(&[("rope_scaling", json!({"factor": 2.0}))]), &["rope_scaling.type", "found nothing"]);
    refused(with(&[("rope_scaling", json!({"type": "linear"}))]), &["rope_scaling.factor", "found nothing"]);
    refused(with(&[("rope_scaling", json!({"type": "linear", "factor": 0.5}))]), &["rope_scaling.factor", "0.5"]);
    refused(with(&[("rope_scaling", json!("linear"))]), &["rope_scaling", "an object"]);
    refused(
        with(&[("rope_parameters", json!({"rope_type": "default", "rope_theta": 0}))]),
        &["rope_parameters.rope_theta"],
    );
    refused(with(&[("partial_rotary_factor", json!(0.5))]), &["partial_rotary_factor", "0.5"]);
    let swapped = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 1.0,
        "original_max_position_embeddings": 8192
    });
    refused(with(&[("rope_scaling", swapped)]), &["rope_scaling.high_freq_factor", "low_freq_factor = 4"]);
}

#[test]
fn grouped_and_single_key_heads_explicit_width_and_biases_are_read() {
    let config = parsed(with(&[
        ("num_key_value_heads", json!(1)),
        ("head_dim", json!(24)),
        ("attention_bias", json!(true)),
        ("mlp_bias", json!(true)),
        ("tie_word_embeddings", json!(true)),
    ]));
    assert_eq!((config.kv_heads, config.query_width(), config.kv_width()), (1, 768, 24));
    assert!(config.attention_bias && config.mlp_bias && config.tie_word_embeddings);
    assert_eq!(parsed(with(&[("num_key_value_heads", json!(8))])).kv_width(), 1024);
    for value in [without("num_key_value_heads"), with(&[("num_key_value_heads", Value::Null)])] {
        assert_eq!(parsed(value).kv_heads, 32);
    }
}

#[test]
fn missing_optional_fields_take_the_defaults_of_transformers() {
    assert_eq!(parsed(without("rms_norm_eps")).rms_norm_eps, 1e-6);
    assert_eq!(parsed(without("max_position_embeddings")).max_position_embeddings, 2048);
    assert_eq!(parsed(without("torch_dtype")).dtype, None);
    let config = parsed(without("eos_token_id"));
    assert_eq!((config.eos, config.bos), (vec![], Some(1)));
    parsed(without("hidden_act"));
}

#[test]
fn end_tokens_may_be_a_list() {
    let config = parsed(with(&[("vocab_size", json!(128256)), ("eos_token_id", json!([128001, 128008, 128009]))]));
    assert_eq!(config.eos, [128001, 128008, 128009]);
    refused(with(&[("eos_token_id", json!([2, 32000]))]), &["eos_token_id", "vocab_size = 32000", "[2,32000]"]);
    refused(with(&[("bos_token_id", json!(-1))]), &["bos_token_id", "-1"]);
}

#[test]
fn padding_outside_the_vocabulary_counts_as_none() {
    for (pad, expected) in [(json!(0), Some(0)), (json!(-1), None), (json!(32000), None), (Value::Null, None)] {
        assert_eq!(parsed(with(&[("pad_token_id", pad)])).pad, expected);
    }
}

#[test]
fn every_size_must_be_a_whole_number_above_zero() {
    let keys = ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"];
    for key in keys {
        refused(without(key), &[key, "found nothing"]);
        for bad in [json!(0), json!(-4), json!(2.5), json!("64"), json!(1u64 << 40), json!([64])] {
            refused(with(&[(key, bad.clone())]), &[key, &bad.to_string()]);
        }
    }
    refused(with(&[("num_key_value_heads", json!(0))]), &["num_key_value_heads"]);
    refused(with(&[("head_dim", json!(0))]), &["head_dim"]);
    refused(with(&[("max_position_embeddings", json!(0))]), &["max_position_embeddings"]);
}

#[test]
fn sizes_that_do_not_fit_each_other_are_refused() {
    refused(
        with(&[("num_key_value_heads", json!(5))]),
        &["num_key_value_heads", "num_attention_heads = 32", "found 5"],
    );
    refused(with(&[("num_attention_heads", json!(33))]), &["num_attention_heads", "hidden_size = 4096"]);
    refused(with(&[("head_dim", json!(63))]), &["head_dim", "even", "63"]);
}

#[test]
fn wrong_types_are_refused() {
    refused(with(&[("attention_bias", json!(1))]), &["attention_bias", "true or false"]);
    refused(with(&[("tie_word_embeddings", json!("yes"))]), &["tie_word_embeddings", "\"yes\""]);
    refused(with(&[("rms_norm_eps", json!(0.0))]), &["rms_norm_eps"]);
    refused(with(&[("rope_theta", json!("10000"))]), &["rope_theta"]);
    refused(json!([1, 2]), &["JSON object"]);
}

#[test]
fn what_the_engine_does_not_compute_is_refused() {
    refused(with(&[("hidden_act", json!("gelu"))]), &["hidden_act", "\"silu\"", "\"gelu\""]);
    refused(with(&[("attention_dropout", json!(0.1))]), &["attention_dropout", "0.1"]);
    for kind in [json!("gemma2"), json!("qwen2"), Value::Null] {
        refused(with(&[("model_type", kind.clone())]), &["model_type", "\"llama\" or \"mistral\"", &kind.to_string()]);
    }
}

#[test]
fn mistral_is_read_where_its_window_never_applies() {
    let mistral = |window: Option<Value>, positions: usize| {
        let mut value = with(&[
            ("model_type", json!("mistral")),
            ("num_key_value_heads", json!(8)),
            ("max_position_embeddings", json!(positions)),
        ]);
        if let Some(window) = window {
            value["sliding_window"] = window;
        }
        value
    };
    for (window, positions) in
        [(Some(Value::Null), 32768), (Some(json!(4096)), 4096), (Some(json!(8192)), 4096), (None, 4096)]
    {
        assert_eq!(parsed(mistral(window, positions)).architecture, Architecture::Mistral);
    }
    refused(mistral(Some(json!(4096)), 32768), &["sliding_window", "max_position_embeddings = 32768", "found 4096"]);
    refused(mistral(None, 32768), &["sliding_window", "found nothing"]);
    // LLaMA ignores the key, as transformers does.
    parsed(with(&[("sliding_window", json!(16))]));
}

#[test]
fn only_nf4_quantization_is_read() {
    use crate::quant::{file::quantization_config, QuantConfig};
    let nf4 = quantization_config(QuantConfig::default(), SourceDtype::F32);
    assert!(parsed(with(&[("quantization_config", nf4)])).quantized);
    let gptq = json!({"quant_method": "gptq", "bits": 4});
    refused(with(&[("quantization_config", gptq)]), &["quantization_config.quant_method", "bitsandbytes", "gptq"]);
}

#[test]
fn the_json_is_kept_in_its_order() {
    let config = parsed(old());
    let keys: Vec<_> = config.raw.as_object().unwrap().keys().cloned().collect();
    let written = config.json_with_quantization(Some(json!({"quant_method": "bitsandbytes"})));
    let kept: Vec<_> = written.as_object().unwrap().keys().cloned().collect();
    assert_eq!(kept[..keys.len()], keys);
    assert_eq!(kept.last().unwrap(), "quantization_config");
    assert_eq!(ModelConfig { raw: written, ..config }.json_with_quantization(None), old());
}

#[test]
fn files_are_named_in_errors() {
    let folder = tempfile::tempdir().unwrap();
    let missing = ModelConfig::from_folder(folder.path()).unwrap_err();
    assert!(missing.message().contains("config.json: no such file") && missing.hint_text().is_some());
    let path = folder.path().join("config.json");
    std::fs::write(&path, "{\"a\": 1,\n}").unwrap();
    let error = ModelConfig::from_folder(folder.path()).unwrap_err();
    assert!(error.message().contains("config.json: not JSON") && error.message().contains("line 2"), "{error}");
    std::fs::write(&path, with(&[("vocab_size", json!(0))]).to_string()).unwrap();
    let error = ModelConfig::from_folder(folder.path()).unwrap_err();
    assert!(error.message().contains("config.json: vocab_size"), "{error}");
}
