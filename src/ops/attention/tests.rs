//! Attention against its references: a grid over head layouts, head sizes, documents and kernel paths.

#![allow(clippy::single_range_in_vec_init)] // A pack of one document is a list of one range.

use super::backward::{backward_on, Problem};
use super::cached::cached_forward_on;
use super::exp::exp_in_place;
use super::forward::{forward_on, Inputs};
use super::pairs::Arithmetic;
use super::{reference, AttentionShape, CacheView, Grads, Saved};
use crate::device::{Compute, CpuPath};
use crate::ops::Arena;
use std::ops::Range;

const TILE_BORDERS: [usize; 10] = [1, 2, 15, 16, 17, 63, 64, 65, 130, 200];

/// Values in -1..1 from a small generator, the same on every run.
fn values(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

struct Case {
    shape: AttentionShape,
    segments: Vec<Range<usize>>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    dout: Vec<f32>,
}

struct Results {
    out: Vec<f32>,
    lse: Vec<f32>,
    gradients: [Vec<f32>; 3],
}

impl Case {
    fn new(heads: usize, kv_heads: usize, head_dim: usize, rows: usize, segments: &[Range<usize>]) -> Case {
        let (width, kv_width) = (heads * head_dim, kv_heads * head_dim);
        let scaled = |count, seed, by: f32| values(count, seed).into_iter().map(|x| x * by).collect::<Vec<f32>>();
        Case {
            shape: AttentionShape { heads, kv_heads, head_dim },
            segments: segments.to_vec(),
            q: scaled(rows * width, 1, 1.75),
            k: scaled(rows * kv_width, 2, 1.75),
            v: scaled(rows * kv_width, 3, 1.0),
            dout: scaled(rows * width, 4, 1.0),
        }
    }

    fn forward(&self, with: impl Into<Arithmetic>) -> (Vec<f32>, Vec<f32>) {
        let rows = self.q.len() / self.shape.query_width();
        let (mut out, mut lse) = (vec![f32::NAN; self.q.len()], vec![f32::NAN; rows * self.shape.heads]);
        let inputs = Inputs { q: &self.q, k: &self.k, v: &self.v, segments: &self.segments };
        forward_on(with.into(), self.shape, inputs, &mut out, &mut lse);
        (out, lse)
    }

    fn run(&self, with: impl Into<Arithmetic>) -> Results {
        let with = with.into();
        let (out, lse) = self.forward(with);
        let mut gradients = [&self.q, &self.k, &self.v].map(|values| vec![f32::NAN; values.len()]);
        let [dq, dk, dv] = &mut gradients;
        let inputs = Inputs { q: &self.q, k: &self.k, v: &self.v, segments: &self.segments };
        let saved = Saved { inputs, out: &out, lse: &lse };
        let problem = Problem { shape: self.shape, saved, dout: &self.dout };
        backward_on(with, problem, &Arena::new(), Grads { dq, dk, dv });
        Results { out, lse, gradients }
    }

    /// Compares every path with the references.
    fn check(&self) {
        let name = format!("{:?} {:?}", self.shape, self.segments);
        let (out, lse) = reference::forward(self.shape, &self.q, &self.k, &self.v, &self.segments);
        let inputs = [&self.q[..], &self.k, &self.v];
        let gradients = reference::gradients(self.shape, inputs, &self.dout, &self.segments).unwrap();
        for with in arithmetics() {
            // Rounding to bf16 moves a value by 1/512 of itself at most; a wrong pairing moves results by their size.
            let bound = |f32: f64| if with.is_pairs() { 1.5e-2 } else { f32 };
            let results = self.run(with);
            assert_close(&results.out, &out, bound(2e-6), &format!("{name} {with:?} out"));
            assert_close(&results.lse, &lse, bound(2e-6), &format!("{name} {with:?} lse"));
            // Together: dq and dk of a document of one row are 0, a difference of two products that agree up to rounding.
            assert_close(
                &results.gradients.concat(),
                &gradients.concat(),
                bound(1e-5),
                &format!("{name} {with:?} dq, dk, dv"),
            );
        }
    }
}

impl From<CpuPath> for Arithmetic {
    fn from(path: CpuPath) -> Arithmetic {
        Arithmetic::f32(path)
    }
}

/// All ways in which this machine can compute attention: every path in f32, and with bf16 words where there are such.
fn arithmetics() -> Vec<Arithmetic> {
    let paths = CpuPath::available().into_iter();
    let both = paths.flat_map(|path| [Compute::F32, Compute::Bf16].map(|compute| Arithmetic::new(path, compute)));
    let mut all: Vec<Arithmetic> = both.collect();
    all.dedup();
    all
}

/// Every difference is at most `tolerance` times the largest true value.
fn assert_close(ours: &[f32], truth: &[f64], tolerance: f64, what: &str) {
    assert_eq!(ours.len(), truth.len(), "{what}");
    let largest = truth.iter().fold(0.0f64, |a, b| a.max(b.abs()));
    for (i, (&a, &b)) in ours.iter().zip(truth).enumerate() {
        let error = (a as f64 - b).abs();
        assert!(error <= tolerance * largest, "{what}[{i}]: {a} is not {b}, largest {largest}");
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn in_pool<R: Send>(threads: usize, work: impl FnOnce() -> R + Send) -> R {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(work)
}

#[test]
fn exp_is_within_1_2_ulp_of_f64_over_its_whole_range() {
    for path in CpuPath::available() {
        let mut worst = 0.0f64;
        for step in 0..20 {
            let xs: Vec<f32> = (0..10_007).map(|i| -110.0 + (i as f32 + step as f32 / 20.0) * 0.02).collect();
            let mut ours = xs.clone();
            exp_in_place(path, &mut ours);
            for (&x, &y) in xs.iter().zip(&ours) {
                let truth = (x as f64).exp();
                if truth > f32::MAX as f64 {
                    assert_eq!(y, f32::INFINITY, "{path:?} exp({x})");
                    continue;
                }
                let ulp = f64::powi(2.0, (truth.log2().floor() as i32 - 23).max(-149));
                worst = worst.max((y as f64 - truth).abs() / ulp);
            }
        }
        assert!(worst <= 1.2, "{path:?}: {worst} ulp");
    }
}

#[test]
fn exp_of_special_values() {
    for path in CpuPath::available() {
        let mut x = [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, f32::MAX, f32::MIN, 1e-40];
        exp_in_place(path, &mut x);
        assert_eq!(x[..4], [1.0, 1.0, f32::INFINITY, 0.0], "{path:?}");
        assert!(x[4].is_nan(), "{path:?}");
        assert_eq!(x[5..], [f32::INFINITY, 0.0, 1.0], "{path:?}");
    }
}

#[test]
fn exp_of_a_value_does_not_depend_on_its_place() {
    for path in CpuPath::available() {
        for length in 0..40 {
            let mut all = vec![-0.7f32; length];
            exp_in_place(path, &mut all);
            let mut one = [-0.7f32];
            exp_in_place(path, &mut one);
            assert!(all.iter().all(|x| x.to_bits() == one[0].to_bits()), "{path:?} {length}");
        }
    }
}

#[test]
fn one_document_of_every_length_around_the_tile_borders() {
    for rows in TILE_BORDERS {
        Case::new(4, 2, 16, rows, &[0..rows]).check();
    }
}

#[test]
fn head_layouts() {
    for (heads, kv_heads) in [(1, 1), (3, 3), (4, 1), (9, 3), (8, 2)] {
        Case::new(heads, kv_heads, 8, 67, &[0..67]).check();
    }
}

#[test]
fn head_sizes() {
    for head_dim in [1, 5, 8, 15, 16, 17, 24, 33, 48, 64, 80, 96, 127, 128, 256] {
        Case::new(2, 1, head_dim, 70, &[0..70]).check();
    }
}

#[test]
fn documents_in_a_pack() {
    let layouts: [&[Range<usize>]; 7] = [
        &[0..200],
        &[0..64, 64..128, 128..200],
        &[0..1, 1..2, 2..3, 3..200],
        &[5..20, 30..31, 31..31, 40..170],
        &[0..130, 130..195],
        &[199..200],
        &[],
    ];
    for segments in layouts {
        Case::new(4, 2, 24, 200, segments).check();
    }
}

#[test]
fn rows_outside_every_document_are_zero() {
    for path in arithmetics() {
        let case = Case::new(4, 2, 8, 20, &[3..5, 9..9, 10..14]);
        let Results { out, lse, gradients } = case.run(path);
        for row in [0, 1, 2, 5, 6, 7, 8, 9, 14, 19] {
            assert!(out[row * 32..(row + 1) * 32].iter().all(|&x| x == 0.0));
            assert!(lse[row * 4..(row + 1) * 4].iter().all(|&x| x == 0.0));
            assert!(gradients[0][row * 32..(row + 1) * 32].iter().all(|&x| x == 0.0));
            assert!(gradients[1][row * 16..(row + 1) * 16].iter().all(|&x| x == 0.0));
            assert!(gradients[2][row * 16..(row + 1) * 16].iter().all(|&x| x == 0.0));
        }
    }
}

#[test]
fn a_pack_equals_its_documents_one_by_one() {
    let segments = [0..70, 70..71, 75..205];
    let pack = Case::new(4, 2, 16, 210, &segments);
    for path in arithmetics() {
        let whole = pack.run(path);
        for segment in &segments {
            let cut = |data: &[f32], width: usize| data[segment.start * width..segment.end * width].to_vec();
            let single = Case {
                shape: pack.shape,
                segments: vec![0..segment.len()],
                q: cut(&pack.q, 64),
                k: cut(&pack.k, 32),
                v: cut(&pack.v, 32),
                dout: cut(&pack.dout, 64),
            };
            let single = single.run(path);
            assert_eq!(bits(&single.out), bits(&cut(&whole.out, 64)));
            for (i, width) in [64, 32, 32].into_iter().enumerate() {
                let truth: Vec<f64> = single.gradients[i].iter().map(|&x| x as f64).collect();
                assert_close(&cut(&whole.gradients[i], width), &truth, 1e-6, "packed gradient");
            }
        }
    }
}

#[test]
fn gradients_are_the_finite_differences_of_the_forward() {
    let case = Case::new(2, 1, 5, 9, &[0..2, 3..9]);
    let loss = |q: &[f32], k: &[f32], v: &[f32]| {
        let (out, _) = reference::forward(case.shape, q, k, v, &case.segments);
        out.iter().zip(&case.dout).map(|(o, &d)| o * d as f64).sum::<f64>()
    };
    let step = 1.0 / 1024.0;
    for path in CpuPath::available() {
        let gradients = case.run(path).gradients;
        for which in 0..3 {
            let mut inputs = [case.q.clone(), case.k.clone(), case.v.clone()];
            for i in 0..inputs[which].len() {
                let before = inputs[which][i];
                inputs[which][i] = before + step;
                let (up, at_up) = (loss(&inputs[0], &inputs[1], &inputs[2]), inputs[which][i]);
                inputs[which][i] = before - step;
                let (down, at_down) = (loss(&inputs[0], &inputs[1], &inputs[2]), inputs[which][i]);
                inputs[which][i] = before;
                let slope = (up - down) / (at_up as f64 - at_down as f64);
                assert!((slope - gradients[which][i] as f64).abs() < 2e-5, "{path:?} input {which}[{i}]: {slope}");
            }
        }
    }
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let cases = [Case::new(3, 1, 16, 700, &[0..700]), Case::new(4, 2, 8, 900, &[0..400, 400..401, 410..900])];
    for case in &cases {
        for path in arithmetics() {
            let one = in_pool(1, || case.run(path));
            for threads in [2, 3] {
                let other = in_pool(threads, || case.run(path));
                assert_eq!(bits(&one.out), bits(&other.out), "{path:?}");
                assert_eq!(bits(&one.lse), bits(&other.lse), "{path:?}");
                for i in 0..3 {
                    assert_eq!(bits(&one.gradients[i]), bits(&other.gradients[i]), "{path:?} {i}");
                }
            }
        }
    }
}

#[test]
fn a_unit_cut_into_pieces_has_the_right_gradients() {
    Case::new(3, 1, 8, 700, &[0..700]).check();
}

#[test]
fn tiny_and_huge_scores_stay_finite() {
    for path in CpuPath::available() {
        for by in [1e-30f32, 1e3, 1e10, 5e18] {
            let mut case = Case::new(2, 1, 16, 80, &[0..80]);
            case.q.iter_mut().chain(&mut case.k).for_each(|x| *x *= by);
            let Results { out, lse, gradients } = case.run(path);
            assert!(out.iter().all(|x| x.abs() <= 1.001), "{path:?} {by}");
            assert!(lse.iter().all(|x| x.is_finite()), "{path:?} {by}");
            assert!(gradients.iter().flatten().all(|x| x.is_finite()), "{path:?} {by}");
            let decoded = through_cache(path, &case, 1, 80);
            assert!(decoded.iter().all(|x| x.abs() <= 1.001), "{path:?} {by}");
        }
    }
}

#[test]
fn scores_that_overflow_still_give_a_weighted_mean() {
    for path in CpuPath::available() {
        for (q, k) in [(1e30, 1e30), (1e30, -1e30)] {
            let mut case = Case::new(2, 1, 16, 20, &[0..20]);
            case.q.fill(q);
            case.k.fill(k);
            let (out, lse) = case.forward(path);
            assert!(out.iter().all(|x| x.abs() <= 1.001), "{path:?} {q} {k}");
            assert!(lse.iter().all(|x| x.is_finite()), "{path:?} {q} {k}");
            assert!(through_cache(path, &case, 1, 20).iter().all(|x| x.abs() <= 1.001), "{path:?} {q} {k}");
        }
    }
}

#[test]
fn a_nan_reaches_the_rows_that_see_it_and_no_other() {
    for path in CpuPath::available() {
        let mut case = Case::new(1, 1, 16, 100, &[0..50, 50..100]);
        case.k[70 * 16] = f32::NAN;
        let (out, _) = case.forward(path);
        for row in 0..100 {
            assert_eq!(out[row * 16].is_nan(), row >= 70, "{path:?} row {row}");
        }
    }
}

/// Runs a sequence through the cache in chunks of the given size.
fn through_cache(with: impl Into<Arithmetic>, case: &Case, chunk: usize, capacity: usize) -> Vec<f32> {
    let with = with.into();
    let AttentionShape { kv_heads, head_dim, .. } = case.shape;
    let (width, rows) = (case.shape.query_width(), case.q.len() / case.shape.query_width());
    let mut keys = vec![f32::NAN; kv_heads * capacity * head_dim];
    let mut values = keys.clone();
    let mut out = vec![f32::NAN; case.q.len()];
    for past in (0..rows).step_by(chunk) {
        let end = rows.min(past + chunk);
        for row in past..end {
            for head in 0..kv_heads {
                let from = (row * kv_heads + head) * head_dim;
                let to = (head * capacity + row) * head_dim;
                keys[to..to + head_dim].copy_from_slice(&case.k[from..from + head_dim]);
                values[to..to + head_dim].copy_from_slice(&case.v[from..from + head_dim]);
            }
        }
        let cache = CacheView { keys: &keys, values: &values, capacity, past };
        let range = past * width..end * width;
        cached_forward_on(with, case.shape, &case.q[range.clone()], cache, &mut out[range]);
    }
    out
}

#[test]
fn decoding_through_the_cache_equals_the_forward() {
    for (heads, kv_heads, head_dim) in [(4, 2, 16), (3, 3, 24), (9, 3, 64), (2, 1, 33), (12, 1, 128)] {
        let case = Case::new(heads, kv_heads, head_dim, 150, &[0..150]);
        let (truth, _) = reference::forward(case.shape, &case.q, &case.k, &case.v, &case.segments);
        for with in arithmetics() {
            for chunk in [1, 2, 7, 64, 65, 100, 149, 150] {
                let out = through_cache(with, &case, chunk, 160);
                let tolerance = if with.is_pairs() { 1.5e-2 } else { 2e-6 };
                assert_close(&out, &truth, tolerance, &format!("{:?} {with:?} chunks of {chunk}", case.shape));
            }
        }
    }
}

#[test]
fn a_long_cache_read_in_parts_equals_the_forward() {
    let case = Case::new(3, 1, 24, 600, &[0..600]);
    let (truth, _) = reference::forward(case.shape, &case.q, &case.k, &case.v, &case.segments);
    for with in arithmetics() {
        for chunk in [1, 3, 590] {
            let out = through_cache(with, &case, chunk, 600);
            let tolerance = if with.is_pairs() { 1.5e-2 } else { 2e-6 };
            assert_close(&out, &truth, tolerance, &format!("{with:?} chunks of {chunk}"));
        }
    }
}

#[test]
fn decoding_gives_the_same_bits_with_any_number_of_threads() {
    let case = Case::new(6, 2, 64, 700, &[0..700]);
    for with in arithmetics() {
        for chunk in [1, 330] {
            let one = in_pool(1, || through_cache(with, &case, chunk, 700));
            for threads in [2, 3] {
                let more = in_pool(threads, || through_cache(with, &case, chunk, 700));
                assert_eq!(bits(&one), bits(&more), "{with:?} chunks of {chunk}");
            }
        }
    }
}
