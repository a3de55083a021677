//! Runs a product: prepares A, hands out jobs, packs panels and calls the micro-kernel on every tile.
//!
//! A job is a range of output columns (and of rows, where columns alone give too few jobs). For each depth block and
//! each of its panels it packs the panel once and multiplies all of its rows with it. So a weight is dequantised once
//! a product however many rows there are, and never exists outside a panel.

use super::kernel::{Kernels, Tile};
use super::operand::{Left, Rows, Target};
use super::pack_dense::{Panel, Source, STRIPS};
use super::plan::{deepest_words, depth_blocks, Cuts, ALONE};
use super::scratch::Scratch;
use super::Store;
use crate::ops::matrix::MatMut;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Panels of a job at most: with few, the piece of C that the depth blocks add to stays in the cache.
const PANELS_PER_JOB: usize = 2;

/// Jobs for each thread, if there are as many panels: a thread that is held up leaves the rest to the others.
const JOBS_PER_THREAD: usize = 4;

/// Rows of a job at least, where rows are split: packing a panel again for each job must stay cheap.
const ROWS_PER_JOB: usize = 128;

/// Rows multiplied between two fetches for the next panel: whole tiles of every height that the kernels prefer.
const ROWS_PER_FETCH: usize = 24;

/// `C (+)= alpha · A · B`.
pub(super) struct Product<'a> {
    pub left: Left<'a>,
    pub source: Source<'a>,
    pub target: MatMut<'a>,
    pub store: Store,
}

/// Calls `work` for each job, on the pool if `threads` is above one. Which thread does what is left to chance.
pub(super) fn for_each(threads: usize, jobs: usize, work: impl Fn(usize) + Sync) {
    if threads <= 1 || jobs <= 1 {
        return (0..jobs).for_each(work);
    }
    let next = AtomicUsize::new(0);
    let worker = || loop {
        let job = next.fetch_add(1, Ordering::Relaxed);
        if job >= jobs {
            break;
        }
        work(job);
    };
    rayon::scope(|scope| {
        for _ in 0..threads.min(jobs) {
            scope.spawn(|_| worker());
        }
    });
}

/// What all jobs of a product share.
struct Shared<'a> {
    kernels: &'a Kernels,
    source: Source<'a>,
    rows: Rows,
    target: Target,
    target_stride: usize,
    depth: usize,
    store: Store,
    panels: Cuts,
}

/// Runs a product on the pool, or on the calling thread if it is small.
pub(super) fn run(product: Product<'_>) {
    let Product { left, source, target, store } = product;
    let (rows, columns, depth) = (target.rows, target.cols, left.depth());
    if rows == 0 || columns == 0 {
        return;
    }
    let kernels = Kernels::of(left.path, store.compute);
    let threads = if rows * columns * depth < ALONE { 1 } else { rayon::current_num_threads() };
    let panels = Cuts::at_most(columns, kernels.width, kernels.panel_columns());
    let shared = Shared {
        kernels,
        source,
        rows: left.prepare(kernels, threads),
        target: Target(target.data.as_mut_ptr()),
        target_stride: target.stride,
        depth,
        store,
        panels,
    };
    let wanted = JOBS_PER_THREAD * threads;
    let column_jobs = Cuts::into(panels.count, 1, panels.count.div_ceil(PANELS_PER_JOB).max(wanted.min(panels.count)));
    let row_parts = if threads == 1 { 1 } else { wanted.div_ceil(panels.count).min(rows / ROWS_PER_JOB).max(1) };
    let row_jobs = Cuts::into(rows, 8, row_parts);
    for_each(threads, column_jobs.count * row_jobs.count, |job| {
        shared.job(column_jobs.get(job / row_jobs.count), row_jobs.get(job % row_jobs.count));
    });
}

impl Shared<'_> {
    /// All depth blocks of a range of panels and rows.
    fn job(&self, panels: Range<usize>, rows: Range<usize>) {
        if panels.is_empty() || rows.is_empty() {
            return;
        }
        let stride = self.kernels.panel_columns();
        let mut scratch = Scratch::take(deepest_words() * stride + STRIPS);
        let (strips, panel) = scratch.words().split_at_mut(STRIPS);
        let blocks = depth_blocks(self.depth, self.kernels.per_word());
        let pieces = blocks.count * panels.len();
        let piece = |i: usize| (blocks.get(i / panels.len()), self.panels.get(panels.start + i % panels.len()));
        for i in 0..pieces {
            let (depth, columns) = piece(i);
            let stride = columns.len().next_multiple_of(self.kernels.width);
            let to = Panel { columns: columns.clone(), depth: depth.clone(), stride, to: panel, strips };
            self.source.pack(self.kernels, to);
            let next = (i + 1 < pieces).then(|| piece(i + 1));
            self.tiles(panel, columns, depth, rows.clone(), next);
        }
    }

    /// All tiles of one panel. In between, what the next panel will be packed from is fetched.
    fn tiles(
        &self,
        panel: &[f32],
        columns: Range<usize>,
        depth: Range<usize>,
        rows: Range<usize>,
        next: Option<(Range<usize>, Range<usize>)>,
    ) {
        let per_word = self.kernels.per_word();
        let groups = Cuts::at_most(rows.len(), ROWS_PER_FETCH, ROWS_PER_FETCH);
        for group in 0..groups.count {
            let part = groups.get(group);
            if let Some((depth, columns)) = &next {
                self.source.fetch(columns.clone(), depth.clone(), group, groups.count);
            }
            let first = rows.start + part.start;
            let tile = Tile {
                depth: depth.len().div_ceil(per_word),
                a: self.rows.start.wrapping_add(first * self.rows.stride + depth.start / per_word),
                a_row: self.rows.stride,
                a_depth: 1,
                b: panel.as_ptr(),
                b_depth: columns.len().next_multiple_of(self.kernels.width),
                c: self.target.get().wrapping_add(first * self.target_stride + columns.start),
                c_row: self.target_stride,
                last: 0,
                alpha: self.store.alpha,
                accumulate: self.store.accumulate || depth.start > 0,
            };
            // SAFETY: the rows exist in A and C, the columns in C, and the panel was packed for this depth; no other
            // job has these rows and columns. The kernels are of this machine's path.
            unsafe { self.kernels.run(tile, part.len(), columns.len()) };
        }
    }
}
