//! Loss, perplexity and bits per byte of a held-out corpus.
//!
//! Bits per byte = Σ loss of predicted text tokens (end-of-text excluded) / ln 2 / their UTF-8 bytes. It compares
//! models with different tokenizers; perplexity does not.

use super::metrics::EvalRow;
use super::step::rows;
use crate::data::batch::MicroBatch;
use crate::device::Compute;
use crate::model::{Llama, Pass};
use crate::ops::{Arena, ParamStore};

/// What an evaluation needs beside the model.
#[derive(Clone, Copy)]
pub struct Evaluation<'a> {
    /// Values of everything trained.
    pub params: &'a ParamStore,
    /// Memory of the activations.
    pub arena: &'a Arena,
    /// Operand format of the matrix products.
    pub compute: Compute,
}

/// Evaluates `batches`; the sums are over tokens in order, in f64. `progress` is told each finished batch and says
/// whether to go on; `None` if not.
pub fn evaluate(
    model: &mut Llama,
    evaluation: Evaluation<'_>,
    batches: &[MicroBatch],
    (set, step): (&str, u64),
    progress: &mut dyn FnMut(usize, usize) -> bool,
) -> Option<EvalRow> {
    let Evaluation { params, arena, compute } = evaluation;
    let dora = model.dora_scales(params, arena);
    let (mut sum, mut text_sum, mut targets, mut bytes) = (0.0f64, 0.0f64, 0usize, 0u64);
    for (index, batch) in batches.iter().enumerate() {
        model.rope.ensure(batch.longest_segment());
        let pass = Pass { params, dora: &dora, arena, compute, noise: None };
        let mut losses = vec![0.0f32; batch.ids.len()];
        let loss = model.loss(&pass, rows(batch), &batch.targets, Some(&mut losses));
        sum += loss.sum;
        targets += loss.targets;
        bytes += batch.text_bytes;
        let text = losses.iter().zip(&batch.text_target).filter(|(_, is_text)| **is_text);
        text_sum += text.map(|(loss, _)| f64::from(*loss)).sum::<f64>();
        if !progress(index + 1, batches.len()) {
            return None;
        }
    }
    let loss = sum / targets.max(1) as f64;
    Some(EvalRow {
        step,
        set: set.into(),
        loss,
        perplexity: loss.exp(),
        bits_per_byte: text_sum / std::f64::consts::LN_2 / bytes.max(1) as f64,
    })
}
