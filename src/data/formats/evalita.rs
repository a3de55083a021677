//! EVALITA 2023 as ExtremITA writes it (github.com/crux82/ExtremITA, CEUR Vol-3473 paper 13): lines of four columns
//! without header and quoting: id, task, text, target. The task names an instruction; the target is encoded as that
//! instruction asks for it ([`tasks`]). An unknown task or label is an error, never an answer "no".

pub mod tasks;

use super::containers::Row;
use super::{fields, Format, Record, Shape};
use crate::data::template::Instruction;

/// Characters of a text that are shown, in training as in evaluation: ExtremITA's limit.
pub const INPUT_LIMIT: usize = 1200;

/// What is shown of a text.
pub fn input(text: &str) -> String {
    text.trim_end().chars().take(INPUT_LIMIT).collect()
}

/// EVALITA rows.
pub const EVALITA: Format = Format {
    name: "evalita",
    summary: "EVALITA tasks as ExtremITA writes them",
    shape: Shape::Columns,
    recognise: |row| match row {
        Row::Columns(columns) => columns.len() == 4 && tasks::find(&columns[1]).is_some(),
        row => fields::has(row, &["id", "task", "text", "target"]),
    },
    parse,
    template: Some("extremita"),
};

/// Whether the first line of `start` is such a row.
pub fn is_row(start: &[u8]) -> bool {
    let line = start.split(|byte| *byte == b'\n').find(|line| !line.trim_ascii().is_empty()).unwrap_or_default();
    let columns: Vec<&[u8]> = line.split(|byte| *byte == b'\t').collect();
    let task = columns.get(1).and_then(|task| std::str::from_utf8(task).ok());
    columns.len() == 4 && task.is_some_and(|task| tasks::find(task).is_some())
}

fn parse(row: Row) -> Result<Record, String> {
    let (task, text, target) = match row {
        Row::Columns(columns) => match <[String; 4]>::try_from(columns) {
            Ok([_, task, text, target]) => (task, text, target),
            Err(columns) => {
                let count = columns.len();
                return Err(format!("expected 4 columns (id, task, text, target), found {count}"));
            }
        },
        row => {
            let mut object = fields::object(row)?;
            let mut take = |name| fields::string(&mut object, name);
            (take("task")?, take("text")?, take("target")?)
        }
    };
    let Some(found) = tasks::find(task.trim()) else {
        let known: Vec<&str> = tasks::names().collect();
        return Err(format!("unknown task `{task}`, expected one of {}", known.join(", ")));
    };
    if text.trim().is_empty() {
        return Err("the text is empty".into());
    }
    let (instruction, response) =
        found.example(target.trim()).map_err(|what| format!("task {}: {what}", found.name))?;
    Ok(Record::Instruction(Instruction { instruction, input: input(&text), response }))
}

#[cfg(test)]
mod tests;
