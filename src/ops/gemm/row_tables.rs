//! What a model that generates keeps of the scales of its weights, so that single rows need not compute it for every token:
//! which table of values each 64 of them have ([`super::row_tables_avx2`]), or, where there are no tables, decoded scales.
//!
//! Invariant: the values of a weight stay what they are.

use super::gemv_nf4::{has_whole_pieces, PIECE};
use super::pack_nf4::ScaleReader;
#[cfg(target_arch = "x86_64")]
use super::row_tables_avx2::{self, TABLES};
use super::WeightRef;
use crate::device::{cpu_path, Compute, CpuPath};
use crate::quant::{Nf4Matrix, Scales};
use rayon::prelude::*;
use std::ops::Range;

/// Pieces that a task makes something of.
const AT_ONCE: usize = 4096;

/// What is kept of a weight.
pub struct RowTables(Kept);

enum Kept {
    /// The words of tables.
    #[cfg(target_arch = "x86_64")]
    Words(Vec<u32>),
    /// The scale of each 64 values.
    Scales(Vec<f32>),
}

impl RowTables {
    /// For products of single rows of x with this weight; None where nothing is kept for them.
    pub fn new(weight: WeightRef<'_>, compute: Compute) -> Option<RowTables> {
        RowTables::on(cpu_path(), weight, compute)
    }

    /// [`RowTables::new`] on one kernel path.
    pub(super) fn on(path: CpuPath, weight: WeightRef<'_>, compute: Compute) -> Option<RowTables> {
        match weight {
            WeightRef::Nf4(matrix) if path == CpuPath::Avx2 => {
                weight.check();
                kept_of(matrix, compute).map(RowTables)
            }
            _ => None,
        }
    }

    /// The scale of each 64 values, if that is what there is.
    pub(super) fn scales(&self) -> Option<&[f32]> {
        match &self.0 {
            Kept::Scales(scales) => Some(scales),
            #[cfg(target_arch = "x86_64")]
            Kept::Words(_) => None,
        }
    }

    /// Hands `put` each row of a range with its sum, where there are tables.
    ///
    /// # Safety
    /// The tables are of this matrix, and x lies as [`super::gemv_nf4_avx2`] wants it.
    pub(super) unsafe fn sums(
        &self,
        matrix: &Nf4Matrix,
        x: *const f32,
        rows: Range<usize>,
        put: &mut dyn FnMut(usize, f32),
    ) {
        #[cfg(target_arch = "x86_64")]
        if let Kept::Words(words) = &self.0 {
            let pieces = matrix.cols / PIECE;
            let mut sums = [0.0; 16];
            for first in rows.clone().step_by(sums.len()) {
                let count = sums.len().min(rows.end - first);
                let words = &words[first * pieces..(first + count) * pieces];
                let codes = &matrix.codes[first * pieces * PIECE / 2..(first + count) * pieces * PIECE / 2];
                // SAFETY: there are tables on a path with AVX2 alone; words and codes are those of as many rows as sums, and
                // the caller vouches for x.
                unsafe { row_tables_avx2::rows(codes.as_ptr(), words, x, &mut sums[..count]) };
                (first..).zip(&sums[..count]).for_each(|(row, &sum)| put(row, sum));
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = (matrix, x, rows, put);
    }
}

fn kept_of(matrix: &Nf4Matrix, compute: Compute) -> Option<Kept> {
    if !has_whole_pieces(matrix) {
        return None;
    }
    #[cfg(target_arch = "x86_64")]
    if compute == Compute::F32 && matrix.dtype == crate::quant::SourceDtype::Bf16 {
        if let Some(words) = of_pieces(matrix, |scale| TABLES.word(scale)) {
            return Some(Kept::Words(words));
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = compute;
    match matrix.scales {
        Scales::Double { .. } => of_pieces(matrix, Some).map(Kept::Scales),
        Scales::Plain(_) => None,
    }
}

/// What becomes of the scale of each 64 values; None if it is that for one of them.
fn of_pieces<T: Copy + Default + Send>(matrix: &Nf4Matrix, make: impl Fn(f32) -> Option<T> + Sync) -> Option<Vec<T>> {
    let reader = ScaleReader::new(matrix);
    let mut all = vec![T::default(); matrix.len() / PIECE];
    let chunks = all.par_chunks_mut(AT_ONCE).enumerate().map(|(chunk, made)| {
        let mut scales = [0.0; AT_ONCE];
        let scales = &mut scales[..made.len()];
        reader.fill(chunk * AT_ONCE * PIECE, PIECE, matrix.block, scales);
        made.iter_mut().zip(scales).all(|(to, scale)| make(*scale).map(|made| *to = made).is_some())
    });
    chunks.reduce(|| true, |one, other| one && other).then_some(all)
}

#[cfg(all(test, target_arch = "x86_64"))]
#[path = "row_tables_tests.rs"]
mod tests;
