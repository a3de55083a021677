//! Damage done to everything that is read back: checkpoints, adapters, NF4 folders, merged shards. Every byte of every
//! header flipped, ten thousand random bytes of the payload, a thousand truncations each.
//!
//! What must hold: never a panic, an error that names a file or its folder, and nothing unnoticed where a hash covers
//! it. Hashes cover: all files of a checkpoint (its manifest); every tensor of a base (the hash that each adapter and
//! checkpoint trained on it states, which merging and resuming compare). An adapter outside a checkpoint and the JSON
//! files of a model have none, as Hugging Face's formats give them none: there a flipped digit is another value.

mod tiny_run;

use llamantino::adapter::peft;
use llamantino::checkpoint::{Checkpoints, KeepPolicy};
use llamantino::error::Result;
use llamantino::export::{merge_folder, quantize_folder, MergeJob};
use llamantino::model::weights::{base_hash, HashDepth};
use llamantino::model::{self, Checkpoint, LoadOptions, ModelConfig};
use llamantino::quant::QuantConfig;
use std::fs;
use std::path::{Path, PathBuf};
use tiny_run::{finish, Numbers, Tiny};

const PAYLOAD_BYTES: usize = 10_000;
const TRUNCATIONS: usize = 1_000;

/// What is read, and what tells that it was read right.
struct Subject<'a> {
    /// Its folder.
    folder: &'a Path,
    /// Reads all of it; gives its hash, or nothing where an error is the only way to notice damage.
    read: &'a dyn Fn() -> Result<Option<String>>,
    /// Whether damage to the header of a tensor file, and to its payload, is always noticed.
    covers: (bool, bool),
}

/// Counts of a sweep: what was done, and how much of it was noticed.
#[derive(Default, Debug)]
struct Count {
    done: usize,
    noticed: usize,
}

impl Subject<'_> {
    /// Reads it with `bad` in the place of `file`.
    fn try_with(&self, file: &Path, bad: &[u8], expected: &Option<String>, (what, covered): (&str, bool)) -> bool {
        // A new file, and not the old one overwritten: nobody's mapping of the old one changes.
        fs::remove_file(file).unwrap();
        fs::write(file, bad).unwrap();
        let noticed = match (self.read)() {
            Ok(found) => found.is_some() && found != *expected,
            Err(error) => {
                let message = error.message();
                assert!(message.contains(&self.folder.display().to_string()), "{what}: {message}");
                true
            }
        };
        assert!(noticed || !covered, "{}: {what} went unnoticed", file.display());
        noticed
    }

    /// Does all damage to a tensor file.
    fn sweep_tensors(&self, file: &Path, seed: u64) {
        let good = fs::read(file).unwrap();
        let expected = (self.read)().unwrap();
        let header = 8 + u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
        let mut numbers = Numbers(seed);
        let (in_header, in_payload) = self.covers;
        let (mut headers, mut payload, mut cuts) = (Count::default(), Count::default(), Count::default());
        let flip = |place: usize, bits: u8, covered: bool, count: &mut Count| {
            let mut bad = good.clone();
            bad[place] ^= bits;
            count.done += 1;
            let what = format!("byte {place} ^ {bits:#x}");
            count.noticed += usize::from(self.try_with(file, &bad, &expected, (&what, covered)));
        };
        for place in 0..header {
            flip(place, 1 << (numbers.next() % 8), in_header, &mut headers);
        }
        for _ in 0..PAYLOAD_BYTES {
            let (place, bits) = (numbers.next() as usize, numbers.next() as u8);
            flip(header + place % (good.len() - header), bits.max(1), in_payload, &mut payload);
        }
        for cut in 0..TRUNCATIONS {
            // Short ones, those around the end of the header, and any others.
            let len = match cut {
                0..100 => cut,
                100..200 => header - 50 + (cut - 100),
                200..300 => good.len() - (cut - 199),
                _ => numbers.next() as usize % good.len(),
            };
            cuts.done += 1;
            let what = format!("cut to {len} bytes");
            cuts.noticed += usize::from(self.try_with(file, &good[..len], &expected, (&what, true)));
        }
        fs::write(file, &good).unwrap();
        assert_eq!((self.read)().unwrap(), expected);
        println!("{}: header {headers:?}, payload {payload:?}, truncations {cuts:?}", file.display());
    }

    /// Flips every byte of a small text file and cuts it everywhere; `covered` if a hash tells.
    fn sweep_text(&self, file: &Path, covered: bool) {
        let good = fs::read(file).unwrap();
        let expected = (self.read)().unwrap();
        for place in 0..good.len() {
            for bits in [0x01, 0x20, 0x80] {
                let mut bad = good.clone();
                bad[place] ^= bits;
                self.try_with(file, &bad, &expected, (&format!("byte {place} ^ {bits:#x}"), covered));
            }
            self.try_with(file, &good[..place], &expected, (&format!("cut to {place} bytes"), covered));
        }
        fs::write(file, &good).unwrap();
        assert_eq!((self.read)().unwrap(), expected);
    }
}

