//! Data files, plain and compressed, in every format and in the one that is found for them. Every line is a record,
//! blank, or counted as bad, so that there are never more of them than bytes (and one of an empty file).

use super::Folder;
use llamantino::data::formats::containers::EXTENSIONS;
use llamantino::data::formats::{Reader, FORMATS};

pub fn run(input: &[u8]) {
    let folder = Folder::new();
    // The parquet crate panics on some damaged files, in a thread of its own whose end is told as an error; a fuzzer
    // takes any panic for a find. Damaged Parquet files have a test of their own.
    if input.starts_with(b"PAR1") {
        return;
    }
    for extension in EXTENSIONS {
        let path = folder.write(&format!("data.{extension}"), input);
        for format in FORMATS.iter().copied().map(Some).chain([None]) {
            let mut reader = Reader::new(vec![path.clone()], format, u64::MAX);
            let records = reader.by_ref().take_while(Result::is_ok).count() as u64;
            let compressed = input.starts_with(&[0x1f, 0x8b]) || input.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]);
            let found = records + reader.bad_lines().count;
            assert!(compressed || found <= input.len() as u64 + 1, "{found} of {} bytes", input.len());
        }
    }
}
