//! The header: what is read, and that nothing can be wrong with a file without an error.

use super::*;
use crate::model::gguf::testing::Builder;
use crate::ops::random::RandomStream;

fn flaw(builder: &Builder) -> String {
    Header::read(&builder.build()).unwrap_err()
}

#[test]
fn every_kind_of_value_is_read_in_every_version() {
    for version in 1..=3 {
        let mut builder = Builder::new();
        builder.version = version;
        builder.raw("u8", 0, &[200]).raw("i8", 1, &[0xff]).raw("u16", 2, &[1, 2]).raw("i16", 3, &[0xfe, 0xff]);
        builder.u32("u32", u32::MAX).raw("i32", 5, &(-5i32).to_le_bytes()).f32("f32", 1e-5);
        builder.flag("bool", true).text("text", "perché").raw("u64", 10, &u64::MAX.to_le_bytes());
        builder.raw("i64", 11, &i64::MIN.to_le_bytes()).raw("f64", 12, &0.1f64.to_le_bytes());
        builder.texts("texts", &["a", "", "è"]).i32s("i32s", &[3, -4]).f32s("f32s", &[0.5]);
        builder.f32_tensor("t", &[2, 3], &[1.0; 6]);
        let file = builder.build();
        let header = Header::read(&file).unwrap();
        let scalars = [
            ("u8", Value::Unsigned(200)),
            ("i8", Value::Signed(-1)),
            ("u16", Value::Unsigned(0x0201)),
            ("i16", Value::Signed(-2)),
            ("u32", Value::Unsigned(u64::from(u32::MAX))),
            ("i32", Value::Signed(-5)),
            ("f32", Value::Float(1e-5)),
            ("bool", Value::Bool(true)),
            ("text", Value::Text("perché".into())),
            ("u64", Value::Unsigned(u64::MAX)),
            ("i64", Value::Signed(i64::MIN)),
            ("f64", Value::Float(0.1)),
        ];
        for (key, value) in scalars {
            assert_eq!(header.metadata[key], value, "version {version}: {key}");
        }
        let list = |key: &str| match &header.metadata[key] {
            Value::List(list) => list.clone(),
            other => panic!("{key}: {other:?}"),
        };
        assert_eq!(header.texts(&file, &list("texts")).unwrap().unwrap(), ["a", "", "è"]);
        assert_eq!(header.numbers(&file, &list("i32s")).unwrap(), [3.0, -4.0]);
        assert_eq!(header.numbers(&file, &list("f32s")).unwrap(), [0.5]);
        assert!(header.numbers(&file, &list("texts")).is_none() && header.texts(&file, &list("i32s")).is_none());
        let tensor = &header.tensors["t"];
        assert_eq!((&tensor.shape[..], tensor.span.len()), (&[2, 3][..], 24));
        assert_eq!(&file[tensor.span.clone()][..4], &1.0f32.to_le_bytes());
    }
}

#[test]
fn a_file_cut_anywhere_is_an_error() {
    for version in 1..=3 {
        let file = Builder::tiny_of(version).build();
        Header::read(&file).unwrap();
        for length in 0..file.len() {
            assert!(Header::read(&file[..length]).is_err(), "version {version}: the first {length} bytes");
        }
    }
}

#[test]
fn damaged_bytes_never_panic() {
    let file = Builder::tiny().build();
    let header = file.len() - 32 * 40;
    let stream = RandomStream::new(7, 0);
    for at in 4..header {
        for (i, damage) in [0x00, 0x01, 0x7f, 0x80, 0xff, stream.word(at as u64) as u8].into_iter().enumerate() {
            let mut damaged = file.clone();
            damaged[at] = damage;
            if i % 2 == 1 {
                let end = (at + 8).min(damaged.len());
                damaged[at..end].fill(damage);
            }
            // What still is a sound header must keep its promise: all spans lie in the file.
            if let Ok(header) = Header::read(&damaged) {
                assert!(header.tensors.values().all(|tensor| tensor.span.end <= damaged.len()));
            }
        }
    }
}

#[test]
fn counts_beyond_the_file_cost_nothing() {
    let huge = u64::MAX.to_le_bytes();
    let counts = |tensors: [u8; 8], values: [u8; 8]| [&b"GGUF\x03\0\0\0"[..], &tensors, &values].concat();
    for start in [counts(huge, [0; 8]), counts([0; 8], huge), counts(huge, huge)] {
        assert!(Header::read(&start).is_err());
        // Zeroes are keys without a name: the second one is the first one again.
        let zeroes = [&start[..], &vec![0; 1 << 20]].concat();
        assert!(Header::read(&zeroes).is_err());
    }
    for kind in [0u32, 8, 9, 12] {
        let mut builder = Builder::new();
        builder.raw("list", 9, &[&kind.to_le_bytes()[..], &huge].concat());
        assert!(flaw(&builder).starts_with("list"), "a list of kind {kind}");
    }
    let mut builder = Builder::new();
    builder.raw("text", 8, &huge);
    assert!(flaw(&builder).contains("18446744073709551615 bytes"));
}

