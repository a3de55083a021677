//! Tests of the fused head: candle in f64, finite differences, ignored rows, chunks, extreme logits, other pools.

use super::*;
use crate::ops::testing::{assert_close, assert_derivative, assert_same_in_every_pool, bits, normal};
use crate::ops::RandomStream;

struct Case {
    hidden: Vec<f32>,
    weight: Vec<f32>,
    targets: Vec<i32>,
    vocabulary: usize,
}

/// Logits of standard deviation 2; every row whose number is in `ignored` has no target.
fn case(tokens: usize, vocabulary: usize, features: usize, ignored: impl Fn(usize) -> bool) -> Case {
    let spread = 2.0 / (features as f32).sqrt();
    let weight = normal("weight", vocabulary * features).iter().map(|w| w * spread).collect();
    let stream = RandomStream::derive(3, "targets", &[]);
    let target = |t: usize| if ignored(t) { IGNORE } else { (stream.word(t as u64) % vocabulary as u32) as i32 };
    Case { hidden: normal("hidden", tokens * features), weight, targets: (0..tokens).map(target).collect(), vocabulary }
}

#[derive(Debug, PartialEq)]
struct Outcome {
    loss: Loss,
    token_loss: Vec<f32>,
    dhidden: Vec<f32>,
    dweight: Vec<f32>,
}

impl Case {
    fn features(&self) -> usize {
        self.hidden.len() / self.targets.len()
    }

    fn problem<'a>(&'a self, arena: &'a Arena) -> Problem<'a> {
        let weight = WeightRef::F32(MatRef::new(&self.weight, self.vocabulary, self.features()));
        let hidden = MatRef::new(&self.hidden, self.targets.len(), self.features());
        Problem::new(Head { weight, compute: Compute::F32 }, hidden, &self.targets, arena)
    }

    fn run(&self, scale: f32, change: impl Fn(&mut Problem)) -> Outcome {
        let arena = Arena::new();
        let mut problem = self.problem(&arena);
        change(&mut problem);
        let mut dhidden = arena.matrix(self.targets.len(), self.features());
        dhidden.fill(f32::NAN);
        let mut dweight = vec![0.0; self.weight.len()];
        let mut token_loss = vec![f32::NAN; self.targets.len()];
        let backward = Backward { scale, dhidden: &mut dhidden, dweight: Some(&mut dweight) };
        let loss = problem.run(Some(&mut token_loss), Some(backward));
        Outcome { loss, token_loss, dhidden: dhidden.to_vec(), dweight }
    }
}

fn every_third(t: usize) -> bool {
    t.is_multiple_of(3)
}

#[test]
fn loss_and_gradients_equal_candle_in_f64_on_every_path() {
    for (tokens, vocabulary, features) in [(1, 1, 3), (2, 37, 5), (41, 513, 17), (70, 1009, 24)] {
        for ignored in [every_third as fn(usize) -> bool, |_| false, |t| t > 0] {
            let case = case(tokens, vocabulary, features, ignored);
            let truth = reference::cross_entropy(&case.hidden, &case.weight, &case.targets, 0.125);
            let portable = case.run(0.125, |problem| problem.path = CpuPath::Portable);
            for path in CpuPath::available() {
                let out = case.run(0.125, |problem| problem.path = path);
                assert!((out.loss.sum - truth.sum).abs() <= 1e-6 * truth.sum.abs(), "{} {}", out.loss.sum, truth.sum);
                assert_close("token loss", &out.token_loss, &truth.token_loss, 1e-6);
                assert_close("dhidden", &out.dhidden, &truth.dhidden, 1e-5);
                assert_close("dweight", &out.dweight, &truth.dweight, 1e-5);
                assert_eq!(out, portable, "{}", path.name());
            }
        }
    }
}

