//! ARC in Italian: school questions with three to five answers, each scored as a whole.
//! Prompt: lm-evaluation-harness `arc_it` (its words are English).

use super::hellaswag_it::clean;
use super::json::{self, Record};
use super::{choices, Task};
use crate::error::Result;
use crate::eval::Example;

/// The task.
pub const TASK: Task = Task {
    name: "arc_it",
    about: "school questions, ARC challenge translated",
    source: "files of alexandrainst/m_arc (it); prompt and acc_norm of lm-evaluation-harness",
    load: |path| json::examples(path, example),
    judge: choices::judge,
    metrics: choices::ACC_NORM_FIRST,
};

fn example(record: &Record<'_>) -> Result<Example> {
    let context = format!("Question: {}\nAnswer:", clean(record.text("instruction")?));
    let options = ["option_a", "option_b", "option_c", "option_d", "option_e"];
    // Where a question has fewer options, the harness drops the empty ones and still counts letters from A.
    let options: Vec<String> = options.iter().filter_map(|option| record.some_text(option)).map(clean).collect();
    let right = record.letter("answer", options.len())?;
    Ok(choices::example(record.id(), context, options, right))
}
