//! Scoring on a GPU: each sequence goes through the passes of training as a document of its own, packed with others.
//!
//! What sequences begin with alike is read again for each of them. Answers that are written, or compared with the likeliest
//! tokens, are the CPU's: a GPU is refused for these before anything is asked. Invariant: a sequence's sum does not depend
//! on what it is packed with, but for the rounding of sums.

use super::encode::Scored;
use super::evaluator::{Encoded, Evaluator, Settings, BATCH_ROWS};
use super::task::{Example, Question};
use crate::data::tokenize::Tokenizer;
use crate::device::Compute;
use crate::error::{Error, Result};
use crate::model::cuda::{GpuLlama, GpuParams};
use crate::model::{Llama, Rows};
use crate::ops::cross_entropy::IGNORE;
use crate::ops::gpu::Gpu;
use crate::ops::ParamStore;

/// A model in GPU memory.
pub(super) struct OnGpu {
    model: GpuLlama,
    params: GpuParams,
}

impl Evaluator {
    /// [`Evaluator::new`] whose passes run on a GPU, in bf16 with sums in f32.
    ///
    /// # Errors
    /// A model that the GPU cannot run; the GPU's memory.
    pub fn on_gpu(
        gpu: &Gpu,
        parts: (Llama, ParamStore),
        tokenizer: Tokenizer,
        settings: Settings,
    ) -> Result<Evaluator> {
        let mut evaluator = Evaluator::new(parts, tokenizer, Settings { compute: Compute::Bf16, ..settings });
        let model = GpuLlama::new(gpu, &evaluator.model, &evaluator.params)?;
        evaluator.gpu = Some(OnGpu { model, params: GpuParams::frozen(gpu, &evaluator.params)? });
        Ok(evaluator)
    }

    /// The GPU's name, if that is where the passes run.
    pub fn device(&self) -> Option<String> {
        self.gpu.as_ref().map(|gpu| gpu.model.gpu().driver().name())
    }

    /// Refuses questions that only the CPU can answer, if this is not the CPU.
    ///
    /// # Errors
    /// A question whose answer is written or compared with the likeliest tokens, on a GPU.
    pub fn check(&self, examples: &[Example]) -> Result<()> {
        let is_scored = |example: &Example| matches!(example.question, Question::Window(_) | Question::Choices { .. });
        match examples.iter().find(|example| self.gpu.is_some() && !is_scored(example)) {
            None => Ok(()),
            Some(example) => Err(Error::usage(format!(
                "question `{}`: a GPU scores texts and choices; answers that are written, or compared with the likeliest \
                 tokens, are the CPU's",
                example.id
            ))
            .hint("evaluate this task with --device cpu, the others with the GPU")),
        }
    }
}

impl OnGpu {
    /// The summed loss of each sequence's scored tokens, question by question.
    pub(super) fn sums(&self, batch: &[Encoded]) -> Result<Vec<f64>> {
        let sequences: Vec<&Scored> = batch.iter().flat_map(|question| &question.sequences).collect();
        let mut sums = Vec::with_capacity(sequences.len());
        let mut first = 0;
        while first < sequences.len() {
            let mut rows = 0;
            let fitting = sequences[first..].iter().take_while(|scored| {
                rows += scored.ids.len() - 1;
                rows <= BATCH_ROWS
            });
            let count = fitting.count().max(1);
            sums.extend(self.packed(&sequences[first..first + count])?);
            first += count;
        }
        Ok(sums)
    }

    fn packed(&self, sequences: &[&Scored]) -> Result<Vec<f64>> {
        let (mut ids, mut positions, mut targets, mut segments) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for scored in sequences {
            let (start, rows) = (ids.len(), scored.ids.len() - 1);
            ids.extend(&scored.ids[..rows]);
            positions.extend(0..rows as u32);
            let target = |place: usize| if place < scored.from { IGNORE } else { scored.ids[place] as i32 };
            targets.extend((1..=rows).map(target));
            segments.push(start..ids.len());
        }
        let rows = Rows { ids: &ids, positions: &positions, segments: &segments };
        let losses = self.model.loss(&self.params, rows, &targets)?.of_rows()?;
        Ok(segments.iter().map(|rows| losses[rows.clone()].iter().copied().map(f64::from).sum()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::super::evaluator::tests::{answers, choices, wide};
    use super::super::task::{Answer, Gold, Window};
    use super::*;
    use crate::ops::testing::emulated_gpu;

    #[test]
    fn texts_and_choices_score_as_on_the_cpu() {
        let Some(gpu) = emulated_gpu() else { return };
        let (cpu, there) = (wide(300, None), wide(300, Some(&gpu)));
        assert_eq!(there.settings().compute, Compute::Bf16);
        let close = |expected: f64, found: f64| (found / expected - 1.0).abs() < 1e-2;
        let words = ["casa", "il mare", "perché no"];
        let questions: Vec<Example> = (0..9)
            .map(|i| choices(i, &format!("Domanda numero {i}: {} o", words[i % 3].repeat(1 + i)), &words[..2 + i % 2]))
            .collect();
        let shots = "Domanda: che cosa?\nRisposta: nulla\n\n";
        for (expected, found) in answers(&cpu, &questions, shots).iter().zip(answers(&there, &questions, shots)) {
            let (Answer::Choices(expected), Answer::Choices(found)) = (expected, &found) else { panic!("{found:?}") };
            assert!(expected.len() == found.len() && expected.iter().zip(found).all(|(e, f)| close(*e, *f)));
        }
        let text: Vec<Example> = [1, 30, 250]
            .map(|length| {
                let ids: Vec<u32> = (0..=length as u32).map(|i| 5 + i * 7 % 90).collect();
                let window = Window { document: 0, scored: length / 2 + 1..length + 1, ids, bytes: 1 };
                Example { id: length.to_string(), question: Question::Window(window), gold: Gold::None }
            })
            .into();
        for (expected, found) in answers(&cpu, &text, "").iter().zip(answers(&there, &text, "")) {
            let (Answer::Nats(expected), Answer::Nats(found)) = (expected, &found) else { panic!("{found:?}") };
            assert!(close(*expected, *found), "{found} for {expected}");
        }
    }

    #[test]
    fn what_only_the_cpu_answers_is_refused_on_a_gpu() {
        let Some(gpu) = emulated_gpu() else { return };
        let question = Question::Continuation { context: "il".into(), continuation: "mare".into() };
        let example = Example { id: "seven".into(), question, gold: Gold::None };
        wide(64, None).check(std::slice::from_ref(&example)).unwrap();
        let error = wide(64, Some(&gpu)).check(&[choices(0, "a", &["b", "c"]), example]).unwrap_err();
        assert!(error.message().contains("`seven`"), "{error}");
        assert!(error.hint_text().is_some_and(|hint| hint.contains("--device cpu")), "{error}");
    }
}
