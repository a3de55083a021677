//! Gradients against candle's autograd in f64, and against finite differences, for every kind of adapter.

use super::*;
use crate::ops::{Param, ParamKind, ParamStore};
use candle_core::{DType, Device, Tensor, Var};

struct Case {
    rows: usize,
    inputs: usize,
    outputs: usize,
    rank: usize,
    dora: bool,
    dropout: f32,
    bias: bool,
    full: bool,
}

struct Fixture {
    case: Case,
    x: Vec<f32>,
    w: Vec<f32>,
    dy: Vec<f32>,
    factor: Vec<f32>,
    norm: Vec<f32>,
    store: ParamStore,
    ids: Vec<ParamId>,
    stream: RandomStream,
}

const SCALE: f32 = 1.7;

fn values(name: &str, count: usize) -> Vec<f32> {
    let stream = RandomStream::derive(3, name, &[]);
    (0..count).map(|i| stream.normal(i as u64)).collect()
}

fn param(store: &mut ParamStore, name: &str, kind: ParamKind, rows: usize, cols: usize) -> ParamId {
    store.add(Param { name: name.into(), kind, rows, cols, value: values(name, rows * cols) })
}

impl Fixture {
    fn new(case: Case) -> Fixture {
        let Case { rows, inputs, outputs, rank, .. } = case;
        let mut store = ParamStore::default();
        let a = param(&mut store, "a", ParamKind::LoraA, rank, inputs);
        let b = param(&mut store, "b", ParamKind::LoraB, outputs, rank);
        let magnitude = param(&mut store, "m", ParamKind::Magnitude, 1, outputs);
        let weight = param(&mut store, "w", ParamKind::Weight, outputs, inputs);
        let bias = param(&mut store, "bias", ParamKind::Bias, 1, outputs);
        let norm: Vec<f32> = values("norm", outputs).iter().map(|v| v.abs() + 0.5).collect();
        let factor = store.value(magnitude).iter().zip(&norm).map(|(m, n)| m / n).collect();
        Fixture {
            x: values("x", rows * inputs),
            w: store.value(weight).to_vec(),
            dy: values("dy", rows * outputs),
            factor,
            norm,
            ids: vec![a, b, magnitude, weight, bias],
            store,
            stream: RandomStream::new(9, 4),
            case,
        }
    }

    fn linear(&self) -> Linear<'_> {
        let case = &self.case;
        let [a_id, b_id, magnitude_id, weight_id, bias_id] = self.ids[..] else { unreachable!() };
        let adapter = Adapter {
            a: MatRef::new(self.store.value(a_id), case.rank, case.inputs),
            b: MatRef::new(self.store.value(b_id), case.outputs, case.rank),
            a_id,
            b_id,
            scale: SCALE,
            dropout: (case.dropout > 0.0).then_some((case.dropout, self.stream)),
            dora: case.dora.then_some(Dora { factor: &self.factor, norm: &self.norm, magnitude_id }),
        };
        Linear {
            weight: WeightRef::F32(MatRef::new(&self.w, case.outputs, case.inputs)),
            weight_id: case.full.then_some(weight_id),
            bias: case.bias.then(|| self.store.value(bias_id)),
            bias_id: case.full.then_some(bias_id).filter(|_| case.bias),
            adapter: (case.rank > 0).then_some(adapter),
            compute: Compute::F32,
        }
    }

    fn mask(&self) -> Vec<f32> {
        let ones = vec![1.0; self.x.len()];
        let mut mask = ones.clone();
        if self.case.dropout > 0.0 {
            dropout::apply(&ones, &mut mask, self.case.dropout, self.stream);
        }
        mask
    }

    /// y, dx and the gradients of a, b, m, w, bias by candle's autograd in f64.
    fn oracle(&self) -> Vec<Vec<f64>> {
        let case = &self.case;
        let tensor = |values: &[f32], rows: usize, cols: usize| {
            Tensor::from_slice(values, (rows, cols), &Device::Cpu).unwrap().to_dtype(DType::F64).unwrap()
        };
        let var = |values: &[f32], rows: usize, cols: usize| Var::from_tensor(&tensor(values, rows, cols)).unwrap();
        let x = var(&self.x, case.rows, case.inputs);
        let w = var(&self.w, case.outputs, case.inputs);
        let store = |index: usize| self.store.get(self.ids[index]);
        let vars: Vec<Var> = [0, 1, 2, 4].iter().map(|&i| var(&store(i).value, store(i).rows, store(i).cols)).collect();
        let (a, b, m, bias) = (&vars[0], &vars[1], &vars[2], &vars[3]);
        let mut y = x.matmul(&w.t().unwrap()).unwrap();
        if case.bias {
            y = y.broadcast_add(bias).unwrap();
        }
        if case.rank > 0 {
            let dropped = (x.as_tensor() * tensor(&self.mask(), case.rows, case.inputs)).unwrap();
            let low = dropped.matmul(&a.t().unwrap()).unwrap().matmul(&b.t().unwrap()).unwrap();
            let low = (low * f64::from(SCALE)).unwrap();
            y = match case.dora {
                false => (y + low).unwrap(),
                true => {
                    let norm = tensor(&self.norm, 1, case.outputs);
                    let g = (m.as_tensor() / norm).unwrap();
                    let base = dropped.matmul(&w.t().unwrap()).unwrap();
                    let extra = base.broadcast_mul(&(&g - 1.0).unwrap()).unwrap();
                    ((y + extra).unwrap() + low.broadcast_mul(&g).unwrap()).unwrap()
                }
            };
        }
        let dy = tensor(&self.dy, case.rows, case.outputs);
        let grads = (&y * dy).unwrap().sum_all().unwrap().backward().unwrap();
        let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f64>().unwrap();
        let grad = |v: &Var| grads.get(v).map(&flat).unwrap_or_default();
        vec![flat(&y), grad(&x), grad(a), grad(b), grad(m), grad(&w), grad(bias)]
    }
}

