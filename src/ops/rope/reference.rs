//! The rotation in f64 under candle's autograd: the truth of the tests.
//!
//! Reference: `candle_nn::rotary_emb::rope_slow`; the fast `rope` has no gradient and says nothing.

use super::RopeTable;
use crate::ops::testing::{flat, tensor};
use candle_core::Var;

/// Value and gradient of `Σ rope(x) · dy` for `x`, `dy` `[T, heads · D]`.
pub(super) fn rope(x: &[f32], heads: usize, positions: &[u32], table: &RopeTable, dy: &[f32]) -> (Vec<f64>, Vec<f64>) {
    let (tokens, half) = (positions.len(), table.inv_freq().len());
    // [T, heads, D] to [1, heads, T, D] and back.
    let by_head = |values: &[f32]| {
        let values = tensor(values, &[1, tokens, heads, 2 * half]);
        values.transpose(1, 2).unwrap().contiguous().unwrap()
    };
    let by_token = |values: &candle_core::Tensor| flat(&values.transpose(1, 2).unwrap().contiguous().unwrap());
    let gather = |row: &dyn Fn(usize) -> Vec<f32>| {
        let rows: Vec<f32> = positions.iter().flat_map(|&p| row(p as usize)).collect();
        tensor(&rows, &[tokens, half])
    };
    let cos = gather(&|p| table.cos(p).to_vec());
    let sin = gather(&|p| table.sin(p).to_vec());

    let x = Var::from_tensor(&by_head(x)).unwrap();
    let y = candle_nn::rotary_emb::rope_slow(&x, &cos, &sin).unwrap();
    let gradients = (&y * by_head(dy)).unwrap().sum_all().unwrap().backward().unwrap();
    (by_token(&y), by_token(gradients.get(&x).unwrap()))
}
