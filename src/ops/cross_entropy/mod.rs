//! The language-model head and its cross-entropy in one operation: the logits never exist whole.
//!
//! Legend: T rows (tokens), H hidden features, V vocabulary, A rows with a target (`target ≠ -100`).
//!
//! Forward, for each row with a target `y`: `z = hidden · Wᵀ`, `loss = ln Σ_v e^(z_v) − z_y`.
//! Backward, with `p = softmax(z)`: `dz = (p − onehot(y)) · scale`, `dhidden = dz · W`, `dW += dzᵀ · hidden`.
//!
//! Rows labelled [`IGNORE`] are dropped before the product. The others go through in chunks of at most 50 MB of logits,
//! which the backward pass overwrites with `dz` while they are there: nothing is saved, `dhidden` comes out at once.
//!
//! Invariant: the chunks are a function of T and V alone and losses are added in the order of the rows, so the bits do not
//! depend on the threads. Reference: `torch.nn.functional.cross_entropy(..., ignore_index=-100)`, sum reduction.

mod cpu;
pub mod cuda;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

use super::gemm::{matmul_nn, matmul_nt, matmul_tn, Store, WeightRef};
use super::matrix::odd_stride;
use super::vector::rows_per_task;
use super::{Arena, MatMut, MatRef, Matrix};
use crate::device::{cpu_path, Compute, CpuPath};
use crate::ops::profile;
use rayon::prelude::*;

/// The target of a row that is not trained on.
pub const IGNORE: i32 = -100;

/// Most logits of a chunk: 50 MB of f32. With fewer rows, packing the head for each chunk takes more of the time.
const CHUNK_LOGITS: usize = 12 << 20;

/// The output projection.
#[derive(Clone, Copy)]
pub struct Head<'a> {
    /// `[V, H]`.
    pub weight: WeightRef<'a>,
    /// Operand format of its products.
    pub compute: Compute,
}

/// What a batch lost.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Loss {
    /// Σ of the token losses in nats, in f64, in the order of the rows.
    pub sum: f64,
    /// Rows with a target.
    pub targets: usize,
}

/// Where the gradients go.
pub struct HeadGrads<'a> {
    /// `[T, H]`, overwritten; rows without a target become zero.
    pub dhidden: &'a mut Matrix,
    /// `[V, H]`, added to; `None` for a frozen head.
    pub dweight: Option<&'a mut [f32]>,
    /// `[T]`: the loss of each token, 0 where there is no target.
    pub token_loss: Option<&'a mut [f32]>,
}

/// The loss alone. `hidden` is `[T, H]` after the final norm, `targets` `[T]` holds ids below V or [`IGNORE`];
/// `token_loss` `[T]` receives the loss of each token, 0 where there is no target.
pub fn forward(
    head: Head<'_>,
    hidden: MatRef<'_>,
    targets: &[i32],
    arena: &Arena,
    token_loss: Option<&mut [f32]>,
) -> Loss {
    Problem::new(head, hidden, targets, arena).run(token_loss, None)
}

/// The loss and its gradients times `scale` (one over the target tokens of the whole optimizer step).
pub fn forward_backward(
    head: Head<'_>,
    hidden: MatRef<'_>,
    targets: &[i32],
    scale: f32,
    arena: &Arena,
    grads: HeadGrads<'_>,
) -> Loss {
    let HeadGrads { dhidden, dweight, token_loss } = grads;
    Problem::new(head, hidden, targets, arena).run(token_loss, Some(Backward { scale, dhidden, dweight }))
}

/// Rows of a chunk of `rows` rows: as few chunks of equal size as [`CHUNK_LOGITS`] allows; a multiple of 16, at least 32.
pub fn chunk_rows(vocabulary: usize, rows: usize) -> usize {
    let most = (CHUNK_LOGITS / vocabulary / 16 * 16).max(32);
    rows.div_ceil(rows.div_ceil(most).max(1)).next_multiple_of(16).max(32)
}

struct Problem<'a> {
    head: Head<'a>,
    hidden: MatRef<'a>,
    targets: &'a [i32],
    arena: &'a Arena,
    path: CpuPath,
    chunk_rows: usize,
}

struct Backward<'a> {
    scale: f32,
    dhidden: &'a mut Matrix,
    dweight: Option<&'a mut [f32]>,
}

