//! Facts about the optimizers, clipping and schedules that need no stored numbers.

use super::dynamic_map::{DynamicMap, SIGNED, UNSIGNED};
use super::*;
use crate::ops::{Param, ParamId, ParamKind, RandomStream};

fn random(len: usize, label: &str, scale: f32) -> Vec<f32> {
    let stream = RandomStream::derive(11, label, &[]);
    (0..len as u64).map(|i| stream.normal(i) * scale).collect()
}

/// Odd sizes, a tensor of several chunks, one that AdamW8 keeps in f32 and one with a short last block.
fn store() -> ParamStore {
    let mut store = ParamStore::default();
    let shapes = [
        (ParamKind::LoraA, 3, 7),
        (ParamKind::LoraB, 211, 173),
        (ParamKind::Norm, 1, 33),
        (ParamKind::Head, 65, 64),
        (ParamKind::Bias, 1, 1),
    ];
    for (index, (kind, rows, cols)) in shapes.into_iter().enumerate() {
        let name = format!("layer.{index}.weight");
        store.add(Param { value: random(rows * cols, &name, 1.0), name, kind, rows, cols });
    }
    store
}

fn gradients(store: &ParamStore, step: usize) -> Gradients {
    let mut gradients = Gradients::zeros(store);
    for (index, values) in gradients.iter_mut().enumerate() {
        values.copy_from_slice(&random(values.len(), &format!("gradient {index} {step}"), 0.1));
    }
    gradients
}

fn config(kind: OptimizerKind) -> OptimizerConfig {
    OptimizerConfig { kind, learning_rate: 1e-2, weight_decay: 0.1, eps: 1e-6, ..OptimizerConfig::default() }
}

fn run(kind: OptimizerKind, steps: std::ops::Range<usize>, store: &mut ParamStore, optimizer: &mut dyn Optimizer) {
    for step in steps {
        let rates = config(kind).learning_rates(1.0 / (step + 1) as f64);
        let gradients = gradients(store, step);
        optimizer.step(store, &gradients, &rates, 0.5);
    }
}

fn values(store: &ParamStore) -> Vec<Vec<f32>> {
    store.iter().map(|param| param.value.clone()).collect()
}

fn owned(optimizer: &dyn Optimizer) -> OptimizerState {
    let tensors = optimizer.state().into_iter().map(|tensor| (tensor.name, tensor.values.to_owned())).collect();
    OptimizerState { steps: optimizer.steps(), tensors }
}

#[test]
fn adamw_equals_the_formula_in_f64() {
    let (mut store, config) = (store(), config(OptimizerKind::AdamW));
    let mut expected: Vec<Vec<[f64; 3]>> =
        store.iter().map(|p| p.value.iter().map(|&value| [f64::from(value), 0.0, 0.0]).collect()).collect();
    let mut optimizer = config.build(&store);
    for step in 0..6 {
        let gradients = gradients(&store, step);
        let rates = config.learning_rates(0.7);
        for (index, param) in store.iter().enumerate() {
            let decayed = !matches!(param.kind, ParamKind::Norm | ParamKind::Bias);
            let rate = 0.7 * config.learning_rate;
            let (c1, c2) = (1.0 - 0.9f64.powi(step as i32 + 1), 1.0 - 0.999f64.powi(step as i32 + 1));
            for (state, &g) in expected[index].iter_mut().zip(gradients.get(ParamId(index))) {
                let g = f64::from(g) * 0.25;
                let [p, m, v] = *state;
                let (m, v) = (0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g);
                let p = if decayed { p * (1.0 - rate * config.weight_decay) } else { p };
                *state = [p - rate * (m / c1) / ((v / c2).sqrt() + config.eps), m, v];
            }
        }
        optimizer.step(&mut store, &gradients, &rates, 0.25);
    }
    for (param, expected) in store.iter().zip(&expected) {
        for (&found, expected) in param.value.iter().zip(expected) {
            assert!((f64::from(found) - expected[0]).abs() < 1e-6 * expected[0].abs().max(1.0), "{}", param.name);
        }
    }
}

#[test]
fn result_does_not_depend_on_the_number_of_threads() {
    for kind in [OptimizerKind::AdamW, OptimizerKind::AdamW8] {
        let once = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let mut store = store();
                let mut optimizer = config(kind).build(&store);
                run(kind, 0..3, &mut store, &mut *optimizer);
                (values(&store), clip::global_norm(&gradients(&store, 9)).to_bits())
            })
        };
        assert_eq!(once(1), once(3));
    }
}

