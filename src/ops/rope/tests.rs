//! Tests of the rotation: frequencies against values of `transformers`, values and gradients against candle in f64.

use super::*;
use crate::ops::testing::{assert_close, assert_derivative, assert_same_in_every_pool, bits, dot, normal};

fn plain(head_dim: usize) -> RopeConfig {
    RopeConfig { theta: 10_000.0, head_dim, scaling: RopeScaling::Default }
}

/// Positions as in a pack: three documents, each from zero.
fn packed_positions(tokens: usize) -> Vec<u32> {
    (0..tokens as u32).map(|t| t % (tokens as u32 / 3 + 1)).collect()
}

#[test]
fn default_frequencies_equal_transformers_bit_for_bit() {
    // LlamaRotaryEmbedding.inv_freq of transformers 5.23, head_dim 24, theta 10000.
    let expected: [f32; 12] = [
        1.0,
        0.464_158_9,
        0.215_443_45,
        0.1,
        0.046_415_884,
        0.021_544_348,
        0.01,
        0.004_641_589_7,
        0.002_154_434_3,
        0.001,
        0.000_464_158_95,
        0.000_215_443_42,
    ];
    assert_eq!(plain(24).inv_freq(), expected);
}

#[test]
fn linear_frequencies_equal_transformers_bit_for_bit() {
    let config = RopeConfig { scaling: RopeScaling::Linear { factor: 4.0 }, ..plain(16) };
    let expected: [f32; 8] =
        [0.25, 0.079_056_94, 0.025, 0.007_905_695, 0.0025, 0.000_790_569_47, 0.000_25, 0.000_079_056_95];
    assert_eq!(config.inv_freq(), expected);
}

#[test]
fn llama3_frequencies_equal_transformers_bit_for_bit() {
    let scaling = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 16,
    };
    let config = RopeConfig { theta: 500_000.0, head_dim: 8, scaling };
    assert_eq!(config.inv_freq(), [0.576_056_36, 0.004_700_754, 0.000_176_776_68, 0.000_006_647_869_7]);
}

#[test]
fn forward_and_gradient_equal_candle_in_f64_on_every_path() {
    for (tokens, heads, head_dim) in [(1, 1, 2), (7, 3, 6), (33, 5, 24), (300, 9, 64)] {
        let table = RopeTable::new(&plain(head_dim), tokens);
        let positions = packed_positions(tokens);
        let x = normal("x", tokens * heads * head_dim);
        let dy = normal("dy", x.len());
        let (y, dx) = reference::rope(&x, heads, &positions, &table, &dy);
        let mut expected_bits = None;
        for path in CpuPath::available() {
            let (mut turned, mut back) = (x.clone(), dy.clone());
            apply_on(path, &mut turned, heads, &positions, &table, Direction::Forward);
            apply_on(path, &mut back, heads, &positions, &table, Direction::Backward);
            assert_close("y", &turned, &y, 2e-7);
            assert_close("dx", &back, &dx, 2e-7);
            let expected = expected_bits.get_or_insert_with(|| (bits(&turned), bits(&back)));
            assert_eq!((bits(&turned), bits(&back)), *expected, "{}", path.name());
        }
    }
}

#[test]
fn gradient_equals_finite_differences() {
    let (tokens, heads, head_dim) = (5, 2, 8);
    let table = RopeTable::new(&plain(head_dim), tokens);
    let positions = packed_positions(tokens);
    let x = normal("x", tokens * heads * head_dim);
    let dy = normal("dy", x.len());
    let mut dx = dy.clone();
    apply(&mut dx, heads, &positions, &table, Direction::Backward);
    assert_derivative("dx", &x, &dx, |x| {
        let mut y = x.to_vec();
        apply(&mut y, heads, &positions, &table, Direction::Forward);
        dot(&y, &dy)
    });
}

#[test]
fn scores_depend_on_the_distance_only() {
    let table = RopeTable::new(&plain(64), 1000);
    let (query, key) = (normal("query", 64), normal("key", 64));
    let score = |query_at: u32, key_at: u32| {
        let (mut q, mut k) = (query.clone(), key.clone());
        apply(&mut q, 1, &[query_at], &table, Direction::Forward);
        apply(&mut k, 1, &[key_at], &table, Direction::Forward);
        dot(&q, &k)
    };
    let scale = dot(&query, &query).sqrt() * dot(&key, &key).sqrt();
    assert!((score(17, 5) - score(912, 900)).abs() < 1e-4 * scale);
    assert!((score(17, 5) - score(18, 5)).abs() > 1e-3 * scale);
}

#[test]
fn a_grown_table_equals_one_made_at_once() {
    let config = plain(10);
    let mut grown = RopeTable::new(&config, 3);
    grown.ensure(2);
    assert_eq!(grown.positions(), 3);
    grown.ensure(50);
    let whole = RopeTable::new(&config, 50);
    assert_eq!((bits(&grown.cos), bits(&grown.sin)), (bits(&whole.cos), bits(&whole.sin)));
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() {
    let table = RopeTable::new(&plain(16), 400);
    let positions = packed_positions(1111);
    let x = normal("x", 1111 * 7 * 16);
    assert_same_in_every_pool(|| {
        let mut y = x.clone();
        apply(&mut y, 7, &positions, &table, Direction::Forward);
        bits(&y)
    });
}

#[test]
#[should_panic(expected = "position 4 of a table of 3")]
fn a_position_beyond_the_table_is_a_programmer_error() {
    let table = RopeTable::new(&plain(4), 3);
    apply(&mut [0.0; 4], 1, &[3], &table, Direction::Forward);
}
