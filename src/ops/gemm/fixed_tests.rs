//! Single rows against products of one row, and fixed point against the bounds of its errors.

use super::gemv_nf4::Functions;
use super::kernel::Kernels;
use super::tests::{assert_close, nf4, padded_mut, Numbers, Weight};
use super::{
    backward_nn_on, forward_nt_on, matmul_nt_on, FixedPoint, LowRank, RowInput, RowProduct, RowTables, Store, WeightRef,
};
use crate::device::{Compute, CpuPath};
use crate::ops::matrix::{MatMut, MatRef};
use crate::ops::Bytes;
use crate::quant::{Nf4Matrix, Scales, SourceDtype};

/// What [`RowProduct`] gives on a path.
fn alone(path: CpuPath, x: &[f32], weight: &Weight, compute: Compute) -> Vec<f32> {
    of_product(x, RowProduct::on(path, weight.view(), compute))
}

fn of_product(x: &[f32], product: RowProduct<'_>) -> Vec<f32> {
    let mut input = RowInput::default();
    input.load(x, [product].into_iter());
    let mut y = vec![f32::NAN; product.rows()];
    // In two parts, neither of them whole batches.
    let middle = y.len() / 3;
    for rows in [0..middle, middle..y.len()] {
        product.sums(&input, rows, &mut |row, sum| y[row] = sum);
    }
    y
}

#[test]
fn a_row_alone_gives_the_bits_of_a_product_of_one_row() {
    for (rows, cols) in [(37, 64), (20, 576), (5, 100), (3, 1728), (130, 192)] {
        for (name, weight) in Weight::all(rows, cols) {
            let x = Numbers(3).values(cols);
            for compute in [Compute::F32, Compute::Bf16] {
                for path in CpuPath::available() {
                    let what = format!("{name} N={rows} K={cols} {compute:?} {}", path.name());
                    let mut expected = vec![0.0; rows];
                    let (input, target) = (MatRef::new(&x, 1, cols), MatMut::new(&mut expected, 1, rows));
                    matmul_nt_on(path, input, weight.view(), target, Store::set(compute));
                    let found = alone(path, &x, &weight, compute);
                    let dtype = match &weight {
                        Weight::Nf4(matrix) => Some(matrix.dtype),
                        _ => None,
                    };
                    let suits = |alone: &&Functions| dtype.is_some_and(|dtype| (alone.suits)(dtype));
                    match (Kernels::of(path, compute).codes_alone.filter(suits), compute) {
                        // As near as two roundings of each operand to bf16 allow.
                        (Some(_), Compute::Bf16) => assert_close(&found, &expected, 1e-2, &what),
                        (Some(_), Compute::F32) => assert_close(&found, &expected, 1e-6, &what),
                        (None, _) => {
                            assert!(found.iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits()), "{what}")
                        }
                    }
                }
            }
        }
    }
}

/// The sum `Σ w·x` of a row, and how far half a unit of each operand in fixed point may carry it; units are those of the
/// largest integers of codes and of x.
fn sum_and_reach(matrix: &Nf4Matrix, row: usize, x: &[f32], [code, value]: [f64; 2]) -> (f64, f64) {
    let pieces = x.len() / 64;
    let (mut sum, mut reach) = (0.0, 0.0);
    for piece in 0..pieces {
        let at = piece * 64..(piece + 1) * 64;
        let largest = x[at.clone()].iter().fold(0f64, |m, x| m.max(f64::from(x.abs())));
        let scale = f64::from(matrix.scale(row * pieces + piece).abs());
        for col in at {
            let (w, x) = (f64::from(matrix.value(row * matrix.cols + col)), f64::from(x[col]));
            sum += w * x;
            reach += 0.5 * (w.abs() * largest / value + scale * x.abs() / code + scale * largest / (code * value));
            reach += 4e-7 * (w * x).abs();
        }
    }
    (sum, reach)
}

/// Pieces with values far from each other, one of zeros, one of the smallest numbers.
fn uneven(numbers: &mut Numbers, cols: usize) -> Vec<f32> {
    let mut x: Vec<f32> = numbers.values(cols).iter().map(|v| v * v * v).collect();
    x.iter_mut().step_by(97).for_each(|x| *x *= 300.0);
    if cols > 128 {
        x[64..128].fill(0.0);
        x[128..192].fill(f32::from_bits(3));
    }
    x
}

