//! Every call of a save made to fail, one after the other: no final name ever holds a bad file, nothing old is lost.

use super::faulty::{Fault, FaultyDisk};
use super::tests::{checkpoints, Sample};
use super::*;
use crate::optim::OptimizerKind;

/// Saves step 2 beside step 1, and prunes; the disk goes wrong at call `at`. Gives the result of the save, and whether
/// the call was reached.
fn save_on(disk: &FaultyDisk, place: &Path, sample: &Sample) -> Result<()> {
    let policy = KeepPolicy { last: 1, best: 0 };
    let checkpoints = Checkpoints::on(Arc::new(disk.clone()), &place.join("checkpoints"), policy)?;
    sample.save(&checkpoints)?;
    checkpoints.prune().map(|_| ())
}

/// All checkpoints under final names are whole and hold what was saved; gives their steps.
fn whole_steps(place: &Path, samples: &[&Sample]) -> Vec<u64> {
    let policy = KeepPolicy { last: 1, best: 0 };
    // As it stands: nothing is cleaned up before it is looked at.
    let found = Checkpoints { disk: Arc::new(RealDisk), folder: place.join("checkpoints"), policy };
    let steps = found.steps().unwrap();
    for &step in &steps {
        let restored = found.load(step).unwrap_or_else(|error| panic!("a bad file under a final name: {error}"));
        let mut back = Sample::fresh(OptimizerKind::AdamW8);
        restored.apply(&mut back.params, &mut *back.optimizer).unwrap();
        let saved = samples.iter().find(|sample| sample.state.step == step).unwrap();
        assert!(back.bits() == saved.bits(), "step {step} holds other values");
    }
    steps
}

fn sweep(fault: Fault, names_kept: bool) -> usize {
    let first = Sample::after(1, OptimizerKind::AdamW8);
    let second = Sample::after(2, OptimizerKind::AdamW8);
    for at in 0.. {
        let place = tempfile::tempdir().unwrap();
        first.save(&checkpoints(place.path(), 1, 0)).unwrap();
        let disk = FaultyDisk::new(at, fault);
        let result = save_on(&disk, place.path(), &second);
        let what = format!("{fault:?} at call {at}");
        if !disk.hit() {
            result.unwrap();
            assert_eq!(whole_steps(place.path(), &[&second]), [2]);
            return at;
        }
        if fault == Fault::PowerCut {
            disk.restart(names_kept);
        }
        let steps = whole_steps(place.path(), &[&first, &second]);
        match result {
            Ok(()) => assert_eq!(steps[0], 2, "{what}"),
            Err(error) => {
                let place = place.path().display().to_string();
                assert!(error.message().contains(&place), "{what}: {error} names no file");
            }
        }
        assert!(!steps.is_empty(), "{what}: everything is lost");
        // The disk is well again: the same command goes on and leaves nothing behind.
        let healthy = checkpoints(place.path(), 1, 0);
        second.save(&healthy).unwrap();
        healthy.prune().unwrap();
        assert_eq!(RealDisk.list(&place.path().join("checkpoints")).unwrap(), ["step-000002"], "{what}");
        assert_eq!(whole_steps(place.path(), &[&second]), [2], "{what}");
    }
    unreachable!()
}

#[test]
fn a_call_that_fails_once() {
    for error in [libc::ENOSPC, libc::EIO, libc::EROFS, libc::EDQUOT] {
        let calls = sweep(Fault::Once(error), true);
        assert!(calls > 30, "only {calls} calls were made to fail");
    }
}

#[test]
fn a_disk_that_is_full_from_some_call_on() {
    sweep(Fault::Full, true);
}

#[test]
fn a_disk_that_turns_read_only() {
    sweep(Fault::Readonly, true);
}

#[test]
fn a_power_cut_that_keeps_the_names() {
    sweep(Fault::PowerCut, true);
}

#[test]
fn a_power_cut_that_takes_names_back() {
    sweep(Fault::PowerCut, false);
}

#[test]
fn a_write_that_lies_is_found_when_it_is_read_back() {
    for fault in [Fault::LyingWrite, Fault::FlippedBit] {
        let first = Sample::after(1, OptimizerKind::AdamW8);
        let second = Sample::after(2, OptimizerKind::AdamW8);
        for at in 0.. {
            let place = tempfile::tempdir().unwrap();
            first.save(&checkpoints(place.path(), 1, 0)).unwrap();
            let disk = FaultyDisk::new(at, fault);
            let result = save_on(&disk, place.path(), &second);
            if !disk.hit() {
                assert!(at >= 4, "every file is written");
                break;
            }
            let error = result.unwrap_err();
            assert!(error.message().contains("read back"), "{error}");
            assert_eq!(whole_steps(place.path(), &[&first]), [1]);
        }
    }
}

#[test]
fn short_writes_are_no_fault() {
    for most in [1, 7, 1000] {
        let place = tempfile::tempdir().unwrap();
        let second = Sample::after(2, OptimizerKind::AdamW8);
        save_on(&FaultyDisk::new(0, Fault::ShortWrites(most)), place.path(), &second).unwrap();
        assert_eq!(whole_steps(place.path(), &[&second]), [2]);
    }
}

#[test]
fn a_small_file_holds_the_old_or_the_new() {
    for fault in [Fault::Once(libc::ENOSPC), Fault::Readonly, Fault::Full, Fault::LyingWrite, Fault::PowerCut] {
        for names_kept in [true, false] {
            for at in 0.. {
                let place = tempfile::tempdir().unwrap();
                let path = place.path().join("config.toml");
                std::fs::write(&path, "old").unwrap();
                let disk = FaultyDisk::new(at, fault);
                let result = write_file(&disk, &path, b"new contents");
                if !disk.hit() {
                    result.unwrap();
                    break;
                }
                if fault == Fault::PowerCut {
                    disk.restart(names_kept);
                }
                let text = std::fs::read_to_string(&path).unwrap();
                match result {
                    Ok(()) => assert_eq!(text, "new contents"),
                    Err(_) => assert!(text == "old" || text == "new contents", "{fault:?} at {at}: {text:?}"),
                }
            }
        }
    }
}

#[test]
fn a_vanished_folder_is_a_clear_error() {
    let place = tempfile::tempdir().unwrap();
    let checkpoints = checkpoints(place.path(), 1, 0);
    std::fs::remove_dir_all(place.path().join("checkpoints")).unwrap();
    let error = Sample::after(1, OptimizerKind::AdamW8).save(&checkpoints).unwrap_err();
    assert!(error.message().contains("checkpoints/.tmp-step-000001: cannot create"), "{error}");
}
