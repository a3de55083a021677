//! Double quantisation: the scales of the 4-bit blocks themselves in 8 bits.
//!
//! `offset = mean(scales)`; `d = scales - offset` is cut into blocks of 256 with `nested_absmax = max |d|` each; the
//! code of `d / nested_absmax` comes from a 65536-entry table over -1 to 1, so that it is in a few cases not the
//! nearest one: that is what bitsandbytes does on a CPU, and every bit of it is kept. A nested block of zeros
//! gets code 0.
//! Reference: Dettmers et al., "8-bit Optimizers via Block-wise Quantization" (2022) for the map; the golden vectors.

use super::nf4::Scales;
use crate::ops::bytes::Bytes;
use rayon::prelude::*;
use std::sync::LazyLock;

/// Scales that share a nested absmax.
pub const NESTED_BLOCK: usize = 256;

/// Scales whose sum is a part of the mean.
pub const PART: usize = 65536;

/// Equal steps from -1 to 1 that have a code each.
pub const STEPS: usize = 65536;

/// The signed dynamic map of 8 bits, ascending: 7 decades with 1, 2, 4 ... 64 values of either sign, 0 and 1.
pub fn dynamic_map_signed_8bit() -> &'static [f32; 256] {
    static MAP: LazyLock<[f32; 256]> = LazyLock::new(build_map);
    &MAP
}

/// Decade `e` covers (0.1, 1) * 10^(e-6) by the middles of 2^e equal intervals, all in f32.
fn build_map() -> [f32; 256] {
    const DECADES: [f32; 7] = [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0];
    let mut map = [0.0f32; 256];
    let mut next = 2;
    map[1] = 1.0;
    for (exponent, decade) in DECADES.into_iter().enumerate() {
        let intervals = 1usize << exponent;
        for i in 0..intervals {
            let middle = (boundary(i, intervals) + boundary(i + 1, intervals)) / 2.0;
            map[next] = decade * middle;
            map[next + 1] = -(decade * middle);
            next += 2;
        }
    }
    map.sort_unstable_by(f32::total_cmp);
    map
}

/// Point `i` of `intervals + 1` points from 0.1 to 1: counted from the nearer end and rounded once, as torch's
/// `linspace` comes out.
fn boundary(i: usize, intervals: usize) -> f32 {
    let (start, end) = (0.1f32, 1.0f32);
    let step = (end - start) / intervals as f32;
    if i < intervals.div_ceil(2) {
        step.mul_add(i as f32, start)
    } else {
        (-step).mul_add((intervals - i) as f32, end)
    }
}

/// Code of each of the [`STEPS`]: the number of midpoints of the map below it.
pub(super) fn code_table() -> &'static [u8] {
    static TABLE: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let map = dynamic_map_signed_8bit();
        let midpoints: Vec<f32> = map.windows(2).map(|pair| 0.5 * (pair[0] + pair[1])).collect();
        let value = |k: u32| -1.0 + (2.0 * k as f32) / 65535.0;
        (0..STEPS as u32).map(|k| midpoints.partition_point(|&m| m < value(k)) as u8).collect()
    });
    &TABLE
}

/// Double quantisation around the mean of the scales. The mean is an f64 sum in a fixed order, rounded once.
pub fn double_quantize(absmax: &[f32]) -> Scales {
    let partial: Vec<f64> =
        absmax.par_chunks(PART).map(|part| part.iter().map(|&scale| f64::from(scale)).sum()).collect();
    let mean = partial.iter().sum::<f64>() / absmax.len() as f64;
    double_quantize_around(absmax, mean as f32)
}

/// Double quantisation around a given offset.
pub fn double_quantize_around(absmax: &[f32], offset: f32) -> Scales {
    let table = code_table();
    let mut nested_absmax = vec![0.0f32; absmax.len().div_ceil(NESTED_BLOCK)];
    let codes = Bytes::filled(absmax.len(), |codes| {
        let blocks = absmax.par_chunks(NESTED_BLOCK).zip(codes.par_chunks_mut(NESTED_BLOCK));
        blocks.zip(nested_absmax.par_iter_mut()).with_min_len(16).for_each(|((scales, codes), largest)| {
            *largest = scales.iter().fold(0.0, |max: f32, &scale| max.max((scale - offset).abs()));
            if *largest == 0.0 {
                return; // the codes are zero already
            }
            let inverse = 1.0 / *largest;
            for (code, &scale) in codes.iter_mut().zip(scales) {
                let unit = ((scale - offset) * inverse).clamp(-1.0, 1.0);
                *code = table[usize::from(((unit + 1.0) * 0.5 * 65535.0 + 0.5) as u16)];
            }
        });
    });
    let map = Box::new(*dynamic_map_signed_8bit());
    Scales::Double { codes, nested_absmax, map, offset, nested_block: NESTED_BLOCK }
}
