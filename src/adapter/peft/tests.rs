//! Adapter folders: what is written reads back, and what is wrong is refused by name.

use super::*;
use crate::adapter::Target;
use crate::model::{self, Llama, LoadOptions, Method, ModelConfig, RawTensor, StoredDtype, TensorSource};
use crate::ops::testing::normal;
use crate::ops::{Bytes, ParamStore};
use crate::quant::Nf4Matrix;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{json, Value};
use std::fs;

const Q: &str = "model.layers.0.self_attn.q_proj";

/// Weights that are functions of their names.
struct Source;

impl TensorSource for Source {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<RawTensor> {
        let bytes: Vec<u8> = normal(name, shape.iter().product()).iter().flat_map(|v| v.to_le_bytes()).collect();
        Ok(RawTensor { dtype: StoredDtype::F32, shape: shape.to_vec(), bytes: Bytes::owned(&bytes) })
    }

    fn nf4(&self, _: &str, _: usize, _: usize) -> Result<Option<Nf4Matrix>> {
        Ok(None)
    }

    fn place(&self) -> String {
        "test".into()
    }
}

fn load(lora: LoraConfig, tied: bool) -> (Llama, ParamStore) {
    let config = json!({
        "model_type": "llama", "vocab_size": 20, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "rms_norm_eps": 1e-5, "max_position_embeddings": 32,
        "hidden_act": "silu", "tie_word_embeddings": tied,
    });
    let config = ModelConfig::from_json(config).unwrap();
    let options = LoadOptions { lora: Some(lora), ..LoadOptions::frozen(8) };
    model::load(&config, &Source, &options, &mut |_, _| {}).unwrap()
}

/// A model whose adapters are not those of a fresh start.
fn trained(lora: LoraConfig) -> (Llama, ParamStore) {
    let (model, mut params) = load(lora, false);
    params.iter_mut().for_each(|param| param.value = normal(&param.name, param.value.len()));
    (model, params)
}

fn provenance() -> Provenance {
    Provenance::new("models/base", "00ff", Method::Qlora)
}

fn values(params: &ParamStore) -> Vec<(String, Vec<f32>)> {
    params.iter().map(|param| (param.name.clone(), param.value.clone())).collect()
}

#[test]
fn written_adapter_applies_to_another_instance_of_the_model() {
    let only_q = LoraConfig { targets: vec![Target::Q], rslora: true, alpha: 0.5, ..LoraConfig::default() };
    for config in [LoraConfig::default(), LoraConfig { dora: true, r: 3, ..LoraConfig::default() }, only_q] {
        let folder = tempfile::tempdir().unwrap();
        let (model, params) = trained(config.clone());
        write(folder.path(), &model, &params, &provenance()).unwrap();

        let adapter = read(folder.path()).unwrap();
        assert_eq!(adapter.provenance, Some(provenance()));
        assert_eq!((adapter.config.r, adapter.config.alpha), (config.r, config.alpha));
        let (mut other, mut other_params) = load(adapter.config.clone(), false);
        adapter.apply(&mut other, &mut other_params).unwrap();
        assert_eq!(values(&params), values(&other_params));
        let scales = |model: &Llama| -> Vec<_> { model.linears().map(|l| l.lora.map(|lora| lora.scale)).collect() };
        assert_eq!(scales(&model), scales(&other));
    }
}

