//! Whole files: the golden models there and back, every type, and nothing left of what fails.

use super::*;
use crate::model::{load, Checkpoint, LoadOptions, TensorSource};
use serde_json::json;
use std::fs;

/// A golden model with a tokenizer of six tokens.
fn folder(name: &str) -> tempfile::TempDir {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/llama").join(name);
    let place = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::write(place.path().join(file), fs::read(golden.join(file)).unwrap()).unwrap();
    }
    let special = |id: u32, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(1, "<s>"), special(2, "</s>")],
        "normalizer": null, "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                  "vocab": {"a": 0, "<s>": 1, "</s>": 2, "i": 3, "ai": 4, "o": 5}, "merges": ["a i"]},
    });
    fs::write(place.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let config = json!({"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"});
    fs::write(place.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    place
}

fn job(model: &Path, file_type: FileType) -> GgufJob {
    GgufJob {
        model: model.into(),
        adapter: None,
        out: model.join("out.gguf"),
        file_type,
        template: None,
        any_base: false,
        dequantize_base: false,
    }
}

#[test]
fn an_exported_model_is_the_model_of_its_folder() {
    for name in ["tiny", "variant_headdim_bias_mqa", "variant_linear_rope", "variant_tied_theta500k_llama3rope"] {
        let place = folder(name);
        let job = job(place.path(), FileType::F32);
        let mut calls = Vec::new();
        let summary = export_gguf(&job, &mut |done, total, name| calls.push((done, total, name.to_string()))).unwrap();
        let gguf = Gguf::open(&job.out, None).unwrap();
        let config = ModelConfig::from_folder(place.path()).unwrap();
        let checkpoint = Checkpoint::open(place.path()).unwrap();
        assert_eq!(gguf.config().rms_norm_eps as f32, config.rms_norm_eps as f32, "{name}");
        assert_eq!(gguf.config().max_position_embeddings, config.max_position_embeddings, "{name}");
        assert_eq!(gguf.config().rope.theta, config.rope.theta, "{name}");
        let mut names: Vec<&str> = gguf.tensors().map(|(name, ..)| name).collect();
        names.sort_unstable();
        assert_eq!(names, checkpoint.names().collect::<Vec<_>>(), "{name}");
        for (tensor_name, _, shape) in gguf.tensors() {
            let (found, expected) = (gguf.tensor(tensor_name, shape).unwrap(), checkpoint.get(tensor_name).unwrap());
            assert!(found.bytes[..] == expected.bytes[..], "{name}: {tensor_name}");
        }
        load(gguf.config(), &gguf, &LoadOptions::frozen(8), &mut |_, _| {}).unwrap();
        assert_eq!((summary.tensors, summary.merged), (names.len(), 0));
        assert_eq!(summary.bytes, fs::metadata(&job.out).unwrap().len());
        assert!(calls.iter().map(|call| call.0).eq(1..=names.len()) && calls[0].1 == names.len());
        assert_eq!(fs::read_to_string(&summary.modelfile).unwrap(), "FROM ./out.gguf\nPARAMETER stop \"</s>\"\n");
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 6, "no leftover");
    }
}

/// Types with fewer bits hold what their blocks can hold; norms are exact in all.
#[test]
fn every_type_is_read_back_near_the_values() {
    let place = folder("tiny");
    let checkpoint = Checkpoint::open(place.path()).unwrap();
    let cases = [
        (FileType::F16, 1e-3),
        (FileType::Bf16, 8e-3),
        (FileType::Q8_0, 1e-2),
        (FileType::Q4_0, 2e-1),
        (FileType::Q4KM, 2e-1),
    ];
    for (file_type, tolerance) in cases {
        let out = place.path().join(format!("{file_type:?}.gguf"));
        let summary = export_gguf(&GgufJob { out: out.clone(), ..job(place.path(), file_type) }, &mut |_, _, _| {});
        let summary = summary.unwrap();
        let gguf = Gguf::open(&out, Some(MergeDtype::F32)).unwrap();
        for (name, _, shape) in gguf.tensors() {
            let (found, expected) = (gguf.tensor(name, shape).unwrap(), checkpoint.get(name).unwrap());
            let (found, expected) = (found.bytes.as_f32(), expected.bytes.as_f32());
            let largest = expected.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
            let worst = found.iter().zip(expected).fold(0.0f32, |worst, (a, b)| worst.max((a - b).abs()));
            let tolerance = if shape.len() == 1 { 0.0 } else { tolerance };
            assert!(worst <= tolerance * largest, "{file_type:?} {name}: {worst} of {largest}");
        }
        let total: usize = summary.types.values().sum();
        assert_eq!(total, gguf.tensors().filter(|(.., shape)| shape.len() == 2).count());
        // Rows of 64 and 96 are whole blocks of 32 and not of 256, which the head of Q4_0 has too.
        let fits = !matches!(file_type, FileType::Q4KM | FileType::Q4_0);
        assert_eq!(summary.fallbacks.is_empty(), fits, "{:?}", summary.fallbacks);
    }
}

