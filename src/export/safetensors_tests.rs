//! What is written opens again with the same values, and nothing half-written keeps a final name.

use super::*;
use crate::model::Checkpoint;
use crate::ops::bytes::Bytes;

fn tensor(dtype: StoredDtype, shape: &[usize], seed: u8) -> RawTensor {
    let len = shape.iter().product::<usize>() * dtype.size();
    let bytes: Vec<u8> = (0..len).map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed)).collect();
    RawTensor { dtype, shape: shape.to_vec(), bytes: Bytes::owned(&bytes) }
}

fn spec(name: &str, tensor: &RawTensor) -> TensorSpec {
    TensorSpec::new(name, tensor.dtype, tensor.shape.clone())
}

/// Odd lengths of every element size between even ones.
fn mixed() -> Vec<(&'static str, RawTensor)> {
    vec![
        ("bytes", tensor(StoredDtype::U8, &[13], 1)),
        ("half", tensor(StoredDtype::F16, &[3], 2)),
        ("even", tensor(StoredDtype::F32, &[2, 4], 3)),
        ("odd", tensor(StoredDtype::F32, &[5], 4)),
        ("brain", tensor(StoredDtype::Bf16, &[4, 4], 5)),
        ("nothing", tensor(StoredDtype::F32, &[0, 4], 6)),
        ("scalar", tensor(StoredDtype::F32, &[], 7)),
    ]
}

fn write(folder: &Path, tensors: &[(&str, RawTensor)], shard_bytes: u64) -> Result<Written> {
    let groups = tensors.iter().map(|(name, tensor)| vec![spec(name, tensor)]).collect();
    let mut writer = ShardWriter::new(folder, "model", groups, shard_bytes)?;
    tensors.iter().try_for_each(|(name, tensor)| writer.write(name, tensor))?;
    writer.finish()
}

/// Small, odd and of several pieces, between whole ones.
#[test]
fn tensors_in_pieces_give_the_file_of_whole_ones() {
    let mut tensors = mixed();
    tensors.insert(2, ("large", tensor(StoredDtype::Bf16, &[1300, 5000], 8)));
    tensors.insert(4, ("larger", tensor(StoredDtype::F32, &[3001, 1000], 9)));
    let (whole, pieces) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for shard_bytes in [u64::MAX, 1] {
        let expected = write(whole.path(), &tensors, shard_bytes).unwrap();
        let groups = tensors.iter().map(|(name, tensor)| vec![spec(name, tensor)]).collect();
        let mut writer = ShardWriter::new(pieces.path(), "model", groups, shard_bytes).unwrap();
        for (index, (name, tensor)) in tensors.iter().enumerate() {
            let unit = tensor.shape.last().copied().unwrap_or(1) * tensor.dtype.size() * 3;
            let piece = PieceTensor { dtype: tensor.dtype, shape: tensor.shape.clone(), unit };
            let fill = |range: Range<usize>, bytes: &mut [u8]| {
                assert!(range.start.is_multiple_of(unit));
                bytes.copy_from_slice(&tensor.bytes[range]);
                Ok(())
            };
            match index % 4 {
                1 => writer.write(name, tensor).unwrap(),
                _ => writer.write_pieces(name, piece, &fill).unwrap(),
            }
        }
        assert_eq!(writer.finish().unwrap(), expected);
    }
}

#[test]
fn a_piece_that_fails_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let large = tensor(StoredDtype::F32, &[3000, 1000], 1);
    let mut writer = ShardWriter::new(folder.path(), "model", vec![vec![spec("large", &large)]], 1).unwrap();
    let piece = PieceTensor { dtype: StoredDtype::F32, shape: vec![3000, 1000], unit: 4000 };
    let fill = |range: Range<usize>, _: &mut [u8]| match range.start {
        0 => Ok(()),
        _ => Err(Error::failed("on purpose")),
    };
    assert_eq!(writer.write_pieces("large", piece.clone(), &fill).unwrap_err().message(), "on purpose");
    let other = PieceTensor { shape: vec![1000, 3000], ..piece };
    drop(writer);
    assert_eq!(names(folder.path()), Vec::<String>::new());
    let mut writer = ShardWriter::new(folder.path(), "model", vec![vec![spec("large", &large)]], 1).unwrap();
    assert!(writer
        .write_pieces("large", other, &fill)
        .unwrap_err()
        .message()
        .contains("expected large F32 [3000, 1000]"));
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort_unstable();
    names
}

