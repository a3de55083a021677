//! Rows by index on a GPU, and weights on their way there; see `embedding.cu`.

use crate::error::Result;
use crate::ops::gpu::{count, Buffer};
use half::bf16;

/// `out[t] = table[ids[t]]`: ids `[T]` below the table's rows, out `[T,H]`, H a multiple of 8.
pub fn gather(table: &Buffer<bf16>, ids: &Buffer<u32>, out: &Buffer<bf16>) -> Result<()> {
    assert!(out.rows() == ids.len() && out.cols() == table.cols());
    moved("rows_gather", table, ids, out)
}

/// `out[ids[t]] = rows[t]`; other rows stay. Ids are distinct.
pub fn scatter(rows: &Buffer<bf16>, ids: &Buffer<u32>, out: &Buffer<bf16>) -> Result<()> {
    assert!(rows.rows() == ids.len() && out.cols() == rows.cols());
    moved("rows_scatter", rows, ids, out)
}

fn moved(kernel: &'static str, from: &Buffer<bf16>, ids: &Buffer<u32>, to: &Buffer<bf16>) -> Result<()> {
    assert!(from.cols().is_multiple_of(8), "{} features are not a multiple of 8", from.cols());
    let features = count(from.cols())? as i32;
    let arguments = [from.pointer(), ids.pointer(), to.pointer(), (ids.len() as i64).into(), features.into()];
    from.gpu().each(kernel, ids.len() * from.cols() / 8, &arguments)
}

/// `x [T,N] += bias [1,N]`.
pub fn add_bias(x: &Buffer<bf16>, bias: &Buffer<f32>) -> Result<()> {
    assert_eq!(x.cols(), bias.len());
    let columns = count(x.cols())? as i32;
    x.gpu().each("bias_add", x.len(), &[x.pointer(), bias.pointer(), (x.len() as i64).into(), columns.into()])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{emulated_gpu, halves, normal};

    #[test]
    fn rows_go_where_their_ids_say() {
        let Some(gpu) = emulated_gpu() else { return };
        let table = halves(&normal("table", 9 * 16));
        let ids = [8u32, 0, 3, 5];
        let (gpu_table, gpu_ids) = (gpu.upload(&table, 9, 16).unwrap(), gpu.upload(&ids, 4, 1).unwrap());
        let out = gpu.buffer(4, 16).unwrap();
        gather(&gpu_table, &gpu_ids, &out).unwrap();
        let gathered = out.read().unwrap();
        for (row, &id) in gathered.chunks(16).zip(&ids) {
            assert_eq!(row, &table[id as usize * 16..][..16]);
        }
        let back = gpu.zeros(9, 16).unwrap();
        scatter(&out, &gpu_ids, &back).unwrap();
        for (id, row) in back.read().unwrap().chunks(16).enumerate() {
            let expected = if ids.contains(&(id as u32)) { &table[id * 16..][..16] } else { &[half::bf16::ZERO; 16] };
            assert_eq!(row, expected);
        }
    }

    #[test]
    fn bias_is_added_to_every_row() {
        let Some(gpu) = emulated_gpu() else { return };
        let x = gpu.upload(&halves(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]), 2, 3).unwrap();
        add_bias(&x, &gpu.upload(&[0.5, -1.0, 2.0], 1, 3).unwrap()).unwrap();
        assert_eq!(x.read().unwrap(), halves(&[1.5, 1.0, 5.0, 4.5, 4.0, 8.0]));
    }
}
