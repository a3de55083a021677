//! The weights of a model folder: memory-mapped safetensors, one file or shards with an index.
//!
//! Invariant: an open [`Checkpoint`] has sound headers: every tensor lies inside its file, none overlaps another, and
//! what the index promises is there. Values are read where they lie; nothing is copied but misaligned tensors.
//! Reference: the safetensors format (8 bytes of header length, JSON header, data without gaps).

use super::gguf::is_gguf;
use super::source::StoredTensors;
use crate::error::{Error, Result};
use crate::ops::bytes::Bytes;
use crate::quant::{file, Nf4Matrix};
use candle_core::safetensors::MmapedSafetensors;
use rayon::prelude::*;
use safetensors::tensor::Dtype;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use crate::quant::file::{RawTensor, StoredDtype};

/// An open checkpoint.
pub struct Checkpoint {
    folder: PathBuf,
    files: Vec<File>,
    /// File of each tensor, in name order.
    index: BTreeMap<String, usize>,
}

struct File {
    path: PathBuf,
    map: Arc<MmapedSafetensors>,
}

impl Checkpoint {
    /// Opens a model folder (`model.safetensors`, `model.safetensors.index.json` with its shards, or a single
    /// `*.safetensors`) or one safetensors file.
    ///
    /// Errors: nothing to open, a damaged or cut file, a missing shard, an index that the shards contradict.
    pub fn open(path: &Path) -> Result<Checkpoint> {
        if is_gguf(path) {
            return Err(Error::file(path, "expected safetensors, found a GGUF file")
                .hint("turn it into a folder first: llamantino import"));
        }
        if path.is_file() {
            let folder = path.parent().map(Path::to_path_buf).unwrap_or_default();
            return Checkpoint::of_files(folder, vec![path.to_path_buf()]);
        }
        if !path.is_dir() {
            return Err(Error::file(path, "no such model folder"));
        }
        let (single, index) = (path.join("model.safetensors"), path.join("model.safetensors.index.json"));
        if single.is_file() {
            Checkpoint::of_files(path.to_path_buf(), vec![single])
        } else if index.is_file() {
            Checkpoint::of_index(path, &index)
        } else {
            Checkpoint::of_files(path.to_path_buf(), vec![only_safetensors(path)?])
        }
    }

    fn of_files(folder: PathBuf, paths: Vec<PathBuf>) -> Result<Checkpoint> {
        let mut checkpoint = Checkpoint { folder, files: Vec::new(), index: BTreeMap::new() };
        for path in paths {
            let map = map_file(&path)?;
            for (name, _) in map.tensors() {
                if let Some(first) = checkpoint.index.insert(name.clone(), checkpoint.files.len()) {
                    let first = checkpoint.files[first].path.display();
                    return Err(Error::file(&path, format!("tensor {name} is also in {first}")));
                }
            }
            checkpoint.files.push(File { path, map: Arc::new(map) });
        }
        Ok(checkpoint)
    }

    fn of_index(folder: &Path, path: &Path) -> Result<Checkpoint> {
        let promised = read_index(path)?;
        let mut shards: Vec<&String> = promised.values().collect();
        shards.sort_unstable();
        shards.dedup();
        let missing: Vec<&str> = shards.iter().filter(|s| !folder.join(s).is_file()).map(|s| s.as_str()).collect();
        if !missing.is_empty() {
            return Err(Error::file(
                path,
                format!("expected {} shards, missing: {}", shards.len(), missing.join(", ")),
            )
            .hint("the download is not complete: fetch the model again"));
        }
        let checkpoint =
            Checkpoint::of_files(folder.to_path_buf(), shards.iter().map(|shard| folder.join(shard)).collect())?;
        for (name, shard) in &promised {
            let found = checkpoint.index.get(name).map(|&file| checkpoint.files[file].path.as_path());
            if found != Some(folder.join(shard).as_path()) {
                let found = found.map_or("no shard".to_string(), |path| path.display().to_string());
                return Err(Error::file(path, format!("tensor {name}: expected in {shard}, found in {found}")));
            }
        }
        match checkpoint.index.iter().find(|(name, _)| !promised.contains_key(*name)) {
            Some((name, &file)) => {
                let shard = &checkpoint.files[file].path;
                Err(Error::file(shard, format!("tensor {name} is not in the weight_map of {}", path.display())))
            }
            None => Ok(checkpoint),
        }
    }

