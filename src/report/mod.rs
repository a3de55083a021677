//! One page about a run: what was trained, how the losses went, what became better.
//!
//! [`run`] reads the run's folder, [`chart`] draws, [`page`] writes. Invariant: the page is one HTML file that needs no
//! network and runs no script, and every text that comes from files is escaped.

mod chart;
mod page;
mod run;

pub use run::{read, results_of, RunData, Sample, SAMPLES_FILE};

/// What the page begins with: a file that begins otherwise was not written here and is not replaced.
pub const BEGINNING: &str = "<!doctype html>\n<!-- llamantino report -->\n";

/// The page about a run.
pub fn html(run: &RunData) -> String {
    page::write(run)
}

/// Text as HTML.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            // No control character is valid in HTML but these three.
            c if c.is_control() && !matches!(c, '\n' | '\t' | '\r') => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests;
