//! Rows of ExtremITA's files as open questions.

use super::super::json::read_text;
use crate::data::formats::evalita::{self, tasks};
use crate::error::{Error, Result};
use crate::eval::task::{Answer, Gold};
use crate::eval::{Example, Question, Unit};
use std::path::Path;

/// The rows of subtask `name`, in order. `max_tokens` bounds an answer.
///
/// # Errors
/// Rows that do not have four columns, labels that the subtask does not know, no row of the subtask.
pub fn load(path: &Path, name: &str, max_tokens: usize) -> Result<Vec<Example>> {
    load_or(path, name, max_tokens, None)
}

/// [`load`] where a missing target is right as the text `missing`.
///
/// # Errors
/// As [`load`]; without `missing`, a missing target.
pub fn load_or(path: &Path, name: &str, max_tokens: usize, missing: Option<&str>) -> Result<Vec<Example>> {
    let task = tasks::find(name).ok_or_else(|| Error::failed(format!("no subtask `{name}`")))?;
    let text = read_text(path)?;
    let mut examples = Vec::new();
    for (index, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        let place = || format!("{}:{}", path.display(), index + 1);
        let columns: Vec<&str> = line.split('\t').collect();
        let [id, row_task, text, target] = columns[..] else {
            let count = columns.len();
            return Err(Error::failed(format!(
                "{}: expected 4 columns (id, task, text, target), found {count}",
                place()
            )));
        };
        if row_task.trim() != name {
            continue;
        }
        let (instruction, response) = match (missing, target.trim()) {
            (Some(missing), "" | "nan") => (task.instruction.to_owned(), missing.to_owned()),
            (_, target) => {
                task.example(target).map_err(|what| Error::failed(format!("{}: task {name}: {what}", place())))?
            }
        };
        let input = evalita::input(text);
        let plain = format!("{instruction}\n{input}\nRisposta:");
        // Ids repeat: several texts of one author, several sentences of one document.
        examples.push(Example {
            id: format!("{}:{id}", index + 1),
            question: Question::Open { instruction, input, plain, max_tokens },
            gold: Gold::Text(response),
        });
    }
    match examples.is_empty() {
        true => Err(Error::file(path, format_args!("no row of task {name}"))
            .hint("expected ExtremITA's files: id, task, text and target, apart by tabs")),
        false => Ok(examples),
    }
}

/// Text, right answer and given answer of an open question.
pub fn parts<'a>(example: &'a Example, answer: &'a Answer) -> Option<(&'a str, &'a str, &'a str)> {
    match (&example.question, &example.gold, answer) {
        (Question::Open { input, .. }, Gold::Text(gold), Answer::Text(given)) => Some((input, gold, given)),
        _ => None,
    }
}

/// One unit for each answer; `judge` is given text, right answer and given answer.
pub fn units(answered: &[(&Example, &Answer)], judge: &dyn Fn(&str, &str, &str) -> Vec<f64>) -> Vec<Unit> {
    let unit = |(example, answer): &(&Example, &Answer)| {
        let (text, gold, given) = parts(example, answer)?;
        Some(Unit { id: example.id.clone(), evidence: judge(text, gold, given) })
    };
    answered.iter().filter_map(unit).collect()
}

/// An answer without capitals and without spaces and punctuation around it.
pub fn plain(text: &str) -> String {
    let around = |c: char| c.is_whitespace() || ".,;:!\"'«»“”`*".contains(c);
    text.trim_matches(around).to_lowercase()
}

/// The place of an answer among labels, if it is one of them.
pub fn label(text: &str, labels: &[&str]) -> Option<usize> {
    let text = plain(text);
    labels.iter().position(|label| plain(label) == text)
}

#[cfg(test)]
pub mod testing {
    //! Judging by hand.

    use super::*;
    use crate::eval::Task;

    /// The units of `task` for rows of text, right answer and given answer; all of one author `id`.
    pub fn judge(task: &Task, rows: &[(&str, &str, &str)]) -> Vec<Vec<f64>> {
        let ids: Vec<String> = (0..rows.len()).map(|row| format!("{row}:{row}")).collect();
        judge_as(task, rows, &ids)
    }

    /// [`judge`] with the ids of the rows.
    pub fn judge_as(task: &Task, rows: &[(&str, &str, &str)], ids: &[String]) -> Vec<Vec<f64>> {
        let example = |((text, gold, _), id): (&(&str, &str, &str), &String)| Example {
            id: id.clone(),
            question: Question::Open {
                instruction: String::new(),
                input: (*text).into(),
                plain: String::new(),
                max_tokens: 1,
            },
            gold: Gold::Text((*gold).into()),
        };
        let examples: Vec<Example> = rows.iter().zip(ids).map(example).collect();
        let answers: Vec<Answer> = rows.iter().map(|(_, _, given)| Answer::Text((*given).into())).collect();
        let answered: Vec<(&Example, &Answer)> = examples.iter().zip(&answers).collect();
        (task.judge)(&answered).into_iter().map(|unit| unit.evidence).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_one_task_are_read_and_wrong_ones_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("dev.tsv");
        let long = "è".repeat(1300);
        let text = format!(
            "7\thaspeede\tUn \"testo\"  \todio\n7\tacti_a\tAltro\tnon_cospirazione\n\n8\thaspeede\t{long}\tnon_odio\n"
        );
        std::fs::write(&path, text).unwrap();
        let examples = load(&path, "haspeede", 8).unwrap();
        assert_eq!(examples.iter().map(|e| e.id.as_str()).collect::<Vec<_>>(), ["1:7", "4:8"]);
        let Question::Open { instruction, input, max_tokens: 8, .. } = &examples[0].question else { panic!() };
        assert_eq!(
            (instruction.as_str(), input.as_str()),
            ("In questo testo si esprime odio? Rispondi sì o no.", "Un \"testo\"")
        );
        assert_eq!(examples[0].gold, Gold::Text("sì".into()));
        let Question::Open { input, .. } = &examples[1].question else { panic!() };
        assert_eq!(input.chars().count(), 1200);
        assert!(load(&path, "hodi_a", 8).unwrap_err().to_string().contains("no row of task hodi_a"));
        std::fs::write(&path, "7\thaspeede\tUn testo\tforse\n").unwrap();
        assert!(load(&path, "haspeede", 8).unwrap_err().to_string().contains("dev.tsv:1: task haspeede"));
        std::fs::write(&path, "7\temit_a\tUn testo\tnan\n").unwrap();
        assert!(load(&path, "emit_a", 8).unwrap_err().to_string().contains("missing"));
        assert_eq!(load_or(&path, "emit_a", 8, Some("")).unwrap()[0].gold, Gold::Text(String::new()));
        std::fs::write(&path, "7\thaspeede\n").unwrap();
        assert!(load(&path, "haspeede", 8).unwrap_err().to_string().contains("4 columns"));
    }

    #[test]
    fn capitals_and_punctuation_do_not_matter() {
        assert_eq!(plain(" «Sì». "), "sì");
        assert_eq!(label("Terra piatta.", &["Covid", "Terra Piatta"]), Some(1));
        assert_eq!(label("terra", &["Covid", "Terra Piatta"]), None);
    }
}
