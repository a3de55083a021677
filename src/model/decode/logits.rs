//! The logits of a token, the last phases of its way.
//!
//! Where the head is there in 8 bits, all of them come from that, and those that can be near the largest once more from the
//! head itself, with f32 operands: tokens that are likely at all have the logits of the head, and the others, of which each
//! is less likely than the likeliest by a factor of e^[`MARGIN`], are as near as [`CoarseMatrix`] says.
//!
//! Invariant: which logits are computed again depends on the values alone.

use super::{projection, Private, Step};
use crate::device::{cpu_path, Compute};
use crate::ops::gemm::{CoarseMatrix, RowProduct};
use crate::ops::team::Member;
use std::ops::Range;

/// Numbers that a job of coarse logits leaves behind: the most that one of its logits can be taken for, and the least that
/// the largest can be.
const FINDINGS: usize = 2;

/// What a logit that is not computed again is below the largest at least: a factor of 400 in likelihood.
pub(super) const MARGIN: f32 = 6.0;

/// Rows of the head in jobs.
struct Jobs {
    rows: usize,
    rows_per_job: usize,
}

impl Jobs {
    fn new(rows: usize, row_bytes: usize) -> Jobs {
        Jobs { rows, rows_per_job: projection::rows_per_job(row_bytes) }
    }

    fn count(&self) -> usize {
        self.rows.div_ceil(self.rows_per_job)
    }

    fn rows(&self, job: usize) -> Range<usize> {
        job * self.rows_per_job..self.rows.min((job + 1) * self.rows_per_job)
    }
}

/// Jobs of the coarse head.
fn coarse_jobs(head: &CoarseMatrix) -> Jobs {
    Jobs::new(head.rows(), head.row_bytes())
}

/// Numbers that all jobs of a coarse head leave behind.
pub(super) fn findings(head: &CoarseMatrix) -> usize {
    FINDINGS * coarse_jobs(head).count()
}

impl Step<'_> {
    /// Logits of the normed hidden state.
    pub(super) fn logits(&self, member: &mut Member<'_>, private: &mut Private) {
        let (pass, logits) = (self.context.pass, &self.shared.logits);
        let weight = self.model.head_weight().view(pass.params);
        if let Some(coarse) = &self.model.coarse_head {
            return self.logits_by(coarse, RowProduct::new(weight, Compute::F32), member, private);
        }
        let head = RowProduct::new(weight, pass.compute);
        let input = &mut private.projection.input;
        input.load(&private.normed, [head].into_iter());
        let jobs = Jobs::new(head.rows(), head.row_bytes());
        member.share(jobs.count(), |job| head.sums(input, jobs.rows(job), &mut |row, sum| logits.set(row, sum)));
    }

    fn logits_by(&self, coarse: &CoarseMatrix, head: RowProduct<'_>, member: &mut Member<'_>, private: &mut Private) {
        let (path, logits, findings) = (cpu_path(), &self.shared.logits, &self.shared.findings);
        let Private { normed, coarse: input, projection, .. } = private;
        coarse.load(path, normed, input);
        let jobs = coarse_jobs(coarse);
        member.share(jobs.count(), |job| {
            let (mut most, mut largest, mut at) = (f32::NEG_INFINITY, f32::NEG_INFINITY, jobs.rows(job).start);
            for row in jobs.rows(job) {
                let logit = coarse.product(path, row, input);
                logits.set(row, logit);
                if logit.is_nan() {
                    most = f32::INFINITY;
                } else if logit > largest {
                    (largest, at) = (logit, row);
                }
            }
            findings.write(FINDINGS * job, &[most.max(largest), largest - coarse.error(at, input)]);
        });

        // What the largest logit is at least. The maximum passes over NaN; no comparison with NaN dismisses a row.
        let largest = (0..jobs.count()).map(|job| findings.get(FINDINGS * job + 1)).fold(f32::NEG_INFINITY, f32::max);
        let least = largest - MARGIN;
        let widest = coarse.widest_error(input);
        let exact = &mut projection.input;
        exact.load(normed, [head].into_iter());
        member.share(jobs.count(), |job| {
            if findings.get(FINDINGS * job) + widest < least {
                return;
            }
            for row in jobs.rows(job) {
                let logit = logits.get(row);
                if logit + widest < least || logit + coarse.error(row, input) < least {
                    continue;
                }
                head.sums(exact, row..row + 1, &mut |row, sum| logits.set(row, sum));
            }
        });
    }
}
