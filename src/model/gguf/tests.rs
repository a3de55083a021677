//! Whole GGUF models: the same model as its Hugging Face folder.

use super::testing::Builder;
use super::*;
use crate::model::{load, Checkpoint, LoadOptions};
use serde_json::json;

fn golden(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/llama").join(name)
}

/// What a converter makes of a folder: metadata from its config, rows of q and k interleaved, llama3's divisors.
fn converted(folder: &Path) -> Builder {
    let config = ModelConfig::from_folder(folder).unwrap();
    let checkpoint = Checkpoint::open(folder).unwrap();
    let mut builder = Builder::new();
    builder.text("general.architecture", "llama").u32("llama.block_count", config.layers as u32);
    builder.u32("llama.context_length", config.max_position_embeddings as u32);
    builder.u32("llama.embedding_length", config.hidden_size as u32);
    builder.u32("llama.feed_forward_length", config.intermediate_size as u32);
    builder.u32("llama.attention.head_count", config.heads as u32);
    builder.u32("llama.attention.head_count_kv", config.kv_heads as u32);
    builder.u32("llama.attention.key_length", config.head_dim as u32);
    builder.f32("llama.attention.layer_norm_rms_epsilon", config.rms_norm_eps as f32);
    builder.f32("llama.rope.freq_base", config.rope.theta as f32);
    match config.rope.scaling {
        crate::ops::rope::RopeScaling::Default => {}
        crate::ops::rope::RopeScaling::Linear { factor } => {
            builder.text("llama.rope.scaling.type", "linear").f32("llama.rope.scaling.factor", factor as f32);
        }
        scaling => {
            let plain = crate::ops::rope::RopeConfig { scaling: Default::default(), ..config.rope };
            let scaled = crate::ops::rope::RopeConfig { scaling, ..plain };
            let divisors: Vec<f32> = plain.inv_freq().iter().zip(scaled.inv_freq()).map(|(p, s)| p / s).collect();
            builder.f32_tensor("rope_freqs.weight", &[divisors.len()], &divisors);
        }
    }
    for name in checkpoint.names() {
        let tensor = checkpoint.get(name).unwrap();
        let heads = match name {
            _ if name.contains("q_proj") => config.heads,
            _ if name.contains("k_proj") => config.kv_heads,
            _ => 0,
        };
        let kind = match tensor.dtype {
            StoredDtype::F32 => 0,
            StoredDtype::F16 => 1,
            StoredDtype::Bf16 => 30,
            StoredDtype::U8 => panic!("{name}"),
        };
        builder.tensor(&stored_name(name), kind, &tensor.shape, &interleave(&tensor, heads));
    }
    builder
}

fn stored_name(name: &str) -> String {
    let pairs = [
        ("model.layers.", "blk."),
        ("self_attn.o_proj", "attn_output"),
        ("self_attn.", "attn_"),
        ("mlp.", "ffn_"),
        ("_proj", ""),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
    ];
    pairs.iter().fold(name.to_string(), |name, (from, to)| name.replace(from, to))
}

fn interleave(tensor: &RawTensor, heads: usize) -> Vec<u8> {
    if heads == 0 {
        return tensor.bytes.to_vec();
    }
    let rows = tensor.shape[0];
    let row_bytes = tensor.bytes.len() / rows;
    let pairs = rows / heads / 2;
    let order = (0..rows).map(|row| {
        let (head, within) = (row / (2 * pairs), row % (2 * pairs));
        head * 2 * pairs + (within % 2) * pairs + within / 2
    });
    order.flat_map(|row| tensor.bytes[row * row_bytes..(row + 1) * row_bytes].to_vec()).collect()
}

#[test]
fn a_gguf_model_is_the_model_of_its_folder() {
    for name in ["tiny", "variant_headdim_bias_mqa", "variant_linear_rope", "variant_tied_theta500k_llama3rope"] {
        let folder = golden(name);
        let (_place, path) = converted(&folder).write();
        let gguf = Gguf::open(&path, None).unwrap();
        let (config, checkpoint) = (ModelConfig::from_folder(&folder).unwrap(), Checkpoint::open(&folder).unwrap());
        let same = gguf.config();
        assert_eq!(
            (same.heads, same.kv_heads, same.head_dim),
            (config.heads, config.kv_heads, config.head_dim),
            "{name}"
        );
        assert_eq!((same.attention_bias, same.mlp_bias), (config.attention_bias, config.mlp_bias), "{name}");
        assert_eq!(same.tie_word_embeddings, config.tie_word_embeddings, "{name}");
        assert_eq!(same.rms_norm_eps as f32, config.rms_norm_eps as f32, "{name}");
        assert_eq!(same.rope.inv_freq(), config.rope.inv_freq(), "{name}");
        let mut names: Vec<&str> = gguf.tensors().map(|(name, ..)| name).collect();
        names.sort_unstable();
        assert_eq!(names, checkpoint.names().collect::<Vec<_>>(), "{name}");
        for (tensor_name, dtype, shape) in gguf.tensors() {
            let (found, expected) = (gguf.tensor(tensor_name, shape).unwrap(), checkpoint.get(tensor_name).unwrap());
            assert!(found.dtype == dtype && found.dtype == expected.dtype && found.shape == expected.shape);
            assert!(found.bytes[..] == expected.bytes[..], "{name}: {tensor_name}");
        }
        load(gguf.config(), &gguf, &LoadOptions::frozen(8), &mut |_, _| {}).unwrap();
    }
}

