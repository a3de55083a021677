//! Working memory of the products: a few aligned buffers that are lent out and come back.
//!
//! Invariant: as many buffers exist as were ever in use at once; a buffer only grows.

use crate::ops::matrix::{Arena, Matrix};
use std::sync::{Mutex, OnceLock, PoisonError};

/// Words of the smallest buffer: one huge page, which spares the kernels most address translations.
const SMALLEST: usize = (2 << 20) / size_of::<f32>();

fn arena() -> &'static Arena {
    static ARENA: OnceLock<Arena> = OnceLock::new();
    ARENA.get_or_init(Arena::new)
}

static FREE: Mutex<Vec<Matrix>> = Mutex::new(Vec::new());

/// Bytes of all buffers.
pub(super) fn bytes() -> usize {
    arena().live_bytes()
}

/// A buffer on loan.
pub(super) struct Scratch(Option<Matrix>);

impl Scratch {
    /// At least `words` words, contents unspecified.
    pub fn take(words: usize) -> Scratch {
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        let fitting = (0..free.len()).filter(|&i| free[i].len() >= words).min_by_key(|&i| free[i].len());
        if let Some(index) = fitting {
            return Scratch(Some(free.swap_remove(index)));
        }
        if let Some(largest) = (0..free.len()).max_by_key(|&i| free[i].len()) {
            drop(free.swap_remove(largest));
            arena().trim();
        }
        drop(free);
        Scratch(Some(arena().matrix(1, words.max(SMALLEST))))
    }

    /// The buffer.
    pub fn words(&mut self) -> &mut [f32] {
        match &mut self.0 {
            Some(matrix) => matrix,
            None => &mut [],
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Some(matrix) = self.0.take() {
            FREE.lock().unwrap_or_else(PoisonError::into_inner).push(matrix);
        }
    }
}
