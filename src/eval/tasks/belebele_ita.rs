//! Belebele in Italian: questions about a passage, answered by a letter.
//! Prompt: lm-evaluation-harness `belebele_ita_Latn`, whose last colon is a full-width one.

use super::json::{self, Record};
use super::m_mmlu_it::LETTERS;
use super::{choices, Task};
use crate::error::Result;
use crate::eval::Example;

/// The task.
pub const TASK: Task = Task {
    name: "belebele_ita",
    about: "questions about a passage, answered by letter",
    source: "files of facebook/belebele (ita_Latn); prompt and acc of lm-evaluation-harness",
    load: |path| json::examples(path, example),
    judge: choices::judge,
    metrics: choices::ACC_ONLY,
};

fn example(record: &Record<'_>) -> Result<Example> {
    let mut context = format!("P: {}\nQ: {}\n", record.text("flores_passage")?, record.text("question")?.trim());
    for (letter, answer) in LETTERS.iter().zip(["mc_answer1", "mc_answer2", "mc_answer3", "mc_answer4"]) {
        context.push_str(&format!("{letter}: {}\n", record.text(answer)?));
    }
    context.push_str("Answer：");
    let right = record.number("correct_answer_num")?.wrapping_sub(1);
    let right = record.choice("correct_answer_num", right, 4)?;
    Ok(choices::example(record.index.to_string(), context, LETTERS.map(str::to_string).to_vec(), right))
}
