//! The only place that prints. Data goes to stdout, everything meant for a person to stderr.

use crate::error::Error;
use std::io::{IsTerminal, Write};

/// Writes data to stdout. A closed pipe is no error: the reader has what it wanted.
pub fn data(text: &str) {
    let mut stdout = std::io::stdout().lock();
    if stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).is_err() {
        std::process::exit(0);
    }
}

/// Writes clap's help or version to stdout, in colours only where a person reads it.
pub fn help(text: &clap::builder::StyledStr) {
    data(&if stdout_takes_colours() { text.ansi().to_string() } else { text.to_string() });
}

/// Whether stdout is read by a person who wants colours.
pub fn stdout_takes_colours() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
}

/// Writes a line for a person to stderr.
pub fn note(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// A warning.
pub fn warning(text: &str) {
    note(&format!("{}: {text}", paint("warning", "33")));
}

/// An error with its hint.
pub fn error(error: &Error) {
    note(&format!("{}: {error}", paint("error", "31")));
    if let Some(hint) = error.hint_text() {
        note(&format!("{}: {hint}", paint("hint", "36")));
    }
}

/// `text` in an ANSI colour, where stderr is a terminal and `NO_COLOR` is unset.
pub fn paint(text: &str, colour: &str) -> String {
    let plain = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty()) || !std::io::stderr().is_terminal();
    match plain {
        true => text.to_string(),
        false => format!("\u{1b}[1;{colour}m{text}\u{1b}[0m"),
    }
}
