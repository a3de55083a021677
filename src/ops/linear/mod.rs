//! A linear layer with an optional low-rank adapter: the heart of LoRA, QLoRA and DoRA.
//!
//! With `x [T,K]`, frozen or trained weight `W [N,K]`, adapter `A [R,K]`, `B [N,R]`, scale `s`, and `x̃ = dropout(x)`:
//!
//! ```text
//! forward    u = s·x̃·Aᵀ                    y = x·Wᵀ + bias + u·Bᵀ
//! backward   du = s·dy·B                   dx (+)= dy·W + dropout'(du·A)
//!            dB += dyᵀ·u                   dA += duᵀ·x̃          (trained W: dW += dyᵀ·x, dbias += Σ_t dy)
//! ```
//!
//! DoRA scales output column `n` by `g[n] = m[n] / ‖W + s·B·A‖ₙ`, the norm counting as a constant, exactly as PEFT does:
//!
//! ```text
//! forward    y = x·Wᵀ + bias + (g-1)∘(x̃·Wᵀ) + g∘(u·Bᵀ)
//! backward   du = s·(g∘dy)·B               dx (+)= dy·W + dropout'(((g-1)∘dy)·W + du·A)
//!            dB += (g∘dy)ᵀ·u               dm[n] += Σ_t dy[t,n]·(x̃·Wᵀ + u·Bᵀ)[t,n] / ‖·‖ₙ
//! ```
//!
//! The scale is on the narrow u, so that the products that make or read a wide matrix add what they find.
//!
//! The input gradient and the parameter gradients are separate calls, because the step obtains the input of `down_proj`
//! as a by-product of the backward pass that follows the first and precedes the second.
//!
//! Reference: PEFT `tuners/lora/layer.py` and `dora.py`; Hu et al. 2021; Liu et al. 2024 (DoRA).

mod columns;
pub mod cuda;
pub mod group;
#[cfg(test)]
mod tests;

use super::gemm::{
    backward_nn, dense_format, format_of_narrow, forward_nt, matmul_nn, matmul_nt, matmul_tn, Store, WeightRef,
};
use super::{dropout, Arena, Gradients, MatMut, MatRef, Matrix, ParamId, RandomStream};
use crate::device::Compute;

/// A linear layer as one pass sees it: borrowed values, and the ids that its gradients are added to.
#[derive(Clone, Copy)]
pub struct Linear<'a> {
    /// `[N, K]`.
    pub weight: WeightRef<'a>,
    /// Set when the weight itself is trained.
    pub weight_id: Option<ParamId>,
    /// `[N]`.
    pub bias: Option<&'a [f32]>,
    /// Set when the bias is trained.
    pub bias_id: Option<ParamId>,
    /// The low-rank adapter, if this layer has one.
    pub adapter: Option<Adapter<'a>>,
    /// Operand format of the products.
    pub compute: Compute,
}

/// The adapter of a linear layer as one pass sees it.
#[derive(Clone, Copy)]
pub struct Adapter<'a> {
    /// `[R, K]`.
    pub a: MatRef<'a>,
    /// `[N, R]`.
    pub b: MatRef<'a>,
    /// Where the gradient of A goes.
    pub a_id: ParamId,
    /// Where the gradient of B goes.
    pub b_id: ParamId,
    /// Factor of the adapter's output (alpha/R, or alpha/√R with rsLoRA).
    pub scale: f32,
    /// Probability and mask of the dropout on the adapter's input; None in evaluation or when it is zero.
    pub dropout: Option<(f32, RandomStream)>,
    /// DoRA's column factors.
    pub dora: Option<Dora<'a>>,
}

/// DoRA's part of an adapter.
#[derive(Clone, Copy)]
pub struct Dora<'a> {
    /// `g[n] = m[n] / norm[n]`.
    pub factor: &'a [f32],
    /// `‖W + s·B·A‖` of each output row.
    pub norm: &'a [f32],
    /// Where the gradient of the magnitude m goes.
    pub magnitude_id: ParamId,
}

impl Linear<'_> {
    /// Whether any parameter of this layer is trained.
    pub fn is_trained(&self) -> bool {
        self.adapter.is_some() || self.weight_id.is_some() || self.bias_id.is_some()
    }
}

