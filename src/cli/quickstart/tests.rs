//! Tests of the bundled quickstart: what is compiled in, and unpacking.

use super::*;
use std::collections::BTreeSet;

fn listed(part: &str) -> BTreeSet<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("data").join(part);
    let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.map(|name| format!("{part}/{name}")).collect()
}

#[test]
fn every_bundled_file_is_in_the_program() {
    let parts = ["quickstart/model", "italian/train", "italian/held-out"];
    let expected: BTreeSet<String> = parts.into_iter().flat_map(listed).collect();
    let embedded: BTreeSet<String> = files::FILES.iter().map(|file| file.path.to_string()).collect();
    assert_eq!(embedded, expected);
    let model: usize =
        files::FILES.iter().filter(|file| file.path.starts_with("quickstart/")).map(|file| file.bytes.len()).sum();
    assert!(model <= 8_000_000, "the model takes {model} bytes");
}

#[test]
fn the_unpacked_configuration_names_the_unpacked_files() {
    let config: RunConfig =
        crate::config::load(&files::config_text("some/place"), Path::new("quickstart.toml"), &[]).unwrap();
    let below = |path: &str| path.strip_prefix("some/place/").unwrap_or_else(|| panic!("{path}")).to_string();
    let named = [vec![config.model.clone()], config.data.paths.clone(), config.data.held_out_files.clone()].concat();
    assert!(named.len() >= 3);
    for path in named {
        let folder = below(&path) + "/";
        assert!(files::FILES.iter().any(|file| file.path.starts_with(&folder)), "{path}");
    }
    assert_eq!(config.output, Path::new("some/place/runs"));
}

#[test]
fn unpacking_again_writes_what_is_missing_and_keeps_what_was_changed() {
    let place = tempfile::tempdir().unwrap();
    let first = unpack_into(place.path()).unwrap();
    assert_eq!((first.written, first.changed.len()), (files::FILES.len() + 1, 0));
    assert_eq!(unpack_into(place.path()).unwrap(), Unpacked::default());

    let (config, text) = (place.path().join("quickstart.toml"), place.path().join(files::FILES[7].path));
    std::fs::write(&config, "seed = 5\n").unwrap();
    std::fs::remove_file(&text).unwrap();
    let again = unpack_into(place.path()).unwrap();
    assert_eq!((again.written, again.changed), (1, vec![config.clone()]));
    assert_eq!(std::fs::read(&text).unwrap(), files::FILES[7].bytes);
    assert_eq!(std::fs::read_to_string(&config).unwrap(), "seed = 5\n");
    let leftovers = std::fs::read_dir(place.path()).unwrap();
    assert!(leftovers.flatten().all(|entry| !entry.file_name().to_string_lossy().ends_with(".partial")));
}
