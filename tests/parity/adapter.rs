//! Adapter files and merged weights against PEFT.

use crate::golden_data::{folder, tensors_of, Differences, Golden};
use llamantino::adapter::peft::{self, Provenance};
use llamantino::export::merge::{merge_folder, MergeJob};
use llamantino::model::{self, Checkpoint, LoadOptions, Method, ModelConfig};
use serde_json::Value;
use std::path::Path;

const KINDS: [&str; 3] = ["lora", "rslora", "dora"];

#[test]
fn merged_weights() {
    let mut differences = Differences::default();
    for kind in KINDS {
        let golden = Golden::load(&format!("lora/{kind}_forward"));
        let place = tempfile::tempdir().unwrap();
        let job = MergeJob {
            base: folder().join("llama/tiny"),
            adapter: folder().join("lora").join(kind),
            out: place.path().join("merged"),
            dtype: None,
            shard_bytes: 100_000,
            any_base: false,
            dequantize_base: false,
        };
        let summary = merge_folder(&job, &mut |_, _, _| {}).unwrap();
        assert_eq!((summary.merged, summary.warnings.len()), (14, 1), "an adapter of PEFT's own names no base");
        let base = Checkpoint::open(&job.base).unwrap();
        let merged = Checkpoint::open(&job.out).unwrap();
        assert!(merged.names().eq(base.names()));
        for name in base.names() {
            let found = merged.get(name).unwrap();
            match golden.tensors.get(&format!("merged.{name}")) {
                Some(expected) => {
                    differences.close(&format!("{kind} {name}"), &expected.f32(), found.bytes.as_f32(), 1e-6);
                }
                None => differences.bytes(&format!("{kind} {name}"), &base.get(name).unwrap().bytes, &found.bytes),
            }
        }
    }
    differences.finish("merged_weights");
}

#[test]
fn adapter_files() {
    let mut differences = Differences::default();
    for kind in KINDS {
        let original = folder().join("lora").join(kind);
        let place = tempfile::tempdir().unwrap();
        copy_through_a_model(&original, place.path());
        let (expected, found) = (original.join(peft::TENSOR_FILE), place.path().join(peft::TENSOR_FILE));
        let (expected, found) = (tensors_of(&expected), tensors_of(&found));
        assert!(expected.keys().eq(found.keys()), "{kind}: other names");
        for (name, tensor) in &expected {
            assert_eq!((tensor.dtype, &tensor.shape), (found[name].dtype, &found[name].shape), "{kind} {name}");
            differences.bytes(&format!("{kind} {name}"), &tensor.bytes, &found[name].bytes);
        }
        let config = |folder: &Path| -> Value {
            serde_json::from_slice(&std::fs::read(folder.join(peft::CONFIG_FILE)).unwrap()).unwrap()
        };
        let (expected, found) = (config(&original), config(place.path()));
        for (key, value) in found.as_object().unwrap() {
            differences.check(expected[key] == *value, || {
                format!("{kind} {}: {key}: expected {}, found {value}", peft::CONFIG_FILE, expected[key])
            });
        }
    }
    differences.finish("adapter_files");
}

/// Reads an adapter into a model and writes it out of there.
fn copy_through_a_model(from: &Path, to: &Path) {
    let base = folder().join("llama/tiny");
    let adapter = peft::read(from).unwrap();
    let options = LoadOptions { lora: Some(adapter.config.clone()), ..LoadOptions::frozen(16) };
    let config = ModelConfig::from_folder(&base).unwrap();
    let checkpoint = Checkpoint::open(&base).unwrap();
    let (mut model, mut params) = model::load(&config, &checkpoint, &options, &mut |_, _| {}).unwrap();
    adapter.apply(&mut model, &mut params).unwrap();
    peft::write(to, &model, &params, &Provenance::new("../llama/tiny", "", Method::Lora)).unwrap();
}
