//! MMLU in Italian: exam questions, answered by a letter. The boards show five solved examples.
//! Prompt: lm-evaluation-harness `m_mmlu_it`.

use super::json::{self, Record};
use super::{choices, Task};
use crate::error::Result;
use crate::eval::Example;

/// The task.
pub const TASK: Task = Task {
    name: "m_mmlu_it",
    about: "exam questions answered by letter, MMLU translated",
    source: "files of alexandrainst/m_mmlu (it); prompt and acc of lm-evaluation-harness (boards: --shots 5 of train)",
    load: |path| json::examples(path, example),
    judge: choices::judge,
    metrics: choices::ACC_ONLY,
};

/// The letters of four answers.
pub const LETTERS: [&str; 4] = ["A", "B", "C", "D"];

fn example(record: &Record<'_>) -> Result<Example> {
    let mut context = format!("{}\n", record.text("instruction")?.trim());
    for (letter, option) in LETTERS.iter().zip(["option_a", "option_b", "option_c", "option_d"]) {
        context.push_str(&format!("{letter}. {}\n", record.text(option)?));
    }
    context.push_str("Answer:");
    let letters = LETTERS.map(str::to_string).to_vec();
    Ok(choices::example(record.id(), context, letters, record.letter("answer", 4)?))
}
