//! Open questions: answers written greedily, several side by side.
//!
//! Every sequence has a cache of its own; what all prompts begin with is read once and copied. An answer ends at a stop
//! token, at the end of a line that says something (the answers of all tasks are one line), or at its length.

use super::evaluator::{Batches, Encoded, Evaluator, Kind, BATCH_ROWS};
use super::task::{Answer, Question};
use crate::data::template::{Instruction, Mode};
use crate::error::{Error, Result};
use crate::model::{Extension, KvCache, Llama};
use crate::ops::Matrix;

/// Most answers written side by side.
const SIDE_BY_SIDE: usize = 16;
/// Memory that the caches of a batch may take, in bytes.
const CACHE_BYTES: usize = 1 << 30;

/// How many open questions are answered side by side; none if they are not open.
pub(super) fn batch_size(model: &Llama, questions: &[Encoded]) -> Option<usize> {
    let tokens = |question: &Encoded| match question.kind {
        Kind::Open { max_tokens } => Some(question.sequences[0].ids.len() + max_tokens),
        _ => None,
    };
    let most = questions.iter().filter_map(tokens).max()?;
    Some((CACHE_BYTES / (most * KvCache::bytes_per_token(model)).max(1)).clamp(1, SIDE_BY_SIDE))
}

/// An answer in the making.
struct Writing<'a> {
    prompt: &'a [u32],
    max_tokens: usize,
    ids: Vec<u32>,
    text: String,
    done: bool,
}

impl Evaluator {
    /// The tokens of an open question.
    pub(super) fn prompt(&self, question: &Question, shots: &str) -> Result<Vec<u32>> {
        let Question::Open { instruction, input, plain, .. } = question else {
            return Err(Error::failed("not an open question"));
        };
        let Some(template) = &self.template else { return self.encoder().plain(&format!("{shots}{plain}")) };
        if !shots.is_empty() {
            return Err(Error::usage("solved examples before an open question are plain text")
                .hint("add --template none, or leave --shots out"));
        }
        let task = Instruction { instruction: instruction.clone(), input: input.clone(), response: String::new() };
        Ok(template.render_instruction(&self.tokenizer, &task, Mode::Prompt)?.ids)
    }

    /// Tokens that end an answer.
    fn stop_tokens(&self) -> Vec<u32> {
        let mut stop = self.model.config.eos.clone();
        stop.extend(&self.tokenizer.special().stop_ids);
        // A template that does not end its answers can still be asked with: the model's own end is known.
        stop.extend(self.template.iter().filter_map(|template| template.end_of_answer(&self.tokenizer).ok()));
        stop
    }

    /// Answers batch after batch, as [`Evaluator::score`] scores them.
    ///
    /// # Errors
    /// What `receive` reports; values that are not finite.
    pub fn write(
        &self,
        batches: &Batches,
        wanted: &dyn Fn(&[usize]) -> bool,
        receive: &mut dyn FnMut(Vec<(usize, Answer)>) -> Result<bool>,
    ) -> Result<()> {
        let asked = batches.wanted(wanted);
        let stop = self.stop_tokens();
        let mut trunk = [KvCache::new(&self.model, batches.trunk.len().max(1))];
        self.read(&batches.trunk, 0, &mut trunk);
        let [trunk] = trunk;
        let mut caches: Vec<KvCache> = Vec::new();
        for batch in asked {
            let mut writings: Vec<Writing<'_>> = batch.iter().map(Writing::new).collect();
            // The longest question comes first: its caches hold all others.
            let needed = writings.iter().map(|w| w.prompt.len() + w.max_tokens).max().unwrap_or(1);
            if caches.first().is_none_or(|cache| cache.capacity() < needed) {
                caches.clear();
            }
            while caches.len() < writings.len() {
                caches.push(KvCache::new(&self.model, needed));
            }
            self.write_batch(&mut writings, (&trunk, &mut caches), &stop)?;
            let answer = |(question, writing): (&Encoded, Writing<'_>)| {
                (question.example, Answer::Text(writing.text.trim().to_string()))
            };
            if !receive(batch.iter().zip(writings).map(answer).collect())? {
                break;
            }
        }
        Ok(())
    }

