//! Tests of SwiGLU against candle in f64, finite differences, and itself on other paths and pools.

use super::*;
use crate::ops::testing::{assert_close, assert_derivative, assert_same_in_every_pool, bits, dot, normal};

/// Gates of every size up to ±20 standard deviations, ups and gradients of order one.
fn case(len: usize) -> [Vec<f32>; 3] {
    let gate = normal("gate", len).iter().enumerate().map(|(i, g)| g * [0.01, 1.0, 5.0][i % 3]).collect();
    [gate, normal("up", len), normal("dact", len)]
}

fn run(path: CpuPath, [gate, up, dact]: &[Vec<f32>; 3]) -> [Vec<f32>; 4] {
    let mut act = vec![f32::NAN; gate.len()];
    forward_on(path, gate, up, &mut act);
    let (mut dgate, mut dup, mut again) = (gate.clone(), up.clone(), dact.clone());
    backward_in_place_on(path, &mut dgate, &mut dup, &mut again);
    [act, dgate, dup, again]
}

#[test]
fn forward_and_gradients_equal_candle_in_f64_on_every_path() {
    for len in [1, 15, 67, 1000, 50_001] {
        let case = case(len);
        let truth = reference::swiglu(&case[0], &case[1], &case[2]);
        let expected = run(CpuPath::Portable, &case).map(|v| bits(&v));
        for path in CpuPath::available() {
            let out = run(path, &case);
            assert_close("act", &out[0], &truth.act, 2e-6);
            assert_close("dgate", &out[1], &truth.dgate, 2e-6);
            assert_close("dup", &out[2], &truth.dup, 2e-6);
            assert_eq!(out.map(|v| bits(&v)), expected, "{}", path.name());
        }
    }
}

#[test]
fn backward_leaves_the_activation_of_the_forward_pass() {
    let [act, _, _, again] = run(cpu_path(), &case(20_011));
    assert_eq!(bits(&again), bits(&act));
}

#[test]
fn gradients_equal_finite_differences() {
    let case = case(300);
    let [_, dgate, dup, _] = run(cpu_path(), &case);
    let [gate, up, dact] = &case;
    let loss = |gate: &[f32], up: &[f32]| {
        let mut act = vec![0.0; gate.len()];
        forward(gate, up, &mut act);
        dot(&act, dact)
    };
    assert_derivative("dgate", gate, &dgate, |gate| loss(gate, up));
    assert_derivative("dup", up, &dup, |up| loss(gate, up));
}

#[test]
fn extreme_gates_stay_finite() {
    let gate = vec![-1e30, -1e4, -89.0, -88.0, 0.0, 88.0, 1e4, 1e30];
    let [act, dgate, dup, _] = run(cpu_path(), &[gate.clone(), vec![1.0; 8], vec![1.0; 8]]);
    assert!(act.iter().chain(&dgate).chain(&dup).all(|v| v.is_finite()), "{act:?} {dgate:?} {dup:?}");
    assert_eq!((act[0], act[1], act[7]), (0.0, 0.0, 1e30));
    assert_eq!((dgate[0], dgate[4], dgate[7]), (0.0, 0.5, 1.0));
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() {
    let case = case(100_003);
    assert_same_in_every_pool(|| run(cpu_path(), &case).map(|v| bits(&v)));
}

#[test]
fn kept_halves_give_the_bits_of_rounded_values() {
    let arena = Arena::new();
    for (rows, cols) in [(1, 1), (3, 11), (5, 64), (40, 1537)] {
        let mut values = case(rows * cols).map(|values| {
            let mut matrix = arena.matrix(rows, cols);
            matrix.copy_from_slice(&values);
            matrix
        });
        let rounded: [Vec<f32>; 2] = std::array::from_fn(|i| {
            let mut copy = values[i].to_vec();
            crate::ops::half_matrix::round(&mut copy);
            copy
        });
        let [act, dgate, dup, again] = run(cpu_path(), &[rounded[0].clone(), rounded[1].clone(), values[2].to_vec()]);
        let [gate, up, dact] = &mut values;
        let (mut out, mut out_rounding) = (arena.matrix(rows, cols), vec![0.0; rows * cols]);
        let kept = forward_keeping(gate, up, &mut out, &arena);
        forward_rounding(gate, up, &mut out_rounding);
        assert_eq!((bits(&out), bits(&out_rounding)), (bits(&act), bits(&act)), "[{rows}, {cols}]");
        let gradients = backward_kept(kept, dact, &arena);
        assert_eq!(gradients.map(|g| bits(&g)), [bits(&dgate), bits(&dup)], "[{rows}, {cols}]");
        assert_eq!(bits(dact), bits(&again), "[{rows}, {cols}]");
    }
}
