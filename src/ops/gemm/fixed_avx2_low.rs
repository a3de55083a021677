//! What adapters add to the products of [`super::fixed_avx2`], in f32: tiles begin with it, so a result is written once, not
//! once more for its adapter.

use super::avx2;
use super::fixed::LowRank;
use super::fixed_avx2::{COLUMNS, ROWS};
use super::kernel::Tile;
use std::ops::Range;

/// Words of the panels of some adapters.
pub(super) fn words(lows: &[LowRank<'_>]) -> usize {
    lows.iter().map(|low| low.hidden.cols * COLUMNS).sum()
}

/// Makes a panel `[R, 16]` for each adapter. Where the factor is `transposed`, the columns are its rows, and those that it
/// lacks become zeros.
pub(super) fn pack(lows: &[LowRank<'_>], transposed: bool, columns: Range<usize>, mut to: &mut [f32]) {
    for LowRank { hidden, factor } in lows {
        let (panel, rest) = std::mem::take(&mut to).split_at_mut(hidden.cols * COLUMNS);
        to = rest;
        if !transposed {
            for (r, to) in panel.as_chunks_mut::<COLUMNS>().0.iter_mut().enumerate() {
                to.copy_from_slice(&factor.row(r)[columns.clone()]);
            }
            continue;
        }
        panel.fill(0.0);
        for (lane, column) in columns.clone().enumerate() {
            for (r, value) in factor.row(column).iter().enumerate() {
                panel[r * COLUMNS + lane] = *value;
            }
        }
    }
}

/// Adds to the tile of `count` rows, from row `first` on, what the adapters add to it.
pub(super) fn add(
    lows: &[LowRank<'_>],
    mut panels: &[f32],
    (first, count): (usize, usize),
    tile: &mut [[f32; COLUMNS]; ROWS],
) {
    for LowRank { hidden, .. } in lows {
        let panel;
        (panel, panels) = panels.split_at(hidden.cols * COLUMNS);
        let rows = &hidden.data[first * hidden.stride..];
        assert!(rows.len() >= (count - 1) * hidden.stride + hidden.cols && count <= ROWS);
        let product = Tile {
            depth: hidden.cols,
            a: rows.as_ptr(),
            a_row: hidden.stride,
            b: panel.as_ptr(),
            b_depth: COLUMNS,
            c: tile.as_mut_ptr().cast(),
            c_row: COLUMNS,
            last: 0,
            alpha: 1.0,
            accumulate: true,
        };
        // SAFETY: the path has AVX2; the rows and the panel were checked, the tile has room for them.
        unsafe { avx2::F32.run(&[product], count, COLUMNS) };
    }
}
