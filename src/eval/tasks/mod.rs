//! The tasks: one file each, and one line in [`TASKS`].

pub mod choices;
pub mod evalita;
pub mod json;

mod arc_it;
mod belebele_ita;
mod exams_it;
mod hellaswag_it;
mod lambada_it;
mod m_mmlu_it;
mod squad_it;
mod xcopa_it;

use super::Task;
use crate::config::nearest::nearest;
use crate::error::{Error, Result};

/// Every task.
pub const TASKS: &[Task] = &[
    arc_it::TASK,
    hellaswag_it::TASK,
    m_mmlu_it::TASK,
    lambada_it::TASK,
    belebele_ita::TASK,
    xcopa_it::TASK,
    exams_it::TASK,
    squad_it::TASK,
    evalita::acti::A,
    evalita::acti::B,
    evalita::clinkart::TASK,
    evalita::discotex::ONE,
    evalita::discotex::TWO,
    evalita::emit::A,
    evalita::emit::B,
    evalita::emotivita::TASK,
    evalita::geolingit::TASK,
    evalita::geolingit::REGION,
    evalita::geolingit::PLACE,
    evalita::yes_no::HASPEEDE,
    evalita::yes_no::HODI_A,
    evalita::hodi_b::TASK,
    evalita::langlearn::TASK,
    evalita::multifakedetective::TASK,
    evalita::nermud::TASK,
    evalita::politicit::TASK,
    evalita::wicita::TASK,
    evalita::wicita::TUTORIAL_ONE,
    evalita::wicita::TUTORIAL_TWO,
];

/// The task of that name.
///
/// # Errors
/// An unknown name (usage).
pub fn by_name(name: &str) -> Result<Task> {
    if let Some(task) = TASKS.iter().find(|task| task.name == name) {
        return Ok(*task);
    }
    let error = Error::usage(format!("unknown task `{name}`"));
    Err(match nearest(name, TASKS.iter().map(|task| task.name)) {
        Some(near) => error.hint(format!("did you mean `{near}`? `llamantino eval --list` shows all")),
        None => error.hint("`llamantino eval --list` shows all"),
    })
}