#[test]
fn files_are_in_pefts_form() {
    let folder = tempfile::tempdir().unwrap();
    let config = LoraConfig { dora: true, r: 4, targets: vec![Target::Q, Target::Down], ..LoraConfig::default() };
    let (model, params) = trained(config);
    write(folder.path(), &model, &params, &provenance()).unwrap();
    let config: Value = serde_json::from_slice(&fs::read(folder.path().join(CONFIG_FILE)).unwrap()).unwrap();
    let expected = json!({
        "alpha_pattern": {}, "auto_mapping": null, "base_model_name_or_path": "models/base", "bias": "none",
        "fan_in_fan_out": false, "inference_mode": true, "init_lora_weights": true, "layers_pattern": null,
        "layers_to_transform": null, "lora_alpha": 16, "lora_dropout": 0.0, "modules_to_save": null,
        "peft_type": "LORA", "r": 4, "rank_pattern": {}, "revision": null, "target_modules": ["down_proj", "q_proj"],
        "task_type": "CAUSAL_LM", "use_dora": true, "use_rslora": false,
    });
    assert_eq!(config, expected);

    let bytes = fs::read(folder.path().join(TENSOR_FILE)).unwrap();
    let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(metadata.metadata().as_ref().unwrap()["format"], "pt");
    let shape = |part: &str| {
        let info = metadata.info(&format!("base_model.model.{Q}.{part}")).unwrap();
        assert_eq!(info.dtype, Dtype::F32);
        info.shape.clone()
    };
    assert_eq!(shape("lora_A.weight"), [4, 16]);
    assert_eq!(shape("lora_B.weight"), [16, 4]);
    assert_eq!(shape("lora_magnitude_vector"), [16]);
    assert_eq!(metadata.tensors().len(), 2 * 2 * 3);
    let left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 3, "{left:?}");
}

#[test]
fn adapters_on_some_layers_and_of_several_ranks_survive() {
    let mut config = LoraConfig { r: 4, alpha: 8.0, ..LoraConfig::default() };
    config.modules.only = Some([Q.into(), "model.layers.1.mlp.up_proj".into()].into());
    config.modules.ranks = vec![("up_proj".into(), 2)];
    config.modules.alphas = vec![("up_proj".into(), 0.5)];
    let folder = tempfile::tempdir().unwrap();
    let (model, params) = trained(config);
    write(folder.path(), &model, &params, &provenance()).unwrap();
    let adapter = read(folder.path()).unwrap();
    assert_eq!(adapter.targets, Some(vec![Q.to_string(), "model.layers.1.mlp.up_proj".into()]));
    let shapes: Vec<_> = adapter.linears().values().map(|linear| (linear.rank, linear.scale)).collect();
    assert_eq!(shapes, [(4, 2.0), (2, 0.25)]);
    let (mut other, mut other_params) = load(adapter.config.clone(), false);
    adapter.apply(&mut other, &mut other_params).unwrap();
    assert_eq!(values(&params), values(&other_params));
}

/// A folder with files as another program could have left them.
struct Foreign {
    folder: tempfile::TempDir,
    config: Value,
    tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)>,
}

fn f32_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

