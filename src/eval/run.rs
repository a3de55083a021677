//! One task from its examples to its numbers.

use super::evaluator::Evaluator;
use super::metrics::{Better, Metric};
use super::resample::{self, Interval};
use super::store::Store;
use super::task::{Answer, Example, Gold, Question, Task, Unit};
use crate::error::{Error, Result};
use serde_json::{json, Value};

/// A task with the examples to ask.
pub struct Job {
    /// The task.
    pub task: Task,
    /// Its name in results: that of the task, or of a text.
    pub name: String,
    /// What is asked.
    pub examples: Vec<Example>,
    /// Solved examples that come before each question.
    pub shots: Shots,
}

/// Solved examples before a question.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Shots {
    /// How many.
    pub count: usize,
    /// The texts to take them from, in order.
    pub texts: Vec<String>,
    /// Whether they are those of the questions: then a question's own is passed over.
    pub own: bool,
}

impl Shots {
    /// The first `count` examples of `from`, which are the questions themselves if they are their `own`.
    ///
    /// # Errors
    /// Fewer examples than are needed; a question that cannot be shown solved.
    pub fn new(count: usize, from: &[Example], own: bool) -> Result<Shots> {
        let needed = if count == 0 { 0 } else { count + usize::from(own) };
        if from.len() < needed {
            let found = from.len();
            return Err(Error::usage(format!("{needed} examples are needed to show {count}, the file has {found}")));
        }
        let texts = from[..needed].iter().map(solved).collect::<Result<_>>()?;
        Ok(Shots { count, texts, own })
    }

    /// What comes before question number `place`.
    fn before(&self, place: usize) -> String {
        let others = self.texts.iter().enumerate().filter(|(index, _)| !self.own || *index != place);
        others.take(self.count).map(|(_, text)| format!("{text}\n\n")).collect()
    }
}

/// A question with its right answer.
fn solved(example: &Example) -> Result<String> {
    match (&example.question, &example.gold) {
        (Question::Choices { context, choices }, Gold::Choice(right)) => Ok(format!("{context} {}", choices[*right])),
        (Question::Continuation { context, continuation }, _) => Ok(format!("{context} {continuation}")),
        (Question::Open { plain, .. }, Gold::Text(text)) => Ok(format!("{plain} {text}")),
        (Question::Open { plain, .. }, Gold::AnyOf(texts)) if !texts.is_empty() => Ok(format!("{plain} {}", texts[0])),
        _ => Err(Error::usage(format!("{}: there is no solved form of it to show", example.id))),
    }
}

/// A metric's value.
#[derive(Debug, Clone, Copy)]
pub struct Measured {
    /// Which metric.
    pub metric: Metric,
    /// Its value on all units.
    pub value: f64,
    /// Its 95 % interval.
    pub interval: Option<Interval>,
}

/// What a task came to.
pub struct Outcome {
    /// Its numbers, the first one is what others rank by.
    pub measured: Vec<Measured>,
    /// What they are computed from.
    pub units: Vec<Unit>,
    /// Questions asked, earlier runs included.
    pub questions: usize,
    /// Questions whose beginning did not fit the model's context.
    pub cut: usize,
}

impl Job {
    /// Asks what `store` has no answer to yet, and computes the numbers; none if `progress`, which is told questions done
    /// and their number, says to stop.
    ///
    /// # Errors
    /// Questions that cannot be encoded; output that is not finite; the file system.
    pub fn run(
        &self,
        evaluator: &Evaluator,
        store: &mut Store,
        progress: &mut dyn FnMut(usize, usize) -> bool,
    ) -> Result<Option<Outcome>> {
        if self.examples.is_empty() {
            return Err(Error::failed("no example to ask"));
        }
        let (cut, finished) = self.ask(evaluator, store, progress)?;
        if !finished {
            return Ok(None);
        }
        let answer = |example: &Example| store.get(&example.id).cloned();
        let answers: Vec<Answer> = self.examples.iter().filter_map(answer).collect();
        let answered: Vec<(&Example, &Answer)> = self.examples.iter().zip(&answers).collect();
        if let Some((example, _)) = answered.iter().find(|(example, answer)| !answer.fits(&example.question)) {
            return Err(Error::failed(format!("{}: the answer kept to `{}` is not one to it", self.name, example.id))
                .hint("the file of answers is damaged: name another --out folder, or remove the file to begin anew"));
        }
        let units = (self.task.judge)(&answered);
        let measured = measure(self.task.metrics, &units);
        Ok(Some(Outcome { measured, units, questions: self.examples.len(), cut }))
    }

