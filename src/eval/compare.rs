//! Two results side by side: the difference of every metric on the same items, and how sure it is.
//!
//! Items are paired by their ids. Two models with different tokenizers cut text into different windows; they are then
//! paired by document, and only numbers that do not count tokens mean the same for both.

use super::metrics::Metric;
use super::resample::{self, Difference};
use super::results::Results;
use super::task::{Task, Unit};
use super::tasks;
use super::text::TEXT;
use crate::error::{Error, Result};
use serde_json::{json, Value};
use std::collections::{BTreeMap, HashMap};

/// One metric of one task in both results.
#[derive(Debug, Clone)]
pub struct Row {
    /// Name of the task in results.
    pub name: String,
    /// The metric.
    pub metric: Metric,
    /// Value of the first, on the items of both.
    pub first: f64,
    /// Value of the second.
    pub second: f64,
    /// `second − first` with its interval and the p-value of the paired bootstrap; none for a single item.
    pub difference: Option<Difference>,
    /// Items that only the first has right, that only the second has right, and McNemar's p-value.
    pub mcnemar: Option<(usize, usize, f64)>,
    /// Items of both.
    pub units: usize,
}

/// A comparison.
#[derive(Debug, Clone, Default)]
pub struct Comparison {
    /// Every metric of every task that both have.
    pub rows: Vec<Row>,
    /// What the reader should know: tasks of one only, settings that differ.
    pub notes: Vec<String>,
}

/// Compares the tasks that both results have.
///
/// # Errors
/// No task in common; results of one name on different data; files that are missing.
pub fn compare(first: &Results, second: &Results) -> Result<Comparison> {
    let mut comparison = Comparison { notes: models(first, second), ..Comparison::default() };
    let same_tokenizer = first.model.get("tokenizer") == second.model.get("tokenizer");
    for (name, task) in &first.tasks {
        let Some(other) = second.tasks.get(name) else {
            comparison.notes.push(format!("{name}: only in the first results"));
            continue;
        };
        comparison.notes.extend(check(name, task, other)?);
        let kind = task_of(task["task"].as_str().unwrap_or_default())?;
        let (mut a, mut b) = (first.units(name)?, second.units(name)?);
        if kind.name == TEXT.name && !same_tokenizer {
            (a, b) = (by_document(&a), by_document(&b));
            comparison.notes.push(format!("{name}: the tokenizers differ, so perplexities are not of the same tokens"));
        }
        let (pairs, left_out) = pair(&a, &b);
        if left_out > 0 {
            comparison.notes.push(format!("{name}: {left_out} items that only one of the two has are left out"));
        }
        let (a, b): (Vec<&[f64]>, Vec<&[f64]>) = pairs.into_iter().unzip();
        if a.is_empty() {
            comparison.notes.push(format!("{name}: no item in common"));
            continue;
        }
        comparison.rows.extend(kind.metrics.iter().map(|&metric| row(name, metric, &a, &b)));
    }
    let only_second = second.tasks.keys().filter(|name| !first.tasks.contains_key(*name));
    comparison.notes.extend(only_second.map(|name| format!("{name}: only in the second results")));
    match comparison.rows.is_empty() {
        true => Err(Error::failed(format!("nothing to compare: {}", comparison.notes.join("; ")))),
        false => Ok(comparison),
    }
}

fn row(name: &str, metric: Metric, first: &[&[f64]], second: &[&[f64]]) -> Row {
    Row {
        name: name.to_string(),
        metric,
        first: (metric.of)(first),
        second: (metric.of)(second),
        difference: resample::difference(&metric, first, second),
        mcnemar: metric.right.map(|right| resample::mcnemar(right, first, second)),
        units: first.len(),
    }
}

fn task_of(name: &str) -> Result<Task> {
    if name == TEXT.name {
        return Ok(TEXT);
    }
    tasks::by_name(name)
}

/// What the reader should know of the two models: that they are one, or were not measured alike.
fn models(first: &Results, second: &Results) -> Vec<String> {
    let differs = |key: &&str| first.model.get(*key) != second.model.get(*key);
    if first.model == second.model {
        return vec!["both are results of the same model, measured alike".into()];
    }
    let different: Vec<&str> = ["nf4_on_load", "compute", "context", "bos"].into_iter().filter(differs).collect();
    if different.is_empty() {
        return Vec::new();
    }
    vec![format!("the models were not measured alike: {} differ between the two", different.join(", "))]
}

/// Refuses different tasks and data, and names other settings that differ.
fn check(name: &str, first: &Value, second: &Value) -> Result<Option<String>> {
    for key in ["task", "data"] {
        if first[key] != second[key] {
            return Err(Error::failed(format!("{name}: {key} differs: {} and {}", first[key], second[key]))
                .hint("evaluate both models on the same files"));
        }
    }
    let settings = ["shots", "shots_data", "template", "window", "stride"];
    let different: Vec<&str> = settings.into_iter().filter(|key| first[*key] != second[*key]).collect();
    Ok((!different.is_empty()).then(|| format!("{name}: {} differ between the two", different.join(", "))))
}

