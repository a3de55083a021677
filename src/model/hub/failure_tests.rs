//! Every way in which a hub, a proxy or a network can fail: one clear error, nothing handed out, no endless wait.

use super::fake::{
    get, get_offline, spoiled, starts, weights, Answer, Asked, FakeHub, FakeModel, Manner, COMMIT, SHARD,
};
use super::*;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;

/// The error of a hub that answers so; nothing is handed out.
fn failure(answer: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Error {
    let (hub, cache) = (FakeHub::start(answer), tempfile::tempdir().unwrap());
    let error = get(&hub, cache.path()).unwrap_err();
    assert!(error.message().starts_with("org/name: "), "{error}");
    assert!(error.hint_text().is_some(), "a hint for: {error}");
    assert!(get_offline(&hub, cache.path()).is_err(), "nothing of a failed download may be handed out");
    error
}

/// A good hub but for the files that `change` answers for.
fn failing(change: impl Fn(&Asked) -> Option<Answer> + Send + Sync + 'static) -> Error {
    let model = FakeModel::sharded();
    failure(move |asked| change(asked).unwrap_or_else(|| model.answer(asked)))
}

#[test]
fn etags_cannot_lead_out_of_the_cache() {
    for tag in ["\"../../../evil\"", "\"/etc/evil\"", "\"a\"", "\"\"", "W/\"..\""] {
        let model = FakeModel { detailed: false, ..FakeModel::sharded() };
        let hub = FakeHub::start(move |asked| {
            let mut answer = model.answer(asked);
            answer.headers.retain(|(name, _)| name != "ETag");
            answer.with("ETag", tag)
        });
        let cache = tempfile::tempdir().unwrap();
        let folder = get(&hub, cache.path()).unwrap();
        let blob = std::fs::canonicalize(folder.join(SHARD)).unwrap();
        let blobs = std::fs::canonicalize(cache.path()).unwrap().join("models--org--name/blobs");
        assert_eq!(blob.parent().unwrap(), blobs, "{tag}");
    }
}

#[test]
fn a_damaged_part_is_noticed_and_not_kept() {
    let (hub, bytes) =
        spoiled(3, |asked, answer| answer.manner(Manner::Cut(if asked.from() == 0 { 50_000 } else { 0 })));
    let cache = tempfile::tempdir().unwrap();
    get(&hub, cache.path()).unwrap_err();
    let hash = blake3::hash(format!("{COMMIT}/{SHARD}").as_bytes()).to_hex();
    let part = cache.path().join(format!("models--org--name/blobs/{}.part", &hash[..40]));
    let mut damaged = std::fs::read(&part).unwrap();
    damaged[40_000] ^= 1;
    std::fs::write(&part, damaged).unwrap();
    let error = get(&hub, cache.path()).unwrap_err();
    assert!(error.message().contains("SHA-256") && error.hint_text().is_some(), "{error}");
    let folder = get(&hub, cache.path()).unwrap();
    assert!(std::fs::read(folder.join(SHARD)).unwrap() == bytes);
}

#[test]
fn a_gated_model_says_what_to_do() {
    for status in [401, 403] {
        let refuse = move |_: &Asked| {
            Answer::new(status, "").with("X-Error-Code", "GatedRepo").with("X-Error-Message", "Access is restricted.")
        };
        let error = failure(refuse);
        assert!(error.message().contains("access is gated (Access is restricted.)"), "{error}");
        let hint = error.hint_text().unwrap();
        assert!(hint.contains("accept the licence on the model's page") && hint.contains("HF_TOKEN"));
        let (hub, cache) = (FakeHub::start(refuse), tempfile::tempdir().unwrap());
        let settings = HubSettings { token: Some("hf_secret".into()), ..hub.settings(cache.path()) };
        let error = resolve_with("org/name", || Ok(settings), &mut ()).unwrap_err();
        assert!(error.message().contains("this token has none") && !format!("{error:?}").contains("hf_secret"));
        assert_eq!(hub.asked().len(), 1, "a refusal is not asked for again");
    }
}

#[test]
fn a_wrong_token_is_said_to_be_wrong_and_never_shown() {
    let refuse =
        |_: &Asked| Answer::new(401, "").with("X-Error-Message", "Invalid credentials in Authorization header");
    let (hub, cache) = (FakeHub::start(refuse), tempfile::tempdir().unwrap());
    let settings = HubSettings { token: Some("hf_wrong".into()), ..hub.settings(cache.path()) };
    let error = resolve_with("org/name", || Ok(settings), &mut ()).unwrap_err();
    assert!(error.message().contains("this token is not accepted (Invalid credentials"), "{error}");
    assert!(error.hint_text().unwrap().contains("unset it for a public model"));
    assert!(!format!("{error:?}").contains("hf_wrong"));
}

#[test]
fn refusals_are_told_apart() {
    let coded = |status: u16, code: &'static str| failure(move |_| Answer::new(status, "").with("X-Error-Code", code));
    assert!(coded(404, "RepoNotFound").message().contains("no such model, or a private one"));
    assert!(coded(401, "RepoNotFound").message().contains("no such model, or a private one"));
    assert!(coded(401, "").hint_text().unwrap().contains("HF_TOKEN"));
    assert!(coded(403, "").message().contains("access denied"));
    assert!(coded(404, "RevisionNotFound").message().contains("no such revision"));
    assert!(coded(404, "").message().contains("not found"));
    assert!(coded(418, "").message().contains("answers 418, expected 200"));
    // Gated files of a model whose listing is public.
    let files = failing(|asked| {
        let refusal = Answer::new(401, "").with("X-Error-Code", "GatedRepo");
        asked.path.contains("/resolve/").then_some(refusal)
    });
    assert!(files.message().contains("access is gated"));
}

#[test]
fn passing_troubles_pass() {
    for status in [408, 429, 500, 502, 503, 504] {
        let model = FakeModel::sharded();
        let seen = Arc::new(AtomicUsize::new(0));
        let counter = seen.clone();
        let hub = FakeHub::start(move |asked| match counter.fetch_add(1, Ordering::SeqCst) % 2 {
            0 => Answer::new(status, "later"),
            _ => model.answer(asked),
        });
        let cache = tempfile::tempdir().unwrap();
        get(&hub, cache.path()).unwrap_or_else(|error| panic!("{status}: {error}"));
        assert_eq!(seen.load(Ordering::SeqCst), 14, "{status}: the listing and six files, each at the second try");
    }
    let busy = failure(|_| Answer::new(429, ""));
    assert!(busy.message().contains("too many requests"));
    assert!(failure(|_| Answer::new(503, "")).message().contains("answers 503"));
}

#[test]
fn a_web_page_instead_of_json_is_said_to_be_one() {
    let page = || Answer::new(200, "<!DOCTYPE html><html>Please log in</html>").with("Content-Type", "text/html");
    let listing = failure(move |_| page());
    assert!(listing.message().contains("a web page came instead of JSON"), "{listing}");
    assert!(listing.hint_text().unwrap().contains("login page"));
    let mut model = FakeModel { detailed: false, ..FakeModel::sharded() };
    model.files.insert("tokenizer.model".into(), b"x".to_vec());
    for name in ["config.json", "tokenizer.json", "tokenizer.model", SHARD] {
        let model = model.clone();
        let error = failure(move |asked| if asked.path.ends_with(name) { page() } else { model.answer(asked) });
        let web = error.message().contains("a web page came instead");
        assert!(web && error.message().contains(name), "{error}");
    }
}

#[test]
fn other_documents_are_not_taken_for_answers() {
    for text in ["", "not json", "[]", "{}", "{\"sha\": \"../../x\", \"siblings\": []}", "{\"sha\": 7}"] {
        let error = failure(move |_| Answer::new(200, text));
        let expected = ["not JSON", "the hub's answer has no"];
        assert!(expected.iter().any(|part| error.message().contains(part)), "{text}: {error}");
    }
    let pointer = failing(|asked| {
        let text = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 300000\n";
        asked.path.ends_with(SHARD).then(|| Answer::new(200, text))
    });
    assert!(pointer.message().contains("expected 300"), "the listing knows the size: {pointer}");
    let model = FakeModel { detailed: false, ..FakeModel::sharded() };
    for (bytes, what) in
        [(&b"version https://git-lfs.github.com/spec/v1\n"[..], "only the pointer"), (b"short", "no safetensors")]
    {
        let model = model.clone();
        let error = failure(move |asked| match asked.path.ends_with(SHARD) {
            true => Answer::new(200, bytes),
            false => model.answer(asked),
        });
        assert!(error.message().contains(what), "{error}");
    }
}

#[test]
fn circles_of_redirects_end() {
    for location in ["/again", "//LOCALHOST/again", "HERE/again"] {
        let hub_url = Arc::new(std::sync::OnceLock::<String>::new());
        let own = hub_url.clone();
        let hub = FakeHub::start(move |_| {
            let here = own.get().cloned().unwrap_or_default();
            let address = here.trim_start_matches("http://").to_string();
            Answer::redirect(302, &location.replace("HERE", &here).replace("LOCALHOST", &address))
        });
        hub_url.set(hub.url()).unwrap();
        let cache = tempfile::tempdir().unwrap();
        let error = get(&hub, cache.path()).unwrap_err();
        assert!(error.message().contains("more than 10 redirects") && error.hint_text().is_some(), "{error}");
        assert_eq!(hub.asked().len(), 11, "{location}");
    }
    for location in ["ftp://example.org/x", "", "x", "http://", "http:///x", "javascript:1"] {
        let error = failure(move |_| Answer::redirect(302, location));
        assert!(error.message().contains("a redirect to"), "{location:?}: {error}");
    }
    assert!(failure(|_| Answer::new(302, "")).message().contains("answers 302"), "a redirect to nowhere");
}

#[test]
fn an_address_that_does_not_answer_is_an_error() {
    let cache = tempfile::tempdir().unwrap();
    let (hub, closed) = {
        let hub = FakeHub::start(|_| Answer::new(500, ""));
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        (hub, format!("http://127.0.0.1:{port}"))
    };
    let settings = HubSettings { endpoint: closed, ..hub.settings(cache.path()) };
    let error = resolve_with("org/name", || Ok(settings), &mut ()).unwrap_err();
    assert!(error.message().contains("127.0.0.1: cannot be reached"), "{error}");
    assert!(error.hint_text().unwrap().contains("a model's folder on disk works without a network"));
}

#[test]
fn silence_and_noise_end() {
    let model = FakeModel::sharded();
    let case = &|manner: Manner, ending: &'static str| {
        let model = model.clone();
        let hub = FakeHub::start(move |asked| match asked.path.ends_with(ending) {
            true => model.answer(asked).manner(manner),
            false => model.answer(asked),
        });
        let cache = tempfile::tempdir().unwrap();
        let error = resolve_with("org/name", || Ok(hub.impatient(cache.path())), &mut ()).unwrap_err();
        assert!(error.hint_text().is_some(), "{manner:?}: {error}");
        assert!(get_offline(&hub, cache.path()).is_err(), "{manner:?}: nothing is handed out");
    };
    let manners = [Manner::Silence, Manner::Close, Manner::Noise, Manner::Cut(20), Manner::Stall(20), Manner::Drip];
    std::thread::scope(|scope| {
        for manner in manners {
            scope.spawn(move || case(manner, "blobs=true"));
            scope.spawn(move || case(manner, "model-2.safetensors"));
        }
    });
}

