//! The arithmetic peak: a loop of multiply-adds on registers, timed right beside what it is compared with, because the
//! clock rate drifts.

use llamantino::device::Compute;
use llamantino::ops::gemm::peak::{self, register_loop};
use std::time::{Duration, Instant};

/// CPU time of this thread, or the clock on the wall.
pub fn now(threads: usize) -> Duration {
    #[cfg(target_os = "linux")]
    if threads == 1 {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the pointer is to a timespec.
        unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
        return Duration::new(time.tv_sec as u64, time.tv_nsec as u32);
    }
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    let _ = threads;
    START.get_or_init(Instant::now).elapsed()
}

/// GFLOP/s of the register loop on all threads.
pub fn peak_rate(threads: usize, compute: Compute) -> f64 {
    if threads > 1 {
        // Many loops, since waking the threads takes as long as one; the best of some, since it is a bound and a core may be
        // busy with other work.
        return (0..3).map(|_| peak::peak_rate(compute)).fold(0.0, f64::max) / 1e9;
    }
    let start = now(threads);
    let done: f64 = rayon::broadcast(|_| register_loop(compute)).iter().sum();
    done / (now(threads) - start).as_secs_f64() / 1e9
}