/// Computes `y [T,N]` and returns `u [T,R]`, which the backward pass can use again.
pub fn forward(linear: &Linear<'_>, x: MatRef<'_>, y: &mut Matrix, arena: &Arena) -> Option<Matrix> {
    forward_nt(x, linear.weight, y.view_mut(), linear.compute);
    let hidden = linear.adapter.as_ref().map(|adapter| add_adapter(linear, adapter, x, y, arena));
    if let Some(bias) = linear.bias {
        columns::add_bias(y, bias);
    }
    hidden
}

/// Adds the adapter's part to `y`, which holds `x·Wᵀ`; returns u.
fn add_adapter(linear: &Linear<'_>, adapter: &Adapter<'_>, x: MatRef<'_>, y: &mut Matrix, arena: &Arena) -> Matrix {
    let dropped = dropped_input(adapter, x, arena);
    let input = dropped.as_ref().map_or(x, Matrix::view);
    let compute = dense_format(linear.compute);
    let hidden = low_rank(adapter, input, arena, compute);
    let add = Store::add(compute);
    match (adapter.dora, &dropped) {
        (None, _) => matmul_nt(hidden.view(), WeightRef::F32(adapter.b), y.view_mut(), add),
        (Some(dora), None) => {
            matmul_nt(hidden.view(), WeightRef::F32(adapter.b), y.view_mut(), add);
            columns::scale(y, dora.factor);
        }
        (Some(dora), Some(_)) => {
            let mut part = arena.matrix(y.rows(), y.cols());
            forward_nt(input, linear.weight, part.view_mut(), linear.compute);
            columns::scale_by(&mut part, dora.factor, -1.0);
            columns::add(y, &part);
            matmul_nt(hidden.view(), WeightRef::F32(adapter.b), part.view_mut(), Store::set(compute));
            columns::scale(&mut part, dora.factor);
            columns::add(y, &part);
        }
    }
    hidden
}

/// `u [T,R] = s·input·Aᵀ`.
fn low_rank(adapter: &Adapter<'_>, input: MatRef<'_>, arena: &Arena, compute: Compute) -> Matrix {
    let mut hidden = arena.matrix(input.rows, adapter.a.rows);
    matmul_nt(input, WeightRef::F32(adapter.a), hidden.view_mut(), Store::set(compute).scaled(adapter.scale));
    hidden
}

/// `dropout(x)`, or None where dropout is off and x serves itself.
fn dropped_input(adapter: &Adapter<'_>, x: MatRef<'_>, arena: &Arena) -> Option<Matrix> {
    let (probability, stream) = adapter.dropout?;
    assert_eq!(x.stride, x.cols, "dropout needs a contiguous input");
    let mut dropped = arena.matrix(x.rows, x.cols);
    dropout::apply(&x.data[..x.rows * x.cols], &mut dropped, probability, stream);
    Some(dropped)
}

/// Computes `dx [T,K]` (overwritten, or added to with `accumulate`) and returns `du [T,R]` for [`backward_params`].
pub fn backward_input(
    linear: &Linear<'_>,
    dy: &Matrix,
    dx: &mut Matrix,
    accumulate: bool,
    arena: &Arena,
) -> Option<Matrix> {
    let Some(adapter) = &linear.adapter else {
        backward_nn(dy.view(), linear.weight, dx.view_mut(), accumulate, linear.compute);
        return None;
    };
    let scaled = adapter.dora.map(|dora| columns::scaled_copy(dy, dora.factor, 0.0, arena));
    let dy_adapter = scaled.as_ref().unwrap_or(dy);
    let compute = dense_format(linear.compute);
    let hidden_gradient = low_rank_gradient(adapter, dy_adapter, arena, compute);
    let a = WeightRef::F32(adapter.a);
    match adapter.dropout {
        None => {
            // With DoRA and no dropout y = g∘(x·Wᵀ + s·u·Bᵀ): the whole product sees g∘dy.
            backward_nn(dy_adapter.view(), linear.weight, dx.view_mut(), accumulate, linear.compute);
            matmul_nn(hidden_gradient.view(), a, dx.view_mut(), Store::add(compute));
        }
        Some((probability, stream)) => {
            backward_nn(dy.view(), linear.weight, dx.view_mut(), accumulate, linear.compute);
            let mut part = arena.matrix(dx.rows(), dx.cols());
            matmul_nn(hidden_gradient.view(), a, part.view_mut(), Store::set(compute));
            if let Some(dora) = adapter.dora {
                let rest = columns::scaled_copy(dy, dora.factor, -1.0, arena);
                backward_nn(rest.view(), linear.weight, part.view_mut(), true, linear.compute);
            }
            dropout::apply_add(&part, dx, probability, stream);
        }
    }
    Some(hidden_gradient)
}

