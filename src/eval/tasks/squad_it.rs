//! SQuAD-it: questions about a paragraph, answered in the model's own words. EM and F1 as in SQuAD, the best over all
//! right answers.
//!
//! Before they are compared, answers lose capitals, punctuation and articles, and spaces are put in order (the official
//! script of SQuAD v1.1, which SQuAD-it's authors use). Articles are its English ones; `f1_it` and `em_it` leave the
//! Italian ones out too. The plain prompt is ItaEval's.

use super::json::read_text;
use super::Task;
use crate::error::{Error, Result};
use crate::eval::metrics::f1;
use crate::eval::metrics::mean::{is_one, mean};
use crate::eval::task::{Answer, Gold};
use crate::eval::{Example, Metric, Question, Unit};
use serde::Deserialize;
use std::collections::HashMap;
use std::path::Path;

/// The task.
pub const TASK: Task = Task {
    name: "squad_it",
    about: "questions about a paragraph, SQuAD translated",
    source: "files of crux82/squad-it; F1 and EM of the SQuAD v1.1 script; plain prompt of ItaEval",
    load,
    judge,
    metrics: &[
        Metric::higher("f1", mean::<1>),
        Metric::share("em", mean::<0>, is_one::<0>),
        Metric::higher("f1_it", mean::<3>),
        Metric::share("em_it", mean::<2>, is_one::<2>),
    ],
};

#[derive(Deserialize)]
struct File {
    data: Vec<Article>,
}

#[derive(Deserialize)]
struct Article {
    paragraphs: Vec<Paragraph>,
}

#[derive(Deserialize)]
struct Paragraph {
    context: String,
    qas: Vec<Asked>,
}

#[derive(Deserialize)]
struct Asked {
    id: String,
    question: String,
    answers: Vec<Text>,
}

#[derive(Deserialize)]
struct Text {
    text: String,
}

fn load(path: &Path) -> Result<Vec<Example>> {
    let text = read_text(path)?;
    let file: File = serde_json::from_str(text.trim_start_matches('\u{feff}')).map_err(|error| {
        Error::file(path, format_args!("not a file of SQuAD's form: {error}")).hint(
            "expected {\"data\": [{\"paragraphs\": [{\"context\", \"qas\": [{\"id\", \"question\", \"answers\"}]}]}]}",
        )
    })?;
    let mut examples = Vec::new();
    let mut seen: HashMap<String, usize> = HashMap::new();
    for paragraph in file.data.into_iter().flat_map(|article| article.paragraphs) {
        let context = paragraph.context.trim();
        for Asked { id, question, answers } in paragraph.qas {
            let question = question.trim();
            let times = seen.entry(id.clone()).and_modify(|times| *times += 1).or_insert(1);
            let id = if *times == 1 { id } else { format!("{id}#{times}") };
            let right: Vec<String> = answers.into_iter().map(|answer| answer.text.trim().to_string()).collect();
            if right.is_empty() {
                return Err(Error::file(path, format_args!("question {id} has no answer")));
            }
            let open = Question::Open {
                instruction: format!("Rispondi alla domanda con le parole del testo: {question}"),
                input: context.to_string(),
                plain: format!("Contesto: {context}\nDomanda: {question}\nRisposta:"),
                max_tokens: 48,
            };
            examples.push(Example { id, question: open, gold: Gold::AnyOf(right) });
        }
    }
    match examples.is_empty() {
        true => Err(Error::file(path, "no question in it")),
        false => Ok(examples),
    }
}

/// Evidence: EM and F1, then both without Italian articles.
fn judge(answered: &[(&Example, &Answer)]) -> Vec<Unit> {
    let unit = |(example, answer): &(&Example, &Answer)| {
        let (Gold::AnyOf(right), Answer::Text(given)) = (&example.gold, answer) else { return None };
        let evidence = [ENGLISH, ITALIAN].iter().flat_map(|articles| {
            let given = words(given, articles);
            let right = right.iter().map(|right| words(right, articles));
            let scores = right.map(|right| (f64::from(u8::from(right == given)), overlap(&right, &given)));
            let (em, f1) = scores.fold((0f64, 0f64), |best, (em, f1)| (best.0.max(em), best.1.max(f1)));
            [em, f1]
        });
        Some(Unit { id: example.id.clone(), evidence: evidence.collect() })
    };
    answered.iter().filter_map(unit).collect()
}

