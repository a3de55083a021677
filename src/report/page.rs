//! The page: tiles, charts, tables, samples, configuration.

use super::chart::{lines, number, Series};
use super::run::RunData;
use super::{escape, BEGINNING};
use crate::train::metrics::{EvalRow, StepRow};
use std::collections::BTreeMap;

/// Writes the page.
pub fn write(run: &RunData) -> String {
    let name = escape(&run.name);
    let sections = [
        head(run),
        charts(run),
        evaluations(run),
        results(run),
        samples(run),
        events(run),
        environment(run),
        section("Configuration", &if_any(&run.config, |config| format!("<pre>{}</pre>", escape(config)))),
    ];
    format!(
        "{BEGINNING}<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <title>{name}</title>\n<style>\n{}</style>\n</head>\n<body>\n{}\n</body>\n</html>\n",
        include_str!("style.css"),
        sections.concat()
    )
}

fn if_any(text: &str, write: impl Fn(&str) -> String) -> String {
    if text.is_empty() {
        String::new()
    } else {
        write(text)
    }
}

fn section(title: &str, content: &str) -> String {
    if_any(content, |content| format!("<section>\n<h2>{}</h2>\n{content}\n</section>\n", escape(title)))
}

fn head(run: &RunData) -> String {
    let mut about = Vec::new();
    about.extend(run.setting("method"));
    about.extend(run.setting("model").map(|model| format!("of {model}")));
    let steps = run.steps.last().map_or(0, |row| row.step);
    let state = if run.finished { "finished" } else { "not finished" };
    about.push(format!("— {state}, {steps} steps"));
    let unreadable = match run.unreadable {
        0 => String::new(),
        count => format!("<p>{count} line(s) of the log could not be read.</p>"),
    };
    format!(
        "<header>\n<h1>{}</h1>\n<p>{}</p>{unreadable}\n<div class=\"tiles\">{}</div>\n</header>\n",
        escape(&run.name),
        escape(&about.join(" ")),
        tiles(run).concat()
    )
}

fn tiles(run: &RunData) -> Vec<String> {
    let tile = |value: String, what: &str| {
        format!("<div class=\"tile\"><b>{}</b><span>{}</span></div>", escape(&value), escape(what))
    };
    let mut tiles = Vec::new();
    for (set, rows) in by_set(&run.evaluations) {
        let (first, last) = (rows[0].bits_per_byte, rows[rows.len() - 1].bits_per_byte);
        tiles.push(tile(format!("{first:.3} → {last:.3}"), &format!("bits per byte, {set}")));
    }
    let Some(last) = run.steps.last() else { return tiles };
    tiles.push(tile(format!("{:.4}", last.loss), "last training loss"));
    tiles.push(tile(grouped(last.tokens), "tokens"));
    let seconds = seconds_of(&run.steps);
    tiles.push(tile(duration(seconds), "in training steps"));
    if seconds > 0.0 {
        tiles.push(tile(format!("{:.0}", last.tokens as f64 / seconds), "tokens a second"));
    }
    let memory = run.steps.iter().map(|row| row.rss_mib).max().unwrap_or(0);
    tiles.push(tile(format!("{} MiB", grouped(memory)), "most memory"));
    tiles
}

/// Time of all steps: the log says how many tokens each had and how fast they went.
fn seconds_of(steps: &[StepRow]) -> f64 {
    let mut before = 0;
    let mut seconds = 0.0;
    for row in steps {
        let tokens = row.tokens.saturating_sub(before);
        before = row.tokens;
        if row.tokens_per_s > 0.0 {
            seconds += tokens as f64 / row.tokens_per_s;
        }
    }
    seconds
}

fn duration(seconds: f64) -> String {
    let total = seconds.round() as u64;
    match (total / 3600, total / 60 % 60, total % 60) {
        (0, 0, seconds) => format!("{seconds} s"),
        (0, minutes, seconds) => format!("{minutes} min {seconds} s"),
        (hours, minutes, _) => format!("{hours} h {minutes} min"),
    }
}

/// 1234567 → 1 234 567.
fn grouped(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    text
}

/// Rows of each held-out set, in the order of steps.
fn by_set(rows: &[EvalRow]) -> BTreeMap<&str, Vec<&EvalRow>> {
    let mut sets: BTreeMap<&str, Vec<&EvalRow>> = BTreeMap::new();
    rows.iter().for_each(|row| sets.entry(&row.set).or_default().push(row));
    sets
}

