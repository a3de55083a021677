//! Optimizers, clipping and schedules against torch, transformers and bitsandbytes.

use crate::golden_data::{Differences, Golden};
use llamantino::ops::{Gradients, Param, ParamId, ParamKind, ParamStore};
use llamantino::optim::{clip, Optimizer, OptimizerConfig, OptimizerKind, ScheduleConfig, ScheduleKind, StateValues};

#[test]
fn optim() {
    let golden = Golden::load("optim/optim");
    let mut differences = Differences::default();
    let defaults = OptimizerConfig { learning_rate: 1e-2, ..OptimizerConfig::default() };
    adamw(&golden, "adamw", &defaults, &mut differences);
    let decayed = OptimizerConfig { betas: [0.9, 0.95], eps: 1e-6, weight_decay: 0.1, ..defaults.clone() };
    adamw(&golden, "adamw_wd", &decayed, &mut differences);
    let small = OptimizerConfig { kind: OptimizerKind::AdamW8, weight_decay: 0.01, ..defaults };
    adamw8(&golden, &small, &mut differences);
    schedules(&golden, &mut differences);
    clipping(&golden, &mut differences);
    differences.finish("optim");
}

/// Parameters with the values of the golden tensors of these names.
fn store(golden: &Golden, prefix: &str, names: &[&str]) -> ParamStore {
    let mut store = ParamStore::default();
    for name in names {
        let value = golden.tensor(&format!("{prefix}{name}")).f32();
        store.add(Param { name: (*name).into(), kind: ParamKind::Weight, rows: 1, cols: value.len(), value });
    }
    store
}

/// Five steps with gradient `i` of parameter `NAME` in `gradient(i, NAME)`.
fn five_steps(
    golden: &Golden,
    config: &OptimizerConfig,
    store: &mut ParamStore,
    gradient: impl Fn(usize, &str) -> String,
) -> Box<dyn Optimizer> {
    let mut optimizer = config.build(store);
    for step in 0..5 {
        let mut gradients = Gradients::zeros(store);
        for (index, param) in store.iter().enumerate() {
            let values = golden.tensor(&gradient(step, &param.name)).f32();
            gradients.get_mut(ParamId(index)).copy_from_slice(&values);
        }
        optimizer.step(store, &gradients, &config.learning_rates(1.0), 1.0);
    }
    optimizer
}

/// The stored values of all steps are views of one tensor, so that only those after the last step are its own.
fn adamw(golden: &Golden, case: &str, config: &OptimizerConfig, differences: &mut Differences) {
    let mut store = store(golden, "adamw.start.", &["a", "b"]);
    let optimizer = five_steps(golden, config, &mut store, |step, name| format!("adamw.grad{step}.{name}"));
    for param in store.iter() {
        let what = format!("{case}.after4.{}", param.name);
        differences.close(&what, &golden.tensor(&what).f32(), &param.value, 1e-6);
    }
    for tensor in optimizer.state() {
        let (name, moment) = tensor.name.split_once('.').unwrap();
        let what = format!("{case}.final_{}.{name}", if moment == "exp_avg" { "m" } else { "v" });
        let StateValues::F32(values) = tensor.values else { panic!("{}: not f32", tensor.name) };
        differences.close(&what, &golden.tensor(&what).f32(), values, 1e-6);
    }
}

fn adamw8(golden: &Golden, config: &OptimizerConfig, differences: &mut Differences) {
    let mut store = store(golden, "adam8.", &["start"]);
    let optimizer = five_steps(golden, config, &mut store, |step, _| format!("adam8.grad{step}"));
    let expected = golden.tensor("adam8.final").f32();
    differences.close("adam8.final", &expected, store.value(ParamId(0)), 1e-6);
    for tensor in optimizer.state() {
        let what = tensor.name.replace("start", "adam8");
        let expected = golden.tensor(&what);
        match tensor.values {
            StateValues::F32(values) => differences.close(&what, &expected.f32(), values, 1e-6),
            // A value on the border between two codes may fall to either side.
            StateValues::U8(codes) => {
                let far = codes.iter().zip(&expected.bytes).filter(|(a, b)| a.abs_diff(**b) > 1).count();
                let other = codes.iter().zip(&expected.bytes).filter(|(a, b)| a != b).count();
                differences
                    .check(far == 0 && other * 1000 <= codes.len() && codes.len() == expected.bytes.len(), || {
                        format!("{what}: {other} of {} codes differ, {far} by more than one", codes.len())
                    });
            }
        }
    }
}

fn schedules(golden: &Golden, differences: &mut Differences) {
    let cases = [
        ("cosine_w10_n50", ScheduleKind::Cosine, 10, 50),
        ("cosine_w0_n20", ScheduleKind::Cosine, 0, 20),
        ("cosine_w3_n100", ScheduleKind::Cosine, 3, 100),
        ("linear_w10_n50", ScheduleKind::Linear, 10, 50),
        ("constant_w10", ScheduleKind::Constant, 10, 20),
    ];
    for (name, kind, warmup, total) in cases {
        let schedule = ScheduleConfig { kind, warmup_steps: Some(warmup), ..ScheduleConfig::default() };
        for (step, expected) in golden.tensor(&format!("sched.{name}")).f64().into_iter().enumerate() {
            let found = schedule.multiplier(step as u64, total);
            differences.check((found - expected).abs() <= 1e-12, || {
                format!("sched.{name}, step {step}: expected {expected}, found {found}")
            });
        }
    }
}

fn clipping(golden: &Golden, differences: &mut Differences) {
    let store = store(golden, "clip.", &["in0", "in1"]);
    let mut gradients = Gradients::zeros(&store);
    for (gradient, param) in gradients.iter_mut().zip(store.iter()) {
        gradient.copy_from_slice(&param.value);
    }
    for max_norm in [0.3, 1.0, 1000.0] {
        let norm = clip::global_norm(&gradients);
        let what = format!("clip.{max_norm}.norm");
        differences.close(&what, &golden.tensor(&what).f32(), &[norm as f32], 1e-6);
        let factor = clip::scale(norm, max_norm);
        for (index, gradient) in gradients.iter().enumerate() {
            let found: Vec<f32> = gradient.iter().map(|value| value * factor).collect();
            let what = format!("clip.{max_norm}.out{index}");
            differences.close(&what, &golden.tensor(&what).f32(), &found, 1e-6);
        }
    }
}
