//! Facts about adapters that need no stored numbers.

use super::delta::Delta;
use super::*;
use crate::ops::testing::{assert_close, assert_same_in_every_pool, bits, normal};
use crate::ops::{Arena, MatRef, WeightRef};
use crate::quant::{quantize, QuantConfig, Values};

const NAME: &str = "model.layers.3.self_attn.q_proj";
const SHAPE: LinearShape = LinearShape { rows: 7, cols: 50 };

#[test]
fn fresh_adapter_is_kaiming_uniform_a_and_zero_b() {
    let mut store = ParamStore::default();
    let shape = LinearShape { rows: 40, cols: 400 };
    let lora = create(&mut store, NAME, shape, &LoraConfig { dropout: 0.1, ..LoraConfig::default() }, None, 5);
    let (a, b) = (store.get(lora.a), store.get(lora.b));
    assert_eq!((a.name.as_str(), a.kind, a.rows, a.cols), (name_of_a(NAME).as_str(), ParamKind::LoraA, 16, 400));
    assert_eq!((b.name.as_str(), b.kind, b.rows, b.cols), (name_of_b(NAME).as_str(), ParamKind::LoraB, 40, 16));
    assert!(b.value.iter().all(|&value| value == 0.0));
    // Uniform in ±1/√400: mean 0, deviation bound/√3.
    assert!(a.value.iter().all(|value| value.abs() <= 0.05));
    let mean = a.value.iter().sum::<f32>() / 6400.0;
    let deviation = (a.value.iter().map(|value| value * value).sum::<f32>() / 6400.0).sqrt();
    assert!(mean.abs() < 2e-3 && (deviation - 0.05 / 3f32.sqrt()).abs() < 1e-3, "{mean} {deviation}");
    assert_eq!((lora.scale, lora.dropout, lora.magnitude, store.len()), (1.0, 0.1, None, 2));
}

#[test]
fn random_values_depend_on_seed_and_name_alone() {
    let values = |names: &[&str], seed| {
        let mut store = ParamStore::default();
        let config = LoraConfig::default();
        let lora: Vec<_> = names.iter().map(|name| create(&mut store, name, SHAPE, &config, None, seed)).collect();
        store.value(lora[lora.len() - 1].a).to_vec()
    };
    let other = "model.layers.4.self_attn.q_proj";
    assert_eq!(values(&[NAME], 5), values(&[other, NAME], 5));
    assert_ne!(values(&[NAME], 5), values(&[NAME], 6));
    assert_ne!(values(&[NAME], 5), values(&[other], 5));
}

#[test]
fn magnitude_is_a_row_of_the_given_values() {
    let mut store = ParamStore::default();
    let config = LoraConfig { dora: true, ..LoraConfig::default() };
    let lora = create(&mut store, NAME, SHAPE, &config, Some(vec![2.0; 7]), 1);
    let magnitude = store.get(lora.magnitude.unwrap());
    assert_eq!((magnitude.kind, magnitude.rows, magnitude.cols), (ParamKind::Magnitude, 1, 7));
    assert_eq!(magnitude.name, "model.layers.3.self_attn.q_proj.lora_magnitude_vector.weight");
}

#[test]
fn scale_is_alpha_by_rank_or_by_its_root_and_exceptions_win() {
    let mut config = LoraConfig { r: 16, alpha: 8.0, ..LoraConfig::default() };
    assert_eq!(config.scale_of(NAME), 0.5);
    config.rslora = true;
    assert_eq!(config.scale_of(NAME), 2.0);
    config.modules.ranks = vec![("layers.3.self_attn.q_proj".into(), 4), ("q_proj".into(), 64)];
    config.modules.alphas = vec![("proj".into(), 1.0)];
    assert_eq!((config.rank_of(NAME), config.alpha_of(NAME)), (4, 8.0), "an exception names whole parts of a name");
    assert_eq!((config.rank_of("model.layers.4.self_attn.q_proj"), config.rank_of("a.k_proj")), (64, 16));
}

#[test]
fn targets_choose_linears_by_the_end_of_their_name() {
    let config = LoraConfig { targets: vec![Target::Q, Target::Down], ..LoraConfig::default() };
    assert!(config.applies_to(NAME) && config.applies_to("model.layers.0.mlp.down_proj"));
    assert!(!config.applies_to("model.layers.0.mlp.up_proj") && !config.applies_to("lm_head"));
    let found: LoraConfig = toml::from_str("r = 8\ntargets = [\"k_proj\", \"gate_proj\"]").unwrap();
    assert_eq!((found.r, found.targets), (8, vec![Target::K, Target::Gate]));
    assert!(toml::from_str::<LoraConfig>("targets = [\"lm_head\"]").is_err());
    assert!(toml::from_str::<LoraConfig>("rank = 8").is_err());
}

#[test]
fn wrong_options_are_all_reported() {
    let config = LoraConfig { r: 0, alpha: f64::NAN, dropout: 1.0, targets: Vec::new(), ..LoraConfig::default() };
    assert_eq!(config.problems().len(), 4, "{:?}", config.problems());
    assert!(LoraConfig::default().problems().is_empty());
}

struct Case {
    rows: usize,
    cols: usize,
    rank: usize,
    w: Vec<f32>,
    a: Vec<f32>,
    b: Vec<f32>,
}

const SCALE: f32 = 1.7;

impl Case {
    fn new(rows: usize, cols: usize, rank: usize) -> Case {
        let w = normal("w", rows * cols);
        Case { rows, cols, rank, w, a: normal("a", rank * cols), b: normal("b", rows * rank) }
    }

