//! The rows of one task: the rotation on the CPU.
//!
//! Invariant: the same bits on every path (see `ops::vector`), and the same as torch's `x·cos + rotate_half(x)·sin`.
//! Reference: the formulas in the operation's header.

use super::{Direction, RopeTable};
use crate::ops::vector::kernel;

kernel! {
    pub(super) fn turn(x: &mut [f32], positions: &[u32], table: &RopeTable, direction: Direction) {
        let half = table.inv_freq().len();
        let features = x.len() / positions.len().max(1);
        let sign = if direction == Direction::Forward { 1.0 } else { -1.0 };
        for (row, &position) in x.chunks_exact_mut(features.max(1)).zip(positions) {
            let (cos, sin) = (table.cos(position as usize), table.sin(position as usize));
            for head in row.chunks_exact_mut(2 * half) {
                let (first, second) = head.split_at_mut(half);
                for (((a, b), &cos), &sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
                    let sin = sign * sin;
                    (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                }
            }
        }
    }
}
