//! The hub: names, what is fetched and kept, how a download goes on, what the environment says.

use super::fake::{get, get_offline, sha256, spoiled, starts, weights};
use super::fake::{Answer, FakeHub, FakeModel, Manner, COMMIT, SHARD};
use super::*;
use std::time::Duration;

#[test]
fn what_exists_is_taken_as_it_is() {
    let place = tempfile::tempdir().unwrap();
    let gguf = place.path().join("model.gguf");
    std::fs::write(&gguf, "x").unwrap();
    for path in [place.path(), &gguf] {
        let resolved = resolve_with(path.to_str().unwrap(), || panic!("no settings are needed"), &mut ()).unwrap();
        assert_eq!(resolved, path);
    }
}

#[test]
fn a_name_of_the_hub_has_one_slash_and_no_file_ending() {
    let parsed = |spec: &str| HubModel::parse(spec).map(|model| (model.id, model.revision));
    let is = |id: &str, revision: &str| Some((id.to_string(), revision.to_string()));
    assert_eq!(parsed("swap-uniba/LLaMAntino-3_ANITA.8B"), is("swap-uniba/LLaMAntino-3_ANITA.8B", "main"));
    assert_eq!(parsed("org/name@v1.0"), is("org/name", "v1.0"));
    assert_eq!(parsed("org/name@refs/pr/3"), is("org/name", "refs/pr/3"));
    let others = [
        "",
        "name",
        "a/b/c",
        "/a/b",
        "./a",
        "../a",
        "~/a",
        "a/",
        "/b",
        "a/b.gguf",
        "a/b.safetensors",
        "a b/c",
        "a/b@",
        "a/b@../c",
        "a/b@x/../y",
        "a/..",
        "a/b@/x",
        "https://huggingface.co/a/b",
        "a/b--c",
        "a/-b",
        "a\\b/c",
        "a/b?x",
        "a/b#c",
        "a/b%2e",
    ];
    for other in others {
        assert_eq!(parsed(other), None, "{other:?}");
    }
}

#[test]
fn a_missing_path_does_not_use_the_network() {
    let place = tempfile::tempdir().unwrap();
    let beside = place.path().join("tinny");
    for path in [beside.to_str().unwrap(), "./none", "src/none", "none.gguf", "none"] {
        let error = resolve_with(path, || panic!("no network"), &mut ()).unwrap_err();
        assert!(error.message().contains(": no such") && error.hint_text().is_some(), "{error}");
    }
}

#[derive(Default)]
struct Log(Vec<String>);

impl HubObserver for Log {
    fn begin(&mut self, model: &str, files: usize, bytes: Option<u64>) {
        self.0.push(format!("begin {model} {files} {bytes:?}"));
    }

    fn progress(&mut self, done: u64, name: &str) {
        self.0.push(format!("{done} {name}"));
    }

    fn note(&mut self, text: &str) {
        self.0.push(format!("note {text}"));
    }
}

#[test]
fn a_model_is_fetched_once_in_the_layout_of_the_python_libraries() {
    let model = FakeModel::sharded();
    let files = model.files.clone();
    let hub = FakeHub::start(move |asked| model.answer(asked));
    let cache = tempfile::tempdir().unwrap();
    let mut log = Log::default();
    let folder = resolve_with("org/name", || Ok(hub.settings(cache.path())), &mut log).unwrap();
    let root = cache.path().join("models--org--name");
    assert_eq!(folder, root.join("snapshots").join(COMMIT));
    assert_eq!(std::fs::read_to_string(root.join("refs/main")).unwrap(), COMMIT);
    let wanted = [
        "LICENSE.txt",
        "config.json",
        "model-1.safetensors",
        "model-2.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
    ];
    let mut names: Vec<String> =
        std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort_unstable();
    assert_eq!(names, wanted);
    for name in wanted {
        assert!(std::fs::read(folder.join(name)).unwrap() == files[name], "{name}");
        #[cfg(unix)]
        {
            let link = std::fs::read_link(folder.join(name)).unwrap();
            assert_eq!(link, Path::new("../../blobs").join(sha256(&files[name])));
        }
    }
    assert_eq!(std::fs::read_dir(root.join("blobs")).unwrap().count(), wanted.len(), "no part is left");
    let bytes: usize = wanted.iter().map(|name| files[*name].len()).sum();
    assert!(log.0.contains(&format!("begin org/name 6 Some({bytes})")), "{:?}", log.0);
    assert_eq!(log.0.last().unwrap(), &format!("{bytes} model-2.safetensors"));

    let before = hub.asked().len();
    assert_eq!(get(&hub, cache.path()).unwrap(), folder);
    assert_eq!(get_offline(&hub, cache.path()).unwrap(), folder);
    let pinned = resolve_with(&format!("org/name@{COMMIT}"), || Ok(hub.settings(cache.path())), &mut ()).unwrap();
    assert_eq!(pinned, folder);
    assert_eq!(hub.asked().len(), before, "a complete model is not asked for again");
}

