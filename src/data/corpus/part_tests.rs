//! Parts: what goes in comes out, from memory and from a file, and nothing else is accepted.

use super::*;

fn document(first: u32, length: usize, kind: Kind) -> TokenizedDocument {
    TokenizedDocument {
        ids: (first..first + length as u32).collect(),
        spans: vec![1..2, 3..length.max(3)],
        kind,
        text_bytes: 3 * length as u64,
        hash: u64::from(first) << 40 | 7,
        line: u64::from(first) + 1,
    }
}

fn part() -> (Vec<TokenizedDocument>, Part) {
    let documents: Vec<_> = (0..50)
        .map(|i| document(i, 3 + (i as usize * 37) % 90, [Kind::Text, Kind::Example, Kind::Whole][i as usize % 3]))
        .collect();
    let mut builder = PartBuilder::default();
    let lengths = TokenBytes::new((0..200).map(|id| id % 5).collect());
    documents.iter().for_each(|document| builder.push(document, &lengths));
    builder.account = Account { records: 60, bad: vec![(3, "perché".into())], bad_count: 10, ..Account::default() };
    (documents, builder.finish())
}

fn check(documents: &[TokenizedDocument], part: &Part) {
    assert_eq!(part.len(), documents.len());
    let lengths = TokenBytes::new((0..200).map(|id| id % 5).collect());
    for (place, document) in documents.iter().enumerate() {
        assert_eq!(part.ids(place), document.ids);
        assert_eq!(part.spans(place).collect::<Vec<_>>(), document.spans);
        assert_eq!((part.kind(place), part.line(place)), (document.kind, document.line));
        assert_eq!((part.text_bytes(place), part.content_hash(place)), (document.text_bytes, document.hash));
        for count in [0, 1, document.ids.len() / 2, document.ids.len()] {
            assert_eq!(part.bytes_before(place, count, &lengths), lengths.sum(&document.ids[..count]));
        }
    }
    assert_eq!((part.account().records, part.account().bad_count), (60, 10));
    assert_eq!(part.account().bad, [(3, "perché".to_owned())]);
}

#[test]
fn a_part_reads_back_from_memory_and_from_a_file() {
    let (documents, part) = part();
    assert!(part.tokens() > 2 * SUM_EVERY);
    check(&documents, &part);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tokens");
    std::fs::write(&path, part.bytes()).unwrap();
    let mapped = Part::open(&path).unwrap();
    check(&documents, &mapped);
    assert_eq!(mapped.hash(), part.hash());
    let empty = PartBuilder::default().finish();
    std::fs::write(&path, empty.bytes()).unwrap();
    assert_eq!(Part::open(&path).unwrap().len(), 0);
}

#[test]
fn every_flipped_byte_and_every_cut_is_noticed() {
    let (_, part) = part();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tokens");
    let whole = part.bytes().to_vec();
    for place in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[place] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        assert!(Part::open(&path).is_err(), "byte {place}");
    }
    for length in (0..whole.len()).step_by(11) {
        std::fs::write(&path, &whole[..length]).unwrap();
        assert!(Part::open(&path).is_err(), "{length} bytes");
    }
}
