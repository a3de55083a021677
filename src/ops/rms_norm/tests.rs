//! Tests of the norm against candle in f64, finite differences, and itself on other paths and pools.

use super::*;
use crate::ops::testing::{assert_close, assert_derivative, assert_same_in_every_pool, bits, dot, normal};

const EPS: f32 = 1e-5;

struct Case {
    x: Vec<f32>,
    weight: Vec<f32>,
    dy: Vec<f32>,
}

fn case(rows: usize, features: usize) -> Case {
    let weight = normal("weight", features).iter().map(|w| 1.0 + 0.3 * w).collect();
    Case { x: normal("x", rows * features), weight, dy: normal("dy", rows * features) }
}

struct Outcome {
    y: Vec<f32>,
    inv_rms: Vec<f32>,
    dx: Vec<f32>,
    dweight: Vec<f32>,
}

fn run(path: CpuPath, case: &Case) -> Outcome {
    let features = case.weight.len();
    let mut out = Outcome {
        y: vec![f32::NAN; case.x.len()],
        inv_rms: vec![f32::NAN; case.x.len() / features],
        dx: vec![0.0; case.x.len()],
        dweight: vec![0.0; features],
    };
    forward_on(path, &case.x, &case.weight, EPS, &mut out.y, &mut out.inv_rms);
    let saved = Saved { x: &case.x, inv_rms: &out.inv_rms, weight: &case.weight };
    backward_on(path, saved, &case.dy, &mut out.dx, Some(&mut out.dweight));
    out
}

const SHAPES: [(usize, usize); 7] = [(1, 1), (3, 7), (5, 31), (4, 32), (130, 65), (67, 576), (2, 4099)];

#[test]
fn forward_and_gradients_equal_candle_in_f64_on_every_path() {
    for (rows, features) in SHAPES {
        let case = case(rows, features);
        let truth = reference::rms_norm(&case.x, &case.weight, EPS, &case.dy);
        for path in CpuPath::available() {
            let out = run(path, &case);
            assert_close("y", &out.y, &truth.y, 2e-6);
            // With one feature the gradient is the difference of two nearly equal terms: dy·w·s·eps·s² is left.
            if features > 1 {
                assert_close("dx", &out.dx, &truth.dx, 2e-6);
            }
            assert_close("dweight", &out.dweight, &truth.dweight, 2e-6);
        }
    }
}

#[test]
fn every_path_gives_the_same_bits() {
    for (rows, features) in SHAPES {
        let case = case(rows, features);
        let expected = run(CpuPath::Portable, &case);
        for path in CpuPath::available() {
            let out = run(path, &case);
            assert_eq!(bits(&out.y), bits(&expected.y));
            assert_eq!(bits(&out.dx), bits(&expected.dx));
            assert_eq!(bits(&out.dweight), bits(&expected.dweight));
        }
    }
}

#[test]
fn gradients_equal_finite_differences() {
    let case = case(6, 48);
    let out = run(cpu_path(), &case);
    let loss = |x: &[f32], weight: &[f32]| {
        let (mut y, mut inv) = (vec![0.0; x.len()], vec![0.0; x.len() / weight.len()]);
        forward(x, weight, EPS, &mut y, &mut inv);
        dot(&y, &case.dy)
    };
    assert_derivative("dx", &case.x, &out.dx, |x| loss(x, &case.weight));
    assert_derivative("dweight", &case.weight, &out.dweight, |weight| loss(&case.x, weight));
}

#[test]
fn adding_the_residual_equals_adding_first() {
    let case = case(77, 300);
    let delta = normal("delta", case.x.len());
    let sum: Vec<f32> = case.x.iter().zip(&delta).map(|(a, b)| a + b).collect();
    let (mut y, mut inv) = (vec![0.0; sum.len()], vec![0.0; 77]);
    forward(&sum, &case.weight, EPS, &mut y, &mut inv);

    let mut residual = case.x.clone();
    let (mut fused_y, mut fused_inv) = (vec![0.0; sum.len()], vec![0.0; 77]);
    add_forward(&mut residual, &delta, &case.weight, EPS, &mut fused_y, &mut fused_inv);
    assert_eq!(residual, sum);
    assert_eq!(bits(&fused_y), bits(&y));
    assert_eq!(bits(&fused_inv), bits(&inv));
}

#[test]
fn gradients_are_added_to_what_is_there() {
    let case = case(9, 40);
    let out = run(cpu_path(), &case);
    let saved = Saved { x: &case.x, inv_rms: &out.inv_rms, weight: &case.weight };
    let (mut dx, mut dweight) = (vec![2.0; case.x.len()], vec![-3.0; 40]);
    backward(saved, &case.dy, &mut dx, Some(&mut dweight));
    assert!(dx.iter().zip(&out.dx).all(|(sum, part)| *sum == 2.0 + part));
    assert!(dweight.iter().zip(&out.dweight).all(|(sum, part)| *sum == -3.0 + part));
    let mut without = vec![2.0; case.x.len()];
    backward(saved, &case.dy, &mut without, None);
    assert_eq!(bits(&without), bits(&dx));
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() {
    let case = case(513, 203);
    assert_same_in_every_pool(|| {
        let out = run(cpu_path(), &case);
        (bits(&out.y), bits(&out.inv_rms), bits(&out.dx), bits(&out.dweight))
    });
}

#[test]
fn no_rows_is_no_work() {
    let mut dweight = vec![1.0; 8];
    forward(&[], &[1.0; 8], EPS, &mut [], &mut []);
    backward(Saved { x: &[], inv_rms: &[], weight: &[1.0; 8] }, &[], &mut [], Some(&mut dweight));
    assert_eq!(dweight, [1.0; 8]);
}
