//! Recovered models are the tuned ones, byte for byte, and nothing else is ever recovered.

use super::testing::{content, tensor, weights, write_model, Tensor};
use super::*;
use crate::ops::testing::assert_same_in_every_pool;
use crate::ops::RandomStream;
use std::fs;
use std::path::{Path, PathBuf};

const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";
const LINEAR: &str = "model.layers.0.mlp.up_proj.weight";
const NORM: &str = "model.norm.weight";
const FLOATS: [StoredDtype; 3] = [StoredDtype::F32, StoredDtype::F16, StoredDtype::Bf16];

fn model(dtype: StoredDtype, tuned: bool, head: bool) -> Vec<Tensor> {
    let mut tensors = vec![
        tensor(EMBEDDING, dtype, &[20, 16], &weights(EMBEDDING, 320, tuned)),
        tensor(LINEAR, dtype, &[24, 16], &weights(LINEAR, 384, tuned)),
        tensor(NORM, dtype, &[16], &weights(NORM, 16, false)),
    ];
    if head {
        tensors.insert(0, tensor(HEAD, dtype, &[20, 16], &weights(HEAD, 320, tuned)));
    }
    tensors
}

/// Folders of one test.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Place {
        Place(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, tensors: &[Tensor]) -> PathBuf {
        write_model(&self.path(name), tensors, u64::MAX)
    }

    /// Makes, applies, and compares every file.
    fn round_trip(&self, base: &Path, tuned: &Path) -> Made {
        let (diff, out) = (self.path("diff"), self.path("out"));
        let (_, _) = (fs::remove_file(&diff), fs::remove_dir_all(&out));
        let mut names = Vec::new();
        let made = make(base, tuned, &diff, &mut |done, total, name| {
            names.push(name.to_string());
            assert!(done == names.len() && done <= total);
        });
        let made = made.unwrap();
        assert_eq!(names.len(), made.tensors);
        assert_eq!(fs::metadata(&diff).unwrap().len(), made.diff_bytes);
        let applied = apply(base, &diff, &out, &mut |_, _, _| {}).unwrap();
        assert!(content(&out) == content(tuned), "the recovered folder differs");
        let bytes: usize = content(tuned).values().map(Vec::len).sum();
        assert_eq!((applied.bytes, made.tuned_bytes, applied.tensors), (bytes as u64, bytes as u64, made.tensors));
        made
    }
}

fn quiet(base: &Path, diff: &Path, out: &Path) -> Result<Applied> {
    apply(base, diff, out, &mut |_, _, _| {})
}

#[test]
fn recovered_folder_is_the_tuned_one_in_every_dtype_and_layout() {
    for dtype in FLOATS {
        for (shard, head_of_base) in [(u64::MAX, true), (700, true), (u64::MAX, false), (700, false)] {
            let place = Place::new();
            let base = place.write("base", &model(dtype, false, head_of_base));
            let tuned = write_model(&place.path("tuned"), &model(dtype, true, true), shard);
            let made = place.round_trip(&base, &tuned);
            assert_eq!((made.tensors, made.same, made.whole), (4, 1, 0), "a tied head is compared with the embedding");
            let sharded_base = write_model(&place.path("base 2"), &model(dtype, false, head_of_base), 700);
            fs::remove_dir_all(place.path("out")).unwrap();
            quiet(&sharded_base, &place.path("diff"), &place.path("out")).unwrap();
            assert!(content(&place.path("out")) == content(&tuned), "a base in other shards is the same base");
        }
    }
}

#[test]
fn dtypes_may_change_and_so_may_the_number_of_rows_and_the_tensors() {
    for (from, to) in FLOATS.into_iter().flat_map(|from| FLOATS.map(|to| (from, to))) {
        let place = Place::new();
        let mut base = model(from, false, true);
        base.push(tensor("model.layers.0.self_attn.rotary_emb.inv_freq", StoredDtype::F32, &[2], &[1.0, 0.5]));
        let mut tuned = model(to, true, true);
        tuned[0] = tensor(HEAD, to, &[23, 16], &weights(HEAD, 368, true));
        tuned[2] = tensor(LINEAR, to, &[12, 32], &weights(LINEAR, 384, true));
        tuned.push(tensor("value_head", to, &[1], &[f32::NAN]));
        tuned.push(tensor("empty", to, &[0, 4], &[]));
        tuned.push(tensor("bytes", StoredDtype::U8, &[3], &[0.1, 0.2, 0.3]));
        let made = place.round_trip(&place.write("base", &base), &place.write("tuned", &tuned));
        assert_eq!((made.tensors, made.whole), (7, 4));
        assert_eq!(made.same, usize::from(from == to));
    }
}

