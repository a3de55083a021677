//! Runs products: prepares A, hands out jobs, packs panels and calls the micro-kernel on every tile.
//!
//! Several products can run as one: a [`Group`] is a list of terms over the same output columns, and a panel of B is
//! packed once for all the A that it is multiplied with. A job is one panel's width of a group (and a range of rows,
//! where columns alone give too few jobs). It computes all terms in order, so they may add up in the same C, which then
//! stays in the cache. So a weight is dequantised once a product however many rows there are, and never exists outside
//! a panel. Where the reduction is very deep, or the kernels are fast, a job is a few panels, which share the rows of A while
//! they are in the cache.

use super::kernel::{Kernels, Tile};
use super::operand::{prepare, Left, Rows, Target};
use super::pack_dense::{fetch_to_write, Panel, Source, STRIPS};
use super::plan::{deepest_words, depth_blocks, Cuts, ALONE};
use super::scratch::Scratch;
use super::Store;
use crate::ops::matrix::MatMut;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Jobs for each thread: a thread that is held up leaves the rest to the others.
const JOBS_PER_THREAD: usize = 4;

/// Rows of a job at least, where rows are split: packing a panel again for each job must stay cheap.
const ROWS_PER_JOB: usize = 128;

/// Rows of a job are a multiple of this: whole tiles.
const ROW_UNIT: usize = 32;

/// Most rows of A for which B is read where it lies, if it can be: with more, packing it pays.
const IN_PLACE_ROWS: usize = 64;

/// Depth blocks from which on a job takes several panels.
const DEEP_BLOCKS: usize = 8;

/// Most panels of a job, and of kernels on tile registers, whose speed is that of reading A and writing C.
const WIDEST_JOB: usize = 3;
const WIDEST_TILED_JOB: usize = 4;
const MOST_PANELS: usize = WIDEST_TILED_JOB;
const _: () = assert!(WIDEST_JOB <= MOST_PANELS);

/// Values of a result that no cache holds: its lines are asked for before the products that they receive.
const LARGE_RESULT: usize = 4 << 20;

/// `C (+)= alpha · A · B`.
pub(super) struct Product<'a> {
    pub left: Left<'a>,
    pub source: Source<'a>,
    pub target: MatMut<'a>,
    pub store: Store,
}

/// What a panel of B is multiplied with, and where that goes.
pub(super) struct Use<'a> {
    /// Rows of A as words.
    pub left: &'a Rows,
    /// How many there are.
    pub rows: usize,
    /// First element of C.
    pub target: Target,
    /// From one row of C to the next.
    pub stride: usize,
    /// Factor of the product.
    pub alpha: f32,
    /// Add to C.
    pub accumulate: bool,
}

/// An operand B and its uses.
pub(super) struct Term<'a> {
    pub source: Source<'a>,
    /// Elements along the reduction.
    pub depth: usize,
    pub uses: Vec<Use<'a>>,
}

/// Terms over the same columns of their C.
pub(super) struct Group<'a> {
    pub columns: usize,
    pub terms: Vec<Term<'a>>,
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

/// Threads for so many multiply-adds.
pub(super) fn threads_for(multiply_adds: usize) -> usize {
    if multiply_adds < ALONE {
        1
    } else {
        rayon::current_num_threads()
    }
}

/// Runs a product on the pool, or on the calling thread if it is small.
pub(super) fn run(product: Product<'_>) {
    let Product { left, source, target, store } = product;
    let (rows, columns, depth) = (target.rows, target.cols, left.depth());
    if rows == 0 || columns == 0 {
        return;
    }
    let kernels = Kernels::of(left.path, store.compute);
    let (prepared, _memory) = prepare(kernels, &[left], threads_for(rows * columns * depth));
    let one = Use {
        left: &prepared[0],
        rows,
        target: Target(target.data.as_mut_ptr()),
        stride: target.stride,
        alpha: store.alpha,
        accumulate: store.accumulate,
    };
    run_groups(kernels, &[Group { columns, terms: vec![Term { source, depth, uses: vec![one] }] }]);
}

/// How a group is cut.
struct Plan {
    panels: Cuts,
    /// Panels of a job.
    wide: usize,
    row_parts: usize,
    /// Jobs of all groups before this one.
    before: usize,
}

/// Runs groups whose C are all different.
pub(super) fn run_groups(kernels: &Kernels, groups: &[Group<'_>]) {
    let multiply_adds = |group: &Group<'_>| -> usize {
        let terms = group.terms.iter();
        terms.map(|term| group.columns * term.depth * term.uses.iter().map(|one| one.rows).sum::<usize>()).sum()
    };
    let threads = threads_for(groups.iter().map(multiply_adds).sum());
    let cuts = |group: &Group<'_>| Cuts::at_most(group.columns, kernels.width, kernels.panel_columns());
    let panels: usize = groups.iter().map(|group| cuts(group).count).sum();
    let mut jobs = 0;
    let plans: Vec<Plan> = groups
        .iter()
        .map(|group| {
            let uses = group.terms.iter().flat_map(|term| &term.uses);
            let rows = uses.map(|one| one.rows).max().unwrap_or(0);
            let wanted = (JOBS_PER_THREAD * threads).div_ceil(panels.max(1));
            let row_parts = if threads == 1 { 1 } else { wanted.min(rows / ROWS_PER_JOB).max(1) };
            let panels = cuts(group);
            let wide = wide(group, panels.count, threads, kernels);
            let plan = Plan { panels, wide, row_parts, before: jobs };
            jobs += plan.panels.count.div_ceil(plan.wide) * row_parts;
            plan
        })
        .collect();
    for_each(threads, jobs, |job| {
        let index = plans.partition_point(|plan| plan.before <= job) - 1;
        let (group, plan) = (&groups[index], &plans[index]);
        let job = job - plan.before;
        let first = job / plan.row_parts * plan.wide;
        let panels = (plan.panels, first..plan.panels.count.min(first + plan.wide));
        Job { kernels, panels, part: (job % plan.row_parts, plan.row_parts) }.run(&group.terms);
    });
}

