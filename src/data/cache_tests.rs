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
