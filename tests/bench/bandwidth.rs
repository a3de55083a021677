//! What the memory of this machine gives: reading, and copying.

use rayon::prelude::*;
use std::time::Instant;

/// Bytes gone through at a time: far more than any cache holds.
const BYTES: usize = 1 << 29;

/// Repetitions, of which the median counts.
const REPEATS: usize = 7;

/// GB/s of reading on all threads of the pool.
pub fn read_bandwidth() -> f64 {
    let words = vec![1u64; BYTES / 8];
    median(|| {
        let part = words.len().div_ceil(rayon::current_num_threads());
        let sum: u64 = words.par_chunks(part).map(sum_lanes).sum();
        assert_eq!(std::hint::black_box(sum), words.len() as u64);
        BYTES
    })
}

/// Sums in lanes, so that adding takes less time than reading.
fn sum_lanes(words: &[u64]) -> u64 {
    let mut lanes = [0u64; 32];
    let (whole, rest) = words.as_chunks::<32>();
    for words in whole {
        prefetch(words.as_ptr().wrapping_add(512));
        prefetch(words.as_ptr().wrapping_add(520));
        prefetch(words.as_ptr().wrapping_add(528));
        prefetch(words.as_ptr().wrapping_add(536));
        lanes.iter_mut().zip(words).for_each(|(lane, word)| *lane += word);
    }
    lanes.iter().chain(rest).sum()
}

fn prefetch(place: *const u64) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE is part of x86-64, and a prefetch never faults.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(place.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}

/// GB/s of copying on all threads of the pool, bytes read and bytes written both counted.
pub fn copy_bandwidth() -> f64 {
    let from = vec![1u8; BYTES];
    let mut to = vec![2u8; BYTES];
    median(|| {
        let part = BYTES.div_ceil(rayon::current_num_threads());
        to.par_chunks_mut(part).zip(from.par_chunks(part)).for_each(|(to, from)| to.copy_from_slice(from));
        2 * BYTES
    })
}

fn median(mut run: impl FnMut() -> usize) -> f64 {
    run();
    let mut rates: Vec<f64> = (0..REPEATS)
        .map(|_| {
            let start = Instant::now();
            let bytes = run();
            bytes as f64 / start.elapsed().as_secs_f64() / 1e9
        })
        .collect();
    rates.sort_by(f64::total_cmp);
    rates[REPEATS / 2]
}