/// Sums of the windows of each document.
fn by_document(units: &[Unit]) -> Vec<Unit> {
    let mut documents: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for unit in units {
        let document = unit.id.split_once(':').map_or(unit.id.as_str(), |(document, _)| document);
        let sums = documents.entry(document).or_insert_with(|| vec![0.0; unit.evidence.len()]);
        sums.iter_mut().zip(&unit.evidence).for_each(|(sum, value)| *sum += value);
    }
    documents.into_iter().map(|(id, evidence)| Unit { id: id.to_string(), evidence }).collect()
}

/// Evidence of an item in both results.
type Pair<'a> = (&'a [f64], &'a [f64]);

/// Evidence of the items that both have, in the order of the first, and how many only one of them has.
fn pair<'a>(first: &'a [Unit], second: &'a [Unit]) -> (Vec<Pair<'a>>, usize) {
    let others: HashMap<&str, &[f64]> =
        second.iter().map(|unit| (unit.id.as_str(), unit.evidence.as_slice())).collect();
    let pairs: Vec<_> =
        first.iter().filter_map(|unit| Some((unit.evidence.as_slice(), *others.get(unit.id.as_str())?))).collect();
    let left_out = first.len() + second.len() - 2 * pairs.len();
    (pairs, left_out)
}

impl Comparison {
    /// As JSON.
    pub fn to_json(&self) -> Value {
        let row = |row: &Row| {
            let difference = row.difference.map(
                |d| json!({"value": d.value, "interval_95": [d.interval.low, d.interval.high], "p_bootstrap": d.p}),
            );
            let mcnemar = row.mcnemar.map(|(a, b, p)| json!({"only_first_right": a, "only_second_right": b, "p": p}));
            json!({"name": row.name, "metric": row.metric.name, "first": row.first, "second": row.second,
                   "difference": difference, "mcnemar": mcnemar, "units": row.units})
        };
        json!({"rows": self.rows.iter().map(row).collect::<Vec<Value>>(), "notes": self.notes})
    }
}

#[cfg(test)]
mod tests {
    use super::super::run::{measure, Outcome};
    use super::super::store::Identity;
    use super::*;
    use std::path::PathBuf;

    fn identity(value: Value) -> Identity {
        value.as_object().unwrap().clone()
    }

    fn results(folder: PathBuf, tokenizer: &str, task: Task, data: &str, units: Vec<Unit>) -> Results {
        let mut results = Results::open(Some(folder), identity(json!({"tokenizer": tokenizer}))).unwrap();
        let outcome = Outcome { measured: measure(task.metrics, &units), questions: units.len(), units, cut: 0 };
        results.add("t", &task, &identity(json!({"data": data, "shots": 0})), &outcome).unwrap();
        results
    }

    fn shares(values: &[(usize, f64)]) -> Vec<Unit> {
        values.iter().map(|(id, right)| Unit { id: id.to_string(), evidence: vec![*right, *right] }).collect()
    }

    #[test]
    fn paired_items_by_hand() {
        let folder = tempfile::tempdir().unwrap();
        let task = tasks::by_name("xcopa_it").unwrap();
        let all =
            |name: &str, values: &[(usize, f64)]| results(folder.path().join(name), "x", task, "d", shares(values));
        let a = all("a", &[(0, 1.0), (1, 0.0), (2, 0.0), (3, 1.0), (9, 1.0)]);
        all("b", &[(3, 0.0), (2, 1.0), (1, 1.0), (0, 1.0)]);
        let b = Results::read(&folder.path().join("b")).unwrap();
        let found = compare(&a, &b).unwrap();
        assert_eq!(found.rows.len(), 2);
        let acc = &found.rows[0];
        assert_eq!((acc.metric.name, acc.first, acc.second, acc.units), ("acc", 0.5, 0.75, 4));
        assert_eq!(acc.mcnemar, Some((1, 2, 1.0)));
        assert_eq!(acc.difference.unwrap().value, 0.25);
        let expected = ["both are results of the same model, measured alike", "t: 1 items that only one"];
        assert!(
            found.notes.iter().zip(expected).all(|(note, expected)| note.starts_with(expected)),
            "{:?}",
            found.notes
        );
        assert_eq!(found.notes.len(), 2);
        let other = results(folder.path().join("c"), "x", task, "other", shares(&[(0, 1.0)]));
        assert!(compare(&a, &other).unwrap_err().to_string().contains("data differs"));
    }

    #[test]
    fn other_tokenizers_are_paired_by_document() {
        let folder = tempfile::tempdir().unwrap();
        let unit = |id: &str, evidence: [f64; 3]| Unit { id: id.into(), evidence: evidence.to_vec() };
        let a = vec![unit("0:1", [2.0, 4.0, 8.0]), unit("0:5", [1.0, 2.0, 2.0]), unit("1:1", [3.0, 3.0, 6.0])];
        let b = vec![unit("0:1", [2.0, 5.0, 10.0]), unit("1:1", [2.0, 2.0, 6.0])];
        let a = results(folder.path().join("a"), "x", TEXT, "d", a);
        let b = results(folder.path().join("b"), "y", TEXT, "d", b);
        let found = compare(&a, &b).unwrap();
        let bits = &found.rows[0];
        assert_eq!(bits.units, 2);
        assert!((bits.first - 6.0 / std::f64::consts::LN_2 / 16.0).abs() < 1e-12);
        assert!((bits.second - 4.0 / std::f64::consts::LN_2 / 16.0).abs() < 1e-12);
        assert!(found.notes.iter().any(|note| note.contains("tokenizers differ")));
    }
}