#[test]
fn a_damaged_file_is_named() {
    let file = Builder::tiny().build();
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("cut.gguf");
    for length in [0, 3, 8, 100, file.len() / 2, file.len() - 1] {
        std::fs::write(&path, &file[..length]).unwrap();
        let error = Gguf::open(&path, None).err().unwrap();
        assert!(error.message().starts_with(path.to_str().unwrap()), "{error}");
        assert!(error.hint_text().unwrap().contains("fetch it again"));
    }
    assert!(Gguf::open(place.path(), None).err().unwrap().message().contains("found a folder"));
    assert!(Gguf::open(&place.path().join("none.gguf"), None).err().unwrap().message().contains("cannot open"));
}

#[test]
fn a_model_with_any_damage_opens_or_is_refused() {
    let file = Builder::tiny().build();
    let data: usize = Builder::tiny().tensors().iter().map(|tensor| tensor.bytes.len().next_multiple_of(32)).sum();
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("damaged.gguf");
    let mut opened = 0;
    for at in 4..file.len() - data {
        for damage in [0x00, 0x7f] {
            let mut damaged = file.clone();
            damaged[at] = damage;
            std::fs::write(&path, damaged).unwrap();
            let Ok(gguf) = Gguf::open(&path, None) else { continue };
            opened += 1;
            gguf.tensors().for_each(|(name, ..)| drop(gguf.get(name).unwrap()));
            // Building the tokenizer takes most of the time.
            let files = gguf.tokenizer().ok().filter(|_| at % 5 == 0);
            let _ = files.map(|files| tokenizers::Tokenizer::from_bytes(files.tokenizer.to_string()));
        }
    }
    assert!(opened > 100, "most bytes of texts do not matter: {opened} opened");
}

#[test]
fn a_gguf_file_is_known_by_its_name_or_its_beginning() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("model.bin");
    std::fs::write(&path, Builder::tiny().build()).unwrap();
    assert!(is_gguf(&path) && is_gguf(Path::new("not/there.GGUF")));
    std::fs::write(&path, "PK").unwrap();
    assert!(!is_gguf(&path) && !is_gguf(place.path()));
}

#[test]
fn the_description_is_a_folder_that_reads_back() {
    let (place, path) = Builder::tiny().write();
    let gguf = Gguf::open(&path, None).unwrap();
    let names = gguf.write_description(place.path()).unwrap();
    assert_eq!(names, ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"]);
    assert_eq!(ModelConfig::from_folder(place.path()).unwrap().raw, gguf.config().raw);
    let tokenizer = gguf.load_tokenizer().unwrap();
    assert_eq!(tokenizer.encode_plain("ab a").unwrap(), [4, 5, 2]);
    assert_eq!(tokenizer.special().eos.as_ref().unwrap().text, "</s>");
}

#[test]
fn the_dtype_is_the_one_that_all_matrices_have() {
    let mut builder = Builder::tiny();
    let open = |builder: &Builder, dtype| {
        let (_place, path) = builder.write();
        let gguf = Gguf::open(&path, dtype).unwrap();
        (gguf.dtype(), gguf.config().raw["torch_dtype"].clone(), gguf.stored_types())
    };
    let half = |builder: &mut Builder, all: bool| {
        for tensor in builder.tensors().iter_mut().filter(|t| t.shape.len() == 2 && (all || t.name.contains("attn"))) {
            tensor.kind = 1;
            tensor.bytes.truncate(tensor.shape.iter().product::<usize>() * 2);
        }
    };
    half(&mut builder, false);
    let (dtype, json, types) = open(&builder, None);
    assert_eq!((dtype, json), (SourceDtype::F32, json!("float32")));
    assert_eq!(types, BTreeMap::from([("F16", 4), ("F32", 5)]));
    half(&mut builder, true);
    assert_eq!(open(&builder, None).1, json!("float16"));
    assert_eq!(open(&builder, Some(SourceDtype::Bf16)).1, json!("bfloat16"));
}
