//! One row of NF4 codes times up to eight rows of x, with AVX-512: the codes are looked up in registers.
//!
//! A row is taken in pieces of 64 values. Each has a table of its 16 finished values `round(code · scale)`, and all
//! tables of a row are made first, which leaves the loop over the pieces nothing but lookups and multiply-adds. x comes
//! in the order in which the codes fall out of their bytes: of each 32 values (64 for pairs) first those with an even
//! index, then those with an odd one.

use super::avx512::Avx512;
use super::avx512bf16::{narrow, Pairs};
use super::gemv::{groups, Put};
use super::kernel::{Dot, Kernels, Lanes, MOST_ROWS};
use super::pack_dense::Source;
use super::pack_nf4::ScaleReader;
use super::pack_nf4_avx512::table;
use super::pack_nf4_bf16::before_bf16;
use super::plan::Cuts;
use crate::device::{Compute, CpuPath};
use crate::quant::{Nf4Matrix, SourceDtype};
use std::arch::x86_64::*;
use std::ops::Range;

/// Values of a piece; every one lies in one block.
const PIECE: usize = 64;

/// Tables made at a time, so that they stay in the L1 cache: 8 KB.
const TABLES: usize = 128;

/// Most rows of the weight taken at a time.
const BATCH: usize = 16;

/// Bytes ahead of the codes in use that are prefetched: rows follow one another in memory.
const AHEAD: usize = 8 << 10;

/// Writes the table of each piece.
type TablesFn = unsafe fn(scales: &[f32], dtype: SourceDtype, tables: &mut [Table]);

/// Products of some neighbouring rows of codes, as many as there are sums, with the rows of x.
///
/// # Safety
/// The tables are those of all pieces of all rows, the codes are readable, and `dot.b` has as many rows and words.
type RowsFn = unsafe fn(codes: *const u8, tables: &[Table], dot: &Dot, sums: &mut [[f32; MOST_ROWS]]);

/// 16 f32, or twice the same 16 bf16: a lookup of 16-bit words takes five bits, and the fifth is the neighbour's.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Table([f32; 16]);

/// The functions for a weight and a number of rows of x.
#[derive(Clone, Copy)]
pub(super) struct Fused<'a> {
    matrix: &'a Nf4Matrix,
    scales: ScaleReader<'a>,
    tables: TablesFn,
    rows: &'static [RowsFn; MOST_ROWS],
    groups: Cuts,
}

impl<'a> Fused<'a> {
    /// The functions, if this path and weight have some.
    pub fn new(source: &Source<'_>, kernels: &Kernels, matrix: &'a Nf4Matrix, count: usize) -> Option<Fused<'a>> {
        static WORDS: [RowsFn; MOST_ROWS] =
            [words::<1>, words::<2>, words::<3>, words::<4>, words::<5>, words::<6>, words::<7>, words::<8>];
        static PAIRS: [RowsFn; MOST_ROWS] =
            [pairs::<1>, pairs::<2>, pairs::<3>, pairs::<4>, pairs::<5>, pairs::<6>, pairs::<7>, pairs::<8>];
        let whole = matrix.cols.is_multiple_of(PIECE) && matrix.block >= PIECE;
        if source.path < CpuPath::Avx512 || !whole {
            return None;
        }
        let (scales, groups) = (ScaleReader::new(matrix), groups(count));
        if kernels.pairs.is_some() {
            Some(Fused { matrix, scales, tables: tables_of_pairs, rows: &PAIRS, groups })
        } else if source.compute == Compute::F32 {
            Some(Fused { matrix, scales, tables: tables_of_words, rows: &WORDS, groups })
        } else {
            None
        }
    }

    /// Sums of some rows of the weight with the rows of x.
    ///
    /// # Safety
    /// `dot.b` has as many rows as this was made for, each of them a row of x in [`order_of_codes`].
    pub unsafe fn sums(&self, rows: Range<usize>, dot: Dot, put: Put<'_>) {
        let cols = self.matrix.cols;
        let batch = (TABLES / (cols / PIECE).max(1)).clamp(1, BATCH);
        let mut scales = vec![0.0; batch * cols / PIECE];
        let mut tables = vec![Table([0.0; 16]); batch * cols / PIECE];
        let mut sums = [[0.0; MOST_ROWS]; BATCH];
        for first in rows.clone().step_by(batch) {
            let count = batch.min(rows.end - first);
            let (start, end) = (first * cols, (first + count) * cols);
            let (scales, tables) = (&mut scales[..count * cols / PIECE], &mut tables[..count * cols / PIECE]);
            self.scales.fill(start, PIECE, self.matrix.block, scales);
            let codes = &self.matrix.codes[start / 2..end / 2];
            // SAFETY: the path is available (also below).
            unsafe { (self.tables)(scales, self.matrix.dtype, tables) };
            for group in 0..self.groups.count {
                let inputs = self.groups.get(group);
                let dot = Dot { b: dot.b.wrapping_add(inputs.start * dot.b_row), ..dot };
                // SAFETY: the codes are whole rows with a table for each piece, and the caller vouches for x.
                unsafe { self.rows[inputs.len() - 1](codes.as_ptr(), tables, &dot, &mut sums[..count]) };
                sums[..count]
                    .iter()
                    .enumerate()
                    .for_each(|(i, sums)| put(first + i, inputs.start, &sums[..inputs.len()]));
            }
        }
    }
}

