//! Rows of one head as a strided view, and their copies into padded tiles.

use super::pairs::Source;
use super::product::{Left, Right, PADDING};
use super::simd::{dispatch, Kernel, Vector};
use crate::device::CpuPath;
use std::marker::PhantomData;

/// `D` values at `data[row * stride]` for each row: one head of a matrix, or one head's cache.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    pub data: &'a [f32],
    pub stride: usize,
    pub head_dim: usize,
}

impl<'a> Rows<'a> {
    pub fn row(&self, row: usize) -> &'a [f32] {
        &self.data[row * self.stride..row * self.stride + self.head_dim]
    }

    /// `rows` rows from `first` on, to be made words of.
    pub fn source(&self, first: usize, rows: usize) -> Source<'a> {
        Source { data: &self.data[first * self.stride..], rows, length: self.head_dim, stride: self.stride }
    }

    /// Rows from `first` on as the left operand of a product over the head's values.
    pub fn left(&self, first: usize) -> Left<'a> {
        Left { data: &self.data[first * self.stride..], row: self.stride, step: 1 }
    }

    /// Rows from `first` on as the right operand of a product; copied into `tile` if they do not fill whole registers.
    pub fn right<'b>(&self, first: usize, rows: usize, tile: &'b mut [f32]) -> Right<'b>
    where
        'a: 'b,
    {
        if self.head_dim.is_multiple_of(PADDING) {
            return Right { data: &self.data[first * self.stride..], row: self.stride };
        }
        let width = self.head_dim.next_multiple_of(PADDING);
        self.pack(first, rows, width, tile);
        Right { data: tile, row: width }
    }

    /// Copies rows into a tile whose rows are `width` long; what lies beyond `head_dim` becomes zero.
    pub fn pack(&self, first: usize, rows: usize, width: usize, tile: &mut [f32]) {
        for (row, target) in (first..first + rows).zip(tile.chunks_exact_mut(width)) {
            let (values, padding) = target.split_at_mut(self.head_dim);
            values.copy_from_slice(self.row(row));
            padding.fill(0.0);
        }
    }
}

/// Writes `tile[d * width + lane] = scale * data[starts[lane] + d]`; lanes beyond `starts` become zero.
///
/// `tile` has `head_dim` rows of `width` values, `width` being a multiple of [`PADDING`].
pub(super) fn pack_transposed(path: CpuPath, source: Lanes<'_>, scale: f32, width: usize, tile: &mut [f32]) {
    assert!(width.is_multiple_of(PADDING) && source.starts.len() <= width);
    assert!(source.head_dim * width <= tile.len());
    assert!(source.starts.iter().all(|start| start + source.head_dim <= source.data.len()));
    dispatch(path, PackTransposed { source, scale, width, tile });
}

/// Rows of `head_dim` values that start anywhere in `data`.
#[derive(Clone, Copy)]
pub(super) struct Lanes<'a> {
    pub data: &'a [f32],
    pub starts: &'a [usize],
    pub head_dim: usize,
}

struct PackTransposed<'a> {
    source: Lanes<'a>,
    scale: f32,
    width: usize,
    tile: &'a mut [f32],
}

impl Kernel for PackTransposed<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let PackTransposed { source: Lanes { data, starts, head_dim }, scale, width, tile } = self;
        let whole = head_dim / V::LANES * V::LANES;
        for lane in (0..width).step_by(V::LANES) {
            let starts = &starts[lane.min(starts.len())..(lane + V::LANES).min(starts.len())];
            // SAFETY: `pack_transposed` has checked the bounds of every row read and of the tile.
            unsafe {
                for d in (0..whole).step_by(V::LANES) {
                    let mut block = [V::splat(0.0); 16];
                    if starts.len() == V::LANES {
                        // A loop of constant length keeps the block in registers.
                        for (i, row) in block[..V::LANES].iter_mut().enumerate() {
                            *row = V::load(data.as_ptr().add(starts[i] + d)).mul(V::splat(scale));
                        }
                    } else {
                        for (row, start) in block.iter_mut().zip(starts) {
                            *row = V::load(data.as_ptr().add(start + d)).mul(V::splat(scale));
                        }
                    }
                    V::transpose(&mut block);
                    for (i, row) in block[..V::LANES].iter().enumerate() {
                        row.store(tile.as_mut_ptr().add((d + i) * width + lane));
                    }
                }
            }
            for d in whole..head_dim {
                let target = &mut tile[d * width + lane..][..V::LANES];
                target.fill(0.0);
                for (value, start) in target.iter_mut().zip(starts) {
                    *value = data[start + d] * scale;
                }
            }
        }
    }
}

/// A matrix that several tasks write at once, each its own values.
pub(super) struct Shared<'a> {
    pointer: *mut f32,
    length: usize,
    borrow: PhantomData<&'a mut [f32]>,
}

// SAFETY: the only access is `write`, whose callers keep to disjoint ranges.
unsafe impl Send for Shared<'_> {}
// SAFETY: as above.
unsafe impl Sync for Shared<'_> {}

impl<'a> Shared<'a> {
    pub fn new(values: &'a mut [f32]) -> Shared<'a> {
        Shared { pointer: values.as_mut_ptr(), length: values.len(), borrow: PhantomData }
    }

    /// The values from `start` on.
    ///
    /// # Safety
    /// While the returned slice lives, no other slice of these values exists.
    #[allow(clippy::mut_from_ref)] // The point of the type; see the contract.
    pub unsafe fn slice(&self, start: usize, length: usize) -> &mut [f32] {
        assert!(start + length <= self.length);
        // SAFETY: in bounds; exclusive by the caller's contract; the borrow outlives self.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.add(start), length) }
    }
}
