//! Evaluation: how well a model predicts text, chooses answers, and gives them.
//!
//! A [`Task`] turns files into [`Example`]s; the [`Evaluator`] has the model answer their questions, a batch at a time,
//! and the [`store`] keeps each [`Answer`] as it comes, so that a stopped evaluation goes on where it was. The task then
//! judges all answers ([`Unit`]s: one small row of numbers for each independent item), and [`metrics`] sum these up, with
//! intervals by [`resample`]. Two results are set side by side by [`compare`].
//!
//! Invariant: a metric is a function of units alone, and an answer one of model, settings and example alone; batches are
//! formed over all examples, so an evaluation that was interrupted ends with the same bits.
//! A task is one file in [`tasks`] and one line in [`TASKS`].

pub mod compare;
pub mod encode;
pub mod evaluator;
pub mod forms;
pub mod metrics;
pub mod on_gpu;
mod open;
pub mod resample;
pub mod results;
pub mod run;
pub mod store;
pub mod task;
pub mod tasks;
pub mod text;

pub use evaluator::Evaluator;
pub use metrics::Metric;
pub use task::{Answer, Example, Question, Task, Unit};
pub use tasks::TASKS;
