//! Tables and kept scales against the values of the matrix and the sums without them.

use super::*;
use crate::ops::gemm::{RowInput, RowProduct};
use crate::ops::Bytes;
use crate::quant::double::double_quantize;
use crate::quant::SourceDtype;

fn matrix(scales: &[f32], cols: usize) -> Nf4Matrix {
    let values = scales.len() * PIECE;
    // Every code in each block, in another order in each.
    let codes: Vec<u8> = (0..values / 2).map(|i| (i * 37 + i / 32 * 11) as u8).collect();
    let bytes: Vec<u8> = scales.iter().flat_map(|scale| scale.to_le_bytes()).collect();
    let scales = Scales::Plain(Bytes::owned(&bytes));
    let codes = Bytes::owned(&codes);
    Nf4Matrix { rows: values / cols, cols, block: PIECE, codes, scales, dtype: SourceDtype::Bf16 }
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

/// Scales on both sides of each border, of different size and sign.
fn borders() -> Vec<f32> {
    let each = TABLES.borders[1..TABLES.planes.len()].iter().enumerate();
    let scale = |at: usize, mantissa: u32| {
        let scale = f32::from_bits(1f32.to_bits() | mantissa) * (((at % 90) as f32) - 60.0).exp2();
        if at % 7 == 3 {
            -scale
        } else {
            scale
        }
    };
    each.flat_map(|(at, &border)| [scale(at, border - 1), scale(at, border)]).collect()
}

#[test]
fn values_are_those_of_the_matrix_at_every_border() {
    if !CpuPath::available().contains(&CpuPath::Avx2) {
        return;
    }
    assert_eq!(TABLES.planes.len(), 1793);
    let mut scales = borders();
    scales.extend([0.0, -0.0, 1.0, 2f32.powi(-122)]);
    scales.resize(scales.len().next_multiple_of(3), 0.5);
    let matrix = matrix(&scales, 192);
    let tables = RowTables::on(CpuPath::Avx2, WeightRef::Nf4(&matrix), Compute::F32).expect("tables");
    for col in 0..192 {
        let x: Vec<f32> = (0..192).map(|at| f32::from(u8::from(at == col))).collect();
        let found = sums(&matrix, Some(&tables), Compute::F32, &x);
        for (row, found) in found.into_iter().enumerate() {
            // An equal comparison: the sign of a zero is that of the sum.
            assert_eq!(found, matrix.value(row * 192 + col), "row {row}, column {col}");
        }
    }
}

#[test]
fn sums_are_those_without_tables() {
    if !CpuPath::available().contains(&CpuPath::Avx2) {
        return;
    }
    let scales: Vec<f32> = (0..9 * 35).map(|i| 0.02 + 0.001 * ((i * 37) % 101) as f32).collect();
    let matrix = matrix(&scales, 576);
    let tables = RowTables::on(CpuPath::Avx2, WeightRef::Nf4(&matrix), Compute::F32).expect("tables");
    let x: Vec<f32> = (0..576).map(|i| ((i * 29) % 64) as f32 / 32.0 - 1.0).collect();
    for (with, without) in
        sums(&matrix, Some(&tables), Compute::F32, &x).iter().zip(sums(&matrix, None, Compute::F32, &x))
    {
        assert!((with - without).abs() <= 1e-5, "{with} and {without}");
    }
    let mut bad = x;
    bad[70] = f32::INFINITY;
    assert!(sums(&matrix, Some(&tables), Compute::F32, &bad).iter().all(|sum| !sum.is_finite()));
}

#[test]
fn there_are_no_tables_where_rounding_is_another() {
    let on = |matrix: &Nf4Matrix, compute| RowTables::on(CpuPath::Avx2, WeightRef::Nf4(matrix), compute).is_some();
    // Scales are kept where they would have to be decoded.
    let fits = matrix(&[1.0; 6], 192);
    assert!(on(&fits, Compute::F32) && !on(&fits, Compute::Bf16));
    assert!(RowTables::on(CpuPath::Portable, WeightRef::Nf4(&fits), Compute::F32).is_none());
    assert!(!on(&Nf4Matrix { dtype: SourceDtype::F32, ..fits.clone() }, Compute::F32));
    assert!(!on(&Nf4Matrix { rows: 12, cols: 32, ..fits }, Compute::F32));
    for bad in [1e-37, 3e38, f32::INFINITY, f32::NAN] {
        assert!(!on(&matrix(&[1.0, bad, 1.0], 192), Compute::F32), "{bad}");
    }
}

#[test]
fn scales_that_are_kept_change_no_bit() {
    if !CpuPath::available().contains(&CpuPath::Avx2) {
        return;
    }
    let scales: Vec<f32> = (0..9 * 35).map(|i| 0.02 + 0.001 * ((i * 37) % 101) as f32).collect();
    let double = Nf4Matrix { scales: double_quantize(&scales), ..matrix(&scales, 576) };
    let x: Vec<f32> = (0..576).map(|i| ((i * 29) % 64) as f32 / 32.0 - 1.0).collect();
    for (dtype, compute) in [(SourceDtype::F32, Compute::F32), (SourceDtype::Bf16, Compute::Bf16)] {
        let double = Nf4Matrix { dtype, ..double.clone() };
        let tables = RowTables::on(CpuPath::Avx2, WeightRef::Nf4(&double), compute).expect("scales");
        assert!(tables.scales().is_some());
        let with = sums(&double, Some(&tables), compute, &x);
        assert!(with.iter().zip(sums(&double, None, compute, &x)).all(|(a, b)| a.to_bits() == b.to_bits()));
    }
}
