//! Ten thousand steps: nothing that a step leaves behind adds up. The only test in its process, whose memory it watches.

mod tiny_run;

use llamantino::device::resident_bytes;
use llamantino::train::folder::Beginning;
use llamantino::train::metrics::{EvalRow, StepRow};
use llamantino::train::run::{self, Observer, RunOptions};
use tiny_run::Tiny;

const STEPS: u64 = 10_000;
/// Steps after which caches are filled, logs are open and the allocator has what it needs.
const WARM: u64 = 1_000;
/// What the resident memory may differ by, in bytes: a leak of 64 bytes a step would be more.
const SLACK: u64 = 512 << 10;

/// Resident memory after each hundredth step.
#[derive(Default)]
struct Watch(Vec<(u64, u64)>);

impl Observer for Watch {
    fn note(&mut self, _: &str) {}
    fn warning(&mut self, text: &str) {
        panic!("{text}");
    }
    fn phase(&mut self, _: &str, _: usize, _: usize) {}
    fn step(&mut self, row: &StepRow, _: u64) {
        if row.step.is_multiple_of(100) {
            self.0.push((row.step, resident_bytes()));
        }
    }
    fn evaluation(&mut self, _: &EvalRow) {}
}

#[test]
fn memory_does_not_grow_over_ten_thousand_steps() {
    let tiny = Tiny::new();
    let mut config = tiny.config("long");
    config.data.sequence_length = 16;
    config.lora.r = 2;
    let training = &mut config.training;
    (training.steps, training.micro_batch, training.accumulation) = (STEPS, 1, 1);
    (training.evaluate_every, training.checkpoint_every, training.threads) = (2_000, 500, 1);
    let mut watch = Watch::default();
    let options =
        RunOptions { beginning: Beginning::Auto, allow_config_change: false, stop: &|_| None, chain: None, gpu: None };
    run::run(&config, &options, &mut watch).unwrap();
    assert_eq!(watch.0.last().unwrap().0, STEPS);
    let most = |from: u64, to: u64| {
        let rows = watch.0.iter().filter(|(step, _)| (from..=to).contains(step));
        rows.map(|(_, bytes)| *bytes).max().unwrap()
    };
    let (early, late) = (most(WARM, STEPS / 2), most(STEPS / 2, STEPS));
    println!("resident: {early} bytes at most up to step {}, {late} after it", STEPS / 2);
    assert!(late <= early + SLACK, "{early} bytes, then {late}: {:?}", watch.0);
}
