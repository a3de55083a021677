//! Headers that tell the truth, and headers that do not.

use super::*;
use std::io::Write;

/// A number with its sign in the lowest bit, as the protocol writes it.
fn number(value: i64) -> Vec<u8> {
    let mut rest = (value << 1 ^ value >> 63) as u64;
    let mut bytes = Vec::new();
    while rest > 127 {
        bytes.push(rest as u8 | 128);
        rest >>= 7;
    }
    bytes.push(rest as u8);
    bytes
}

/// A page whose header states this size; of version 1, a dictionary with so many values where there are some.
fn page(states: i64, dictionary_values: Option<i64>, content: &[u8]) -> Vec<u8> {
    let kind = if dictionary_values.is_some() { 2 } else { 0 };
    let mut bytes = [vec![0x15], number(kind), vec![0x15], number(states), vec![0x15]].concat();
    bytes.extend(number(content.len() as i64));
    if let Some(values) = dictionary_values {
        // Field 7, a struct: its field 1, a number, and its field 2.
        bytes.extend([vec![0x4c, 0x15], number(values), vec![0x15, 0x00, 0x00]].concat());
    } else {
        // Field 5, a struct with statistics: strings and a truth value are passed over.
        bytes.extend([0x2c, 0x15, 0x02, 0x4c, 0x18, 0x03, b'a', b'b', b'c', 0x51, 0x00, 0x00]);
    }
    bytes.push(0);
    bytes.extend(content);
    bytes
}

fn check_bytes(bytes: &[u8], codec: Compression) -> Result<u64, String> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"PAR1").and_then(|()| file.write_all(bytes)).unwrap();
    check_column(&file, (4, bytes.len() as u64), codec)
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn pages_that_state_their_size_are_good() {
    let text = vec![b'0'; 1 << 20];
    for (codec, content) in [
        (Compression::UNCOMPRESSED, text.clone()),
        (Compression::GZIP(Default::default()), gzip(&text)),
        (Compression::ZSTD(Default::default()), zstd::encode_all(&text[..], 3).unwrap()),
    ] {
        let size = text.len() as i64;
        let two = [page(size, Some(7), &content), page(size, None, &content)].concat();
        assert_eq!(check_bytes(&two, codec), Ok(2 << 20), "{codec:?}");
    }
    assert_eq!(check_bytes(&[], Compression::SNAPPY), Ok(0));
}

#[test]
fn pages_that_lie_are_refused() {
    let text = vec![b'0'; 1 << 20];
    let (zipped, frame) = (gzip(&text), zstd::encode_all(&text[..], 3).unwrap());
    let gzip_codec = Compression::GZIP(Default::default());
    for (bytes, codec, reason) in [
        (page(1000, None, &zipped), gzip_codec, "a page expands beyond the 1000 bytes that it states"),
        (page(1000, None, &frame), Compression::ZSTD(Default::default()), "a page expands beyond the 1000 bytes"),
        (page(2 << 20, None, &zipped), gzip_codec, "a page states 2097152 bytes and has 1048576"),
        (page(i64::from(i32::MAX), None, b"x"), Compression::SNAPPY, "a page of 2047 MiB, more than 256 MiB"),
        (page(-5, None, b"x"), Compression::SNAPPY, "a page of negative size"),
        (
            page(100, Some(i64::from(i32::MAX)), b"x"),
            Compression::SNAPPY,
            "a dictionary of 2147483647 values in 100 bytes",
        ),
        (page(100, Some(-1), b"x"), Compression::SNAPPY, "a dictionary of"),
        (page(100, None, b"not gzip"), gzip_codec, "a page cannot be decompressed"),
    ] {
        let error = check_bytes(&bytes, codec).unwrap_err();
        assert!(error.contains(reason), "{reason}: {error}");
    }
    let mut long = page(10, None, b"0123456789");
    long.pop();
    assert!(check_bytes(&long, Compression::UNCOMPRESSED).unwrap_err().contains("beyond the end of its column"));
}

#[test]
fn damaged_headers_are_refused_and_never_a_panic() {
    let gzip_codec = Compression::GZIP(Default::default());
    let whole = page(10, Some(2), b"0123456789");
    for cut in 1..whole.len() {
        assert!(check_bytes(&whole[..cut], gzip_codec).is_err(), "{cut}");
    }
    for place in 0..whole.len() {
        for bit in 0..8 {
            let mut bytes = whole.clone();
            bytes[place] ^= 1 << bit;
            let _ = check_bytes(&bytes, gzip_codec);
        }
    }
    // Structs without end, a string without end, a list of them.
    for bytes in [vec![0x1c; 64], vec![0x18, 0xff, 0xff, 0xff, 0xff, 0x7f], vec![0x19, 0xf8, 0xff, 0xff, 0x7f]] {
        let error = check_bytes(&bytes, gzip_codec).unwrap_err();
        assert!(error.contains("a page cannot be read"), "{error}");
    }
}
