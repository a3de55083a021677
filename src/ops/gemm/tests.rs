//! Every kernel path, storage, operand format and orientation against [`super::reference`].

use super::batch::{prepare_on, Batch, Right};
use super::pack_dense::{bf16_bits, f16_to_f32, round_f16};
use super::{matmul_nn_on, matmul_nt_on, matmul_tn_on, reference, Store, WeightRef};
use crate::device::{Compute, CpuPath};
use crate::ops::matrix::{MatMut, MatRef};
use crate::ops::Bytes;
use crate::quant::{Nf4Matrix, Scales, SourceDtype};

/// A small generator, so that these tests depend on nothing but the module.
pub(super) struct Numbers(pub(super) u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        self.0 >> 33
    }

    /// In [-1, 1).
    fn value(&mut self) -> f32 {
        self.next() as f32 / (1u64 << 30) as f32 - 1.0
    }

    pub(super) fn values(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.value()).collect()
    }
}

/// Owned memory of a weight.
pub(super) enum Weight {
    F32(Vec<f32>, usize, usize, usize),
    F16(Vec<u16>, usize, usize),
    Bf16(Vec<u16>, usize, usize),
    Nf4(Nf4Matrix),
}

impl Weight {
    pub(super) fn view(&self) -> WeightRef<'_> {
        match self {
            Weight::F32(data, rows, cols, stride) => {
                WeightRef::F32(MatRef { data, rows: *rows, cols: *cols, stride: *stride })
            }
            Weight::F16(bits, rows, cols) => WeightRef::F16 { bits, rows: *rows, cols: *cols },
            Weight::Bf16(bits, rows, cols) => WeightRef::Bf16 { bits, rows: *rows, cols: *cols },
            Weight::Nf4(matrix) => WeightRef::Nf4(matrix),
        }
    }

    /// One weight for each storage, dtype, block size and kind of scale.
    pub(super) fn all(rows: usize, cols: usize) -> Vec<(&'static str, Weight)> {
        let mut numbers = Numbers(rows as u64 * 1000 + cols as u64);
        let n = rows * cols;
        let f16 = numbers.values(n).iter().map(|&v| half::f16::from_f32(v).to_bits()).collect();
        let bf16 = numbers.values(n).iter().map(|&v| half::bf16::from_f32(v).to_bits()).collect();
        vec![
            ("f32", Weight::F32(numbers.values(rows * (cols + 3)), rows, cols, cols + 3)),
            ("f16", Weight::F16(f16, rows, cols)),
            ("bf16", Weight::Bf16(bf16, rows, cols)),
            ("nf4 32 plain", nf4(rows, cols, 32, SourceDtype::F32, false)),
            ("nf4 64 plain bf16", nf4(rows, cols, 64, SourceDtype::Bf16, false)),
            ("nf4 64 double f16", nf4(rows, cols, 64, SourceDtype::F16, true)),
            ("nf4 128 double", nf4(rows, cols, 128, SourceDtype::F32, true)),
            ("nf4 4096 double bf16", nf4(rows, cols, 4096, SourceDtype::Bf16, true)),
        ]
    }
}

pub(super) fn nf4(rows: usize, cols: usize, block: usize, dtype: SourceDtype, double: bool) -> Weight {
    let mut numbers = Numbers((rows * 31 + cols * 17 + block) as u64);
    let codes: Vec<u8> = (0..(rows * cols).div_ceil(2)).map(|_| numbers.next() as u8).collect();
    let blocks = (rows * cols).div_ceil(block);
    let scales = if double {
        let codes: Vec<u8> = (0..blocks).map(|_| numbers.next() as u8).collect();
        let map = Box::new(std::array::from_fn(|i| i as f32 / 127.5 - 1.0));
        // A nested block of 4 so that small matrices have several.
        let nested_absmax = (0..blocks.div_ceil(4)).map(|_| numbers.value().abs()).collect();
        Scales::Double { codes: Bytes::owned(&codes), nested_absmax, map, offset: 1.25, nested_block: 4 }
    } else {
        let values: Vec<u8> = (0..blocks).flat_map(|_| (numbers.value().abs() + 0.1).to_le_bytes()).collect();
        Scales::Plain(Bytes::owned(&values))
    };
    Weight::Nf4(Nf4Matrix { rows, cols, block, codes: Bytes::owned(&codes), scales, dtype })
}

