//! Importing GGUF files: a tiny one, and a real model where one is at hand.

use super::*;
use crate::device::Compute;
use crate::error::Error;
use crate::generate::{Generator, SamplingOptions, Stop};
use crate::model::gguf::testing::{asset, Builder};
use crate::model::{self, LoadOptions, StoredDtype};

#[test]
fn a_folder_holds_what_the_file_held() {
    let (place, path) = Builder::tiny().write();
    let out = place.path().join("model");
    let mut calls = Vec::new();
    let summary =
        import_gguf(&path, &out, None, &mut |done, all, name| calls.push((done, all, name.to_string()))).unwrap();
    assert_eq!((summary.tensors, summary.dtype, summary.notes.len()), (12, SourceDtype::F32, 0));
    assert_eq!(summary.stored_types, BTreeMap::from([("F32", 9)]));
    assert_eq!(calls.len(), 12);
    assert!(calls.windows(2).all(|pair| pair[0].0 < pair[1].0) && calls[11].0 == calls[11].1);
    let mut names: Vec<String> =
        std::fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort_unstable();
    assert_eq!(
        names,
        ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    );
    let (gguf, checkpoint) = (Gguf::open(&path, None).unwrap(), Checkpoint::open(&out).unwrap());
    for (name, _, shape) in gguf.tensors() {
        assert!(gguf.get(name).unwrap().bytes[..] == checkpoint.expect(name, shape).unwrap().bytes[..], "{name}");
    }
}

#[test]
fn every_weight_takes_the_dtype_that_is_asked_for() {
    let (place, path) = Builder::tiny().write();
    let out = place.path().join("model");
    import_gguf(&path, &out, Some(SourceDtype::Bf16), &mut |_, _, _| {}).unwrap();
    let checkpoint = Checkpoint::open(&out).unwrap();
    assert!(checkpoint.names().all(|name| checkpoint.get(name).unwrap().dtype == StoredDtype::Bf16));
    assert_eq!(ModelConfig::from_folder(&out).unwrap().raw["torch_dtype"], "bfloat16");
}

#[test]
fn a_failed_import_leaves_nothing() {
    let mut builder = Builder::tiny();
    builder.tensors()[3].bytes[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    let (place, path) = builder.write();
    let out = place.path().join("model");
    let error = import_gguf(&path, &out, None, &mut |_, _, _| {}).unwrap_err();
    let expected = "model.gguf: tensor model.layers.0.input_layernorm.weight [8]: value 0 is not finite";
    assert!(error.message().ends_with(expected), "{error}");
    assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 1, "the GGUF file alone");
    std::fs::create_dir(&out).unwrap();
    std::fs::write(out.join("mine"), "x").unwrap();
    assert!(import_gguf(&path, &out, None, &mut |_, _, _| {}).unwrap_err().message().ends_with("exists already"));
}

/// Texts and the ids that the `tokenizers` Python package gives with the vocabulary, merges and pre-tokenizer of
/// SmolLM2 (digits one by one, then GPT-2's pattern).
const SMOLLM2_IDS: [(&str, &[u32]); 5] = [
    (
        "Nel mezzo del cammin di nostra vita, perché l'università è già chiusa?",
        &[
            62, 299, 549, 47771, 1347, 3580, 1659, 801, 19280, 317, 3507, 81, 28, 35896, 2756, 303, 23, 38021, 269,
            16739, 5549, 118, 18794, 16739, 410, 3609, 81, 47,
        ],
    ),
    (
        "The capital of Italy is Rome. It's 3 o'clock!",
        &[504, 3575, 282, 7158, 314, 7268, 30, 657, 506, 216, 35, 263, 23, 17466, 17],
    ),
    (
        "🦙🇮🇹 ciao 👩‍🔬",
        &[10813, 116, 243, 10813, 225, 123, 10813, 225, 134, 265, 28467, 15107, 235, 119, 321, 231, 10813, 238, 122],
    ),
    (
        "Nel 1861 c'erano 26.328.000 abitanti (±3,14%)",
        &[
            62, 299, 216, 33, 40, 38, 33, 265, 23, 259, 8123, 216, 34, 38, 30, 35, 34, 40, 30, 32, 32, 32, 453, 269,
            20524, 365, 35214, 35, 28, 33, 36, 8402,
        ],
    ),
    (
        "fn main() {\n    let x = vec![1u8; 16];\n\twrite!(f, \"{x:?}\");\n}\n\n",
        &[
            7853, 1085, 1000, 1662, 472, 1303, 1792, 446, 37024, 21653, 33, 101, 40, 43, 216, 33, 38, 26695, 198, 197,
            5162, 17, 24, 86, 28, 24635, 104, 42, 47, 15201, 43, 198, 109, 1116,
        ],
    ),
];

const PROMPT: &str = "<|im_start|>user\nWhat is the capital of Italy?<|im_end|>\n<|im_start|>assistant\n";

fn answer(config: &ModelConfig, source: &dyn model::TensorSource, tokenizer: &Tokenizer) -> Result<String> {
    let (llama, params) = model::load(config, source, &LoadOptions::frozen(64), &mut |_, _| {})?;
    let mut generator = Generator::new(llama, params, Compute::F32, 64);
    let prompt = tokenizer.encode_template(PROMPT)?;
    assert_eq!(prompt, [1, 4093, 198, 1780, 314, 260, 3575, 282, 7158, 47, 2, 198, 1, 520, 9531, 198]);
    let options = SamplingOptions { max_tokens: 20, ..SamplingOptions::default() };
    let generated = generator.generate(&prompt, &options, &mut |_| Ok(true))?;
    assert_eq!(generated.stop, Stop::EndOfText);
    tokenizer.decode(&generated.ids, true)
}

#[test]
fn smollm2_answers_from_the_file_and_from_the_folder() -> std::result::Result<(), Error> {
    let Some(path) = asset("LLAMANTINO_SMOLLM2", "smollm2_answers_from_the_file_and_from_the_folder") else {
        return Ok(());
    };
    let place = tempfile::tempdir().unwrap();
    let out = place.path().join("smollm2");
    let summary = import_gguf(&path, &out, Some(SourceDtype::Bf16), &mut |_, _, _| {})?;
    assert_eq!(summary.stored_types, BTreeMap::from([("Q4_1", 210), ("Q8_0", 1)]));
    assert_eq!((summary.tensors, summary.notes.len(), summary.written.tensor_bytes), (272, 0, 2 * 134_515_008));
    let tokenizer = Tokenizer::load(&out, None)?;
    for (text, ids) in SMOLLM2_IDS {
        assert_eq!(tokenizer.encode_plain(text)?, ids, "{text:?}");
        assert_eq!(tokenizer.decode(ids, false)?, text);
    }
    let special = tokenizer.special();
    assert_eq!(special.eos.as_ref().map(|token| (token.text.as_str(), token.id)), Some(("<|im_end|>", 2)));
    assert_eq!((&special.bos, &special.stop_ids[..]), (&None, &[2][..]));
    // The file itself in f32, and the folder rounded to bf16.
    let gguf = Gguf::open(&path, None)?;
    assert_eq!(answer(gguf.config(), &gguf, &tokenizer)?, "The capital of Italy is Rome.");
    let (config, checkpoint) = (ModelConfig::from_folder(&out)?, Checkpoint::open(&out)?);
    assert_eq!(answer(&config, &checkpoint, &tokenizer)?, "The capital of Italy is Rome.");
    Ok(())
}
