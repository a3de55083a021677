//! Damage done to a saved checkpoint: always found, always with the file's name, never a panic.

use super::tests::{checkpoints, Sample};
use super::*;
use crate::ops::RandomStream;
use crate::optim::OptimizerKind;
use std::fs;

const FILES: [&str; 5] = [MANIFEST_FILE, STATE_FILE, PARAMS_FILE, OPTIMIZER_FILE, "README"];

struct Saved {
    _place: tempfile::TempDir,
    checkpoints: Checkpoints,
    path: PathBuf,
}

fn saved() -> Saved {
    let place = tempfile::tempdir().unwrap();
    let checkpoints = checkpoints(place.path(), 9, 0);
    let path = Sample::after(2, OptimizerKind::AdamW8).save(&checkpoints).unwrap();
    Saved { _place: place, checkpoints, path }
}

impl Saved {
    /// The damage is found, and the error names the file it was done to.
    fn expect_found(&self, file: &str, what: &str) {
        match self.checkpoints.load(2) {
            Ok(_) => panic!("{file}: {what} went unnoticed"),
            Err(error) => assert!(error.message().contains(file), "{file}: {what}: the error names another: {error}"),
        }
    }

    fn sweep(&self, file: &str, places: impl Iterator<Item = usize>) {
        let path = self.path.join(file);
        let good = fs::read(&path).unwrap();
        let mut bad = good.clone();
        for place in places {
            for flip in [0x01, 0x20, 0x80, 0xff] {
                bad[place] = good[place] ^ flip;
                fs::write(&path, &bad).unwrap();
                self.expect_found(file, &format!("byte {place} ^ {flip:#x}"));
            }
            bad[place] = good[place];
        }
        fs::write(&path, &good).unwrap();
        self.checkpoints.load(2).unwrap();
    }
}

#[test]
fn every_byte_of_manifest_and_state() {
    let saved = saved();
    for file in [MANIFEST_FILE, STATE_FILE, "README"] {
        let bytes = fs::metadata(saved.path.join(file)).unwrap().len() as usize;
        saved.sweep(file, 0..bytes);
    }
}

#[test]
fn every_byte_of_a_tensor_files_header() {
    let saved = saved();
    for file in [PARAMS_FILE, OPTIMIZER_FILE] {
        let bytes = fs::read(saved.path.join(file)).unwrap();
        let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        saved.sweep(file, 0..8 + header);
    }
}

#[test]
fn random_bytes_of_the_payload() {
    let saved = saved();
    for (index, file) in [PARAMS_FILE, OPTIMIZER_FILE].into_iter().enumerate() {
        let bytes = fs::metadata(saved.path.join(file)).unwrap().len() as usize;
        let order = RandomStream::derive(7, "payload", &[index as u64]).permutation(bytes);
        saved.sweep(file, order.into_iter().take(300));
    }
}

#[test]
fn truncations_and_additions() {
    let saved = saved();
    for file in FILES {
        let path = saved.path.join(file);
        let good = fs::read(&path).unwrap();
        let lengths = (0..good.len().min(64)).chain((64..good.len()).step_by(61)).chain([good.len() - 1]);
        for len in lengths {
            fs::write(&path, &good[..len]).unwrap();
            saved.expect_found(file, &format!("cut to {len} bytes"));
        }
        for more in [&b"\0"[..], b"\n", b"{}"] {
            fs::write(&path, [&good[..], more].concat()).unwrap();
            saved.expect_found(file, "bytes at the end");
        }
        fs::write(&path, &good).unwrap();
        saved.checkpoints.load(2).unwrap();
    }
}

#[test]
fn a_file_that_is_missing_or_no_file() {
    for file in FILES {
        let saved = saved();
        let path = saved.path.join(file);
        fs::remove_file(&path).unwrap();
        saved.expect_found(file, "removal");
        fs::create_dir(&path).unwrap();
        saved.expect_found(file, "a folder in its place");
    }
}

#[test]
fn a_whole_file_of_another_step() {
    for file in FILES {
        let saved = saved();
        let other = Sample::after(3, OptimizerKind::AdamW8).save(&saved.checkpoints).unwrap();
        if file == "README" {
            continue; // the same in both
        }
        fs::copy(other.join(file), saved.path.join(file)).unwrap();
        let error = saved.checkpoints.load(2).unwrap_err();
        assert!(error.message().contains(file), "{error}");
    }
    // Even a whole checkpoint under another one's name.
    let saved = saved();
    fs::rename(&saved.path, saved.checkpoints.path(5)).unwrap();
    let error = saved.checkpoints.load(5).unwrap_err();
    assert!(error.message().contains("manifest.json: step 2: expected 5"), "{error}");
}

#[test]
fn a_manifest_that_claims_too_much_is_not_believed() {
    let saved = saved();
    let path = saved.path.join(MANIFEST_FILE);
    fs::File::create(&path).unwrap().set_len(1 << 40).unwrap();
    saved.expect_found(MANIFEST_FILE, "a terabyte of zeros");
    let newer = "{\"format\": 2, \"something\": \"else\"}";
    fs::write(&path, newer).unwrap();
    let error = saved.checkpoints.load(2).unwrap_err();
    assert!(error.message().ends_with("format 2: expected 1"), "{error}");
}

#[test]
fn the_newest_whole_one_is_found_and_the_bad_ones_are_named() {
    let place = tempfile::tempdir().unwrap();
    let checkpoints = checkpoints(place.path(), 9, 0);
    for steps in 1..=4 {
        Sample::after(steps, OptimizerKind::AdamW).save(&checkpoints).unwrap();
    }
    fs::remove_file(checkpoints.path(4).join(PARAMS_FILE)).unwrap();
    let victim = checkpoints.path(3).join(OPTIMIZER_FILE);
    let mut bytes = fs::read(&victim).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&victim, bytes).unwrap();
    let found = checkpoints.newest_valid().unwrap();
    assert_eq!(found.restored.unwrap().state.step, 2);
    let reasons: Vec<_> = found.rejected.iter().map(|bad| bad.reason.message().to_string()).collect();
    assert!(reasons[0].contains("step-000004/params.safetensors: cannot read"), "{reasons:?}");
    assert!(reasons[1].contains("step-000003/optimizer.safetensors: damaged"), "{reasons:?}");
    let aside = checkpoints.set_aside(&found.rejected).unwrap();
    assert!(aside[0].ends_with("bad-step-000004") && aside[0].exists());
    assert_eq!(checkpoints.steps().unwrap(), [2, 1]);
}
