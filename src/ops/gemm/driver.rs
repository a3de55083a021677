//! Runs products: prepares A, hands out jobs, packs panels and calls the micro-kernel on every tile.
//!
//! Several products can run as one: a [`Group`] is a list of terms over the same output columns, and a panel of B is
//! packed once for all the A that it is multiplied with. A job is one panel's width of a group (and a range of rows,
//! where columns alone give too few jobs). It computes all terms in order, so they may add up in the same C: as many depth
//! blocks of them as fit are packed first, and then added to one block of C after the other, which stays in the nearest
//! cache. So a weight is dequantised once a product however many rows there are, and never exists outside a panel. Where the
//! reduction is very deep, or the kernels are fast, a job is a few panels, which share the rows of A while they are in the
//! cache.

use super::kernel::{Kernels, Tile, MOST_TERMS};
use super::operand::{prepare, Left, Rows, Target};
use super::pack_dense::{fetch_to_write, Source, STRIPS};
use super::panel::Panel;
use super::plan::{depth_blocks, packed_words, Cuts, ALONE};
use super::scratch::Scratch;
use super::Store;
use crate::ops::matrix::MatMut;
use std::iter::Peekable;
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

/// Most panels of a job.
const WIDEST_JOB: usize = 3;

/// Most panels of a job on tile registers, whose speed is that of reading A and writing C.
const MOST_PANELS: usize = 8;

/// Words that these hold at most: beside them A and C need room in an L2 cache of 2 MB, of which another thread may use half.
const PACKED_WORDS: usize = (768 << 10) / size_of::<f32>();
const _: () = assert!(WIDEST_JOB <= MOST_PANELS);

/// Fewest, while so many are left.
const NARROWEST_TILED_JOB: usize = 2;

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

/// What one job does.
struct Share {
    /// Index of the group.
    group: usize,
    /// Panels of it.
    panels: Range<usize>,
    /// Which part of the rows, of how many.
    part: (usize, usize),
}

/// Runs groups whose C are all different.
pub(super) fn run_groups(kernels: &Kernels, groups: &[Group<'_>]) {
    let multiply_adds = |group: &Group<'_>| -> usize {
        let terms = group.terms.iter();
        terms.map(|term| group.columns * term.depth * term.uses.iter().map(|one| one.rows).sum::<usize>()).sum()
    };
    let threads = threads_for(groups.iter().map(multiply_adds).sum());
    // Panels on tile registers are of one width but for the last: several can be packed at once.
    let unit = if kernels.is_tiled() { kernels.panel_columns() } else { kernels.width };
    let cuts = |group: &Group<'_>| Cuts::at_most(group.columns, unit, kernels.panel_columns());
    let mut left: usize = groups.iter().map(|group| cuts(group).count).sum();
    let wanted = (JOBS_PER_THREAD * threads).div_ceil(left.max(1));
    let mut shares = Vec::with_capacity(left * wanted);
    for (index, group) in groups.iter().enumerate() {
        let rows = group.terms.iter().flat_map(|term| &term.uses).map(|one| one.rows).max().unwrap_or(0);
        let row_parts = if threads == 1 { 1 } else { wanted.min(rows / ROWS_PER_JOB).max(1) };
        let count = cuts(group).count;
        let mut first = 0;
        while first < count {
            let wide = wide(group, kernels, (count, left, threads)).min(count - first);
            let panels = first..first + wide;
            let parts = 0..row_parts;
            shares.extend(parts.map(|part| Share { group: index, panels: panels.clone(), part: (part, row_parts) }));
            first += wide;
            left -= wide;
        }
    }
    for_each(threads, shares.len(), |job| {
        let Share { group, panels, part } = &shares[job];
        let group = &groups[*group];
        Job { kernels, panels: (cuts(group), panels.clone()), part: *part }.run(&group.terms);
    });
}

