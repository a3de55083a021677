//! A hub on 127.0.0.1 for tests: serves what a function answers, well or badly, and remembers what it was asked.

use super::resolve_with;
use super::settings::{HubSettings, Limits};
use crate::error::Result;
use serde_json::{json, Value};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A request.
#[derive(Debug, Clone)]
pub struct Asked {
    /// With its query.
    pub path: String,
    headers: BTreeMap<String, String>,
}

impl Asked {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// First byte of a `Range: bytes=N-`.
    pub fn from(&self) -> usize {
        let range = self.header("range").and_then(|range| range.strip_prefix("bytes="));
        range.map_or(0, |range| range.trim_end_matches('-').parse().unwrap())
    }
}

/// How the body is sent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Manner {
    Whole,
    /// Closes after so many bytes of it.
    Cut(usize),
    /// Sends so many bytes, then nothing, without closing.
    Stall(usize),
    /// A byte now and then.
    Drip,
    /// Nothing at all, not even a status.
    Silence,
    /// Closes at once.
    Close,
    /// Something that is not HTTP.
    Noise,
    /// All of it, without saying how much it is.
    NoLength,
}

/// A reply.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub manner: Manner,
}

impl Answer {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Answer {
        Answer { status, headers: Vec::new(), body: body.into(), manner: Manner::Whole }
    }

    pub fn with(mut self, name: &str, value: &str) -> Answer {
        self.headers.push((name.into(), value.into()));
        self
    }

    pub fn manner(mut self, manner: Manner) -> Answer {
        self.manner = manner;
        self
    }

    pub fn redirect(status: u16, location: &str) -> Answer {
        Answer::new(status, "").with("Location", location)
    }
}

/// The running hub; stops when dropped.
pub struct FakeHub {
    port: u16,
    asked: Arc<Mutex<Vec<Asked>>>,
    stop: Arc<AtomicBool>,
}

impl FakeHub {
    pub fn start(answer: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> FakeHub {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let hub = FakeHub { port, asked: Arc::default(), stop: Arc::default() };
        let (asked, stop, answer) = (hub.asked.clone(), hub.stop.clone(), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if stop.load(Ordering::SeqCst) {
                    break;
                }
                let (asked, stop, answer) = (asked.clone(), stop.clone(), answer.clone());
                std::thread::spawn(move || {
                    let Some(request) = read_request(&stream) else { return };
                    asked.lock().unwrap().push(request.clone());
                    let _ = send(stream, &answer(&request), &stop);
                });
            }
        });
        hub
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// All requests so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    /// Settings that lead here, with so little patience that tests of silence end soon. A slow machine may run out of it
    /// too, so tests of anything else use [`FakeHub::settings`].
    pub fn impatient(&self, cache: &Path) -> HubSettings {
        let mut settings = self.settings(cache);
        settings.limits.reply = Duration::from_millis(400);
        settings.limits.stall = Duration::from_millis(200);
        settings
    }

    /// Settings that lead here.
    pub fn settings(&self, cache: &Path) -> HubSettings {
        HubSettings {
            endpoint: self.url(),
            cache: cache.to_path_buf(),
            token: None,
            offline: false,
            limits: Limits {
                connect: Duration::from_secs(5),
                reply: Duration::from_secs(20),
                stall: Duration::from_secs(10),
                slowest: 1024,
                attempts: 3,
                pause: Duration::from_millis(1),
            },
        }
    }
}