#[test]
fn fixed_point_is_within_half_a_unit_of_each_operand() {
    for (rows, cols) in [(37, 64), (20, 576), (9, 1728)] {
        for double in [false, true] {
            let weight = nf4(rows, cols, 64, SourceDtype::F32, double);
            let Weight::Nf4(matrix) = &weight else { return };
            let x = uneven(&mut Numbers(8), cols);
            for path in CpuPath::available() {
                if Kernels::of(path, Compute::Bf16).codes_alone.is_none() {
                    continue;
                }
                for (row, y) in alone(path, &x, &weight, Compute::Bf16).into_iter().enumerate() {
                    let (sum, reach) = sum_and_reach(matrix, row, &x, [16383.0; 2]);
                    assert!((f64::from(y) - sum).abs() <= reach, "{rows}x{cols} row {row}: {y} for {sum}, {reach:e}");
                }
            }
        }
    }
}

/// The sum `Σ w·x` of a row in f64, and of the largest magnitudes of each of its pieces.
fn sum_and_largest(matrix: &Nf4Matrix, row: usize, x: &[f32]) -> (f64, f64) {
    let (sum, _) = sum_and_reach(matrix, row, x, [1.0; 2]);
    let largest = x.chunks(64).enumerate().map(|(piece, x)| {
        let scale = f64::from(matrix.scale(row * (matrix.cols / 64) + piece).abs());
        64.0 * scale * x.iter().fold(0f64, |m, x| m.max(f64::from(x.abs())))
    });
    (sum, largest.sum())
}

#[test]
fn rows_alone_in_f32_are_as_exact_as_f32() {
    for (rows, cols) in [(37, 64), (20, 576), (9, 1728)] {
        for dtype in [SourceDtype::F32, SourceDtype::F16, SourceDtype::Bf16] {
            let weight = nf4(rows, cols, 64, dtype, true);
            let Weight::Nf4(matrix) = &weight else { return };
            let x = uneven(&mut Numbers(8), cols);
            for path in CpuPath::available() {
                let tables = RowTables::on(path, weight.view(), Compute::F32);
                let product = RowProduct::on(path, weight.view(), Compute::F32);
                for product in [product, product.reading(tables.as_ref())] {
                    for (row, y) in of_product(&x, product).into_iter().enumerate() {
                        let (sum, largest) = sum_and_largest(matrix, row, &x);
                        let what = format!("{rows}x{cols} {dtype:?} {} row {row}", path.name());
                        assert!((f64::from(y) - sum).abs() <= 1e-7 * largest, "{what}: {y} for {sum}, of {largest}");
                    }
                }
            }
        }
    }
}

#[test]
fn sums_of_the_largest_integers_do_not_overflow() {
    // The largest code and the smallest, and x of which the lower part is as large as it can be.
    let x = [(f64::exp2(26.0) - 8192.0) as f32, -(f64::exp2(26.0) - 8192.0) as f32, f32::exp2(25.0), -f32::exp2(25.0)];
    for (code, scale) in
        [(0x00, 1.0), (0xff, 1.0), (0xff, 1.749), (0x00, -1.749), (0xff, 1.999), (0x00, 1e30), (0x0f, 1e-7)]
    {
        for dtype in [SourceDtype::F32, SourceDtype::F16, SourceDtype::Bf16] {
            let scales = Scales::Plain(Bytes::owned(&f32::to_le_bytes(scale)));
            let codes = Bytes::owned(&[code; 32]);
            let matrix = Nf4Matrix { rows: 1, cols: 64, block: 64, codes, scales, dtype };
            if !matrix.value(0).is_finite() {
                continue;
            }
            for value in x.map(|x| x * 1e-12) {
                let x = [value; 64];
                let (sum, largest) = sum_and_largest(&matrix, 0, &x);
                for path in CpuPath::available() {
                    let weight = WeightRef::Nf4(&matrix);
                    let tables = RowTables::on(path, weight, Compute::F32);
                    let y = of_product(&x, RowProduct::on(path, weight, Compute::F32).reading(tables.as_ref()))[0];
                    let what = format!("{code:x} {scale} {dtype:?} {value} {}", path.name());
                    assert!((f64::from(y) - sum).abs() <= 2e-7 * largest, "{what}: {y} for {sum}");
                }
            }
        }
    }
}

