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
        match document?.record {
            Record::Text(text) => texts.push(text),
            other => texts.push(serde_json::to_string(&other).unwrap()),
        }
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
        let message = error.message();
        assert!(message.contains("cut.json.gz") && message.contains("truncated"), "{cut}: {error}");
    }
    let frame = zstd::encode_all(TWO.repeat(50).as_bytes(), 3).unwrap();
    let error = read(&folder.write("cut.json.zst", &frame[..frame.len() - 3]), 1000).unwrap_err();
    assert!(error.message().contains("truncated"), "{error}");
    let mut damaged = whole.clone();
    let middle = damaged.len() - 6;
    damaged[middle] ^= 0xff;
    // 100 lines come out before the sum at the end is wrong.
    let error = read(&folder.write("bad.json.gz", damaged), 1000).unwrap_err();
    assert!(error.message().contains("bad.json.gz:101: the compressed data is damaged"), "{error}");
    // In arrays and tables too the place is that up to which the file could be read.
    let array =
        gzip(format!("[{}]", TWO.trim_end().repeat(50).replace("}{", "},\n{").replace("}\n{", "},\n{")).as_bytes());
    let error = read(&folder.write("cut.array.json.gz", &array[..array.len() - 2]), 1000).unwrap_err();
    assert!(error.message().contains("cut.array.json.gz:") && error.message().contains("truncated"), "{error}");
    let table = gzip("text,id\nciao,1\n".repeat(3).as_bytes());
    let error = read(&folder.write("cut.csv.gz", &table[..table.len() - 2]), 1000).unwrap_err();
    assert!(error.message().contains("cut.csv.gz") && error.message().contains("truncated"), "{error}");
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
fn a_zstd_bomb_stops_at_the_limit() {
    let folder = Folder::new();
    let block = [b"{\"text\":\"".as_slice(), &vec![b'0'; 8 << 20], b"\"}\n"].concat();
    let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
    for _ in 0..(source::EXPANSION_FREE_BYTES >> 23) + 1 {
        encoder.write_all(&block).unwrap();
    }
    let path = folder.write("bomb.jsonl.zst", encoder.finish().unwrap());
    assert!(std::fs::metadata(&path).unwrap().len() < 1 << 20);
    let error = Reader::new(vec![path], None, 0).find_map(Result::err).unwrap();
    assert!(error.message().contains("more than 200 times its size"), "{error}");
}

#[test]
fn a_parquet_value_that_stands_in_every_row_stops_at_the_limit() {
    let folder = Folder::new();
    let text = "0".repeat(1 << 18);
    let rows = vec![[text.as_str()]; (source::EXPANSION_FREE_BYTES >> 18) as usize + 8];
    let rows: Vec<&[&str]> = rows.iter().map(|row| &row[..]).collect();
    let path = folder.write("bomb.parquet", parquet(&["text"], &rows));
    assert!(std::fs::metadata(&path).unwrap().len() < 1 << 20, "the value stands in the dictionary, once");
    let mut reader = Reader::new(vec![path], None, 0);
    let (good, error) = reader.by_ref().fold((0, None), |(good, error), next| match next {
        Ok(_) => (good + 1, error),
        Err(error) => (good, Some(error)),
    });
    let error = error.unwrap();
    assert!(good > 700 && error.message().contains("bomb.parquet: cannot read this Parquet file"), "{good}: {error}");
    assert!(error.message().contains("it expands beyond 256 MiB, more than 200 times its size"), "{error}");
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
        (b"[{\"text\": \"a\"}]", "expected a JSON object, found an array"),
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
    assert!(error.message().starts_with("11 unusable records, 10 may be skipped"), "{error}");
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
    let error = read(&folder.write("a.doc", "x"), 0).unwrap_err();
    assert!(error.message().contains("`.doc`") && error.message().contains(".jsonl"), "{error}");
    let error = by_name("cvs").unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert!(error.message().contains("auto, text, messages"), "{error}");
    assert_eq!(by_name("jsonl").unwrap().unwrap().name, "text");
    let error = read(&folder.write("b.jsonl", "{\"domanda\": \"a\", \"risposta\": \"b\"}"), 9).unwrap_err();
    assert!(
        error.message().contains("b.jsonl:1: no known format: the record has the fields domanda, risposta"),
        "{error}"
    );
}