#[test]
fn gradients_equal_finite_differences() {
    let case = case(12, 40, 16, every_third);
    let out = case.run(1.0, |_| ());
    let arena = Arena::new();
    let loss = |hidden: &[f32], weight: &[f32]| {
        let weight = WeightRef::F32(MatRef::new(weight, 40, 16));
        let head = Head { weight, compute: Compute::F32 };
        forward(head, MatRef::new(hidden, 12, 16), &case.targets, &arena, None).sum
    };
    assert_derivative("dhidden", &case.hidden, &out.dhidden, |hidden| loss(hidden, &case.weight));
    assert_derivative("dweight", &case.weight, &out.dweight, |weight| loss(&case.hidden, weight));
}

#[test]
fn the_loss_alone_has_the_same_bits() {
    let case = case(50, 700, 9, every_third);
    let out = case.run(0.5, |_| ());
    let arena = Arena::new();
    let mut token_loss = vec![f32::NAN; 50];
    let loss = case.problem(&arena).run(Some(&mut token_loss), None);
    assert_eq!(loss, out.loss);
    assert_eq!(bits(&token_loss), bits(&out.token_loss));
}

#[test]
fn the_public_functions_do_the_same() {
    let case = case(20, 30, 8, every_third);
    let out = case.run(0.5, |_| ());
    let arena = Arena::new();
    let Problem { head, hidden, targets, .. } = case.problem(&arena);
    let mut dhidden = arena.matrix(20, 8);
    let grads = HeadGrads { dhidden: &mut dhidden, dweight: None, token_loss: None };
    assert_eq!(forward_backward(head, hidden, targets, 0.5, &arena, grads), out.loss);
    assert_eq!(bits(&dhidden), bits(&out.dhidden));
    assert_eq!(forward(head, hidden, targets, &arena, None), out.loss);
}

#[test]
fn chunks_do_not_change_the_result() {
    let case = case(45, 60, 8, |t| t % 7 == 3);
    let truth = reference::cross_entropy(&case.hidden, &case.weight, &case.targets, 0.5);
    for rows in [1, 4, 16, 38] {
        let out = case.run(0.5, |problem| problem.chunk_rows = rows);
        assert!((out.loss.sum - truth.sum).abs() <= 1e-6 * truth.sum);
        assert_close("token loss", &out.token_loss, &truth.token_loss, 1e-6);
        assert_close("dhidden", &out.dhidden, &truth.dhidden, 1e-6);
        assert_close("dweight", &out.dweight, &truth.dweight, 1e-6);
    }
}

#[test]
fn chunks_are_of_equal_size_and_at_most_50_megabytes() {
    assert_eq!(chunk_rows(32_000, 10_000), 384);
    assert_eq!(chunk_rows(32_000, 512), 256);
    assert_eq!(chunk_rows(49_152, 512), 256);
    assert_eq!(chunk_rows(49_152, 520), 176);
    assert_eq!(chunk_rows(128_256, 2048), 96);
    assert_eq!(chunk_rows(1_000_000, 2048), 32);
    assert_eq!(chunk_rows(512, 0), 32);
    assert_eq!(chunk_rows(512, 7), 32);
}

#[test]
fn ignored_rows_cost_nothing_and_get_zero_gradients() {
    let mut case = case(30, 50, 8, every_third);
    let out = case.run(0.5, |_| ());
    for row in (0..30).filter(|&t| every_third(t)) {
        assert_eq!(out.token_loss[row], 0.0);
        assert_eq!(out.dhidden[row * 8..(row + 1) * 8], [0.0; 8]);
        // What an ignored row holds does not matter, not even NaN.
        case.hidden[row * 8..(row + 1) * 8].fill(f32::NAN);
    }
    assert_eq!(out.loss.targets, 20);
    assert_eq!(case.run(0.5, |_| ()), out);
}

#[test]
fn all_rows_ignored_is_no_loss() {
    let out = case(5, 50, 8, |_| true).run(0.5, |_| ());
    assert_eq!(out.loss, Loss { sum: 0.0, targets: 0 });
    assert!(out.token_loss.iter().chain(&out.dhidden).chain(&out.dweight).all(|&v| v == 0.0));
    let arena = Arena::new();
    let head = Head { weight: WeightRef::F32(MatRef::new(&[1.0; 6], 3, 2)), compute: Compute::F32 };
    assert_eq!(forward(head, MatRef::new(&[], 0, 2), &[], &arena, None), Loss { sum: 0.0, targets: 0 });
}

