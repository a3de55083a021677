//! The tuned weights files as bytes: a header kept word for word, and the order of the tensors behind it.
//!
//! Keeping the header makes the recovered file the tuned one, byte for byte, so that its published checksum holds.
//! Invariant of a [`WeightsFile`]: its tensors follow each other from the end of the header to the end of the file.

use crate::error::{Error, Result};
use serde_json::{Map, Value};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// A weights file: what stands before its data, and where its data lie.
pub(super) struct WeightsFile {
    /// Name in the folder.
    pub(super) name: String,
    /// The first 8 + N bytes.
    pub(super) header: Vec<u8>,
    /// Tensors in the order of their bytes.
    pub(super) tensors: Vec<Placed>,
}

/// A tensor in a file.
pub(super) struct Placed {
    /// Name in the checkpoint.
    pub(super) name: String,
    /// Name of its dtype.
    pub(super) dtype: String,
    /// Dimensions.
    pub(super) shape: Vec<usize>,
    /// Length in bytes.
    pub(super) bytes: u64,
}

impl WeightsFile {
    /// Reads the header of a safetensors file.
    pub(super) fn read(path: &Path) -> Result<WeightsFile> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        WeightsFile::parse(name, read_header(path)?).map_err(|error| error.at(path.display()))
    }

    /// Interprets a header.
    pub(super) fn parse(name: String, header: Vec<u8>) -> Result<WeightsFile> {
        let wrong = |what: &str| Error::failed(format!("header of {name}: {what}"));
        let text = header.get(8..).ok_or_else(|| wrong("fewer than 8 bytes"))?;
        if header[..8] != (text.len() as u64).to_le_bytes() {
            return Err(wrong("another length than it states"));
        }
        let entries: Map<String, Value> = serde_json::from_slice(text).map_err(|error| wrong(&error.to_string()))?;
        let mut tensors = Vec::with_capacity(entries.len());
        for (tensor, entry) in entries.into_iter().filter(|(name, _)| name != "__metadata__") {
            let entry: Entry = serde_json::from_value(entry).map_err(|e| wrong(&format!("tensor {tensor}: {e}")))?;
            tensors.push((entry.data_offsets, tensor, entry));
        }
        tensors.sort_by(|(a, first, _), (b, second, _)| (a, first).cmp(&(b, second)));
        let mut end = 0;
        for ((start, stop), tensor, _) in &tensors {
            if *start != end || stop < start {
                return Err(wrong(&format!("tensor {tensor} at {start} to {stop}, expected to begin at {end}")));
            }
            end = *stop;
        }
        let placed = |((start, end), name, entry): ((u64, u64), String, Entry)| Placed {
            name,
            dtype: entry.dtype,
            shape: entry.shape,
            bytes: end - start,
        };
        let tensors = tensors.into_iter().map(placed).collect();
        Ok(WeightsFile { name, header, tensors })
    }

    /// Length of the whole file.
    pub(super) fn bytes(&self) -> u64 {
        self.header.len() as u64 + self.tensors.iter().map(|tensor| tensor.bytes).sum::<u64>()
    }
}

#[derive(serde::Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (u64, u64),
}

/// The first 8 + N bytes of a safetensors file whose header was checked before.
pub(super) fn read_header(path: &Path) -> Result<Vec<u8>> {
    let mut file = File::open(path).map_err(|e| Error::io(path, "open", e))?;
    let mut header = vec![0; 8];
    let mut read = || -> std::io::Result<()> {
        file.read_exact(&mut header)?;
        let mut length = [0; 8];
        length.copy_from_slice(&header);
        let left = file.metadata()?.len().saturating_sub(8);
        let length = u64::from_le_bytes(length).min(left) as usize;
        header.resize(8 + length, 0);
        file.read_exact(&mut header[8..])
    };
    read().map_err(|e| Error::io(path, "read", e))?;
    Ok(header)
}

/// An error unless `name` is the name of a file in a folder, and not a way out of it.
pub(super) fn check_name(name: &str) -> Result<()> {
    let plain = Path::new(name).file_name() == Some(name.as_ref()) && !name.contains(['/', '\\', '\0']);
    match plain && !name.starts_with('.') {
        true => Ok(()),
        false => Err(Error::failed(format!("expected the name of a file, found {name:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(text: &str) -> Vec<u8> {
        [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
    }

    #[test]
    fn tensors_come_in_the_order_of_their_bytes() {
        let text = r#"{"b":{"dtype":"F16","shape":[2],"data_offsets":[8,12]},"__metadata__":{"format":"pt"},
            "z":{"dtype":"F32","shape":[0],"data_offsets":[8,8]},"a":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]}} "#;
        let file = WeightsFile::parse("m".into(), header(text)).unwrap();
        let order: Vec<_> = file.tensors.iter().map(|t| (t.name.as_str(), t.bytes)).collect();
        assert_eq!(order, [("a", 8), ("z", 0), ("b", 4)]);
        assert_eq!(file.bytes(), file.header.len() as u64 + 12);
    }

    #[test]
    fn headers_with_gaps_overlaps_or_another_length_are_refused() {
        let one = |start: u64, end: u64| {
            header(&format!(r#"{{"a":{{"dtype":"U8","shape":[4],"data_offsets":[{start},{end}]}}}}"#))
        };
        assert!(WeightsFile::parse("m".into(), one(0, 4)).is_ok());
        assert!(WeightsFile::parse("m".into(), one(4, 8)).is_err());
        assert!(WeightsFile::parse("m".into(), one(4, 0)).is_err());
        assert!(WeightsFile::parse("m".into(), [one(0, 4), vec![b' ']].concat()).is_err());
        assert!(WeightsFile::parse("m".into(), vec![0; 7]).is_err());
        assert!(WeightsFile::parse("m".into(), header("[]")).is_err());
    }

    #[test]
    fn names_that_lead_out_of_the_folder_are_refused() {
        check_name("model-00001-of-00002.safetensors").unwrap();
        for name in ["", ".", "..", "../x", "/etc/passwd", "a/b", "a\\b", ".hidden", "a/"] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
    }
}
