//! Decides when to stop because the job's time is up. Pure.
//!
//! A rank that is asked to stop first finishes what it is doing, at worst an evaluation and the checkpoint
//! after it, and then saves another checkpoint. So the margin before the end is twice the longest pause
//! between steps so far, and a reserve for what is slower the next time.

use std::time::Duration;

use comm::control::Phase;

/// Assumed length of a pause before there was one.
const FIRST_PAUSE: Duration = Duration::from_secs(20);

/// Reserve in addition to the pauses: for a step, the end of the processes, and clocks that differ.
const RESERVE: Duration = Duration::from_secs(15);

/// The time limit of the job, and the longest pause between steps of rank 0, for an evaluation and a
/// checkpoint.
#[derive(Debug, Clone, Copy, Default)]
pub struct Walltime {
    end: Option<Duration>,
    longest_pause: Option<Duration>,
    paused_since: Option<Duration>,
    has_trained: bool,
}

impl Walltime {
    /// Creates the limit of a job that is killed at `end`; `None`: there is no limit.
    pub fn new(end: Option<Duration>) -> Self {
        Self { end, ..Self::default() }
    }

    /// Returns the limit for a new attempt, which begins `elapsed` after the attempt that `self` is for.
    pub fn restarted(self, elapsed: Duration) -> Self {
        let end = self.end.map(|end| end.saturating_sub(elapsed));
        Self { end, longest_pause: self.longest_pause, ..Self::default() }
    }

    /// Records what rank 0 does.
    pub fn observe(&mut self, phase: Phase, now: Duration) {
        if phase == Phase::Training {
            self.has_trained = true;
            if let Some(since) = self.paused_since.take() {
                let pause = now.saturating_sub(since);
                self.longest_pause = Some(self.longest_pause.unwrap_or_default().max(pause));
            }
        } else if self.has_trained {
            self.paused_since.get_or_insert(now);
        }
    }

    /// Returns when to ask all ranks to stop; `None`: there is no limit.
    pub fn stop_at(&self) -> Option<Duration> {
        self.end.map(|end| end.saturating_sub(self.margin()))
    }

    /// Returns the time from `now` to the end.
    pub fn left(&self, now: Duration) -> Duration {
        self.end.unwrap_or_default().saturating_sub(now)
    }

    /// Returns how long before the end all ranks are asked to stop.
    pub fn margin(&self) -> Duration {
        2 * self.longest_pause.unwrap_or(FIRST_PAUSE) + RESERVE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn time_for_two_of_the_longest_pauses_is_kept() {
        let mut walltime = Walltime::new(Some(s(1000)));
        assert_eq!(walltime.stop_at(), Some(s(1000) - s(55)));
        // Starting is no pause.
        walltime.observe(Phase::LoadingData, s(0));
        walltime.observe(Phase::Training, s(100));
        assert_eq!(walltime.margin(), s(55));
        for (phase, at) in [(Phase::Evaluating, 200), (Phase::Saving, 230), (Phase::Training, 270)]
        {
            walltime.observe(phase, s(at));
        }
        assert_eq!(walltime.stop_at(), Some(s(1000) - s(155)));
        walltime.observe(Phase::Evaluating, s(300));
        walltime.observe(Phase::Training, s(301));
        assert_eq!(walltime.stop_at(), Some(s(1000) - s(155)), "the longest counts");
        let restarted = walltime.restarted(s(400));
        assert_eq!(restarted.stop_at(), Some(s(600) - s(155)));
    }

    #[test]
    fn without_an_end_nobody_is_asked_to_stop() {
        assert_eq!(Walltime::new(None).stop_at(), None);
    }
}
