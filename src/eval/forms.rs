//! The same adapted model in every form that people run it in, on the same text.
//!
//! The reference is the model as it was trained. For each form: bits per byte, the Kullback-Leibler divergence of its
//! predictions from the reference's, `KL = Σ_v p_v (ln p_v − ln q_v)` in nats for each token, and how often both find the
//! same token likeliest. Small numbers mean that what was measured while training is what people get.

use super::evaluator::{Batches, Evaluator, Layout};
use super::metrics::{text, Metric};
use super::run::{measure, Measured};
use super::task::{Example, Question, Unit};
use crate::error::{Error, Result};
use crate::model::KvCache;
use crate::ops::cross_entropy::IGNORE;
use crate::ops::Matrix;
use rayon::prelude::*;

/// Evidence: nats, tokens, bytes, Σ KL, tokens of which both find the same likeliest.
pub const METRICS: &[Metric] = &[
    Metric::lower("bits_per_byte", text::bits_per_byte),
    Metric::lower("kl_per_token", |units| ratio(units, 3)),
    Metric::higher("same_likeliest", |units| ratio(units, 4)),
];

fn ratio(units: &[&[f64]], column: usize) -> f64 {
    let sum = |column: usize| units.iter().map(|unit| unit[column]).sum::<f64>();
    sum(column) / sum(1)
}

/// Measures `form` against `reference` on windows of text; none if `progress` (windows done, their number) says to stop.
///
/// # Errors
/// Models with different tokenizers; output that is not finite.
pub fn against(
    reference: &Evaluator,
    form: &Evaluator,
    examples: &[Example],
    progress: &mut dyn FnMut(usize, usize) -> bool,
) -> Result<Option<(Vec<Measured>, Vec<Unit>)>> {
    if reference.tokenizer.fingerprint() != form.tokenizer.fingerprint() {
        let same = |text: &str| reference.tokenizer.encode_plain(text).ok() == form.tokenizer.encode_plain(text).ok();
        if !same("Perché no? È già lì, 1234 «così».") {
            return Err(Error::failed("the two forms have different tokenizers: their predictions cannot be compared"));
        }
    }
    let batches = reference.batches(examples, &|_| String::new())?;
    let mut units: Vec<(usize, Unit)> = Vec::new();
    let longest = examples.iter().map(window_rows).max().unwrap_or(1);
    let mut caches = [reference, form].map(|evaluator| [KvCache::new(&evaluator.model, longest)]);
    for batch in 0..batches.batches.len() {
        units.extend(one_batch([reference, form], &batches, batch, examples, &mut caches)?);
        if !progress(units.len(), examples.len()) {
            return Ok(None);
        }
    }
    units.sort_by_key(|(place, _)| *place);
    let units: Vec<Unit> = units.into_iter().map(|(_, unit)| unit).collect();
    Ok(Some((measure(METRICS, &units), units)))
}

fn window_rows(example: &Example) -> usize {
    match &example.question {
        Question::Window(window) => window.ids.len(),
        _ => 1,
    }
}

