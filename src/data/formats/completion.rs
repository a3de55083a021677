//! Prompt and completion: `{"prompt", "completion"}`, both text. Without a template of its own the completion follows
//! the prompt as it stands, and only the completion is trained.

use super::{fields, Format, Record, Shape};
use crate::data::template::Instruction;

/// Prompts with completions.
pub const COMPLETION: Format = Format {
    name: "completion",
    summary: "prompts with completions",
    shape: Shape::Object,
    recognise: |row| fields::has(row, &["prompt", "completion"]),
    parse: |row| {
        let mut object = fields::object(row)?;
        Ok(Record::Instruction(Instruction {
            instruction: fields::filled(&mut object, "prompt")?,
            input: String::new(),
            response: fields::filled(&mut object, "completion")?,
        }))
    },
    template: Some("completion"),
};
