//! One table of everything that should be fast: ours, the bound on this machine, the share of the bound, peak memory.
//!
//! `cargo bench --bench table [-- [--threads N] FILTER...]`: each row whose name contains every filter; the whole takes
//! long (`-- --list` names the rows). Every row runs in a process of its own, so that its peak memory is its own, and
//! measures its bound itself: the register loop of multiply-adds, reading and copying memory, or copying, syncing and
//! hashing a file. Other work on the machine spoils the figures.

mod bandwidth;
mod files;
mod peak;
mod product;

use llamantino::bench::{self, ModelChoice, Shape, TrainBench};
use llamantino::device::{peak_resident_bytes, Compute};
use llamantino::ops::gemm::{RowInput, RowProduct, RowTables};
use llamantino::ops::team;
use llamantino::ops::Arena;
use llamantino::train::recompute::Recompute;
use product::{measure, Case, Weight};
use serde_json::{json, Value};
use std::process::Command;
use std::time::Instant;

/// What a row found: its figure and the bound, in one unit. `lower`: less is better.
pub struct Figure {
    ours: f64,
    bound: f64,
    unit: &'static str,
    lower: bool,
}

impl Figure {
    fn rate(ours: f64, bound: f64, unit: &'static str) -> Figure {
        Figure { ours, bound, unit, lower: false }
    }

    /// Times, in seconds.
    pub fn time(ours: f64, bound: f64) -> Figure {
        Figure { ours, bound, unit: "s", lower: true }
    }
}

type Measured = Result<Figure, Box<dyn std::error::Error>>;
type Row = (String, Box<dyn Fn(usize) -> Measured>);

fn rows() -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    let mut add = |name: String, run: Box<dyn Fn(usize) -> Measured>| rows.push((name, run));
    let computes = [("f32", Compute::F32), ("bf16", Compute::Bf16)];
    for (name, compute) in computes {
        for (k, n) in [(576, 1536), (1536, 576), (2048, 5632), (4096, 4096)] {
            add(format!("gemm {name} nt 512x{k}->{n}"), Box::new(move |t| product(compute, "nt", (512, k, n), t)));
            add(format!("gemm {name} nn 512x{n}->{k}"), Box::new(move |t| product(compute, "nn", (512, n, k), t)));
        }
    }
    for (name, compute) in computes {
        for storage in ["nf4", "nf4-f16", "nf4-bf16"] {
            add(format!("gemv {name} {storage} streamed"), Box::new(move |_| streamed(compute, storage)));
        }
    }
    for (shape_name, shape) in [("135m", Shape::M135), ("360m", Shape::M360), ("1.1b", Shape::B1)] {
        for (name, compute) in computes {
            for sequence in [512, 2048] {
                for (keep, recompute) in [("keep", Recompute::Off), ("recompute", Recompute::On)] {
                    let run = move |_| step(shape, compute, sequence, recompute);
                    add(format!("step {shape_name} {name} {sequence} {keep}"), Box::new(run));
                }
            }
        }
    }
    for (shape_name, shape) in [("135m", Shape::M135), ("1.1b", Shape::B1)] {
        for (name, compute) in computes {
            add(format!("decode {shape_name} {name}"), Box::new(move |_| decode(shape, compute)));
            add(format!("prompt {shape_name} {name}"), Box::new(move |_| prompt(shape, compute)));
        }
    }
    for name in ["f32", "bf16"] {
        add(format!("quantize {name}"), Box::new(move |_| quantize(name == "bf16", "gb_per_s")));
        let key = "gb_per_s_into_used_memory";
        add(format!("quantize {name} into used memory"), Box::new(move |_| quantize(name == "bf16", key)));
    }
    for (name, shape) in [("135m", Shape::M135), ("1.1b", Shape::B1)] {
        add(format!("merge {name}"), Box::new(move |_| files::merge(shape)));
    }
    add("start 135m nf4".into(), Box::new(|_| files::start(Shape::M135)));
    add("help".into(), Box::new(|_| files::help()));
    rows
}

fn product(compute: Compute, form: &'static str, shape: (usize, usize, usize), threads: usize) -> Measured {
    let figures = measure(&Case { form, storage: "nf4", compute, shape }, threads, 1.0);
    Ok(Figure::rate(figures.rate, figures.rate / figures.share * 100.0, "GFLOP/s"))
}

/// Products with one row of x over so many weights that none is in a cache when its turn comes, as in decoding.
fn streamed(compute: Compute, storage: &'static str) -> Measured {
    let arena = Arena::new();
    let weights: Vec<Weight> = (0..400).map(|_| Weight::new(storage, &arena, 1536, 576)).collect();
    let bytes: f64 = weights.iter().map(Weight::bytes).sum();
    let tables: Vec<_> = weights.iter().map(|weight| RowTables::new(weight.view(), compute)).collect();
    let x: Vec<f32> = (0..576).map(|i| (i % 7) as f32 * 0.1 - 0.3).collect();
    let mut rates = Vec::new();
    for _ in 0..9 {
        let start = Instant::now();
        team::run(rayon::current_num_threads(), |mut member| {
            let mut input = RowInput::default();
            for (weight, tables) in weights.iter().zip(&tables) {
                let product = RowProduct::new(weight.view(), compute).reading(tables.as_ref());
                input.load(&x, [product].into_iter());
                member.share(1536 / 48, |job| {
                    product.sums(&input, job * 48..(job + 1) * 48, &mut |_, sum| {
                        std::hint::black_box(sum);
                    });
                });
            }
        });
        rates.push(bytes / start.elapsed().as_secs_f64() / 1e9);
    }
    rates.sort_by(f64::total_cmp);
    drop(weights);
    Ok(Figure::rate(rates[rates.len() / 2], bandwidth::read_bandwidth(), "GB/s"))
}