/// A view with three unused columns after each row.
fn padded(data: &[f32], rows: usize, cols: usize) -> MatRef<'_> {
    MatRef { data, rows, cols, stride: cols + 3 }
}

pub(super) fn padded_mut(data: &mut [f32], rows: usize, cols: usize) -> MatMut<'_> {
    MatMut { data, rows, cols, stride: cols + 3 }
}

/// The three products with one signature: `(input rows, weight) -> output columns`.
#[derive(Debug, Clone, Copy)]
enum Form {
    Nt,
    Nn,
    Tn,
}

/// Runs a form on a path (`None`: the reference) over an output that already holds values. Of the third form the weight
/// is operand `b`, and `t` is the number of columns of `a`.
fn run(form: Form, path: Option<CpuPath>, t: usize, weight: &Weight, store: Store) -> Vec<f32> {
    let w = weight.view();
    let (rows, cols, out_cols) = match form {
        Form::Nt => (t, w.cols(), w.rows()),
        Form::Nn => (t, w.rows(), w.cols()),
        Form::Tn => (w.rows(), t, w.cols()),
    };
    let mut numbers = Numbers(7);
    let values = numbers.values(rows * (cols + 3));
    let mut output = numbers.values(t * (out_cols + 3));
    let input = padded(&values, rows, cols);
    let target = padded_mut(&mut output, t, out_cols);
    match (form, path, w) {
        (Form::Nt, None, _) => reference::matmul_nt(input, w, target, store),
        (Form::Nt, Some(path), _) => matmul_nt_on(path, input, w, target, store),
        (Form::Nn, None, _) => reference::matmul_nn(input, w, target, store),
        (Form::Nn, Some(path), _) => matmul_nn_on(path, input, w, target, store),
        (Form::Tn, None, WeightRef::F32(b)) => reference::matmul_tn(input, b, target, store),
        (Form::Tn, Some(path), WeightRef::F32(b)) => matmul_tn_on(path, input, b, target, store),
        (Form::Tn, _, _) => {}
    }
    output
}

pub(super) fn assert_close(actual: &[f32], expected: &[f32], tolerance: f32, what: &str) {
    let largest = expected.iter().fold(1e-30f32, |largest, value| largest.max(value.abs()));
    for (i, (a, e)) in actual.iter().zip(expected).enumerate() {
        assert!((a - e).abs() <= tolerance * largest, "{what}: element {i}: {a} instead of {e} (largest {largest})");
    }
}

/// Compares every path with the reference for one shape.
fn compare(t: usize, rows: usize, cols: usize) {
    for (name, weight) in Weight::all(rows, cols) {
        for form in [Form::Nt, Form::Nn, Form::Tn] {
            if matches!(form, Form::Tn) && name != "f32" {
                continue;
            }
            for compute in [Compute::F32, Compute::Bf16] {
                let store = if (rows + cols).is_multiple_of(2) {
                    Store::set(compute)
                } else {
                    Store::add(compute).scaled(0.37)
                };
                let expected = run(form, None, t, &weight, store);
                for path in CpuPath::available() {
                    let actual = run(form, Some(path), t, &weight, store);
                    let what = format!("{form:?} {name} T={t} N={rows} K={cols} {compute:?} {}", path.name());
                    assert_close(&actual, &expected, 1e-5, &what);
                }
            }
        }
    }
}

#[test]
fn every_path_equals_the_reference_for_each_number_of_rows() {
    for t in 1..=17 {
        compare(t, 37, 64);
    }
    compare(25, 50, 96);
}

