//! An adapter folded into its weight: W' = W + s·B·A, with DoRA m/‖W + s·B·A‖ · (W + s·B·A), row by row in f32.
//!
//! The caller brings rows of W widened to f32 and rounds the result to its dtype, once. Reference: PEFT `merge_and_unload`.

use super::dora::sum_of_products;
use crate::device::Compute;
use crate::ops::gemm::{matmul_nn, Store};
use crate::ops::{MatMut, MatRef, WeightRef};
use rayon::prelude::*;
use std::ops::Range;

/// What an adapter does to its weight.
#[derive(Clone, Copy)]
pub struct Delta<'a> {
    /// `[R, K]`.
    pub a: MatRef<'a>,
    /// `[N, R]`.
    pub b: MatRef<'a>,
    /// s.
    pub scale: f32,
    /// m, `[N]`, with DoRA.
    pub magnitude: Option<&'a [f32]>,
}

impl Delta<'_> {
    /// Turns the rows `range` of W (`[range.len(), K]`, row-major) into those of W'.
    pub fn apply(&self, range: Range<usize>, rows: &mut [f32]) {
        let cols = self.a.cols;
        let b = self.b.row_range(range.clone());
        let add = Store::add(Compute::F32).scaled(self.scale);
        matmul_nn(b, WeightRef::F32(self.a), MatMut::new(rows, range.len(), cols), add);
        if let Some(magnitude) = self.magnitude {
            rows.par_chunks_mut(cols).zip(&magnitude[range]).for_each(|(row, magnitude)| {
                let norm = sum_of_products(row, row).sqrt() as f32;
                let factor = magnitude / norm;
                row.iter_mut().for_each(|value| *value *= factor);
            });
        }
    }
}
