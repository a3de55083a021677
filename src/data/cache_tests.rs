//! Keys and folders of the token cache.

use super::*;
use crate::data::corpus::part::PartBuilder;

#[test]
fn the_key_is_that_of_content_and_way_not_of_the_name() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        path
    };
    let (a, same, other) = (write("a", "uno"), write("b", "uno"), write("c", "due"));
    assert_eq!(key(&a, "x").unwrap(), key(&same, "x").unwrap());
    assert_ne!(key(&a, "x").unwrap(), key(&other, "x").unwrap());
    assert_ne!(key(&a, "x").unwrap(), key(&a, "y").unwrap());
    // What belongs to the way cannot pass for content.
    assert_ne!(key(&write("d", "due"), "uno").unwrap(), key(&write("e", "odue"), "un").unwrap());
}

#[test]
fn an_entry_goes_on_where_it_was_left() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.jsonl");
    fs::write(&file, "x").unwrap();
    let cache = TokenCache::named(&folder.path().join("cache").to_string_lossy());
    let part = |records: u64| {
        let mut builder = PartBuilder::default();
        builder.account.records = records;
        builder.finish()
    };
    let (mut entry, _) = cache.entry(&file, "how").unwrap();
    assert!(entry.parts().is_empty() && !entry.is_complete());
    entry.add(part(3)).unwrap();
    let (mut entry, damage) = cache.entry(&file, "how").unwrap();
    assert_eq!((entry.parts().len(), entry.is_complete(), damage), (1, false, None));
    entry.add(part(4)).unwrap();
    entry.finish().unwrap();
    let (entry, _) = cache.entry(&file, "how").unwrap();
    assert!(entry.is_complete());
    assert_eq!(entry.parts().iter().map(|part| part.account().records).collect::<Vec<_>>(), [3, 4]);
    // A part that is gone: what stands behind it does not count, and the entry is no longer complete.
    let place = fs::read_dir(cache.folder().unwrap()).unwrap().next().unwrap().unwrap().path();
    fs::remove_file(place.join("00000.tokens")).unwrap();
    let (entry, _) = cache.entry(&file, "how").unwrap();
    assert_eq!((entry.parts().len(), entry.is_complete()), (0, false));
    let names: Vec<_> = fs::read_dir(&place).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(names.iter().all(|name| !name.to_string_lossy().starts_with(".tmp-")), "{names:?}");
}

#[test]
fn parts_that_do_not_fit_the_memory_go_to_files_without_a_name() {
    let part = |records: u64| {
        let mut builder = PartBuilder::default();
        builder.account.records = records;
        builder.finish()
    };
    let one = part(1).bytes().len() as u64;
    let memory = Memory::with_limit(2 * one);
    let parts: Vec<_> = (1..6).map(|records| memory.settle(part(records)).unwrap()).collect();
    assert_eq!(parts.iter().map(|part| part.account().records).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
    assert_eq!(parts.iter().map(|part| part.is_mapped()).collect::<Vec<_>>(), [false, false, true, true, true]);
    for (records, part_of) in (1..6).zip(&parts) {
        assert_eq!(part_of.bytes(), part(records).bytes());
    }
    assert!(part(1).spill(Path::new("/no/such/folder")).is_err());
}

#[test]
fn a_part_that_is_open_is_read_on_when_its_file_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.jsonl");
    fs::write(&file, "x").unwrap();
    let cache = TokenCache::named(&folder.path().join("cache").to_string_lossy());
    let (mut entry, _) = cache.entry(&file, "how").unwrap();
    let mut builder = PartBuilder::default();
    builder.account.records = 9;
    entry.add(builder.finish()).unwrap();
    let bytes = entry.parts()[0].bytes().to_vec();
    fs::remove_dir_all(cache.folder().unwrap()).unwrap();
    assert!(entry.parts()[0].is_mapped());
    assert_eq!(entry.parts()[0].bytes(), bytes);
    // Work goes on without it; later the entry is made anew from its first part.
    entry.add(PartBuilder::default().finish()).unwrap();
    entry.finish().unwrap();
    assert_eq!(entry.parts().len(), 2);
    let (again, damage) = cache.entry(&file, "how").unwrap();
    assert_eq!((again.parts().len(), again.is_complete(), damage), (0, false, None));
}

#[test]
fn a_cache_that_is_off_keeps_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a");
    fs::write(&file, "x").unwrap();
    let (mut entry, _) = TokenCache::named("off").entry(&file, "how").unwrap();
    entry.add(PartBuilder::default().finish()).unwrap();
    entry.finish().unwrap();
    assert_eq!(entry.parts().len(), 1);
    assert!(TokenCache::named("off").entry(&file, "how").unwrap().0.parts().is_empty());
}