impl Drop for FakeHub {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

fn read_request(stream: &TcpStream) -> Option<Asked> {
    let mut lines = BufReader::new(stream).lines();
    let path = lines.next()?.ok()?.split(' ').nth(1)?.to_string();
    let mut headers = BTreeMap::new();
    loop {
        let line = lines.next()?.ok()?;
        match line.split_once(':') {
            Some((name, value)) => headers.insert(name.to_lowercase(), value.trim().to_string()),
            None => return Some(Asked { path, headers }),
        };
    }
}

fn send(mut stream: TcpStream, answer: &Answer, stop: &AtomicBool) -> std::io::Result<()> {
    let wait = || {
        while !stop.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    match answer.manner {
        Manner::Silence => wait(),
        Manner::Close => {}
        Manner::Noise => stream.write_all(b"220 smtp.example.org ESMTP ready\r\n\r\n")?,
        _ => {
            let mut head = format!("HTTP/1.1 {} Answer\r\nConnection: close\r\n", answer.status);
            if answer.manner != Manner::NoLength {
                head += &format!("Content-Length: {}\r\n", answer.body.len());
            }
            answer.headers.iter().for_each(|(name, value)| head += &format!("{name}: {value}\r\n"));
            stream.write_all(format!("{head}\r\n").as_bytes())?;
            let part = |length: usize| &answer.body[..length.min(answer.body.len())];
            match answer.manner {
                Manner::Cut(length) => stream.write_all(part(length))?,
                Manner::Stall(length) => {
                    stream.write_all(part(length))?;
                    wait();
                }
                Manner::Drip => {
                    for byte in answer.body.iter().take_while(|_| !stop.load(Ordering::SeqCst)) {
                        stream.write_all(&[*byte])?;
                        std::thread::sleep(Duration::from_millis(20));
                    }
                }
                _ => stream.write_all(&answer.body)?,
            }
        }
    }
    Ok(())
}

/// The commit that every fake model has unless told otherwise.
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A model `org/name` as a well-behaved hub serves it.
#[derive(Clone)]
pub struct FakeModel {
    pub commit: String,
    pub files: BTreeMap<String, Vec<u8>>,
    /// Whether the listing has sizes and hashes.
    pub detailed: bool,
}

/// The bytes of a safetensors file with one tensor of `count` bytes.
pub fn weights(name: &str, count: usize) -> Vec<u8> {
    let header = json!({name: {"dtype": "U8", "shape": [count], "data_offsets": [0, count]}}).to_string();
    let data = (0..count).map(|i| (i * 7 + i / 251) as u8);
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat().into_iter().chain(data).collect()
}

impl FakeModel {
    /// Config, tokenizer, two shards with their index, and files that nobody needs.
    pub fn sharded() -> FakeModel {
        let index = json!({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}});
        let mut model = FakeModel { commit: COMMIT.into(), files: BTreeMap::new(), detailed: true };
        model.set("config.json", "{\"model_type\": \"llama\"}").set("tokenizer.json", "{}").set("LICENSE.txt", "free");
        model.set("model.safetensors.index.json", &index.to_string()).set("README.md", "# no").set("x.bin", "pickle");
        model.files.insert("model-1.safetensors".into(), weights("a", 300_000));
        model.files.insert("model-2.safetensors".into(), weights("b", 1000));
        model
    }

    pub fn set(&mut self, name: &str, text: &str) -> &mut FakeModel {
        self.files.insert(name.into(), text.into());
        self
    }

    pub fn listing(&self) -> Value {
        let entry = |(name, bytes): (&String, &Vec<u8>)| {
            let large = self.detailed && name.ends_with(".safetensors");
            let mut entry = json!({"rfilename": name});
            if self.detailed {
                entry["size"] = json!(bytes.len());
            }
            if large {
                entry["lfs"] = json!({"sha256": sha256(bytes), "size": bytes.len()});
            }
            entry
        };
        json!({"id": "org/name", "sha": self.commit, "siblings": self.files.iter().map(entry).collect::<Vec<_>>()})
    }

    /// Answers as the hub does: listing, and files with ranges.
    pub fn answer(&self, asked: &Asked) -> Answer {
        if asked.path.starts_with("/api/models/org/name/revision/") {
            return Answer::new(200, self.listing().to_string());
        }
        let start = format!("/org/name/resolve/{}/", self.commit);
        let Some(bytes) = asked.path.strip_prefix(&start).and_then(|name| self.files.get(name)) else {
            return Answer::new(404, "Entry not found").with("X-Error-Code", "EntryNotFound");
        };
        let etag = format!("\"{}\"", sha256(bytes));
        match asked.from() {
            0 => Answer::new(200, bytes.clone()),
            from if from >= bytes.len() => Answer::new(416, ""),
            from => Answer::new(206, &bytes[from..])
                .with("Content-Range", &format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len())),
        }
        .with("ETag", &etag)
    }
}

pub fn sha256(bytes: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The larger of the two shards.
pub const SHARD: &str = "model-1.safetensors";

/// Fetches `org/name`.
pub fn get(hub: &FakeHub, cache: &Path) -> Result<PathBuf> {
    resolve_with("org/name", || Ok(hub.settings(cache)), &mut ())
}

/// Takes `org/name` from the cache alone.
pub fn get_offline(hub: &FakeHub, cache: &Path) -> Result<PathBuf> {
    resolve_with("org/name", || Ok(HubSettings { offline: true, ..hub.settings(cache) }), &mut ())
}

/// A hub whose first answers for the first shard are `spoil`ed; with the shard's bytes.
pub fn spoiled(times: usize, spoil: impl Fn(&Asked, Answer) -> Answer + Send + Sync + 'static) -> (FakeHub, Vec<u8>) {
    let model = FakeModel::sharded();
    let bytes = model.files[SHARD].clone();
    let seen = AtomicUsize::new(0);
    let hub = FakeHub::start(move |asked| {
        let answer = model.answer(asked);
        match asked.path.ends_with(SHARD) && seen.fetch_add(1, Ordering::SeqCst) < times {
            true => spoil(asked, answer),
            false => answer,
        }
    });
    (hub, bytes)
}

/// First bytes of the ranges of the first shard that were asked for.
pub fn starts(hub: &FakeHub) -> Vec<usize> {
    hub.asked().iter().filter(|asked| asked.path.ends_with(SHARD)).map(Asked::from).collect()
}
