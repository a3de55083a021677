//! LAMBADA in Italian: the last word of a passage. Prompt: lm-evaluation-harness `lambada_openai_mt_it`.
//!
//! `perplexity`: exp of minus the mean log-likelihood of the word, a word each item. `acc`: the word is what the model
//! would write itself, token by token.

use super::json::{self, Record};
use super::Task;
use crate::error::{Error, Result};
use crate::eval::metrics::mean::{is_one, mean, perplexity};
use crate::eval::task::{Answer, Gold};
use crate::eval::{Example, Metric, Question, Unit};

/// The task.
pub const TASK: Task = Task {
    name: "lambada_it",
    about: "the last word of a passage, LAMBADA translated",
    source: "files of EleutherAI/lambada_openai (it); prompt, perplexity and acc of lm-evaluation-harness",
    load: |path| json::examples(path, example),
    judge,
    metrics: &[Metric::lower("perplexity", perplexity::<0>), Metric::share("acc", mean::<1>, is_one::<1>)],
};

fn example(record: &Record<'_>) -> Result<Example> {
    let text = record.text("text")?;
    let (context, continuation) =
        text.rsplit_once(' ').ok_or_else(|| Error::failed("field `text`: expected at least two words, found one"))?;
    let question = Question::Continuation { context: context.into(), continuation: continuation.into() };
    Ok(Example { id: record.index.to_string(), question, gold: Gold::None })
}

fn judge(answered: &[(&Example, &Answer)]) -> Vec<Unit> {
    let unit = |(example, answer): &(&Example, &Answer)| match answer {
        Answer::Continuation { log_likelihood, greedy } => {
            Some(Unit { id: example.id.clone(), evidence: vec![*log_likelihood, f64::from(u8::from(*greedy))] })
        }
        _ => None,
    };
    answered.iter().filter_map(unit).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_by_hand() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lambada.jsonl");
        std::fs::write(&path, "{\"text\": \"Il cane corre nel prato\"}\n{\"text\": \"La  sera\"}\n").unwrap();
        let examples = (TASK.load)(&path).unwrap();
        let asked = |context: &str, continuation: &str| Question::Continuation {
            context: context.into(),
            continuation: continuation.into(),
        };
        assert_eq!(examples[0].question, asked("Il cane corre nel", "prato"));
        assert_eq!(examples[1].question, asked("La ", "sera"), "nothing is cleaned");
        let answers = [(-1.0, true), (-3.0, false)]
            .map(|(log_likelihood, greedy)| Answer::Continuation { log_likelihood, greedy });
        let answered: Vec<(&Example, &Answer)> = examples.iter().zip(&answers).collect();
        let units = judge(&answered);
        let rows: Vec<&[f64]> = units.iter().map(|unit| unit.evidence.as_slice()).collect();
        assert!(((TASK.metrics[0].of)(&rows) - 2f64.exp()).abs() < 1e-12, "a mean of −2 a word");
        assert_eq!((TASK.metrics[1].of)(&rows), 0.5);
        std::fs::write(&path, "{\"text\": \"Prato\"}\n").unwrap();
        assert!((TASK.load)(&path).unwrap_err().to_string().contains("at least two words"));
    }
}
