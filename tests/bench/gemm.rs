//! How near the matrix products come to the arithmetic peak of this machine.
//!
//! `cargo bench --bench gemm [-- FILTER...]`: each case whose line contains every filter. One thread is timed by its
//! CPU time, so that a busy machine disturbs little; with `--threads N` the clock on the wall counts. The peak is a
//! loop of multiply-adds on registers, timed right before and after each repetition, because the clock rate drifts:
//! the share is the number to look at. Decoding (T = 1) is reported in GB/s of weight bytes too.

use llamantino::device::{cpu_path, Compute, CpuPath};
use llamantino::ops::gemm::{matmul_nn, matmul_nt, matmul_tn, Store, WeightRef};
use llamantino::ops::{Arena, Bytes, Matrix};
use llamantino::quant::{Nf4Matrix, Scales, SourceDtype};
use std::time::{Duration, Instant};

/// CPU time of this thread, or the clock on the wall.
fn now(threads: usize) -> Duration {
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
mod peak {
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
        (CpuPath::Avx512Bf16, Compute::Bf16) => unsafe { peak::bf16_512() },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        (CpuPath::Avx512 | CpuPath::Avx512Bf16, _) => unsafe { peak::f32_512() },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        (CpuPath::Avx2, _) => unsafe { peak::f32_256() },
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
fn peak_rate(threads: usize, compute: Compute) -> f64 {
    let start = now(threads);
    let done: f64 = rayon::broadcast(|_| peak_loop(cpu_path(), compute)).iter().sum();
    done / (now(threads) - start).as_secs_f64() / 1e9
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        self.0 >> 33
    }

    fn matrix(&mut self, arena: &Arena, rows: usize, cols: usize) -> Matrix {
        let mut matrix = arena.matrix(rows, cols);
        matrix.iter_mut().for_each(|value| *value = self.next() as f32 / (1u64 << 30) as f32 - 1.0);
        matrix
    }
}

/// A weight in each storage.
struct Weight {
    name: &'static str,
    f32: Option<Matrix>,
    bits: Vec<u16>,
    nf4: Option<Nf4Matrix>,
    rows: usize,
    cols: usize,
}

impl Weight {
    fn new(name: &'static str, arena: &Arena, rows: usize, cols: usize) -> Weight {
        let mut random = Random(3);
        let mut weight = Weight { name, f32: None, bits: Vec::new(), nf4: None, rows, cols };
        match name {
            "f32" => weight.f32 = Some(random.matrix(arena, rows, cols)),
            "f16" | "bf16" => weight.bits = (0..rows * cols).map(|_| 0x3800 + random.next() as u16 % 512).collect(),
            _ => {
                let codes: Vec<u8> = (0..rows * cols / 2).map(|_| random.next() as u8).collect();
                let blocks = rows * cols / 64;
                let scale_codes: Vec<u8> = (0..blocks).map(|_| random.next() as u8).collect();
                weight.nf4 = Some(Nf4Matrix {
                    rows,
                    cols,
                    block: 64,
                    codes: Bytes::owned(&codes),
                    scales: Scales::Double {
                        codes: Bytes::owned(&scale_codes),
                        nested_absmax: vec![0.5; blocks.div_ceil(256)],
                        map: Box::new(std::array::from_fn(|i| i as f32 / 255.0)),
                        offset: 0.1,
                        nested_block: 256,
                    },
                    dtype: if name == "nf4-bf16" { SourceDtype::Bf16 } else { SourceDtype::F32 },
                });
            }
        }
        weight
    }

    fn view(&self) -> WeightRef<'_> {
        let (rows, cols, bits) = (self.rows, self.cols, self.bits.as_slice());
        match (&self.f32, &self.nf4, self.name) {
            (Some(matrix), _, _) => WeightRef::F32(matrix.view()),
            (_, Some(matrix), _) => WeightRef::Nf4(matrix),
            (_, _, "f16") => WeightRef::F16 { bits, rows, cols },
            _ => WeightRef::Bf16 { bits, rows, cols },
        }
    }

    fn bytes(&self) -> f64 {
        let values = (self.rows * self.cols) as f64;
        match self.name {
            "f32" => values * 4.0,
            "f16" | "bf16" => values * 2.0,
            _ => values * (0.5 + 1.0 / 64.0),
        }
    }
}

/// One product: `(rows of the output, reduction, columns of the output)`.
struct Case {
    form: &'static str,
    storage: &'static str,
    compute: Compute,
    shape: (usize, usize, usize),
}