    /// Asks; returns how many questions were cut, and whether all are answered.
    fn ask(
        &self,
        evaluator: &Evaluator,
        store: &mut Store,
        progress: &mut dyn FnMut(usize, usize) -> bool,
    ) -> Result<(usize, bool)> {
        let total = self.examples.len();
        let id = |place: usize| self.examples[place].id.as_str();
        let shots = |place: usize| self.shots.before(place);
        let open = matches!(self.examples[0].question, Question::Open { .. });
        let batches = evaluator.batches(&self.examples, &shots)?;
        let missing: Vec<bool> = (0..total).map(|place| store.get(id(place)).is_none()).collect();
        let mut done = missing.iter().filter(|missing| !**missing).count();
        if !progress(done, total) {
            return Ok((batches.cut, false));
        }
        let mut go_on = true;
        let wanted = |examples: &[usize]| examples.iter().any(|&place| missing[place]);
        let mut receive = |answers: Vec<(usize, Answer)>| {
            done += answers.iter().filter(|(place, _)| missing[*place]).count();
            store.add(answers.into_iter().map(|(place, answer)| (id(place), answer)))?;
            go_on = progress(done, total);
            Ok(go_on)
        };
        match open {
            true => evaluator.write(&batches, &wanted, &mut receive)?,
            false => evaluator.score(&batches, &wanted, &mut receive)?,
        }
        Ok((batches.cut, go_on || done == total))
    }
}

/// All metrics on `units`.
pub fn measure(metrics: &[Metric], units: &[Unit]) -> Vec<Measured> {
    let rows: Vec<&[f64]> = units.iter().map(|unit| unit.evidence.as_slice()).collect();
    metrics
        .iter()
        .filter(|_| !rows.is_empty())
        .map(|&metric| Measured { metric, value: (metric.of)(&rows), interval: resample::interval(&metric, &rows) })
        .collect()
}

impl Outcome {
    /// As it stands in results; numbers that are not defined are null.
    pub fn to_json(&self) -> Value {
        let metrics = self.measured.iter().map(|measured| {
            let interval = measured.interval.map(|interval| [interval.low, interval.high]);
            let better = match measured.metric.better {
                Better::Higher => "higher",
                Better::Lower => "lower",
            };
            (
                measured.metric.name.to_string(),
                json!({"value": measured.value, "interval_95": interval, "better": better}),
            )
        });
        let metrics: serde_json::Map<String, Value> = metrics.collect();
        json!({"metrics": metrics, "questions": self.questions, "units": self.units.len(), "cut": self.cut})
    }
}

#[cfg(test)]
mod tests {
    use super::super::evaluator::tests::evaluator;
    use super::super::tasks::choices;
    use super::*;

    fn example(place: usize) -> Example {
        let choices = ["sì", "no"].map(str::to_string).to_vec();
        let question = Question::Choices { context: format!("Domanda {place}:"), choices };
        Example { id: place.to_string(), question, gold: Gold::Choice(place % 2) }
    }

    #[test]
    fn shots_never_show_the_question_itself() {
        let examples: Vec<Example> = (0..4).map(example).collect();
        let own = Shots::new(2, &examples, true).unwrap();
        assert_eq!(own.before(0), "Domanda 1: no\n\nDomanda 2: sì\n\n");
        assert_eq!(own.before(3), "Domanda 0: sì\n\nDomanda 1: no\n\n");
        let other = Shots::new(1, &examples, false).unwrap();
        assert_eq!(other.before(0), "Domanda 0: sì\n\n");
        assert!(Shots::new(4, &examples, true).is_err());
        assert_eq!(Shots::default().before(1), "");
    }

    #[test]
    fn a_stopped_job_goes_on_and_ends_with_the_same_bits() {
        let evaluator = evaluator(200);
        let examples: Vec<Example> = (0..300).map(example).collect();
        let metrics = choices::ACC_FIRST;
        let task = Task { name: "t", about: "", source: "", load: |_| Ok(vec![]), judge: choices::judge, metrics };
        let job = Job { task, name: "t".into(), examples, shots: Shots::default() };
        let folder = tempfile::tempdir().unwrap();
        let identity = super::super::store::Identity::new();
        let open = |name: &str| Store::open(&folder.path().join(name), &identity).unwrap();
        let whole = job.run(&evaluator, &mut open("whole"), &mut |_, _| true).unwrap().unwrap();
        let mut rounds = 0;
        let stopped = loop {
            let mut calls = 0;
            let mut progress = |_, _| {
                calls += 1;
                calls < 3
            };
            rounds += 1;
            if let Some(outcome) = job.run(&evaluator, &mut open("stopped"), &mut progress).unwrap() {
                break outcome;
            }
        };
        assert!(rounds > 2, "{rounds}");
        assert_eq!(stopped.units, whole.units);
        assert_eq!(stopped.to_json(), whole.to_json());
        let read = |name: &str| std::fs::read(folder.path().join(name)).unwrap();
        assert_eq!(read("stopped"), read("whole"));
    }
}
