//! Results as text for people: aligned columns.

use crate::eval::compare::Comparison;
use crate::eval::results::Results;
use crate::eval::tasks::TASKS;
use serde_json::{json, Value};

/// Rows of cells as lines; columns are as wide as their widest cell, the first `left` ones flush left.
pub fn align(rows: &[Vec<String>], left: usize) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| match column < left {
            true => format!("{cell:<width$}"),
            false => format!("{cell:>width$}"),
        });
        format!("{}\n", cells.collect::<Vec<String>>().join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

/// A number with four decimals, or more digits where it is large.
pub fn number(value: &Value) -> String {
    match value.as_f64() {
        None => "-".into(),
        Some(value) if value.abs() >= 1000.0 => format!("{value:.1}"),
        Some(value) => format!("{value:.4}"),
    }
}

/// The table of all results.
pub fn results(results: &Results) -> String {
    let heading = ["task", "metric", "value", "95 % interval", "questions", "units"];
    let mut rows = vec![heading.map(String::from).to_vec()];
    for (name, task) in &results.tasks {
        for (metric, value) in task["metrics"].as_object().into_iter().flatten() {
            let interval = match value["interval_95"].as_array().map(Vec::as_slice) {
                Some([low, high]) => format!("{} .. {}", number(low), number(high)),
                _ => "-".into(),
            };
            let count = |key: &str| task[key].to_string();
            let numbers = [number(&value["value"]), interval, count("questions"), count("units")];
            rows.push([name.clone(), metric.clone()].into_iter().chain(numbers).collect());
        }
    }
    align(&rows, 2)
}

/// The table of a comparison.
pub fn comparison(comparison: &Comparison) -> String {
    let heading = ["task", "metric", "A", "B", "B - A", "95 % interval", "p (bootstrap)", "p (McNemar)", "units"];
    let mut rows = vec![heading.map(String::from).to_vec()];
    for row in &comparison.rows {
        let [difference, interval, p] = match row.difference {
            Some(d) => [
                signed(d.value),
                format!("{} .. {}", signed(d.interval.low), signed(d.interval.high)),
                format!("{:.3}", d.p),
            ],
            None => [signed(row.second - row.first), "-".into(), "-".into()],
        };
        let mcnemar = row.mcnemar.map_or("-".into(), |(_, _, p)| format!("{p:.3}"));
        let values = [row.first, row.second].map(|value| number(&json!(value)));
        let cells = [row.name.clone(), row.metric.name.to_string()].into_iter().chain(values);
        rows.push(cells.chain([difference, interval, p, mcnemar, row.units.to_string()]).collect());
    }
    align(&rows, 2)
}

fn signed(value: f64) -> String {
    let digits = if value.abs() >= 1000.0 { 1 } else { 4 };
    format!("{value:+.digits$}")
}

/// All tasks.
pub fn tasks(as_json: bool) -> String {
    let metrics = |task: &crate::eval::Task| task.metrics.iter().map(|metric| metric.name).collect::<Vec<&str>>();
    if as_json {
        let list = TASKS.iter().map(
            |task| json!({"name": task.name, "about": task.about, "metrics": metrics(task), "source": task.source}),
        );
        return format!("{:#}\n", Value::Array(list.collect()));
    }
    let mut rows =
        vec![["task", "what is asked", "metrics, the ranking one first", "source"].map(String::from).to_vec()];
    let row = |task: &crate::eval::Task| {
        [task.name, task.about, &metrics(task).join(", "), task.source].map(String::from).to_vec()
    };
    rows.extend(TASKS.iter().map(row));
    align(&rows, 4)
}
