//! Threads that go through one piece of work side by side: they share out the jobs of a phase, and nobody starts the next
//! phase before all jobs of this one are done.
//!
//! For work of many short phases, such as a token going through all blocks of a model: waking the pool for each phase
//! would take longer than the phase. The members are the threads of the one pool, woken once; between phases they wait
//! awake, since the others are done within microseconds, and give their core up when that is not so.
//!
//! Invariant: who does a job is left to chance, so a job must not depend on it. A member that panics takes the others
//! with it instead of leaving them waiting.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Rounds that a member waits awake before it lets other threads have its core: some tens of microseconds.
const AWAKE: usize = 2000;

/// Sets of job counters: one in use, one being reset for the next phase, one that stragglers of the last may look at.
const SETS: usize = 3;

/// A number on a cache line of its own.
#[repr(align(128))]
#[derive(Default)]
struct Counter(AtomicUsize);

/// What the members share.
struct Team {
    arrived: Counter,
    phase: Counter,
    broken: AtomicBool,
    /// Times that a member gave its core up while it waited.
    held_up: Counter,
    /// Jobs taken out of each member's part.
    taken: [Vec<Counter>; SETS],
}

/// One thread of a team.
pub struct Member<'a> {
    team: &'a Team,
    index: usize,
    members: usize,
    phase: usize,
}

/// Runs `work` on at most `members` threads of the pool at once, each as one member, and waits for all. Gives the number
/// of times that a member had to wait so long that it gave its core up: many mean that other programs want the cores, and
/// that fewer members would be done sooner.
pub fn run(members: usize, work: impl Fn(Member<'_>) + Sync) -> usize {
    let members = members.clamp(1, rayon::current_num_threads());
    let counters = || (0..members).map(|_| Counter::default()).collect();
    let team = Team {
        arrived: Counter::default(),
        phase: Counter::default(),
        broken: AtomicBool::new(false),
        held_up: Counter::default(),
        taken: [counters(), counters(), counters()],
    };
    let member = |index| Member { team: &team, index, members, phase: 0 };
    if members == 1 {
        work(member(0));
        return 0;
    }
    rayon::broadcast(|context| {
        if context.index() < members {
            work(member(context.index()));
        }
    });
    team.held_up.0.load(Ordering::Relaxed)
}

impl Member<'_> {
    /// Which member this is, from 0.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Does its part of the jobs `0..jobs`, then what others have not begun; returns when all jobs are done. All members
    /// must come here with the same number.
    pub fn share(&mut self, jobs: usize, mut work: impl FnMut(usize)) {
        if self.members == 1 {
            return (0..jobs).for_each(work);
        }
        let taken = &self.team.taken[self.phase % SETS];
        for offset in 0..self.members {
            let owner = (self.index + offset) % self.members;
            let part = |member: usize| jobs * member / self.members;
            let (start, end) = (part(owner), part(owner + 1));
            loop {
                // Without the look first, latecomers would carry the line away from its owner for nothing.
                if taken[owner].0.load(Ordering::Relaxed) >= end - start {
                    break;
                }
                let job = start + taken[owner].0.fetch_add(1, Ordering::Relaxed);
                if job >= end {
                    break;
                }
                work(job);
            }
        }
        self.team.taken[(self.phase + 1) % SETS][self.index].0.store(0, Ordering::Relaxed);
        self.wait();
    }

    /// Returns when all members are here.
    fn wait(&mut self) {
        let team = self.team;
        let next = self.phase + 1;
        self.phase = next;
        if team.arrived.0.fetch_add(1, Ordering::AcqRel) + 1 == next * self.members {
            team.phase.0.store(next, Ordering::Release);
            return;
        }
        let mut rounds = 0;
        while team.phase.0.load(Ordering::Acquire) < next {
            assert!(!team.broken.load(Ordering::Relaxed), "another thread of the team panicked");
            rounds += 1;
            if rounds < AWAKE {
                std::hint::spin_loop();
            } else {
                if rounds == AWAKE {
                    team.held_up.0.fetch_add(1, Ordering::Relaxed);
                }
                std::thread::yield_now();
            }
        }
    }
}

