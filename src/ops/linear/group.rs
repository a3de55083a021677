//! Linears that read one input, together: q, k and v, gate and up (o and down are groups of one).
//!
//! The input, and each gradient, is converted to what the kernels read once for all products; the adapter's products
//! are further terms of the base's, added while the result is in the cache; and the threads meet once for a group
//! instead of once for each product. The formulas are those of the [module](super), and so are the bits: terms are
//! added in the same order, but that adapters come first where the base is multiplied in fixed point. Adapters with dropout
//! or DoRA, and the small products that are summed in f64, go one by one.

use super::{adapter_gradients, columns, low_rank, weight_gradients, Adapter, Linear, Operands};
use crate::device::Compute;
use crate::ops::gemm::batch::{prepare, Batch, Prepareds, Right};
use crate::ops::gemm::{dense_format, format_of_narrow, is_large, FixedPoint, LowRank, WeightRef};
use crate::ops::{profile, Arena, Gradients, MatMut, MatRef, Matrix};

/// Whether the linears can go as one for an input of `rows` rows: a function of shapes and settings alone.
fn together(linears: &[Linear<'_>], rows: usize) -> bool {
    let plain = |linear: &Linear<'_>| {
        linear.compute == linears[0].compute
            && is_large(rows, linear.weight.cols(), linear.weight.rows(), linear.compute)
            && linear.adapter.as_ref().is_none_or(|adapter| adapter.dropout.is_none() && adapter.dora.is_none())
    };
    linears.iter().all(plain)
}

/// The base weights, if they are multiplied in fixed point; then the adapters' terms come before all of theirs.
fn fixed_point<'a>(linears: &[Linear<'a>], rows: usize) -> Option<FixedPoint<'a>> {
    FixedPoint::of(rows, linears.iter().map(|linear| linear.weight), linears[0].compute)
}

/// Operations of a product of `rows` rows with each base weight.
fn base_operations(linears: &[Linear<'_>], rows: usize) -> f64 {
    linears.iter().map(|linear| 2.0 * (rows * linear.weight.rows() * linear.weight.cols()) as f64).sum()
}

/// Operations of a product of `rows` rows with one side of each adapter.
fn adapter_operations(linears: &[Linear<'_>], rows: usize, [a, b]: [bool; 2]) -> f64 {
    let sides = linears.iter().filter_map(|linear| linear.adapter.as_ref()).map(|adapter| {
        let wide = usize::from(a) * adapter.a.cols + usize::from(b) * adapter.b.rows;
        2.0 * (rows * adapter.a.rows * wide) as f64
    });
    sides.sum()
}

/// Computes every `y [T,N]` from `x [T,K]` and returns each u `[T,R]`, which the backward pass can use again.
pub fn forward(linears: &[Linear<'_>], x: MatRef<'_>, mut ys: Vec<&mut Matrix>, arena: &Arena) -> Vec<Option<Matrix>> {
    assert!(!linears.is_empty() && linears.len() == ys.len());
    let _span = profile::span(
        "linears forward",
        base_operations(linears, x.rows) + adapter_operations(linears, x.rows, [true, true]),
    );
    if !together(linears, x.rows) {
        let each = linears.iter().zip(ys).map(|(linear, y)| super::forward(linear, x, y, arena));
        return each.collect();
    }
    let (fixed, compute) = (fixed_point(linears, x.rows), dense_format(linears[0].compute));
    let input = prepare(&[x], false, compute);
    let mut hidden: Vec<Option<Matrix>> = linears
        .iter()
        .map(|linear| linear.adapter.as_ref().map(|adapter| arena.matrix(x.rows, adapter.a.rows)))
        .collect();
    let mut batch = Batch::new(compute);
    for (linear, hidden) in linears.iter().zip(&mut hidden) {
        if let (Some(adapter), Some(hidden)) = (&linear.adapter, hidden) {
            let a = Right::transposed(WeightRef::F32(adapter.a));
            batch.sum(hidden.view_mut(), false, vec![(&input[0], a, adapter.scale)]);
        }
    }
    batch.run();

    if let Some(fixed) = fixed {
        let lows = low_ranks(linears, &hidden, |adapter| adapter.b);
        fixed.forward(x, ys.iter_mut().map(|y| y.view_mut()).zip(lows).collect());
    } else {
        let low = prepare_present(&hidden, false, compute);
        let mut batch = Batch::new(compute);
        let mut index = 0;
        for (linear, y) in linears.iter().zip(&mut ys) {
            let mut terms = vec![(&input[0], Right::transposed(linear.weight), 1.0)];
            if let Some(adapter) = &linear.adapter {
                terms.push((&low[index], Right::transposed(WeightRef::F32(adapter.b)), 1.0));
                index += 1;
            }
            batch.sum(y.view_mut(), false, terms);
        }
        batch.run();
    }
    for (linear, y) in linears.iter().zip(ys) {
        if let Some(bias) = linear.bias {
            columns::add_bias(y, bias);
        }
    }
    hidden
}

/// What the adapter of each linear adds where the base is multiplied in fixed point.
fn low_ranks<'a>(
    linears: &'a [Linear<'_>],
    hidden: &'a [Option<Matrix>],
    factor: impl Fn(&'a Adapter<'_>) -> MatRef<'a>,
) -> impl Iterator<Item = Option<LowRank<'a>>> {
    linears.iter().zip(hidden).map(move |(linear, hidden)| {
        let (adapter, hidden) = (linear.adapter.as_ref()?, hidden.as_ref()?);
        Some(LowRank { hidden: hidden.view(), factor: factor(adapter) })
    })
}

