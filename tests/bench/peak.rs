//! The arithmetic peak: a loop of multiply-adds on registers, timed right beside what it is compared with, because the
//! clock rate drifts.

use llamantino::device::{cpu_path, Compute, CpuPath};
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

#[cfg(target_arch = "x86_64")]
mod registers {
    use std::arch::x86_64::*;

    const ROUNDS: usize = 20_000;

    /// 24 chains of f32 multiply-adds. Returns the number of floating-point operations.
    #[target_feature(enable = "avx512f")]
    pub fn f32_512() -> f64 {
        let mut sums = [_mm512_set1_ps(1.0); 24];
        let (a, b) = (_mm512_set1_ps(std::hint::black_box(0.5)), _mm512_set1_ps(std::hint::black_box(0.25)));
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(a, b, *sum);
            }
        }
        std::hint::black_box(sums);
        (ROUNDS * 24 * 32) as f64
    }

    /// 24 chains of bf16 dot products.
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub fn bf16_512() -> f64 {
        let mut sums = [_mm512_set1_ps(1.0); 24];
        let word = _mm512_set1_epi32(std::hint::black_box(0x3f00_3e80));
        // SAFETY: both are 512 bits wide.
        let word: __m512bh = unsafe { std::mem::transmute(word) };
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = _mm512_dpbf16_ps(*sum, word, word);
            }
        }
        std::hint::black_box(sums);
        (ROUNDS * 24 * 64) as f64
    }

    /// 12 chains of f32 multiply-adds.
    #[target_feature(enable = "avx2,fma")]
    pub fn f32_256() -> f64 {
        let mut sums = [_mm256_set1_ps(1.0); 12];
        let (a, b) = (_mm256_set1_ps(std::hint::black_box(0.5)), _mm256_set1_ps(std::hint::black_box(0.25)));
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(a, b, *sum);
            }
        }
        std::hint::black_box(sums);
        (ROUNDS * 12 * 16) as f64
    }
}

/// Runs the register loop of the path on this thread; floating-point operations done.
fn peak_loop(path: CpuPath, compute: Compute) -> f64 {
    match (path, compute) {
        // SAFETY: the path is the one in use, so the machine has it.
        #[cfg(target_arch = "x86_64")]
        (CpuPath::Avx512Bf16, Compute::Bf16) => unsafe { registers::bf16_512() },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        (CpuPath::Avx512 | CpuPath::Avx512Bf16, _) => unsafe { registers::f32_512() },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        (CpuPath::Avx2, _) => unsafe { registers::f32_256() },
        _ => {
            // Whatever the compiler makes of it: only a rough measure.
            let (mut sums, factors) = ([1.0f32; 32], std::hint::black_box([0.5f32; 32]));
            for _ in 0..10_000 {
                for (sum, factor) in sums.iter_mut().zip(factors) {
                    *sum = *sum * factor + factor;
                }
            }
            std::hint::black_box(sums);
            10_000.0 * 64.0
        }
    }
}

/// GFLOP/s of the register loop on all threads.
pub fn peak_rate(threads: usize, compute: Compute) -> f64 {
    let start = now(threads);
    let done: f64 = rayon::broadcast(|_| peak_loop(cpu_path(), compute)).iter().sum();
    done / (now(threads) - start).as_secs_f64() / 1e9
}