    /// The folder that the checkpoint lies in.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The weights files.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|file| file.path.as_path())
    }

    /// Every tensor, in name order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.index.keys().map(String::as_str)
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.index.contains_key(name)
    }

    /// Whether the weight `name` is stored in NF4.
    pub fn is_nf4(&self, name: &str) -> bool {
        self.contains(&file::state_key(name))
    }

    /// The tensor of this name, or `None`. Errors: a dtype outside [`StoredDtype`].
    pub fn find(&self, name: &str) -> Result<Option<RawTensor>> {
        let Some(&file) = self.index.get(name) else { return Ok(None) };
        let File { path, map } = &self.files[file];
        let view = map.get(name).map_err(|e| Error::file(path, format!("tensor {name}: {e}")))?;
        let dtype = match view.dtype() {
            Dtype::F32 => StoredDtype::F32,
            Dtype::F16 => StoredDtype::F16,
            Dtype::BF16 => StoredDtype::Bf16,
            Dtype::U8 => StoredDtype::U8,
            other => {
                return Err(Error::file(
                    path,
                    format!("tensor {name}: expected F32, F16, BF16 or U8, found {other:?}"),
                ));
            }
        };
        let bytes = Bytes::mapped(map, view.data(), dtype.size());
        Ok(Some(RawTensor { dtype, shape: view.shape().to_vec(), bytes }))
    }

    /// The tensor of this name. Errors: there is none.
    pub fn get(&self, name: &str) -> Result<RawTensor> {
        self.find(name)?.ok_or_else(|| Error::file(&self.folder, format!("tensor {name} is missing")))
    }

    /// A floating-point tensor of this name and shape. Errors say what was expected and what is there.
    pub fn expect(&self, name: &str, shape: &[usize]) -> Result<RawTensor> {
        let tensor = self.get(name)?;
        if tensor.dtype == StoredDtype::U8 || tensor.shape != shape {
            let found = format!("{} {:?}", tensor.dtype.name(), tensor.shape);
            let what = format!("tensor {name}: expected F32, F16 or BF16 {shape:?}, found {found}");
            return Err(Error::file(self.path_of(name), what));
        }
        Ok(tensor)
    }

    /// The NF4 weight of this name and `[rows, cols]`.
    pub fn expect_nf4(&self, name: &str, rows: usize, cols: usize) -> Result<Nf4Matrix> {
        let place = self.path_of(name);
        let matrix = file::read_weight(name, &|part| self.find(part)).map_err(|e| e.at(place.display()))?;
        if (matrix.rows, matrix.cols) != (rows, cols) {
            let found = [matrix.rows, matrix.cols];
            return Err(Error::file(
                place,
                format!("tensor {name}: expected shape {:?}, found {found:?}", [rows, cols]),
            ));
        }
        Ok(matrix)
    }

    /// File of a tensor, for errors; the folder where there is none.
    pub fn path_of(&self, name: &str) -> &Path {
        self.index.get(name).map_or(&self.folder, |&file| &self.files[file].path)
    }
}

/// The one safetensors file of a folder that has neither of the usual names.
fn only_safetensors(folder: &Path) -> Result<PathBuf> {
    let entries = std::fs::read_dir(folder).map_err(|e| Error::io(folder, "read", e))?;
    let mut names: Vec<String> =
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort_unstable();
    let of = |wanted: &dyn Fn(&str) -> bool| names.iter().filter(|name| wanted(name)).cloned().collect::<Vec<_>>();
    let weights = of(&|name| name.ends_with(".safetensors") && name != "adapter_model.safetensors");
    match &weights[..] {
        [one] => return Ok(folder.join(one)),
        [] => {}
        many => {
            let found = format!("expected one weights file or model.safetensors.index.json, found {}", many.join(", "));
            return Err(Error::file(folder, found).hint("fetch the model again, with its index"));
        }
    }
    if names.iter().any(|name| name == "adapter_config.json") {
        return Err(Error::file(folder, "this is an adapter, expected a model")
            .hint("name the base model here and the adapter where adapters are asked for"));
    }
    let pickled = of(&|name| name.ends_with(".bin") || name.ends_with(".pth") || name.ends_with(".pt"));
    if let Some(first) = pickled.first() {
        let what = format!("expected *.safetensors, found only {first} (a pickle, which can run code)");
        return Err(Error::file(folder, what).hint(
            "convert it once where you trust it: python -c \"from transformers import AutoModelForCausalLM as M; \
             M.from_pretrained('FOLDER', torch_dtype='auto').save_pretrained('NEW_FOLDER')\"",
        ));
    }
    let gguf = of(&|name| name.ends_with(".gguf"));
    if let Some(first) = gguf.first() {
        return Err(
            Error::file(folder, format!("expected *.safetensors, found {first}")).hint("use `llamantino import`")
        );
    }
    Err(Error::file(folder, "no weights: expected model.safetensors, or model.safetensors.index.json and its shards"))
}