/// The matrices that are there, as left operands.
fn prepare_present(matrices: &[Option<Matrix>], transposed: bool, compute: Compute) -> Prepareds<'_> {
    let views: Vec<MatRef<'_>> = matrices.iter().flatten().map(Matrix::view).collect();
    prepare(&views, transposed, compute)
}

/// Computes the sum of all input gradients `dx [T,K]` and returns each du `[T,R]` for [`backward_params`].
pub fn backward_input(linears: &[Linear<'_>], dys: &[&Matrix], dx: &mut Matrix, arena: &Arena) -> Vec<Option<Matrix>> {
    assert!(!linears.is_empty() && linears.len() == dys.len());
    let rows = dx.rows();
    let operations = base_operations(linears, rows) + adapter_operations(linears, rows, [true, true]);
    let _span = profile::span("linears backward, input", operations);
    if !together(linears, rows) {
        let each = linears.iter().zip(dys).enumerate();
        return each.map(|(i, (linear, dy))| super::backward_input(linear, dy, dx, i > 0, arena)).collect();
    }
    let (fixed, compute) = (fixed_point(linears, rows), dense_format(linears[0].compute));
    let views: Vec<MatRef<'_>> = dys.iter().map(|dy| dy.view()).collect();
    let gradients = prepare(&views, false, compute);
    let mut hidden: Vec<Option<Matrix>> = linears
        .iter()
        .map(|linear| linear.adapter.as_ref().map(|adapter| arena.matrix(rows, adapter.b.cols)))
        .collect();
    let mut batch = Batch::new(compute);
    for (index, (linear, hidden)) in linears.iter().zip(&mut hidden).enumerate() {
        if let (Some(adapter), Some(hidden)) = (&linear.adapter, hidden) {
            let b = Right::plain(WeightRef::F32(adapter.b));
            batch.sum(hidden.view_mut(), false, vec![(&gradients[index], b, adapter.scale)]);
        }
    }
    batch.run();

    if let Some(fixed) = fixed {
        let lows: Vec<_> = low_ranks(linears, &hidden, |adapter| adapter.a).flatten().collect();
        fixed.backward(&views, &lows, dx.view_mut(), false);
        return hidden;
    }
    let low = prepare_present(&hidden, false, compute);
    let mut terms = Vec::with_capacity(2 * linears.len());
    let mut index = 0;
    for (i, linear) in linears.iter().enumerate() {
        terms.push((&gradients[i], Right::plain(linear.weight), 1.0));
        if let Some(adapter) = &linear.adapter {
            terms.push((&low[index], Right::plain(WeightRef::F32(adapter.a)), 1.0));
            index += 1;
        }
    }
    let mut batch = Batch::new(compute);
    batch.sum(dx.view_mut(), false, terms);
    batch.run();
    hidden
}

/// Adds the gradients of everything trained in these linears. `operands` are those of each; all have one `x`.
pub fn backward_params(linears: &[Linear<'_>], operands: &[Operands<'_>], grads: &mut Gradients, arena: &Arena) {
    assert!(!linears.is_empty() && linears.len() == operands.len());
    let x = operands[0].x;
    if !together(linears, x.rows) {
        let each = linears.iter().zip(operands);
        return each.for_each(|(linear, operands)| super::backward_params(linear, *operands, grads, arena));
    }
    for (linear, operands) in linears.iter().zip(operands) {
        weight_gradients(linear, operands, grads);
    }
    let _span = profile::span("linears backward, adapters", adapter_operations(linears, x.rows, [true, true]));
    let adapted: Vec<_> = linears.iter().zip(operands).filter(|(linear, _)| linear.adapter.is_some()).collect();
    // What the caller does not have is computed for one linear after the other.
    if adapted.is_empty() {
        return;
    }
    if adapted.iter().any(|(_, operands)| operands.hidden_gradient.is_none()) {
        for (linear, operands) in adapted {
            if let Some(adapter) = &linear.adapter {
                adapter_gradients(linear, adapter, *operands, grads, arena);
            }
        }
        return;
    }
    batched_adapter_gradients(&adapted, x, grads, arena);
}

/// In the format that suits products with the few rows of u and du.
fn batched_adapter_gradients(
    adapted: &[(&Linear<'_>, &Operands<'_>)],
    x: MatRef<'_>,
    grads: &mut Gradients,
    arena: &Arena,
) {
    let compute = adapted[0].0.compute;
    let narrow = dense_format(compute);
    let adapters: Vec<_> = adapted.iter().filter_map(|(linear, _)| linear.adapter.as_ref()).collect();
    let computed: Vec<Option<Matrix>> = adapted
        .iter()
        .zip(&adapters)
        .map(|((_, operands), adapter)| match operands.hidden {
            Some(_) => None,
            None => Some(low_rank(adapter, x, arena, narrow)),
        })
        .collect();
    let hidden = adapted
        .iter()
        .zip(&computed)
        .filter_map(|((_, operands), computed)| operands.hidden.or(computed.as_ref()).map(Matrix::view));
    let gradients = adapted.iter().filter_map(|(_, operands)| operands.hidden_gradient.map(Matrix::view));
    // First each u, then each du.
    let views: Vec<MatRef<'_>> = hidden.chain(gradients).collect();
    let format = format_of_narrow(compute);
    let low = prepare(&views, true, format);
    let mut targets: Vec<[Vec<f32>; 2]> =
        adapters.iter().map(|adapter| [grads.take(adapter.a_id), grads.take(adapter.b_id)]).collect();
    let mut batch = Batch::new(format);
    let mut shared = Vec::with_capacity(adapters.len());
    for (index, (adapter, [da, db])) in adapters.iter().zip(&mut targets).enumerate() {
        let (rank, rows) = (adapter.a.rows, adapter.b.rows);
        shared.push((&low[adapters.len() + index], MatMut::new(da, rank, adapter.a.cols), 1.0));
        let dy = Right::plain(WeightRef::F32(adapted[index].1.dy.view()));
        batch.turned(MatMut::new(db, rows, rank), true, (&low[index], dy, 1.0));
    }
    batch.share(Right::plain(WeightRef::F32(x)), true, shared);
    batch.run();
    for (adapter, [da, db]) in adapters.iter().zip(targets) {
        grads.put(adapter.a_id, da);
        grads.put(adapter.b_id, db);
    }
}
