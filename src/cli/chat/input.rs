//! Where a chat's lines come from: a terminal with line editing and history, or a pipe.

use crate::error::{Error, Result};
use rustyline::config::Configurer;
use rustyline::error::ReadlineError;
use rustyline::history::{FileHistory, History};
use rustyline::{Behavior, Config, Editor};
use std::io::{BufRead, Read, StdinLock};
use std::path::PathBuf;

/// Most bytes of one message: far beyond any context.
const LIMIT: u64 = 16 << 20;
/// Longer lines are not kept in the history.
const HISTORY_LINE: usize = 4096;

/// What a source of lines gives.
#[derive(Debug, PartialEq, Eq)]
pub enum Line {
    /// A line, without its end.
    Text(String),
    /// Ctrl-C at the prompt.
    Interrupted,
    /// No more lines.
    End,
}

/// A source of lines.
pub trait Input {
    /// The next line.
    ///
    /// # Errors
    /// Bytes that are not UTF-8; what the operating system refuses.
    fn next_line(&mut self) -> Result<Line>;
}

/// Lines edited by a person. The editor talks to the terminal itself, so that stdout stays free for the answers.
pub struct Terminal {
    editor: Editor<(), FileHistory>,
    history: Option<PathBuf>,
}

impl Terminal {
    /// Opens the terminal; with `history` the lines of earlier chats can be called up again.
    ///
    /// # Errors
    /// A terminal that cannot be used.
    pub fn open(history: bool) -> Result<Terminal> {
        let config = Config::builder().behavior(Behavior::PreferTerm).build();
        let mut editor = Editor::with_config(config).map_err(|error| failed(&error))?;
        editor.set_auto_add_history(false);
        let history = history.then(history_file).flatten();
        if let Some(file) = &history {
            // A history that cannot be read is no reason not to chat.
            let _ = editor.load_history(file);
        }
        Ok(Terminal { editor, history })
    }

    fn remember(&mut self, line: &str) {
        let Some(file) = self.history.as_ref().filter(|_| line.len() <= HISTORY_LINE && !line.trim().is_empty()) else {
            return;
        };
        let added = self.editor.history_mut().add(line);
        if matches!(added, Ok(true)) {
            let _ = self.editor.append_history(file);
        }
    }
}

impl Input for Terminal {
    fn next_line(&mut self) -> Result<Line> {
        match self.editor.readline("> ") {
            Ok(line) => {
                self.remember(&line);
                Ok(Line::Text(line))
            }
            Err(ReadlineError::Interrupted) => Ok(Line::Interrupted),
            Err(ReadlineError::Eof) => Ok(Line::End),
            Err(error) => Err(failed(&error)),
        }
    }
}

fn failed(error: &ReadlineError) -> Error {
    Error::failed(format!("cannot read from the terminal: {error}"))
}

/// `$XDG_STATE_HOME/llamantino/chat-history`, in `~/.local/state` by default; its folder is made.
fn history_file() -> Option<PathBuf> {
    let named = |variable: &str| std::env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from);
    let state = named("XDG_STATE_HOME").or_else(|| Some(named("HOME")?.join(".local/state")))?;
    let folder = state.join("llamantino");
    std::fs::create_dir_all(&folder).ok()?;
    Some(folder.join("chat-history"))
}

/// Lines of stdin.
pub struct Pipe {
    stdin: StdinLock<'static>,
    line: u64,
}

impl Pipe {
    /// All of stdin.
    pub fn new() -> Pipe {
        Pipe { stdin: std::io::stdin().lock(), line: 0 }
    }

    /// The line read last, for messages.
    pub fn place(&self) -> String {
        format!("stdin line {}", self.line)
    }
}

impl Input for Pipe {
    fn next_line(&mut self) -> Result<Line> {
        self.line += 1;
        let bytes = read_line(&mut self.stdin).map_err(|error| error.at(self.place()))?;
        bytes.map_or(Ok(Line::End), |bytes| Ok(Line::Text(text(bytes).map_err(|error| error.at(self.place()))?)))
    }
}

/// One line without its end; none at the end of input.
fn read_line(input: &mut impl BufRead) -> Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    let read = input.take(LIMIT + 1).read_until(b'\n', &mut bytes).map_err(|error| unreadable(&error))?;
    check_length(&bytes)?;
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
    }
    if bytes.last() == Some(&b'\r') {
        bytes.pop();
    }
    Ok((read > 0).then_some(bytes))
}

/// All of stdin as one message, without white space at its end.
///
/// # Errors
/// Bytes that are not UTF-8; what the operating system refuses.
pub fn read_message() -> Result<String> {
    let mut bytes = Vec::new();
    std::io::stdin().lock().take(LIMIT + 1).read_to_end(&mut bytes).map_err(|error| unreadable(&error))?;
    let message = check_length(&bytes).and_then(|()| text(bytes)).map_err(|error| error.at("stdin"))?;
    Ok(message.trim_end().to_owned())
}

fn unreadable(error: &std::io::Error) -> Error {
    Error::failed(format!("cannot read: {error}"))
}

fn check_length(bytes: &[u8]) -> Result<()> {
    match bytes.len() as u64 > LIMIT {
        true => Err(Error::failed(format!("a message of more than {} MiB", LIMIT >> 20))),
        false => Ok(()),
    }
}

fn text(bytes: Vec<u8>) -> Result<String> {
    String::from_utf8(bytes).map_err(|error| {
        let place = error.utf8_error().valid_up_to();
        let byte = error.as_bytes()[place];
        Error::failed(format!("not UTF-8: byte 0x{byte:02X} at position {}", place + 1))
            .hint("convert the text first, for example with iconv -f latin1 -t utf-8")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_end_in_either_way_and_the_last_one_needs_no_end() {
        let mut input = std::io::Cursor::new("uno\r\ndue\n\nè".as_bytes());
        let mut lines = Vec::new();
        while let Some(bytes) = read_line(&mut input).unwrap() {
            lines.push(text(bytes).unwrap());
        }
        assert_eq!(lines, ["uno", "due", "", "è"]);
    }

    #[test]
    fn bytes_that_are_not_utf8_are_named() {
        let error = text(b"citt\xe0".to_vec()).unwrap_err();
        assert!(error.message().contains("byte 0xE0 at position 5"), "{error}");
    }

    #[test]
    fn endless_lines_are_refused() {
        let mut endless = std::io::BufReader::new(std::io::repeat(b'a'));
        assert!(read_line(&mut endless).unwrap_err().message().contains("16 MiB"));
    }
}
