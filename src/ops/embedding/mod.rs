//! Token embedding: rows of a table by id, and the gradient of the table.
//!
//! Legend: V rows of the table (vocabulary), H columns (features), T tokens.
//!
//! Forward: `out[t] = table[ids[t]]`. Backward: `dtable[v] += Σ_{t: ids[t] = v} dy[t]`, tokens in ascending order.
//! Saved for backward: the ids.
//!
//! Invariant: a row of the gradient is summed by one task in the order of the tokens, so its bits do not depend on the
//! threads. Ids are checked by the caller (the tokenizer's size against the model's); one out of range panics.
//! Reference: `torch.nn.functional.embedding`.

pub mod cuda;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

use super::gemm::WeightRef;
use super::vector::rows_per_task;
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use rayon::prelude::*;

/// `out[t] = table[ids[t]]`: table `[V, H]` in any storage, out `[T, H]`.
pub fn forward(table: WeightRef<'_>, ids: &[u32], out: &mut [f32]) {
    let features = table.cols();
    check(ids, table.rows(), features, out.len());
    if features == 0 {
        return;
    }
    let rows = rows_per_task(features);
    let copy = |(out, ids): (&mut [f32], &[u32])| {
        for (out, &id) in out.chunks_exact_mut(features).zip(ids) {
            read_row(table, id as usize, out);
        }
    };
    if ids.len() <= rows {
        return copy((out, ids));
    }
    (out.par_chunks_mut(rows * features), ids.par_chunks(rows)).into_par_iter().for_each(copy);
}

/// `dtable[ids[t]] += dy[t]`: dy `[T, H]`, dtable `[V, H]`, f32. H is `dy.len() / ids.len()`.
pub fn backward(ids: &[u32], dy: &[f32], dtable: &mut [f32]) {
    if ids.is_empty() {
        return;
    }
    let features = dy.len() / ids.len();
    assert!(features > 0 && dtable.len().is_multiple_of(features), "a gradient of {features} columns");
    check(ids, dtable.len() / features, features, dy.len());

    // Tokens by id (stable: ascending within an id), so that each touched row belongs to one group.
    let mut order: Vec<usize> = (0..ids.len()).collect();
    order.sort_by_key(|&token| ids[token]);
    let mut groups = Vec::new();
    let (mut rest, mut first_row) = (dtable, 0);
    for tokens in order.chunk_by(|&a, &b| ids[a] == ids[b]) {
        let row = ids[tokens[0]] as usize;
        let (head, tail) = rest.split_at_mut((row + 1 - first_row) * features);
        groups.push((&mut head[(row - first_row) * features..], tokens));
        (rest, first_row) = (tail, row + 1);
    }
    groups.into_par_iter().with_min_len(rows_per_task(features)).for_each(|(total, tokens)| {
        for &token in tokens {
            for (total, value) in total.iter_mut().zip(&dy[token * features..(token + 1) * features]) {
                *total += value;
            }
        }
    });
}

fn check(ids: &[u32], rows: usize, features: usize, values: usize) {
    assert_eq!(values, ids.len() * features, "[{}, {features}] expected", ids.len());
    let largest = ids.iter().max().map_or(0, |&id| id as usize + 1);
    assert!(largest <= rows, "id {} of a table of {rows} rows", largest.wrapping_sub(1));
}

fn read_row(table: WeightRef<'_>, row: usize, out: &mut [f32]) {
    let span = |cols: usize| row * cols..(row + 1) * cols;
    match table {
        WeightRef::F32(matrix) => out.copy_from_slice(matrix.row(row)),
        WeightRef::F16 { bits, cols, .. } => {
            bits[span(cols)].reinterpret_cast::<half::f16>().convert_to_f32_slice(out);
        }
        WeightRef::Bf16 { bits, cols, .. } => {
            for (out, &bits) in out.iter_mut().zip(&bits[span(cols)]) {
                *out = f32::from_bits(u32::from(bits) << 16);
            }
        }
        WeightRef::Nf4(matrix) => {
            for (out, index) in out.iter_mut().zip(span(matrix.cols)) {
                *out = matrix.value(index);
            }
        }
    }
}
