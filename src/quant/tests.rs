//! Facts of NF4 that do not need the golden vectors (those are in tests/parity.rs).

use super::double::{double_quantize, double_quantize_around, dynamic_map_signed_8bit};
use super::kernels::{decode_blocks_on, encode_on, Blocks, MIDPOINTS};
use super::nf4::NF4_CODE;
use super::*;
use crate::device::CpuPath;
use crate::ops::random::RandomStream;

fn normal(count: usize, seed: u64) -> Vec<f32> {
    let stream = RandomStream::new(seed, 3);
    (0..count as u64).map(|i| stream.normal(i)).collect()
}

fn absmax(matrix: &Nf4Matrix) -> Vec<f32> {
    (0..matrix.len().div_ceil(matrix.block)).map(|b| matrix.scale(b)).collect()
}

/// Values on, just below and just above every midpoint and code value, at several scales.
fn borders() -> Vec<f32> {
    let mut values = Vec::new();
    for scale in [1.0f32, -1.0, 0.02, 3e30, 1e-37] {
        let mut block = vec![scale];
        for value in MIDPOINTS.iter().chain(&NF4_CODE).map(|value| value * scale) {
            block.extend([value, value.next_up(), value.next_down()]);
        }
        block.resize(block.len().next_multiple_of(64), -0.0);
        values.extend(block);
    }
    values
}

#[test]
fn every_path_encodes_the_same_bits() {
    let values = [borders(), normal(5003, 1)].concat();
    let f16: Vec<u16> = values.iter().map(|&v| half::f16::from_f32(v.clamp(-6e4, 6e4)).to_bits()).collect();
    let bf16: Vec<u16> = values.iter().map(|&v| half::bf16::from_f32(v).to_bits()).collect();
    for block in [32, 64, 128, 4096] {
        for values in [Values::F32(&values), Values::F16(&f16), Values::Bf16(&bf16)] {
            let run = |path| {
                let mut absmax = vec![0.0; values.len().div_ceil(block)];
                let mut packed = vec![0; values.len().div_ceil(2)];
                let bad = encode_on(path, Blocks { values, block, absmax: &mut absmax, packed: &mut packed });
                assert_eq!(bad, None);
                (absmax, packed)
            };
            let expected = run(CpuPath::Portable);
            for path in CpuPath::available() {
                assert!(run(path) == expected, "{path:?}, block {block}, {:?}", values.dtype());
            }
        }
    }
}

#[test]
fn every_path_decodes_the_same_bits() {
    let packed: Vec<u8> = (0..=255).cycle().take(2048).collect();
    for block in [32, 64, 4096] {
        let scales: Vec<f32> = (0..4096 / block).map(|i| 0.37 * 1.3f32.powi(i as i32 % 40 - 20)).collect();
        for dtype in [SourceDtype::F32, SourceDtype::F16, SourceDtype::Bf16] {
            let code = |i: usize| if i.is_multiple_of(2) { packed[i / 2] >> 4 } else { packed[i / 2] & 15 };
            let value = |i: usize| dtype.round(NF4_CODE[usize::from(code(i))] * scales[i / block]).to_bits();
            let expected: Vec<u32> = (0..4096).map(value).collect();
            for path in CpuPath::available() {
                let mut out = vec![f32::NAN; 4096];
                decode_blocks_on(path, &packed, block, &scales, dtype, &mut out);
                assert!(out.iter().map(|v| v.to_bits()).eq(expected.clone()), "{path:?}, block {block}, {dtype:?}");
            }
        }
    }
}

#[test]
fn bulk_row_and_single_value_agree() {
    let (rows, cols) = (37, 83); // rows start inside blocks and inside bytes
    let bits: Vec<u16> = normal(rows * cols, 2).iter().map(|&v| half::bf16::from_f32(v).to_bits()).collect();
    for double in [false, true] {
        let matrix = quantize(Values::Bf16(&bits), rows, cols, QuantConfig { block: 64, double }).unwrap();
        let mut all = vec![0.0; rows * cols];
        matrix.dequantize(&mut all);
        let mut row = vec![0.0; cols];
        for r in 0..rows {
            matrix.dequantize_row(r, &mut row);
            assert_eq!(row, all[r * cols..(r + 1) * cols]);
        }
        for (i, &value) in all.iter().enumerate() {
            assert_eq!(value.to_bits(), matrix.value(i).to_bits(), "index {i}");
        }
    }
}