/// Reorders a row of x for [`Fused::sums`].
pub(super) fn order_of_codes(from: &[f32], pairs: bool, to: &mut [f32]) {
    fn split<const N: usize>(from: &[f32], to: &mut [f32]) {
        for (from, to) in from.chunks_exact(N).zip(to.chunks_exact_mut(N)) {
            let (even, odd) = to.split_at_mut(N / 2);
            for ((pair, even), odd) in from.chunks_exact(2).zip(even).zip(odd) {
                (*even, *odd) = (pair[0], pair[1]);
            }
        }
    }
    if pairs {
        split::<64>(from, to);
    } else {
        split::<32>(from, to);
    }
}

/// # Safety
/// AVX-512 F is available.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn tables_of_words(scales: &[f32], dtype: SourceDtype, tables: &mut [Table]) {
    for (&scale, to) in scales.iter().zip(tables) {
        // SAFETY: a table has 16 words.
        unsafe { _mm512_store_ps(to.0.as_mut_ptr(), table(scale, dtype)) };
    }
}

/// # Safety
/// AVX-512 BF16 is available.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
unsafe fn tables_of_pairs(scales: &[f32], dtype: SourceDtype, tables: &mut [Table]) {
    for (&scale, to) in scales.iter().zip(tables) {
        let values = table(scale, before_bf16(dtype));
        // SAFETY: a table has 64 bytes.
        unsafe { _mm512_store_si512(to.0.as_mut_ptr().cast(), narrow(values, values)) };
    }
}

/// How codes become words, and words sums. A *unit* is the codes of 16 words of even and 16 of odd index.
trait Format {
    /// Units in a piece.
    const UNITS: usize;

    /// The words of even and of odd index of a unit.
    ///
    /// # Safety
    /// The bytes of the unit are readable, and the instruction set is available (also below).
    unsafe fn look_up(bytes: *const u8, table: &Table) -> [__m512; 2];

    /// `a · b + sum`.
    ///
    /// # Safety
    /// As above.
    unsafe fn multiply_add(a: __m512, b: __m512, sum: __m512) -> __m512;
}

struct Words;

impl Format for Words {
    const UNITS: usize = 2;

    #[inline(always)]
    unsafe fn look_up(bytes: *const u8, table: &Table) -> [__m512; 2] {
        // SAFETY: 16 bytes by contract; a table has 16 words.
        unsafe {
            let table = _mm512_load_ps(table.0.as_ptr());
            let odd = _mm512_cvtepu8_epi32(_mm_loadu_si128(bytes.cast()));
            [_mm512_permutexvar_ps(_mm512_srli_epi32::<4>(odd), table), _mm512_permutexvar_ps(odd, table)]
        }
    }

    #[inline(always)]
    unsafe fn multiply_add(a: __m512, b: __m512, sum: __m512) -> __m512 {
        // SAFETY: by contract.
        unsafe { Avx512::multiply_add(a, b, sum) }
    }
}

impl Format for Pairs {
    const UNITS: usize = 1;

    #[inline(always)]
    unsafe fn look_up(bytes: *const u8, table: &Table) -> [__m512; 2] {
        // SAFETY: 32 bytes by contract; a table has 64 bytes.
        unsafe {
            let table = _mm512_load_si512(table.0.as_ptr().cast());
            let odd = _mm512_cvtepu8_epi16(_mm256_loadu_si256(bytes.cast()));
            let even = _mm512_permutexvar_epi16(_mm512_srli_epi16::<4>(odd), table);
            [_mm512_castsi512_ps(even), _mm512_castsi512_ps(_mm512_permutexvar_epi16(odd, table))]
        }
    }

