//! Formats against files as they occur: good ones, compressed ones and broken ones.

use std::io::Write;
use std::path::{Path, PathBuf};

use super::*;

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Folder {
        Folder(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn read(path: &Path, max_bad_lines: u64) -> Result<Vec<String>> {
    Ok(read_report(path, max_bad_lines)?.0)
}

fn read_report(path: &Path, max_bad_lines: u64) -> Result<(Vec<String>, BadLines)> {
    let mut reader = Reader::new(vec![path.to_owned()], None, max_bad_lines);
    let mut texts = Vec::new();
    for document in &mut reader {
        let Record::Text(text) = document?.record;
        texts.push(text);
    }
    Ok((texts, reader.bad_lines().clone()))
}

const TWO: &str =
    "{\"timestamp\":\"2020-02-22T22:24:31Z\",\"url\":\"u\",\"text\":\"Perché no?\"}\n{\"text\":\"Sì\\nno\"}\n";

#[test]
fn json_lines_of_the_mc4_schema_are_documents() {
    let folder = Folder::new();
    let path = folder.write("a.jsonl", TWO);
    assert_eq!(read(&path, 0).unwrap(), ["Perché no?", "Sì\nno"]);
}

#[test]
fn byte_order_mark_crlf_and_blank_lines_do_not_matter() {
    let folder = Folder::new();
    let path = folder.write("a.json", format!("\u{feff}{}\r\n \r\n", TWO.replace('\n', "\r\n")));
    assert_eq!(read(&path, 0).unwrap(), ["Perché no?", "Sì\nno"]);
    let path = folder.write("a.txt", "\u{feff}uno\r\n\r\ndue\r\n");
    assert_eq!(read(&path, 0).unwrap(), ["uno\n\ndue"]);
}

#[test]
fn compressed_files_are_read_to_the_last_member() {
    let folder = Folder::new();
    let lines: Vec<&str> = TWO.split_inclusive('\n').collect();
    let members = [gzip(lines[0].as_bytes()), gzip(lines[1].as_bytes())].concat();
    assert_eq!(read(&folder.write("a.json.gz", members), 0).unwrap().len(), 2);
    let frames = [zstd::encode_all(lines[0].as_bytes(), 3).unwrap(), zstd::encode_all(lines[1].as_bytes(), 3).unwrap()];
    assert_eq!(read(&folder.write("a.jsonl.zst", frames.concat()), 0).unwrap().len(), 2);
    assert_eq!(read(&folder.write("b.txt.gz", gzip(b"ciao\n")), 0).unwrap(), ["ciao"]);
    assert_eq!(read(&folder.write("misnamed.jsonl.gz", TWO), 0).unwrap().len(), 2);
}

#[test]
fn truncated_and_damaged_archives_name_the_file() {
    let folder = Folder::new();
    let whole = gzip(TWO.repeat(50).as_bytes());
    for cut in [4, 12, whole.len() / 2, whole.len() - 1] {
        let error = read(&folder.write("cut.json.gz", &whole[..cut]), 1000).unwrap_err();
        assert!(error.message().contains("cut.json.gz") && error.message().contains("truncated"), "{cut}: {error}");
    }
    let frame = zstd::encode_all(TWO.repeat(50).as_bytes(), 3).unwrap();
    let error = read(&folder.write("cut.json.zst", &frame[..frame.len() - 3]), 1000).unwrap_err();
    assert!(error.message().contains("truncated"), "{error}");
    let mut damaged = whole.clone();
    let middle = damaged.len() - 6;
    damaged[middle] ^= 0xff;
    let error = read(&folder.write("bad.json.gz", damaged), 1000).unwrap_err();
    assert!(error.message().contains("bad.json.gz: the compressed data is damaged"), "{error}");
    let error = read(&folder.write("empty.json.gz", b""), 0).unwrap_err();
    assert!(error.message().contains("empty"), "{error}");
}

#[test]
fn a_gzip_bomb_stops_at_the_limit() {
    let folder = Folder::new();
    // Zeros compress about a thousand times; the free allowance is passed without ever being held in memory at once.
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    let block = [b"{\"text\":\"".as_slice(), &vec![b'0'; 8 << 20], b"\"}\n"].concat();
    for _ in 0..(source::EXPANSION_FREE_BYTES >> 23) + 1 {
        encoder.write_all(&block).unwrap();
    }
    let path = folder.write("bomb.jsonl.gz", encoder.finish().unwrap());
    let error = Reader::new(vec![path], None, 0).find_map(Result::err).unwrap();
    assert!(error.message().contains("more than 200 times its size"), "{error}");
}

#[test]
fn every_kind_of_bad_line_is_named_with_its_place() {
    let folder = Folder::new();
    for (bytes, reason) in [
        (&b"{\"text\": \"a\""[..], "broken JSON at column"),
        (b"{\"text\": 3}", "field `text`: expected a string, found a number"),
        (b"{\"testo\": \"a\"}", "no field `text`"),
        (b"{\"text\": null}", "no field `text`"),
        (b"{\"text\": \" \\n \"}", "the text is empty"),
        (b"{\"text\": \"\xff\"}", "not UTF-8: byte 0xff at offset 10"),
        (b"{\"text\": \"\\ud800\"}", "broken JSON"),
        (b"[{\"text\": \"a\"}]", "found an array"),
        (b"solo testo", "broken JSON at column 1"),
    ] {
        let line = [b"{\"text\":\"buono\"}\n".as_slice(), bytes, b"\n{\"text\":\"buono\"}"].concat();
        let path = folder.write("a.jsonl", line);
        let error = read(&path, 0).unwrap_err();
        assert!(error.message().contains("a.jsonl:2: ") && error.message().contains(reason), "{reason}: {error}");
        assert!(error.hint_text().unwrap().contains("max_bad_lines"));
        let (texts, bad) = read_report(&path, 1).unwrap();
        assert_eq!((texts.len(), bad.count, bad.first.len()), (2, 1, 1), "{reason}");
    }
    let path = folder.write("b.txt", b"uno\ndue\n\xc3(");
    assert!(read(&path, 0).unwrap_err().message().contains("b.txt:3: not UTF-8"));
    let path = folder.write("c.txt", [0xff, 0xfe, b'a', 0]);
    assert!(read(&path, 0).unwrap_err().message().contains("UTF-16"));
    let path = folder.write("d.txt", b"");
    assert!(read(&path, 0).unwrap_err().message().contains("the text is empty"));
}

#[test]
fn bad_lines_are_fatal_beyond_the_limit_and_the_first_few_are_shown() {
    let folder = Folder::new();
    let path = folder.write("a.jsonl", "x\n".repeat(20));
    let error = read(&path, 10).unwrap_err();
    assert!(error.message().starts_with("11 unusable lines, 10 may be skipped"), "{error}");
    for line in [1, 2, 3, 4, 5, 11] {
        assert!(error.message().contains(&format!("a.jsonl:{line}: ")), "{error}");
    }
    assert!(!error.message().contains("a.jsonl:6: "), "{error}");
}

#[test]
fn lines_of_ten_megabytes_are_documents() {
    let folder = Folder::new();
    let text = "parola ".repeat(10 << 20 >> 3) + "fine";
    let path = folder.write("a.jsonl", format!("{{\"text\":\"{text}\"}}\n{{\"text\":\"dopo\"}}"));
    assert_eq!(read(&path, 0).unwrap(), [text, "dopo".into()]);
}

#[test]
fn unknown_extensions_and_formats_say_what_is_known() {
    let folder = Folder::new();
    let error = read(&folder.write("a.csv", "x"), 0).unwrap_err();
    assert!(error.message().contains("`.csv`") && error.message().contains(".jsonl"), "{error}");
    let error = by_name("parquet").unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert!(error.message().contains("auto, text, jsonl"), "{error}");
}