#[test]
fn forward_products_are_as_near_as_bf16_on_every_path() {
    let pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
    let (one, three) = (pool(1), pool(3));
    for (t, rows, cols) in [(2, 37, 64), (5, 16, 576), (19, 100, 128), (64, 9, 1728), (70, 576, 192), (3, 5, 100)] {
        let weight = nf4(rows, cols, 64, SourceDtype::F32, true);
        let Weight::Nf4(matrix) = &weight else { return };
        let mut numbers = Numbers(21);
        let x: Vec<f32> = (0..t).flat_map(|_| uneven(&mut numbers, cols)).collect();
        for compute in [Compute::F32, Compute::Bf16] {
            for path in CpuPath::available() {
                let what = format!("T={t} N={rows} K={cols} {compute:?} {}", path.name());
                let run = || {
                    let mut y = vec![f32::NAN; t * (rows + 3)];
                    forward_nt_on(path, MatRef::new(&x, t, cols), weight.view(), padded_mut(&mut y, t, rows), compute);
                    y
                };
                let y = one.install(run);
                let together = three.install(run);
                assert!(y.iter().zip(&together).all(|(a, b)| a.to_bits() == b.to_bits()), "{what}: threads");
                for (x, y) in x.chunks_exact(cols).zip(y.chunks_exact(rows + 3)) {
                    assert!(y[rows..].iter().all(|y| y.is_nan()), "{what}: written beyond the row");
                    for (row, &y) in y[..rows].iter().enumerate() {
                        // Of whole pieces fixed point may be; with bf16 each operand is off by 2⁻⁸ of itself at most.
                        let fixed = compute == Compute::Bf16 && path == CpuPath::Avx2 && cols.is_multiple_of(64);
                        let of_each: f64 = x
                            .iter()
                            .enumerate()
                            .map(|(col, x)| (f64::from(matrix.value(row * cols + col)) * f64::from(*x)).abs())
                            .sum();
                        let (sum, reach) = match fixed {
                            true => sum_and_reach(matrix, row, x, [4095.0, 8191.0]),
                            false => {
                                let sum = x
                                    .iter()
                                    .enumerate()
                                    .map(|(col, x)| f64::from(matrix.value(row * cols + col)) * f64::from(*x))
                                    .sum();
                                (sum, of_each * if compute == Compute::Bf16 { 2f64.powi(-7) } else { 1e-6 })
                            }
                        };
                        assert!((f64::from(y) - sum).abs() <= 1.01 * reach, "{what}: {y} for {sum}, {reach:e}");
                    }
                }
            }
        }
    }
}

/// `Σ dy[n] · w[n, col]` over the rows of a weight, how far operands rounded to bf16 may carry it, and how far half a unit of
/// each operand in fixed point: units are those of the largest dy and the largest scale of each 64 rows.
fn column_sum_and_reach(matrix: &Nf4Matrix, col: usize, dy: &[f32]) -> (f64, [f64; 2]) {
    let (mut sum, mut of_each, mut fixed) = (0.0, 0.0, 0.0);
    let scale = |row: usize| f64::from(matrix.scale((row * matrix.cols + col) / matrix.block).abs());
    for first in (0..dy.len()).step_by(64) {
        let rows = first..dy.len().min(first + 64);
        let largest = rows.clone().fold(0f64, |m, row| m.max(f64::from(dy[row].abs())));
        let widest = rows.clone().fold(0f64, |m, row| m.max(scale(row)));
        for row in rows {
            let (w, dy) = (f64::from(matrix.value(row * matrix.cols + col)), f64::from(dy[row]));
            sum += dy * w;
            of_each += (dy * w).abs();
            fixed += 0.505 * (w.abs() * largest / 8191.0 + (widest * dy).abs() / 4095.0);
            fixed += 0.505 * widest * largest / (4095.0 * 8191.0);
        }
    }
    (sum, [of_each * 2f64.powi(-7), fixed + 4e-7 * of_each])
}

