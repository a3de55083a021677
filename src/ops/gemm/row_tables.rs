//! What a model that generates keeps of the scales of its weights, so that single rows need not compute it for every token:
//! which table of values each 64 of them have ([`super::row_tables_avx2`]), or, where there are no tables, decoded scales.
//!
//! Invariant: the values of a weight stay what they are.

use super::gemv_nf4::{has_whole_pieces, Input, PIECE};
use super::pack_nf4::ScaleReader;
#[cfg(target_arch = "x86_64")]
use super::row_tables_avx2::{Table, Tables, Words};
use super::WeightRef;
use crate::device::{cpu_path, Compute, CpuPath};
use crate::quant::{Nf4Matrix, Scales};
use rayon::prelude::*;
#[cfg(target_arch = "x86_64")]
use std::collections::HashMap;
use std::ops::Range;

/// Pieces that a task makes something of.
const AT_ONCE: usize = 4096;

/// What is kept of a weight.
pub struct RowTables(Kept);

/// Tables of its own that a weight may have: more would slow it down.
#[cfg(target_arch = "x86_64")]
const MOST_OWN: usize = 4096;

enum Kept {
    /// The words of tables, those of the dtype and the weight's own.
    #[cfg(target_arch = "x86_64")]
    Words(Vec<u32>, &'static Tables, Vec<Table>),
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
            Kept::Words(..) => None,
        }
    }

    /// What x must have become, where there are tables.
    pub(super) fn input(&self) -> Option<Input> {
        match &self.0 {
            Kept::Scales(_) => None,
            #[cfg(target_arch = "x86_64")]
            Kept::Words(_, tables, _) => Some(tables.input()),
        }
    }

    /// Hands `put` each row of a range with its sum, where there are tables.
    ///
    /// # Safety
    /// The tables are of this matrix, and x lies as [`RowTables::input`] says.
    pub(super) unsafe fn sums(
        &self,
        matrix: &Nf4Matrix,
        x: *const f32,
        rows: Range<usize>,
        put: &mut dyn FnMut(usize, f32),
    ) {
        #[cfg(target_arch = "x86_64")]
        if let Kept::Words(words, tables, own) = &self.0 {
            let pieces = matrix.cols / PIECE;
            let mut sums = [0.0; 16];
            for first in rows.clone().step_by(sums.len()) {
                let count = sums.len().min(rows.end - first);
                let words = &words[first * pieces..(first + count) * pieces];
                let words = Words { words, shared: &tables.tables, own };
                let codes = &matrix.codes[first * pieces * PIECE / 2..(first + count) * pieces * PIECE / 2];
                // SAFETY: there are tables on a path with AVX2 alone; words and codes are those of as many rows as sums, and
                // the caller vouches for x.
                unsafe { (tables.rows())(codes.as_ptr(), words, x, &mut sums[..count]) };
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
    if let Some(tables) = Tables::of(matrix.dtype).filter(|_| compute == Compute::F32) {
        if let Some((words, own)) = words_of(matrix, tables) {
            return Some(Kept::Words(words, tables, own));
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = compute;
    match matrix.scales {
        Scales::Double { .. } => Some(Kept::Scales(of_pieces(matrix, |scale| scale))),
        Scales::Plain(_) => None,
    }
}

/// The word of each 64 values, and the weight's own tables; None where a scale has no table.
#[cfg(target_arch = "x86_64")]
fn words_of(matrix: &Nf4Matrix, tables: &Tables) -> Option<(Vec<u32>, Vec<Table>)> {
    const MISSING: u32 = u32::MAX;
    let mut words = of_pieces(matrix, |scale| tables.word(scale).unwrap_or(MISSING));
    let (reader, mut own, mut numbers) = (ScaleReader::new(matrix), Vec::new(), HashMap::new());
    for (piece, word) in words.iter_mut().enumerate().filter(|(_, word)| **word == MISSING) {
        let mut scale = [0.0];
        reader.fill(piece * PIECE, PIECE, matrix.block, &mut scale);
        *word = match numbers.get(&scale[0].to_bits()) {
            Some(&word) => word,
            None if own.len() == MOST_OWN => return None,
            None => {
                let word = tables.word_of_own(own.len())?;
                own.push(tables.own(scale[0])?);
                numbers.insert(scale[0].to_bits(), word);
                word
            }
        };
    }
    Some((words, own))
}

/// What becomes of the scale of each 64 values.
fn of_pieces<T: Copy + Default + Send>(matrix: &Nf4Matrix, make: impl Fn(f32) -> T + Sync) -> Vec<T> {
    let reader = ScaleReader::new(matrix);
    let mut all = vec![T::default(); matrix.len() / PIECE];
    all.par_chunks_mut(AT_ONCE).enumerate().for_each(|(chunk, made)| {
        let mut scales = [0.0; AT_ONCE];
        let scales = &mut scales[..made.len()];
        reader.fill(chunk * AT_ONCE * PIECE, PIECE, matrix.block, scales);
        for (to, scale) in made.iter_mut().zip(scales) {
            *to = make(*scale);
        }
    });
    all
}

#[cfg(all(test, target_arch = "x86_64"))]
#[path = "row_tables_tests.rs"]
mod tests;
