//! Tables and kept scales against the values of the matrix and the sums without them.

use super::*;
use crate::ops::gemm::{RowInput, RowProduct};
use crate::ops::Bytes;
use crate::quant::double::double_quantize;
use crate::quant::SourceDtype;

fn matrix(scales: &[f32], cols: usize, dtype: SourceDtype) -> Nf4Matrix {
    let values = scales.len() * PIECE;
    // Every code in each block, in another order in each.
    let codes: Vec<u8> = (0..values / 2).map(|i| (i * 37 + i / 32 * 11) as u8).collect();
    let bytes: Vec<u8> = scales.iter().flat_map(|scale| scale.to_le_bytes()).collect();
    let scales = Scales::Plain(Bytes::owned(&bytes));
    let codes = Bytes::owned(&codes);
    Nf4Matrix { rows: values / cols, cols, block: PIECE, codes, scales, dtype }
}

fn sums(matrix: &Nf4Matrix, tables: Option<&RowTables>, compute: Compute, x: &[f32]) -> Vec<f32> {
    let product = RowProduct::on(CpuPath::Avx2, WeightRef::Nf4(matrix), compute).reading(tables);
    let mut input = RowInput::default();
    input.load(x, [product].into_iter());
    let mut sums = vec![f32::NAN; matrix.rows];
    for rows in [0..matrix.rows / 3, matrix.rows / 3..matrix.rows] {
        product.sums(&input, rows, &mut |row, sum| sums[row] = sum);
    }
    sums
}

const BOTH: [SourceDtype; 2] = [SourceDtype::F16, SourceDtype::Bf16];

/// Scales on both sides of each border, of different size and sign.
fn borders(dtype: SourceDtype) -> Vec<f32> {
    let tables = Tables::of(dtype).expect("a dtype with tables");
    let sizes = if dtype == SourceDtype::F16 { -10..15 } else { -60..30 };
    let each = tables.borders[1..tables.tables.len()].iter().zip(sizes.cycle());
    let scale = |size: i32, mantissa: u32| {
        let scale = f32::from_bits(1f32.to_bits() | mantissa) * (size as f32).exp2();
        if size % 7 == 3 {
            -scale
        } else {
            scale
        }
    };
    each.flat_map(|(&border, size)| [scale(size, border - 1), scale(size, border)]).collect()
}

/// Checks each value of the matrix, by x with a single one.
fn assert_values(matrix: &Nf4Matrix) {
    let cols = matrix.cols;
    let tables = RowTables::on(CpuPath::Avx2, WeightRef::Nf4(matrix), Compute::F32).expect("tables");
    for col in 0..cols {
        let x: Vec<f32> = (0..cols).map(|at| f32::from(u8::from(at == col))).collect();
        let found = sums(matrix, Some(&tables), Compute::F32, &x);
        for (row, found) in found.into_iter().enumerate() {
            // An equal comparison: the sign of a zero is that of the sum.
            assert_eq!(found, matrix.value(row * cols + col), "{:?} row {row}, column {col}", matrix.dtype);
        }
    }
}

#[test]
fn values_are_those_of_the_matrix_at_every_border() {
    if !CpuPath::available().contains(&CpuPath::Avx2) {
        return;
    }
    for (dtype, count) in BOTH.into_iter().zip([14325, 1793]) {
        assert_eq!(Tables::of(dtype).expect("a dtype with tables").tables.len(), count);
        let mut scales = borders(dtype);
        scales.extend([0.0, -0.0, 1.0, if dtype == SourceDtype::F16 { 65503.0 / 2.0 } else { 2f32.powi(-122) }]);
        scales.resize(scales.len().next_multiple_of(3), 0.5);
        assert_values(&matrix(&scales, 192, dtype));
    }
}

