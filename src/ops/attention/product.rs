//! Small dense products on tiles: `c (+)= a · b`, the inner loop of every part of attention.
//!
//! Legend: M rows of c, N columns (a multiple of [`PADDING`]), K the reduction.
//! `a` is read one value at a time and broadcast, at any strides, so a transposed `a` costs nothing; `b` and `c` are read
//! by registers along their rows. A register tile of c stays in registers over the whole of K.
//!
//! With [`Arithmetic`] of pairs, a value of `a` or `b` is a word of two bf16 and K counts words; c stays f32.

use super::pairs::Arithmetic;
use super::simd::{dispatch, dispatch_pairs, Kernel, Vector};

/// Row lengths of `b` and `c` are multiples of this: the widest register of any path.
pub(super) const PADDING: usize = 16;

/// Left operand: element (m, k) is `data[m * row + k * step]`.
#[derive(Clone, Copy)]
pub(super) struct Left<'a> {
    pub data: &'a [f32],
    pub row: usize,
    pub step: usize,
}

impl Left<'_> {
    /// The same without the first rows.
    pub fn skip_rows(self, count: usize) -> Self {
        Left { data: &self.data[count * self.row..], ..self }
    }
}

/// Right operand: row k starts at `data[k * row]`.
#[derive(Clone, Copy)]
pub(super) struct Right<'a> {
    pub data: &'a [f32],
    pub row: usize,
}

/// Result: row m starts at `data[m * row]`.
pub(super) struct Target<'a> {
    pub data: &'a mut [f32],
    pub row: usize,
    pub before: Before<'a>,
}

/// What becomes of the values that the result had before.
#[derive(Clone, Copy)]
pub(super) enum Before<'a> {
    Drop,
    Keep,
    /// Row m is multiplied by the m-th value.
    Scale(&'a [f32]),
}

/// M, N, K.
#[derive(Clone, Copy)]
pub(super) struct Size {
    pub rows: usize,
    pub columns: usize,
    pub depth: usize,
}

/// `c (+)= a · b`.
pub(super) fn product(arithmetic: Arithmetic, size: Size, a: Left<'_>, b: Right<'_>, c: Target<'_>) {
    let Size { rows, columns, depth } = size;
    if rows == 0 || columns == 0 {
        return;
    }
    assert!(columns.is_multiple_of(PADDING) && depth > 0, "a product of {rows} x {columns} x {depth}");
    assert!((rows - 1) * a.row + (depth - 1) * a.step < a.data.len());
    assert!((depth - 1) * b.row + columns <= b.data.len());
    assert!((rows - 1) * c.row + columns <= c.data.len());
    assert!(!matches!(c.before, Before::Scale(factors) if factors.len() < rows));
    let product = Product { size, a, b, c };
    #[cfg(target_arch = "x86_64")]
    if arithmetic.has_tiles() {
        return super::tiles::product(product);
    }
    match arithmetic.is_pairs() {
        true => dispatch_pairs(arithmetic.path, product),
        false => dispatch(arithmetic.path, product),
    }
}

/// A product whose sizes were checked.
pub(super) struct Product<'a> {
    pub size: Size,
    pub a: Left<'a>,
    pub b: Right<'a>,
    pub c: Target<'a>,
}

/// The pointers of one register tile.
#[derive(Clone, Copy)]
struct Corner<'a> {
    a: *const f32,
    a_row: usize,
    a_step: usize,
    b: *const f32,
    b_row: usize,
    c: *mut f32,
    c_row: usize,
    depth: usize,
    before: Before<'a>,
    /// The tile's first row within the result.
    first_row: usize,
}

