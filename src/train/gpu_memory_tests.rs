//! A card whose memory others take while a run is on it: the run ends with what was planned, what there is, and what can
//! be done, and goes on from its checkpoint when the memory is there again.

use super::config::RunConfig;
use super::folder::Beginning;
use super::gpu_tests::{adapter, config};
use super::memory::{gpu, Situation};
use super::metrics::{EvalRow, StepRow};
use super::recompute::Recompute;
use super::run::{run, Observer, RunOptions};
use crate::device::cuda::emulator::emulator_that_changes;
use crate::error::{Error, Result};
use crate::ops::gpu::{Buffer, Gpu};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;

/// When something else takes what is left of the card.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Moment {
    Planned,
    Loading,
    Loaded,
    Evaluated,
    Never,
}

struct Crowded<'a> {
    moment: Moment,
    limit: Arc<AtomicUsize>,
    card: &'a Gpu,
    /// What the run held and did not use at that moment, so that it must ask for more.
    rest: Vec<Buffer<u8>>,
}

impl Crowded<'_> {
    fn reached(&mut self, moment: Moment) {
        if moment == self.moment {
            self.limit.store(0, Ordering::Relaxed);
            self.rest.extend(std::iter::from_fn(|| self.card.buffer(1, 4096).ok()));
        }
    }
}

impl Observer for Crowded<'_> {
    fn note(&mut self, text: &str) {
        if text.starts_with("GPU memory: about") {
            self.reached(Moment::Planned);
        } else if text.contains("trainable values") {
            self.reached(Moment::Loaded);
        }
    }
    fn warning(&mut self, _: &str) {}
    fn phase(&mut self, what: &str, done: usize, total: usize) {
        if what == "loading the model" && done == total / 2 {
            self.reached(Moment::Loading);
        }
    }
    fn step(&mut self, _: &StepRow, _: u64) {}
    fn evaluation(&mut self, _: &EvalRow) {
        self.reached(Moment::Evaluated);
    }
}

const ROOM: usize = 1 << 30;

/// A run of `config` to a step on a card of its own, from which everything that is free is taken at `moment`.
fn go(config: &RunConfig, moment: Moment, until: u64) -> Option<Result<()>> {
    let limit = Arc::new(AtomicUsize::new(ROOM));
    let card = emulator_that_changes(limit.clone()).map(Gpu::new)?;
    let stop = |step: u64| (step >= until).then(|| "the test".to_string());
    let (beginning, gpu) = (Beginning::Auto, Some(&card));
    let options = RunOptions { beginning, allow_config_change: false, stop: &stop, chain: None, gpu };
    let mut observer = Crowded { moment, limit, card: &card, rest: Vec::new() };
    Some(run(config, &options, &mut observer).map(drop))
}

/// Message and hint of an error that must say all there is to say.
fn told(error: &Error) -> String {
    let (message, hint) = (error.message(), error.hint_text().unwrap_or_default());
    let parts =
        ["GPU memory ran out: ", "emulated GPU: no memory for ", " are free; planned were ", "the run can have "];
    for part in parts {
        assert!(message.contains(part), "{message}");
    }
    assert!(hint.contains("nvidia-smi") && hint.contains("--device cuda:1"), "{hint}");
    assert!(!format!("{message}{hint}").contains('\n') || hint.contains("each of these is enough:\n"), "{hint}");
    format!("{message}\n{hint}")
}

#[test]
fn a_run_that_others_leave_no_memory_ends_with_the_plan() {
    let folder = tempfile::tempdir().unwrap();
    for moment in [Moment::Planned, Moment::Loading, Moment::Loaded, Moment::Evaluated] {
        let mut config = config(folder.path(), &format!("{moment:?}"));
        config.training.steps = 1;
        let Some(result) = go(&config, moment, u64::MAX) else { return };
        told(&result.expect_err("no memory"));
    }
}

#[test]
fn it_goes_on_when_the_memory_is_there_again() {
    let folder = tempfile::tempdir().unwrap();
    let [whole, stopped] = ["whole", "stopped"].map(|name| {
        let mut config = config(folder.path(), name);
        (config.training.steps, config.training.checkpoint_every) = (2, 1);
        config.data.held_out_fraction = 0.0;
        config
    });
    let Some(result) = go(&whole, Moment::Never, u64::MAX) else { return };
    result.unwrap();
    go(&stopped, Moment::Never, 1).unwrap().expect_err("stopped");
    told(&go(&stopped, Moment::Loaded, u64::MAX).unwrap().expect_err("no memory"));
    go(&stopped, Moment::Never, u64::MAX).unwrap().unwrap();
    assert!(adapter(&stopped) == adapter(&whole), "the error changed the adapter");
}

#[test]
fn the_hint_is_what_fits_now() {
    let folder = tempfile::tempdir().unwrap();
    let hint = |change: &dyn Fn(&mut RunConfig), share: f64| {
        let mut config = config(folder.path(), "hint");
        (config.data.sequence_length, config.training.micro_batch) = (256, 8);
        change(&mut config);
        let plan = Situation::of(&config).unwrap().on_gpu(None).plan();
        let bytes = (plan.peak() - gpu::CONTEXT) as f64 * share;
        let card = Gpu::new(emulator_that_changes(Arc::new(AtomicUsize::new(bytes as usize)))?);
        let error = card.buffer::<f32>(1, 1 << 30).err().expect("no memory for 4 GiB");
        assert!(error.is_out_of_memory());
        let error = gpu::explain(&config, &plan, &card, error);
        Some(told(&error))
    };
    let Some(anew) = hint(&|_| {}, 0.8) else { return };
    assert!(
        anew.contains("the same command goes on from the last checkpoint with a new plan for what is free; "),
        "{anew}"
    );
    assert!(anew.contains("blocks are computed again; "), "{anew}");
    assert!(anew.contains("--set training.memory_limit_gib=0."), "{anew}");
    let off = |config: &mut RunConfig| config.training.recompute = Recompute::Off;
    let remedies = hint(&off, 0.8).unwrap();
    assert!(remedies.contains("\n  --set training.recompute=auto  ("), "{remedies}");
    assert!(remedies.contains("\n  --set training.micro_batch=1 --set training.accumulation=16  ("), "{remedies}");
    let nothing = hint(&off, 0.01).unwrap();
    assert!(nothing.contains("no setting makes this model fit"), "{nothing}");
}

#[test]
fn other_errors_stay_as_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path(), "other");
    let plan = Situation::of(&config).unwrap().on_gpu(None).plan();
    let Some(card) = emulator_that_changes(Arc::new(AtomicUsize::new(ROOM))).map(Gpu::new) else { return };
    let error = gpu::explain(&config, &plan, &card, Error::failed("a broken file").hint("mend it"));
    assert_eq!((error.message(), error.hint_text()), ("a broken file", Some("mend it")));
}
