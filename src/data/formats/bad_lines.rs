//! The account of records that could not be used.
//!
//! Invariant: every record of a file is either used, blank, or counted in [`BadLines`]; none disappears.

use std::path::Path;

use crate::error::{Error, Result};

/// How many are shown in full.
const SHOWN: usize = 5;

/// Lines that could not be used: how many, and the first few with their reason.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct BadLines {
    /// How many there were.
    pub count: u64,
    /// `file:line: reason` of the first five.
    pub first: Vec<String>,
    /// How many may be skipped.
    pub limit: u64,
}

impl BadLines {
    /// An empty account that lets `limit` lines be skipped.
    pub fn with_limit(limit: u64) -> BadLines {
        BadLines { limit, ..BadLines::default() }
    }

    /// Counts one; an error once there are more than the limit.
    pub fn add(&mut self, path: &Path, line: u64, reason: &str) -> Result<()> {
        self.count += 1;
        if self.first.len() < SHOWN {
            self.first.push(format!("{}:{line}: {reason}", path.display()));
        }
        if self.count <= self.limit {
            return Ok(());
        }
        let last = format!("{}:{line}: {reason}", path.display());
        if self.limit == 0 {
            return Err(Error::failed(last).hint(
                "repair the line, or set data.max_bad_lines (eval: --max-bad-lines) to skip up to that many (they are \
                 counted and shown)",
            ));
        }
        let mut shown = self.first.clone();
        if !shown.contains(&last) {
            shown.push(format!("... and the one over the limit: {last}"));
        }
        Err(Error::failed(format!(
            "{} unusable records, {} may be skipped (data.max_bad_lines):\n  {}",
            self.count,
            self.limit,
            shown.join("\n  ")
        ))
        .hint("repair the data, or raise data.max_bad_lines (eval: --max-bad-lines)"))
    }

    /// Counts some of which nothing more is known; an error once there are more than the limit.
    pub fn add_unseen(&mut self, path: &Path, count: u64) -> Result<()> {
        self.count += count;
        if self.count <= self.limit {
            return Ok(());
        }
        let (count, limit) = (self.count, self.limit);
        Err(Error::failed(format!(
            "{}: {count} unusable records, {limit} may be skipped (data.max_bad_lines):\n  {}",
            path.display(),
            self.first.join("\n  ")
        ))
        .hint("repair the data, or raise data.max_bad_lines (eval: --max-bad-lines)"))
    }
}
