//! Which checkpoints stay: the newest few and the best few.

use serde::{Deserialize, Serialize};

/// How many checkpoints stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeepPolicy {
    /// The newest ones; at least 1.
    pub last: usize,
    /// Those with the least held-out loss, where it was measured at their step.
    pub best: usize,
}

impl Default for KeepPolicy {
    fn default() -> KeepPolicy {
        KeepPolicy { last: 2, best: 0 }
    }
}

/// Steps that may go, oldest first, of checkpoints given as (step, score). The newest always stays.
pub fn expendable(checkpoints: &[(u64, Option<f64>)], policy: KeepPolicy) -> Vec<u64> {
    let mut steps: Vec<u64> = checkpoints.iter().map(|(step, _)| *step).collect();
    steps.sort_unstable();
    let newest = steps.len().saturating_sub(policy.last.max(1));
    let mut scored: Vec<(f64, u64)> =
        checkpoints.iter().filter_map(|&(step, score)| Some((score.filter(|score| !score.is_nan())?, step))).collect();
    // Of equal losses the earlier step is the better: it took less training.
    scored.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let best: Vec<u64> = scored.iter().take(policy.best).map(|(_, step)| *step).collect();
    steps[..newest].iter().copied().filter(|step| !best.contains(step)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(last: usize, best: usize) -> KeepPolicy {
        KeepPolicy { last, best }
    }

    #[test]
    fn the_newest_stay_whatever_the_order_they_are_given_in() {
        let all = [(30, None), (10, None), (20, None)];
        assert_eq!(expendable(&all, policy(2, 0)), [10]);
        assert_eq!(expendable(&all, policy(1, 0)), [10, 20]);
        assert_eq!(expendable(&all, policy(9, 0)), [0u64; 0]);
    }

    #[test]
    fn the_last_one_is_never_expendable() {
        assert_eq!(expendable(&[(10, None)], policy(0, 0)), [0u64; 0]);
        assert_eq!(expendable(&[], policy(0, 0)), [0u64; 0]);
    }

    #[test]
    fn the_best_stay_beside_the_newest() {
        let all = [(10, Some(2.0)), (20, Some(1.0)), (30, Some(1.5)), (40, Some(3.0)), (50, None)];
        assert_eq!(expendable(&all, policy(1, 1)), [10, 30, 40]);
        assert_eq!(expendable(&all, policy(1, 2)), [10, 40]);
    }

    #[test]
    fn of_equal_scores_the_earlier_stays_and_nan_is_no_score() {
        let all = [(10, Some(f64::NAN)), (20, Some(1.0)), (30, Some(1.0)), (40, None)];
        assert_eq!(expendable(&all, policy(1, 1)), [10, 30]);
    }
}
