//! Linears that share one row of input, with their adapters, in phases of a team.
//!
//! `y = g ∘ (W·x + s·B·(A·x)) + bias`, as in [`crate::ops::linear`] without dropout; g is DoRA's factor. Where there is an
//! adapter, `A·x` is a phase of its own.

use crate::model::layer::LinearLayer;
use crate::model::pass::Pass;
use crate::ops::gemm::{RowInput, RowProduct};
use crate::ops::linear::{Adapter, Linear};
use crate::ops::team::{Member, SharedValues};
use crate::ops::WeightRef;
use std::ops::Range;

/// Most linears that share an input.
pub(super) const MOST: usize = 3;

/// Bytes of the weight in a job: short, so that threads end a phase together.
const JOB_BYTES: usize = 16 << 10;

/// Rows of a job are a multiple of this, which kernels take at once.
const ROWS_AT_ONCE: usize = 4;

/// Most rows of a job.
const MOST_ROWS: usize = 64;

/// Rows of a weight in a job.
pub(super) fn rows_per_job(row_bytes: usize) -> usize {
    let rows = JOB_BYTES / row_bytes.max(1);
    (rows / ROWS_AT_ONCE * ROWS_AT_ONCE).clamp(ROWS_AT_ONCE, MOST_ROWS)
}

/// One thread's memory.
#[derive(Default)]
pub(super) struct Scratch {
    /// The input of the linears.
    pub input: RowInput,
    /// The inputs of their B.
    hidden: [RowInput; MOST],
    low_rank: Vec<f32>,
}

/// `N` linears with one input.
pub(super) struct Projection<'a, const N: usize> {
    parts: [Part<'a>; N],
    /// Largest rank of the adapters; 0 without.
    rank: usize,
}

struct Part<'a> {
    linear: Linear<'a>,
    product: RowProduct<'a>,
    low_rank: Option<LowRank<'a>>,
}

struct LowRank<'a> {
    adapter: Adapter<'a>,
    a: RowProduct<'a>,
    b: RowProduct<'a>,
}

impl<'a> Part<'a> {
    fn new(layer: &'a LinearLayer, pass: &'a Pass<'_>) -> Part<'a> {
        let linear = layer.view(pass);
        let product = |weight| RowProduct::new(weight, linear.compute);
        let low_rank = linear.adapter.map(|adapter| LowRank {
            adapter,
            a: product(WeightRef::F32(adapter.a)),
            b: product(WeightRef::F32(adapter.b)),
        });
        Part { linear, product: product(linear.weight).reading(layer.row_tables.as_ref()), low_rank }
    }

    /// Outputs of a range of rows.
    fn outputs(&self, input: &RowInput, hidden: &RowInput, rows: Range<usize>, out: &mut [f32]) {
        let first = rows.start;
        self.product.sums(input, rows.clone(), &mut |row, sum| out[row - first] = sum);
        if let Some(LowRank { adapter, b, .. }) = &self.low_rank {
            b.sums(hidden, rows.clone(), &mut |row, sum| out[row - first] += adapter.scale * sum);
            if let Some(dora) = adapter.dora {
                out.iter_mut().zip(&dora.factor[rows.clone()]).for_each(|(y, factor)| *y *= factor);
            }
        }
        if let Some(bias) = self.linear.bias {
            out.iter_mut().zip(&bias[rows]).for_each(|(y, bias)| *y += bias);
        }
    }
}

impl<'a, const N: usize> Projection<'a, N> {
    pub fn new(layers: [&'a LinearLayer; N], pass: &'a Pass<'_>) -> Projection<'a, N> {
        let parts = layers.map(|layer| Part::new(layer, pass));
        let rank = parts.iter().filter_map(|part| part.low_rank.as_ref()).map(|low| low.a.rows()).max().unwrap_or(0);
        Projection { parts, rank }
    }

    /// Brings the input into form; with adapters, a phase that computes their low-rank values.
    fn prepare(&self, member: &mut Member<'_>, scratch: &mut Scratch, x: &[f32], shared: &SharedValues) {
        let Scratch { input, hidden, low_rank } = scratch;
        let low = |part: &Part<'a>| part.low_rank.as_ref().map(|low| low.a);
        input.load(x, self.parts.iter().flat_map(|part| [Some(part.product), low(part)]).flatten());
        if self.rank == 0 {
            return;
        }
        let per_linear = self.rank.div_ceil(ROWS_AT_ONCE);
        member.share(N * per_linear, |job| {
            let (index, first) = (job / per_linear, job % per_linear * ROWS_AT_ONCE);
            let Some(a) = low(&self.parts[index]) else { return };
            let rows = first.min(a.rows())..a.rows().min(first + ROWS_AT_ONCE);
            a.sums(input, rows, &mut |row, sum| shared.set(index * self.rank + row, sum));
        });
        for (index, (part, hidden)) in self.parts.iter().zip(hidden).enumerate() {
            if let Some(LowRank { a, b, .. }) = &part.low_rank {
                low_rank.resize(a.rows(), 0.0);
                shared.read(index * self.rank, low_rank);
                hidden.load(low_rank, [*b].into_iter());
            }
        }
    }

    /// Writes every output of linear `i` into `outputs[i]`, from a place there on.
    pub fn each(
        &self,
        member: &mut Member<'_>,
        scratch: &mut Scratch,
        x: &[f32],
        low_rank: &SharedValues,
        outputs: [(&SharedValues, usize); N],
    ) {
        self.prepare(member, scratch, x, low_rank);
        let jobs =
            self.parts.each_ref().map(|part| part.product.rows().div_ceil(rows_per_job(part.product.row_bytes())));
        member.share(jobs.iter().sum(), |job| {
            let (mut index, mut job) = (0, job);
            while job >= jobs[index] {
                job -= jobs[index];
                index += 1;
            }
            let part = &self.parts[index];
            let (step, (output, place)) = (rows_per_job(part.product.row_bytes()), outputs[index]);
            let rows = job * step..part.product.rows().min((job + 1) * step);
            let mut out = [0.0; MOST_ROWS];
            let out = &mut out[..rows.len()];
            part.outputs(&scratch.input, &scratch.hidden[index], rows.clone(), out);
            output.write(place + rows.start, out);
        });
    }

    /// Hands `finish` the outputs of all linears for the same rows, from a first one on, and room for as many values.
    pub fn together(
        &self,
        member: &mut Member<'_>,
        scratch: &mut Scratch,
        x: &[f32],
        low_rank: &SharedValues,
        finish: impl Fn(usize, [&[f32]; N], &mut [f32]),
    ) {
        self.prepare(member, scratch, x, low_rank);
        let product = &self.parts[0].product;
        let (rows, step) = (product.rows(), rows_per_job(product.row_bytes()));
        member.share(rows.div_ceil(step), |job| {
            let rows = job * step..rows.min((job + 1) * step);
            let (mut outputs, mut room) = ([[0.0; MOST_ROWS]; N], [0.0; MOST_ROWS]);
            for (part, (hidden, out)) in self.parts.iter().zip(scratch.hidden.iter().zip(&mut outputs)) {
                part.outputs(&scratch.input, hidden, rows.clone(), &mut out[..rows.len()]);
            }
            finish(rows.start, outputs.each_ref().map(|out| &out[..rows.len()]), &mut room[..rows.len()]);
        });
    }
}
