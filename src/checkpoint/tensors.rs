//! Tensors of a checkpoint as safetensors: f32 and u8, written straight from the memory they live in.
//!
//! Invariant: values come back bit for bit. f32 tensors lie before u8 tensors, so that every one is aligned. Reference:
//! the safetensors format (8 bytes of header length, a JSON header padded with spaces to 8 bytes, the data).

use crate::optim::StateValues;
use safetensors::{Dtype, SafeTensors};
use serde_json::{json, Map, Value};
use std::io::{self, Write};

/// A tensor to write.
pub struct TensorRef<'a> {
    /// Unique in its file.
    pub name: &'a str,
    /// Dimensions; their product is the number of values.
    pub shape: Vec<usize>,
    /// Its values, row-major.
    pub values: StateValues<&'a [f32], &'a [u8]>,
}

/// A tensor read back.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    /// Its name.
    pub name: String,
    /// Dimensions.
    pub shape: Vec<usize>,
    /// Its values, row-major.
    pub values: StateValues,
}

/// Writes a file of `tensors`.
pub fn write(tensors: &[TensorRef<'_>], out: &mut dyn Write) -> io::Result<()> {
    let is_bytes = |tensor: &&TensorRef<'_>| matches!(tensor.values, StateValues::U8(_));
    let mut order: Vec<&TensorRef<'_>> = tensors.iter().collect();
    order.sort_by_key(is_bytes);
    let mut header = Map::from_iter([("__metadata__".to_string(), json!({"format": "pt"}))]);
    let mut position = 0;
    for tensor in &order {
        let (dtype, bytes) = match tensor.values {
            StateValues::F32(values) => ("F32", size_of_val(values)),
            StateValues::U8(values) => ("U8", values.len()),
        };
        let entry = json!({"dtype": dtype, "shape": tensor.shape, "data_offsets": [position, position + bytes]});
        header.insert(tensor.name.to_string(), entry);
        position += bytes;
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(&header)?;
    for tensor in order {
        match tensor.values {
            StateValues::F32(values) => write_f32(values, out)?,
            StateValues::U8(values) => out.write_all(values)?,
        }
    }
    Ok(())
}

fn write_f32(values: &[f32], out: &mut dyn Write) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(1 << 16);
    for chunk in values.chunks(1 << 14) {
        bytes.clear();
        bytes.extend(chunk.iter().flat_map(|value| value.to_le_bytes()));
        out.write_all(&bytes)?;
    }
    Ok(())
}

/// Reads a file of tensors.
///
/// # Errors
/// What is wrong, to be put behind the file's name.
pub fn read(bytes: &[u8]) -> Result<Vec<Tensor>, String> {
    let file = SafeTensors::deserialize(bytes).map_err(|error| format!("not a safetensors file: {error}"))?;
    let tensors = file.iter().map(|(name, view)| {
        let values = match view.dtype() {
            Dtype::F32 => StateValues::F32(from_le_bytes(view.data())),
            Dtype::U8 => StateValues::U8(view.data().to_vec()),
            other => return Err(format!("{name}: expected F32 or U8, found {other:?}")),
        };
        Ok(Tensor { name: name.into(), shape: view.shape().to_vec(), values })
    });
    tensors.collect()
}

fn from_le_bytes(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}