/// `du [T,R] = s·dy·B`.
fn low_rank_gradient(adapter: &Adapter<'_>, dy: &Matrix, arena: &Arena, compute: Compute) -> Matrix {
    let mut gradient = arena.matrix(dy.rows(), adapter.b.cols);
    let set = Store::set(compute).scaled(adapter.scale);
    matmul_nn(dy.view(), WeightRef::F32(adapter.b), gradient.view_mut(), set);
    gradient
}

/// What the parameter gradients are computed from.
#[derive(Clone, Copy)]
pub struct Operands<'a> {
    /// Input of the layer, `[T,K]`.
    pub x: MatRef<'a>,
    /// Gradient of its output, `[T,N]`.
    pub dy: &'a Matrix,
    /// u of the forward pass; computed again when absent.
    pub hidden: Option<&'a Matrix>,
    /// du of [`backward_input`]; computed again when absent.
    pub hidden_gradient: Option<&'a Matrix>,
}

/// Adds the gradients of everything trained in this layer.
pub fn backward_params(linear: &Linear<'_>, operands: Operands<'_>, grads: &mut Gradients, arena: &Arena) {
    weight_gradients(linear, &operands, grads);
    if let Some(adapter) = &linear.adapter {
        adapter_gradients(linear, adapter, operands, grads, arena);
    }
}

/// dW and dbias, where they are trained.
fn weight_gradients(linear: &Linear<'_>, operands: &Operands<'_>, grads: &mut Gradients) {
    if let Some(id) = linear.weight_id {
        let gradient = MatMut::new(grads.get_mut(id), linear.weight.rows(), linear.weight.cols());
        matmul_tn(operands.dy.view(), operands.x, gradient, Store::add(dense_format(linear.compute)));
    }
    if let Some(id) = linear.bias_id {
        columns::add_column_sums(operands.dy, grads.get_mut(id));
    }
}

fn adapter_gradients(
    linear: &Linear<'_>,
    adapter: &Adapter<'_>,
    operands: Operands<'_>,
    grads: &mut Gradients,
    arena: &Arena,
) {
    let Operands { x, dy, .. } = operands;
    let (compute, add) = (dense_format(linear.compute), Store::add(format_of_narrow(linear.compute)));
    let dropped = dropped_input(adapter, x, arena);
    let input = dropped.as_ref().map_or(x, Matrix::view);
    let scaled = adapter.dora.map(|dora| columns::scaled_copy(dy, dora.factor, 0.0, arena));
    let dy_adapter = scaled.as_ref().unwrap_or(dy);

    let (mut computed, mut computed_gradient) = (None, None);
    let hidden = match operands.hidden {
        Some(hidden) => hidden,
        None => computed.insert(low_rank(adapter, input, arena, compute)),
    };
    let hidden_gradient = match operands.hidden_gradient {
        Some(gradient) => gradient,
        None => computed_gradient.insert(low_rank_gradient(adapter, dy_adapter, arena, compute)),
    };

    let (rank, cols, rows) = (adapter.a.rows, adapter.a.cols, adapter.b.rows);
    matmul_tn(hidden_gradient.view(), input, MatMut::new(grads.get_mut(adapter.a_id), rank, cols), add);
    let db = MatMut::new(grads.get_mut(adapter.b_id), rows, rank);
    matmul_tn(dy_adapter.view(), hidden.view(), db, add);

    if let Some(dora) = adapter.dora {
        let mut product = arena.matrix(dy.rows(), dy.cols());
        forward_nt(input, linear.weight, product.view_mut(), linear.compute);
        matmul_nt(hidden.view(), WeightRef::F32(adapter.b), product.view_mut(), Store::add(compute));
        columns::add_magnitude_gradient(dy, &product, dora.norm, grads.get_mut(dora.magnitude_id));
    }
}
