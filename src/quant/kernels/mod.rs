//! The two inner loops of NF4 on a CPU: values to codes, codes to values. Every path gives the same bits.
//!
//! Encoding must equal "the number of midpoints below y". The portable path compares with all 15 midpoints, AVX2
//! and AVX-512 look the one midpoint up that can matter (`x86.rs`). Decoding looks values up in the
//! 16-entry table of a block, whose entries are rounded to the dtype once.

use super::nf4::{SourceDtype, NF4_CODE};
use super::quantize::Values;
use crate::device::{cpu_path, CpuPath};
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};

#[cfg(target_arch = "x86_64")]
mod x86;

/// Bits of the smallest f32 magnitude that is not finite.
const INFINITY_BITS: u32 = 0x7f80_0000;
/// The least absmax that is divided by.
const LEAST_ABSMAX: f32 = 1e-38;
/// Bytes of the source that are fetched ahead: the loop is as fast as the memory, whose own prefetchers stop at pages.
const AHEAD: usize = 4 << 10;

/// Middle of each pair of neighbouring code values.
pub(super) const MIDPOINTS: [f32; 15] = {
    let mut midpoints = [0.0; 15];
    let mut i = 0;
    while i < 15 {
        midpoints[i] = (NF4_CODE[i] + NF4_CODE[i + 1]) / 2.0;
        i += 1;
    }
    midpoints
};

/// Consecutive blocks of values and where their codes go. The last block may be short.
pub(super) struct Blocks<'a> {
    pub values: Values<'a>,
    /// Values a block: a multiple of 32, at most 4096.
    pub block: usize,
    /// One a block.
    pub absmax: &'a mut [f32],
    /// `ceil(values / 2)` bytes.
    pub packed: &'a mut [u8],
}

/// Fills absmax and codes; gives the index of the first value that is not finite, if there is one.
pub(super) fn encode(blocks: Blocks<'_>) -> Option<usize> {
    encode_on(cpu_path(), blocks)
}

