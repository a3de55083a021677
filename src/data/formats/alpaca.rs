//! Alpaca: `{"instruction", "input", "output"}` (Stanford Alpaca, Camoscio); the input may be empty.

use super::{fields, Format, Record, Shape};
use crate::data::template::Instruction;

/// Alpaca instructions.
pub const ALPACA: Format = Format {
    name: "alpaca",
    summary: "Alpaca instructions",
    shape: Shape::Object,
    recognise: |row| fields::has(row, &["instruction", "output"]),
    parse: |row| {
        let mut object = fields::object(row)?;
        Ok(Record::Instruction(Instruction {
            instruction: fields::filled(&mut object, "instruction")?,
            input: fields::optional(&mut object, "input")?,
            response: fields::filled(&mut object, "output")?,
        }))
    },
    template: None,
};
