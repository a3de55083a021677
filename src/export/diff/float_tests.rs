//! Float diffs: the sums of f32 rounded once, and the weak check only when asked for.

use super::float::{apply, FloatApplied, FloatJob, SUM_TOLERANCE};
use super::testing::{tensor, write_model, Tensor};
use crate::error::Result;
use crate::export::merge::MergeDtype;
use crate::model::{Checkpoint, StoredDtype};
use half::f16;
use serde_json::{json, Value};
use std::fs;
use std::path::Path;

const EMBEDDING: &str = "model.embed_tokens.weight";
const NORM: &str = "model.norm.weight";

fn case(place: &Path, base: &[Tensor], diff: &[Tensor]) -> FloatJob {
    let base = write_model(&place.join("base"), base, u64::MAX);
    let diff = write_model(&place.join("diff"), diff, u64::MAX);
    let config = json!({
        "model_type": "llama", "vocab_size": 4, "hidden_size": 2, "intermediate_size": 4, "num_hidden_layers": 1,
        "num_attention_heads": 1, "torch_dtype": "float32",
    });
    fs::write(diff.join("config.json"), config.to_string()).unwrap();
    FloatJob { base, diff, out: place.join("out"), dtype: None, sum: None, shard_bytes: u64::MAX }
}

fn quiet(job: &FloatJob) -> Result<FloatApplied> {
    apply(job, &mut |_, _, _| {})
}

#[test]
fn values_are_added_in_f32_and_added_rows_start_from_the_mean() {
    let place = tempfile::tempdir().unwrap();
    let base = [
        tensor(EMBEDDING, StoredDtype::F16, &[3, 2], &[1.0, 10.0, 2.0, 20.0, 6.0, 60.0]),
        tensor(NORM, StoredDtype::F16, &[2], &[1.0, 2.0]),
        tensor("model.layers.0.self_attn.rotary_emb.inv_freq", StoredDtype::F32, &[1], &[1.0]),
    ];
    let diff = [
        tensor(EMBEDDING, StoredDtype::F32, &[4, 2], &[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]),
        tensor(NORM, StoredDtype::F32, &[2], &[1e-4, -2e-4]),
    ];
    let job = case(place.path(), &base, &diff);
    let done = quiet(&job).unwrap();
    assert_eq!((done.tensors, done.bytes, done.left_out.len()), (2, 40, 1));
    let expected: [f32; 8] =
        [1.0 + 0.1, 10.0 + 0.2, 2.0 + 0.3, 20.0 + 0.4, 6.0 + 0.5, 60.0 + 0.6, 3.0 + 0.7, 30.0 + 0.8];
    let recovered = Checkpoint::open(&job.out).unwrap();
    assert_eq!(recovered.get(EMBEDDING).unwrap().bytes.as_f32(), expected);
    let sum: f64 = expected.iter().chain(&[1.0001, 1.9998]).map(|&v| f64::from(v)).sum();
    assert!((done.sum - sum).abs() < 1e-12, "{} {sum}", done.sum);

    fs::remove_dir_all(&job.out).unwrap();
    let half = FloatJob { dtype: Some(MergeDtype::F16), ..job };
    quiet(&half).unwrap();
    let recovered = Checkpoint::open(&half.out).unwrap();
    let rounded = expected.map(|value| f16::from_f32(value).to_bits());
    assert_eq!(recovered.get(EMBEDDING).unwrap().bytes.as_u16(), rounded);
    let config: Value = serde_json::from_slice(&fs::read(half.out.join("config.json")).unwrap()).unwrap();
    assert_eq!(config["torch_dtype"], "float16");
    assert!(half.out.join("tokenizer.json").exists());
}

#[test]
fn sum_is_compared_only_when_asked_for() {
    let place = tempfile::tempdir().unwrap();
    let base = [tensor(NORM, StoredDtype::F32, &[2], &[1.0, 2.0])];
    let job = case(place.path(), &base, &[tensor(NORM, StoredDtype::F32, &[2], &[0.25, 0.5])]);
    assert_eq!(quiet(&job).unwrap().sum, 3.75);
    fs::remove_dir_all(&job.out).unwrap();
    let checked = |sum: f64| FloatJob { sum: Some((sum, SUM_TOLERANCE)), ..job.clone() };
    let error = quiet(&checked(3.77)).unwrap_err();
    assert!(error.message().ends_with("add up to 3.7500, expected 3.77 within 0.01"), "{error}");
    assert!(!job.out.exists());
    quiet(&checked(3.755)).unwrap();
}

#[test]
fn bases_that_do_not_fit_and_values_that_overflow_are_refused() {
    let norm = |dtype, values: &[f32]| tensor(NORM, dtype, &[values.len()], values);
    let refused = |base: &[Tensor], diff: &[Tensor], dtype: Option<MergeDtype>, expected: &str| {
        let place = tempfile::tempdir().unwrap();
        let job = FloatJob { dtype, ..case(place.path(), base, diff) };
        let error = quiet(&job).unwrap_err();
        assert!(error.message().contains(expected), "{error}\nexpected: {expected}");
        assert!(!job.out.exists());
    };
    let two = [norm(StoredDtype::F32, &[1.0, 2.0])];
    refused(&two, &[norm(StoredDtype::F32, &[1.0])], None, "expected floats [1] as in the diff, found F32 [2]");
    refused(&two, &[tensor("other", StoredDtype::F32, &[1], &[1.0])], None, "tensor other is missing");
    refused(&two, &[norm(StoredDtype::U8, &[1.0, 2.0])], None, "expected floats, found bytes");
    let large = [norm(StoredDtype::F32, &[1.0, 7e4])];
    refused(&two, &large, Some(MergeDtype::F16), "model.norm.weight: the value 70002 is not finite as F16");
    quiet_large(&two, &large);
}

fn quiet_large(base: &[Tensor], diff: &[Tensor]) {
    let place = tempfile::tempdir().unwrap();
    assert_eq!(quiet(&case(place.path(), base, diff)).unwrap().sum, 70004.0);
}
