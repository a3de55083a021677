//! On how many threads the next token is computed: all of them, unless other programs want the cores so much that one
//! thread alone is faster.
//!
//! Threads that wait long for each other are a hint only: where the neighbours of a virtual machine slow one core down for
//! a moment, all threads together stay faster by far. So a hint makes one token be tried alone, and times decide.
//! Invariant: only how long a token takes depends on this, never a bit of it.

use std::time::Duration;

/// Phases of a token in which threads may wait long for each other; with more, cores may be missing.
const HELD_UP: usize = 4;

/// Most tokens that one thread computes alone before it is tried again with all.
const LONGEST: usize = 16;

/// Share of the newest token in a mean.
const NEWEST: f64 = 0.125;

/// What becomes of the time of a thread alone with each token of all: what was slow once is tried again some day.
const FORGETS: f64 = 0.995;

/// Times so far, and what follows from them.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// Mean seconds of a token on all threads; 0 before the first.
    all: f64,
    /// Mean seconds of a token on one thread; 0 before the first.
    one: f64,
    /// Tokens that are yet to be computed alone.
    left: usize,
    /// How many the last such run had; 0 if all threads were the better choice since.
    run: usize,
}

impl Pace {
    /// Threads for the next token, of so many.
    pub fn threads(&self, all: usize) -> usize {
        if self.left > 0 {
            1
        } else {
            all
        }
    }

    /// Takes in how a token went: on how many threads, how often they waited long, and how long it took.
    pub fn took(&mut self, threads: usize, held_up: usize, time: Duration) {
        let seconds = time.as_secs_f64();
        if threads <= 1 {
            // The first of a run says how it is now: what was known of it is forgotten in part.
            if self.left == self.run {
                self.one = seconds;
            } else {
                mix(&mut self.one, seconds);
            }
            self.left = self.left.saturating_sub(1);
            return;
        }
        mix(&mut self.all, seconds);
        self.one *= FORGETS;
        let alone = held_up > HELD_UP && self.one < self.all;
        self.run = if alone { (2 * self.run).clamp(1, LONGEST) } else { 0 };
        self.left = self.run;
    }
}

fn mix(mean: &mut f64, newest: f64) {
    *mean = if *mean == 0.0 { newest } else { *mean + NEWEST * (newest - *mean) };
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tokens computed alone, of 1000, on a machine where tokens take `one` and `all` milliseconds and are held up
    /// whenever `held_up` says so of their number.
    fn alone(one: u64, all: u64, held_up: impl Fn(usize) -> bool) -> usize {
        let mut pace = Pace::default();
        (0..1000)
            .filter(|&token| {
                let threads = pace.threads(2);
                let (time, waits) = if threads == 1 { (one, 0) } else { (all, if held_up(token) { 50 } else { 1 }) };
                pace.took(threads, waits, Duration::from_millis(time));
                threads == 1
            })
            .count()
    }

    #[test]
    fn all_threads_work_where_nothing_holds_them_up() {
        assert_eq!(alone(35, 17, |_| false), 0);
        assert_eq!(alone(17, 35, |_| false), 0);
    }

    #[test]
    fn where_hold_ups_cost_little_hardly_a_token_is_computed_alone() {
        let tokens = alone(35, 17, |token| token % 30 == 29);
        assert!((1..20).contains(&tokens), "{tokens}");
        let tokens = alone(35, 17, |_| true);
        assert!((1..20).contains(&tokens), "{tokens}");
    }

    #[test]
    fn where_cores_are_missing_most_tokens_are_computed_alone() {
        let tokens = alone(35, 60, |_| true);
        assert!(tokens > 900, "{tokens}");
    }

    #[test]
    fn all_threads_are_tried_again_when_the_cores_are_free() {
        let mut pace = Pace::default();
        for _ in 0..200 {
            let threads = pace.threads(2);
            let (time, waits) = if threads == 1 { (35, 0) } else { (60, 50) };
            pace.took(threads, waits, Duration::from_millis(time));
        }
        assert!(pace.run == LONGEST);
        let mut waited = 0;
        while pace.threads(2) == 1 {
            pace.took(1, 0, Duration::from_millis(35));
            waited += 1;
        }
        assert!(waited <= LONGEST);
        (0..20).for_each(|_| pace.took(2, 0, Duration::from_millis(17)));
        assert!(pace.threads(2) == 2 && pace.all < 30e-3, "{pace:?}");
    }
}