    fn all() -> impl Iterator<Item = Case> {
        [(1, 1, 1), (7, 50, 3), (65, 33, 8), (300, 130, 17)].into_iter().map(|(n, k, r)| Case::new(n, k, r))
    }

    fn factors(&self) -> dora::Factors<'_> {
        dora::Factors { a: &self.a, b: &self.b, rank: self.rank, scale: SCALE }
    }

    /// W + s·B·A in f64.
    fn sum(&self, w: &[f32]) -> Vec<f64> {
        let Case { rows, cols, rank, a, b, .. } = self;
        let element = |n: usize, k: usize| {
            let product: f64 = (0..*rank).map(|j| f64::from(b[n * rank + j]) * f64::from(a[j * cols + k])).sum();
            f64::from(w[n * cols + k]) + f64::from(SCALE) * product
        };
        (0..rows * cols).map(|i| element(i / cols, i % cols)).collect()
    }

    fn norms(&self, w: &[f32]) -> Vec<f64> {
        self.sum(w).chunks(self.cols).map(|row| row.iter().map(|value| value * value).sum::<f64>().sqrt()).collect()
    }
}

#[test]
fn weight_norm_is_that_of_the_sum() {
    for case in Case::all() {
        let w = WeightRef::F32(MatRef::new(&case.w, case.rows, case.cols));
        let found = dora::weight_norm(w, &dora::row_norms_squared(w), case.factors(), &Arena::new());
        for (found, expected) in found.iter().zip(case.norms(&case.w)) {
            assert!((f64::from(*found) - expected).abs() <= 1e-6 * expected, "{found} for {expected}");
        }
    }
}

#[test]
fn weight_norm_of_stored_formats_is_that_of_their_values() {
    let case = Case::new(65, 96, 8);
    let half: Vec<u16> = case.w.iter().map(|&value| half::f16::from_f32(value).to_bits()).collect();
    let brain: Vec<u16> = case.w.iter().map(|&value| half::bf16::from_f32(value).to_bits()).collect();
    let nf4 = quantize(Values::F32(&case.w), case.rows, case.cols, QuantConfig::default()).unwrap();
    let (rows, cols) = (case.rows, case.cols);
    let half = WeightRef::F16 { bits: &half, rows, cols };
    let brain = WeightRef::Bf16 { bits: &brain, rows, cols };
    for w in [half, brain, WeightRef::Nf4(&nf4)] {
        let values: Vec<f32> = (0..rows * cols).map(|i| w.at(i / cols, i % cols)).collect();
        let found = dora::weight_norm(w, &dora::row_norms_squared(w), case.factors(), &Arena::new());
        assert_close("norm", &found, &case.norms(&values), 1e-6);
    }
}

#[test]
fn norm_of_a_fresh_adapter_is_that_of_the_weight() {
    let case = Case::new(65, 33, 8);
    let w = WeightRef::F32(MatRef::new(&case.w, case.rows, case.cols));
    let squared = dora::row_norms_squared(w);
    let b = vec![0.0; case.b.len()];
    let found = dora::weight_norm(w, &squared, dora::Factors { b: &b, ..case.factors() }, &Arena::new());
    let expected: Vec<f32> = squared.iter().map(|value| value.sqrt()).collect();
    assert_eq!(found, expected);
}

fn merged(case: &Case, magnitude: Option<&[f32]>, rows_at_once: usize) -> Vec<f32> {
    let delta = Delta {
        a: MatRef::new(&case.a, case.rank, case.cols),
        b: MatRef::new(&case.b, case.rows, case.rank),
        scale: SCALE,
        magnitude,
    };
    let mut w = case.w.clone();
    for (index, rows) in w.chunks_mut(rows_at_once * case.cols).enumerate() {
        let start = index * rows_at_once;
        delta.apply(start..start + rows.len() / case.cols, rows);
    }
    w
}

#[test]
fn merged_weight_is_the_sum_and_with_dora_has_the_magnitude_as_norm() {
    for case in Case::all() {
        let sum = case.sum(&case.w);
        assert_close("merged", &merged(&case, None, case.rows), &sum, 1e-6);
        let magnitude: Vec<f32> = normal("magnitude", case.rows).iter().map(|value| value.abs() + 0.5).collect();
        let rows = sum.chunks(case.cols).zip(case.norms(&case.w)).zip(&magnitude);
        let expected: Vec<f64> =
            rows.flat_map(|((row, norm), &m)| row.iter().map(move |value| f64::from(m) / norm * value)).collect();
        assert_close("merged, dora", &merged(&case, Some(&magnitude), case.rows), &expected, 1e-6);
    }
}

#[test]
fn merging_gives_the_same_bits_in_any_number_of_rows_and_threads() {
    let case = Case::new(65, 33, 8);
    let magnitude = normal("magnitude", case.rows);
    let whole = bits(&merged(&case, Some(&magnitude), case.rows));
    assert_eq!(bits(&merged(&case, Some(&magnitude), 1)), whole);
    assert_eq!(bits(&merged(&case, Some(&magnitude), 16)), whole);
    assert_same_in_every_pool(|| bits(&merged(&case, Some(&magnitude), 20)));
    let w = WeightRef::F32(MatRef::new(&case.w, case.rows, case.cols));
    assert_same_in_every_pool(|| {
        bits(&dora::weight_norm(w, &dora::row_norms_squared(w), case.factors(), &Arena::new()))
    });
}
