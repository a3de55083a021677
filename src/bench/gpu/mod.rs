//! What a GPU does and how fast: a report in sections that a machine with a GPU makes once and the repository keeps.
//!
//! Each section starts with memory of its own and ends in rows, or in the error that it met: none ends another. The same
//! code runs on the emulated GPU in tests, at sizes ([`Scale::Tiny`]) where the figures mean nothing and the checks do.
//!
//! Invariant: bounds are of the card at hand, measured before anything else: the rate of a large matrix product and that
//! of copying.

mod curve;
mod decode;
mod engine;
mod markdown;
mod operations;
mod parity;
mod quantise;
mod steps;
#[cfg(test)]
mod tests;
mod throughput;

pub use markdown::markdown;

use super::Shape;
use crate::device::cuda::Driver;
use crate::error::{Error, Result};
use crate::ops::gpu::Gpu;
use serde_json::{json, Value};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

/// A part of the report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Section {
    /// Every operation against the CPU's.
    Parity,
    /// Gradients of whole steps against the CPU's.
    Steps,
    /// Losses of a training run against the CPU's.
    Curve,
    /// Memory against the plan.
    Memory,
    /// Training steps of large models.
    Throughput,
    /// Every operation against its bound.
    Operations,
    /// Single tokens.
    Decode,
    /// NF4.
    Quantise,
}

impl Section {
    /// All, in the order of the report.
    pub const ALL: [Section; 8] = [
        Section::Parity,
        Section::Steps,
        Section::Curve,
        Section::Memory,
        Section::Operations,
        Section::Quantise,
        Section::Decode,
        Section::Throughput,
    ];

    /// Its name in the report.
    pub fn name(self) -> &'static str {
        match self {
            Section::Parity => "parity",
            Section::Steps => "steps",
            Section::Curve => "curve",
            Section::Memory => "memory",
            Section::Throughput => "throughput",
            Section::Operations => "operations",
            Section::Decode => "decode",
            Section::Quantise => "quantise",
        }
    }
}

/// How large the problems are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// Seconds on the emulated GPU.
    Tiny,
    /// LLaMA 2 7B and 13B.
    Full,
}

impl Scale {
    fn shapes(self) -> &'static [Shape] {
        match self {
            Scale::Tiny => &[Shape::Tiny],
            Scale::Full => &[Shape::B7, Shape::B13],
        }
    }

    /// One of the two.
    fn pick<T>(self, tiny: T, full: T) -> T {
        match self {
            Scale::Tiny => tiny,
            Scale::Full => full,
        }
    }
}

/// What to report.
#[derive(Debug, Clone)]
pub struct Options {
    /// Sections, in the order in which they run.
    pub sections: Vec<Section>,
    /// Sizes.
    pub scale: Scale,
    /// Model of the sections `steps` and `curve`; without one a toy with random weights.
    pub model: Option<PathBuf>,
}

/// What the card can do at best.
#[derive(Debug, Clone, Copy)]
struct Bound {
    /// Floating-point operations a second of a large bf16 product.
    operations: f64,
    /// Bytes a second, read and written, of a copy in its memory.
    bytes: f64,
}

/// What every section gets.
struct Context<'a> {
    gpu: Gpu,
    options: &'a Options,
    bound: Bound,
}

/// Rows of a section. A row whose `passed` is false fails the report.
type Rows = Vec<Value>;

/// Runs the sections; `told` hears what begins.
///
/// # Errors
/// The card cannot even multiply; what goes wrong in a section is in the report.
pub fn run(driver: &Arc<dyn Driver>, options: &Options, told: &mut dyn FnMut(&str)) -> Result<Value> {
    told("the card's peak");
    let bound = operations::bound(&Gpu::new(driver.clone()), options.scale)?;
    let mut sections = Vec::new();
    for section in &options.sections {
        told(section.name());
        let start = Instant::now();
        let context = Context { gpu: Gpu::new(driver.clone()), options, bound };
        let rows = catch_unwind(AssertUnwindSafe(|| run_section(*section, &context)))
            .unwrap_or_else(|_| Err(Error::failed("stopped by a failed check; its message is on stderr")));
        sections.push(as_json(*section, rows, start.elapsed().as_secs_f64()));
    }
    let passed = sections.iter().all(|section| section["passed"] == true);
    Ok(json!({
        "tool": "llamantino", "version": env!("CARGO_PKG_VERSION"), "what": "gpu", "device": driver.name(),
        "memory_gib": round(driver.memory()?.total as f64 / GIB),
        "product_tflop_s": round(bound.operations / 1e12), "copy_gb_s": round(bound.bytes / 1e9),
        "passed": passed, "sections": sections,
    }))
}

fn run_section(section: Section, context: &Context<'_>) -> Result<Rows> {
    match section {
        Section::Parity => parity::rows(&context.gpu),
        Section::Steps => steps::rows(context),
        Section::Curve => curve::rows(context),
        Section::Memory => throughput::memory_rows(context),
        Section::Throughput => throughput::rows(context),
        Section::Operations => operations::rows(context),
        Section::Decode => decode::rows(context),
        Section::Quantise => quantise::rows(context),
    }
}

fn as_json(section: Section, rows: Result<Rows>, seconds: f64) -> Value {
    let (rows, error) = match rows {
        Ok(rows) => (rows, None),
        Err(error) => (Vec::new(), Some(error.to_string())),
    };
    let passed = error.is_none() && rows.iter().all(|row| row["passed"] != false);
    json!({ "section": section.name(), "passed": passed, "error": error, "seconds": round(seconds), "rows": rows })
}

const GIB: f64 = (1u64 << 30) as f64;

/// To four figures, so that small ones stay.
fn round(value: f64) -> f64 {
    let digits = 3 - value.abs().max(f64::MIN_POSITIVE).log10().floor() as i32;
    let factor = 10f64.powi(digits.clamp(0, 9));
    (value * factor).round() / factor
}

/// Seconds of one of `repeats` calls that are waited for together: the median of three rounds after one to warm up.
fn seconds(gpu: &Gpu, repeats: usize, mut work: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut times = Vec::new();
    for round in 0..4 {
        gpu.driver().synchronize()?;
        let start = Instant::now();
        (0..repeats).try_for_each(|_| work())?;
        gpu.driver().synchronize()?;
        if round > 0 {
            times.push(start.elapsed().as_secs_f64() / repeats as f64);
        }
    }
    Ok(super::median_of(&mut times))
}
