//! The elements of one task: random words in blocks, and what is done with them on the CPU.
//!
//! Invariant: `first`, the index of a task's first element, is a multiple of 4 (four elements share a Philox call), and
//! element `i` gets word `first + i` of the stream.
//! Reference: `RandomStream::word`.

use super::Mask;
use crate::ops::vector::kernel;
use crate::ops::RandomStream;

/// Elements whose words are drawn together: 16 Philox calls side by side.
const BLOCK: usize = 64;

/// Words `first..first + BLOCK` of the stream.
#[inline(always)]
fn words(stream: RandomStream, first: u64) -> [u32; BLOCK] {
    let calls = stream.words_of_calls::<{ BLOCK / 4 }>(first / 4);
    let mut words = [0; BLOCK];
    for call in 0..BLOCK / 4 {
        for (word, of_calls) in calls.iter().enumerate() {
            words[4 * call + word] = of_calls[call];
        }
    }
    words
}

/// 0 for dropped elements, `1 / (1 − p)` for kept ones.
#[inline(always)]
fn factors(mask: Mask, first: u64) -> [f32; BLOCK] {
    words(mask.stream, first).map(|word| if word < mask.threshold { 0.0 } else { mask.scale })
}

kernel! {
    pub(super) fn apply(x: &[f32], out: &mut [f32], mask: Mask, first: u64) {
        for (block, (x, out)) in x.chunks(BLOCK).zip(out.chunks_mut(BLOCK)).enumerate() {
            let factors = factors(mask, first + (block * BLOCK) as u64);
            for ((out, &x), factor) in out.iter_mut().zip(x).zip(factors) {
                *out = x * factor;
            }
        }
    }
}

kernel! {
    pub(super) fn apply_in_place(x: &mut [f32], mask: Mask, first: u64) {
        for (block, x) in x.chunks_mut(BLOCK).enumerate() {
            let factors = factors(mask, first + (block * BLOCK) as u64);
            for (x, factor) in x.iter_mut().zip(factors) {
                *x *= factor;
            }
        }
    }
}

kernel! {
    pub(super) fn apply_add(dy: &[f32], dx: &mut [f32], mask: Mask, first: u64) {
        for (block, (dy, dx)) in dy.chunks(BLOCK).zip(dx.chunks_mut(BLOCK)).enumerate() {
            let factors = factors(mask, first + (block * BLOCK) as u64);
            for ((dx, &dy), factor) in dx.iter_mut().zip(dy).zip(factors) {
                *dx += dy * factor;
            }
        }
    }
}

kernel! {
    pub(super) fn add_uniform(x: &mut [f32], bound: f32, stream: RandomStream, first: u64) {
        for (block, x) in x.chunks_mut(BLOCK).enumerate() {
            let words = words(stream, first + (block * BLOCK) as u64);
            for (x, word) in x.iter_mut().zip(words) {
                let uniform = (word >> 8) as f32 * (1.0 / 16_777_216.0);
                *x += bound * (2.0 * uniform - 1.0);
            }
        }
    }
}