pub(super) fn encode_on(path: CpuPath, blocks: Blocks<'_>) -> Option<usize> {
    match path {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the path is only chosen where the CPU has AVX-512 F, BW, VL and DQ.
        CpuPath::Avx512 | CpuPath::Avx512Bf16 | CpuPath::Amx => unsafe { x86::encode_avx512(blocks) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the path is only chosen where the CPU has AVX2, FMA and F16C.
        CpuPath::Avx2 => unsafe { x86::encode_avx2(blocks) },
        _ => encode_portable(blocks),
    }
}

fn encode_portable(blocks: Blocks<'_>) -> Option<usize> {
    let Blocks { values: source, block, absmax, packed } = blocks;
    let mut wide = match source {
        Values::F32(_) => Vec::new(),
        Values::F16(_) | Values::Bf16(_) => vec![0.0f32; block],
    };
    let parts = packed.chunks_mut(block / 2).zip(absmax).enumerate();
    for (i, (packed, absmax)) in parts {
        let (start, stop) = (i * block, source.len().min((i + 1) * block));
        let values: &[f32] = match source {
            Values::F32(values) => {
                prefetch(&values[start..stop]);
                &values[start..stop]
            }
            Values::F16(bits) => {
                prefetch(&bits[start..stop]);
                let wide = &mut wide[..stop - start];
                bits[start..stop].reinterpret_cast::<half::f16>().convert_to_f32_slice(wide);
                wide
            }
            Values::Bf16(bits) => {
                prefetch(&bits[start..stop]);
                let wide = &mut wide[..stop - start];
                for (wide, &bits) in wide.iter_mut().zip(&bits[start..stop]) {
                    *wide = f32::from_bits(u32::from(bits) << 16);
                }
                wide
            }
        };
        // Magnitudes order as their bits do, and NaN and infinity come out on top.
        let bits = values.iter().fold(0, |max, value| max.max(value.to_bits() & 0x7fff_ffff));
        if bits >= INFINITY_BITS {
            let within = values.iter().position(|value| !value.is_finite()).unwrap_or(0);
            return Some(start + within);
        }
        let largest = f32::from_bits(bits);
        if values.len() == block {
            *absmax = largest;
            codes_of_full_block(values, 1.0 / largest.max(LEAST_ABSMAX), packed);
        } else {
            *absmax = largest.max(LEAST_ABSMAX);
            codes_of_short_block(values, *absmax, packed);
        }
    }
    None
}

/// Asks for as many values as these, some way behind them; they may lie anywhere.
#[inline(always)]
fn prefetch<T>(values: &[T]) {
    #[cfg(target_arch = "x86_64")]
    for offset in (0..size_of_val(values)).step_by(64) {
        use std::arch::x86_64::{_mm_prefetch, _MM_HINT_T0};
        let place = values.as_ptr().cast::<i8>().wrapping_add(AHEAD + offset);
        // SAFETY: SSE is part of x86-64, and a prefetch never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(place) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (values, AHEAD);
}

/// The short last block: divides, and an odd count is padded with the code of zero.
fn codes_of_short_block(values: &[f32], absmax: f32, packed: &mut [u8]) {
    for (byte, pair) in packed.iter_mut().zip(values.chunks(2)) {
        let high = code_of(pair[0] / absmax);
        let low = pair.get(1).map_or(7, |value| code_of(value / absmax));
        *byte = (high << 4) | low;
    }
}

/// Number of midpoints below the value. (Clamping it to [-1, 1] would not change that: no midpoint lies outside.)
fn code_of(y: f32) -> u8 {
    MIDPOINTS.iter().fold(0, |code, &midpoint| code + u8::from(y > midpoint))
}

/// A full block, in a form that compilers vectorise: 16 sums of comparisons side by side.
fn codes_of_full_block(values: &[f32], inverse: f32, packed: &mut [u8]) {
    for (values, packed) in values.chunks_exact(16).zip(packed.chunks_exact_mut(8)) {
        let mut codes = [0u32; 16];
        for (code, value) in codes.iter_mut().zip(values) {
            let y = value * inverse;
            *code = MIDPOINTS.iter().fold(0, |code, &midpoint| code + u32::from(y > midpoint));
        }
        for (byte, pair) in packed.iter_mut().zip(codes.chunks_exact(2)) {
            *byte = ((pair[0] << 4) | pair[1]) as u8;
        }
    }
}

/// The values of whole blocks from the first one in `packed` on: `out[i] = round(code * scales[i / block])`.
pub(super) fn decode_blocks(packed: &[u8], block: usize, scales: &[f32], dtype: SourceDtype, out: &mut [f32]) {
    decode_blocks_on(cpu_path(), packed, block, scales, dtype, out);
}

pub(super) fn decode_blocks_on(
    path: CpuPath,
    packed: &[u8],
    block: usize,
    scales: &[f32],
    dtype: SourceDtype,
    out: &mut [f32],
) {
    assert!(block.is_multiple_of(32) && out.len() == block * scales.len() && packed.len() == out.len() / 2);
    match path {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the path is only chosen where the CPU has AVX-512 F, BW, VL and DQ.
        CpuPath::Avx512 | CpuPath::Avx512Bf16 | CpuPath::Amx => unsafe {
            x86::decode_avx512(packed, block, scales, dtype, out)
        },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the path is only chosen where the CPU has AVX2, FMA and F16C.
        CpuPath::Avx2 => unsafe { x86::decode_avx2(packed, block, scales, dtype, out) },
        _ => {
            for ((packed, out), &scale) in packed.chunks_exact(block / 2).zip(out.chunks_exact_mut(block)).zip(scales) {
                decode_part(packed, 0, &value_table(scale, dtype), out);
            }
        }
    }
}

/// The 16 values that a block of this scale can hold: rounding the table once equals rounding each value.
#[inline]
pub(super) fn value_table(scale: f32, dtype: SourceDtype) -> [f32; 16] {
    NF4_CODE.map(|code| dtype.round(code * scale))
}

/// Part of one block, from any flat index on: `out[i] = table[code start + i]`.
pub(super) fn decode_part(packed: &[u8], start: usize, table: &[f32; 16], out: &mut [f32]) {
    let Some((first, even)) = out.split_first_mut() else { return };
    let (start, out) = if start.is_multiple_of(2) {
        (start, out)
    } else {
        *first = table[usize::from(packed[start / 2] & 15)];
        (start + 1, even)
    };
    for (pair, &byte) in out.chunks_mut(2).zip(&packed[start / 2..]) {
        pair[0] = table[usize::from(byte >> 4)];
        if let Some(low) = pair.get_mut(1) {
            *low = table[usize::from(byte & 15)];
        }
    }
}