/// The bound is the arithmetic of a step without recompute at the peak, which the bench times beside each step.
fn step(shape: Shape, compute: Compute, sequence: usize, recompute: Recompute) -> Measured {
    let rank = 16;
    let steps = if matches!(shape, Shape::B1) { 2 } else { 5 };
    let model = ModelChoice::Random(shape);
    let job = TrainBench {
        model,
        compute,
        sequence,
        batch: 1,
        rank,
        recompute,
        memory_limit_gib: 0.0,
        steps,
        warmup: 1,
        profile: false,
    };
    let found = bench::train(&job)?;
    Ok(Figure::rate(number(&found, "tokens_per_s")?, number(&found, "bound_tokens_per_s")?, "tok/s"))
}

/// The bound is reading every weight once for each token.
fn decode(shape: Shape, compute: Compute) -> Measured {
    let found = bench::decode(&ModelChoice::Random(shape), compute, 16, 64, 5)?;
    let bytes = number(&found, "bytes_per_token")?;
    let bound = bandwidth::read_bandwidth() * 1e9 / bytes;
    Ok(Figure::rate(number(&found, "decode_tokens_per_s")?, bound, "tok/s"))
}

/// The bound is the arithmetic of the linears and of attention at the peak, with one row of logits.
fn prompt(shape: Shape, compute: Compute) -> Measured {
    let before = peak::peak_rate(rayon::current_num_threads(), compute);
    let found = bench::decode(&ModelChoice::Random(shape), compute, 512, 2, 5)?;
    let peak = (before + peak::peak_rate(rayon::current_num_threads(), compute)) / 2.0;
    let bound = peak * 1e9 / bench::prompt_operations(&shape.config()?, 512);
    Ok(Figure::rate(number(&found, "prompt_tokens_per_s")?, bound, "tok/s"))
}

/// Bytes read and written, against copying; in turn, since what the memory gives changes from second to second.
fn quantize(half: bool, key: &str) -> Measured {
    let (mut ours, mut bounds) = (Vec::new(), Vec::new());
    for _ in 0..5 {
        bounds.push(bandwidth::copy_bandwidth());
        ours.push(number(&bench::quantize(5, half)?, key)?);
    }
    let [ours, bound] = [ours, bounds].map(|mut rates| {
        rates.sort_by(f64::total_cmp);
        rates[rates.len() / 2]
    });
    Ok(Figure::rate(ours, bound, "GB/s"))
}

fn number(found: &Value, key: &str) -> Result<f64, String> {
    found[key].as_f64().ok_or_else(|| format!("no {key} in {found}"))
}

/// One row, in this process: a line of JSON.
fn measure_row(name: &str, threads: usize) -> Result<(), Box<dyn std::error::Error>> {
    llamantino::device::set_threads(Some(threads))?;
    let (_, run) = rows().into_iter().find(|(row, _)| row == name).ok_or("no such row")?;
    let Figure { ours, bound, unit, lower } = run(threads)?;
    let peak = peak_resident_bytes() >> 20;
    println!("{}", json!({"ours": ours, "bound": bound, "unit": unit, "lower": lower, "peak_mib": peak}));
    Ok(())
}

/// One row in a process of its own, as a line of the table.
fn table_line(name: &str, threads: usize) -> Result<String, Box<dyn std::error::Error>> {
    let program = std::env::current_exe()?;
    let output = Command::new(program).args(["--threads", &threads.to_string(), "--row", name]).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let Some(Ok(found)) = text.lines().last().map(serde_json::from_str::<Value>) else {
        return Err(String::from_utf8_lossy(&output.stderr).into());
    };
    let (ours, bound) = (number(&found, "ours")?, number(&found, "bound")?);
    let share = if found["lower"] == true { bound / ours } else { ours / bound } * 100.0;
    let unit = found["unit"].as_str().unwrap_or("");
    let digits = if bound < 10.0 { 3 } else { 1 };
    let peak = number(&found, "peak_mib")?;
    Ok(format!("| {name} | {ours:.digits$} {unit} | {bound:.digits$} {unit} | {share:.0} % | {peak} |"))
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let value = |name: &str| arguments.iter().position(|a| a == name).and_then(|at| arguments.get(at + 1));
    let default = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = value("--threads").and_then(|threads| threads.parse().ok()).unwrap_or(default);
    if let Some(row) = value("--row") {
        if let Err(error) = measure_row(row, threads) {
            eprintln!("{row}: {error}");
            std::process::exit(1);
        }
        return;
    }
    let is_value = |at: usize| at > 0 && arguments[at - 1] == "--threads";
    let filters: Vec<&String> =
        arguments.iter().enumerate().filter(|(at, a)| !a.starts_with("--") && !is_value(*at)).map(|(_, a)| a).collect();
    let wanted = rows().into_iter().map(|(name, _)| name).filter(|name| filters.iter().all(|f| name.contains(*f)));
    if arguments.iter().any(|argument| argument == "--list") {
        wanted.for_each(|name| println!("{name}"));
        return;
    }
    println!("kernel path {}, {threads} threads\n", llamantino::device::cpu_path().name());
    println!("| work | ours | bound here | of the bound | peak MiB |\n|---|---|---|---|---|");
    for name in wanted {
        match table_line(&name, threads) {
            Ok(line) => println!("{line}"),
            Err(error) => println!("| {name} | failed: {} | | | |", error.to_string().trim()),
        }
    }
}