fn charts(run: &RunData) -> String {
    let curve = |name: &str, faint: bool, value: &dyn Fn(&StepRow) -> f64| Series {
        name: name.into(),
        points: run.steps.iter().map(|row| (row.step as f64, value(row))).collect(),
        faint,
        unit: "",
    };
    let raw = curve("each step", true, &|row| row.loss);
    let smooth = Series { name: "smoothed".into(), points: smoothed(&raw.points), faint: false, unit: "" };
    let bits = by_set(&run.evaluations).into_iter().map(|(set, rows)| Series {
        name: set.into(),
        points: rows.iter().map(|row| (row.step as f64, row.bits_per_byte)).collect(),
        faint: false,
        unit: "bits per byte",
    });
    let bits: Vec<Series<'_>> = bits.collect();
    let charts = [
        lines("Held-out bits per byte", &bits),
        lines("Training loss", &[raw, smooth]),
        lines("Learning rate", &[curve("", false, &|row| row.lr)]),
        lines("Gradient norm, before clipping", &[curve("", false, &|row| row.grad_norm)]),
        lines("Tokens a second", &[curve("", false, &|row| row.tokens_per_s)]),
        lines("Memory, MiB", &[curve("", false, &|row| row.rss_mib as f64)]),
    ];
    section("Curves", &if_any(&charts.concat(), |charts| format!("<div class=\"charts\">{charts}</div>")))
}

/// Exponential mean with the weight of about a twentieth of the run, without the pull of its start.
fn smoothed(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let keep = 1.0 - 1.0 / (points.len() as f64 / 20.0).clamp(1.0, 100.0);
    let (mut mean, mut weight) = (0.0, 0.0);
    let step = |&(x, y): &(f64, f64)| {
        if y.is_finite() {
            mean = keep * mean + (1.0 - keep) * y;
            weight = keep * weight + (1.0 - keep);
        }
        (x, mean / weight)
    };
    points.iter().map(step).collect()
}

fn table(heads: &[&str], rows: &[Vec<String>], numbers_from: usize) -> String {
    let class = |column: usize| if column >= numbers_from { " class=\"n\"" } else { "" };
    let row = |cells: &[String], tag: &str| -> String {
        let cells = cells.iter().enumerate();
        cells.map(|(column, cell)| format!("<{tag}{}>{}</{tag}>", class(column), escape(cell))).collect()
    };
    let heads: Vec<String> = heads.iter().map(|head| head.to_string()).collect();
    let body: String = rows.iter().map(|cells| format!("<tr>{}</tr>\n", row(cells, "td"))).collect();
    format!(
        "<div class=\"scroll\"><table>\n<thead><tr>{}</tr></thead>\n<tbody>\n{body}</tbody>\n</table></div>",
        row(&heads, "th")
    )
}

fn evaluations(run: &RunData) -> String {
    if run.evaluations.is_empty() {
        return String::new();
    }
    let row = |row: &EvalRow| {
        let (loss, perplexity) = (format!("{:.4}", row.loss), number(row.perplexity));
        vec![row.set.clone(), row.step.to_string(), loss, perplexity, format!("{:.4}", row.bits_per_byte)]
    };
    let rows: Vec<Vec<String>> = by_set(&run.evaluations).into_values().flatten().map(row).collect();
    section("Held-out texts", &table(&["text", "step", "loss", "perplexity", "bits per byte"], &rows, 1))
}

fn results(run: &RunData) -> String {
    let mut content = String::new();
    for results in run.results.iter().filter(|results| !results.metrics.is_empty()) {
        let rows: Vec<Vec<String>> = results
            .metrics
            .iter()
            .map(|metric| {
                let interval = metric.interval.map(|[low, high]| format!("{} – {}", number(low), number(high)));
                let questions = metric.questions.map(|count| count.to_string());
                let (interval, questions) = (interval.unwrap_or_default(), questions.unwrap_or_default());
                vec![metric.task.clone(), metric.name.clone(), number(metric.value), interval, questions]
            })
            .collect();
        content += &format!("<p>{}</p>", escape(&results.place));
        content += &table(&["task", "metric", "value", "95 % interval", "questions"], &rows, 2);
    }
    section("Evaluations", &content)
}

fn samples(run: &RunData) -> String {
    let mut prompts: Vec<&str> = Vec::new();
    for sample in &run.samples {
        if !prompts.contains(&sample.prompt.as_str()) {
            prompts.push(&sample.prompt);
        }
    }
    let mut content = String::new();
    for prompt in prompts {
        content += &format!("<p>how “{}” goes on</p>", escape(prompt));
        for sample in run.samples.iter().filter(|sample| sample.prompt == prompt) {
            let (label, text) = (escape(&sample.label), escape(&sample.text));
            content += &format!("<blockquote><b>{label}</b>\n{text}</blockquote>");
        }
    }
    section("Samples", &content)
}

fn events(run: &RunData) -> String {
    if run.events.is_empty() {
        return String::new();
    }
    let rows: Vec<Vec<String>> = run.events.iter().map(|(step, what)| vec![step.to_string(), what.clone()]).collect();
    section("Events", &table(&["step", "what happened"], &rows, 2))
}

fn environment(run: &RunData) -> String {
    if run.environment.is_empty() {
        return String::new();
    }
    let mut rows: Vec<Vec<String>> =
        run.environment.iter().map(|(name, value)| vec![name.clone(), value.clone()]).collect();
    for (name, key) in [("compute", "training.compute"), ("threads", "training.threads"), ("seed", "seed")] {
        rows.extend(run.setting(key).map(|value| vec![name.to_string(), value]));
    }
    section("Environment", &table(&["what", "value"], &rows, 2))
}