#[test]
fn backward_products_are_as_near_as_bf16_on_every_path() {
    let pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
    let (one, three) = (pool(1), pool(3));
    // Rows of more than a chunk and of parts of pieces, more rows of dy than a job has, columns that are no whole block.
    for (t, rows, cols) in [(2, 64, 64), (19, 577, 192), (7, 1100, 64), (300, 70, 64), (9, 5, 128), (9, 5, 100)] {
        let weight = nf4(rows, cols, 64, SourceDtype::F32, true);
        let Weight::Nf4(matrix) = &weight else { return };
        let mut numbers = Numbers(22);
        let dy: Vec<f32> = (0..t).flat_map(|_| uneven(&mut numbers, rows)).collect();
        for (accumulate, compute) in [(false, Compute::F32), (false, Compute::Bf16), (true, Compute::Bf16)] {
            for path in CpuPath::available() {
                let what = format!("T={t} N={rows} K={cols} {compute:?} {} {accumulate}", path.name());
                let run = || {
                    let mut dx = vec![if accumulate { 0.25 } else { f32::NAN }; t * (cols + 3)];
                    let target = padded_mut(&mut dx, t, cols);
                    backward_nn_on(path, MatRef::new(&dy, t, rows), weight.view(), target, accumulate, compute);
                    dx
                };
                let dx = one.install(run);
                assert!(dx.iter().zip(&three.install(run)).all(|(a, b)| a.to_bits() == b.to_bits()), "{what}: threads");
                for (dy, dx) in dy.chunks_exact(rows).zip(dx.chunks_exact(cols + 3)) {
                    assert!(dx[cols..].iter().all(|dx| dx.is_nan() || *dx == 0.25), "{what}: written beyond the row");
                    for (col, &dx) in dx[..cols].iter().enumerate() {
                        let (sum, [halves, fixed]) = column_sum_and_reach(matrix, col, dy);
                        let is_fixed = path == CpuPath::Avx2 && cols.is_multiple_of(64);
                        let reach = match (compute, is_fixed) {
                            (Compute::F32, _) => halves * 2f64.powi(7) * 1e-5,
                            (Compute::Bf16, true) => fixed + 1e-6,
                            (Compute::Bf16, false) => halves + 1e-6,
                        };
                        let found = f64::from(dx) - if accumulate { 0.25 } else { 0.0 };
                        assert!((found - sum).abs() <= reach, "{what}: {found} for {sum}, {reach:e}");
                    }
                }
            }
        }
    }
}

#[test]
fn what_is_not_finite_in_a_gradient_is_not_lost() {
    let weight = nf4(130, 64, 64, SourceDtype::F32, false);
    for (bad, at) in [(f32::NAN, 0), (f32::INFINITY, 70), (f32::NEG_INFINITY, 129)] {
        let mut dy = vec![1.0; 2 * 130];
        dy[at] = bad;
        for path in CpuPath::available() {
            let mut dx = vec![0.0; 2 * 64];
            let (from, to) = (MatRef::new(&dy, 2, 130), MatMut::new(&mut dx, 2, 64));
            backward_nn_on(path, from, weight.view(), to, false, Compute::Bf16);
            assert!(dx[..64].iter().any(|dx| !dx.is_finite()), "{bad} {}: {dx:?}", path.name());
            assert!(dx[64..].iter().all(|dx| dx.is_finite()), "{bad} {}: {dx:?}", path.name());
        }
    }
}

#[test]
fn what_is_not_finite_is_not_lost() {
    for (name, weight) in Weight::all(5, 192) {
        for (bad, at) in [(f32::NAN, 0), (f32::INFINITY, 70), (f32::NEG_INFINITY, 191)] {
            let mut x = vec![1.0; 192];
            x[at] = bad;
            for compute in [Compute::F32, Compute::Bf16] {
                for path in CpuPath::available() {
                    let y = alone(path, &x, &weight, compute);
                    assert!(y.iter().all(|y| !y.is_finite()), "{name} {bad} {compute:?} {}: {y:?}", path.name());
                }
            }
        }
    }
}