#[test]
fn every_path_equals_the_reference_for_odd_shapes() {
    for (rows, cols) in [(1, 1), (1, 172), (3, 1), (64, 172), (172, 64), (33, 65), (47, 127), (5, 100), (96, 31)] {
        compare(1, rows, cols);
        compare(5, rows, cols);
        compare(18, rows, cols);
    }
}

#[test]
fn every_path_equals_the_reference_for_deep_reductions() {
    compare(9, 20, 1728);
    compare(9, 1700, 16);
    compare(2, 3, 4097);
    compare(20, 120, 1700);
    compare(33, 1600, 50);
}

/// Several panels a job.
#[test]
fn the_input_gradient_of_a_head_equals_the_reference_on_any_number_of_threads() {
    let pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
    let (one, two) = (pool(1), pool(2));
    let (_, weight) = Weight::all(12_500, 401).swap_remove(2);
    for compute in [Compute::F32, Compute::Bf16] {
        let expected = run(Form::Nn, None, 18, &weight, Store::set(compute));
        for path in CpuPath::available() {
            let alone = one.install(|| run(Form::Nn, Some(path), 18, &weight, Store::set(compute)));
            let together = two.install(|| run(Form::Nn, Some(path), 18, &weight, Store::set(compute)));
            assert_close(&alone, &expected, 1e-5, path.name());
            let equal = alone.iter().zip(&together).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(equal, "{compute:?} {}", path.name());
        }
    }
}

/// Of the words that bf16 weights are multiplied as, none is rounded on the way.
#[test]
fn bf16_weights_give_the_bits_of_their_values_in_f32() {
    let (rows, cols, t) = (70, 130, 20);
    let mut bits: Vec<u16> =
        Numbers(5).values(rows * cols).iter().map(|&v| half::bf16::from_f32(v).to_bits()).collect();
    // Zeros, subnormal numbers and the smallest normal one of either sign.
    for (i, special) in [0, 0x8000, 1, 0x8001, 0x7f, 0x807f, 0x80, 0x8080].into_iter().enumerate() {
        bits[i * 7] = special;
        bits[cols * (i + 3)] = special;
    }
    let wide = bits.iter().map(|&bits| f32::from_bits(u32::from(bits) << 16)).collect();
    let (narrow, wide) = (Weight::Bf16(bits, rows, cols), Weight::F32(wide, rows, cols, cols));
    for form in [Form::Nt, Form::Nn] {
        for compute in [Compute::F32, Compute::Bf16] {
            for path in CpuPath::available() {
                let [narrow, wide] =
                    [&narrow, &wide].map(|weight| run(form, Some(path), t, weight, Store::set(compute)));
                let equal = narrow.iter().zip(&wide).all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(equal, "{form:?} {compute:?} {}", path.name());
            }
        }
    }
}

#[test]
fn every_path_equals_the_reference_for_whole_blocks() {
    for (rows, cols) in [(5, 128), (20, 256), (21, 192), (37, 576), (3, 4096), (3, 4160), (130, 64)] {
        compare(1, rows, cols);
        compare(3, rows, cols);
        compare(16, rows, cols);
        compare(19, rows, cols);
    }
}

#[test]
fn a_single_one_gives_the_values_of_a_column() {
    let (rows, cols) = (20, 192);
    for (name, weight) in Weight::all(rows, cols) {
        for compute in [Compute::F32, Compute::Bf16] {
            for path in CpuPath::available() {
                for col in 0..cols {
                    let x: Vec<f32> = (0..cols).map(|at| f32::from(u8::from(at == col))).collect();
                    let mut y = vec![0.0; rows];
                    let (input, target) = (MatRef::new(&x, 1, cols), MatMut::new(&mut y, 1, rows));
                    matmul_nt_on(path, input, weight.view(), target, Store::set(compute));
                    let expected: Vec<f32> = (0..rows)
                        .map(|row| match compute {
                            Compute::F32 => weight.view().at(row, col),
                            Compute::Bf16 => half::bf16::from_f32(weight.view().at(row, col)).to_f32(),
                        })
                        .collect();
                    assert_eq!(y, expected, "{name} column {col} {compute:?} {}", path.name());
                }
            }
        }
    }
}