    #[inline(always)]
    unsafe fn multiply_add(a: __m512, b: __m512, sum: __m512) -> __m512 {
        // SAFETY: by contract.
        unsafe { <Pairs as Lanes>::multiply_add(a, b, sum) }
    }
}

/// `R` neighbouring rows of codes times `T` rows of x. The chains of a sum depend on T alone.
///
/// # Safety
/// As [`RowsFn`] for `R` rows.
#[inline(always)]
unsafe fn rows_at_once<F: Format, const R: usize, const T: usize>(
    codes: *const u8,
    tables: &[Table],
    dot: &Dot,
    sums: &mut [[f32; MOST_ROWS]],
) {
    // With few rows of x, more chains hide the latency of the multiply-add.
    let chains = if T <= 2 { 4 } else { 1 };
    let pieces = tables.len() / R;
    // SAFETY: the caller vouches for a whole row of codes for each `pieces` tables, and as many words of x.
    unsafe {
        let mut parts = [[[_mm512_setzero_ps(); 4]; T]; R];
        macro_rules! piece {
            ($piece:expr, $first_unit:expr) => {
                for unit in 0..F::UNITS {
                    let offset = ($piece * F::UNITS + unit) * (PIECE / 2 / F::UNITS);
                    // No closure here: it would not inherit the instruction set.
                    let mut words = [[_mm512_setzero_ps(); 2]; R];
                    for (r, words) in words.iter_mut().enumerate() {
                        let bytes = codes.add(r * pieces * PIECE / 2 + offset);
                        _mm_prefetch::<_MM_HINT_T0>(bytes.wrapping_add(AHEAD).cast());
                        *words = F::look_up(bytes, tables.get_unchecked(r * pieces + $piece));
                    }
                    let x = dot.b.add(($piece * F::UNITS + unit) * 32);
                    for t in 0..T {
                        for parity in 0..2 {
                            let x = _mm512_loadu_ps(x.add(t * dot.b_row + 16 * parity));
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
            piece!(two, 0);
            piece!(two + 1, F::UNITS);
        }
        if even < pieces {
            piece!(even, 0);
        }
        for (sums, parts) in sums.iter_mut().zip(&parts) {
            for (sum, parts) in sums.iter_mut().zip(parts) {
                let total = match chains {
                    1 => parts[0],
                    _ => _mm512_add_ps(_mm512_add_ps(parts[0], parts[1]), _mm512_add_ps(parts[2], parts[3])),
                };
                *sum = _mm512_reduce_add_ps(total);
            }
        }
    }
}

/// All rows of a batch: in twos where x has several rows, so that each of them is loaded half as often.
///
/// # Safety
/// As [`RowsFn`].
#[inline(always)]
unsafe fn batch<F: Format, const T: usize>(
    codes: *const u8,
    tables: &[Table],
    dot: &Dot,
    sums: &mut [[f32; MOST_ROWS]],
) {
    let pieces = tables.len() / sums.len().max(1);
    let at_once = if T <= 2 { 1 } else { 2 };
    let chunks = tables.chunks(at_once * pieces).zip(sums.chunks_mut(at_once));
    for (chunk, (tables, sums)) in chunks.enumerate() {
        // SAFETY: passed on; the codes of `at_once` rows lie behind one another.
        unsafe {
            let codes = codes.add(chunk * at_once * pieces * PIECE / 2);
            if sums.len() == 2 {
                rows_at_once::<F, 2, T>(codes, tables, dot, sums);
            } else {
                rows_at_once::<F, 1, T>(codes, tables, dot, sums);
            }
        }
    }
}

/// # Safety
/// As [`RowsFn`]; AVX-512 F is available.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn words<const T: usize>(codes: *const u8, tables: &[Table], dot: &Dot, sums: &mut [[f32; MOST_ROWS]]) {
    // SAFETY: passed on.
    unsafe { batch::<Words, T>(codes, tables, dot, sums) }
}

/// # Safety
/// As [`RowsFn`]; AVX-512 BF16 is available.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
unsafe fn pairs<const T: usize>(codes: *const u8, tables: &[Table], dot: &Dot, sums: &mut [[f32; MOST_ROWS]]) {
    // SAFETY: passed on.
    unsafe { batch::<Pairs, T>(codes, tables, dot, sums) }
}