/// Times one case and prints its line.
fn measure(case: &Case, threads: usize, seconds: f64) {
    let arena = Arena::new();
    let mut random = Random(9);
    let (rows, depth, columns) = case.shape;
    let weight = match case.form {
        "nt" => Weight::new(case.storage, &arena, columns, depth),
        _ => Weight::new(case.storage, &arena, depth, columns),
    };
    let input = match case.form {
        "tn" => random.matrix(&arena, depth, rows),
        _ => random.matrix(&arena, rows, depth),
    };
    let mut output = arena.zeros(rows, columns);
    let store = Store::set(case.compute);
    let mut product = || match (case.form, weight.view()) {
        ("nt", w) => matmul_nt(input.view(), w, output.view_mut(), store),
        ("nn", w) => matmul_nn(input.view(), w, output.view_mut(), store),
        (_, WeightRef::F32(b)) => matmul_tn(input.view(), b, output.view_mut(), store),
        _ => {}
    };
    product();
    let work = 2.0 * (rows * depth * columns) as f64;
    let calls = (2e8 / work).ceil() as usize;
    let (mut rates, mut shares) = (Vec::new(), Vec::new());
    let start = Instant::now();
    while rates.len() < 5 || (start.elapsed().as_secs_f64() < seconds && rates.len() < 300) {
        let before = peak_rate(threads, case.compute);
        let begin = now(threads);
        (0..calls).for_each(|_| product());
        let rate = work * calls as f64 / (now(threads) - begin).as_secs_f64() / 1e9;
        let peak = (before + peak_rate(threads, case.compute)) / 2.0;
        rates.push(rate);
        shares.push(rate / peak * 100.0);
    }
    rates.sort_by(f64::total_cmp);
    shares.sort_by(f64::total_cmp);
    let (rate, share) = (rates[rates.len() / 2], shares[shares.len() / 2]);
    let bandwidth = if rows == 1 { format!(" {:6.1} GB/s", rate / work * weight.bytes()) } else { String::new() };
    println!("{} {rate:8.1} GFLOP/s {share:5.1} %{bandwidth}", line(case));
}

fn line(case: &Case) -> String {
    let (rows, depth, columns) = case.shape;
    format!("{:?} {} {:8} {rows:5} x {depth:5} -> {columns:5}", case.compute, case.form, case.storage).to_lowercase()
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |form, storage, shape| {
        for compute in [Compute::F32, Compute::Bf16] {
            cases.push(Case { form, storage, compute, shape });
        }
    };
    for (k, n) in [(576, 1536), (1536, 576), (576, 192), (2048, 5632), (4096, 4096)] {
        add("nt", "nf4", (512, k, n));
        add("nn", "nf4", (512, n, k));
    }
    for storage in ["nf4-bf16", "f32", "f16", "bf16"] {
        add("nt", storage, (512, 2048, 5632));
        add("nn", storage, (512, 5632, 2048));
    }
    for rows in [1, 2, 4, 8, 9, 12, 16, 20, 24, 32, 64, 128] {
        add("nt", "nf4", (rows, 2048, 5632));
        add("nn", "nf4", (rows, 5632, 2048));
    }
    for storage in ["nf4-bf16", "f32", "f16", "bf16"] {
        add("nt", storage, (1, 4096, 4096));
    }
    add("nt", "nf4", (1, 576, 1536));
    for rank in [16, 64] {
        for k in [576, 2048] {
            add("nt", "f32", (512, k, rank));
            add("nt", "f32", (512, rank, k));
            add("nn", "f32", (512, k, rank));
            add("nn", "f32", (512, rank, k));
            add("tn", "f32", (rank, 512, k));
            add("tn", "f32", (k, 512, rank));
        }
    }
    add("tn", "f32", (2048, 512, 2048));
    cases
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let value = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        arguments.get(at + 1)?.parse::<f64>().ok()
    };
    let threads = value("--threads").map_or(1, |threads| threads as usize);
    let seconds = value("--seconds").unwrap_or(0.3);
    let filters: Vec<&String> =
        arguments.iter().filter(|a| !a.starts_with("--") && a.parse::<f64>().is_err()).collect();
    let Ok(pool) = rayon::ThreadPoolBuilder::new().num_threads(threads).build() else { return };
    println!("kernel path {}, {threads} threads", cpu_path().name());
    for case in cases() {
        if filters.iter().all(|filter| line(&case).contains(filter.as_str())) {
            pool.install(|| measure(&case, threads, seconds));
        }
    }
}