#[test]
fn huge_logits_stay_finite() {
    let mut case = case(20, 200, 8, |_| false);
    case.weight.iter_mut().for_each(|w| *w *= 1e4);
    let truth = reference::cross_entropy(&case.hidden, &case.weight, &case.targets, 1.0);
    let out = case.run(1.0, |_| ());
    assert!(out.token_loss.iter().any(|&loss| loss > 1e4));
    assert!(out.token_loss.iter().chain(&out.dhidden).chain(&out.dweight).all(|v| v.is_finite()));
    assert_close("token loss", &out.token_loss, &truth.token_loss, 1e-6);
}

#[test]
fn logits_that_are_not_numbers_make_the_loss_not_a_number() {
    for bad in [f32::NAN, f32::INFINITY] {
        let mut case = case(3, 100, 1, |_| false);
        case.hidden.fill(1.0);
        case.weight[77] = bad;
        assert!(case.run(1.0, |_| ()).loss.sum.is_nan());
    }
}

#[test]
fn a_strided_view_of_the_hidden_states_gives_the_same() {
    let case = case(11, 20, 6, every_third);
    let out = case.run(0.5, |_| ());
    let wide: Vec<f32> = case.hidden.chunks(6).flat_map(|row| [row, &[9.0; 3]].concat()).collect();
    let view = MatRef { data: &wide, rows: 11, cols: 6, stride: 9 };
    let arena = Arena::new();
    let Problem { head, targets, .. } = case.problem(&arena);
    let (mut dhidden, mut dweight) = (arena.matrix(11, 6), vec![0.0; out.dweight.len()]);
    let grads = HeadGrads { dhidden: &mut dhidden, dweight: Some(&mut dweight), token_loss: None };
    assert_eq!(forward_backward(head, view, targets, 0.5, &arena, grads), out.loss);
    assert_eq!(bits(&dhidden), bits(&out.dhidden));
    assert_eq!(bits(&dweight), bits(&out.dweight));
}

#[test]
fn weight_gradient_is_added_to_what_is_there() {
    let case = case(10, 20, 6, every_third);
    let out = case.run(0.5, |_| ());
    let arena = Arena::new();
    let mut dhidden = arena.matrix(10, 6);
    let mut dweight = vec![4.0; out.dweight.len()];
    let backward = Backward { scale: 0.5, dhidden: &mut dhidden, dweight: Some(&mut dweight) };
    case.problem(&arena).run(None, Some(backward));
    let expected: Vec<f64> = out.dweight.iter().map(|&part| 4.0 + f64::from(part)).collect();
    assert_close("dweight", &dweight, &expected, 1e-6);
}

#[test]
fn memory_does_not_depend_on_how_many_rows_are_ignored() {
    let peak = |ignored: fn(usize) -> bool| {
        let arena = Arena::new();
        let case = case(700, 300, 100, ignored);
        case.problem(&arena).run(None, None);
        arena.peak_bytes()
    };
    assert_eq!(peak(every_third), peak(|t| !every_third(t)));
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() {
    let case = case(67, 511, 13, every_third);
    assert_same_in_every_pool(|| {
        let out = case.run(0.25, |problem| problem.chunk_rows = 32);
        (out.loss.sum.to_bits(), bits(&out.token_loss), bits(&out.dhidden), bits(&out.dweight))
    });
}

#[test]
#[should_panic(expected = "a target outside 0..4")]
fn a_target_beyond_the_vocabulary_is_a_programmer_error() {
    let arena = Arena::new();
    let head = Head { weight: WeightRef::F32(MatRef::new(&[0.0; 4], 4, 1)), compute: Compute::F32 };
    forward(head, MatRef::new(&[0.0], 1, 1), &[4], &arena, None);
}
