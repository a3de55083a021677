//! Tests of the embedding against candle in f64, in every storage, and on other pools.

use super::*;
use crate::ops::testing::{assert_close, assert_derivative, assert_same_in_every_pool, bits, dot, normal};
use crate::ops::{Bytes, MatRef, RandomStream};
use crate::quant::nf4::{Nf4Matrix, Scales, SourceDtype};

/// Ids with many repetitions of a few.
fn ids(tokens: usize, vocabulary: u32) -> Vec<u32> {
    let stream = RandomStream::derive(7, "ids", &[]);
    (0..tokens as u64).map(|t| if t % 3 == 0 { vocabulary - 1 } else { stream.word(t) % vocabulary }).collect()
}

#[test]
fn forward_and_gradient_equal_candle_in_f64() {
    for (vocabulary, features, tokens) in [(1, 1, 1), (7, 5, 40), (300, 67, 513), (50, 2048, 33)] {
        let table = normal("table", vocabulary * features);
        let ids = ids(tokens, vocabulary as u32);
        let dy = normal("dy", tokens * features);
        let (truth, gradient) = reference::embedding(&table, features, &ids, &dy);
        let (mut y, mut dtable) = (vec![f32::NAN; dy.len()], vec![0.0; table.len()]);
        forward(WeightRef::F32(MatRef::new(&table, vocabulary, features)), &ids, &mut y);
        backward(&ids, &dy, &mut dtable);
        assert_close("y", &y, &truth, 0.0);
        assert_close("dtable", &dtable, &gradient, 1e-6);
    }
}

#[test]
fn gradient_equals_finite_differences() {
    let (table, ids, dy) = (normal("table", 9 * 4), ids(20, 9), normal("dy", 20 * 4));
    let mut dtable = vec![0.0; table.len()];
    backward(&ids, &dy, &mut dtable);
    assert_derivative("dtable", &table, &dtable, |table| {
        let mut y = vec![0.0; dy.len()];
        forward(WeightRef::F32(MatRef::new(table, 9, 4)), &ids, &mut y);
        dot(&y, &dy)
    });
}

#[test]
fn every_storage_gives_its_own_values() {
    let (vocabulary, features) = (11, 70);
    let values = normal("table", vocabulary * features);
    let half: Vec<u16> = values.iter().map(|&v| half::f16::from_f32(v).to_bits()).collect();
    let brain: Vec<u16> = values.iter().map(|&v| half::bf16::from_f32(v).to_bits()).collect();
    let codes: Vec<u8> = (0..values.len() / 2).map(|i| (i * 37 % 256) as u8).collect();
    let scales: Vec<u8> = values[..values.len().div_ceil(64)].iter().flat_map(|v| v.abs().to_le_bytes()).collect();
    let quantised = Nf4Matrix {
        rows: vocabulary,
        cols: features,
        block: 64,
        codes: Bytes::owned(&codes),
        scales: Scales::Plain(Bytes::owned(&scales)),
        dtype: SourceDtype::Bf16,
    };
    // A view into a wider matrix: the stride is not the number of columns.
    let wide = MatRef { data: &values, rows: vocabulary, cols: features - 3, stride: features };
    let ids = ids(25, vocabulary as u32);
    for table in [
        WeightRef::F32(wide),
        WeightRef::F16 { bits: &half, rows: vocabulary, cols: features },
        WeightRef::Bf16 { bits: &brain, rows: vocabulary, cols: features },
        WeightRef::Nf4(&quantised),
    ] {
        let mut y = vec![f32::NAN; ids.len() * table.cols()];
        forward(table, &ids, &mut y);
        for (row, &id) in y.chunks_exact(table.cols()).zip(&ids) {
            assert!(row.iter().enumerate().all(|(col, &value)| value == table.at(id as usize, col)));
        }
    }
}

#[test]
fn gradient_is_added_to_what_is_there() {
    let mut dtable = vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
    backward(&[2, 0, 2], &[10.0, 20.0, 30.0, 40.0, 50.0, 60.0], &mut dtable);
    assert_eq!(dtable, [31.0, 42.0, 3.0, 4.0, 65.0, 86.0]);
    backward(&[], &[], &mut dtable);
    assert_eq!(dtable, [31.0, 42.0, 3.0, 4.0, 65.0, 86.0]);
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() {
    let (vocabulary, features) = (40, 301);
    let (table, ids) = (normal("table", vocabulary * features), ids(700, 40));
    let dy = normal("dy", ids.len() * features);
    assert_same_in_every_pool(|| {
        let (mut y, mut dtable) = (vec![0.0; dy.len()], vec![0.0; table.len()]);
        forward(WeightRef::F32(MatRef::new(&table, vocabulary, features)), &ids, &mut y);
        backward(&ids, &dy, &mut dtable);
        (bits(&y), bits(&dtable))
    });
}

#[test]
#[should_panic(expected = "id 5 of a table of 5 rows")]
fn an_id_beyond_the_table_is_a_programmer_error() {
    forward(WeightRef::F32(MatRef::new(&[0.0; 10], 5, 2)), &[0, 5], &mut [0.0; 4]);
}