#[test]
fn small_blocks_of_f16_have_tables_of_their_own() {
    if !CpuPath::available().contains(&CpuPath::Avx2) {
        return;
    }
    // Around each step of f16 where it has few bits, some of them twice, among others.
    let small = (0..600).map(|i| (i % 400) as f32 * 0.37 * 2f32.powi(-24) * if i % 3 == 0 { -1.0 } else { 1.0 });
    let scales: Vec<f32> = small.chain([9.7e-4, 1e-9, 0.0, 1e-38, f32::from_bits(1), 0.02]).collect();
    assert_values(&matrix(&scales, 64, SourceDtype::F16));
    // More than are worth it, all different.
    let many: Vec<f32> = (0..2 * MOST_OWN).map(|i| 1e-4 + i as f32 * 1e-9).collect();
    let many = matrix(&many, 64, SourceDtype::F16);
    assert!(RowTables::on(CpuPath::Avx2, WeightRef::Nf4(&many), Compute::F32).is_none());
}

#[test]
fn sums_are_those_without_tables() {
    if !CpuPath::available().contains(&CpuPath::Avx2) {
        return;
    }
    let scales: Vec<f32> = (0..9 * 35).map(|i| 0.02 + 0.001 * ((i * 37) % 101) as f32).collect();
    for dtype in BOTH {
        let matrix = matrix(&scales, 576, dtype);
        let tables = RowTables::on(CpuPath::Avx2, WeightRef::Nf4(&matrix), Compute::F32).expect("tables");
        let x: Vec<f32> = (0..576).map(|i| ((i * 29) % 64) as f32 / 32.0 - 1.0).collect();
        let with = sums(&matrix, Some(&tables), Compute::F32, &x);
        for (with, without) in with.iter().zip(sums(&matrix, None, Compute::F32, &x)) {
            assert!((with - without).abs() <= 1e-5, "{with} and {without}");
        }
        for bad in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
            let mut x = x.clone();
            x[70] = bad;
            assert!(sums(&matrix, Some(&tables), Compute::F32, &x).iter().all(|sum| !sum.is_finite()));
        }
    }
}

#[test]
fn there_are_no_tables_where_rounding_is_another() {
    let on = |matrix: &Nf4Matrix, compute| RowTables::on(CpuPath::Avx2, WeightRef::Nf4(matrix), compute).is_some();
    // Scales are kept where they would have to be decoded.
    let fits = matrix(&[1.0; 6], 192, SourceDtype::Bf16);
    assert!(on(&fits, Compute::F32) && !on(&fits, Compute::Bf16));
    assert!(RowTables::on(CpuPath::Portable, WeightRef::Nf4(&fits), Compute::F32).is_none());
    assert!(!on(&Nf4Matrix { dtype: SourceDtype::F32, ..fits.clone() }, Compute::F32));
    assert!(!on(&Nf4Matrix { rows: 12, cols: 32, ..fits }, Compute::F32));
    for (bad, dtype) in [(1e-37, SourceDtype::Bf16), (3e38, SourceDtype::Bf16), (7e4, SourceDtype::F16)] {
        for bad in [bad, f32::INFINITY, f32::NAN] {
            assert!(!on(&matrix(&[1.0, bad, 1.0], 192, dtype), Compute::F32), "{bad}");
        }
    }
}

#[test]
fn scales_that_are_kept_change_no_bit() {
    if !CpuPath::available().contains(&CpuPath::Avx2) {
        return;
    }
    let scales: Vec<f32> = (0..9 * 35).map(|i| 0.02 + 0.001 * ((i * 37) % 101) as f32).collect();
    let double = Nf4Matrix { scales: double_quantize(&scales), ..matrix(&scales, 576, SourceDtype::Bf16) };
    let x: Vec<f32> = (0..576).map(|i| ((i * 29) % 64) as f32 / 32.0 - 1.0).collect();
    for (dtype, compute) in [(SourceDtype::F32, Compute::F32), (SourceDtype::Bf16, Compute::Bf16)] {
        let double = Nf4Matrix { dtype, ..double.clone() };
        let tables = RowTables::on(CpuPath::Avx2, WeightRef::Nf4(&double), compute).expect("scales");
        assert!(tables.scales().is_some());
        let with = sums(&double, Some(&tables), compute, &x);
        assert!(with.iter().zip(sums(&double, None, compute, &x)).all(|(a, b)| a.to_bits() == b.to_bits()));
    }
}