fn check(name: &str, found: &[f32], expected: &[f64]) {
    assert_eq!(found.len(), expected.len(), "{name}");
    let largest = expected.iter().fold(1e-12f64, |m, v| m.max(v.abs()));
    for (index, (f, e)) in found.iter().zip(expected).enumerate() {
        let error = (f64::from(*f) - e).abs() / largest;
        assert!(error < 1e-5, "{name}[{index}]: {f} instead of {e} ({error:e} of the largest)");
    }
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (rows, inputs, outputs, rank) in [(1, 1, 1, 1), (5, 17, 9, 3), (33, 64, 40, 8), (130, 20, 70, 16)] {
        for dora in [false, true] {
            for dropout in [0.0, 0.3] {
                let bias = rows % 2 == 1;
                cases.push(Case { rows, inputs, outputs, rank, dora, dropout, bias, full: false });
            }
        }
        cases.push(Case { rows, inputs, outputs, rank: 0, dora: false, dropout: 0.0, bias: true, full: true });
    }
    cases
}

#[test]
fn equals_autograd_for_every_kind_of_adapter() {
    for case in cases() {
        let fixture = Fixture::new(case);
        let Case { rows, inputs, outputs, rank, dora, full, bias, .. } = fixture.case;
        let (arena, linear) = (Arena::new(), fixture.linear());
        let mut grads = Gradients::zeros(&fixture.store);
        let x = MatRef::new(&fixture.x, rows, inputs);
        let mut y = arena.matrix(rows, outputs);
        let hidden = forward(&linear, x, &mut y, &arena);
        let mut dy = arena.matrix(rows, outputs);
        dy.copy_from_slice(&fixture.dy);
        let mut dx = arena.matrix(rows, inputs);
        let gradient = backward_input(&linear, &dy, &mut dx, false, &arena);
        let operands = Operands { x, dy: &dy, hidden: hidden.as_ref(), hidden_gradient: gradient.as_ref() };
        backward_params(&linear, operands, &mut grads, &arena);

        let expected = fixture.oracle();
        check("y", &y, &expected[0]);
        check("dx", &dx, &expected[1]);
        let used = [rank > 0, rank > 0, dora, full, full && bias];
        for (index, (id, _)) in fixture.ids.iter().zip(used).enumerate().filter(|(_, (_, used))| *used) {
            check(&fixture.store.get(*id).name, grads.get(*id), &expected[2 + index]);
        }
    }
}

#[test]
fn recomputed_low_rank_values_give_the_same_gradients() {
    let fixture = Fixture::new(Case {
        rows: 19,
        inputs: 33,
        outputs: 21,
        rank: 4,
        dora: true,
        dropout: 0.25,
        bias: false,
        full: false,
    });
    let (arena, linear) = (Arena::new(), fixture.linear());
    let x = MatRef::new(&fixture.x, 19, 33);
    let mut y = arena.matrix(19, 21);
    let hidden = forward(&linear, x, &mut y, &arena);
    let mut dy = arena.matrix(19, 21);
    dy.copy_from_slice(&fixture.dy);
    let mut dx = arena.matrix(19, 33);
    let gradient = backward_input(&linear, &dy, &mut dx, false, &arena);
    let with = |hidden: Option<&Matrix>, hidden_gradient: Option<&Matrix>| {
        let mut grads = Gradients::zeros(&fixture.store);
        backward_params(&linear, Operands { x, dy: &dy, hidden, hidden_gradient }, &mut grads, &arena);
        grads.iter().map(<[f32]>::to_vec).collect::<Vec<_>>()
    };
    assert_eq!(with(hidden.as_ref(), gradient.as_ref()), with(None, None));
}