#[test]
fn what_is_no_gguf_file_is_said_to_be_none() {
    assert!(Header::read(b"PK\x03\x04 and so on").unwrap_err().contains("not a GGUF file"));
    assert!(Header::read(b"GGUF\0\0\0\x03 and so on").unwrap_err().contains("big-endian"));
    assert_eq!(Header::read(b"GGUF\x04\0\0\0").unwrap_err(), "GGUF version 4, expected 1 to 3");
}

#[test]
fn contradictions_in_the_metadata_are_errors() {
    let mut twice = Builder::new();
    twice.u32("a", 1).u32("a", 2);
    assert_eq!(flaw(&twice), "metadata key \"a\" occurs twice");
    let mut kind = Builder::new();
    kind.raw("a", 13, &[0]);
    assert!(flaw(&kind).contains("unknown value type 13"));
    let mut bool = Builder::new();
    bool.raw("a", 7, &[2]);
    assert!(flaw(&bool).contains("a bool of 0 or 1, found 2"));
    let mut text = Builder::new();
    text.raw("a", 8, &[1, 0, 0, 0, 0, 0, 0, 0, 0xff]);
    assert_eq!(flaw(&text), "a: not UTF-8 at byte 0");
    for alignment in [0, 4, 12, 1 << 21] {
        let mut builder = Builder::new();
        builder.u32("general.alignment", alignment);
        assert!(flaw(&builder).contains("general.alignment"));
    }
    let mut nested = Builder::new();
    let levels: Vec<u8> = (0..10).flat_map(|_| [&9u32.to_le_bytes()[..], &1u64.to_le_bytes()].concat()).collect();
    nested.raw("a", 9, &levels);
    assert!(flaw(&nested).contains("nested"));
}

#[test]
fn names_cannot_steer_a_terminal() {
    let mut key = Builder::new();
    key.u32("a\x1b[31m", 1);
    assert_eq!(flaw(&key), "key of metadata value 1 of 1: a name with control characters: \"a\\u{1b}[31m\"");
    let mut tensor = Builder::new();
    tensor.f32_tensor("a\n", &[1], &[1.0]);
    assert!(flaw(&tensor).starts_with("name of tensor 1 of 1: a name with control characters"));
}

#[test]
fn another_alignment_is_followed() {
    let mut builder = Builder::new();
    builder.alignment = 64;
    builder.u32("general.alignment", 64).f32_tensor("a", &[1], &[1.0]).f32_tensor("b", &[1], &[2.0]);
    let file = builder.build();
    let header = Header::read(&file).unwrap();
    assert!(header.tensors.values().all(|tensor| tensor.span.start % 64 == 0));
    assert_eq!(&file[header.tensors["b"].span.clone()], &2.0f32.to_le_bytes());
}

#[test]
fn tensors_out_of_place_are_errors() {
    let two = || {
        let mut builder = Builder::new();
        builder.f32_tensor("a", &[8], &[1.0; 8]).f32_tensor("b", &[8], &[2.0; 8]);
        builder
    };
    Header::read(&two().build()).unwrap();
    let changed = |change: &dyn Fn(&mut Builder)| {
        let mut builder = two();
        change(&mut builder);
        flaw(&builder)
    };
    assert_eq!(changed(&|b| b.tensors()[1].shift = -32), "tensors a and b overlap");
    assert!(changed(&|b| b.tensors()[1].shift = 1).contains("not a multiple of the alignment 32"));
    assert!(changed(&|b| b.tensors()[1].shift = 32).contains("tensor b ends at byte"));
    assert!(changed(&|b| b.tensors()[1].shift = -64).contains("tensor b ends at byte")); // -32 as unsigned
    assert!(changed(&|b| b.tensors()[1].name = "a".into()).contains("occurs twice"));
    assert!(changed(&|b| b.tensors()[1].shape = vec![0]).contains("sizes of at least 1"));
    assert!(changed(&|b| b.tensors()[1].shape = vec![usize::MAX, usize::MAX]).contains("fits in memory"));
    assert!(changed(&|b| b.tensors()[1].shape = vec![]).contains("0 dimensions"));
    assert!(changed(&|b| b.tensors()[1].shape = vec![1; 5]).contains("5 dimensions"));
    assert!(changed(&|b| b.tensors()[1].kind = 2).contains("a multiple of 32 for Q4_0"));
    assert!(changed(&|b| b.tensors()[1].kind = 23).contains("type IQ4_XS"));
    assert!(changed(&|b| b.tensors()[1].kind = 4242).contains("number 4242"));
}
