//! The head in the form in which it is read fastest: once for every token that is generated.
//!
//! Products with bf16 operands round the head to bf16 each time; rounding it once gives the same bits and halves (f32) or
//! saves (f16) that work. Most of the logits of one token need not be known to more than 8 bits, so there is also a copy
//! in 8 bits ([`CoarseMatrix`]), which says which of them matter; those come from the head itself.

use super::layer::{DenseDtype, Weight};
use super::llama::Llama;
use crate::device::{cpu_path, Compute};
use crate::ops::gemm::CoarseMatrix;
use crate::ops::{embedding, Bytes, WeightRef};
use half::bf16;
use rayon::prelude::*;

impl Llama {
    /// Makes the forms that products with `compute` operands use.
    pub fn prepare_head(&mut self, compute: Compute) {
        if compute == Compute::Bf16 {
            self.round_head();
        }
        let Some(head) = self.head_weight().frozen_dense() else { return };
        let shape = [head.rows(), head.cols()];
        self.coarse_head =
            Some(CoarseMatrix::new(cpu_path(), shape, |row, values| embedding::forward(head, &[row as u32], values)));
    }

    /// Makes a copy of the head in bf16 if it is not in bf16.
    fn round_head(&mut self) {
        let Some(view) = self.head_weight().frozen_dense() else { return };
        if matches!(view, WeightRef::Bf16 { .. }) {
            return;
        }
        let (rows, cols) = (view.rows(), view.cols());
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