impl<'a> Problem<'a> {
    fn new(head: Head<'a>, hidden: MatRef<'a>, targets: &'a [i32], arena: &'a Arena) -> Problem<'a> {
        let vocabulary = head.weight.rows();
        assert!(vocabulary > 0 && head.weight.cols() == hidden.cols && targets.len() == hidden.rows);
        let known = |&y: &i32| y == IGNORE || (0..vocabulary as i64).contains(&i64::from(y));
        assert!(targets.iter().all(known), "a target outside 0..{vocabulary}");
        Problem { head, hidden, targets, arena, path: cpu_path(), chunk_rows: chunk_rows(vocabulary, hidden.rows) }
    }

    fn run(&self, mut token_loss: Option<&mut [f32]>, mut backward: Option<Backward<'_>>) -> Loss {
        let active: Vec<usize> = (0..self.targets.len()).filter(|&row| self.targets[row] != IGNORE).collect();
        if let Some(token_loss) = token_loss.as_deref_mut() {
            assert_eq!(token_loss.len(), self.targets.len());
            token_loss.fill(0.0);
        }
        if let Some(backward) = &mut backward {
            backward.clear_ignored(self, active.len());
        }
        let stride = odd_stride(self.head.weight.rows());
        // Sized by T, not by A: the same shape in every step, so that the arena can hand the same memory out again.
        let most = self.chunk_rows.min(self.targets.len());
        let mut logits = self.arena.matrix(most, stride);
        let mut scratch = (active.len() < self.targets.len()).then(|| self.arena.matrix(most, self.hidden.cols));
        let mut losses = vec![0f64; most];
        let mut sum = 0.0;
        for rows in active.chunks(self.chunk_rows) {
            let logits = &mut logits[..rows.len() * stride];
            let losses = &mut losses[..rows.len()];
            match scratch.as_mut().filter(|_| !consecutive(rows)) {
                None => self.chunk(rows, (logits, losses), None, backward.as_mut()),
                Some(scratch) => {
                    let scratch = &mut scratch[..rows.len() * self.hidden.cols];
                    self.gather(rows, scratch);
                    self.chunk(rows, (logits, losses), Some(scratch), backward.as_mut());
                }
            }
            for (&row, &loss) in rows.iter().zip(&*losses) {
                sum += loss;
                if let Some(token_loss) = token_loss.as_deref_mut() {
                    token_loss[row] = loss as f32;
                }
            }
        }
        Loss { sum, targets: active.len() }
    }

    /// One chunk: logits, losses and, where asked for, gradients. `rows` are ascending; if they have gaps, `gathered`
    /// holds their hidden states and is overwritten with the gradients.
    fn chunk(
        &self,
        rows: &[usize],
        (logits, losses): (&mut [f32], &mut [f64]),
        gathered: Option<&mut [f32]>,
        backward: Option<&mut Backward<'_>>,
    ) {
        let Head { weight, compute } = self.head;
        let (count, vocabulary, features) = (rows.len(), weight.rows(), self.hidden.cols);
        let stride = odd_stride(vocabulary);
        let hidden = match &gathered {
            Some(gathered) => MatRef::new(gathered, count, features),
            None => self.hidden.row_range(rows[0]..rows[0] + count),
        };
        let span = profile::span("head forward", 2.0 * (count * vocabulary * features) as f64);
        let target = MatMut { data: logits, rows: count, cols: vocabulary, stride };
        matmul_nt(hidden, weight, target, Store::set(compute));
        drop(span);
        let targets: Vec<usize> = rows.iter().map(|&row| self.targets[row] as usize).collect();
        softmax(self.path, vocabulary, logits, &targets, losses, backward.as_ref().map(|b| b.scale));

        let Some(Backward { dhidden, dweight, .. }) = backward else { return };
        let dlogits = MatRef { data: logits, rows: count, cols: vocabulary, stride };
        if let Some(dweight) = dweight.as_deref_mut() {
            matmul_tn(dlogits, hidden, MatMut::new(dweight, vocabulary, features), Store::add(compute));
        }
        let _span = profile::span("head backward", 2.0 * (count * vocabulary * features) as f64);
        match gathered {
            None => {
                let span = rows[0] * features..(rows[0] + count) * features;
                matmul_nn(dlogits, weight, MatMut::new(&mut dhidden[span], count, features), Store::set(compute));
            }
            Some(gathered) => {
                matmul_nn(dlogits, weight, MatMut::new(gathered, count, features), Store::set(compute));
                for (gradient, &row) in gathered.chunks_exact(features.max(1)).zip(rows) {
                    dhidden[row * features..(row + 1) * features].copy_from_slice(gradient);
                }
            }
        }
    }

    fn gather(&self, rows: &[usize], out: &mut [f32]) {
        for (out, &row) in out.chunks_exact_mut(self.hidden.cols.max(1)).zip(rows) {
            out.copy_from_slice(self.hidden.row(row));
        }
    }
}

impl Backward<'_> {
    fn clear_ignored(&mut self, problem: &Problem<'_>, active: usize) {
        let (rows, features) = (problem.hidden.rows, problem.hidden.cols);
        assert!(self.dhidden.rows() == rows && self.dhidden.cols() == features);
        assert!(self.dweight.as_ref().is_none_or(|dw| dw.len() == problem.head.weight.rows() * features));
        if active < rows {
            for (row, target) in self.dhidden.chunks_exact_mut(features.max(1)).zip(problem.targets) {
                if *target == IGNORE {
                    row.fill(0.0);
                }
            }
        }
    }
}

/// Whether ascending rows leave no gap.
fn consecutive(rows: &[usize]) -> bool {
    rows.last().is_none_or(|last| last - rows[0] + 1 == rows.len())
}

/// The loss of each row of `logits` `[targets.len(), V]`, [`odd_stride`] apart; with a scale, the logits become their
/// gradients.
fn softmax(
    path: CpuPath,
    vocabulary: usize,
    logits: &mut [f32],
    targets: &[usize],
    losses: &mut [f64],
    scale: Option<f32>,
) {
    let _span = profile::span("head softmax", 0.0);
    let (stride, rows) = (odd_stride(vocabulary), rows_per_task(vocabulary));
    (logits.par_chunks_mut(rows * stride), targets.par_chunks(rows), losses.par_chunks_mut(rows))
        .into_par_iter()
        .for_each(|(logits, targets, losses)| match scale {
            Some(scale) => cpu::losses_and_gradients(path, (vocabulary, stride), logits, targets, losses, scale),
            None => cpu::losses(path, (vocabulary, stride), logits, targets, losses),
        });
}
