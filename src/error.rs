//! The one error type of the library.
//!
//! Every message says what is wrong, where (file, tensor, config key), what was expected and what was found; the
//! optional hint says what to do next. The kind decides the process's exit code and nothing else.

use std::fmt;
use std::path::Path;

/// Result of everything in this crate that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a command ended, as its exit code tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The run failed (exit code 1): bad data, bad model files, disk full, ...
    Failed,
    /// Wrong usage or configuration (exit code 2).
    Usage,
    /// Interrupted by the user or the scheduler after a checkpoint (exit code 130).
    Interrupted,
}

/// An error with its place and, where there is one, the next thing to try.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    hint: Option<String>,
    source: Option<std::io::Error>,
}

impl Error {
    /// The run failed.
    pub fn failed(message: impl Into<String>) -> Self {
        Error { kind: ErrorKind::Failed, message: message.into(), hint: None, source: None }
    }

    /// The user asked for something that makes no sense.
    pub fn usage(message: impl Into<String>) -> Self {
        Error { kind: ErrorKind::Usage, message: message.into(), hint: None, source: None }
    }

    /// The user stopped the run.
    pub fn interrupted(message: impl Into<String>) -> Self {
        Error { kind: ErrorKind::Interrupted, message: message.into(), hint: None, source: None }
    }

    /// There is no memory left for something, where more than this message is to be said of it.
    pub fn out_of_memory(message: impl Into<String>) -> Self {
        Error { source: Some(std::io::ErrorKind::OutOfMemory.into()), ..Error::failed(message) }
    }

    /// A file cannot be used: `path: what`.
    pub fn file(path: &Path, what: impl fmt::Display) -> Self {
        Error::failed(format!("{}: {what}", path.display()))
    }

    /// An operation on a file failed in the operating system: `path: cannot <verb>: <reason>`.
    pub fn io(path: &Path, verb: &str, source: std::io::Error) -> Self {
        let mut error = Error::failed(format!("{}: cannot {verb}: {source}", path.display()));
        if source.kind() == std::io::ErrorKind::StorageFull {
            error.hint = Some("free some space on that disk and run the same command again".into());
        }
        error.source = Some(source);
        error
    }

    /// Adds what to do next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Says where: puts `place: ` before the message.
    #[must_use]
    pub fn at(mut self, place: impl fmt::Display) -> Self {
        self.message = format!("{place}: {}", self.message);
        self
    }

    /// Names `place` wherever the message names `temporary`, a copy of what is there.
    #[must_use]
    pub fn with_place(mut self, temporary: &Path, place: &Path) -> Self {
        self.message = self.message.replace(&*temporary.to_string_lossy(), &place.to_string_lossy());
        self
    }

    /// Whether memory ran out.
    pub fn is_out_of_memory(&self) -> bool {
        self.source.as_ref().is_some_and(|source| source.kind() == std::io::ErrorKind::OutOfMemory)
    }

    /// What decides the exit code.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The message without its hint.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// What to do next, if anything is known.
    pub fn hint_text(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// The process's exit code for this error.
    pub fn exit_code(&self) -> u8 {
        match self.kind {
            ErrorKind::Failed => 1,
            ErrorKind::Usage => 2,
            ErrorKind::Interrupted => 130,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|e| e as &(dyn std::error::Error + 'static))
    }
}

/// `bail!("...")`: returns [`Error::failed`] with a formatted message.
#[macro_export]
macro_rules! bail {
    ($($arg:tt)*) => { return Err($crate::error::Error::failed(format!($($arg)*))) };
}