#[test]
fn a_file_that_never_comes_whole_is_an_error_and_its_part_is_kept() {
    let cache = tempfile::tempdir().unwrap();
    let (hub, _) = spoiled(usize::MAX, |_, answer| answer.manner(Manner::Cut(1000)));
    let error = get(&hub, cache.path()).unwrap_err();
    assert!(error.message().contains(SHARD), "{error}");
    assert_eq!(starts(&hub), [0, 1000, 2000]);
    let parts = std::fs::read_dir(cache.path().join("models--org--name/blobs")).unwrap().flatten();
    let lengths: Vec<u64> = parts
        .filter(|entry| entry.path().extension().is_some_and(|ending| ending == "part"))
        .map(|entry| entry.metadata().unwrap().len())
        .collect();
    assert_eq!(lengths, [3000]);
}

#[test]
fn a_file_of_another_length_is_refused() {
    let other = failing(|asked| asked.path.ends_with(SHARD).then(|| Answer::new(200, weights("a", 17))));
    assert!(other.message().contains("the server has"), "{other}");
    // Without a length in the reply, the excess is noticed as it comes.
    let endless = failing(|asked| {
        let body = [FakeModel::sharded().files[SHARD].clone(), vec![0; 100]].concat();
        asked.path.ends_with(SHARD).then(|| Answer::new(200, body).manner(Manner::NoLength))
    });
    assert!(endless.message().contains("bytes that it can have"), "{endless}");
}

