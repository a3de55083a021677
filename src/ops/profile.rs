//! Where the time of a step goes: wall time, calls and operations by kind of work.
//!
//! Spans are taken on the thread that walks through the step and do not nest, so that their times add up to what the
//! step spent in operations, waiting for the other threads included. Off until [`start`]; a span then costs one relaxed
//! load.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

static ON: AtomicBool = AtomicBool::new(false);
static LINES: Mutex<Vec<Line>> = Mutex::new(Vec::new());

/// All spans of one name.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    /// What was done.
    pub name: &'static str,
    /// How often.
    pub calls: u64,
    /// Wall time.
    pub time: Duration,
    /// Floating-point operations of its products.
    pub operations: f64,
}

/// A piece of work in progress; ends when it is dropped.
pub struct Span {
    name: &'static str,
    operations: f64,
    start: Instant,
}

/// Begins a piece of work with so many floating-point operations (0 where they are not what takes the time).
#[inline]
pub fn span(name: &'static str, operations: f64) -> Option<Span> {
    ON.load(Ordering::Relaxed).then(|| Span { name, operations, start: Instant::now() })
}

impl Drop for Span {
    fn drop(&mut self) {
        let time = self.start.elapsed();
        let mut lines = LINES.lock().unwrap_or_else(PoisonError::into_inner);
        let line = match lines.iter_mut().position(|line| line.name == self.name) {
            Some(index) => &mut lines[index],
            None => {
                lines.push(Line { name: self.name, calls: 0, time: Duration::ZERO, operations: 0.0 });
                let last = lines.len() - 1;
                &mut lines[last]
            }
        };
        line.calls += 1;
        line.time += time;
        line.operations += self.operations;
    }
}

/// Forgets all spans and takes down those to come.
pub fn start() {
    LINES.lock().unwrap_or_else(PoisonError::into_inner).clear();
    ON.store(true, Ordering::Relaxed);
}

/// Ends the profile: its lines, longest first.
pub fn finish() -> Vec<Line> {
    ON.store(false, Ordering::Relaxed);
    let mut lines = std::mem::take(&mut *LINES.lock().unwrap_or_else(PoisonError::into_inner));
    lines.sort_by_key(|line| std::cmp::Reverse(line.time));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_add_up_only_between_start_and_finish() {
        drop(span("before", 1.0));
        start();
        for _ in 0..3 {
            drop(span("profile test, short", 2.0));
        }
        let long = span("profile test, long", 5.0);
        std::thread::sleep(Duration::from_millis(3));
        drop(long);
        let lines = finish();
        drop(span("after", 1.0));
        let find = |name| lines.iter().find(|line| line.name == name);
        assert!(find("before").is_none() && finish().is_empty());
        let (short, long) = (find("profile test, short").unwrap(), find("profile test, long").unwrap());
        assert_eq!((short.calls, short.operations, long.calls, long.operations), (3, 6.0, 1, 5.0));
        assert!(long.time >= Duration::from_millis(3) && long.time > short.time);
        let place = |line: &Line| lines.iter().position(|other| other == line);
        assert!(place(long) < place(short));
    }
}
