//! Dolly: `{"instruction", "context", "response", "category"}` (databricks-dolly-15k); the context may be empty.

use super::{fields, Format, Record, Shape};
use crate::data::template::Instruction;

/// Dolly instructions.
pub const DOLLY: Format = Format {
    name: "dolly",
    summary: "Dolly instructions",
    shape: Shape::Object,
    recognise: |row| fields::has(row, &["instruction", "response"]),
    parse: |row| {
        let mut object = fields::object(row)?;
        Ok(Record::Instruction(Instruction {
            instruction: fields::filled(&mut object, "instruction")?,
            input: fields::optional(&mut object, "context")?,
            response: fields::filled(&mut object, "response")?,
        }))
    },
    template: None,
};
