//! LangLearn: were two texts of a learner written in this order?

use super::{rows, yes_no};
use crate::eval::Task;

/// The subtask.
pub const TASK: Task = Task {
    name: "langlearn",
    about: "EVALITA 2023: are two texts of a learner in the order of writing?",
    source:
        "ExtremITA's rows; macro-F1 (the task's page; there averaged over two corpora, which rows do not tell apart)",
    load: |path| rows::load(path, "langlearn", yes_no::SHORT),
    judge: yes_no::judge,
    metrics: yes_no::MACRO_F1,
};