    fn write_batch(
        &self,
        writings: &mut [Writing<'_>],
        (trunk, caches): (&KvCache, &mut [KvCache]),
        stop: &[u32],
    ) -> Result<()> {
        let mut next = self.read_prompts(writings, trunk, caches)?;
        loop {
            for (writing, &id) in writings.iter_mut().filter(|writing| !writing.done).zip(&next) {
                writing.push(id, stop, self)?;
            }
            let going = writings.iter().enumerate().filter(|(_, writing)| !writing.done);
            let stretches: Vec<Extension<'_>> = going
                .map(|(cache, writing)| {
                    let last = writing.ids.len() - 1;
                    Extension { ids: &writing.ids[last..], cache, past: writing.prompt.len() + last }
                })
                .collect();
            if stretches.is_empty() {
                return Ok(());
            }
            let hidden = self.model.extend(&self.pass(), &stretches, caches);
            next = self.next_tokens(&hidden, &(0..stretches.len()).collect::<Vec<usize>>())?;
        }
    }

    /// Reads the prompts into the caches; returns the likeliest first tokens of the answers.
    fn read_prompts(&self, writings: &[Writing<'_>], trunk: &KvCache, caches: &mut [KvCache]) -> Result<Vec<u32>> {
        let mut next = Vec::with_capacity(writings.len());
        let mut place = 0;
        while place < writings.len() {
            let mut stretches = Vec::new();
            let (mut rows, mut last_rows) = (0, Vec::new());
            while let Some(writing) = writings.get(place).filter(|w| rows == 0 || rows + w.prompt.len() <= BATCH_ROWS) {
                caches[place].copy_beginning(trunk, trunk.len());
                let ids = &writing.prompt[trunk.len()..];
                stretches.push(Extension { ids, cache: place, past: trunk.len() });
                rows += ids.len();
                last_rows.push(rows - 1);
                place += 1;
            }
            let hidden = self.model.extend(&self.pass(), &stretches, caches);
            next.extend(self.next_tokens(&hidden, &last_rows)?);
        }
        Ok(next)
    }

    fn next_tokens(&self, hidden: &Matrix, rows: &[usize]) -> Result<Vec<u32>> {
        if let Some(row) = rows.iter().find(|&&row| hidden.row(row).iter().any(|value| !value.is_finite())) {
            return Err(Error::failed(format!("the model's output is not finite (row {row} of a batch)"))
                .hint("the weights are damaged or the adapter diverged: try another prompt or model"));
        }
        Ok(self.model.likeliest(&self.pass(), hidden, rows))
    }
}

impl<'a> Writing<'a> {
    fn new(question: &'a Encoded) -> Writing<'a> {
        let max_tokens = match question.kind {
            Kind::Open { max_tokens } => max_tokens,
            _ => 0,
        };
        let prompt = &question.sequences[0].ids;
        Writing { prompt, max_tokens, ids: Vec::new(), text: String::new(), done: false }
    }

    /// Takes the next token.
    fn push(&mut self, id: u32, stop: &[u32], evaluator: &Evaluator) -> Result<()> {
        if self.max_tokens == 0 || stop.contains(&id) {
            self.done = true;
            return Ok(());
        }
        self.ids.push(id);
        let text = evaluator.tokenizer.decode(&self.ids, true)?;
        let said = text.trim_start();
        let line = said.find('\n').map_or(said, |end| &said[..end]);
        self.done = line.len() < said.len() || self.ids.len() == self.max_tokens;
        self.text = line.to_string();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::evaluator::tests::evaluator;
    use super::super::task::{Example, Gold};
    use super::*;
    use crate::generate::{Generator, SamplingOptions};

    fn open(place: usize, plain: &str, max_tokens: usize) -> Example {
        let plain = plain.to_string();
        let question = Question::Open { instruction: String::new(), input: String::new(), plain, max_tokens };
        Example { id: place.to_string(), question, gold: Gold::None }
    }

    /// The first line that the ordinary generator writes.
    fn alone(prompt: &[u32], max_tokens: usize) -> String {
        let Evaluator { model, params, tokenizer, settings, .. } = evaluator(300);
        let mut generator = Generator::new(model, params, settings.compute, settings.context);
        let mut stop = generator.model().config.eos.clone();
        stop.extend(&tokenizer.special().stop_ids);
        generator.set_stop_tokens(stop);
        let options = SamplingOptions { max_tokens, ..SamplingOptions::default() };
        let mut ids = Vec::new();
        generator
            .generate(prompt, &options, &mut |id| {
                ids.push(id);
                let text = tokenizer.decode(&ids, true)?;
                Ok(!text.trim_start().contains('\n'))
            })
            .unwrap();
        let text = tokenizer.decode(&ids, true).unwrap();
        text.trim_start().lines().next().unwrap_or_default().trim().to_string()
    }

    #[test]
    fn answers_written_side_by_side_are_those_written_alone() {
        let evaluator = evaluator(300);
        let words = ["casa", "mare aperto", "è", "uno due tre quattro"];
        let examples: Vec<Example> =
            (0..21).map(|i| open(i, &format!("Istruzione: {}", words[i % 4].repeat(1 + i / 4)), 5 + i)).collect();
        let batches = evaluator.batches(&examples, &|_| String::new()).unwrap();
        assert_eq!(batches.batches.len(), 2);
        assert!(batches.trunk.len() > 10);
        let mut found = vec![None; examples.len()];
        let mut receive = |answers: Vec<(usize, Answer)>| {
            answers.into_iter().for_each(|(place, answer)| found[place] = Some(answer));
            Ok(true)
        };
        evaluator.write(&batches, &|_| true, &mut receive).unwrap();
        for (example, answer) in examples.iter().zip(found) {
            let Question::Open { max_tokens, .. } = example.question else { panic!() };
            let prompt = evaluator.prompt(&example.question, "").unwrap();
            assert_eq!(answer, Some(Answer::Text(alone(&prompt, max_tokens))), "{}", example.id);
        }
    }
}
