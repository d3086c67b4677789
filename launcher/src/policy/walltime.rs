//! When to stop because the job's time is up. Pure.
//!
//! A rank that is asked to stop first finishes what it is at, at worst an evaluation and the checkpoint
//! after it, and then saves another one. So twice the longest pause between steps so far is kept, and
//! something for what is slower the next time.

use std::time::Duration;

use comm::control::Phase;

/// What a pause is taken to last before there was one.
const FIRST_PAUSE: Duration = Duration::from_secs(20);

/// Kept besides: for a step, the end of the processes, and clocks that differ.
const RESERVE: Duration = Duration::from_secs(15);

/// The time that the job may take, and how long rank 0 pauses for an evaluation and a checkpoint.
#[derive(Debug, Clone, Copy, Default)]
pub struct Walltime {
    end: Option<Duration>,
    longest_pause: Option<Duration>,
    paused_since: Option<Duration>,
    has_trained: bool,
}

impl Walltime {
    /// `end`: when the job is killed, if it is.
    pub fn new(end: Option<Duration>) -> Self {
        Self { end, ..Self::default() }
    }

    /// The same for a new attempt, which begins `elapsed` after the one that this was made for.
    pub fn restarted(self, elapsed: Duration) -> Self {
        let end = self.end.map(|end| end.saturating_sub(elapsed));
        Self { end, longest_pause: self.longest_pause, ..Self::default() }
    }

    /// Takes note of what rank 0 does.
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

    /// When to ask all ranks to stop, if ever.
    pub fn stop_at(&self) -> Option<Duration> {
        self.end.map(|end| end.saturating_sub(self.margin()))
    }

    /// How long before the end that is.
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