impl Foreign {
    /// Rank 2 on the q_proj of both layers, with the fewest options.
    fn new() -> Foreign {
        let config = json!({ "peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"] });
        let mut foreign = Foreign { folder: tempfile::tempdir().unwrap(), config, tensors: Vec::new() };
        for layer in 0..2 {
            let name = format!("base_model.model.model.layers.{layer}.self_attn.q_proj");
            foreign.add(&format!("{name}.lora_A.weight"), &[2, 16]);
            foreign.add(&format!("{name}.lora_B.weight"), &[16, 2]);
        }
        foreign
    }

    fn add(&mut self, name: &str, shape: &[usize]) {
        let bytes = f32_bytes(&normal(name, shape.iter().product()));
        self.tensors.push((name.into(), Dtype::F32, shape.to_vec(), bytes));
    }

    fn read(&self) -> Result<PeftAdapter> {
        fs::write(self.folder.path().join(CONFIG_FILE), self.config.to_string()).unwrap();
        let views = self
            .tensors
            .iter()
            .map(|(name, dtype, shape, bytes)| (name.clone(), TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
        let bytes = safetensors::serialize(views, None).unwrap();
        fs::write(self.folder.path().join(TENSOR_FILE), bytes).unwrap();
        read(self.folder.path())
    }

    fn apply(&self) -> Result<(Llama, ParamStore)> {
        let adapter = self.read()?;
        let (mut model, mut params) = load(adapter.config.clone(), true);
        adapter.apply(&mut model, &mut params)?;
        Ok((model, params))
    }
}

#[track_caller]
fn refused<T>(result: Result<T>, expected: &str) {
    let Err(error) = result else { panic!("accepted, expected: {expected}") };
    assert!(error.message().contains(expected), "{error}\nexpected: {expected}");
}

#[test]
fn adapter_made_elsewhere_is_accepted_in_every_spelling() {
    let mut foreign = Foreign::new();
    let (_, expected) = foreign.apply().unwrap();
    for (name, ..) in &mut foreign.tensors {
        *name = name.replace(".weight", ".default.weight");
    }
    assert_eq!(values(&foreign.apply().unwrap().1), values(&expected));
    foreign.config["target_modules"] = json!("all-linear");
    assert_eq!(values(&foreign.apply().unwrap().1), values(&expected));
    assert_eq!(foreign.read().unwrap().provenance, None);
}

#[test]
fn sixteen_bit_tensors_are_widened() {
    let mut foreign = Foreign::new();
    let ones = |dtype: Dtype| match dtype {
        Dtype::F16 => half::f16::from_f32(-1.5).to_le_bytes(),
        _ => half::bf16::from_f32(-1.5).to_le_bytes(),
    };
    for (tensor, dtype) in foreign.tensors.iter_mut().zip([Dtype::F16, Dtype::BF16]) {
        (tensor.1, tensor.3) = (dtype, ones(dtype).repeat(32));
    }
    let adapter = foreign.read().unwrap();
    assert!(adapter.linears()[Q].a.iter().chain(&adapter.linears()[Q].b).all(|&value| value == -1.5));
}

#[test]
fn tensors_that_do_not_fit_are_refused_by_name() {
    let change = |change: &dyn Fn(&mut Foreign)| {
        let mut foreign = Foreign::new();
        change(&mut foreign);
        foreign.apply()
    };
    refused(change(&|f| f.config["r"] = json!(3)), "lora_A.weight: expected shape [3, in] (r of adapter_config.json)");
    refused(change(&|f| drop(f.tensors.remove(1))), "model.layers.0.self_attn.q_proj: lora_B is missing");
    refused(change(&|f| drop(f.tensors.drain(2..))), "no tensors for model.layers.1.self_attn.q_proj");
    refused(change(&|f| f.tensors.clear()), "holds no tensor");
    refused(change(&|f| f.tensors[0].0.push('s')), "q_proj.lora_A.weights: unknown tensor");
    refused(change(&|f| f.tensors[0].0 = "lora_A.weight".into()), "lora_A.weight: unknown tensor");
    refused(change(&|f| f.add("base_model.model.lm_head.lora_A.weight", &[2, 16])), "only the seven linears");
    refused(change(&|f| f.add(&format!("base_model.model.{Q}.lora_A.default.weight"), &[2, 16])), "the same tensor as");
    refused(change(&|f| f.add(&format!("base_model.model.{Q}.lora_magnitude_vector"), &[16])), "use_dora of");
    refused(change(&|f| f.config["use_dora"] = json!(true)), "lora_magnitude_vector is missing");
    let of_dtype =
        |dtype, size: usize| change(&|f: &mut Foreign| (f.tensors[0].1, f.tensors[0].3) = (dtype, vec![0; 32 * size]));
    refused(of_dtype(Dtype::U8, 1), "lora_A.weight: expected F32, F16 or BF16, found U8");
    refused(of_dtype(Dtype::I64, 8), "lora_A.weight");
    refused(of_dtype(Dtype::F64, 8), "lora_A.weight");
    refused(change(&|f| f.tensors[3].3[..4].copy_from_slice(&f32::NAN.to_le_bytes())), "value 0 is not finite");

    refused(
        change(&|f| f.tensors.iter_mut().for_each(|t| t.0 = t.0.replace("layers.1", "layers.2"))),
        "no linear model.layers.2",
    );
    let narrow = |f: &mut Foreign| {
        f.tensors.remove(0);
        f.add(&format!("base_model.model.{Q}.lora_A.weight"), &[2, 15]);
    };
    refused(change(&narrow), "q_proj: expected an adapter for a [16, 16] weight, found one for [16, 15]");
    refused(change(&|f| f.add("base_model.model.lm_head.weight", &[21, 16])), "expected [20, 16] as in the model");
}

#[test]
fn options_that_would_act_otherwise_are_refused_by_name() {
    let cases = [
        ("peft_type", json!("IA3")),
        ("task_type", json!("SEQ_CLS")),
        ("bias", json!("all")),
        ("lora_bias", json!(true)),
        ("fan_in_fan_out", json!(true)),
        ("init_lora_weights", json!("pissa_niter_4")),
        ("rank_pattern", json!({ "layers\\.[01]\\.q_proj": 4 })),
        ("rank_pattern", json!({ "q_proj": 0 })),
        ("alpha_pattern", json!(["q_proj"])),
        ("use_qalora", json!(true)),
        ("layer_replication", json!([[0, 1]])),
        ("some_later_option", json!("on")),
        ("r", json!(0)),
        ("lora_alpha", json!("16")),
        ("lora_dropout", json!(1.0)),
        ("target_modules", json!([1])),
    ];
    for (key, value) in cases {
        let mut foreign = Foreign::new();
        foreign.config[key] = value;
        let name = if key == "lora_dropout" { "dropout" } else { key };
        refused(foreign.read(), &format!("{CONFIG_FILE}: {name}"));
    }
    let mut foreign = Foreign::new();
    foreign.config["some_later_option"] = json!(null);
    foreign.read().unwrap();
}

#[test]
fn damaged_and_missing_files_are_refused() {
    let foreign = Foreign::new();
    foreign.read().unwrap();
    let path = foreign.folder.path().join(TENSOR_FILE);
    let bytes = fs::read(&path).unwrap();
    for len in [0, 7, 100, bytes.len() - 1] {
        fs::write(&path, &bytes[..len]).unwrap();
        refused(read(foreign.folder.path()), "adapter_model.safetensors");
    }
    fs::rename(&path, foreign.folder.path().join("adapter_model.bin")).unwrap();
    refused(read(foreign.folder.path()), "adapter_model.bin, expected adapter_model.safetensors");
    fs::write(foreign.folder.path().join(CONFIG_FILE), "{").unwrap();
    refused(read(foreign.folder.path()), "adapter_config.json: not JSON");
    refused(read(&foreign.folder.path().join("none")), "adapter_config.json: cannot read");
    let foreign = Foreign::new();
    fs::write(foreign.folder.path().join(PROVENANCE_FILE), r#"{"format": 2}"#).unwrap();
    refused(foreign.read(), "llamantino.json");
}

/// Embedding and head of the foreign adapter, by what the model then uses for each.
fn saved(names: &[&str]) -> (Llama, ParamStore, [Vec<f32>; 2]) {
    let mut foreign = Foreign::new();
    foreign.config["modules_to_save"] = json!(["embed_tokens", "lm_head"]);
    for name in names {
        foreign.add(&format!("base_model.model.{name}"), &[20, 16]);
    }
    if names.len() == 3 {
        let embedding = foreign.tensors[4].3.clone();
        foreign.tensors[5].3 = embedding;
        foreign.tensors.pop();
    }
    let (model, params) = foreign.apply().unwrap();
    let used = [&model.embedding, model.head_weight()].map(|weight| {
        let view = weight.view(&params);
        (0..20 * 16).map(|i| view.at(i / 16, i % 16)).collect()
    });
    (model, params, used)
}

#[test]
fn saved_embedding_and_head_replace_those_of_a_tied_model() {
    let stored = |name: &str| normal(&format!("base_model.model.{name}"), 320);
    let base = normal(EMBEDDING, 320);
    assert_eq!(saved(&[]).2, [base.clone(), base.clone()]);
    assert_eq!(saved(&[EMBEDDING]).2, [stored(EMBEDDING), base.clone()], "PEFT leaves the head as it was");
    assert_eq!(saved(&[HEAD]).2, [base, stored(HEAD)]);
    assert_eq!(saved(&[EMBEDDING, HEAD]).2, [stored(EMBEDDING), stored(HEAD)]);

    let (model, params, used) = saved(&[EMBEDDING, HEAD, "lm_head.modules_to_save.weight"]);
    assert_eq!(used, [stored(EMBEDDING), stored(EMBEDDING)]);
    assert!(model.head.is_none(), "equal copies stay tied");
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &model, &params, &provenance()).unwrap();
    let written = read(folder.path()).unwrap();
    assert_eq!(written.saved().len(), 2, "a tied model needs both under PEFT");
    let config: Value = serde_json::from_slice(&fs::read(folder.path().join(CONFIG_FILE)).unwrap()).unwrap();
    assert_eq!(config["modules_to_save"], json!(["embed_tokens", "lm_head"]));
}
