//! XCOPA in Italian: which of two sentences is the cause, or the effect.
//! Prompt: lm-evaluation-harness `xcopa_it`: the premise loses its last character, the choice its capital.

use super::json::{self, Record};
use super::{choices, Task};
use crate::error::Result;
use crate::eval::Example;

/// The task.
pub const TASK: Task = Task {
    name: "xcopa_it",
    about: "cause or effect of a sentence",
    source: "files of cambridgeltl/xcopa (it); prompt and acc of lm-evaluation-harness",
    load: |path| json::examples(path, example),
    judge: choices::judge,
    metrics: choices::ACC_FIRST,
};

fn example(record: &Record<'_>) -> Result<Example> {
    let connector = match record.text("question")? {
        "cause" => "perché",
        "effect" => "quindi",
        _ => return Err(record.wrong("question", "`cause` or `effect`")),
    };
    let premise = record.text("premise")?.trim();
    let mut premise = premise.chars();
    premise.next_back();
    let context = format!("{} {connector}", premise.as_str());
    let both = vec![uncapitalize(record.text("choice1")?), uncapitalize(record.text("choice2")?)];
    let right = record.choice("label", record.number("label")?, 2)?;
    Ok(choices::example(record.index.to_string(), context, both, right))
}

/// First letter lower case.
fn uncapitalize(text: &str) -> String {
    let mut characters = text.chars();
    let first = characters.next().into_iter().flat_map(char::to_lowercase);
    first.chain(characters.as_str().chars()).collect()
}
