//! Matrices that wait in bf16: half the memory of what the backward pass will read again.
//!
//! A matrix that is kept is rounded at the same time, so that what is kept and what goes on are the same values, and
//! what is computed again and rounded again ([`round`]) are the same bits. Rounding is to the nearest, ties to even;
//! NaN stays NaN, and a value beyond the largest becomes infinite.
//!
//! Layout: of each 32 values, word `i` holds value `i` in its low and value `i + 16` in its high half, so that no
//! instruction has to move anything across lanes. A last group that is short is filled up with zeros.

use super::matrix::{Arena, Matrix};
use super::vector::{kernel, TASK};
use crate::device::cpu_path;
use crate::ops::profile;
use rayon::prelude::*;

/// Values of a group.
pub(super) const GROUP: usize = 32;
/// Words that a group is kept in.
pub(super) const WORDS: usize = GROUP / 2;

/// A `[rows, cols]` matrix in bf16.
pub struct HalfMatrix {
    rows: usize,
    cols: usize,
    words: Matrix,
}

impl HalfMatrix {
    /// Room for `[rows, cols]` values, contents unspecified.
    pub(super) fn new(rows: usize, cols: usize, arena: &Arena) -> HalfMatrix {
        HalfMatrix { rows, cols, words: arena.matrix(1, HalfMatrix::word_count(rows, cols)) }
    }

