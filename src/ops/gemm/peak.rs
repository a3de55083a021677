//! The arithmetic peak of this machine: a loop of multiply-adds on registers, which no product can beat.
//!
//! The clock rate drifts, so a share of the peak means something only where the peak is taken right beside the figure.

#[cfg(target_arch = "x86_64")]
use crate::device::CpuPath;
use crate::device::{cpu_path, Compute};
use std::time::Instant;

/// Rounds of a loop: some tens of microseconds.
const ROUNDS: usize = 20_000;

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::ROUNDS;
    use std::arch::x86_64::*;

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

/// Runs the register loop of the kernel path in use on this thread; floating-point operations done.
pub fn register_loop(compute: Compute) -> f64 {
    match (cpu_path(), compute) {
        // SAFETY: the path is the one in use, so the machine has it.
        #[cfg(target_arch = "x86_64")]
        (CpuPath::Amx, Compute::Bf16) => unsafe { super::amx::register_loop(ROUNDS) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        (CpuPath::Avx512Bf16, Compute::Bf16) => unsafe { x86::bf16_512() },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        (CpuPath::Avx512 | CpuPath::Avx512Bf16 | CpuPath::Amx, _) => unsafe { x86::f32_512() },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        (CpuPath::Avx2, _) => unsafe { x86::f32_256() },
        _ => {
            // Whatever the compiler makes of it: only a rough measure.
            let (mut sums, factors) = ([1.0f32; 32], std::hint::black_box([0.5f32; 32]));
            for _ in 0..ROUNDS / 2 {
                for (sum, factor) in sums.iter_mut().zip(factors) {
                    *sum = *sum * factor + factor;
                }
            }
            std::hint::black_box(sums);
            (ROUNDS / 2 * 64) as f64
        }
    }
}

/// Floating-point operations a second of the register loops on all threads of the pool, over a few milliseconds.
pub fn peak_rate(compute: Compute) -> f64 {
    const LOOPS: usize = 30;
    // The threads are awake when the clock starts.
    rayon::broadcast(|_| register_loop(compute));
    let start = Instant::now();
    let done: f64 = rayon::broadcast(|_| (0..LOOPS).map(|_| register_loop(compute)).sum::<f64>()).iter().sum();
    done / start.elapsed().as_secs_f64()
}
