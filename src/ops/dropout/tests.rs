//! Tests of dropout: the mask against its definition, its statistics, its repetition, its independence of threads.

use super::*;
use crate::ops::testing::{assert_close, assert_derivative, assert_same_in_every_pool, bits, dot, normal};

fn stream(number: u64) -> RandomStream {
    RandomStream::derive(42, "dropout", &[number])
}

#[test]
fn forward_and_gradient_equal_candle_in_f64_on_every_path() {
    for len in [1, 3, 64, 67, 1000, 40_001] {
        for probability in [0.05, 0.5, 0.9] {
            let (x, dy) = (normal("x", len), normal("dy", len));
            let (y, dx) = reference::dropout(&x, &dy, probability, stream(0));
            let mask = Mask::new(probability, stream(0));
            for path in CpuPath::available() {
                let mut out = vec![f32::NAN; len];
                apply_on(path, &x, &mut out, mask);
                assert_close("y", &out, &y, 2e-7);
                let mut in_place = x.clone();
                apply_in_place_on(path, &mut in_place, mask);
                assert_eq!(bits(&in_place), bits(&out));
                let mut gradient = vec![0.0; len];
                apply_add_on(path, &dy, &mut gradient, mask);
                assert_close("dx", &gradient, &dx, 2e-7);
            }
        }
    }
}

#[test]
fn gradient_equals_finite_differences() {
    let (x, dy) = (normal("x", 333), normal("dy", 333));
    let mut dx = vec![0.0; 333];
    apply_add(&dy, &mut dx, 0.3, stream(1));
    assert_derivative("dx", &x, &dx, |x| {
        let mut y = vec![0.0; 333];
        apply(x, &mut y, 0.3, stream(1));
        dot(&y, &dy)
    });
}

#[test]
fn gradient_is_added_to_what_is_there() {
    let dy = normal("dy", 100);
    let (mut alone, mut sum) = (dy.clone(), vec![3.0; 100]);
    apply_in_place(&mut alone, 0.5, stream(2));
    apply_add(&dy, &mut sum, 0.5, stream(2));
    assert!(sum.iter().zip(&alone).all(|(sum, part)| *sum == 3.0 + part));
}

#[test]
fn the_kept_fraction_is_within_four_standard_deviations() {
    let len = 1 << 20;
    for (number, probability) in [0.01, 0.05, 0.1, 0.5, 0.9].into_iter().enumerate() {
        let mut x = vec![1.0; len];
        apply_in_place(&mut x, probability, stream(number as u64));
        let kept = x.iter().filter(|&&v| v != 0.0).count() as f64;
        let p = f64::from(probability);
        let deviation = (len as f64 * p * (1.0 - p)).sqrt();
        assert!((kept - len as f64 * (1.0 - p)).abs() < 4.0 * deviation, "p {p}: {kept} of {len} kept");
        assert!(x.iter().all(|&v| v == 0.0 || v == 1.0 / (1.0 - probability)));
    }
}

#[test]
fn a_stream_names_one_mask() {
    let mask = |number, len| {
        let mut x = vec![1.0; len];
        apply_in_place(&mut x, 0.5, stream(number));
        x
    };
    assert_eq!(mask(3, 5000), mask(3, 5000));
    assert_eq!(mask(3, 40_000)[..777], mask(3, 777)[..]);
    let same = mask(3, 5000).iter().zip(mask(4, 5000)).filter(|(a, b)| **a == *b).count();
    assert!((2300..2700).contains(&same), "{same} of 5000 equal");
}

#[test]
fn probability_zero_copies() {
    let x = normal("x", 100);
    let (mut out, mut in_place, mut sum) = (vec![0.0; 100], x.clone(), vec![0.0; 100]);
    apply(&x, &mut out, 0.0, stream(5));
    apply_in_place(&mut in_place, 0.0, stream(5));
    apply_add(&x, &mut sum, 0.0, stream(5));
    assert_eq!((&out, &in_place, &sum), (&x, &x, &x));
}

#[test]
fn noise_is_uniform_within_its_bound_on_every_path() {
    let len = 100_001;
    let expected: Vec<f32> = (0..len as u64).map(|i| 0.25 * (2.0 * stream(6).uniform(i) - 1.0)).collect();
    for path in CpuPath::available() {
        let mut x = vec![0.0; len];
        add_uniform_on(path, &mut x, 0.25, stream(6));
        assert_eq!(x, expected);
    }
    assert!(expected.iter().all(|v| (-0.25..0.25).contains(v)));
    let mean = expected.iter().map(|&v| f64::from(v)).sum::<f64>() / len as f64;
    let square = expected.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / len as f64;
    // Standard deviation of the mean: bound / sqrt(3 n); of the mean square: bound² · sqrt(4 / 45 n).
    assert!(mean.abs() < 4.0 * 0.25 / (3.0 * len as f64).sqrt(), "mean {mean}");
    assert!((square - 0.0625 / 3.0).abs() < 4.0 * 0.0625 * (4.0 / (45.0 * len as f64)).sqrt(), "square {square}");
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() {
    let x = normal("x", 100_003);
    assert_same_in_every_pool(|| {
        let (mut y, mut noisy) = (vec![0.0; x.len()], x.clone());
        apply(&x, &mut y, 0.1, stream(7));
        add_uniform(&mut noisy, 0.1, stream(8));
        (bits(&y), bits(&noisy))
    });
}
