//! Merged folders: right values in every dtype, and nothing merged that should not be.

use super::*;
use crate::adapter::peft::{CONFIG_FILE, EMBEDDING, HEAD, PROVENANCE_FILE, TENSOR_FILE};
use crate::export::quantize_folder;
use crate::export::safetensors::TensorSpec;
use crate::model::{RawTensor, StoredDtype};
use crate::ops::testing::{assert_same_in_every_pool, normal};
use crate::ops::Bytes;
use crate::quant::QuantConfig;
use half::{bf16, f16};
use serde_json::json;
use std::fs;

const Q: &str = "model.layers.0.self_attn.q_proj";

fn config(tied: bool) -> Value {
    json!({
        "model_type": "llama", "vocab_size": 20, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "rms_norm_eps": 1e-5, "max_position_embeddings": 32,
        "hidden_act": "silu", "tie_word_embeddings": tied, "torch_dtype": "float32",
    })
}

fn shapes(tied: bool) -> Vec<(String, Vec<usize>)> {
    let config = ModelConfig::from_json(config(tied)).unwrap();
    let linears = config.linear_shapes(0).into_iter().map(|(name, shape)| (name, shape.to_vec()));
    let norms = ["model.layers.0.input_layernorm", "model.layers.0.post_attention_layernorm", "model.norm"];
    let mut shapes: Vec<_> = linears.chain(norms.map(|name| (format!("{name}.weight"), vec![32]))).collect();
    shapes.push((EMBEDDING.into(), vec![20, 32]));
    if !tied {
        shapes.push((HEAD.into(), vec![20, 32]));
    }
    shapes
}

fn encode(values: &[f32], dtype: MergeDtype) -> Vec<u8> {
    match dtype {
        MergeDtype::F32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        MergeDtype::F16 => values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect(),
        MergeDtype::Bf16 => values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect(),
    }
}

fn write_tensors(folder: &Path, stem: &str, tensors: &[(String, Vec<usize>, Vec<f32>)], dtype: MergeDtype) {
    let spec =
        |(name, shape, _): &(String, Vec<usize>, Vec<f32>)| vec![TensorSpec::new(name, dtype.into(), shape.clone())];
    let mut writer = ShardWriter::new(folder, stem, tensors.iter().map(spec).collect(), u64::MAX).unwrap();
    for (name, shape, values) in tensors {
        let bytes = Bytes::owned(&encode(values, dtype));
        writer.write(name, &RawTensor { dtype: dtype.into(), shape: shape.clone(), bytes }).unwrap();
    }
    writer.finish().unwrap();
}