/// Panels that the next job does side by side, where a group has `count` of them and all groups still have `left`: several
/// where each panel would read all of A from memory again, because the reduction is so deep or the products so fast, as long
/// as every thread gets jobs to choose from.
fn wide(group: &Group<'_>, kernels: &Kernels, (count, left, threads): (usize, usize, usize)) -> usize {
    if kernels.is_tiled() {
        let depths = group.terms.iter().map(|term| kernels.words_of(term.depth));
        let panel = depths.sum::<usize>().clamp(1, packed_words(true)) * kernels.panel_columns();
        let widest = (PACKED_WORDS / panel).clamp(1, MOST_PANELS);
        // Ever fewer: the last jobs are what one thread may have to wait for another with.
        return (left / (3 * threads)).clamp(NARROWEST_TILED_JOB.min(widest), widest);
    }
    let deep = group.terms.iter().any(|term| depth_blocks(term.depth, kernels.per_word()).count >= DEEP_BLOCKS);
    (count / (2 * threads)).clamp(1, if deep { WIDEST_JOB } else { 1 })
}

/// All terms of some panels' width of columns.
struct Job<'a> {
    kernels: &'a Kernels,
    /// The panels, and which of them.
    panels: (Cuts, Range<usize>),
    /// Which part of the rows, of how many.
    part: (usize, usize),
}

/// A depth block of a term.
struct Piece<'a> {
    term: &'a Term<'a>,
    depth: Range<usize>,
}

/// Pieces whose panels are packed together, so that they are added to C while it is in the nearest cache: small ones that
/// follow one another, or one alone.
struct Stage<'a> {
    pieces: [Option<Piece<'a>>; MOST_TERMS],
    count: usize,
}

impl<'a> Stage<'a> {
    /// As many of the pieces that are left as fit; none at the end.
    fn take(pieces: &mut Peekable<impl Iterator<Item = Piece<'a>>>, kernels: &Kernels) -> Stage<'a> {
        let mut stage = Stage { pieces: Default::default(), count: 0 };
        let words = |piece: &Piece<'_>| kernels.words_of(piece.depth.len());
        let mut left = packed_words(kernels.is_tiled());
        while let Some(piece) = pieces.next_if(|piece| stage.fits(piece, words(piece) <= left)) {
            left = left.saturating_sub(words(&piece));
            stage.pieces[stage.count] = Some(piece);
            stage.count += 1;
        }
        stage
    }

    /// Whether a piece may be next: any as the first, after it those that add to the same one C.
    fn fits(&self, piece: &Piece<'_>, has_room: bool) -> bool {
        let alone = piece.term.uses.len() > 1 || self.uses().len() > 1;
        self.count == 0 || (has_room && self.count < MOST_TERMS && !alone)
    }

    fn pieces(&self) -> impl Iterator<Item = &Piece<'a>> {
        self.pieces.iter().flatten()
    }

    /// What the panels of the first piece are multiplied with: of others there is one each.
    fn uses(&self) -> &'a [Use<'a>] {
        self.pieces[0].as_ref().map_or(&[], |piece| &piece.term.uses)
    }
}

/// A panel of a piece, packed or where it lies.
#[derive(Clone, Copy)]
struct Packed {
    /// First word.
    start: *const f32,
    /// Words from one depth to the next.
    stride: usize,
}

/// The panels of a stage: by piece, then by panel.
type AllPacked = [[Packed; MOST_PANELS]; MOST_TERMS];