    /// f32 words that `[rows, cols]` values take.
    pub fn word_count(rows: usize, cols: usize) -> usize {
        (rows * cols).div_ceil(GROUP) * WORDS
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The words, [`WORDS`] for each [`GROUP`] values.
    pub(super) fn words(&self) -> &[f32] {
        &self.words
    }

    /// The words, to write.
    pub(super) fn words_mut(&mut self) -> &mut [f32] {
        &mut self.words
    }

    /// Rounds `values` in place and keeps them.
    pub fn rounding(values: &mut Matrix, arena: &Arena) -> HalfMatrix {
        let _span = profile::span("rounding", 0.0);
        let mut half = HalfMatrix::new(values.rows(), values.cols(), arena);
        let path = cpu_path();
        (values.par_chunks_mut(TASK), half.words.par_chunks_mut(TASK / 2))
            .into_par_iter()
            .for_each(|(values, words)| round_and_pack(path, values, words));
        half
    }

    /// The values as f32.
    pub fn widen(self, arena: &Arena) -> Matrix {
        let _span = profile::span("rounding", 0.0);
        let mut values = arena.matrix(self.rows, self.cols);
        let path = cpu_path();
        (values.par_chunks_mut(TASK), self.words.par_chunks(TASK / 2))
            .into_par_iter()
            .for_each(|(values, words)| unpack(path, words, values));
        values
    }
}

/// Rounds every value to the nearest bf16, in place.
pub fn round(values: &mut [f32]) {
    let _span = profile::span("rounding", 0.0);
    let path = cpu_path();
    values.par_chunks_mut(TASK).for_each(|values| round_part(path, values));
}

/// The nearest bf16, as an f32. For use inside a [`kernel!`] body, like the two below.
#[inline(always)]
pub(crate) fn rounded(value: f32) -> f32 {
    let bits = value.to_bits();
    let nearest = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
    f32::from_bits((if value.is_nan() { bits | 0x0040_0000 } else { nearest }) & 0xffff_0000)
}

/// The words of a group of rounded values. (Loops, here and below: the closures of `array::from_fn` and `map` are not
/// inlined into a kernel, and so lose its instruction set.)
#[inline(always)]
pub(super) fn pack(values: &[f32; GROUP]) -> [f32; WORDS] {
    let mut words = [0.0; WORDS];
    for i in 0..WORDS {
        words[i] = f32::from_bits((values[i].to_bits() >> 16) | values[i + WORDS].to_bits());
    }
    words
}

/// The values of a group.
#[inline(always)]
pub(super) fn unpack_group(words: &[f32; WORDS]) -> [f32; GROUP] {
    let mut values = [0.0; GROUP];
    for i in 0..WORDS {
        values[i] = f32::from_bits(words[i].to_bits() << 16);
        values[i + WORDS] = f32::from_bits(words[i].to_bits() & 0xffff_0000);
    }
    values
}

/// A short group, filled up with zeros.
#[inline(always)]
pub(super) fn filled(values: &[f32]) -> [f32; GROUP] {
    let mut group = [0.0; GROUP];
    group[..values.len()].copy_from_slice(values);
    group
}

kernel! {
    fn round_part(values: &mut [f32]) {
        values.iter_mut().for_each(|value| *value = rounded(*value));
    }
}

kernel! {
    fn round_and_pack(values: &mut [f32], words: &mut [f32]) {
        values.iter_mut().for_each(|value| *value = rounded(*value));
        let (groups, rest) = values.as_chunks::<GROUP>();
        let (words, _) = words.as_chunks_mut::<WORDS>();
        for (values, words) in groups.iter().zip(words.iter_mut()) {
            *words = pack(values);
        }
        if !rest.is_empty() {
            words[groups.len()] = pack(&filled(rest));
        }
    }
}

kernel! {
    fn unpack(words: &[f32], values: &mut [f32]) {
        let (words, _) = words.as_chunks::<WORDS>();
        let (groups, rest) = values.as_chunks_mut::<GROUP>();
        for (words, values) in words.iter().zip(groups.iter_mut()) {
            *values = unpack_group(words);
        }
        if !rest.is_empty() {
            rest.copy_from_slice(&unpack_group(&words[groups.len()])[..rest.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{bits, normal};

    fn matrix(arena: &Arena, rows: usize, cols: usize) -> Matrix {
        let mut matrix = arena.matrix(rows, cols);
        matrix.copy_from_slice(&normal("half", rows * cols));
        matrix
    }

    #[test]
    fn rounding_is_that_of_the_half_crate() {
        let mut values = normal("rounding", 5000);
        // Ties both ways, the borders of the format, what is not a number.
        values.extend([1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, -1.0 - 1.0 / 256.0, f32::MAX, -f32::MAX, f32::INFINITY]);
        values.extend([0.0, -0.0, f32::MIN_POSITIVE, 1e-45, f32::NEG_INFINITY]);
        let expected: Vec<f32> = values.iter().map(|&value| half::bf16::from_f32(value).to_f32()).collect();
        let mut found = values.clone();
        round(&mut found);
        assert_eq!(bits(&found), bits(&expected));
        let mut nan = [f32::NAN, f32::from_bits(0x7f80_0001), f32::from_bits(0xffff_ffff)];
        round(&mut nan);
        assert!(nan.iter().all(|value| value.is_nan()));
    }

    #[test]
    fn rounded_values_come_back_bit_for_bit() {
        let arena = Arena::new();
        for (rows, cols) in [(1, 1), (3, 5), (4, 8), (7, 31), (64, 576), (33, 1001)] {
            let mut values = matrix(&arena, rows, cols);
            let mut expected = values.to_vec();
            round(&mut expected);
            let kept = HalfMatrix::rounding(&mut values, &arena);
            assert_eq!((kept.rows(), kept.cols(), bits(&values)), (rows, cols, bits(&expected)));
            let back = kept.widen(&arena);
            assert_eq!((back.rows(), back.cols()), (rows, cols));
            assert_eq!(bits(&back), bits(&values), "[{rows}, {cols}]");
        }
    }

    #[test]
    fn every_kernel_path_gives_the_same_bits() {
        let values = normal("paths", 1000);
        for path in crate::device::CpuPath::available() {
            let (mut rounded, mut words, mut back) = (values.clone(), vec![0.0; 512], vec![0.0; 1000]);
            round_and_pack(path, &mut rounded, &mut words);
            unpack(path, &words, &mut back);
            let expected: Vec<f32> = values.iter().map(|&v| half::bf16::from_f32(v).to_f32()).collect();
            assert_eq!(bits(&back), bits(&expected), "{path:?}");
        }
    }
}
