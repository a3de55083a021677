//! A model that answers questions, a batch at a time.
//!
//! Windows and choices are scored by [`Llama::extend`]: what all questions of a task begin with (few-shot examples, an
//! instruction) is read once and stays cached, each question's context once, and of its choices only the tokens that
//! differ. Nothing is padded. Batches hold questions of like length, the longest first, so that the most memory is needed
//! at the start.
//!
//! Invariant: what a batch answers depends on the batch alone.

use super::encode::{common_beginning, Encoder, Scored};
use super::on_gpu::OnGpu;
use super::open;
use super::task::{Answer, Example, Question};
use crate::data::template::Template;
use crate::data::tokenize::Tokenizer;
use crate::device::Compute;
use crate::error::{Error, Result};
use crate::model::{DoraScales, Extension, KvCache, Llama, Pass};
use crate::ops::cross_entropy::IGNORE;
use crate::ops::{Arena, ParamStore};
use std::ops::Range;

/// Rows that go through the model at once, where a single question does not need more.
pub(super) const BATCH_ROWS: usize = 512;

/// A loaded model and how it is asked.
pub struct Evaluator {
    pub(super) model: Llama,
    pub(super) params: ParamStore,
    pub(super) dora: DoraScales,
    pub(super) arena: Arena,
    pub(super) settings: Settings,
    /// The model on a GPU, if that is where the passes run.
    pub(super) gpu: Option<OnGpu>,
    /// The model's tokenizer.
    pub tokenizer: Tokenizer,
    /// Writes open questions; none: as plain text.
    pub template: Option<Template>,
}

/// How a model is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Operand format of the matrix products.
    pub compute: Compute,
    /// Most tokens that are read.
    pub context: usize,
    /// Whether texts begin with the BOS that the tokenizer puts in front.
    pub bos: bool,
}

/// What is wanted of scored sequences.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Window,
    Choices,
    Continuation,
    /// A prompt to be continued by at most so many tokens; nothing of it is scored.
    Open {
        max_tokens: usize,
    },
}

/// A question as tokens, and where it stands among the examples.
pub(super) struct Encoded {
    /// Place of its example.
    pub example: usize,
    /// What is wanted of the sequences.
    pub kind: Kind,
    /// One for each choice; one for all other questions.
    pub sequences: Vec<Scored>,
}

impl Encoded {
    /// Tokens that all choices share and that none of them scores, nor needs to predict its first one.
    fn stem(&self) -> usize {
        let common = common_beginning(self.sequences.iter().map(|scored| scored.ids.as_slice()));
        self.sequences.iter().map(|scored| scored.from - 1).min().unwrap_or(0).min(common)
    }

    /// Rows that it takes, its stem once.
    fn rows(&self) -> usize {
        let stem = self.stem();
        stem + self.sequences.iter().map(|scored| scored.ids.len() - 1 - stem).sum::<usize>()
    }
}

/// Questions of a task as tokens, in batches.
pub struct Batches {
    /// Tokens that all begin with.
    pub(super) trunk: Vec<u32>,
    /// The batches.
    pub(super) batches: Vec<Vec<Encoded>>,
    /// Questions whose beginning was cut off.
    pub cut: usize,
}

impl Batches {
    /// The batches whose examples, by place, are asked for.
    pub(super) fn wanted(&self, wanted: &dyn Fn(&[usize]) -> bool) -> Vec<&[Encoded]> {
        let is_wanted = |batch: &&[Encoded]| {
            let examples: Vec<usize> = batch.iter().map(|question| question.example).collect();
            wanted(&examples)
        };
        self.batches.iter().map(Vec::as_slice).filter(is_wanted).collect()
    }
}

impl Evaluator {
    /// A model with its settings; at least 2 tokens of context.
    pub fn new(parts: (Llama, ParamStore), tokenizer: Tokenizer, settings: Settings) -> Evaluator {
        let (mut model, params) = parts;
        model.rope.ensure(settings.context);
        let arena = Arena::new();
        let dora = model.dora_scales(&params, &arena);
        Evaluator { model, params, dora, arena, settings, gpu: None, tokenizer, template: None }
    }

    /// How it is asked.
    pub fn settings(&self) -> Settings {
        self.settings
    }