/// What a file is found to be, and its records as JSON.
fn recognised(path: &Path) -> (String, Vec<String>) {
    let mut reader = Reader::new(vec![path.to_owned()], None, 0);
    let records = reader.by_ref().map(|document| serde_json::to_string(&document.unwrap().record).unwrap()).collect();
    let Recognised { format, container, .. } = reader.recognised()[0];
    (format!("{format} in {container}"), records)
}

#[test]
fn every_format_is_recognised_by_its_first_record() {
    let folder = Folder::new();
    for (line, format, record) in [
        ("{\"text\": \"a\", \"url\": \"u\"}", "text", "\"a\""),
        (
            "{\"id\": \"0\", \"data\": [\"a\", \"b\"]}",
            "ultrachat",
            "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\",\"content\":\"b\"}]}",
        ),
        (
            "{\"prompt\": \"a\", \"messages\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\", \"content\": [{\"type\": \"text\", \"text\": \"b\"}]}]}",
            "messages",
            "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\",\"content\":\"b\"}]}",
        ),
        (
            "{\"conversations\": [{\"from\": \"system\", \"value\": \"s\"}, {\"from\": \"human\", \"value\": \"a\"}, {\"from\": \"gpt\", \"value\": \"b\"}]}",
            "messages",
            "{\"messages\":[{\"role\":\"system\",\"content\":\"s\"},{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\",\"content\":\"b\"}]}",
        ),
        (
            "{\"instruction\": \"a\", \"context\": \"c\", \"response\": \"b\", \"category\": \"open_qa\"}",
            "dolly",
            "{\"instruction\":\"a\",\"input\":\"c\",\"response\":\"b\"}",
        ),
        (
            "{\"instruction\": \"a\", \"input\": null, \"output\": \"b\"}",
            "alpaca",
            "{\"instruction\":\"a\",\"input\":\"\",\"response\":\"b\"}",
        ),
        (
            "{\"prompt\": \"a\", \"completion\": \" b\"}",
            "completion",
            "{\"instruction\":\"a\",\"input\":\"\",\"response\":\" b\"}",
        ),
        (
            "{\"prompt\": \"a\", \"chosen\": \"b\", \"rejected\": \"c\"}",
            "preference",
            "{\"prompt\":{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}]},\"chosen\":\"b\",\"rejected\":\"c\"}",
        ),
        (
            "{\"chosen\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\", \"content\": \"b\"}], \"rejected\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\", \"content\": \"c\"}]}",
            "preference",
            "{\"prompt\":{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}]},\"chosen\":\"b\",\"rejected\":\"c\"}",
        ),
    ] {
        let lines = folder.write("a.jsonl", format!("{line}\r\n\r\n{line}\r\n"));
        assert_eq!(recognised(&lines), (format!("{format} in JSON lines"), vec![record.to_owned(); 2]));
        let array = folder.write("a.json", format!("\u{feff} [{line},\n{line} ]\n"));
        assert_eq!(recognised(&array), (format!("{format} in a JSON array"), vec![record.to_owned(); 2]));
    }
}

