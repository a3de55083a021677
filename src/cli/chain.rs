//! The table at the end of a chain: what each stage did to each held-out text.

use crate::train::run::RunSummary;
use crate::train::stages::Stage;
use std::fmt::Write;

/// A row for each stage and held-out text: before the stage and after it.
pub fn table(done: &[(Stage, RunSummary)]) -> String {
    let texts = || done.iter().flat_map(|(_, summary)| summary.evaluations.iter().map(|(first, _)| first.set.as_str()));
    let stage_width = done.iter().map(|(stage, _)| stage.name.chars().count()).max().unwrap_or(0).max(5);
    let text_width = texts().map(|name| name.chars().count()).max().unwrap_or(0).max(4);
    let mut table = format!(
        "\n{:<stage_width$}  {:>9}  {:<text_width$}  {:>17}  {:>17}  {:>21}\n",
        "stage", "tokens", "text", "loss", "bits per byte", "perplexity"
    );
    for (stage, summary) in done {
        let (mut name, mut tokens) = (stage.name.as_str(), summary.tokens.to_string());
        if summary.evaluations.is_empty() {
            let _ = writeln!(table, "{name:<stage_width$}  {tokens:>9}  nothing held out");
        }
        for (first, last) in &summary.evaluations {
            let pair = |before: f64, after: f64| format!("{before:.4} → {after:.4}");
            let _ = writeln!(
                table,
                "{name:<stage_width$}  {tokens:>9}  {:<text_width$}  {:>17}  {:>17}  {:>21}",
                first.set,
                pair(first.loss, last.loss),
                pair(first.bits_per_byte, last.bits_per_byte),
                format!("{:.2} → {:.2}", first.perplexity, last.perplexity)
            );
            // A stage's name stands in its first row.
            (name, tokens) = ("", String::new());
        }
    }
    table.trim_end().to_string()
}
