//! Rows of NF4 codes times up to eight rows of x at once: the codes are looked up in registers.
//!
//! A row is taken in pieces of 64 values, each with its scale; some rows are taken together, as a batch whose scales are
//! decoded first. The kernels are those of a path (`gemv_nf4_rows.rs` with AVX-512, `gemv_nf4_avx2.rs`) and ask for x in
//! an order of theirs.

use super::gemv::{groups, Order, Put};
use super::kernel::{Dot, MOST_ROWS};
use super::pack_dense::Source;
use super::pack_nf4::ScaleReader;
use super::plan::Cuts;
use crate::device::Compute;
use crate::quant::{Nf4Matrix, SourceDtype};
use std::ops::Range;

/// Values of a piece; every one lies in one block.
pub(super) const PIECE: usize = 64;

/// Whether rows are whole pieces, each in one block.
pub(super) fn has_whole_pieces(matrix: &Nf4Matrix) -> bool {
    matrix.cols.is_multiple_of(PIECE) && matrix.block >= PIECE
}

/// Scales decoded at a time.
const SCALES: usize = 512;

/// Most rows of the weight taken at a time.
const BATCH: usize = 16;

/// How `code · scale` is rounded: to the dtype that was quantised, and then to bf16 where the operands are.
#[derive(Clone, Copy)]
#[cfg_attr(
    not(target_arch = "x86_64"),
    expect(dead_code, reason = "read by kernels, which no other processor has yet")
)]
pub(super) struct Rounding {
    /// What the weight was.
    pub dtype: SourceDtype,
    /// To bf16 in the end.
    pub narrow: bool,
}

impl Rounding {
    /// Whether every value is one of bf16.
    #[cfg(target_arch = "x86_64")]
    pub fn is_bf16(self) -> bool {
        self.narrow || self.dtype == SourceDtype::Bf16
    }
}

/// Products of some neighbouring rows of codes, as many as there are sums, with the rows of x.
///
/// # Safety
/// The scales are those of all pieces of all rows, the codes are readable, and `dot.b` has as many rows and words.
pub(super) type RowsFn =
    unsafe fn(codes: *const u8, scales: &[f32], rounding: Rounding, dot: &Dot, sums: &mut [[f32; MOST_ROWS]]);

/// How kernels want x.
#[derive(Clone, Copy)]
#[cfg_attr(
    not(target_arch = "x86_64"),
    expect(dead_code, reason = "made by kernels, which no other processor has yet")
)]
pub(super) enum Input {
    /// As words, in an order of theirs.
    Ordered(Order),
    /// As this function makes it.
    Made {
        /// Fills all words.
        make: fn(x: &[f32], to: &mut [f32]),
        /// Words of each piece.
        words: usize,
    },
}

/// What a path offers for this form.
pub(super) struct Functions {
    /// Products by rows of x - 1.
    pub rows: &'static [RowsFn],
    /// What becomes of x.
    pub input: Input,
    /// Whether weights that were quantised from such values can be multiplied so.
    pub suits: fn(SourceDtype) -> bool,
}

/// A weight with the functions for it.
#[derive(Clone, Copy)]
pub(super) struct Fused<'a> {
    matrix: &'a Nf4Matrix,
    scales: ScaleReader<'a>,
    functions: &'static Functions,
    rounding: Rounding,
    groups: Cuts,
    /// The scale of each piece, if they are kept.
    kept: Option<&'a [f32]>,
}

impl<'a> Fused<'a> {
    /// With these functions, if they suit the weight, for `count` rows of x.
    pub fn new(
        source: &Source<'_>,
        functions: Option<&'static Functions>,
        matrix: &'a Nf4Matrix,
        count: usize,
    ) -> Option<Fused<'a>> {
        let functions = functions.filter(|functions| has_whole_pieces(matrix) && (functions.suits)(matrix.dtype))?;
        let rounding = Rounding { dtype: matrix.dtype, narrow: source.compute == Compute::Bf16 };
        Some(Fused { matrix, scales: ScaleReader::new(matrix), functions, rounding, groups: groups(count), kept: None })
    }

    /// The same with the scale of each piece.
    pub fn with(self, kept: &'a [f32]) -> Fused<'a> {
        assert!(kept.len() == self.matrix.len() / PIECE);
        Fused { kept: Some(kept), ..self }
    }

    /// What x must have become.
    pub fn input(&self) -> Input {
        self.functions.input
    }

    /// Sums of some rows of the weight with the rows of x.
    ///
    /// # Safety
    /// `dot.b` has as many rows as this was made for, each of them a row of x as [`Fused::input`] says.
    pub unsafe fn sums(&self, rows: Range<usize>, dot: Dot, put: Put<'_>) {
        let (cols, pieces) = (self.matrix.cols, self.matrix.cols / PIECE);
        let batch = (SCALES / pieces.max(1)).clamp(1, BATCH);
        let (mut few, mut many) = ([0.0; SCALES], Vec::new());
        let scales = if pieces <= SCALES {
            &mut few[..]
        } else {
            many.resize(pieces, 0.0);
            &mut many[..]
        };
        let mut sums = [[0.0; MOST_ROWS]; BATCH];
        for first in rows.clone().step_by(batch) {
            let count = batch.min(rows.end - first);
            let (start, end) = (first * cols, (first + count) * cols);
            let scales = match self.kept {
                Some(kept) => &kept[first * pieces..(first + count) * pieces],
                None => {
                    let scales = &mut scales[..count * pieces];
                    self.scales.fill(start, PIECE, self.matrix.block, scales);
                    &*scales
                }
            };
            let codes = &self.matrix.codes[start / 2..end / 2];
            for group in 0..self.groups.count {
                let inputs = self.groups.get(group);
                let dot = Dot { b: dot.b.wrapping_add(inputs.start * dot.b_row), ..dot };
                let products = self.functions.rows[inputs.len() - 1];
                // SAFETY: the path is available, the codes are whole rows with a scale for each piece, and the caller
                // vouches for x.
                unsafe { products(codes.as_ptr(), scales, self.rounding, &dot, &mut sums[..count]) };
                put(first, inputs, &sums[..count]);
            }
        }
    }
}