#[test]
fn restored_optimizer_continues_bit_for_bit() {
    for kind in [OptimizerKind::AdamW, OptimizerKind::AdamW8] {
        let mut straight = store();
        let mut optimizer = config(kind).build(&straight);
        run(kind, 0..2, &mut straight, &mut *optimizer);
        let saved = owned(&*optimizer);
        let mut resumed = straight.clone();
        run(kind, 2..5, &mut straight, &mut *optimizer);

        let mut optimizer = config(kind).build(&resumed);
        optimizer.restore(saved).unwrap();
        run(kind, 2..5, &mut resumed, &mut *optimizer);
        assert_eq!(values(&straight), values(&resumed));
    }
}

#[test]
fn restore_refuses_what_does_not_fit_and_changes_nothing() {
    for kind in [OptimizerKind::AdamW, OptimizerKind::AdamW8] {
        let mut store = store();
        let mut optimizer = config(kind).build(&store);
        run(kind, 0..2, &mut store, &mut *optimizer);
        let saved = owned(&*optimizer);
        let name = if kind == OptimizerKind::AdamW { "layer.1.weight.exp_avg" } else { "layer.1.weight.state1" };

        let mut missing = saved.clone();
        missing.tensors.remove(name);
        let mut short = saved.clone();
        short.tensors.insert(name.into(), StateValues::F32(vec![0.0; 5]));
        let mut unknown = saved.clone();
        unknown.tensors.insert("other.exp_avg".into(), StateValues::F32(vec![0.0; 5]));
        for (state, what) in [(missing, "missing"), (short, "expected 36503"), (unknown, "no trainable parameter")] {
            let error = optimizer.restore(state).unwrap_err();
            assert!(error.message().contains(what), "{error}");
            assert_eq!(owned(&*optimizer).tensors, saved.tensors);
        }
    }
}

#[test]
fn eight_bit_state_stays_near_the_full_one() {
    let (mut full, mut small) = (store(), store());
    let start = values(&full);
    let mut optimizer = config(OptimizerKind::AdamW).build(&full);
    run(OptimizerKind::AdamW, 0..5, &mut full, &mut *optimizer);
    let mut optimizer8 = config(OptimizerKind::AdamW8).build(&small);
    run(OptimizerKind::AdamW8, 0..5, &mut small, &mut *optimizer8);
    assert!(optimizer8.state_bytes() * 3 < optimizer.state_bytes());
    let (full, small) = (values(&full), values(&small));
    assert_eq!(full[0], small[0], "tensors under 4096 values keep f32 state");
    let distance = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt();
    assert!(distance(&full[1], &small[1]) < 0.05 * distance(&full[1], &start[1]));
    assert_ne!(full[1], small[1]);
}

#[test]
fn eight_bit_blocks_of_zeros_and_of_underflow_stay_finite() {
    let mut store = ParamStore::default();
    let (rows, cols) = (16, 256);
    store.add(Param { name: "w".into(), kind: ParamKind::Weight, rows, cols, value: vec![1.0; rows * cols] });
    let mut gradients = Gradients::zeros(&store);
    gradients.get_mut(ParamId(0))[256..512].fill(1e-20);
    gradients.get_mut(ParamId(0))[512..768].fill(1e-38);
    let mut optimizer = OptimizerConfig { weight_decay: 0.0, ..config(OptimizerKind::AdamW8) }.build(&store);
    for _ in 0..3 {
        optimizer.step(&mut store, &gradients, &LearningRates::uniform(1e-2), 1.0);
    }
    assert!(store.value(ParamId(0)).iter().all(|&value| value == 1.0));
}

fn code(map: &DynamicMap, value: f32) -> usize {
    usize::from(map.code(DynamicMap::point(value)))
}

#[test]
fn code_of_a_value_is_the_nearest_to_its_point_of_the_grid() {
    for (map, smallest) in [(&*SIGNED, -1.0f32), (&*UNSIGNED, 0.0)] {
        assert!(map.values.is_sorted_by(|a, b| a < b));
        let nearest = |value: f32| map.values.iter().map(|v| (v - value).abs()).fold(f32::INFINITY, f32::min);
        let stream = RandomStream::new(3, 4);
        for i in 0..20_000 {
            let value = stream.uniform(i) * (1.0 - smallest) + smallest;
            let found = (map.values[code(map, value)] - value).abs();
            assert!(found <= nearest(value) + 2.0 / 65_535.0 + 1e-6, "{value}: distance {found}");
        }
        assert_eq!((code(map, 1.0), code(map, -1.0), code(map, f32::NAN)), (255, 0, 0));
    }
}