#[test]
fn the_same_job_gives_the_same_bytes() {
    let place = folder("tiny");
    let out = place.path().join("again/out.gguf");
    fs::create_dir(place.path().join("again")).unwrap();
    let first = job(place.path(), FileType::Q4KM);
    export_gguf(&first, &mut |_, _, _| {}).unwrap();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let second = GgufJob { out, ..first.clone() };
    pool.install(|| export_gguf(&second, &mut |_, _, _| {})).unwrap();
    assert!(fs::read(&first.out).unwrap() == fs::read(&second.out).unwrap());
}

#[test]
fn a_failed_export_leaves_nothing() {
    let place = folder("tiny");
    let before = fs::read_dir(place.path()).unwrap().count();
    let refused = |job: &GgufJob, expected: &str| {
        let error = export_gguf(job, &mut |_, _, _| {}).unwrap_err();
        assert!(error.message().contains(expected), "{error}");
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), before, "{error}");
    };
    let job = job(place.path(), FileType::F16);
    refused(&GgufJob { out: place.path().join("out.bin"), ..job.clone() }, "expected a file name that ends in .gguf");
    refused(&GgufJob { template: Some("klingon".into()), ..job.clone() }, "unknown template `klingon`");
    refused(&GgufJob { adapter: Some(place.path().join("none")), ..job.clone() }, "adapter_config.json");
    // A weight that half precision has no room for is found in the middle of the file.
    let path = place.path().join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let mut large = bytes.clone();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let weight = tensors.tensor("model.layers.1.mlp.up_proj.weight").unwrap().data();
    let at = weight.as_ptr() as usize - bytes.as_ptr() as usize;
    large[at..at + 4].copy_from_slice(&1e30f32.to_le_bytes());
    fs::write(&path, &large).unwrap();
    refused(&job, "does not fit in F16");
    large[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&path, &large).unwrap();
    refused(&job, "not finite");
    fs::write(&path, &bytes).unwrap();
    fs::write(place.path().join("out.Modelfile"), "mine").unwrap();
    let error = export_gguf(&job, &mut |_, _, _| {}).unwrap_err();
    assert!(error.message().ends_with("out.Modelfile: exists already"), "{error}");
    fs::remove_file(place.path().join("out.Modelfile")).unwrap();
    export_gguf(&job, &mut |_, _, _| {}).unwrap();
    fs::remove_file(place.path().join("out.Modelfile")).unwrap();
    assert!(export_gguf(&job, &mut |_, _, _| {}).unwrap_err().message().ends_with("out.gguf: exists already"));
}

#[test]
fn a_template_is_written_into_both_files() {
    let place = folder("tiny");
    let job = GgufJob { template: Some("extremita".into()), ..job(place.path(), FileType::F32) };
    let summary = export_gguf(&job, &mut |_, _, _| {}).unwrap();
    let config = Gguf::open(&job.out, None).unwrap().tokenizer().unwrap().tokenizer_config;
    assert!(config["chat_template"].as_str().unwrap().contains("### Istruzione:\\n"));
    let modelfile = fs::read_to_string(summary.modelfile).unwrap();
    assert!(
        modelfile.contains("### Istruzione:\n{{ .Prompt }}\n### Risposta:\n{{ .Response }}</s>\"\"\""),
        "{modelfile}"
    );
}