#[test]
fn models_that_cannot_be_used_are_refused_before_the_download() {
    let refused = |change: fn(&mut FakeModel)| {
        let mut model = FakeModel::sharded();
        change(&mut model);
        let error = failure_of(model);
        error.message().to_string()
    };
    fn failure_of(model: FakeModel) -> Error {
        let hub = FakeHub::start(move |asked| model.answer(asked));
        let cache = tempfile::tempdir().unwrap();
        let error = get(&hub, cache.path()).unwrap_err();
        assert!(hub.asked().iter().all(|asked| !asked.path.ends_with(".safetensors")));
        error
    }
    let pickled = refused(|model| model.files.retain(|name, _| !name.contains("safetensors")));
    assert!(pickled.contains("only pickled weights"), "{pickled}");
    let gguf = refused(|model| {
        model.files.clear();
        model.set("model.Q4_K_M.gguf", "x");
    });
    assert!(gguf.contains("no config.json"), "{gguf}");
    for shard in ["../../../etc/passwd", "sub/model.safetensors", "", ".hidden.safetensors", "config.json"] {
        let mut model = FakeModel::sharded();
        model.set("model.safetensors.index.json", &serde_json::json!({"weight_map": {"a": shard}}).to_string());
        assert!(failure_of(model).message().contains("expected a file name"), "{shard:?}");
    }
    let missing = refused(|model| {
        model.files.remove("model-2.safetensors");
    });
    assert!(missing.contains("names model-2.safetensors, which the model does not have"), "{missing}");
}

#[test]
fn names_that_lead_elsewhere_are_not_in_a_listing() {
    let json = serde_json::json!({"sha": COMMIT, "siblings": [
        {"rfilename": "../config.json"}, {"rfilename": "LICENSE/../../x"}, {"rfilename": ".git"}, {"rfilename": 7},
        {"rfilename": "config.json", "size": 3}, {"rfilename": "LICENSE", "lfs": {"sha256": "short", "size": 5}},
    ]});
    let files = plan::Listing::of(&json).unwrap().description().unwrap();
    let found: Vec<_> = files.iter().map(|file| (&file.name[..], file.size, file.sha256.is_some())).collect();
    assert_eq!(found, [("config.json", Some(3), false), ("LICENSE", Some(5), false)]);
}