/// Panels that a job of a group does side by side: several where each panel would read all of A from memory again, because
/// the reduction is so deep or the products so fast, as long as every thread still gets jobs to choose from.
fn wide(group: &Group<'_>, panels: usize, threads: usize, kernels: &Kernels) -> usize {
    let deep = || group.terms.iter().any(|term| depth_blocks(term.depth, kernels.per_word()).count >= DEEP_BLOCKS);
    let most = match kernels.is_tiled() {
        true => WIDEST_TILED_JOB,
        false if deep() => WIDEST_JOB,
        false => 1,
    };
    (panels / (2 * threads)).clamp(1, most)
}

/// All terms of some panels' width of columns.
struct Job<'a> {
    kernels: &'a Kernels,
    /// The panels, and which of them.
    panels: (Cuts, Range<usize>),
    /// Which part of the rows, of how many.
    part: (usize, usize),
}

/// A panel of a job, packed or where it lies.
struct Packed {
    columns: Range<usize>,
    /// First word.
    start: *const f32,
    /// Words from one depth to the next.
    stride: usize,
}

impl Job<'_> {
    fn run(&self, terms: &[Term<'_>]) {
        let (cuts, range) = &self.panels;
        let mut panels: [Packed; MOST_PANELS] = std::array::from_fn(|i| {
            let columns = if i < range.len() { cuts.get(range.start + i) } else { 0..0 };
            Packed { columns, start: std::ptr::null(), stride: 0 }
        });
        let panels = &mut panels[..range.len()];
        let all = cuts.get(range.start).start..cuts.get(range.end - 1).end;
        let width = deepest_words() * self.kernels.panel_columns();
        let mut scratch = Scratch::take(width * panels.len() + STRIPS);
        let (strips, memory) = scratch.words().split_at_mut(STRIPS);
        let mut pieces = terms.iter().flat_map(|term| {
            let blocks = depth_blocks(term.depth, self.kernels.per_word());
            (0..blocks.count).map(move |block| (term, blocks.get(block)))
        });
        let mut next = pieces.next();
        while let Some((term, depth)) = next {
            let rows: usize = term.uses.iter().map(|one| one.rows).sum();
            for (panel, memory) in panels.iter_mut().zip(memory.chunks_exact_mut(width)) {
                let columns = panel.columns.clone();
                let stride = columns.len().next_multiple_of(self.kernels.width);
                let lying = (rows <= IN_PLACE_ROWS).then(|| term.source.in_place(self.kernels, &columns, &depth));
                (panel.start, panel.stride) = lying.flatten().unwrap_or_else(|| {
                    let to = Panel { columns, depth: depth.clone(), stride, to: &mut *memory, strips };
                    term.source.pack(self.kernels, to);
                    (memory.as_ptr(), stride)
                });
            }
            next = pieces.next();
            for (index, one) in term.uses.iter().enumerate() {
                let coming = next.as_ref().filter(|_| index == 0);
                let coming = coming.map(|(term, depth)| (&term.source, depth.clone(), all.clone()));
                self.tiles(panels, one, &depth, coming);
            }
        }
    }

    /// All tiles of some panels: rows outside, so that those of a few tiles are read once for all panels. In between, what
    /// the next panels will be packed from is fetched.
    fn tiles(
        &self,
        panels: &[Packed],
        one: &Use<'_>,
        depth: &Range<usize>,
        next: Option<(&Source<'_>, Range<usize>, Range<usize>)>,
    ) {
        let per_word = self.kernels.per_word();
        let rows = Cuts::into(one.rows, ROW_UNIT, self.part.1).get(self.part.0);
        let groups = Cuts::at_most(rows.len(), self.kernels.rows_at_once, self.kernels.rows_at_once);
        for group in 0..groups.count {
            let part = groups.get(group);
            if let Some((source, depth, columns)) = &next {
                source.fetch(columns.clone(), depth.clone(), group, groups.count);
            }
            let first = rows.start + part.start;
            for Packed { columns, start, stride } in panels {
                // Tile registers write whole lines faster than caches fetch them.
                let is_far = self.kernels.is_tiled() || one.rows * one.stride > LARGE_RESULT;
                if is_far && depth.start == 0 {
                    for row in first..first + part.len() {
                        fetch_to_write(one.target.get().wrapping_add(row * one.stride + columns.start), columns.len());
                    }
                }
                let tile = Tile {
                    depth: depth.len().div_ceil(per_word),
                    a: one.left.at(self.kernels, first, depth.start / per_word),
                    a_row: one.left.stride,
                    a_depth: 1,
                    b: *start,
                    b_depth: *stride,
                    c: one.target.get().wrapping_add(first * one.stride + columns.start),
                    c_row: one.stride,
                    last: 0,
                    alpha: one.alpha,
                    accumulate: one.accumulate || depth.start > 0,
                };
                // SAFETY: the rows exist in A and C, the columns in C, and the panel was packed for this depth or lies
                // in B in whole vectors; no other job has these rows and columns. The kernels are of this machine's
                // path.
                unsafe { self.kernels.run(tile, part.len(), columns.len()) };
            }
        }
    }
}