    pub(super) fn pass(&self) -> Pass<'_> {
        let Evaluator { params, dora, arena, settings, .. } = self;
        Pass { params, dora, arena, compute: settings.compute, noise: None }
    }

    pub(super) fn encoder(&self) -> Encoder<'_> {
        Encoder { tokenizer: &self.tokenizer, bos: self.settings.bos, context: self.settings.context }
    }

    /// Encodes all questions of a task behind `shots` (text that comes before each question; may be empty) and forms
    /// batches.
    ///
    /// # Errors
    /// A question that cannot be encoded, with its id.
    pub fn batches(&self, examples: &[Example], shots: &dyn Fn(usize) -> String) -> Result<Batches> {
        let encode = |(place, example): (usize, &Example)| {
            let (kind, sequences) = self
                .encode(example, &shots(place))
                .map_err(|error| error.at(format_args!("question `{}`", example.id)))?;
            Ok(Encoded { example: place, kind, sequences })
        };
        let mut questions: Vec<Encoded> = examples.iter().enumerate().map(encode).collect::<Result<_>>()?;
        let cut = questions.iter().filter(|question| question.sequences.iter().any(|scored| scored.cut)).count();
        let trunk = match questions.iter().map(Encoded::stem).min() {
            Some(stem) if questions.len() > 1 => {
                let firsts = questions.iter().map(|question| question.sequences[0].ids.as_slice());
                questions[0].sequences[0].ids[..common_beginning(firsts).min(stem)].to_vec()
            }
            _ => Vec::new(),
        };
        questions.sort_by_key(|question| std::cmp::Reverse(question.rows()));
        let (most, most_rows) = match open::batch_size(&self.model, &questions) {
            Some(size) => (size, usize::MAX),
            None => (usize::MAX, BATCH_ROWS),
        };
        let mut batches: Vec<Vec<Encoded>> = Vec::new();
        let mut free = 0;
        for question in questions {
            let rows = question.rows() - trunk.len();
            match batches.last_mut().filter(|batch| rows <= free && batch.len() < most) {
                Some(batch) => batch.push(question),
                None => {
                    batches.push(vec![question]);
                    free = most_rows.max(rows);
                }
            }
            free -= rows;
        }
        Ok(Batches { trunk, batches, cut })
    }

    fn encode(&self, example: &Example, shots: &str) -> Result<(Kind, Vec<Scored>)> {
        let pair =
            |context: &str, choice: &str| self.encoder().pair(&format!("{shots}{context}"), &format!(" {choice}"));
        Ok(match &example.question {
            Question::Window(window) => {
                let scored = Scored { ids: window.ids.clone(), from: window.scored.start, cut: false };
                (Kind::Window, vec![scored])
            }
            Question::Choices { context, choices } => {
                (Kind::Choices, choices.iter().map(|choice| pair(context, choice)).collect::<Result<_>>()?)
            }
            Question::Continuation { context, continuation } => {
                (Kind::Continuation, vec![pair(context, continuation)?])
            }
            Question::Open { max_tokens, .. } => {
                let ids = self.prompt(&example.question, shots)?;
                let room = self.settings.context.saturating_sub(*max_tokens).max(1);
                let over = ids.len().saturating_sub(room);
                let scored = Scored { from: ids.len() - over, ids: ids[over..].to_vec(), cut: over > 0 };
                (Kind::Open { max_tokens: *max_tokens }, vec![scored])
            }
        })
    }

    /// Scores batch after batch that `wanted` asks for, and hands the answers on: places of examples with their answers.
    /// `receive` says whether to go on.
    ///
    /// # Errors
    /// What `receive` reports; values that are not finite.
    pub fn score(
        &self,
        batches: &Batches,
        wanted: &dyn Fn(&[usize]) -> bool,
        receive: &mut dyn FnMut(Vec<(usize, Answer)>) -> Result<bool>,
    ) -> Result<()> {
        let asked = batches.wanted(wanted);
        let longest = asked.iter().flat_map(|batch| batch.iter()).flat_map(|question| &question.sequences);
        let Some(longest) = longest.map(|scored| scored.ids.len() - 1).max() else { return Ok(()) };
        // A GPU reads every sequence from its beginning.
        let on_cpu = self.gpu.is_none();
        let mut cache = [KvCache::new(&self.model, if on_cpu { longest } else { 1 })];
        if on_cpu {
            self.read(&batches.trunk, 0, &mut cache);
        }
        for batch in asked {
            let answers = self.score_batch(batch, batches.trunk.len(), &mut cache)?;
            if !receive(answers)? {
                break;
            }
        }
        Ok(())
    }

    /// Reads `ids` behind the first `past` rows of the only cache.
    pub(super) fn read(&self, ids: &[u32], past: usize, cache: &mut [KvCache]) {
        for (index, ids) in ids.chunks(BATCH_ROWS).enumerate() {
            self.model.extend(&self.pass(), &[Extension { ids, cache: 0, past: past + index * BATCH_ROWS }], cache);
        }
    }

    fn score_batch(&self, batch: &[Encoded], trunk: usize, cache: &mut [KvCache]) -> Result<Vec<(usize, Answer)>> {
        let (sums, hits) = match &self.gpu {
            Some(gpu) => (gpu.sums(batch)?, Vec::new()),
            None => self.sums_and_hits(batch, trunk, cache),
        };
        if let Some(sum) = sums.iter().find(|sum| !sum.is_finite()) {
            return Err(Error::failed(format!("the model's output is not finite (a loss is {sum})"))
                .hint("the weights are damaged or the adapter diverged: try another text or model"));
        }
        let (mut sums, mut hits) = (sums.into_iter(), hits.into_iter());
        let answer = |question: &Encoded| {
            let sums: Vec<f64> = sums.by_ref().take(question.sequences.len()).collect();
            let answer = match question.kind {
                Kind::Window => Answer::Nats(sums[0]),
                Kind::Choices => Answer::Choices(sums.iter().map(|sum| -sum).collect()),
                Kind::Continuation => {
                    let scored = &question.sequences[0];
                    let hits: Vec<bool> = hits.by_ref().take(scored.ids.len() - scored.from).collect();
                    Answer::Continuation { log_likelihood: -sums[0], greedy: hits.iter().all(|hit| *hit) }
                }
                Kind::Open { .. } => Answer::Text(String::new()),
            };
            (question.example, answer)
        };
        Ok(batch.iter().map(answer).collect())
    }

    /// The summed loss of each sequence's scored tokens, and for continuations whether each token is the likeliest.
    fn sums_and_hits(&self, batch: &[Encoded], trunk: usize, cache: &mut [KvCache]) -> (Vec<f64>, Vec<bool>) {
        let Layout { stretches, targets, rows } = Layout::of(batch, trunk);
        let pass = self.pass();
        let hidden = self.model.extend(&pass, &stretches, cache);
        let losses = self.model.token_losses(&pass, &hidden, &targets);
        let sums = rows.iter().map(|rows| losses[rows.clone()].iter().map(|&loss| f64::from(loss)).sum::<f64>());
        let is_continuation = |question: &Encoded| question.kind == Kind::Continuation;
        let hits = match batch.iter().any(is_continuation) {
            true => self.model.greedy_hits(&pass, &hidden, &targets),
            false => Vec::new(),
        };
        (sums.collect(), hits)
    }
}

