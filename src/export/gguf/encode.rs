//! A tensor of a checkpoint in the form of a GGUF file: rows of q and k interleaved, values rounded or quantised.

use crate::error::{Error, Result};
use crate::model::gguf::{checkpoint_row, BlockType};
use crate::model::RawTensor;
use crate::ops::Bytes;
use rayon::prelude::*;

/// Values of a task: whole rows, about this many.
const TASK_VALUES: usize = 1 << 16;

/// The bytes of an f32 tensor as `kind`. `heads` is that of [`crate::model::gguf::Place`].
///
/// # Errors
/// A value that the type has no room for.
pub fn encode(tensor: &RawTensor, heads: usize, kind: BlockType) -> Result<Bytes> {
    let values = tensor.bytes.as_f32();
    // The rows of a bias are its values.
    let cols = if tensor.shape.len() == 1 && heads > 0 { 1 } else { tensor.shape.last().copied().unwrap_or(1) };
    let rows = values.len() / cols;
    let head = rows.checked_div(heads).unwrap_or(0);
    let task_rows = (TASK_VALUES / cols).max(1);
    let task_bytes = kind.bytes_of(task_rows * cols);
    let mut flaw = None;
    let bytes = Bytes::filled(kind.bytes_of(values.len()), |out| {
        let tasks = out.par_chunks_mut(task_bytes).enumerate();
        flaw = tasks
            .map(|(task, out)| {
                let range = task * task_rows..((task + 1) * task_rows).min(rows);
                if head == 0 {
                    return kind.from_f32(&values[range.start * cols..range.end * cols], out);
                }
                let gathered: Vec<f32> = range
                    .flat_map(|row| {
                        let from = checkpoint_row(row, head) * cols;
                        &values[from..from + cols]
                    })
                    .copied()
                    .collect();
                kind.from_f32(&gathered, out)
            })
            .find_map_first(|result| result.err());
    });
    match flaw {
        None => Ok(bytes),
        Some(flaw) => Err(Error::failed(flaw).hint("bf16 and f32 hold whatever a model holds")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::StoredDtype;
    use crate::ops::testing::normal;

    fn tensor(shape: &[usize], values: &[f32]) -> RawTensor {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        RawTensor { dtype: StoredDtype::F32, shape: shape.to_vec(), bytes: Bytes::owned(&bytes) }
    }

    #[test]
    fn rows_of_a_head_are_interleaved() {
        let values: Vec<f32> = (0..8).map(|i| i as f32).collect();
        let encoded = encode(&tensor(&[8, 1], &values), 2, BlockType::F32).unwrap();
        assert_eq!(encoded.as_f32(), [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
        let bias = encode(&tensor(&[8], &values), 2, BlockType::F32).unwrap();
        assert_eq!(bias.as_f32(), encoded.as_f32());
        assert_eq!(encode(&tensor(&[8], &values), 0, BlockType::F32).unwrap().as_f32(), values);
    }

    /// Quantising in tasks of rows is quantising the whole, and every type comes as near as its bits allow.
    #[test]
    fn blocks_come_back_near_the_values() {
        let (rows, cols) = (300, 512);
        let values = normal("blocks", rows * cols);
        let whole = tensor(&[rows, cols], &values);
        let kinds = [
            (BlockType::F32, 0.0),
            (BlockType::F16, 3e-4),
            (BlockType::BF16, 3e-3),
            (BlockType::Q8_0, 6e-3),
            (BlockType::Q6_K, 2e-2),
            (BlockType::Q5_1, 4e-2),
            (BlockType::Q5_0, 5e-2),
            (BlockType::Q5_K, 4e-2),
            (BlockType::Q4_K, 8e-2),
            (BlockType::Q4_0, 1e-1),
        ];
        for (kind, tolerance) in kinds {
            let encoded = encode(&whole, 0, kind).unwrap();
            let mut at_once = vec![0; encoded.len()];
            kind.from_f32(&values, &mut at_once).unwrap();
            assert!(encoded[..] == at_once[..], "{}", kind.name());
            let decoded = kind.to_f32(&encoded).unwrap();
            let sum = |terms: &mut dyn Iterator<Item = f32>| terms.map(|x| f64::from(x) * f64::from(x)).sum::<f64>();
            let error = sum(&mut decoded.iter().zip(&values).map(|(a, b)| a - b)) / sum(&mut values.iter().copied());
            assert!(error.sqrt() <= tolerance, "{}: {}", kind.name(), error.sqrt());
        }
    }

    #[test]
    fn a_value_that_does_not_fit_is_named() {
        let values: Vec<f32> = (0..256).map(|i| if i == 77 { 1e6 } else { 1.0 }).collect();
        for kind in [BlockType::F16, BlockType::Q8_0, BlockType::Q4_K] {
            let error = encode(&tensor(&[1, 256], &values), 0, kind).err().unwrap();
            assert!(error.message().contains("1000000 does not fit in"), "{error}");
        }
        assert!(encode(&tensor(&[1, 256], &values), 0, BlockType::BF16).is_ok());
    }
}