#[test]
fn tables_have_the_columns_of_the_format() {
    let folder = Folder::new();
    let table = "\u{feff}instruction,context,response\r\n\"Di' \"\"ciao\"\", per favore\",,\"uno\ndue\"\r\nq,c,r\r\n";
    let first = "{\"instruction\":\"Di' \\\"ciao\\\", per favore\",\"input\":\"\",\"response\":\"uno\\ndue\"}";
    let second = "{\"instruction\":\"q\",\"input\":\"c\",\"response\":\"r\"}";
    let records = vec![first.to_owned(), second.to_owned()];
    assert_eq!(recognised(&folder.write("a.csv", table)), ("dolly in a CSV table".into(), records));
    let path = folder.write("a.tsv.gz", gzip(b"text\tid\nciao\t1\n"));
    assert_eq!(recognised(&path), ("text in a TSV table".into(), vec!["\"ciao\"".to_owned()]));
    let path = folder.write("b.csv", "text,id\nciao,1\nsolo\nciao,2,3\n\"\",4\n");
    let (texts, bad) = read_report(&path, 3).unwrap();
    assert_eq!((texts.len(), bad.count), (1, 3));
    assert!(bad.first[0].ends_with("b.csv:3: expected 2 columns, found 1"), "{:?}", bad.first);
    assert!(bad.first[2].ends_with("b.csv:5: the text is empty"), "{:?}", bad.first);
    let error = read(&folder.write("c.csv", "text,text\na,b\n"), 0).unwrap_err();
    assert!(error.message().contains("column `text` stands twice"), "{error}");
    // A quote that is never closed would take in the rest of the file.
    let good = "text,id\n\"a\"\"\",1\nb\"c,2\n\"d\ne\",3\n";
    assert_eq!(read(&folder.write("e.csv", good), 0).unwrap(), ["a\"", "b\"c", "d\ne"]);
    for (open, line) in [("\"never\nclosed,4\n", 6), ("x,\"", 6), ("\"a\"\"", 6)] {
        let path = folder.write("e.csv", format!("{good}{open}"));
        let mut reader = Reader::new(vec![path], None, 100);
        let records: Vec<_> = reader.by_ref().collect();
        assert_eq!(records.iter().filter(|record| record.is_ok()).count(), 3, "{open}");
        let error = records.into_iter().find_map(Result::err).unwrap();
        let message = format!("e.csv:{line}: a quote is opened here and never closed");
        assert!(error.message().contains(&message), "{open}: {error}");
    }
    let utf16: Vec<u8> = "\u{feff}text\nciao\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let error = read(&folder.write("f.csv", utf16), 0).unwrap_err();
    assert!(error.message().contains("f.csv: the header: UTF-16, expected UTF-8"), "{error}");
    let error = read(&folder.write("d.csv", b"text\n\xff\n"), 0).unwrap_err();
    assert!(error.message().contains("d.csv:2: column `text`: not UTF-8"), "{error}");
}

#[test]
fn evalita_lines_are_recognised_without_a_header() {
    let folder = Folder::new();
    let lines = "1\thaspeede\tUn \"testo\tnon_odio\n2\tnermud\tUn altro\tnan\n";
    let (found, records) = recognised(&folder.write("a.tsv", lines));
    assert_eq!((found.as_str(), records.len()), ("evalita in tab-separated lines", 2));
    assert!(records[0].contains("\"input\":\"Un \\\"testo\",\"response\":\"no\""), "{}", records[0]);
    assert!(records[1].ends_with("\"response\":\"nessuna\"}"), "{}", records[1]);
    // The files are called .txt too; then the format must be named.
    let path = folder.write("train.txt", lines);
    let mut reader = Reader::new(vec![path], by_name("evalita").unwrap(), 0);
    assert_eq!(reader.by_ref().filter(|document| document.is_ok()).count(), 2);
    let path = folder.write("b.tsv", format!("{lines}3\tsconosciuto\tx\ty\n4\thaspeede\tx\n"));
    let (records, bad) = read_report(&path, 2).unwrap();
    assert_eq!((records.len(), bad.count), (2, 2));
    assert!(bad.first[0].contains("b.tsv:3: unknown task `sconosciuto`"), "{:?}", bad.first);
    assert!(bad.first[1].contains("b.tsv:4: expected 4 columns (id, task, text, target), found 3"), "{:?}", bad.first);
}

