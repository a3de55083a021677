//! The embedding in f64 under candle's autograd: the truth of the tests.
//!
//! Reference: `candle_core::Tensor::index_select`.

use crate::ops::testing::{flat, tensor};
use candle_core::{Device, Tensor, Var};

/// Value and gradient of the table of `Σ table[ids] · dy` for a `[V, H]` table.
pub(super) fn embedding(table: &[f32], features: usize, ids: &[u32], dy: &[f32]) -> (Vec<f64>, Vec<f64>) {
    let table = Var::from_tensor(&tensor(table, &[table.len() / features, features])).unwrap();
    let ids = Tensor::new(ids, &Device::Cpu).unwrap();
    let y = table.index_select(&ids, 0).unwrap();
    let gradients = (&y * tensor(dy, y.dims())).unwrap().sum_all().unwrap().backward().unwrap();
    (flat(&y), flat(gradients.get(&table).unwrap()))
}