impl Drop for Member<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.team.broken.store(true, Ordering::Relaxed);
        }
    }
}

/// f32 values that the members of a team write, each its own, and read after the phase.
#[derive(Default)]
pub struct SharedValues(Vec<std::sync::atomic::AtomicU32>);

impl SharedValues {
    /// `len` zeros.
    pub fn zeros(len: usize) -> SharedValues {
        let mut values = SharedValues::default();
        values.grow(len, len);
        values
    }

    /// Makes room for `len` values if there is not, and then for `to`.
    pub fn grow(&mut self, len: usize, to: usize) {
        if self.0.len() < len {
            self.0.resize_with(to.max(len), Default::default);
        }
    }

    /// Writes one value.
    #[inline]
    pub fn set(&self, index: usize, value: f32) {
        self.0[index].store(value.to_bits(), Ordering::Relaxed);
    }

    /// Reads one value.
    #[inline]
    pub fn get(&self, index: usize) -> f32 {
        f32::from_bits(self.0[index].load(Ordering::Relaxed))
    }

    /// Writes values from `start` on.
    pub fn write(&self, start: usize, values: &[f32]) {
        self.0[start..start + values.len()]
            .iter()
            .zip(values)
            .for_each(|(to, v)| to.store(v.to_bits(), Ordering::Relaxed));
    }

    /// Reads values from `start` on.
    pub fn read(&self, start: usize, to: &mut [f32]) {
        let from = &self.0[start..start + to.len()];
        to.iter_mut().zip(from).for_each(|(to, v)| *to = f32::from_bits(v.load(Ordering::Relaxed)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(threads: usize) -> rayon::ThreadPool {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap()
    }

    #[test]
    fn each_phase_sees_all_of_the_one_before() {
        for threads in [1, 2, 3, 7] {
            let (jobs, phases) = (23, 400);
            let values = [SharedValues::zeros(jobs), SharedValues::zeros(jobs)];
            pool(threads).install(|| {
                run(threads, |mut member| {
                    for phase in 0..phases {
                        let (from, to) = (&values[phase % 2], &values[(phase + 1) % 2]);
                        // Each job needs what all jobs of the phase before wrote.
                        member.share(jobs, |job| {
                            let mut all = vec![0.0; jobs];
                            from.read(0, &mut all);
                            assert!(all.iter().all(|&value| value == phase as f32), "{all:?} in phase {phase}");
                            to.set(job, phase as f32 + 1.0);
                        });
                    }
                })
            });
        }
    }

    #[test]
    fn every_job_is_done_once_whatever_their_number() {
        for (threads, jobs) in [(2, 0), (2, 1), (3, 2), (4, 1001)] {
            let done: Vec<AtomicUsize> = (0..jobs).map(|_| AtomicUsize::new(0)).collect();
            pool(threads).install(|| {
                run(threads, |mut member| {
                    for _ in 0..5 {
                        member.share(jobs, |job| {
                            done[job].fetch_add(1, Ordering::Relaxed);
                        });
                    }
                })
            });
            assert!(done.iter().all(|count| count.load(Ordering::Relaxed) == 5));
        }
    }

    #[test]
    fn a_panic_ends_the_team() {
        let pool = pool(3);
        let run_it = || {
            pool.install(|| {
                run(3, |mut member| {
                    member.share(3, |job| assert!(job != 1, "on purpose"));
                    member.share(3, |_| {});
                })
            })
        };
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(run_it)).is_err());
        pool.install(|| run(3, |mut member| member.share(9, |_| {})));
        assert_eq!(pool.install(|| run(1, |mut member| member.share(9, |_| {}))), 0);
    }

    #[test]
    fn teams_at_the_same_time_do_not_block_each_other() {
        let pool = pool(2);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        pool.install(|| run(2, |mut member| (0..20).for_each(|_| member.share(5, |_| {}))));
                    }
                });
            }
        });
    }
}