#[test]
fn every_path_equals_the_reference_for_narrow_gradients() {
    compare(70, 40, 16);
    compare(300, 33, 24);
}

#[test]
fn a_transposed_operand_may_be_wider_than_any_buffer() {
    let (_, weight) = Weight::all(18, 33).swap_remove(0);
    for compute in [Compute::F32, Compute::Bf16] {
        let expected = run(Form::Tn, None, 36_001, &weight, Store::set(compute));
        for path in CpuPath::available() {
            let actual = run(Form::Tn, Some(path), 36_001, &weight, Store::set(compute));
            assert_close(&actual, &expected, 1e-5, path.name());
        }
    }
}

#[test]
fn alpha_and_accumulate_reach_every_element() {
    let (_, weight) = Weight::all(50, 832).swap_remove(3);
    for compute in [Compute::F32, Compute::Bf16] {
        for store in [Store::set(compute).scaled(-2.5), Store::add(compute), Store::add(compute).scaled(0.125)] {
            let expected = run(Form::Nt, None, 11, &weight, store);
            for path in CpuPath::available() {
                assert_close(&run(Form::Nt, Some(path), 11, &weight, store), &expected, 1e-5, path.name());
            }
        }
    }
}

#[test]
fn an_empty_reduction_writes_zeros_and_no_rows_write_nothing() {
    for path in CpuPath::available() {
        let weight = WeightRef::F32(MatRef { data: &[], rows: 3, cols: 0, stride: 0 });
        let mut y = [5.0f32; 6];
        let x = MatRef { data: &[], rows: 2, cols: 0, stride: 0 };
        matmul_nt_on(path, x, weight, MatMut::new(&mut y, 2, 3), Store::set(Compute::F32));
        assert_eq!(y, [0.0; 6]);
        let weight = [1.0f32; 6];
        let w = WeightRef::F32(MatRef::new(&weight, 3, 2));
        matmul_nt_on(path, MatRef::new(&[], 0, 2), w, MatMut::new(&mut [], 0, 3), Store::set(Compute::Bf16));
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
    let (one, three) = (pool(1), pool(3));
    for (rows, cols, t) in [(192, 576, 70), (577, 1700, 5), (40, 2048, 300), (700, 100, 150), (4000, 1024, 1)] {
        for (name, weight) in Weight::all(rows, cols) {
            for form in [Form::Nt, Form::Nn, Form::Tn] {
                for compute in [Compute::F32, Compute::Bf16] {
                    for path in CpuPath::available() {
                        let store = Store::add(compute);
                        let alone = one.install(|| run(form, Some(path), t, &weight, store));
                        let together = three.install(|| run(form, Some(path), t, &weight, store));
                        let equal = alone.iter().zip(&together).all(|(a, b)| a.to_bits() == b.to_bits());
                        assert!(equal, "{form:?} {name} {compute:?} {}", path.name());
                    }
                }
            }
        }
    }
}

/// Forward, input gradient and parameter gradients of two weights that share an input: as a batch, or one by one.
fn a_group(path: CpuPath, weights: &[Weight; 2], compute: Compute, as_batch: bool) -> Vec<Vec<f32>> {
    const ROWS: usize = 70;
    const RANK: usize = 16;
    let cols = weights[0].view().cols();
    let mut numbers = Numbers(5);
    let x = numbers.values(ROWS * cols);
    let x = MatRef::new(&x, ROWS, cols);
    let [a, low] = [cols, ROWS].map(|width| numbers.values(RANK * width));
    let (a, low) = (MatRef::new(&a, RANK, cols), MatRef::new(&low, ROWS, RANK));
    let views = weights.each_ref().map(Weight::view);
    let dys = views.map(|w| numbers.values(ROWS * w.rows()));
    let dys: [MatRef<'_>; 2] = std::array::from_fn(|i| MatRef::new(&dys[i], ROWS, views[i].rows()));
    let bs = views.map(|w| numbers.values(w.rows() * RANK));
    let bs: [MatRef<'_>; 2] = std::array::from_fn(|i| MatRef::new(&bs[i], views[i].rows(), RANK));
    let mut ys = views.map(|w| vec![0.0; ROWS * w.rows()]);
    let mut dx = vec![0.0; ROWS * cols];
    let (mut das, mut dbs) = ([(); 2].map(|()| numbers.values(RANK * cols)), bs.map(|b| b.data.to_vec()));
    let f32 = WeightRef::F32;
    if as_batch {
        let input = prepare_on(path, &[x, low], false, compute);
        let mut batch = Batch::on(path, compute);
        for ((w, b), y) in views.iter().zip(bs).zip(&mut ys) {
            let terms = vec![(&input[0], Right::transposed(*w), 1.0), (&input[1], Right::transposed(f32(b)), 0.37)];
            batch.sum(MatMut::new(y, ROWS, w.rows()), false, terms);
        }
        batch.run();
        let gradients = prepare_on(path, &[dys[0], dys[1], low], false, compute);
        let mut batch = Batch::on(path, compute);
        let terms = vec![
            (&gradients[0], Right::plain(views[0]), 1.0),
            (&gradients[2], Right::plain(f32(a)), 1.0),
            (&gradients[1], Right::plain(views[1]), 1.0),
        ];
        batch.sum(MatMut::new(&mut dx, ROWS, cols), false, terms);
        batch.run();
        let turned = prepare_on(path, &[low], true, compute);
        let mut batch = Batch::on(path, compute);
        let uses = das.iter_mut().map(|da| (&turned[0], MatMut::new(da, RANK, cols), 1.0)).collect();
        batch.share(Right::plain(f32(x)), true, uses);
        for (dy, db) in dys.iter().zip(&mut dbs) {
            let target = MatMut::new(db, dy.cols, RANK);
            batch.turned(target, true, (&turned[0], Right::plain(f32(*dy)), 0.37));
        }
        batch.run();
    } else {
        let (set, add) = (Store::set(compute), Store::add(compute));
        for ((w, b), y) in views.iter().zip(bs).zip(&mut ys) {
            matmul_nt_on(path, x, *w, MatMut::new(y, ROWS, w.rows()), set);
            matmul_nt_on(path, low, f32(b), MatMut::new(y, ROWS, w.rows()), add.scaled(0.37));
        }
        matmul_nn_on(path, dys[0], views[0], MatMut::new(&mut dx, ROWS, cols), set);
        matmul_nn_on(path, low, f32(a), MatMut::new(&mut dx, ROWS, cols), add);
        matmul_nn_on(path, dys[1], views[1], MatMut::new(&mut dx, ROWS, cols), add);
        for da in &mut das {
            matmul_tn_on(path, low, x, MatMut::new(da, RANK, cols), add);
        }
        for (dy, db) in dys.iter().zip(&mut dbs) {
            matmul_tn_on(path, *dy, low, MatMut::new(db, dy.cols, RANK), add.scaled(0.37));
        }
    }
    let [da, other_da] = das;
    let ([y, other_y], [db, other_db]) = (ys, dbs);
    vec![y, other_y, dx, da, other_da, db, other_db]
}

#[test]
fn a_batch_gives_the_bits_of_single_products() {
    let pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
    let (one, three) = (pool(1), pool(3));
    // Wide enough that no product is a small one, which is summed in f64; the gradients of B are, in f32.
    for (first, second) in Weight::all(544, 640).into_iter().zip(Weight::all(833, 640)) {
        let (name, weights) = (first.0, [first.1, second.1]);
        for compute in [Compute::F32, Compute::Bf16] {
            for path in CpuPath::available() {
                let what = format!("{name} {compute:?} {}", path.name());
                let single = one.install(|| a_group(path, &weights, compute, false));
                let batch = one.install(|| a_group(path, &weights, compute, true));
                let together = three.install(|| a_group(path, &weights, compute, true));
                let bits = |values: &Vec<f32>| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
                for (index, (single, batch)) in single.iter().zip(&batch).enumerate() {
                    assert!(bits(batch) == bits(&together[index]), "{what}: result {index} depends on the threads");
                    if index < 5 || compute == Compute::Bf16 {
                        assert!(bits(single) == bits(batch), "{what}: result {index}");
                    } else {
                        assert_close(batch, single, 1e-6, &what);
                    }
                }
            }
        }
    }
}

#[test]
fn a_sum_of_many_terms_gives_the_bits_of_single_products() {
    // More than are added together, some deeper than a block, some that end inside a tile or a pair, one scaled.
    const DEPTHS: [usize; 13] = [40, 33, 64, 200, 5, 1, 96, 700, 2000, 31, 48, 17, 7];
    const ROWS: usize = 70;
    let alpha = |i: usize| if i == 4 { 0.37 } else { 1.0 };
    let mut numbers = Numbers(11);
    for columns in [96, 75, 300] {
        let lefts = DEPTHS.map(|depth| numbers.values(ROWS * depth));
        let rights = DEPTHS.map(|depth| numbers.values(columns * depth));
        let lefts: Vec<MatRef<'_>> =
            lefts.iter().zip(DEPTHS).map(|(values, depth)| MatRef::new(values, ROWS, depth)).collect();
        let right = |i: usize| match i % 2 {
            0 => MatRef::new(&rights[i], DEPTHS[i], columns),
            _ => MatRef::new(&rights[i], columns, DEPTHS[i]),
        };
        let cases = CpuPath::available().into_iter().flat_map(|path| [(Compute::F32, path), (Compute::Bf16, path)]);
        for (compute, path) in cases {
            let mut sum = vec![0.5; ROWS * columns];
            let mut single = sum.clone();
            let prepared = prepare_on(path, &lefts, false, compute);
            let terms = (0..DEPTHS.len()).map(|i| {
                let weight = WeightRef::F32(right(i));
                let right = if i % 2 == 0 { Right::plain(weight) } else { Right::transposed(weight) };
                (&prepared[i], right, alpha(i))
            });
            let mut batch = Batch::on(path, compute);
            batch.sum(MatMut::new(&mut sum, ROWS, columns), true, terms.collect());
            batch.run();
            for (i, left) in lefts.iter().enumerate() {
                let (weight, to) = (WeightRef::F32(right(i)), MatMut::new(&mut single, ROWS, columns));
                let add = Store::add(compute).scaled(alpha(i));
                match i % 2 {
                    0 => matmul_nn_on(path, *left, weight, to, add),
                    _ => matmul_nt_on(path, *left, weight, to, add),
                }
            }
            let what = format!("{columns} columns {compute:?} {}", path.name());
            match compute {
                Compute::Bf16 => assert!(sum.iter().zip(&single).all(|(a, b)| a.to_bits() == b.to_bits()), "{what}"),
                // Small products alone are summed in f64.
                Compute::F32 => assert_close(&sum, &single, 1e-6, &what),
            }
        }
    }
}

#[test]
fn roundings_and_conversions_agree_with_half_for_every_pattern_of_the_upper_bits() {
    // Every upper half of an f32, with lower halves around a tie.
    for upper in 0..=u32::from(u16::MAX) {
        for lower in [0, 1, 0x0fff, 0x1000, 0x1001, 0x2fff, 0x3000, 0x7fff, 0x8000, 0x8001, 0xffff] {
            let value = f32::from_bits(upper << 16 | lower);
            let bf16 = half::bf16::from_f32(value);
            assert_eq!(bf16_bits(value), u32::from(bf16.to_bits()), "{:x}", value.to_bits());
            let f16 = half::f16::from_f32(value);
            assert!(
                round_f16(value).to_bits() == f16.to_f32().to_bits() || value.is_nan() && round_f16(value).is_nan()
            );
        }
        let bits = upper as u16;
        let widened = half::f16::from_bits(bits).to_f32();
        assert!(f16_to_f32(bits).to_bits() == widened.to_bits() || widened.is_nan() && f16_to_f32(bits).is_nan());
    }
}