/// A base and an adapter of rank 2 on q_proj.
struct Case {
    place: tempfile::TempDir,
    dtype: MergeDtype,
    tied: bool,
    scale: f32,
    saved: Vec<(&'static str, Vec<f32>)>,
}

impl Case {
    fn new(dtype: MergeDtype, tied: bool) -> Case {
        Case { place: tempfile::tempdir().unwrap(), dtype, tied, scale: 1.0, saved: Vec::new() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    fn job(&self) -> MergeJob {
        let (base, adapter) = (self.path("base"), self.path("adapter"));
        fs::create_dir_all(&base).unwrap();
        fs::create_dir_all(&adapter).unwrap();
        fs::write(base.join("config.json"), config(self.tied).to_string()).unwrap();
        fs::write(base.join("tokenizer.json"), "{}").unwrap();
        fs::write(base.join("generation_config.json"), "{}").unwrap();
        let tensors: Vec<_> =
            shapes(self.tied).into_iter().map(|(n, s)| (n.clone(), s.clone(), self.base(&n))).collect();
        write_tensors(&base, "model", &tensors, self.dtype);

        let peft = json!({ "peft_type": "LORA", "r": 2, "lora_alpha": 6, "target_modules": ["q_proj"] });
        fs::write(adapter.join(CONFIG_FILE), peft.to_string()).unwrap();
        let (a, b) = self.factors();
        let mut tensors = vec![
            (format!("base_model.model.{Q}.lora_A.weight"), vec![2, 32], a),
            (format!("base_model.model.{Q}.lora_B.weight"), vec![32, 2], b),
        ];
        let saved =
            self.saved.iter().map(|(name, values)| (format!("base_model.model.{name}"), vec![20, 32], values.clone()));
        tensors.extend(saved);
        write_tensors(&adapter, TENSOR_FILE.trim_end_matches(".safetensors"), &tensors, MergeDtype::F32);
        MergeJob {
            base,
            adapter,
            out: self.path("out"),
            dtype: None,
            shard_bytes: 8_000,
            any_base: false,
            dequantize_base: false,
        }
    }

    /// Values of a tensor of the base as f32.
    fn base(&self, name: &str) -> Vec<f32> {
        let (_, shape) = shapes(false).into_iter().find(|(found, _)| found == name).unwrap();
        normal(name, shape.iter().product()).into_iter().map(|value| self.dtype.round(value)).collect()
    }

    fn factors(&self) -> (Vec<f32>, Vec<f32>) {
        (normal("a", 64), normal("b", 64).into_iter().map(|value| value * self.scale).collect())
    }

    /// W + 3·B·A in f64.
    fn merged(&self) -> Vec<f64> {
        let (a, b) = self.factors();
        let product =
            |n: usize, k: usize| (0..2).map(|j| f64::from(b[n * 2 + j]) * f64::from(a[j * 32 + k])).sum::<f64>();
        let w = self.base(&format!("{Q}.weight"));
        (0..32 * 32).map(|i| f64::from(w[i]) + 3.0 * product(i / 32, i % 32)).collect()
    }
}

fn quiet(job: &MergeJob) -> Result<Summary> {
    merge_folder(job, &mut |_, _, _| {})
}

fn values(checkpoint: &Checkpoint, name: &str) -> Vec<f32> {
    let tensor = checkpoint.get(name).unwrap();
    let view = tensor::weight_ref(tensor.values().unwrap(), 1, tensor.elements());
    (0..tensor.elements()).map(|i| view.at(0, i)).collect()
}

#[track_caller]
fn refused(job: &MergeJob, expected: &str) {
    let error = quiet(job).unwrap_err();
    assert!(error.message().contains(expected), "{error}\nexpected: {expected}");
    assert!(!job.out.exists());
}

#[test]
fn merged_weights_are_rounded_once_and_the_others_stay() {
    for base in [MergeDtype::F32, MergeDtype::F16, MergeDtype::Bf16] {
        for wanted in [None, Some(MergeDtype::F32), Some(MergeDtype::F16), Some(MergeDtype::Bf16)] {
            let case = Case::new(base, false);
            let job = MergeJob { dtype: wanted, ..case.job() };
            let mut names = Vec::new();
            let summary = merge_folder(&job, &mut |done, total, name| {
                assert_eq!((done, total), (names.len() + 1, 12));
                names.push(name.to_string());
            });
            let summary = summary.unwrap();
            assert_eq!((summary.tensors, summary.merged, summary.warnings.len()), (12, 1, 1));
            let merged = Checkpoint::open(&job.out).unwrap();
            assert!(merged.files().count() > 1);
            let dtype = wanted.unwrap_or(base);
            for (name, shape) in shapes(false) {
                let tensor = merged.get(&name).unwrap();
                assert_eq!((tensor.dtype, &tensor.shape), (dtype.into(), &shape), "{name}");
                let found = values(&merged, &name);
                if name == format!("{Q}.weight") {
                    for (found, exact) in found.iter().zip(case.merged()) {
                        // Half a unit in the last place of the dtype, and f32's error before the rounding.
                        let unit = match dtype {
                            MergeDtype::F32 => 2f64.powi(-24),
                            MergeDtype::F16 => 2f64.powi(-11),
                            MergeDtype::Bf16 => 2f64.powi(-8),
                        };
                        assert!(
                            (f64::from(*found) - exact).abs() <= unit * exact.abs() * 1.001 + 4e-6,
                            "{found} {exact}"
                        );
                    }
                } else {
                    let expected: Vec<f32> = case.base(&name).into_iter().map(|value| dtype.round(value)).collect();
                    assert_eq!(found, expected, "{name}");
                }
            }
            let config: Value = serde_json::from_slice(&fs::read(job.out.join("config.json")).unwrap()).unwrap();
            assert_eq!(config["torch_dtype"], wanted.map_or("float32", dtype_name));
            assert!(job.out.join("tokenizer.json").exists() && job.out.join("generation_config.json").exists());
        }
    }
}

#[test]
fn merged_folder_has_the_same_bytes_whatever_the_number_of_threads() {
    let case = Case::new(MergeDtype::Bf16, false);
    let job = case.job();
    assert_same_in_every_pool(|| {
        let _ = fs::remove_dir_all(&job.out);
        quiet(&job).unwrap();
        base_hash(&Checkpoint::open(&job.out).unwrap(), HashDepth::Full).unwrap()
    });
}

#[test]
fn only_the_base_of_the_adapter_is_accepted_without_insisting() {
    let case = Case::new(MergeDtype::F32, false);
    let job = case.job();
    let hash = base_hash(&Checkpoint::open(&job.base).unwrap(), HashDepth::Full).unwrap();
    let provenance = |hash: &str| {
        let json = json!({ "format": 1, "base": "models/b", "base_hash": hash, "method": "lora", "created_by": "x" });
        fs::write(job.adapter.join(PROVENANCE_FILE), json.to_string()).unwrap();
    };
    provenance("0123456789abcdef");
    refused(&job, "not the base of the adapter, which was trained on models/b (hash 0123456789ab, ");
    let insisting = MergeJob { any_base: true, ..job.clone() };
    assert!(quiet(&insisting).unwrap().warnings[0].contains("not the base of the adapter"));
    fs::remove_dir_all(&job.out).unwrap();
    provenance(&hash);
    assert_eq!(quiet(&job).unwrap().warnings, Vec::<String>::new());
    refuse_existing(&job);
}

fn refuse_existing(job: &MergeJob) {
    let error = quiet(job).unwrap_err();
    assert!(error.message().ends_with("exists already"), "{error}");
}

#[test]
fn nf4_base_is_dequantised_only_when_that_is_asked_for() {
    let case = Case::new(MergeDtype::Bf16, false);
    let plain = case.job();
    let job = MergeJob { base: case.path("nf4"), dequantize_base: true, ..plain.clone() };
    quantize_folder(&plain.base, &job.base, QuantConfig::default(), &mut |_, _, _| {}).unwrap();
    refused(&MergeJob { dequantize_base: false, ..job.clone() }, "the base is in NF4");

    let summary = quiet(&job).unwrap();
    assert_eq!((summary.tensors, summary.merged), (12, 1));
    let (stored, merged) = (Checkpoint::open(&job.base).unwrap(), Checkpoint::open(&job.out).unwrap());
    assert_eq!(merged.names().count(), 12);
    let up = "model.layers.0.mlp.up_proj.weight";
    let mut expected = vec![0.0; 48 * 32];
    stored.expect_nf4(up, 48, 32).unwrap().dequantize(&mut expected);
    assert_eq!(merged.get(up).unwrap().dtype, StoredDtype::Bf16);
    assert_eq!(values(&merged, up), expected);
    let config: Value = serde_json::from_slice(&fs::read(job.out.join("config.json")).unwrap()).unwrap();
    assert_eq!(config.get("quantization_config"), None);
}

#[test]
fn values_that_the_dtype_cannot_hold_are_refused() {
    let mut case = Case::new(MergeDtype::F32, false);
    case.scale = 1e5;
    let job = MergeJob { dtype: Some(MergeDtype::F16), ..case.job() };
    refused(&job, "model.layers.0.self_attn.q_proj.weight: the value ");
    quiet(&MergeJob { dtype: Some(MergeDtype::Bf16), ..job }).unwrap();
    case.scale = 3e38;
    fs::remove_dir_all(case.path("out")).unwrap();
    refused(&case.job(), "is not finite");
}

#[test]
fn base_that_does_not_fit_the_adapter_is_refused() {
    let case = Case::new(MergeDtype::F32, false);
    let job = case.job();
    let mut config = config(false);
    config["num_hidden_layers"] = json!(2);
    fs::write(job.base.join("config.json"), config.to_string()).unwrap();
    refused(&job, "no tensors for model.layers.1.self_attn.q_proj");
    config["num_hidden_layers"] = json!(1);
    config["num_attention_heads"] = json!(4);
    config["head_dim"] = json!(16);
    fs::write(job.base.join("config.json"), config.to_string()).unwrap();
    refused(&job, "q_proj: expected an adapter for a [64, 32] weight, found one for [32, 32]");
}

#[test]
fn saved_embedding_and_head_replace_the_bases_and_untie_a_tied_model() {
    let stored = |label: &str| normal(label, 640);
    let merge = |tied: bool, saved: Vec<(&'static str, Vec<f32>)>| {
        let mut case = Case::new(MergeDtype::F32, tied);
        case.saved = saved;
        let job = case.job();
        quiet(&job).unwrap();
        let merged = Checkpoint::open(&job.out).unwrap();
        let tied = ModelConfig::from_folder(&job.out).unwrap().tie_word_embeddings;
        let head = merged.contains(HEAD).then(|| values(&merged, HEAD));
        (tied, values(&merged, EMBEDDING), head)
    };
    let base = normal(EMBEDDING, 640);
    let (e, h) = (stored("trained embedding"), stored("trained head"));
    let both = |head: &[f32]| vec![(EMBEDDING, e.clone()), (HEAD, head.to_vec())];
    assert_eq!(merge(false, both(&h)), (false, e.clone(), Some(h.clone())));
    assert_eq!(merge(true, both(&h)), (false, e.clone(), Some(h.clone())));
    assert_eq!(merge(true, both(&e)), (true, e.clone(), None));
    assert_eq!(merge(true, vec![(EMBEDDING, e.clone())]), (false, e.clone(), Some(base.clone())));
    assert_eq!(merge(true, vec![(HEAD, h.clone())]), (false, base.clone(), Some(h)));
    assert_eq!(merge(true, Vec::new()), (true, base, None));
}
