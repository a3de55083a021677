//! The kernel of [`super::gemv_nf4`] where all 16 values fit into a register, written once over [`Format`].
//!
//! Each piece has a table of its 16 finished values `round(code · scale)`, which is made in registers right before it is
//! used. Neighbouring rows are taken together, so that x is loaded once for all of them; what lies ahead in memory is fetched
//! in its own order, whatever the rows do. x comes in the order in which the codes fall out of their bytes: of each *unit*
//! first the values of even index, then those of odd index.
//!
//! Invariant: the chains of a sum depend on the number of rows of x alone.

use super::gemv_nf4::{Rounding, PIECE};
use super::kernel::{Dot, Lanes, MOST_ROWS};

/// Bytes ahead of the codes in use that are prefetched: rows follow one another in memory.
pub(super) const AHEAD: usize = 4 << 10;

/// Bytes that a prefetch brings.
const LINE: usize = 64;

/// Of each `N` values first those of even index, then those of odd index.
pub(super) fn split<const N: usize>(from: &[f32], to: &mut [f32]) {
    for (from, to) in from.chunks_exact(N).zip(to.chunks_exact_mut(N)) {
        let (even, odd) = to.split_at_mut(N / 2);
        for ((pair, even), odd) in from.chunks_exact(2).zip(even).zip(odd) {
            (*even, *odd) = (pair[0], pair[1]);
        }
    }
}

/// How codes become words. A unit is the codes of one vector of words of even and one of odd index.
pub(super) trait Format: Lanes {
    /// Units in a piece.
    const UNITS: usize;

    /// Sums that fit into the registers.
    const MOST_SUMS: usize;

    /// The 16 values of a block, ready for lookups.
    type Table: Copy;

    /// The table of a block with this scale.
    ///
    /// # Safety
    /// The instruction set is available.
    unsafe fn table(scale: f32, rounding: Rounding) -> Self::Table;

    /// The words of even and of odd index of a unit.
    ///
    /// # Safety
    /// The bytes of the unit are readable, and the instruction set is available.
    unsafe fn look_up(bytes: *const u8, table: Self::Table) -> [Self::Vector; 2];

    /// Asks for a cache line, which may lie anywhere.
    fn prefetch(bytes: *const u8);
}

/// Sums that one row of x is split into: with few rows of x, more chains hide the latency of the multiply-add.
pub(super) const fn chains(inputs: usize) -> usize {
    if inputs <= 2 {
        4
    } else {
        1
    }
}

/// The sum of the chains that `inputs` rows of x are split into.
///
/// # Safety
/// The instruction set is available.
#[inline(always)]
pub(super) unsafe fn total<L: Lanes>(parts: [L::Vector; 4], inputs: usize) -> f32 {
    // SAFETY: by contract.
    unsafe {
        L::total(match chains(inputs) {
            1 => parts[0],
            _ => L::add(L::add(parts[0], parts[1]), L::add(parts[2], parts[3])),
        })
    }
}

/// `R` neighbouring rows of codes times `T` rows of x. The chains of a sum depend on T alone.
///
/// # Safety
/// As [`super::gemv_nf4::RowsFn`] for `R` rows.
#[inline(always)]
unsafe fn rows_at_once<F: Format, const R: usize, const T: usize>(
    codes: *const u8,
    scales: &[f32],
    rounding: Rounding,
    dot: &Dot,
    sums: &mut [[f32; MOST_ROWS]],
) {
    let chains = chains(T);
    let pieces = scales.len() / R;
    let mut ahead = codes.wrapping_add(AHEAD);
    // SAFETY: the caller vouches for a whole row of codes for each `pieces` scales, and as many words of x.
    unsafe {
        let mut parts = [[[F::zero(); 4]; T]; R];
        macro_rules! piece {
            ($piece:expr, $first_unit:expr) => {
                let mut tables = [F::table(*scales.get_unchecked($piece), rounding); R];
                for (r, table) in tables.iter_mut().enumerate().skip(1) {
                    *table = F::table(*scales.get_unchecked(r * pieces + $piece), rounding);
                }
                for unit in 0..F::UNITS {
                    let offset = ($piece * F::UNITS + unit) * (PIECE / 2 / F::UNITS);
                    // No closure here: it would not inherit the instruction set.
                    let mut words = [[F::zero(); 2]; R];
                    for (r, words) in words.iter_mut().enumerate() {
                        *words = F::look_up(codes.add(r * pieces * PIECE / 2 + offset), tables[r]);
                    }
                    let x = dot.b.add(($piece * F::UNITS + unit) * 2 * F::WIDTH);
                    for t in 0..T {
                        for parity in 0..2 {
                            let x = F::load(x.add(t * dot.b_row + F::WIDTH * parity));
                            let chain = (2 * ($first_unit + unit) + parity) % chains;
                            for r in 0..R {
                                parts[r][t][chain] = F::multiply_add(words[r][parity], x, parts[r][t][chain]);
                            }
                        }
                    }
                }
            };
        }
        let even = pieces & !1;
        for two in (0..even).step_by(2) {
            // Two pieces of a row are a cache line.
            for line in 0..R {
                F::prefetch(ahead.wrapping_add(line * LINE));
            }
            ahead = ahead.wrapping_add(R * LINE);
            piece!(two, 0);
            piece!(two + 1, F::UNITS);
        }
        if even < pieces {
            F::prefetch(ahead);
            F::prefetch(ahead.wrapping_add(R * PIECE / 2));
            piece!(even, 0);
        }
        for (sums, parts) in sums.iter_mut().zip(&parts) {
            for (sum, &parts) in sums.iter_mut().zip(parts) {
                *sum = total::<F>(parts, T);
            }
        }
    }
}

/// All rows of a batch: as many together as the registers have sums for, at most four.
///
/// # Safety
/// As [`super::gemv_nf4::RowsFn`].
#[inline(always)]
pub(super) unsafe fn batch<F: Format, const T: usize>(
    codes: *const u8,
    scales: &[f32],
    rounding: Rounding,
    dot: &Dot,
    sums: &mut [[f32; MOST_ROWS]],
) {
    let pieces = scales.len() / sums.len().max(1);
    let fitting = F::MOST_SUMS / (T * chains(T));
    let at_once = if fitting >= 4 { 4 } else { fitting.clamp(1, 2) };
    let chunks = scales.chunks(at_once * pieces).zip(sums.chunks_mut(at_once));
    for (chunk, (scales, sums)) in chunks.enumerate() {
        // SAFETY: passed on; the codes of `at_once` rows lie behind one another.
        unsafe {
            let mut codes = codes.add(chunk * at_once * pieces * PIECE / 2);
            if fitting >= 4 && sums.len() == 4 {
                rows_at_once::<F, 4, T>(codes, scales, rounding, dot, sums);
                continue;
            }
            if fitting >= 2 && sums.len() == 2 {
                rows_at_once::<F, 2, T>(codes, scales, rounding, dot, sums);
                continue;
            }
            for (scales, sums) in scales.chunks(pieces).zip(sums.chunks_mut(1)) {
                rows_at_once::<F, 1, T>(codes, scales, rounding, dot, sums);
                codes = codes.add(pieces * PIECE / 2);
            }
        }
    }
}