#[test]
fn a_listing_without_sizes_is_enough() {
    let model = FakeModel { detailed: false, ..FakeModel::sharded() };
    let files = model.files.clone();
    let hub = FakeHub::start(move |asked| model.answer(asked));
    let cache = tempfile::tempdir().unwrap();
    let folder = get(&hub, cache.path()).unwrap();
    assert!(std::fs::read(folder.join(SHARD)).unwrap() == files[SHARD]);
}

#[test]
fn what_a_killed_run_left_is_completed() {
    let model = FakeModel::sharded();
    let hub = FakeHub::start(move |asked| model.answer(asked));
    let cache = tempfile::tempdir().unwrap();
    let folder = get(&hub, cache.path()).unwrap();
    let blob = std::fs::canonicalize(folder.join(SHARD)).unwrap();
    std::fs::remove_file(&blob).unwrap(); // leaves a link to nothing
    assert!(get_offline(&hub, cache.path()).is_err());
    assert_eq!(get(&hub, cache.path()).unwrap(), folder);
    assert!(blob.exists());
}

#[test]
fn a_revision_is_asked_for_and_remembered() {
    let model = FakeModel::sharded();
    let hub = FakeHub::start(move |asked| model.answer(asked));
    let cache = tempfile::tempdir().unwrap();
    resolve_with("org/name@refs/pr/3", || Ok(hub.settings(cache.path())), &mut ()).unwrap();
    assert_eq!(hub.asked()[0].path, "/api/models/org/name/revision/refs%2Fpr%2F3?blobs=true");
    assert!(hub.asked()[1..].iter().all(|asked| asked.path.contains(COMMIT)), "files are asked for by commit");
    let written = cache.path().join("models--org--name/refs/refs/pr/3");
    assert_eq!(std::fs::read_to_string(written).unwrap(), COMMIT);
    assert!(get_offline(&hub, cache.path()).is_err(), "main was never fetched");
}

#[test]
fn an_unchanged_large_file_of_a_new_commit_is_not_fetched_again() {
    let old = FakeModel::sharded();
    let mut new = FakeModel { commit: "f".repeat(40), ..old.clone() };
    new.set("config.json", "{\"model_type\": \"llama\", \"new\": 1}");
    let cache = tempfile::tempdir().unwrap();
    let first = FakeHub::start(move |asked| old.answer(asked));
    get(&first, cache.path()).unwrap();
    let second = FakeHub::start(move |asked| new.answer(asked));
    let spec = format!("org/name@{}", "f".repeat(40));
    let folder = resolve_with(&spec, || Ok(second.settings(cache.path())), &mut ()).unwrap();
    assert!(folder.join(SHARD).exists());
    assert!(second.asked().iter().all(|asked| !asked.path.ends_with(".safetensors")));
    assert!(std::fs::read_to_string(folder.join("config.json")).unwrap().contains("new"));
}

#[test]
fn an_adapter_is_fetched_too() {
    let mut model = FakeModel { files: Default::default(), ..FakeModel::sharded() };
    model.set("adapter_config.json", "{}").files.insert("adapter_model.safetensors".into(), weights("a", 8));
    let hub = FakeHub::start(move |asked| model.answer(asked));
    let cache = tempfile::tempdir().unwrap();
    let folder = get(&hub, cache.path()).unwrap();
    assert!(folder.join("adapter_model.safetensors").exists());
    assert_eq!(get_offline(&hub, cache.path()).unwrap(), folder);
}

#[test]
fn the_token_goes_to_the_hub_and_nowhere_else() {
    let model = FakeModel::sharded();
    let storage = {
        let model = model.clone();
        FakeHub::start(move |asked| model.answer(asked))
    };
    let elsewhere = storage.url();
    let hub = FakeHub::start(move |asked| match asked.path.ends_with(".safetensors") {
        // As the hub does: its own path first, then the storage.
        true if !asked.path.starts_with("/here") => Answer::redirect(307, &format!("/here{}", asked.path)),
        true => Answer::redirect(302, &format!("{elsewhere}{}?signature=secret", &asked.path[5..]))
            .with("X-Linked-Etag", "\"0123456789abcdef\""),
        false => model.answer(asked),
    });
    // The storage sees a query, which the fake does not know.
    let cache = tempfile::tempdir().unwrap();
    let settings = HubSettings { token: Some("hf_secret".into()), ..hub.settings(cache.path()) };
    let error = resolve_with("org/name", || Ok(settings), &mut ()).unwrap_err();
    assert!(!error.message().contains("secret") && error.message().contains(&storage.url()), "{error}");
    assert!(hub.asked().iter().all(|asked| asked.header("authorization") == Some("Bearer hf_secret")));
    assert!(hub.asked().iter().any(|asked| asked.path.starts_with("/here")));
    assert!(!storage.asked().is_empty());
    assert!(storage.asked().iter().all(|asked| asked.header("authorization").is_none()));
}

