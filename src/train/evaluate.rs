//! Loss, perplexity and bits per byte of a held-out corpus.
//!
//! Bits per byte = Σ loss of predicted text tokens (end-of-text excluded) / ln 2 / their UTF-8 bytes. It compares
//! models with different tokenizers; perplexity does not.

use super::metrics::EvalRow;
use super::step::Engine;
use crate::data::batch::MicroBatch;
use crate::error::Result;

/// Evaluates `batches`; the sums are over tokens in order, in f64. `progress` is told each finished batch and says
/// whether to go on; `None` if not.
///
/// # Errors
/// What a GPU says; on the CPU none.
pub fn evaluate(
    engine: &mut Engine,
    batches: &[MicroBatch],
    (set, step): (&str, u64),
    progress: &mut dyn FnMut(usize, usize) -> bool,
) -> Result<Option<EvalRow>> {
    let (mut sum, mut text_sum, mut targets, mut bytes, mut done) = (0.0f64, 0.0f64, 0usize, 0u64, 0);
    let finished = engine.losses(batches, &mut |batch, loss, of_rows| {
        sum += loss.sum;
        targets += loss.targets;
        bytes += batch.text_bytes;
        let text = of_rows.iter().zip(&batch.text_target).filter(|(_, is_text)| **is_text);
        text_sum += text.map(|(loss, _)| f64::from(*loss)).sum::<f64>();
        done += 1;
        progress(done, batches.len())
    })?;
    let loss = sum / targets.max(1) as f64;
    Ok(finished.then(|| EvalRow {
        step,
        set: set.into(),
        loss,
        perplexity: loss.exp(),
        bits_per_byte: text_sum / std::f64::consts::LN_2 / bytes.max(1) as f64,
    }))
}
