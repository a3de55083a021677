//! How near the matrix products come to the arithmetic peak of this machine.
//!
//! `cargo bench --bench gemm [-- FILTER...]`: each case whose line contains every filter. One thread is timed by its
//! CPU time, so that a busy machine disturbs little; with `--threads N` the clock on the wall counts. The share of the
//! peak is the number to look at. Decoding (T = 1) is reported in GB/s of weight bytes too.

mod peak;
mod product;

use llamantino::device::{cpu_path, Compute};
use product::{line, measure, Case};

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
    // The head of SmolLM2-135M, half of 512 rows.
    add("nt", "bf16", (256, 576, 49152));
    add("nn", "bf16", (256, 49152, 576));
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
            let figures = pool.install(|| measure(&case, threads, seconds));
            let bandwidth = match case.shape.0 {
                1 => format!(" {:6.1} GB/s", figures.bandwidth),
                _ => String::new(),
            };
            println!("{} {:8.1} GFLOP/s {:5.1} %{bandwidth}", line(&case), figures.rate, figures.share);
        }
    }
}