#[test]
fn tensors_of_many_chunks_come_back_and_do_not_depend_on_the_threads() {
    let place = Place::new();
    let count = 2 * codec::CHUNK + 77;
    let big = |tuned| vec![tensor(LINEAR, StoredDtype::Bf16, &[count], &weights(LINEAR, count, tuned))];
    let (base, tuned) = (place.write("base", &big(false)), place.write("tuned", &big(true)));
    let made = place.round_trip(&base, &tuned);
    let ratio = made.diff_bytes as f64 / made.tuned_bytes as f64;
    assert!(ratio < 0.5, "small changes of bf16 weights take {ratio} of the model");
    assert_same_in_every_pool(|| {
        let diff = place.path("again");
        let _ = fs::remove_file(&diff);
        make(&base, &tuned, &diff, &mut |_, _, _| {}).unwrap();
        hash(&fs::read(&diff).unwrap()).to_string()
    });
}

#[test]
fn special_values_come_back_bit_for_bit() {
    let bits: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    let all = |bytes: &[u8], dtype| {
        let raw = RawTensor { dtype, shape: vec![bytes.len() / 2], bytes: crate::ops::Bytes::owned(bytes) };
        vec![(NORM.to_string(), raw)]
    };
    let reversed: Vec<u8> = bits.chunks(2).rev().flatten().copied().collect();
    for (from, to) in [(StoredDtype::F16, StoredDtype::F16), (StoredDtype::Bf16, StoredDtype::F16)] {
        let place = Place::new();
        place.round_trip(&place.write("base", &all(&bits, from)), &place.write("tuned", &all(&reversed, to)));
    }
}

#[test]
fn equal_models_need_no_payload() {
    let place = Place::new();
    let base = place.write("base", &model(StoredDtype::F16, false, true));
    let made = place.round_trip(&base, &base);
    assert_eq!((made.same, made.tensors), (4, 4));
    let diff = container::DiffFile::open(&place.path("diff")).unwrap();
    let names: Vec<&str> = diff.manifest.payloads.keys().map(String::as_str).collect();
    assert_eq!(names, ["file/LICENSE", "file/config.json", "file/tokenizer.json", "header/model.safetensors"]);
}

#[test]
fn single_files_have_diffs_too() {
    let place = Place::new();
    let base = place.write("base", &model(StoredDtype::F32, false, true)).join("model.safetensors");
    let tuned = place.write("tuned", &model(StoredDtype::F32, true, true)).join("model.safetensors");
    make(&base, &tuned, &place.path("diff"), &mut |_, _, _| {}).unwrap();
    quiet(&base, &place.path("diff"), &place.path("out")).unwrap();
    assert_eq!(content(&place.path("out")).into_keys().collect::<Vec<_>>(), ["model.safetensors"]);
    assert!(fs::read(place.path("out/model.safetensors")).unwrap() == fs::read(&tuned).unwrap());
}

/// A base, and the diff of a model tuned from it.
fn example(place: &Place) -> (PathBuf, Vec<u8>) {
    let base = place.write("base", &model(StoredDtype::Bf16, false, true));
    let tuned = place.write("tuned", &model(StoredDtype::Bf16, true, true));
    make(&base, &tuned, &place.path("diff"), &mut |_, _, _| {}).unwrap();
    (base, fs::read(place.path("diff")).unwrap())
}

#[test]
fn a_thousand_flipped_bits_are_all_refused() {
    let place = Place::new();
    let (base, whole) = example(&place);
    let (damaged, out) = (place.path("damaged"), place.path("out"));
    let random = RandomStream::derive(1, "flips", &[]);
    for flip in 0..1000 {
        let mut bytes = whole.clone();
        let bit = random.word(flip) as usize % (8 * bytes.len());
        bytes[bit / 8] ^= 1 << (bit % 8);
        fs::write(&damaged, &bytes).unwrap();
        let result = quiet(&base, &damaged, &out);
        assert!(result.is_err() && !out.exists(), "bit {} of byte {} of {}", bit % 8, bit / 8, bytes.len());
    }
}