impl Job<'_> {
    fn run(&self, terms: &[Term<'_>]) {
        let kernels = self.kernels;
        let panels = self.panels.1.len();
        let width = packed_words(kernels.is_tiled()) * kernels.panel_columns();
        let mut scratch = Scratch::take(width * panels + STRIPS);
        let (strips, memory) = scratch.words().split_at_mut(STRIPS);
        let mut pieces = terms
            .iter()
            .flat_map(|term| {
                let blocks = depth_blocks(term.depth, kernels.per_word());
                (0..blocks.count).map(move |block| Piece { term, depth: blocks.get(block) })
            })
            .peekable();
        let mut stage = Stage::take(&mut pieces, kernels);
        let mut packed: AllPacked = [[Packed { start: std::ptr::null(), stride: 0 }; MOST_PANELS]; MOST_TERMS];
        while stage.count > 0 {
            let mut offset = 0;
            for (piece, packed) in stage.pieces().zip(&mut packed) {
                self.pack(piece, (&mut memory[offset..], width), strips, packed);
                offset += kernels.words_of(piece.depth.len()) * kernels.panel_columns();
            }
            let next = Stage::take(&mut pieces, kernels);
            for (index, one) in stage.uses().iter().enumerate() {
                self.tiles(&stage, one, &packed, (index == 0).then_some(&next));
            }
            stage = next;
        }
    }

    /// The panels of a piece, so many words from one to the next.
    fn pack(
        &self,
        Piece { term, depth }: &Piece<'_>,
        (memory, apart): (&mut [f32], usize),
        strips: &mut [f32],
        packed: &mut [Packed],
    ) {
        let (kernels, (cuts, range)) = (self.kernels, &self.panels);
        let rows: usize = term.uses.iter().map(|one| one.rows).sum();
        let wide = kernels.panel_columns();
        if kernels.is_tiled() && range.len() > 1 {
            let columns = cuts.get(range.start).start..cuts.get(range.end - 1).end;
            let panels = Panel { columns, depth: depth.clone(), stride: wide, to: &mut *memory, strips: &mut *strips };
            if term.source.pack_beside(kernels, panels, apart) {
                for (memory, packed) in memory.chunks_mut(apart).zip(packed).take(range.len()) {
                    kernels.fill_up(memory, depth.len(), wide);
                    *packed = Packed { start: memory.as_ptr(), stride: wide };
                }
                return;
            }
        }
        for ((panel, packed), memory) in range.clone().zip(packed).zip(memory.chunks_mut(apart)) {
            let columns = cuts.get(panel);
            let stride = columns.len().next_multiple_of(kernels.width);
            let lying = (rows <= IN_PLACE_ROWS).then(|| term.source.in_place(kernels, &columns, depth));
            *packed = match lying.flatten() {
                Some((start, stride)) => Packed { start, stride },
                None => {
                    let to = Panel { columns, depth: depth.clone(), stride, to: &mut *memory, strips: &mut *strips };
                    term.source.pack(kernels, to);
                    kernels.fill_up(memory, depth.len(), stride);
                    Packed { start: memory.as_ptr(), stride }
                }
            };
        }
    }

    /// All tiles of some panels: rows outside, so that those of a few tiles are read once for all panels. In between, what
    /// the next panels will be packed from is fetched.
    fn tiles(&self, stage: &Stage<'_>, one: &Use<'_>, packed: &AllPacked, next: Option<&Stage<'_>>) {
        let (kernels, (cuts, range)) = (self.kernels, &self.panels);
        let all = cuts.get(range.start).start..cuts.get(range.end - 1).end;
        let starts = stage.pieces().next().is_some_and(|piece| piece.depth.start == 0);
        let rows = Cuts::into(one.rows, ROW_UNIT, self.part.1).get(self.part.0);
        let groups = Cuts::at_most(rows.len(), kernels.rows_at_once, kernels.rows_at_once);
        let mut tiles = [Tile::NOTHING; MOST_TERMS];
        for group in 0..groups.count {
            let part = groups.get(group);
            for Piece { term, depth } in next.iter().flat_map(|next| next.pieces()) {
                term.source.fetch(all.clone(), depth.clone(), group, groups.count);
            }
            let first = rows.start + part.start;
            for panel in range.clone() {
                let columns = cuts.get(panel);
                let c = one.target.get().wrapping_add(first * one.stride + columns.start);
                // Tile registers write whole lines faster than caches fetch them.
                if starts && (kernels.is_tiled() || one.rows * one.stride > LARGE_RESULT) {
                    (0..part.len()).for_each(|row| fetch_to_write(c.wrapping_add(row * one.stride), columns.len()));
                }
                for ((tile, piece), packed) in tiles.iter_mut().zip(stage.pieces()).zip(packed) {
                    let one = if stage.count == 1 { one } else { &piece.term.uses[0] };
                    let Packed { start, stride } = packed[panel - range.start];
                    *tile = Tile {
                        depth: kernels.words_of(piece.depth.len()),
                        a: one.left.at(kernels, first, piece.depth.start / kernels.per_word()),
                        a_row: one.left.stride,
                        b: start,
                        b_depth: stride,
                        c,
                        c_row: one.stride,
                        last: 0,
                        alpha: one.alpha,
                        accumulate: one.accumulate || piece.depth.start > 0,
                    };
                }
                // SAFETY: the rows exist in A and C, the columns in C, and the panels were packed for these depths or lie in
                // B in whole vectors; no other job has these rows and columns. The kernels are of this machine's path.
                unsafe { kernels.run(&tiles[..stage.count], part.len(), columns.len()) };
            }
        }
    }
}
