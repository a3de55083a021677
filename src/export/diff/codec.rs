//! Differences of bit patterns, in chunks of elements that are packed one by one.
//!
//! With `o` the order-preserving map from the bits of a float to an unsigned integer (negative floats mirrored below
//! the positive ones) and all arithmetic modulo 2^w, an element is stored as `zigzag(o(tuned) − o(reference))`: a
//! number of steps between neighbouring floats, small where the values are near. Bytes (U8) are stored as
//! `tuned xor reference`. Both maps are bijections: decoding gives the very bits, whatever they are.
//!
//! Layout of a payload: the tensor's elements, flat, in chunks of [`CHUNK`]; a chunk is one frame for each byte of an
//! element, the least significant first; a frame is `mode u8, length u32 LE, bytes`: mode 0 all zero (length 0), mode 1
//! the plane as it is, mode 2 a zstd frame. High planes of a fine-tuned weight are nearly all zero, low ones nearly
//! random: apart, zstd's literals see one distribution each.

use crate::error::{Error, Result};
use crate::model::StoredDtype;

/// Elements of a chunk: what one thread packs at once.
pub(super) const CHUNK: usize = 1 << 18;

/// zstd level that tells whether a plane shrinks at all: random mantissa bytes do not, and leave quickly.
const TRIAL_LEVEL: i32 = 1;
/// zstd level of planes that shrink. Any level is read. Measured on SmolLM2-135M with a LoRA merged into it, bytes of
/// the diff for a byte of the model at levels 1, 3, 6, 9, 15: 0.118, 0.119, 0.110, 0.107, 0.098 in bf16 (0.129 at level
/// 1 with xor instead of the difference), at 100, 92, 46, 16, 1 MB/s of model and core.
const LEVEL: i32 = 6;

const ZERO: u8 = 0;
const PLAIN: u8 = 1;
const ZSTD: u8 = 2;
/// Bytes before a plane.
const FRAME: usize = 5;

/// Packs a chunk: `tuned` and `reference` are the bits of as many elements of `dtype`, at most [`CHUNK`].
pub(super) fn encode(dtype: StoredDtype, tuned: &[u8], reference: &[u8]) -> Result<Vec<u8>> {
    assert_eq!(tuned.len(), reference.len());
    let count = tuned.len() / dtype.size();
    let mut planes = vec![0u8; tuned.len()];
    split(dtype, tuned, reference, &mut planes);
    let mut packed = Vec::with_capacity(tuned.len() / 2);
    let mut trial = zstd::bulk::Compressor::new(TRIAL_LEVEL).map_err(failed)?;
    let mut compressor = zstd::bulk::Compressor::new(LEVEL).map_err(failed)?;
    for plane in planes.chunks(count.max(1)) {
        if plane.iter().all(|&byte| byte == 0) {
            push(&mut packed, ZERO, &[]);
            continue;
        }
        if trial.compress(plane).map_err(failed)?.len() >= plane.len() {
            push(&mut packed, PLAIN, plane);
            continue;
        }
        let small = compressor.compress(plane).map_err(failed)?;
        match small.len() < plane.len() {
            true => push(&mut packed, ZSTD, &small),
            false => push(&mut packed, PLAIN, plane),
        }
    }
    Ok(packed)
}

fn push(packed: &mut Vec<u8>, mode: u8, bytes: &[u8]) {
    packed.push(mode);
    packed.extend((bytes.len() as u32).to_le_bytes());
    packed.extend(bytes);
}

fn failed(error: std::io::Error) -> Error {
    Error::failed(format!("zstd: {error}"))
}

fn damaged(what: &str) -> Error {
    Error::failed(format!("the packed difference is damaged: {what}"))
}

/// One packed plane.
#[derive(Clone, Copy)]
pub(super) struct Frame<'a> {
    mode: u8,
    bytes: &'a [u8],
}

/// Takes the frames of one chunk off the front of a payload.
pub(super) fn frames<'a>(dtype: StoredDtype, payload: &mut &'a [u8]) -> Result<Vec<Frame<'a>>> {
    let mut frame = || {
        let (head, rest) = payload.split_at_checked(FRAME).ok_or_else(|| damaged("it ends early"))?;
        let length = u32::from_le_bytes([head[1], head[2], head[3], head[4]]) as usize;
        let (bytes, rest) = rest.split_at_checked(length).ok_or_else(|| damaged("it ends early"))?;
        *payload = rest;
        Ok(Frame { mode: head[0], bytes })
    };
    (0..dtype.size()).map(|_| frame()).collect()
}