/// Where the tokens of a batch go.
pub(super) struct Layout<'a> {
    /// Stem and choices of each question.
    pub stretches: Vec<Extension<'a>>,
    /// What each row must predict.
    pub targets: Vec<i32>,
    /// The rows that score each sequence.
    pub rows: Vec<Range<usize>>,
}

impl<'a> Layout<'a> {
    pub fn of(batch: &'a [Encoded], trunk: usize) -> Layout<'a> {
        let mut layout = Layout { stretches: Vec::new(), targets: Vec::new(), rows: Vec::new() };
        for question in batch {
            let stem = question.stem();
            if stem > trunk {
                let ids = &question.sequences[0].ids[trunk..stem];
                layout.stretches.push(Extension { ids, cache: 0, past: trunk });
                layout.targets.resize(layout.targets.len() + ids.len(), IGNORE);
            }
            for Scored { ids, from, .. } in &question.sequences {
                layout.stretches.push(Extension { ids: &ids[stem..ids.len() - 1], cache: 0, past: stem });
                layout.targets.resize(layout.targets.len() + from - 1 - stem, IGNORE);
                let start = layout.targets.len();
                // Ids are far below 2³¹: the tokenizer bounds them by the embedding.
                layout.targets.extend(ids[*from..].iter().map(|&id| id as i32));
                layout.rows.push(start..layout.targets.len());
            }
        }
        layout
    }
}

#[cfg(test)]
#[path = "evaluator_tests.rs"]
pub(super) mod tests;
