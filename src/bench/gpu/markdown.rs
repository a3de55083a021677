//! The report as text: one table a section.

use serde_json::Value;
use std::fmt::Write;

/// The report of [`super::run`] as Markdown.
pub fn markdown(report: &Value) -> String {
    let text = |value: &Value| match value {
        Value::String(text) => text.replace('|', "/").replace('\n', " "),
        Value::Null => String::new(),
        other => other.to_string(),
    };
    let mut out = format!(
        "# {}\n\nllamantino {}. Memory {} GiB; a large bf16 product {} TFLOP/s; a copy {} GB/s, read and written. {}\n",
        text(&report["device"]),
        text(&report["version"]),
        report["memory_gib"],
        report["product_tflop_s"],
        report["copy_gb_s"],
        verdict(report),
    );
    for section in report["sections"].as_array().into_iter().flatten() {
        let _ = write!(out, "\n## {} ({} s)\n\n{}\n", text(&section["section"]), section["seconds"], verdict(section));
        if let Some(error) = section["error"].as_str() {
            let _ = writeln!(out, "Ended by: {}", error.replace('\n', " "));
        }
        let rows = section["rows"].as_array().map_or(&[][..], Vec::as_slice);
        let mut columns: Vec<&String> = Vec::new();
        for key in rows.iter().filter_map(Value::as_object).flat_map(|row| row.keys()) {
            if !columns.contains(&key) {
                columns.push(key);
            }
        }
        if columns.is_empty() {
            continue;
        }
        let names: Vec<&str> = columns.iter().map(|name| name.as_str()).collect();
        let _ = write!(out, "\n| {} |\n|{}\n", names.join(" | "), "---|".repeat(names.len()));
        for row in rows {
            let cells: Vec<String> = names.iter().map(|name| text(&row[*name])).collect();
            let _ = writeln!(out, "| {} |", cells.join(" | "));
        }
    }
    out
}

fn verdict(part: &Value) -> &'static str {
    match part["passed"] == true {
        true => "All checks passed.",
        false => "**Not all checks passed.**",
    }
}