/// A finished run of one step.
fn trained() -> (Tiny, PathBuf) {
    let tiny = Tiny::new();
    let mut config = tiny.config("run");
    config.training.steps = 1;
    config.data.held_out_files.clear();
    finish(&config);
    let folder = config.folder();
    (tiny, folder)
}

#[test]
fn checkpoints() {
    let (_tiny, run) = trained();
    let checkpoints = Checkpoints::open(&run.join("checkpoints"), KeepPolicy { last: 1, best: 0 }).unwrap();
    let folder = checkpoints.path(1);
    let read = || checkpoints.load(1).map(|_| None);
    let subject = Subject { folder: &folder, read: &read, covers: (true, true) };
    for (seed, file) in
        ["params.safetensors", "optimizer.safetensors", "adapter/adapter_model.safetensors"].into_iter().enumerate()
    {
        subject.sweep_tensors(&folder.join(file), seed as u64);
    }
    for file in ["manifest.json", "state.json", "adapter/adapter_config.json", "adapter/llamantino.json"] {
        subject.sweep_text(&folder.join(file), true);
    }
}

#[test]
fn adapters() {
    let (_tiny, run) = trained();
    let folder = run.join("adapter");
    let read = || peft::read(&folder).map(|_| None);
    let subject = Subject { folder: &folder, read: &read, covers: (false, false) };
    subject.sweep_tensors(&folder.join("adapter_model.safetensors"), 11);
    subject.sweep_text(&folder.join("adapter_config.json"), false);
    subject.sweep_text(&folder.join("llamantino.json"), false);
}

/// Reads a model folder as training does, and gives the hash by which it is known.
fn read_model(folder: &Path) -> Result<Option<String>> {
    let config = ModelConfig::from_folder(folder)?;
    let checkpoint = Checkpoint::open(folder)?;
    model::load(&config, &checkpoint, &LoadOptions::frozen(8), &mut |_, _| {})?;
    base_hash(&checkpoint, HashDepth::Full).map(Some)
}

#[test]
fn nf4_folders() {
    let tiny = Tiny::new();
    let folder = tiny.path("nf4");
    quantize_folder(&tiny.model(), &folder, QuantConfig::default(), &mut |_, _, _| {}).unwrap();
    let read = || read_model(&folder);
    let subject = Subject { folder: &folder, read: &read, covers: (false, true) };
    subject.sweep_tensors(&folder.join("model.safetensors"), 21);
    subject.sweep_text(&folder.join("config.json"), false);
}

#[test]
fn merged_shards() {
    let (tiny, run) = trained();
    let folder = tiny.path("merged");
    let job = MergeJob {
        base: tiny.model(),
        adapter: run.join("adapter"),
        out: folder.clone(),
        dtype: None,
        shard_bytes: 200 << 10,
        any_base: false,
        dequantize_base: false,
    };
    merge_folder(&job, &mut |_, _, _| {}).unwrap();
    let entries = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
    let mut shards: Vec<PathBuf> =
        entries.filter(|path| path.extension().is_some_and(|e| e == "safetensors")).collect();
    shards.sort_unstable();
    assert!(shards.len() >= 2, "{shards:?}");
    let read = || read_model(&folder);
    let subject = Subject { folder: &folder, read: &read, covers: (false, true) };
    subject.sweep_tensors(&shards[0], 31);
    subject.sweep_text(&folder.join("model.safetensors.index.json"), false);
}