impl Kernel for Product<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let Product { size, a, b, c } = self;
        let registers = size.columns / V::LANES;
        let panels = registers.div_ceil(V::TILE_COLUMNS);
        let mut first = 0;
        for panel in 0..panels {
            // Even widths: 5 registers are 3 + 2, because a tile one register wide cannot hide the latency.
            let width = (registers - first).div_ceil(panels - panel);
            let mut row = 0;
            while row < size.rows {
                let height = (size.rows - row).min(V::TILE_ROWS);
                let column = first * V::LANES;
                // SAFETY: `product` has checked that all rows, columns and steps lie inside the slices.
                unsafe {
                    let corner = Corner {
                        a: a.data.as_ptr().add(row * a.row),
                        a_row: a.row,
                        a_step: a.step,
                        b: b.data.as_ptr().add(column),
                        b_row: b.row,
                        c: c.data.as_mut_ptr().add(row * c.row + column),
                        c_row: c.row,
                        depth: size.depth,
                        before: c.before,
                        first_row: row,
                    };
                    match width {
                        1 => tile_of_width::<V, 1>(corner, height),
                        2 => tile_of_width::<V, 2>(corner, height),
                        3 => tile_of_width::<V, 3>(corner, height),
                        _ => tile_of_width::<V, 4>(corner, height),
                    }
                }
                row += height;
            }
            first += width;
        }
    }
}

/// # Safety
/// The tile lies inside the operands; the CPU has `V`.
#[inline(always)]
unsafe fn tile_of_width<V: Vector, const WIDTH: usize>(corner: Corner<'_>, height: usize) {
    if WIDTH > V::TILE_COLUMNS {
        return; // Never reached; keeps tiles that a path does not use out of the binary.
    }
    // SAFETY: the caller's contract.
    unsafe {
        match height {
            1 => tile::<V, 1, WIDTH>(corner),
            2 => tile::<V, 2, WIDTH>(corner),
            3 => tile::<V, 3, WIDTH>(corner),
            4 => tile::<V, 4, WIDTH>(corner),
            5 => tile::<V, 5, WIDTH>(corner),
            _ => tile::<V, 6, WIDTH>(corner),
        }
    }
}

/// # Safety
/// The tile lies inside the operands; the CPU has `V`.
#[inline(always)]
unsafe fn tile<V: Vector, const HEIGHT: usize, const WIDTH: usize>(corner: Corner<'_>) {
    if HEIGHT > V::TILE_ROWS {
        return; // As above.
    }
    let Corner { a, a_row, a_step, b, b_row, c, c_row, depth, before, first_row } = corner;
    // SAFETY: the caller's contract covers every address below.
    unsafe {
        let mut sums = [[V::splat(0.0); WIDTH]; HEIGHT];
        if !matches!(before, Before::Drop) {
            for (m, sums) in sums.iter_mut().enumerate() {
                for (v, sum) in sums.iter_mut().enumerate() {
                    *sum = V::load(c.add(m * c_row + v * V::LANES));
                }
            }
        }
        if let Before::Scale(factors) = before {
            for (m, sums) in sums.iter_mut().enumerate() {
                let factor = V::splat(*factors.get_unchecked(first_row + m));
                sums.iter_mut().for_each(|sum| *sum = sum.mul(factor));
            }
        }
        // Rows are reached from every third one, as in the kernels of `ops::gemm`: base, base + row and base + 2 row are
        // addressing modes. The black box keeps the compiler from deriving each row from the one before at every step.
        let mut bases = [a, std::hint::black_box(a.wrapping_add(3 * a_row))];
        let mut b = b;
        for _ in 0..depth {
            let mut right = [V::splat(0.0); WIDTH];
            for (v, right) in right.iter_mut().enumerate() {
                *right = V::load(b.add(v * V::LANES));
            }
            for (m, sums) in sums.iter_mut().enumerate() {
                let left = V::splat(*bases[m / 3].add(m % 3 * a_row));
                for (sum, right) in sums.iter_mut().zip(right) {
                    *sum = left.mul_add(right, *sum);
                }
            }
            bases = [bases[0].wrapping_add(a_step), bases[1].wrapping_add(a_step)];
            b = b.wrapping_add(b_row);
        }
        for (m, sums) in sums.iter().enumerate() {
            for (v, sum) in sums.iter().enumerate() {
                sum.store(c.add(m * c_row + v * V::LANES));
            }
        }
    }
}
