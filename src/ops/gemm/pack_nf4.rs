//! NF4 codes to f32, and the choice of the fast packers.
//!
//! Blocks and nibbles follow the flat index `row · cols + col`, so everything here works on *groups*: 16 codes whose
//! flat index starts at a multiple of 16. A group is 8 whole bytes and lies in one block (blocks are multiples of 32).

use super::kernel::Kernels;
#[cfg(target_arch = "x86_64")]
use super::pack_dense::NARROW;
use super::pack_dense::{bf16_bits, round_f16, Source};
use super::panel::Panel;
#[cfg(target_arch = "x86_64")]
use crate::device::Compute;
use crate::device::CpuPath;
use crate::quant::nf4::NF4_CODE;
use crate::quant::{Nf4Matrix, Scales, SourceDtype};

/// Scales of a matrix with the storage resolved once.
#[derive(Clone, Copy)]
pub(super) enum ScaleReader<'a> {
    Plain(&'a [f32]),
    Double { codes: &'a [u8], nested: &'a [f32], map: &'a [f32; 256], offset: f32, shift: u32 },
    Other(&'a Nf4Matrix),
}

impl<'a> ScaleReader<'a> {
    pub fn new(matrix: &'a Nf4Matrix) -> ScaleReader<'a> {
        match &matrix.scales {
            Scales::Plain(values) => ScaleReader::Plain(values.as_f32()),
            Scales::Double { codes, nested_absmax, map, offset, nested_block } if nested_block.is_power_of_two() => {
                let shift = nested_block.trailing_zeros();
                ScaleReader::Double { codes, nested: nested_absmax, map, offset: *offset, shift }
            }
            Scales::Double { .. } => ScaleReader::Other(matrix),
        }
    }

    /// `to[i]` = the scale at flat index `start + i · step`, where `start` and `block` are multiples of `step`.
    pub fn fill(&self, start: usize, step: usize, block: usize, to: &mut [f32]) {
        let first = start / block;
        match self {
            ScaleReader::Plain(values) if step == block => to.copy_from_slice(&values[first..first + to.len()]),
            ScaleReader::Double { codes, nested, map, offset, shift } if step == block => {
                let mut at = first;
                let mut rest = to;
                while !rest.is_empty() {
                    // One nested block after the other.
                    let end = ((at >> shift) + 1) << shift;
                    let (head, tail) = rest.split_at_mut(rest.len().min(end - at));
                    let factor = nested[at >> shift];
                    for (to, &code) in head.iter_mut().zip(&codes[at..]) {
                        *to = map[usize::from(code)] * factor + offset;
                    }
                    at = end;
                    rest = tail;
                }
            }
            _ => {
                let shift = block.trailing_zeros();
                for (i, to) in to.iter_mut().enumerate() {
                    *to = self.get((start + i * step) >> shift);
                }
            }
        }
    }

    /// The scale of a block.
    #[inline(always)]
    pub fn get(&self, block: usize) -> f32 {
        match self {
            ScaleReader::Plain(values) => values[block],
            ScaleReader::Double { codes, nested, map, offset, shift } => {
                map[codes[block] as usize] * nested[block >> shift] + offset
            }
            ScaleReader::Other(matrix) => matrix.scale(block),
        }
    }
}

/// The 16 values of a block with this scale.
#[inline(always)]
pub(super) fn table(scale: f32, dtype: SourceDtype) -> [f32; 16] {
    let values = NF4_CODE.map(|code| code * scale);
    match dtype {
        SourceDtype::F32 => values,
        SourceDtype::F16 => values.map(round_f16),
        SourceDtype::Bf16 => values.map(|value| f32::from_bits(bf16_bits(value) << 16)),
    }
}

/// Writes the groups that cover `count` values from flat index `start`; the values begin at the returned offset.
pub(super) fn dequantise(path: CpuPath, matrix: &Nf4Matrix, start: usize, count: usize, to: &mut [f32]) -> usize {
    let groups = start / 16..(start + count).div_ceil(16);
    assert!(to.len() >= groups.len() * 16);
    match path {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the path is available, and the assertion covers the target.
        CpuPath::Avx512 | CpuPath::Avx512Bf16 | CpuPath::Amx => unsafe {
            super::pack_nf4_avx512::dequantise_groups(matrix, groups, to);
        },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        CpuPath::Avx2 => unsafe { super::avx2::dequantise_groups(matrix, groups, to) },
        _ => dequantise_groups(matrix, groups, to),
    }
    start % 16
}

fn dequantise_groups(matrix: &Nf4Matrix, groups: std::ops::Range<usize>, to: &mut [f32]) {
    let scales = ScaleReader::new(matrix);
    let shift = matrix.block.trailing_zeros();
    let mut block = usize::MAX;
    let mut values = [0.0; 16];
    for (group, to) in groups.zip(to.chunks_exact_mut(16)) {
        if (group * 16) >> shift != block {
            block = (group * 16) >> shift;
            values = table(scales.get(block), matrix.dtype);
        }
        for (to, byte) in to.chunks_exact_mut(2).zip(group_bytes(matrix, group)) {
            to[0] = values[usize::from(byte >> 4)];
            to[1] = values[usize::from(byte & 15)];
        }
    }
}

/// The eight bytes of a group; the last group of a matrix may be short of some.
#[inline(always)]
pub(super) fn group_bytes(matrix: &Nf4Matrix, group: usize) -> [u8; 8] {
    let mut bytes = [0u8; 8];
    match matrix.codes.get(group * 8..group * 8 + 8) {
        Some(whole) => bytes.copy_from_slice(whole),
        None => {
            let rest = &matrix.codes[group * 8..];
            bytes[..rest.len()].copy_from_slice(rest);
        }
    }
    bytes
}

/// Packs with the vector packers if they know this shape; false if they do not. Panels side by side (`apart` words from
/// one to the next) are packed at once where that is faster, of which false says too that it is not.
#[cfg(target_arch = "x86_64")]
pub(super) fn pack_fast(
    source: &Source<'_>,
    matrix: &Nf4Matrix,
    kernels: &Kernels,
    panel: &mut Panel<'_>,
    apart: Option<usize>,
) -> bool {
    if source.path == CpuPath::Avx2 && apart.is_none() {
        return pack_narrow(source, matrix, panel);
    }
    use super::pack_nf4_avx512::Piece;
    use super::{pack_nf4_avx512, pack_nf4_bf16};
    let unit = if source.transposed { 32 } else { 16 };
    let rounded_f32 = source.compute == Compute::Bf16 && kernels.pairs.is_none();
    if source.path < CpuPath::Avx512 || rounded_f32 || !matrix.cols.is_multiple_of(unit) {
        return false;
    }
    // Rows that become columns are read from end to end anyway.
    if apart.is_some() && (source.transposed || kernels.pairs.is_none()) {
        return false;
    }
    if panel.columns.is_empty() || panel.depth.is_empty() {
        return true;
    }
    let to = panel.vectors(kernels, apart);
    let (rows, columns) = if source.transposed {
        (panel.columns.clone(), panel.depth.clone())
    } else {
        (panel.depth.clone(), panel.columns.clone())
    };
    assert!(rows.end <= matrix.rows && columns.end <= matrix.cols);
    assert!(columns.start.is_multiple_of(unit) && columns.end.is_multiple_of(unit));
    let piece = Piece { matrix, rows, columns, to };
    // SAFETY: the path is available and the assertions cover the piece, `vectors` the panels.
    unsafe {
        match (source.transposed, kernels.pairs.is_some()) {
            (true, false) => pack_nf4_avx512::pack_rows_as_columns(&piece),
            (false, false) => pack_nf4_avx512::pack_rows_as_depth(&piece),
            (true, true) => pack_nf4_bf16::pack_rows_as_columns(&piece),
            (false, true) => pack_nf4_bf16::pack_rows_as_depth(&piece),
        }
    }
    true
}

/// Packs a panel of [`NARROW`] columns that rows become the depth of, with AVX2; false if it is no such panel.
#[cfg(target_arch = "x86_64")]
fn pack_narrow(source: &Source<'_>, matrix: &Nf4Matrix, panel: &mut Panel<'_>) -> bool {
    let fits = !source.transposed && panel.columns.len() == NARROW && panel.stride == NARROW;
    let as_is = source.compute == Compute::F32 || matrix.dtype == SourceDtype::Bf16;
    if !fits || !as_is || !matrix.cols.is_multiple_of(NARROW) || !panel.columns.start.is_multiple_of(NARROW) {
        return false;
    }
    let to = &mut panel.to[..panel.depth.len() * NARROW];
    assert!(panel.depth.end <= matrix.rows && panel.columns.end <= matrix.cols);
    // SAFETY: the path is available; the groups from the first column on lie in these rows.
    unsafe { super::avx2::stack_groups(matrix, panel.depth.clone(), panel.columns.start, to) };
    true
}

/// No vector packers here.
#[cfg(not(target_arch = "x86_64"))]
pub(super) fn pack_fast(_: &Source<'_>, _: &Nf4Matrix, _: &Kernels, _: &mut Panel<'_>, _: Option<usize>) -> bool {
    false
}
