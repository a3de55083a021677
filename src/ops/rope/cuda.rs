//! Rotary position embedding on a GPU; see `rope.cu`.

use super::{Direction, RopeTable};
use crate::error::Result;
use crate::ops::gpu::{count, Buffer, Gpu};
use half::bf16;

/// A [`RopeTable`] in GPU memory.
pub struct GpuRopeTable {
    cosines: Buffer<f32>,
    sines: Buffer<f32>,
}

impl GpuRopeTable {
    /// Copies the positions that the table has now.
    pub fn new(gpu: &Gpu, table: &RopeTable) -> Result<GpuRopeTable> {
        let (positions, half) = (table.positions, table.inv_freq.len());
        Ok(GpuRopeTable {
            cosines: gpu.upload(&table.cos, positions, half)?,
            sines: gpu.upload(&table.sin, positions, half)?,
        })
    }

    /// Number of positions.
    pub fn positions(&self) -> usize {
        self.cosines.rows()
    }
}

/// Turns every head of `x [T, heads · D]` in place; row `t` stands at `positions[t]`, which the table must hold.
pub fn apply(
    x: &Buffer<bf16>,
    heads: usize,
    positions: &Buffer<u32>,
    table: &GpuRopeTable,
    direction: Direction,
) -> Result<()> {
    let half = table.cosines.cols();
    assert!(x.cols() == heads * 2 * half && positions.len() == x.rows());
    let sign = if direction == Direction::Forward { 1.0f32 } else { -1.0 };
    let (heads, half) = (count(heads)? as i32, count(half)? as i32);
    let arguments = [
        x.pointer(),
        positions.pointer(),
        table.cosines.pointer(),
        table.sines.pointer(),
        (x.rows() as i64).into(),
        heads.into(),
        half.into(),
        sign.into(),
    ];
    x.gpu().each("rope_turn", x.len() / 2, &arguments)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::rope::{self as on_cpu, RopeConfig, RopeScaling};
    use crate::ops::testing::{assert_halves, emulated_gpu, halves, normal, through_bf16};

    #[test]
    fn equals_the_cpu_both_ways() {
        let Some(gpu) = emulated_gpu() else { return };
        for (rows, heads, head_dim) in [(1, 1, 2), (7, 3, 16), (65, 4, 64)] {
            let config = RopeConfig { theta: 10_000.0, head_dim, scaling: RopeScaling::Default };
            let table = RopeTable::new(&config, 300);
            let positions: Vec<u32> = (0..rows as u32).map(|row| row * 37 % 300).collect();
            let x = through_bf16(&normal("x", rows * heads * head_dim));
            let (gpu_table, gpu_positions) =
                (GpuRopeTable::new(&gpu, &table).unwrap(), gpu.upload(&positions, rows, 1).unwrap());
            for direction in [Direction::Forward, Direction::Backward] {
                let turned = gpu.upload(&halves(&x), rows, heads * head_dim).unwrap();
                apply(&turned, heads, &gpu_positions, &gpu_table, direction).unwrap();
                let mut expected = x.clone();
                on_cpu::apply(&mut expected, heads, &positions, &table, direction);
                assert_halves("turned", &turned.read().unwrap(), &expected, 1e-6);
            }
        }
    }
}
