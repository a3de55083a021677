//! The buffers of the training step: row-major f32 matrices in recycled, aligned memory.
//!
//! Invariant: after the first step of a given shape no memory is requested from the system; a dropped [`Matrix`] goes
//! back to its [`Arena`] and is handed out again. Contents of a fresh matrix are unspecified (but initialised) unless
//! `zeros` was asked for. Views ([`MatRef`], [`MatMut`]) carry a row stride, so a group of columns is a view too.
//! Where a matrix lies is decided by [`Space`]; memory is anonymous mappings, whose pages exist once they are written.

use super::space::{Place, Space, HUGE_PAGE};
use memmap2::{MmapOptions, MmapRaw};
use std::alloc::{handle_alloc_error, Layout};
use std::ops::{Deref, DerefMut, Range};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The memory of one region, zero when it was made.
struct Region {
    map: MmapRaw,
    /// Bytes before the first one that is used: it starts at a huge page.
    skipped: usize,
}

impl Region {
    fn new(bytes: usize) -> Region {
        let huge = bytes >= HUGE_PAGE;
        let length = if huge { bytes + HUGE_PAGE } else { bytes };
        let Ok(map) = MmapOptions::new().len(length).no_reserve_swap().map_anon() else {
            handle_alloc_error(Layout::from_size_align(bytes, 64).unwrap_or(Layout::new::<u8>()))
        };
        let map = MmapRaw::from(map);
        let skipped = if huge { map.as_mut_ptr().align_offset(HUGE_PAGE) } else { 0 };
        #[cfg(target_os = "linux")]
        if huge {
            // Without huge pages it is only slower.
            let _ = map.advise_range(memmap2::Advice::HugePage, skipped, bytes);
        }
        Region { map, skipped }
    }

    /// The byte at `offset`, which must lie in the region.
    fn at(&self, offset: usize) -> NonNull<f32> {
        assert!(self.skipped + offset < self.map.len());
        // SAFETY: in bounds by the assertion.
        let pointer = unsafe { self.map.as_mut_ptr().add(self.skipped + offset) };
        NonNull::new(pointer.cast()).unwrap_or(NonNull::dangling())
    }

    /// Gives the pages of a range that nobody uses back to the system; they read as zeros afterwards.
    fn release(&self, range: Range<usize>) {
        #[cfg(unix)]
        // SAFETY: nobody holds a reference into the range, and any contents are fit for what is lent next.
        let _ = unsafe {
            let advice = memmap2::UncheckedAdvice::DontNeed;
            self.map.unchecked_advise_range(advice, self.skipped + range.start, range.len())
        };
        #[cfg(not(unix))]
        let _ = range;
    }
}

#[derive(Default)]
struct State {
    space: Space,
    regions: Vec<Region>,
}

/// Hands out matrices and takes them back. Clones share the same memory.
#[derive(Clone, Default)]
pub struct Arena(Arc<Mutex<State>>);

impl Arena {
    /// An empty arena.
    pub fn new() -> Arena {
        Arena::default()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A `[rows, cols]` matrix with unspecified contents.
    pub fn matrix(&self, rows: usize, cols: usize) -> Matrix {
        let mut state = self.lock();
        let place = state.space.take(rows * cols * size_of::<f32>());
        let missing: Vec<usize> = state.space.region_sizes().skip(state.regions.len()).collect();
        state.regions.extend(missing.into_iter().map(Region::new));
        let memory = state.regions[place.region].at(place.start);
        Matrix { rows, cols, memory, place: Some(place), arena: self.clone() }
    }

    /// A `[rows, cols]` matrix of zeros.
    pub fn zeros(&self, rows: usize, cols: usize) -> Matrix {
        let mut matrix = self.matrix(rows, cols);
        matrix.fill(0.0);
        matrix
    }

    /// Bytes in matrices that exist now.
    pub fn live_bytes(&self) -> usize {
        self.lock().space.live()
    }

    /// Largest value that [`Arena::live_bytes`] has had.
    pub fn peak_bytes(&self) -> usize {
        self.lock().space.peak()
    }

    /// Bytes of memory behind the arena: what its matrices have ever used, and the holes between them.
    pub fn touched_bytes(&self) -> usize {
        self.lock().space.touched()
    }

    /// Gives memory that no matrix uses back to the system.
    pub fn trim(&self) {
        let State { space, regions } = &mut *self.lock();
        space.trim(|region, range| regions[region].release(range));
    }
}

/// An owned `[rows, cols]` f32 matrix, row-major and contiguous; 64-byte aligned.
pub struct Matrix {
    rows: usize,
    cols: usize,
    memory: NonNull<f32>,
    /// Always there until the matrix is dropped.
    place: Option<Place>,
    arena: Arena,
}

// SAFETY: a matrix alone owns its range of the arena's memory, which the arena it holds keeps mapped.
unsafe impl Send for Matrix {}
// SAFETY: shared access only reads.
unsafe impl Sync for Matrix {}

impl Matrix {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// One row.
    pub fn row(&self, row: usize) -> &[f32] {
        &self[row * self.cols..(row + 1) * self.cols]
    }

