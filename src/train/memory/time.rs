//! How long a run will take: its multiply-adds over the rate at which this machine multiplies.
//!
//! The rate is measured for a fraction of a second on a product of the model's own shape and storage. Everything that is
//! no product (softmax, norms, optimizer, small operands) is in one factor, which was measured over whole steps.

use super::job::Job;
use crate::device::Compute;
use crate::model::Keep;
use crate::ops::gemm::{forward_nt, WeightRef};
use crate::ops::{Arena, Bytes, MatRef};
use crate::quant::{quantize, QuantConfig, Values};
use std::time::{Duration, Instant};

/// Share of a step's time that its large products would take alone at the measured rate.
const SHARE_OF_PRODUCTS: f64 = 0.7;

/// Floating-point operations of a token in a training step (two for a multiply-add).
pub fn operations_per_token(job: &Job, keep: &[Keep]) -> f64 {
    let shape = job.model.attention;
    let width = (shape.heads * shape.head_dim) as f64;
    // Scores and their product with the values, over half of the rows on average.
    let attention = 2.0 * job.batch.length as f64 * width;
    let trains_weights = job.trained_weights();
    let mut sum = 0.0;
    for (linears, keep) in job.model.blocks.iter().zip(keep) {
        let again = if *keep == Keep::Input { 1.0 } else { 0.0 };
        for (index, linear) in linears.iter().enumerate() {
            // The last one is not needed again.
            let forward = if index + 1 < linears.len() { 1.0 + again } else { 1.0 };
            let passes = forward + 1.0 + f64::from(u8::from(trains_weights));
            sum += passes * 2.0 * (linear.rows * linear.cols) as f64;
            let rank = linear.rank.unwrap_or(0);
            sum += (forward + 2.0) * 2.0 * (rank * (linear.rows + linear.cols)) as f64;
            if linear.dora {
                // The magnitude's gradient multiplies with the weight once more.
                sum += 2.0 * (linear.rows * linear.cols) as f64;
            }
        }
        sum += (1.0 + again + 2.5) * attention;
    }
    let head = 2.0 * (job.model.vocab * job.model.hidden) as f64;
    sum + (2.0 + f64::from(u8::from(job.trains_embeddings))) * head
}

/// Floating-point operations a second of this machine on products like the job's, all threads together.
pub fn measured_rate(job: &Job) -> f64 {
    const BUDGET: Duration = Duration::from_millis(300);
    let (rows, depth) = (job.batch.rows().clamp(1, 512), job.model.hidden.clamp(1, 2048));
    let columns = job.linears().map(|linear| linear.rows).max().unwrap_or(1).clamp(1, 4096);
    let arena = Arena::new();
    let wave =
        |values: &mut [f32]| values.iter_mut().enumerate().for_each(|(i, v)| *v = ((i % 97) as f32 - 48.0) / 97.0);
    let (mut x, mut w, mut y) = (arena.matrix(rows, depth), arena.matrix(columns, depth), arena.matrix(rows, columns));
    wave(&mut x);
    wave(&mut w);
    let nf4 = job.quantization.and_then(|config: QuantConfig| quantize(Values::F32(&w), columns, depth, config).ok());
    let bits = Bytes::filled(2 * w.len(), |bytes| bytes.fill(0x3c));
    let weight = match &nf4 {
        Some(matrix) => WeightRef::Nf4(matrix),
        None if job.stored_bytes == 2 => WeightRef::Bf16 { bits: bits.as_u16(), rows: columns, cols: depth },
        None => WeightRef::F32(MatRef::new(&w, columns, depth)),
    };
    let compute: Compute = job.batch.compute;
    forward_nt(x.view(), weight, y.view_mut(), compute);
    let (start, mut runs) = (Instant::now(), 0u32);
    while start.elapsed() < BUDGET || runs < 2 {
        forward_nt(x.view(), weight, y.view_mut(), compute);
        runs += 1;
    }
    2.0 * (rows * depth * columns) as f64 * f64::from(runs) / start.elapsed().as_secs_f64()
}

/// Seconds that a token takes in a training step, at this rate.
pub fn seconds_per_token(job: &Job, keep: &[Keep], rate: f64) -> f64 {
    operations_per_token(job, keep) / rate / SHARE_OF_PRODUCTS
}