#[test]
fn turns_out_of_order_and_empty_ones_are_bad_records() {
    let folder = Folder::new();
    let message = |role: &str, text: &str| format!("{{\"role\": \"{role}\", \"content\": \"{text}\"}}");
    let list = |messages: &[String]| format!("{{\"messages\": [{}]}}", messages.join(", "));
    let (user, answer) = (message("user", "a"), message("assistant", "b"));
    let good = list(&[user.clone(), answer.clone()]);
    for (bad, reason) in [
        (list(std::slice::from_ref(&user)), "message 1: the last turn is the user's, expected the assistant's"),
        (list(&[answer.clone(), user.clone()]), "message 1: expected the user's turn, found the assistant's"),
        (
            list(&[user.clone(), user.clone(), answer.clone()]),
            "message 2: expected the assistant's turn, found the user's",
        ),
        (list(&[user.clone(), message("assistant", "  ")]), "message 2: the assistant's turn is empty"),
        (
            list(&[user.clone(), answer.clone(), message("system", "s")]),
            "message 3: expected the user's turn, found the system's",
        ),
        (list(&[message("tool", "x"), answer.clone()]), "message 1: unknown role `tool`"),
        (list(&[]), "the conversation has no messages"),
        ("{\"messages\": 3}".into(), "expected a list of messages, found a number"),
        ("{\"messages\": [{\"role\": \"user\"}]}".into(), "message 1: no field `content` or `value`"),
        ("{\"messages\": [{\"content\": \"a\"}]}".into(), "message 1: no field `role` or `from`"),
        ("{\"text\": \"a\"}".into(), "no field `messages` or `conversations`"),
    ] {
        let path = folder.write("a.jsonl", format!("{good}\n{bad}\n{good}\n"));
        let error = read(&path, 0).unwrap_err();
        assert!(error.message().contains("a.jsonl:2: ") && error.message().contains(reason), "{reason}: {error}");
        let (records, counted) = read_report(&path, 1).unwrap();
        assert_eq!((records.len(), counted.count), (2, 1), "{reason}");
    }
    for (bad, reason) in [
        ("{\"data\": [\"a\"]}", "message 1: the last turn is the user's"),
        ("{\"data\": [\"a\", \"\"]}", "message 2: the assistant's turn is empty"),
        ("{\"data\": [\"a\", 3]}", "turn 2: expected text, found a number"),
        ("{\"data\": \"a\"}", "field `data`: expected a list of turns"),
        ("{\"id\": \"1\"}", "no field `data`"),
    ] {
        let path = folder.write("u.jsonl", format!("{{\"data\": [\"a\", \"b\"]}}\n{bad}\n"));
        let error = read(&path, 0).unwrap_err();
        assert!(error.message().contains("u.jsonl:2: ") && error.message().contains(reason), "{reason}: {error}");
    }
    for (bad, reason) in [
        ("{\"instruction\": \"a\"}", "no field `response` (there: )"),
        ("{\"instruction\": \" \", \"response\": \"b\"}", "field `instruction` is empty"),
        ("{\"instruction\": \"a\", \"response\": [1]}", "field `response`: expected a string, found an array"),
    ] {
        let path = folder.write("d.jsonl", format!("{{\"instruction\": \"a\", \"response\": \"b\"}}\n{bad}\n"));
        let error = read(&path, 0).unwrap_err();
        assert!(error.message().contains("d.jsonl:2: ") && error.message().contains(reason), "{reason}: {error}");
    }
}