const ENGLISH: &[&str] = &["a", "an", "the"];
const ITALIAN: &[&str] = &[
    "a", "an", "the", "il", "lo", "la", "i", "gli", "le", "l", "un", "uno", "una", "del", "della", "dei", "delle",
    "degli",
];

/// The words of an answer in order: lower case, without ASCII punctuation (which joins what it parts) and articles.
fn words(text: &str, articles: &[&str]) -> Vec<String> {
    // Where Italian articles go, the elided one must stand apart from its noun first.
    let text = if articles.len() > ENGLISH.len() { text.replace(['\'', '’'], " ") } else { text.to_string() };
    let text: String = text.to_lowercase().chars().filter(|c| !c.is_ascii_punctuation()).collect();
    text.split_whitespace().filter(|word| !articles.contains(word)).map(str::to_string).collect()
}

/// F1 of two bags of words.
fn overlap(right: &[String], given: &[String]) -> f64 {
    let mut left: HashMap<&str, usize> = HashMap::new();
    right.iter().for_each(|word| *left.entry(word).or_default() += 1);
    let hit = |word: &&String| match left.get_mut(word.as_str()) {
        Some(count) if *count > 0 => {
            *count -= 1;
            true
        }
        _ => false,
    };
    f1(given.iter().filter(hit).count() as f64, given.len() as f64, right.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scores(right: &[&str], given: &str) -> Vec<f64> {
        let question =
            Question::Open { instruction: String::new(), input: String::new(), plain: String::new(), max_tokens: 1 };
        let right = right.iter().map(|text| (*text).to_string()).collect();
        let example = Example { id: "q".into(), question, gold: Gold::AnyOf(right) };
        judge(&[(&example, &Answer::Text(given.into()))])[0].evidence.clone()
    }

    #[test]
    fn answers_by_hand() {
        assert_eq!(scores(&["ottobre 1973", "1973"], "Ottobre, 1973!"), [1.0; 4]);
        // Two of three words, two of two wanted: 4/5.
        assert_eq!(scores(&["ottobre 1973"], "ottobre del 1973"), [0.0, 0.8, 1.0, 1.0]);
        // "l'acqua" becomes "lacqua" in the official script, "acqua" without Italian articles.
        assert_eq!(scores(&["acqua"], "L'acqua"), [0.0, 0.0, 1.0, 1.0]);
        assert_eq!(scores(&["casa casa"], "casa"), [0.0, 2.0 / 3.0, 0.0, 2.0 / 3.0]);
        assert_eq!(scores(&["casa"], ""), [0.0; 4]);
    }

    #[test]
    fn files_of_squads_form() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("squad.json");
        let text = r#"{"data": [{"title": "t", "paragraphs": [{"context": " Un testo. ", "qas": [
            {"id": "a", "question": "Che cosa? ", "answers": [{"text": "un testo", "answer_start": 0}]},
            {"id": "a", "question": "Di nuovo?", "answers": [{"text": "sì", "answer_start": 0}]}]}]}], "version": 2}"#;
        std::fs::write(&path, text).unwrap();
        let examples = load(&path).unwrap();
        assert_eq!(examples.iter().map(|e| e.id.as_str()).collect::<Vec<_>>(), ["a", "a#2"]);
        let Question::Open { plain, .. } = &examples[0].question else { panic!() };
        assert_eq!(plain, "Contesto: Un testo.\nDomanda: Che cosa?\nRisposta:");
        std::fs::write(&path, "[]").unwrap();
        assert!(load(&path).unwrap_err().to_string().contains("SQuAD's form"));
        std::fs::write(&path, r#"{"data": []}"#).unwrap();
        assert!(load(&path).is_err());
    }
}