#[test]
fn half_precision_inputs_equal_their_widened_values() {
    let f16: Vec<u16> = normal(5000, 4).iter().map(|&v| half::f16::from_f32(v).to_bits()).collect();
    let wide: Vec<f32> = f16.iter().map(|&bits| half::f16::from_bits(bits).to_f32()).collect();
    let config = QuantConfig { block: 64, double: false };
    let (a, b) =
        (quantize(Values::F16(&f16), 50, 100, config).unwrap(), quantize(Values::F32(&wide), 50, 100, config).unwrap());
    assert_eq!(&a.codes[..], &b.codes[..]);
    assert_eq!(absmax(&a), absmax(&b));
    assert_eq!((a.dtype, b.dtype), (SourceDtype::F16, SourceDtype::F32));
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let values = normal(300 * 257, 5);
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let matrix = pool.install(|| quantize(Values::F32(&values), 300, 257, QuantConfig::default()).unwrap());
        let mut out = vec![0.0; matrix.len()];
        pool.install(|| matrix.dequantize(&mut out));
        (matrix.codes.to_vec(), absmax(&matrix), out)
    };
    let one = run(1);
    assert!(run(2) == one && run(5) == one);
}

#[test]
fn the_error_of_a_value_is_at_most_half_a_step() {
    let values = normal(64 * 64, 6);
    let matrix = quantize(Values::F32(&values), 64, 64, QuantConfig { block: 64, double: false }).unwrap();
    let widest = NF4_CODE.windows(2).map(|pair| pair[1] - pair[0]).fold(0.0, f32::max);
    for (i, &value) in values.iter().enumerate() {
        assert!((matrix.value(i) - value).abs() <= 0.5001 * widest * matrix.scale(i / 64), "index {i}");
    }
}

#[test]
fn zero_blocks_keep_their_two_conventions() {
    let matrix = quantize(Values::F32(&[0.0; 70]), 1, 70, QuantConfig { block: 64, double: false }).unwrap();
    assert!(matrix.codes.iter().all(|&byte| byte == 0x77));
    assert_eq!(absmax(&matrix), [0.0, 1e-38]);
}

#[test]
fn an_odd_count_pads_with_the_code_of_zero() {
    let matrix = quantize(Values::F32(&[0.37]), 1, 1, QuantConfig::default()).unwrap();
    assert_eq!(&matrix.codes[..], [0xf7]);
}

#[test]
fn the_first_value_that_is_not_finite_is_named() {
    let mut values = normal(100_000, 7);
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        values[70_003] = bad;
        values[99_999] = f32::NAN; // in the short last block of a later task
        let error = quantize(Values::F32(&values), 100, 1000, QuantConfig::default()).err().unwrap();
        assert!(error.message().contains("flat index 70003 (row 70, column 3)"), "{error}");
    }
}

#[test]
fn block_sizes_outside_the_format_are_refused() {
    for block in [0, 1, 16, 48, 63, 8192] {
        let error = quantize(Values::F32(&[1.0; 64]), 1, 64, QuantConfig { block, double: true }).err().unwrap();
        assert_eq!(error.kind(), crate::error::ErrorKind::Usage, "{error}");
    }
    let error = quantize(Values::F32(&[1.0; 64]), 2, 64, QuantConfig::default()).err().unwrap();
    assert!(error.message().contains("2 x 64"), "{error}");
    assert!(quantize(Values::F32(&[]), 0, 64, QuantConfig::default()).is_err());
}

#[test]
fn the_dynamic_map_ascends_from_its_least_value_to_one() {
    let map = dynamic_map_signed_8bit();
    assert!(map.windows(2).all(|pair| pair[0] < pair[1]));
    assert_eq!((map[127], map[255]), (0.0, 1.0));
    // Symmetric but for the 1: entry 127 + i is minus entry 127 - i.
    assert!((1..=127).all(|i| map[127 + i] == -map[127 - i]));
}

#[test]
fn equal_scales_survive_double_quantisation_exactly() {
    let Scales::Double { codes, nested_absmax, offset, .. } = double_quantize(&[0.25; 300]) else { unreachable!() };
    assert_eq!((offset, &nested_absmax[..]), (0.25, &[0.0, 0.0][..]));
    assert!(codes.iter().all(|&code| code == 0));
}

#[test]
fn doubly_quantised_scales_are_within_the_maps_step() {
    let scales: Vec<f32> = normal(1000, 8).iter().map(|v| v.abs()).collect();
    let double = double_quantize_around(&scales, 0.5);
    let Scales::Double { codes, nested_absmax, map, offset, .. } = &double else { unreachable!() };
    for (i, &scale) in scales.iter().enumerate() {
        let restored = map[usize::from(codes[i])] * nested_absmax[i / 256] + offset;
        assert!((restored - scale).abs() <= 0.008 * nested_absmax[i / 256], "scale {i}");
    }
}