#[test]
fn second_moment_code_of_a_small_value_is_never_that_of_zero() {
    assert!([0.0, 1e-30, 1e-7, 1e-5].iter().all(|&value| UNSIGNED.values[code(&UNSIGNED, value)] > 1e-5));
}

#[test]
fn learning_rates_follow_the_kind_of_parameter() {
    let config = OptimizerConfig {
        learning_rate: 1e-3,
        lora_plus_ratio: 16.0,
        embedding_learning_rate: Some(1e-5),
        ..OptimizerConfig::default()
    };
    let rates = config.learning_rates(0.5);
    assert_eq!(rates.of(ParamKind::LoraA), 5e-4);
    assert_eq!(rates.of(ParamKind::LoraB), 8e-3);
    assert_eq!(rates.of(ParamKind::Magnitude), 5e-4);
    assert_eq!((rates.of(ParamKind::Embedding), rates.of(ParamKind::Head)), (5e-6, 5e-6));
    assert_eq!(OptimizerConfig::default().learning_rates(1.0), LearningRates::uniform(2e-4));
}

#[test]
fn clipping_brings_the_norm_down_to_the_limit_and_never_up() {
    let store = store();
    let gradients = gradients(&store, 0);
    let exact = gradients.iter().flatten().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt();
    let norm = clip::global_norm(&gradients);
    assert!((norm - exact).abs() < 1e-12 * exact);
    assert!((f64::from(clip::scale(norm, 0.3)) * norm - 0.3).abs() < 1e-6);
    assert_eq!(clip::scale(0.1, 0.3), 1.0);
    assert_eq!(clip::scale(norm, 0.0), 1.0);
    assert_eq!(clip::global_norm(&Gradients::default()), 0.0);
}

#[test]
fn norm_of_values_that_overflow_when_squared_is_exact_and_of_a_bad_one_not_finite() {
    let mut store = ParamStore::default();
    store.add(Param { name: "w".into(), kind: ParamKind::Weight, rows: 1, cols: 2, value: vec![0.0; 2] });
    let mut gradients = Gradients::zeros(&store);
    gradients.get_mut(ParamId(0)).copy_from_slice(&[3e30, 4e30]);
    assert!((clip::global_norm(&gradients) / 5e30 - 1.0).abs() < 1e-6);
    gradients.get_mut(ParamId(0))[1] = f32::NAN;
    assert!(!clip::global_norm(&gradients).is_finite());
}

#[test]
fn warmup_ratio_is_rounded_up_and_steps_win_over_it() {
    let ratio = ScheduleConfig { warmup_ratio: 0.03, ..ScheduleConfig::default() };
    assert_eq!((ratio.warmup(100), ratio.warmup(101), ratio.warmup(0)), (3, 4, 0));
    let steps = ScheduleConfig { warmup_steps: Some(0), ..ratio };
    assert_eq!(steps.warmup(100), 0);
    assert_eq!(steps.multiplier(0, 100), 1.0);
}

#[test]
fn wrong_options_are_all_reported() {
    let config =
        OptimizerConfig { learning_rate: -1.0, betas: [0.9, 1.0], eps: f64::NAN, ..OptimizerConfig::default() };
    let problems = config.problems();
    assert_eq!(problems.len(), 3, "{problems:?}");
    assert_eq!(problems[0], "learning_rate = -1: expected a number above 0");
    assert!(OptimizerConfig::default().problems().is_empty());
    assert_eq!(ScheduleConfig { warmup_ratio: 3.0, ..ScheduleConfig::default() }.problems().len(), 1);
}

#[test]
fn unknown_options_are_refused_and_missing_ones_have_defaults() {
    let found: OptimizerConfig = toml::from_str("kind = \"adamw8bit\"\nlearning_rate = 1e-3").unwrap();
    assert_eq!(found.kind, OptimizerKind::AdamW8);
    assert_eq!(found.betas, [0.9, 0.999]);
    assert!(toml::from_str::<OptimizerConfig>("learning_rat = 1e-3").is_err());
    assert!(toml::from_str::<ScheduleConfig>("kind = \"step\"").is_err());
}