#[test]
fn values_come_back_mapped_in_one_file_and_in_shards() {
    for (shard_bytes, files) in [(u64::MAX, 1), (64, 2), (1, 6)] {
        let folder = tempfile::tempdir().unwrap();
        let written = write(folder.path(), &mixed(), shard_bytes).unwrap();
        assert_eq!(written.files.len(), files, "{:?}", written.files);
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        for (name, expected) in mixed() {
            let found = checkpoint.get(name).unwrap();
            assert_eq!(
                (found.dtype, &found.shape, &found.bytes[..]),
                (expected.dtype, &expected.shape, &expected.bytes[..])
            );
            assert!(found.bytes.is_mapped(), "{name} is not aligned");
        }
        assert_eq!(written.tensor_bytes, mixed().iter().map(|(_, tensor)| tensor.bytes.len() as u64).sum::<u64>());
        for file in &written.files {
            let bytes = std::fs::read(folder.path().join(&file.name)).unwrap();
            assert_eq!(
                (bytes.len() as u64, blake3::hash(&bytes).to_hex().to_string()),
                (file.bytes, file.hash.clone())
            );
            let (_, metadata) = ::safetensors::SafeTensors::read_metadata(&bytes).unwrap();
            assert_eq!(metadata.metadata().as_ref().unwrap()["format"], "pt");
        }
    }
}

#[test]
fn shards_are_named_and_indexed_as_transformers_does() {
    let folder = tempfile::tempdir().unwrap();
    let tensors = [("a", tensor(StoredDtype::F32, &[4], 0)), ("b", tensor(StoredDtype::F32, &[4], 1))];
    write(folder.path(), &tensors, 16).unwrap();
    let shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    assert_eq!(names(folder.path()), [shards[0], shards[1], "model.safetensors.index.json"]);
    let index = std::fs::read(folder.path().join("model.safetensors.index.json")).unwrap();
    let index: Value = serde_json::from_slice(&index).unwrap();
    assert_eq!(index, json!({"metadata": {"total_size": 32}, "weight_map": {"a": shards[0], "b": shards[1]}}));
}

#[test]
fn groups_stay_together() {
    let folder = tempfile::tempdir().unwrap();
    let part = || tensor(StoredDtype::U8, &[8], 0);
    let group = |names: [&str; 2]| names.map(|name| spec(name, &part())).to_vec();
    let mut writer = ShardWriter::new(folder.path(), "model", vec![group(["a", "b"]), group(["c", "d"])], 24).unwrap();
    for name in ["a", "b", "c", "d"] {
        writer.write(name, &part()).unwrap();
    }
    let files = writer.finish().unwrap().files;
    assert_eq!(files.len(), 2);
    assert_eq!(files[0].bytes, files[1].bytes);
}

#[test]
fn a_tensor_may_be_shorter_than_its_bound() {
    for len in [0, 1, 9, 320] {
        let folder = tempfile::tempdir().unwrap();
        let (state, values) = (tensor(StoredDtype::U8, &[len], 3), tensor(StoredDtype::F32, &[6], 4));
        let bound = TensorSpec { at_most: true, ..TensorSpec::new("state", StoredDtype::U8, vec![320]) };
        let groups = vec![vec![bound, spec("values", &values)]];
        let mut writer = ShardWriter::new(folder.path(), "model", groups, SHARD_BYTES).unwrap();
        writer.write("state", &state).unwrap();
        writer.write("values", &values).unwrap();
        writer.finish().unwrap();
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        assert_eq!(checkpoint.get("state").unwrap().bytes[..], state.bytes[..]);
        assert_eq!(checkpoint.get("values").unwrap().bytes[..], values.bytes[..]);
    }
}