fn one_batch(
    evaluators: [&Evaluator; 2],
    batches: &Batches,
    batch: usize,
    examples: &[Example],
    caches: &mut [[KvCache; 1]; 2],
) -> Result<Vec<(usize, Unit)>> {
    let questions = &batches.batches[batch];
    let layout = Layout::of(questions, 0);
    let [first, second] = caches;
    let hidden = [
        evaluators[0].model.extend(&evaluators[0].pass(), &layout.stretches, first),
        evaluators[1].model.extend(&evaluators[1].pass(), &layout.stretches, second),
    ];
    let mut units = Vec::new();
    for (question, rows) in questions.iter().zip(&layout.rows) {
        let scored: Vec<usize> = rows.clone().filter(|&row| layout.targets[row] != IGNORE).collect();
        let mut sums = [0.0f64; 3];
        for chunk in scored.chunks(256) {
            let logits = [0, 1].map(|which| {
                let Evaluator { model, .. } = evaluators[which];
                model.logits_rows(&evaluators[which].pass(), &hidden[which], chunk)
            });
            let compared: Vec<[f64; 3]> = (0..chunk.len())
                .into_par_iter()
                .map(|place| compare(&logits, place, layout.targets[chunk[place]] as usize))
                .collect();
            compared.iter().for_each(|row| sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += value));
        }
        if sums.iter().any(|sum| !sum.is_finite()) {
            return Err(Error::failed("the output of one of the forms is not finite"));
        }
        let example = &examples[question.example];
        let Question::Window(window) = &example.question else { continue };
        let [nats, kl, same] = sums;
        let evidence = vec![nats, scored.len() as f64, window.bytes as f64, kl, same];
        units.push((question.example, Unit { id: example.id.clone(), evidence }));
    }
    Ok(units)
}

/// Loss of the form, divergence, and whether both find the same token likeliest.
fn compare(logits: &[Matrix; 2], place: usize, target: usize) -> [f64; 3] {
    let [p, q] = [logits[0].row(place), logits[1].row(place)];
    let log_sum = |row: &[f32]| {
        let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = row.iter().map(|&value| f64::from(value - largest).exp()).sum();
        f64::from(largest) + sum.ln()
    };
    let [p_sum, q_sum] = [log_sum(p), log_sum(q)];
    let divergence = |(&p, &q): (&f32, &f32)| {
        let (p, q) = (f64::from(p) - p_sum, f64::from(q) - q_sum);
        p.exp() * (p - q)
    };
    let kl: f64 = p.iter().zip(q).map(divergence).sum();
    let best =
        |row: &[f32]| row.iter().enumerate().fold(0, |best, (i, value)| if *value > row[best] { i } else { best });
    // Rounding may leave a divergence of nothing a hair below it.
    [q_sum - f64::from(q[target]), kl.max(0.0), f64::from(u8::from(best(p) == best(q)))]
}

#[cfg(test)]
mod tests {
    use super::super::evaluator::tests::evaluator;
    use super::super::text::tests::windows_of;
    use super::super::text::Cut;
    use super::*;

    #[test]
    fn a_model_does_not_diverge_from_itself_and_does_from_another() {
        let (one, other) = (evaluator(64), super::super::evaluator::tests::another(64));
        let cut = Cut { window: 16, stride: 8 };
        let examples = windows_of(&one.tokenizer, 0, "la casa è vicina al mare, e d'estate ci andiamo", cut);
        let (same, units) = against(&one, &one, &examples, &mut |_, _| true).unwrap().unwrap();
        let values: Vec<f64> = same.iter().map(|measured| measured.value).collect();
        assert!(values[1] < 1e-9 && values[2] == 1.0, "{values:?}");
        assert_eq!(units.len(), examples.len());
        let (different, _) = against(&one, &other, &examples, &mut |_, _| true).unwrap().unwrap();
        assert!(different[1].value > 0.01 && different[2].value < 1.0);
        assert!(against(&one, &other, &examples, &mut |_, _| false).unwrap().is_none());
    }

    #[test]
    fn divergence_by_hand() {
        let arena = crate::ops::Arena::new();
        let matrix = |values: [f32; 3]| {
            let mut matrix = arena.matrix(1, 3);
            matrix.copy_from_slice(&values.map(f32::ln));
            matrix
        };
        let logits = [matrix([2.0, 1.0, 1.0]), matrix([1.0, 1.0, 2.0])];
        let [nats, kl, same] = compare(&logits, 0, 2);
        assert!((nats - 2f64.ln()).abs() < 1e-6, "half");
        // 1/2 ln 2 + 0 + 1/4 ln(1/2)
        assert!((kl - 0.25 * 2f64.ln()).abs() < 1e-6);
        assert_eq!(same, 0.0);
    }
}