/// `weight_map` of an index: tensor name to file name.
fn read_index(path: &Path) -> Result<BTreeMap<String, String>> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let text = std::fs::read(path).map_err(|e| Error::io(path, "read", e))?;
    let index: Index = serde_json::from_slice(&text).map_err(|e| Error::file(path, e))?;
    if index.weight_map.is_empty() {
        return Err(Error::file(path, "weight_map: expected tensors, found none"));
    }
    // A shard is a file of this folder: nothing in an index may lead elsewhere.
    match index.weight_map.iter().find(|(_, shard)| Path::new(shard).file_name() != Some(shard.as_ref())) {
        Some((name, shard)) => {
            Err(Error::file(path, format!("weight_map.{name}: expected a file name, found {shard:?}")))
        }
        None => Ok(index.weight_map),
    }
}

fn map_file(path: &Path) -> Result<MmapedSafetensors> {
    check_header(path)?;
    // SAFETY: the files of a model are not written while they are read: everything that this program writes goes to
    // a temporary name and is renamed.
    unsafe { MmapedSafetensors::new(path) }.map_err(|e| Error::file(path, format!("damaged header: {e}")))
}

/// An entry of a safetensors header.
#[derive(serde::Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// Says what is wrong with a file's header and where; what passes here is checked once more by the safetensors crate.
fn check_header(path: &Path) -> Result<()> {
    use std::io::Read;
    let io = |e| Error::io(path, "read", e);
    let damaged =
        |what: String| Error::file(path, what).hint("it is no safetensors file, or damaged or cut: fetch it again");
    let mut file = std::fs::File::open(path).map_err(|e| Error::io(path, "open", e))?;
    let size = file.metadata().map_err(io)?.len();
    if size < 8 {
        return Err(damaged(format!("expected at least 8 bytes, found {size}")));
    }
    let mut length = [0u8; 8];
    file.read_exact(&mut length).map_err(io)?;
    let length = u64::from_le_bytes(length);
    if length > 100_000_000 || length > size - 8 {
        return Err(damaged(format!("header of {length} bytes in a file of {size} bytes")));
    }
    let mut header = vec![0u8; length as usize];
    file.read_exact(&mut header).map_err(io)?;
    let mut entries: BTreeMap<String, serde_json::Value> =
        serde_json::from_slice(&header).map_err(|e| damaged(format!("header: {e}")))?;
    entries.remove("__metadata__");
    let mut spans = Vec::with_capacity(entries.len());
    for (name, value) in entries {
        let entry: Entry = serde_json::from_value(value).map_err(|e| damaged(format!("header: tensor {name}: {e}")))?;
        let (start, end) = entry.data_offsets;
        let bits = element_bits(&entry.dtype);
        let expected = entry.shape.iter().try_fold(1u64, |product, &size| product.checked_mul(size));
        let expected = expected.and_then(|count| count.checked_mul(bits?)).map(|bits| bits / 8);
        if start > end || bits.is_some() && expected != Some(end - start) {
            return Err(damaged(format!(
                "tensor {name}: {} {:?} at bytes {start} to {end}: these do not fit",
                entry.dtype, entry.shape
            )));
        }
        spans.push((start, end, name));
    }
    spans.sort_unstable();
    check_spans(&spans, size - 8 - length).map_err(damaged)
}

/// Spans in order must follow each other from 0 to the end of the data.
fn check_spans(spans: &[(u64, u64, String)], data: u64) -> std::result::Result<(), String> {
    let mut end = 0;
    for (i, (start, stop, name)) in spans.iter().enumerate() {
        if *start != end {
            let before = i.checked_sub(1).map_or("the start", |i| spans[i].2.as_str());
            let what = if *start < end { "overlaps" } else { "leaves a gap after" };
            return Err(format!("tensor {name} at byte {start} {what} {before}, which ends at {end}"));
        }
        end = *stop;
        if end > data {
            return Err(format!("tensor {name} ends at byte {end} of the data, the file has {data} bytes of data"));
        }
    }
    if end != data {
        return Err(format!("the tensors take {end} bytes, the file has {data} bytes of data"));
    }
    Ok(())
}

/// Bits of an element of the dtypes that occur; `None` leaves the check to the safetensors crate.
fn element_bits(dtype: &str) -> Option<u64> {
    match dtype {
        "BOOL" | "U8" | "I8" => Some(8),
        "F16" | "BF16" | "I16" | "U16" => Some(16),
        "F32" | "I32" | "U32" => Some(32),
        "F64" | "I64" | "U64" => Some(64),
        _ => None,
    }
}

/// Flat index of the first value that is NaN or infinite. Bytes have none.
pub fn first_non_finite(tensor: &RawTensor) -> Option<usize> {
    match tensor.dtype {
        StoredDtype::F32 => first(tensor.bytes.as_f32(), |value| !value.is_finite()),
        StoredDtype::F16 => first(tensor.bytes.as_u16(), |bits| bits & 0x7c00 == 0x7c00),
        StoredDtype::Bf16 => first(tensor.bytes.as_u16(), |bits| bits & 0x7f80 == 0x7f80),
        StoredDtype::U8 => None,
    }
}