#[test]
fn files_behind_redirects_are_named_as_the_hub_names_them() {
    let model = FakeModel { detailed: false, ..FakeModel::sharded() };
    let storage = {
        let model = model.clone();
        FakeHub::start(move |asked| model.answer(asked))
    };
    let elsewhere = storage.url();
    let hub = FakeHub::start(move |asked| match asked.path.ends_with(SHARD) {
        true => {
            Answer::redirect(302, &format!("{elsewhere}{}", asked.path)).with("X-Linked-Etag", "\"0123456789abcdef\"")
        }
        false => model.answer(asked),
    });
    let cache = tempfile::tempdir().unwrap();
    let folder = get(&hub, cache.path()).unwrap();
    let blob = std::fs::canonicalize(folder.join(SHARD)).unwrap();
    assert_eq!(blob.file_name().unwrap(), "0123456789abcdef");
}

#[test]
fn a_broken_download_goes_on_where_it_broke() {
    for manner in [Manner::Cut(100_000), Manner::Stall(100_000)] {
        let (hub, bytes) = spoiled(1, move |_, answer| answer.manner(manner));
        let cache = tempfile::tempdir().unwrap();
        let mut log = Log::default();
        let settings =
            if manner == Manner::Stall(100_000) { hub.impatient(cache.path()) } else { hub.settings(cache.path()) };
        let folder = resolve_with("org/name", || Ok(settings), &mut log).unwrap();
        assert!(std::fs::read(folder.join(SHARD)).unwrap() == bytes);
        assert_eq!(starts(&hub)[..2], [0, 100_000], "{manner:?}");
        assert!(log.0.iter().any(|line| line.starts_with("note ") && line.ends_with("trying again")), "{:?}", log.0);
    }
}

#[test]
fn a_later_run_goes_on_where_an_earlier_one_gave_up() {
    let (hub, bytes) =
        spoiled(3, |asked, answer| answer.manner(Manner::Cut(if asked.from() == 0 { 50_000 } else { 0 })));
    let cache = tempfile::tempdir().unwrap();
    let error = get(&hub, cache.path()).unwrap_err();
    assert!(error.message().contains(SHARD) && error.hint_text().unwrap().contains("is kept"), "{error}");
    let folder = get(&hub, cache.path()).unwrap();
    assert!(std::fs::read(folder.join(SHARD)).unwrap() == bytes);
    assert_eq!(starts(&hub), [0, 50_000, 50_000, 50_000]);
}

#[test]
fn a_server_that_cannot_go_on_starts_again() {
    let whole = FakeModel::sharded().files[SHARD].clone();
    type Resume = fn(&[u8]) -> Answer;
    let ranges: [(&str, Resume); 4] = [
        ("all from the start", |bytes| Answer::new(200, bytes)),
        ("another range", |bytes| Answer::new(206, &bytes[9..]).with("Content-Range", "bytes 9-300000/300001")),
        ("no range said", |bytes| Answer::new(206, &bytes[50_000..])),
        ("a refused range", |_| Answer::new(416, "")),
    ];
    for (name, answer) in ranges {
        let full = whole.clone();
        let (hub, bytes) = spoiled(2, move |asked, good| match asked.from() {
            0 => good.manner(Manner::Cut(50_000)),
            _ => answer(&full),
        });
        let cache = tempfile::tempdir().unwrap();
        let folder = get(&hub, cache.path()).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(std::fs::read(folder.join(SHARD)).unwrap() == bytes, "{name}");
    }
}

#[test]
fn a_whole_part_needs_no_more_bytes() {
    let (hub, bytes) = spoiled(0, |_, answer| answer);
    let cache = tempfile::tempdir().unwrap();
    let folder = get(&hub, cache.path()).unwrap();
    // As if the process had died between the last byte and the renaming.
    let hash = blake3::hash(format!("{COMMIT}/{SHARD}").as_bytes()).to_hex();
    let part = cache.path().join(format!("models--org--name/blobs/{}.part", &hash[..40]));
    std::fs::rename(std::fs::canonicalize(folder.join(SHARD)).unwrap(), &part).unwrap();
    get(&hub, cache.path()).unwrap();
    assert!(std::fs::read(folder.join(SHARD)).unwrap() == bytes);
    assert_eq!(starts(&hub), [0, bytes.len()]);
}

