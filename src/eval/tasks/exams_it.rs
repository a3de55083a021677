//! EXAMS: questions of Italian school exams with four answers, each scored as a whole.
//!
//! lm-evaluation-harness has no such task; the prompt is the Italian one of ItaEval's ARC (`Domanda`, `Risposta`). The
//! files have the form of AI2's ARC.

use super::json::{self, Record};
use super::{choices, Task};
use crate::error::Result;
use crate::eval::Example;
use serde_json::Value;

/// The task.
pub const TASK: Task = Task {
    name: "exams_it",
    about: "questions of Italian school exams",
    source: "files of EXAMS (mhardalov/exams-qa, Italian); prompt of ItaEval's ARC, acc_norm",
    load: |path| json::examples(path, example),
    judge: choices::judge,
    metrics: choices::ACC_NORM_FIRST,
};

fn example(record: &Record<'_>) -> Result<Example> {
    let question = &record.value["question"];
    let stem = question["stem"].as_str().ok_or_else(|| record.wrong("question", "an object with `stem`"))?;
    let listed = question["choices"].as_array().map(Vec::as_slice).unwrap_or_default();
    let part = |choice: &Value, part: &str| choice[part].as_str().map(|text| text.trim().to_string());
    let texts: Option<Vec<String>> = listed.iter().map(|choice| part(choice, "text")).collect();
    let texts = texts.filter(|texts| texts.len() > 1 && texts.iter().all(|text| !text.is_empty()));
    let texts = texts.ok_or_else(|| record.wrong("question", "`choices` with texts"))?;
    let key = record.text("answerKey")?;
    let right = listed.iter().position(|choice| choice["label"] == key).unwrap_or(texts.len());
    let right = record.choice("answerKey", right, texts.len())?;
    Ok(choices::example(record.id(), format!("Domanda: {}\nRisposta:", stem.trim()), texts, right))
}