/// Index of the first bad value. Pieces are tested whole, without a branch a value, which compilers vectorise.
fn first<T: Copy + Sync>(values: &[T], bad: impl Fn(T) -> bool + Sync) -> Option<usize> {
    const PIECE: usize = 4096;
    let found = values.par_chunks(PIECE).enumerate().with_min_len(16).find_map_first(|(i, piece)| {
        let any = piece.iter().fold(false, |any, &value| any | bad(value));
        if !any {
            return None;
        }
        piece.iter().position(|&value| bad(value)).map(|within| i * PIECE + within)
    });
    found
}

/// An error naming the tensor and the place unless every value is finite.
pub fn check_finite(name: &str, tensor: &RawTensor) -> Result<()> {
    match first_non_finite(tensor) {
        None => Ok(()),
        Some(index) => Err(Error::failed(format!("tensor {name} {:?}: value {index} is not finite", tensor.shape))
            .hint("the weights are damaged: fetch the model again")),
    }
}

/// How much of a checkpoint a hash covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HashDepth {
    /// Every byte.
    Full,
    /// Names, dtypes, shapes and 64 KiB a tensor, spread over it: milliseconds for any model.
    Sampled,
}

/// Hash (BLAKE3, 64 hex digits) of what a model on disk holds: over (name, dtype, shape, bytes) of every tensor in name
/// order, so that it does not depend on sharding, file names or the order in the files. A GGUF file has the hash of the
/// folder that importing it gives.
pub fn base_hash(model: &dyn StoredTensors, depth: HashDepth) -> Result<String> {
    let names = model.names();
    let hash = |name: &&str| Ok(tensor_hash(name, &model.get(name)?, depth));
    let hashes: Result<Vec<blake3::Hash>> = match model.copies() {
        true => names.iter().map(hash).collect(),
        false => names.par_iter().map(hash).collect(),
    };
    let mut all = blake3::Hasher::new();
    all.update(match depth {
        HashDepth::Full => b"llamantino weights 1 full   ",
        HashDepth::Sampled => b"llamantino weights 1 sampled",
    });
    for hash in hashes? {
        all.update(hash.as_bytes());
    }
    Ok(all.finalize().to_hex().to_string())
}

/// Models up to this size are hashed whole where time matters, larger ones by samples.
const HASHED_WHOLE: u64 = 2 << 30;

/// A hash of a model that takes little time beside loading it; says how it was made.
pub fn quick_hash(model: &dyn StoredTensors) -> Result<String> {
    // Samples of a tensor that has to be made first save nothing.
    let (depth, kind) = match model.copies() || stored_bytes(model)? <= HASHED_WHOLE {
        true => (HashDepth::Full, "whole"),
        false => (HashDepth::Sampled, "sampled"),
    };
    Ok(format!("{kind} {}", base_hash(model, depth)?))
}

/// Bytes of all tensors as they are handed out.
pub fn stored_bytes(model: &dyn StoredTensors) -> Result<u64> {
    model.names().iter().try_fold(0, |sum, name| {
        let (dtype, shape) = model.about(name)?;
        Ok(sum + (shape.iter().product::<usize>() * dtype.size()) as u64)
    })
}

fn tensor_hash(name: &str, tensor: &RawTensor, depth: HashDepth) -> blake3::Hash {
    const SAMPLES: usize = 16;
    const SAMPLE: usize = 4096;
    let mut hasher = blake3::Hasher::new();
    let number = |hasher: &mut blake3::Hasher, value: usize| {
        hasher.update(&(value as u64).to_le_bytes());
    };
    number(&mut hasher, name.len());
    hasher.update(name.as_bytes());
    hasher.update(tensor.dtype.name().as_bytes());
    number(&mut hasher, tensor.shape.len());
    tensor.shape.iter().for_each(|&size| number(&mut hasher, size));
    let bytes: &[u8] = &tensor.bytes;
    if depth == HashDepth::Full || bytes.len() <= SAMPLES * SAMPLE {
        if bytes.len() < 1 << 17 {
            hasher.update(bytes);
        } else {
            hasher.update_rayon(bytes);
        }
    } else {
        // The first and the last sample touch the ends.
        for i in 0..SAMPLES {
            let start = (bytes.len() - SAMPLE) / (SAMPLES - 1) * i;
            let start = if i == SAMPLES - 1 { bytes.len() - SAMPLE } else { start };
            hasher.update(&bytes[start..start + SAMPLE]);
        }
    }
    // Hashing a model must not take the memory of a model.
    tensor.bytes.release();
    hasher.finalize()
}

#[cfg(test)]
#[path = "weights_tests.rs"]
mod tests;
