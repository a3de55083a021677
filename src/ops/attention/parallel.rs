//! Tasks of unequal size on the thread pool, longest first, and each thread's scratch memory.

use crate::ops::Arena;
use rayon::prelude::*;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Runs `work(i)` for every `i` below `tasks`; threads take the next one as they become free.
///
/// With tasks sorted longest first the last thread ends at most one short task after the first.
pub(super) fn in_order(tasks: usize, work: impl Fn(usize) + Sync) {
    let next = AtomicUsize::new(0);
    let workers = rayon::current_num_threads().min(tasks);
    (0..workers).into_par_iter().with_max_len(1).for_each(|_| loop {
        let task = next.fetch_add(1, Ordering::Relaxed);
        if task >= tasks {
            break;
        }
        work(task);
    });
}

/// The calling thread's arena: tiles are taken from it and given back, so that no task asks the system for memory.
pub(super) fn scratch() -> Arena {
    thread_local!(static SCRATCH: Arena = Arena::new());
    SCRATCH.with(Arena::clone)
}