#[test]
fn broken_arrays_name_their_place() {
    let folder = Folder::new();
    let error = read(&folder.write("a.json", "[{\"text\": \"a\"},\n {\"text\": \"b\"}"), 9).unwrap_err();
    assert!(error.message().contains("a.json:2: the file ends before its array does"), "{error}");
    let path = folder.write("b.json", "[{\"text\": \"[a]\\\"\"},\n{\"text\": },\n 3, {\"text\": \"b\"}] x");
    let (texts, bad) = read_report(&path, 3).unwrap();
    assert_eq!(texts, ["[a]\"", "b"]);
    let lines: Vec<&str> = bad.first.iter().filter_map(|line| line.split("b.json:").nth(1)).collect();
    assert!(lines[0].starts_with("2: broken JSON"), "{lines:?}");
    assert!(lines[1].starts_with("3: expected a JSON object, found a number"), "{lines:?}");
    assert!(lines[2].starts_with("3: text behind the end of the array"), "{lines:?}");
    let text = "x".repeat(3 << 20);
    let long = folder.write("c.json", format!("[{{\"text\": \"{text}\"}}, {{\"text\": \"b\"}}]"));
    assert_eq!(read(&long, 0).unwrap().len(), 2);
}

/// A Parquet file with columns of text.
fn parquet(columns: &[&str], rows: &[&[&str]]) -> Vec<u8> {
    use ::parquet::data_type::{ByteArray, ByteArrayType};
    use ::parquet::file::properties::WriterProperties;
    use ::parquet::file::writer::SerializedFileWriter;
    let fields: Vec<String> = columns.iter().map(|name| format!("required binary {name} (UTF8);")).collect();
    let schema = format!("message rows {{ {} }}", fields.join(" "));
    let schema = ::parquet::schema::parser::parse_message_type(&schema).unwrap();
    let properties = WriterProperties::builder().set_compression(::parquet::basic::Compression::SNAPPY).build();
    let mut writer = SerializedFileWriter::new(Vec::new(), schema.into(), properties.into()).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let mut column = 0;
    while let Some(mut out) = group.next_column().unwrap() {
        let values: Vec<ByteArray> = rows.iter().map(|row| ByteArray::from(row[column])).collect();
        out.typed::<ByteArrayType>().write_batch(&values, None, None).unwrap();
        out.close().unwrap();
        column += 1;
    }
    group.close().unwrap();
    writer.into_inner().unwrap()
}

#[test]
fn parquet_files_are_read_by_column_name() {
    let folder = Folder::new();
    let bytes = parquet(&["instruction", "response"], &[&["a", "è"], &["c", ""]]);
    let path = folder.write("a.parquet", &bytes);
    let (records, bad) = read_report(&path, 1).unwrap();
    assert_eq!(records, ["{\"instruction\":\"a\",\"input\":\"\",\"response\":\"è\"}"]);
    assert!(bad.first[0].ends_with("a.parquet:2: field `response` is empty"), "{:?}", bad.first);
    // A missing column: nothing recognises it, and a named format says which.
    let path = folder.write("b.parquet", parquet(&["instruction"], &[&["a"]]));
    let error = read(&path, 9).unwrap_err();
    assert!(error.message().contains("b.parquet:1: no known format: the record has the fields instruction"), "{error}");
    let error = Reader::new(vec![path], by_name("dolly").unwrap(), 0).find_map(Result::err).unwrap();
    assert!(error.message().contains("b.parquet:1: no field `response`"), "{error}");
    for cut in [5, 40, bytes.len() / 2, bytes.len() - 1] {
        let error = read(&folder.write("cut.parquet", &bytes[..cut]), 9).unwrap_err();
        assert!(error.message().contains("cut.parquet: cannot read this Parquet file"), "{cut}: {error}");
    }
    let error = read(&folder.write("no.parquet", "text"), 9).unwrap_err();
    assert!(error.message().contains("not a Parquet file"), "{error}");
}

#[test]
fn damaged_parquet_files_are_errors_or_records_and_never_a_panic() {
    let folder = Folder::new();
    let whole = parquet(&["text", "url"], &[&["un testo", "u"], &["un altro", "v"]]);
    for place in 4..whole.len() {
        let mut bytes = whole.clone();
        bytes[place] ^= 0x55;
        let path = folder.write("a.parquet", &bytes);
        let mut reader = Reader::new(vec![path], None, 1000);
        let count = reader.by_ref().take(1000).filter(|document| document.is_ok()).count();
        assert!(count <= 2, "byte {place}: {count} records");
    }
}
