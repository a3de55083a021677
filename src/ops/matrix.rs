//! The buffers of the training step: row-major f32 matrices in recycled, aligned memory.
//!
//! Invariant: after the first step of a given shape no memory is requested from the system; a dropped [`Matrix`] goes
//! back to its [`Arena`] and is handed out again. Contents of a fresh matrix are unspecified (but initialised) unless
//! `zeros` was asked for. Views ([`MatRef`], [`MatMut`]) carry a row stride, so a group of columns is a view too.

use std::alloc::{alloc_zeroed, dealloc, handle_alloc_error, Layout};
use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut, Range};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

const ALIGNMENT: usize = 64;
const HUGE_PAGE: usize = 2 << 20;

/// One aligned piece of memory, zeroed when it was made.
struct Block {
    pointer: *mut f32,
    layout: Layout,
}

// SAFETY: a Block is owned memory without interior sharing; moving the owner between threads is sound.
unsafe impl Send for Block {}
// SAFETY: shared access to a Block only reads the pointer and layout; data is reached through Matrix's borrows.
unsafe impl Sync for Block {}

impl Block {
    fn new(bytes: usize) -> Block {
        let alignment = if bytes >= HUGE_PAGE { HUGE_PAGE } else { ALIGNMENT };
        let Ok(layout) = Layout::from_size_align(bytes.max(ALIGNMENT), alignment) else {
            handle_alloc_error(Layout::new::<u8>())
        };
        // SAFETY: the layout has a size above zero.
        let pointer = unsafe { alloc_zeroed(layout) };
        if pointer.is_null() {
            handle_alloc_error(layout);
        }
        #[cfg(target_os = "linux")]
        if bytes >= HUGE_PAGE {
            // SAFETY: the range was allocated above; MADV_HUGEPAGE changes no contents and may fail harmlessly.
            unsafe { libc::madvise(pointer.cast(), layout.size(), libc::MADV_HUGEPAGE) };
        }
        Block { pointer: pointer.cast(), layout }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this very layout, freed once.
        unsafe { dealloc(self.pointer.cast(), self.layout) }
    }
}

#[derive(Default)]
struct Pool {
    free: Mutex<BTreeMap<usize, Vec<Block>>>,
    live: AtomicUsize,
    peak: AtomicUsize,
}

/// Hands out matrices and takes them back. Clones share the same memory.
#[derive(Clone, Default)]
pub struct Arena(Arc<Pool>);

impl Arena {
    /// An empty arena.
    pub fn new() -> Arena {
        Arena::default()
    }

    /// A `[rows, cols]` matrix with unspecified contents.
    pub fn matrix(&self, rows: usize, cols: usize) -> Matrix {
        let bytes = (rows * cols * size_of::<f32>()).next_multiple_of(4096);
        let block = self.take(bytes).unwrap_or_else(|| Block::new(bytes));
        let live = self.0.live.fetch_add(block.layout.size(), Ordering::Relaxed) + block.layout.size();
        self.0.peak.fetch_max(live, Ordering::Relaxed);
        Matrix { rows, cols, block: Some(block), pool: self.0.clone() }
    }

    /// A `[rows, cols]` matrix of zeros.
    pub fn zeros(&self, rows: usize, cols: usize) -> Matrix {
        let mut matrix = self.matrix(rows, cols);
        matrix.fill(0.0);
        matrix
    }

    /// The smallest free block that holds `bytes` and wastes at most a quarter of itself.
    fn take(&self, bytes: usize) -> Option<Block> {
        let mut free = self.0.free.lock().unwrap_or_else(PoisonError::into_inner);
        let (&size, blocks) = free.range_mut(bytes..=bytes + bytes / 3).next()?;
        let block = blocks.pop();
        if blocks.is_empty() {
            free.remove(&size);
        }
        block
    }

    /// Bytes in matrices that exist now.
    pub fn live_bytes(&self) -> usize {
        self.0.live.load(Ordering::Relaxed)
    }

    /// Largest value that [`Arena::live_bytes`] has had.
    pub fn peak_bytes(&self) -> usize {
        self.0.peak.load(Ordering::Relaxed)
    }

    /// Gives memory that no matrix uses back to the system.
    pub fn trim(&self) {
        self.0.free.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// An owned `[rows, cols]` f32 matrix, row-major and contiguous; 64-byte aligned.
pub struct Matrix {
    rows: usize,
    cols: usize,
    block: Option<Block>,
    pool: Arc<Pool>,
}

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
        match &self.block {
            // SAFETY: the block holds at least rows*cols initialised f32 and is borrowed with self.
            Some(block) => unsafe { std::slice::from_raw_parts(block.pointer, self.rows * self.cols) },
            None => &[],
        }
    }
}

impl DerefMut for Matrix {
    fn deref_mut(&mut self) -> &mut [f32] {
        match &self.block {
            // SAFETY: as in deref; the borrow is exclusive.
            Some(block) => unsafe { std::slice::from_raw_parts_mut(block.pointer, self.rows * self.cols) },
            None => &mut [],
        }
    }
}

impl Drop for Matrix {
    fn drop(&mut self) {
        if let Some(block) = self.block.take() {
            let size = block.layout.size();
            self.pool.live.fetch_sub(size, Ordering::Relaxed);
            let mut free = self.pool.free.lock().unwrap_or_else(PoisonError::into_inner);
            free.entry(size).or_default().push(block);
        }
    }
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