    /// The whole matrix as a view.
    pub fn view(&self) -> MatRef<'_> {
        MatRef::new(self, self.rows, self.cols)
    }

    /// The whole matrix as a mutable view.
    pub fn view_mut(&mut self) -> MatMut<'_> {
        let (rows, cols) = (self.rows, self.cols);
        MatMut::new(self, rows, cols)
    }
}

impl Deref for Matrix {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        // SAFETY: the place holds at least rows*cols f32, initialised (mapped as zeros), borrowed with self.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr(), self.rows * self.cols) }
    }
}

impl DerefMut for Matrix {
    fn deref_mut(&mut self) -> &mut [f32] {
        // SAFETY: as in deref; the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.memory.as_ptr(), self.rows * self.cols) }
    }
}

impl Drop for Matrix {
    fn drop(&mut self) {
        if let Some(place) = self.place.take() {
            self.arena.lock().space.give(place);
        }
    }
}

/// Values from one row of `length` to the next so that rows fall into different sets of the caches: an odd number of cache
/// lines. Rows of 49152 values would else share the same few sets, and products that read some rows at once would find
/// none of them there.
pub fn odd_stride(length: usize) -> usize {
    const LINE: usize = 16;
    (length.div_ceil(LINE) | 1) * LINE
}

/// A read-only `[rows, cols]` view; row `i` starts at `data[i * stride]`.
#[derive(Clone, Copy)]
pub struct MatRef<'a> {
    /// From the first element of the view on.
    pub data: &'a [f32],
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub cols: usize,
    /// Distance between the starts of two rows, at least `cols`.
    pub stride: usize,
}

impl<'a> MatRef<'a> {
    /// A contiguous `[rows, cols]` view of a slice of exactly that size.
    pub fn new(data: &'a [f32], rows: usize, cols: usize) -> MatRef<'a> {
        assert_eq!(data.len(), rows * cols, "a [{rows}, {cols}] view of {} values", data.len());
        MatRef { data, rows, cols, stride: cols }
    }

    /// One row.
    pub fn row(&self, row: usize) -> &'a [f32] {
        &self.data[row * self.stride..row * self.stride + self.cols]
    }

    /// A group of columns.
    pub fn columns(&self, range: Range<usize>) -> MatRef<'a> {
        assert!(range.end <= self.cols && range.start <= range.end);
        let end = self.data.len().min(range.start);
        let data = if self.rows == 0 { &self.data[end..] } else { &self.data[range.start..] };
        MatRef { data, rows: self.rows, cols: range.len(), stride: self.stride }
    }

    /// A group of rows.
    pub fn row_range(&self, range: Range<usize>) -> MatRef<'a> {
        assert!(range.end <= self.rows && range.start <= range.end);
        let start = (range.start * self.stride).min(self.data.len());
        MatRef { data: &self.data[start..], rows: range.len(), cols: self.cols, stride: self.stride }
    }
}

/// A mutable `[rows, cols]` view; row `i` starts at `data[i * stride]`.
pub struct MatMut<'a> {
    /// From the first element of the view on.
    pub data: &'a mut [f32],
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub cols: usize,
    /// Distance between the starts of two rows, at least `cols`.
    pub stride: usize,
}

impl<'a> MatMut<'a> {
    /// A contiguous `[rows, cols]` view of a slice of exactly that size.
    pub fn new(data: &'a mut [f32], rows: usize, cols: usize) -> MatMut<'a> {
        assert_eq!(data.len(), rows * cols, "a [{rows}, {cols}] view of {} values", data.len());
        MatMut { data, rows, cols, stride: cols }
    }

    /// A group of columns.
    pub fn into_columns(self, range: Range<usize>) -> MatMut<'a> {
        assert!(range.end <= self.cols && range.start <= range.end);
        let start = if self.rows == 0 { self.data.len().min(range.start) } else { range.start };
        MatMut { data: &mut self.data[start..], rows: self.rows, cols: range.len(), stride: self.stride }
    }

    /// A read-only view of the same values.
    pub fn as_ref(&self) -> MatRef<'_> {
        MatRef { data: self.data, rows: self.rows, cols: self.cols, stride: self.stride }
    }
}