#[test]
fn what_was_not_planned_is_refused_and_leaves_nothing() {
    let planned = tensor(StoredDtype::F32, &[4], 0);
    for (name, other) in
        [("b", planned.clone()), ("a", tensor(StoredDtype::F32, &[2, 2], 0)), ("a", tensor(StoredDtype::F16, &[4], 0))]
    {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = ShardWriter::new(folder.path(), "model", vec![vec![spec("a", &planned)]], 1).unwrap();
        let error = writer.write(name, &other).unwrap_err();
        assert!(error.message().contains("expected a F32 [4], found"), "{error}");
        drop(writer);
        assert_eq!(names(folder.path()), [""; 0]);
    }
}

#[test]
fn an_unfinished_plan_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let tensors = [("a", tensor(StoredDtype::F32, &[4], 0)), ("b", tensor(StoredDtype::F32, &[4], 1))];
    let groups = tensors.iter().map(|(name, tensor)| vec![spec(name, tensor)]).collect();
    let mut writer = ShardWriter::new(folder.path(), "model", groups, 16).unwrap();
    writer.write("a", &tensors[0].1).unwrap();
    let error = writer.finish().unwrap_err();
    assert!(error.message().contains("tensor b was planned and not written"), "{error}");
    assert_eq!(names(folder.path()), [""; 0]);
}

#[test]
fn names_must_be_unique_and_there_must_be_some() {
    let folder = tempfile::tempdir().unwrap();
    let one = spec("a", &tensor(StoredDtype::U8, &[1], 0));
    let twice = ShardWriter::new(folder.path(), "model", vec![vec![one.clone()], vec![one.clone()]], 1);
    assert!(twice.err().unwrap().message().contains("tensor a is to be written twice"));
    assert!(ShardWriter::new(folder.path(), "model", vec![vec![]], 1).is_err());
    let mut writer = ShardWriter::new(folder.path(), "model", vec![vec![one]], 1).unwrap();
    writer.write("a", &tensor(StoredDtype::U8, &[1], 0)).unwrap();
    assert!(writer.write("b", &tensor(StoredDtype::U8, &[1], 0)).is_err());
}

#[test]
fn a_folder_that_is_not_there_is_named() {
    let error = write(Path::new("/nonexistent/folder"), &mixed(), 1).unwrap_err();
    assert!(error.message().contains("/nonexistent/folder/model-00001-of-00006.safetensors"), "{error}");
}

#[test]
fn two_processes_do_not_write_the_same_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    std::fs::write(folder.path().join("model.gguf.partial"), "left by a killed process").unwrap();
    let (first, mut file) = PartialFile::create(&path).unwrap();
    file.write_all(b"whole").unwrap();
    let error = PartialFile::create(&path).err().unwrap();
    assert!(error.message().ends_with("model.gguf.partial: another process is writing this file"), "{error}");
    first.keep().unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"whole");
    drop(PartialFile::create(&path).unwrap());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn a_file_of_several_pieces_has_the_hash_of_the_whole() {
    let mut file = tempfile::tempfile().unwrap();
    file.set_len((64 << 20) - 3).unwrap();
    file.seek(SeekFrom::End(0)).unwrap();
    file.write_all(b"across the end of a piece").unwrap();
    // SAFETY: nobody else has the file.
    let map = unsafe { memmap2::Mmap::map(&file) }.unwrap();
    for start in [0, 4097, 64 << 20, map.len(), usize::MAX] {
        assert_eq!(hash_mapped(&map, start), blake3::hash(map.get(start..).unwrap_or_default()), "from {start}");
    }
}