/// Unpacks a chunk into `tuned`, which has as many bytes as `reference`.
pub(super) fn decode(dtype: StoredDtype, frames: &[Frame<'_>], reference: &[u8], tuned: &mut [u8]) -> Result<()> {
    assert_eq!(tuned.len(), reference.len());
    let count = tuned.len() / dtype.size();
    let mut planes = vec![0u8; tuned.len()];
    let mut decompressor = zstd::bulk::Decompressor::new().map_err(failed)?;
    for (frame, plane) in frames.iter().zip(planes.chunks_mut(count.max(1))) {
        let length = match frame.mode {
            ZERO if frame.bytes.is_empty() => count,
            PLAIN if frame.bytes.len() == count => {
                plane.copy_from_slice(frame.bytes);
                count
            }
            ZSTD => decompressor.decompress_to_buffer(frame.bytes, plane).map_err(|e| damaged(&e.to_string()))?,
            mode => return Err(damaged(&format!("mode {mode} with {} bytes for {count}", frame.bytes.len()))),
        };
        if length != count {
            return Err(damaged(&format!("{length} bytes in a plane of {count}")));
        }
    }
    join(dtype, &planes, reference, tuned);
    Ok(())
}

/// Writes the difference of each element, byte `p` of all elements in plane `p`.
fn split(dtype: StoredDtype, tuned: &[u8], reference: &[u8], planes: &mut [u8]) {
    match dtype {
        StoredDtype::F32 => {
            let elements = tuned.as_chunks().0.iter().zip(reference.as_chunks().0);
            let differences = elements.map(|(t, r)| difference32(u32::from_le_bytes(*t), u32::from_le_bytes(*r)));
            let count = planes.len() / 4;
            let (low, high) = planes.split_at_mut(2 * count);
            let ((a, b), (c, d)) = (low.split_at_mut(count), high.split_at_mut(count));
            for (i, difference) in differences.enumerate() {
                [a[i], b[i], c[i], d[i]] = difference.to_le_bytes();
            }
        }
        StoredDtype::F16 | StoredDtype::Bf16 => {
            let elements = tuned.as_chunks().0.iter().zip(reference.as_chunks().0);
            let differences = elements.map(|(t, r)| difference16(u16::from_le_bytes(*t), u16::from_le_bytes(*r)));
            let (low, high) = planes.split_at_mut(planes.len() / 2);
            for ((low, high), difference) in low.iter_mut().zip(high).zip(differences) {
                [*low, *high] = difference.to_le_bytes();
            }
        }
        StoredDtype::U8 => planes.iter_mut().zip(tuned.iter().zip(reference)).for_each(|(p, (t, r))| *p = t ^ r),
    }
}

/// The inverse of [`split`].
fn join(dtype: StoredDtype, planes: &[u8], reference: &[u8], tuned: &mut [u8]) {
    match dtype {
        StoredDtype::F32 => {
            let count = planes.len() / 4;
            let (low, high) = planes.split_at(2 * count);
            let ((a, b), (c, d)) = (low.split_at(count), high.split_at(count));
            let elements = tuned.as_chunks_mut().0.iter_mut().zip(reference.as_chunks().0);
            for (i, (t, r)) in elements.enumerate() {
                let difference = u32::from_le_bytes([a[i], b[i], c[i], d[i]]);
                *t = applied32(u32::from_le_bytes(*r), difference).to_le_bytes();
            }
        }
        StoredDtype::F16 | StoredDtype::Bf16 => {
            let (low, high) = planes.split_at(planes.len() / 2);
            let elements = tuned.as_chunks_mut().0.iter_mut().zip(reference.as_chunks().0);
            for ((low, high), (t, r)) in low.iter().zip(high).zip(elements) {
                *t = applied16(u16::from_le_bytes(*r), u16::from_le_bytes([*low, *high])).to_le_bytes();
            }
        }
        StoredDtype::U8 => tuned.iter_mut().zip(planes.iter().zip(reference)).for_each(|(t, (p, r))| *t = p ^ r),
    }
}

const SIGN32: u32 = 1 << 31;
const SIGN16: u16 = 1 << 15;

/// Bits of a float to its place among all floats: `-x` lies as far below the middle as `x` above it.
fn ordered32(bits: u32) -> u32 {
    bits ^ (((bits as i32 >> 31) as u32) | SIGN32)
}

fn bits32(ordered: u32) -> u32 {
    ordered ^ ((!(ordered as i32 >> 31) as u32) | SIGN32)
}

fn difference32(tuned: u32, reference: u32) -> u32 {
    let difference = ordered32(tuned).wrapping_sub(ordered32(reference));
    (difference << 1) ^ ((difference as i32 >> 31) as u32)
}

fn applied32(reference: u32, zigzag: u32) -> u32 {
    let difference = (zigzag >> 1) ^ (zigzag & 1).wrapping_neg();
    bits32(ordered32(reference).wrapping_add(difference))
}

fn ordered16(bits: u16) -> u16 {
    bits ^ (((bits as i16 >> 15) as u16) | SIGN16)
}

fn bits16(ordered: u16) -> u16 {
    ordered ^ ((!(ordered as i16 >> 15) as u16) | SIGN16)
}

fn difference16(tuned: u16, reference: u16) -> u16 {
    let difference = ordered16(tuned).wrapping_sub(ordered16(reference));
    (difference << 1) ^ ((difference as i16 >> 15) as u16)
}

fn applied16(reference: u16, zigzag: u16) -> u16 {
    let difference = (zigzag >> 1) ^ (zigzag & 1).wrapping_neg();
    bits16(ordered16(reference).wrapping_add(difference))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pair_of_half_precision_patterns_comes_back() {
        for reference in 0..=u16::MAX {
            for tuned in [0, 1, reference, reference.wrapping_add(1), !reference, 0x7c00, 0xfc00, 0x7e01, u16::MAX] {
                assert_eq!(applied16(reference, difference16(tuned, reference)), tuned);
            }
            assert_eq!(bits16(ordered16(reference)), reference);
        }
    }

    #[test]
    fn order_of_the_integers_is_the_order_of_the_floats() {
        let values = [f32::NEG_INFINITY, -1e30, -1.0, -1e-40, -0.0, 0.0, 1e-40, 1.0, 1e30, f32::INFINITY];
        assert!(values.windows(2).all(|pair| ordered32(pair[0].to_bits()) < ordered32(pair[1].to_bits())));
        // Neighbours differ by one step: 2 after the zigzag, 1 the other way.
        let one = 1.0f32.to_bits();
        assert_eq!((difference32(one + 1, one), difference32(one, one + 1), difference32(one, one)), (2, 1, 0));
        let minus = (-1.0f32).to_bits();
        assert_eq!(difference32(minus, minus + 1), 2);
        for bits in [0, 1, one, minus, SIGN32, SIGN32 | 1, f32::NAN.to_bits(), u32::MAX] {
            assert_eq!(bits32(ordered32(bits)), bits);
            assert_eq!(applied32(minus, difference32(bits, minus)), bits);
        }
    }

    #[test]
    fn chunks_come_back_in_every_dtype_and_damage_is_an_error() {
        let bytes = |seed: u64, len: usize| -> Vec<u8> {
            (0..len as u64).map(|i| ((i + 1).wrapping_mul(seed) >> 40) as u8).collect()
        };
        for dtype in [StoredDtype::F32, StoredDtype::F16, StoredDtype::Bf16, StoredDtype::U8] {
            for count in [0, 1, 3, 1000] {
                let reference = bytes(0x9e37_79b9_7f4a_7c15, count * dtype.size());
                for tuned in [reference.clone(), bytes(0xd134_2543_de82_ef95, reference.len())] {
                    let packed = encode(dtype, &tuned, &reference).unwrap();
                    let mut rest = &packed[..];
                    let mut found = vec![0; tuned.len()];
                    if count > 0 {
                        let frames = frames(dtype, &mut rest).unwrap();
                        decode(dtype, &frames, &reference, &mut found).unwrap();
                    }
                    assert!(found == tuned && rest.is_empty(), "{dtype:?} {count}");
                }
            }
        }
        let reference = vec![0; 64];
        let packed = encode(StoredDtype::F16, &bytes(0x9e37_79b9_7f4a_7c15, 64), &reference).unwrap();
        for end in 0..packed.len() {
            assert!(frames(StoredDtype::F16, &mut &packed[..end]).is_err());
        }
        for (byte, value) in [(0, 9), (0, ZSTD), (0, ZERO), (1, 31)] {
            let mut wrong = packed.clone();
            wrong[byte] = value;
            let result = frames(StoredDtype::F16, &mut &wrong[..])
                .and_then(|frames| decode(StoredDtype::F16, &frames, &reference, &mut [0; 64]));
            assert!(result.is_err(), "byte {byte} = {value}");
        }
    }
}