#[test]
fn input_gradient_can_be_added() {
    let fixture = Fixture::new(Case {
        rows: 7,
        inputs: 12,
        outputs: 5,
        rank: 2,
        dora: false,
        dropout: 0.0,
        bias: false,
        full: false,
    });
    let (arena, linear) = (Arena::new(), fixture.linear());
    let mut dy = arena.matrix(7, 5);
    dy.copy_from_slice(&fixture.dy);
    let (mut once, mut twice) = (arena.matrix(7, 12), arena.zeros(7, 12));
    backward_input(&linear, &dy, &mut once, false, &arena);
    twice.copy_from_slice(&once);
    backward_input(&linear, &dy, &mut twice, true, &arena);
    for (once, twice) in once.iter().zip(twice.iter()) {
        assert!((2.0 * once - twice).abs() < 1e-5 * once.abs().max(1.0));
    }
}

/// u, y, dx, du and the gradients of A and B of two linears that share an input, as a group or one by one.
fn two_linears(compute: Compute, ranks: [usize; 2], as_group: bool) -> [Vec<Vec<f32>>; 2] {
    let (rows, inputs) = (70, 640);
    let fixtures = [(577, ranks[0]), (600, ranks[1])].map(|(outputs, rank)| {
        Fixture::new(Case { rows, inputs, outputs, rank, dora: false, dropout: 0.0, bias: outputs == 600, full: false })
    });
    let arena = Arena::new();
    let linears = fixtures.each_ref().map(|fixture| Linear { compute, ..fixture.linear() });
    // Ids of different stores: each linear gets gradients of its own.
    let mut grads = fixtures.each_ref().map(|fixture| Gradients::zeros(&fixture.store));
    let x = MatRef::new(&fixtures[0].x, rows, inputs);
    let mut ys = linears.each_ref().map(|linear| arena.matrix(rows, linear.weight.rows()));
    let dys = fixtures.each_ref().map(|fixture| {
        let mut dy = arena.matrix(rows, fixture.case.outputs);
        dy.copy_from_slice(&fixture.dy);
        dy
    });
    let mut dx = arena.matrix(rows, inputs);
    let (hidden, gradients): (Vec<_>, Vec<_>) = if as_group {
        let hidden = group::forward(&linears, x, ys.iter_mut().collect(), &arena);
        (hidden, group::backward_input(&linears, &dys.each_ref(), &mut dx, &arena))
    } else {
        let hidden = linears.iter().zip(&mut ys).map(|(linear, y)| forward(linear, x, y, &arena)).collect();
        let each = linears.iter().zip(&dys).enumerate();
        (hidden, each.map(|(i, (linear, dy))| backward_input(linear, dy, &mut dx, i > 0, &arena)).collect())
    };
    for (i, linear) in linears.iter().enumerate() {
        // The second linear computes its u again, as down_proj does.
        let hidden = hidden[i].as_ref().filter(|_| i == 0);
        let operands = Operands { x, dy: &dys[i], hidden, hidden_gradient: gradients[i].as_ref() };
        match as_group {
            true => group::backward_params(&[*linear], &[operands], &mut grads[i], &arena),
            false => backward_params(linear, operands, &mut grads[i], &arena),
        }
    }
    let values = |matrices: &[Option<Matrix>]| matrices.iter().flatten().map(|m| m.to_vec()).collect::<Vec<_>>();
    let exact = [values(&hidden), values(&gradients), ys.iter().map(|y| y.to_vec()).collect(), vec![dx.to_vec()]];
    let gradients = grads.iter().flat_map(|grads| grads.iter().map(<[f32]>::to_vec).collect::<Vec<_>>());
    [exact.concat(), gradients.collect()]
}

#[test]
fn a_group_is_its_linears_one_by_one() {
    for compute in [Compute::F32, Compute::Bf16] {
        for ranks in [[16, 16], [0, 8], [24, 0], [0, 0]] {
            let [single, single_gradients] = two_linears(compute, ranks, false);
            let [group, group_gradients] = two_linears(compute, ranks, true);
            assert!(single == group, "{compute:?} {ranks:?}");
            for (single, group) in single_gradients.iter().zip(&group_gradients) {
                // In f32 single gradients of B are small products, which are summed in f64.
                check("gradient", group, &single.iter().map(|&value| f64::from(value)).collect::<Vec<_>>());
            }
            let trained = group_gradients.iter().flatten().any(|value| *value != 0.0);
            assert_eq!(trained, ranks != [0, 0]);
        }
    }
}