#[test]
fn cut_and_lengthened_files_are_refused() {
    let place = Place::new();
    let (base, whole) = example(&place);
    let (damaged, out) = (place.path("damaged"), place.path("out"));
    let ends = (0..whole.len()).step_by(97).chain(whole.len() - 9..whole.len());
    for end in ends {
        fs::write(&damaged, &whole[..end]).unwrap();
        assert!(quiet(&base, &damaged, &out).is_err() && !out.exists(), "{end} of {} bytes", whole.len());
    }
    fs::write(&damaged, [&whole[..], &[0]].concat()).unwrap();
    assert!(quiet(&base, &damaged, &out).is_err() && !out.exists());
}

#[track_caller]
fn refused(result: Result<Applied>, expected: &str, out: &Path) {
    let error = result.unwrap_err();
    assert!(error.message().contains(expected), "{error}\nexpected: {expected}");
    assert!(error.hint_text().is_some() && !out.exists());
}

#[test]
fn another_base_is_refused_by_the_first_tensor_that_differs() {
    let place = Place::new();
    let (_, _) = example(&place);
    let (diff, out) = (place.path("diff"), place.path("out"));
    let apply = |name: &str, tensors: &[Tensor]| quiet(&place.write(name, tensors), &diff, &out);

    let mut other = model(StoredDtype::Bf16, false, true);
    let mut values = weights(LINEAR, 384, false);
    values[383] += 0.01;
    other[2] = tensor(LINEAR, StoredDtype::Bf16, &[24, 16], &values);
    refused(apply("a", &other), &format!("which was made from base: tensor {LINEAR} has other values"), &out);
    other[3] = tensor(NORM, StoredDtype::Bf16, &[16], &weights("another norm", 16, false));
    refused(apply("b", &other), &format!("tensor {LINEAR} has other values"), &out);
    let mut other = model(StoredDtype::Bf16, false, true);
    other[3] = tensor(NORM, StoredDtype::Bf16, &[16], &weights("another norm", 16, false));
    refused(apply("c", &other), &format!("tensor {NORM} has other values"), &out);

    refused(apply("d", &model(StoredDtype::F16, false, true)), "expected BF16 [20, 16], found F16 [20, 16]", &out);
    refused(apply("e", &model(StoredDtype::Bf16, false, false)), &format!("tensor {HEAD} is missing"), &out);
    let mut other = model(StoredDtype::Bf16, false, true);
    other[1] = tensor(EMBEDDING, StoredDtype::Bf16, &[21, 16], &weights(EMBEDDING, 336, false));
    refused(apply("f", &other), "expected BF16 [20, 16], found BF16 [21, 16]", &out);
}

#[test]
fn what_exists_is_not_overwritten_and_what_is_no_diff_is_named_so() {
    let place = Place::new();
    let (base, whole) = example(&place);
    let error = make(&base, &base, &place.path("diff"), &mut |_, _, _| {}).unwrap_err();
    assert!(error.message().ends_with("exists already"), "{error}");
    assert!(fs::read(place.path("diff")).unwrap() == whole);
    let error = quiet(&base, &place.path("diff"), &base).unwrap_err();
    assert!(error.message().ends_with("exists already"), "{error}");
    let out = place.path("out");
    refused(quiet(&base, &base.join("model.safetensors"), &out), "not a weight diff", &out);
}

#[test]
fn newer_formats_are_named() {
    let place = Place::new();
    let (base, _) = example(&place);
    let mut manifest = container::DiffFile::open(&place.path("diff")).unwrap().manifest;
    manifest.format = 2;
    manifest.payloads.clear();
    manifest.payloads.insert("x".into(), container::NO_HASH.into());
    let mut writer = container::DiffWriter::create(&place.path("newer"), &manifest).unwrap();
    writer.begin("x");
    let error = writer.finish(manifest).unwrap_err();
    assert!(error.message().contains("diff of format 2, expected 1"), "{error}");
    assert!(!place.path("newer").exists() && base.exists());
}
