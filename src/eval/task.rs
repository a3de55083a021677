//! What a task is made of: examples with their questions, answers, and how these are judged.

use super::Metric;
use crate::checkpoint::exact;
use crate::error::Result;
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::path::Path;

/// A way to measure a model.
#[derive(Debug, Clone, Copy)]
pub struct Task {
    /// Its name on the command line and in results.
    pub name: &'static str,
    /// What is asked, in a few words.
    pub about: &'static str,
    /// Where its files come from, and whose prompt or metric it is.
    pub source: &'static str,
    /// Reads the examples of a file, in order.
    pub load: fn(&Path) -> Result<Vec<Example>>,
    /// Turns answers, in the order of the examples, into independent units.
    pub judge: fn(&[(&Example, &Answer)]) -> Vec<Unit>,
    /// What is computed from the units; the first one is what others rank by.
    pub metrics: &'static [Metric],
}

/// One item of a task.
#[derive(Debug, Clone, PartialEq)]
pub struct Example {
    /// Names it within the task; unique.
    pub id: String,
    /// What the model is asked.
    pub question: Question,
    /// What is right.
    pub gold: Gold,
}

/// What is right.
#[derive(Debug, Clone, PartialEq)]
pub enum Gold {
    /// The place of the right choice.
    Choice(usize),
    /// A text, in the task's own notation.
    Text(String),
    /// Any of these texts.
    AnyOf(Vec<String>),
    /// Nothing: the text itself is what is measured.
    None,
}

/// What the model is asked.
#[derive(Debug, Clone, PartialEq)]
pub enum Question {
    /// How likely is each choice, one space before it, behind the context?
    Choices {
        /// Text before the choices.
        context: String,
        /// The choices, without the space.
        choices: Vec<String>,
    },
    /// How likely is the continuation, one space before it, and is it what the model would write itself?
    Continuation {
        /// Text before it.
        context: String,
        /// The continuation, without the space.
        continuation: String,
    },
    /// What does the model say?
    Open {
        /// What to do.
        instruction: String,
        /// What to do it with; may be empty.
        input: String,
        /// The whole question as plain text that the answer continues, for models without a template.
        plain: String,
        /// Most tokens of an answer.
        max_tokens: usize,
    },
    /// How likely are the last tokens of this stretch of text?
    Window(Window),
}

/// A stretch of a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// The document it is from.
    pub document: usize,
    /// Its tokens.
    pub ids: Vec<u32>,
    /// Those that are predicted, never the first.
    pub scored: Range<usize>,
    /// UTF-8 bytes of the predicted ones.
    pub bytes: u64,
}

/// What the model answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// To [`Question::Choices`]: the logarithm (natural) of each choice's probability.
    Choices(#[serde(with = "exact::list")] Vec<f64>),
    /// To [`Question::Continuation`].
    Continuation {
        /// Logarithm (natural) of its probability.
        #[serde(with = "exact")]
        log_likelihood: f64,
        /// Whether each of its tokens was the likeliest.
        greedy: bool,
    },
    /// To [`Question::Open`]: the text, trimmed.
    Text(String),
    /// To [`Question::Window`]: minus the logarithm of the probability of the predicted tokens.
    Nats(#[serde(with = "exact")] f64),
}

impl Answer {
    /// Whether it is an answer to `question`: of its kind, and as many numbers as it has choices.
    pub fn fits(&self, question: &Question) -> bool {
        match (question, self) {
            (Question::Choices { choices, .. }, Answer::Choices(scores)) => choices.len() == scores.len(),
            (Question::Continuation { .. }, Answer::Continuation { .. })
            | (Question::Open { .. }, Answer::Text(_))
            | (Question::Window(_), Answer::Nats(_)) => true,
            _ => false,
        }
    }
}

/// What became of one independent item: the numbers that its task's metrics read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Unit {
    /// The example, or what groups several of them.
    pub id: String,
    /// Numbers whose meaning the task's metrics know.
    #[serde(with = "exact::list")]
    pub evidence: Vec<f64>,
}
