//! The head in the form in which it is read fastest: once for every token that is generated.
//!
//! Products with bf16 operands round the head to bf16 each time; rounding it once gives the same bits and halves (f32) or
//! saves (f16) that work. Most of the logits of one token need not be known to more than 8 bits, so with bf16 operands
//! there is also a copy in 8 bits ([`CoarseMatrix`]). With f32 operands the stored values are used as they are.

use super::layer::{DenseDtype, Weight};
use super::llama::Llama;
use crate::device::{cpu_path, Compute};
use crate::ops::gemm::CoarseMatrix;
use crate::ops::{Bytes, WeightRef};
use half::bf16;
use rayon::prelude::*;

impl Llama {
    /// Makes the forms that products with `compute` operands use.
    pub fn prepare_head(&mut self, compute: Compute) {
        if compute == Compute::F32 {
            return;
        }
        self.round_head();
        if let Weight::Dense { dtype: DenseDtype::Bf16, bytes, rows, cols } = self.head_weight() {
            self.coarse_head = Some(CoarseMatrix::new(cpu_path(), bytes.as_u16(), *rows, *cols));
        }
    }

    /// Makes a copy of the head in bf16 if it is not in bf16.
    fn round_head(&mut self) {
        let Weight::Dense { dtype, bytes, rows, cols } = self.head_weight() else { return };
        let view = match dtype {
            DenseDtype::Bf16 => return,
            DenseDtype::F16 => WeightRef::F16 { bits: bytes.as_u16(), rows: *rows, cols: *cols },
            DenseDtype::F32 => WeightRef::F32(crate::ops::MatRef::new(bytes.as_f32(), *rows, *cols)),
        };
        let (rows, cols) = (*rows, *cols);
        let bytes = Bytes::filled(2 * rows * cols, |bytes| {
            bytes.par_chunks_mut(2 * cols.max(1)).enumerate().for_each(|(row, bytes)| {
                let (pairs, _) = bytes.as_chunks_mut();
                for (col, to) in pairs.iter_mut().enumerate() {
                    *to = bf16::from_f32(view.at(row, col)).to_le_bytes();
                }
            });
        });
        self.head = Some(Weight::Dense { dtype: DenseDtype::Bf16, bytes, rows, cols });
    }
}