/// `[T, R]` times `[R, columns]` in f64, the second factor element by element.
fn product_of(u: &[f32], [t, rank, columns]: [usize; 3], factor: impl Fn(usize, usize) -> f32) -> Vec<f64> {
    let element = |row: usize, column: usize| -> f64 {
        (0..rank).map(|r| f64::from(u[row * rank + r]) * f64::from(factor(r, column))).sum()
    };
    (0..t * columns).map(|i| element(i / columns, i % columns)).collect()
}

/// Asserts that `with` is `without` plus `more`.
fn assert_more(with: &[f32], without: &[f32], more: &[f64], what: &str) {
    let largest = with.iter().fold(0f64, |m, value| m.max(f64::from(value.abs())));
    for ((with, without), more) in with.iter().zip(without).zip(more) {
        let off = f64::from(*with) - f64::from(*without) - more;
        assert!(off.abs() <= 1e-6 * largest, "{what}: {with} beside {without} and {more}");
    }
}

#[test]
fn what_adapters_add_is_added() {
    // Columns that fill no panel, more than one chunk of rows, ranks that are no multiple of anything.
    for (t, rows, cols, ranks) in [(7, 100, 64, [16, 5]), (19, 577, 192, [1, 64]), (300, 24, 128, [3, 8])] {
        let weights = [nf4(rows, cols, 64, SourceDtype::F32, true), nf4(rows, cols, 64, SourceDtype::Bf16, false)];
        for path in CpuPath::available() {
            let views = || weights.iter().map(Weight::view);
            let Some(fixed) = FixedPoint::on(path, t, views(), Compute::Bf16) else { continue };
            let what = format!("T={t} N={rows} K={cols} {ranks:?} {}", path.name());
            let mut numbers = Numbers(23);
            let (x, dys) = (numbers.values(t * cols), [numbers.values(t * rows), numbers.values(t * rows)]);
            let us = ranks.map(|rank| numbers.values(t * rank));
            let [bs, factors] = [rows, cols].map(|wide| ranks.map(|rank| numbers.values(rank * wide)));
            let hidden = |i: usize| MatRef::new(&us[i], t, ranks[i]);
            let low_b = |i: usize| LowRank { hidden: hidden(i), factor: MatRef::new(&bs[i], rows, ranks[i]) };
            let low_a = |i: usize| LowRank { hidden: hidden(i), factor: MatRef::new(&factors[i], ranks[i], cols) };

            // The second weight alone has an adapter, then both.
            for count in [1, 2] {
                let forward = |adapted: bool| {
                    let mut ys = [vec![f32::NAN; t * rows], vec![f32::NAN; t * rows]];
                    let outputs = ys
                        .iter_mut()
                        .enumerate()
                        .map(|(i, y)| (MatMut::new(y, t, rows), (adapted && i + count > 1).then(|| low_b(i))));
                    fixed.forward(MatRef::new(&x, t, cols), outputs.collect());
                    ys
                };
                for (i, (with, without)) in forward(true).iter().zip(&forward(false)).enumerate() {
                    let mut more = product_of(&us[i], [t, ranks[i], rows], |r, n| bs[i][n * ranks[i] + r]);
                    more.iter_mut().filter(|_| i + count <= 1).for_each(|more| *more = 0.0);
                    assert_more(with, without, &more, &what);
                }
            }
            for accumulate in [false, true] {
                let backward = |lows: &[LowRank<'_>]| {
                    let mut dx = vec![if accumulate { 0.25 } else { f32::NAN }; t * cols];
                    let dys = [0, 1].map(|i| MatRef::new(&dys[i], t, rows));
                    fixed.backward(&dys, lows, MatMut::new(&mut dx, t, cols), accumulate);
                    dx
                };
                let parts = [0, 1].map(|i| product_of(&us[i], [t, ranks[i], cols], |r, k| factors[i][r * cols + k]));
                let more: Vec<f64> = parts[0].iter().zip(&parts[1]).map(|(a, b)| a + b).collect();
                assert_more(&backward(&[low_a(0), low_a(1)]), &backward(&[]), &more, &what);
            }
        }
    }
}