#[test]
fn two_at_once_fetch_a_file_once() {
    let model = FakeModel::sharded();
    let hub = FakeHub::start(move |asked| {
        if asked.path.ends_with(SHARD) {
            std::thread::sleep(Duration::from_millis(100));
        }
        model.answer(asked)
    });
    let cache = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        let tasks: Vec<_> = (0..3).map(|_| scope.spawn(|| get(&hub, cache.path()).unwrap())).collect();
        tasks.into_iter().for_each(|task| assert!(task.join().unwrap().join(SHARD).exists()));
    });
    assert_eq!(starts(&hub), [0]);
}

#[test]
fn a_model_without_tokenizer_json_is_asked_for_again_and_usable_offline() {
    let mut model = FakeModel::sharded();
    model.files.remove("tokenizer.json");
    model.set("tokenizer.model", "x");
    let hub = FakeHub::start(move |asked| model.answer(asked));
    let cache = tempfile::tempdir().unwrap();
    let folder = get(&hub, cache.path()).unwrap();
    let first = hub.asked().len();
    assert_eq!(get(&hub, cache.path()).unwrap(), folder);
    assert_eq!(hub.asked().len(), first + 1, "the listing alone");
    assert_eq!(get_offline(&hub, cache.path()).unwrap(), folder);
}

#[test]
fn offline_means_offline() {
    let hub = FakeHub::start(|_| Answer::new(500, ""));
    let cache = tempfile::tempdir().unwrap();
    let error = get_offline(&hub, cache.path()).unwrap_err();
    assert!(error.message().contains("HF_HUB_OFFLINE is set") && error.hint_text().is_some(), "{error}");
    assert!(hub.asked().is_empty());
}

#[test]
fn the_environment_is_read_as_the_python_libraries_read_it() {
    let of = |pairs: &'static [(&'static str, &'static str)]| {
        HubSettings::from_vars(&|name| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_string()))
    };
    let plain = of(&[("HOME", "/h")]).unwrap();
    assert_eq!((&plain.endpoint[..], plain.offline, plain.token), ("https://huggingface.co", false, None));
    assert_eq!(plain.cache, Path::new("/h/.cache/huggingface/hub"));
    assert_eq!(of(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")]).unwrap().cache, Path::new("/x/huggingface/hub"));
    assert_eq!(of(&[("HOME", "/h"), ("HF_HOME", "/f")]).unwrap().cache, Path::new("/f/hub"));
    assert_eq!(of(&[("HF_HOME", "/f"), ("HF_HUB_CACHE", "/c")]).unwrap().cache, Path::new("/c"));
    assert_eq!(
        of(&[("HOME", "/h"), ("HF_ENDPOINT", "http://mirror.example/")]).unwrap().endpoint,
        "http://mirror.example"
    );
    assert_eq!(of(&[("HOME", "/h"), ("HF_TOKEN", " hf_x\n")]).unwrap().token.as_deref(), Some("hf_x"));
    for value in ["1", "true", "YES", "On"] {
        let pairs = [("HOME", "/h".to_string()), ("HF_HUB_OFFLINE", value.to_string())];
        let find = |name: &str| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| value.clone());
        assert!(HubSettings::from_vars(&find).unwrap().offline, "{value}");
    }
    assert!(!of(&[("HOME", "/h"), ("HF_HUB_OFFLINE", "0")]).unwrap().offline);
    let wrong: [&'static [(&'static str, &'static str)]; 5] = [
        &[],
        &[("HOME", "/h"), ("HF_ENDPOINT", "huggingface.co")],
        &[("HOME", "/h"), ("HF_ENDPOINT", "https://")],
        &[("HOME", "/h"), ("HF_TOKEN", "hf_\u{e8}")],
        &[("HOME", "/h"), ("HF_TOKEN", "two words")],
    ];
    for pairs in wrong {
        let error = of(pairs).err().unwrap_or_else(|| panic!("{pairs:?}"));
        assert_eq!(error.exit_code(), 2);
        assert!(!error.message().contains("words"), "a token is not shown");
    }
}

#[test]
fn a_token_file_is_read_where_no_variable_has_one() {
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join("token"), "hf_file\n").unwrap();
    let path = home.path().to_str().unwrap().to_string();
    let of = |extra: Option<&str>| {
        let find = |name: &str| match name {
            "HF_HOME" => Some(path.clone()),
            "HF_TOKEN" => extra.map(str::to_string),
            _ => None,
        };
        HubSettings::from_vars(&find).unwrap().token
    };
    assert_eq!(of(None).as_deref(), Some("hf_file"));
    assert_eq!(of(Some("hf_var")).as_deref(), Some("hf_var"));
}
