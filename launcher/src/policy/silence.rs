//! Ranks that say nothing.

use std::time::Duration;

use super::{Decision, Job, Rank, wait};

/// When a deadline is noticed this much too late, the launcher itself did not run (suspended,
/// stopped), and the ranks probably did not either.
const OVERSLEPT: Duration = Duration::from_secs(1);

/// A rank that does what may take any time and says nothing for so long is told of: its data, its evaluation
/// or its disk may be that slow, or it hangs.
const NOTICE: Duration = Duration::from_secs(300);

impl Job {
    /// When a process that has given signs of life must have given another one.
    pub(super) fn frozen_deadline(&self) -> Option<Duration> {
        let signs = self.alive().filter_map(|rank| self.ranks[rank].alive_at);
        signs.map(|at| at + self.limits.frozen).min()
    }

    pub(super) fn silence_deadline(&self) -> Option<Duration> {
        let bound = self.alive_ranks().filter(|it| it.has_a_deadline());
        bound.map(|rank| rank.heard_at() + self.limits.silence).min()
    }

    pub(super) fn notice_deadline(&self) -> Option<Duration> {
        let others = self.alive_ranks().filter(|it| !it.has_a_deadline());
        others.map(|rank| rank.heard_at().max(self.noticed) + NOTICE).min()
    }

    fn alive_ranks(&self) -> impl Iterator<Item = &Rank> {
        self.alive().map(|rank| &self.ranks[rank])
    }

    /// What to do about ranks that have been silent too long, if any have.
    pub(super) fn check_silence(&mut self, now: Duration) -> (Decision, String) {
        let deadlines = [self.frozen_deadline(), self.silence_deadline()];
        let [frozen, silent] = deadlines.map(|it| it.filter(|deadline| now >= *deadline));
        let Some(deadline) = frozen.into_iter().chain(silent).min() else {
            return self.notice(now);
        };
        if now > deadline + OVERSLEPT {
            for rank in &mut self.ranks {
                rank.alive_at = rank.alive_at.map(|_| now);
                if let Some(report) = &mut rank.report {
                    report.at = now;
                }
            }
            return wait("the launcher itself did not run for a while");
        }
        if frozen.is_some() { self.give_up_frozen(now) } else { self.give_up_silent(now) }
    }

    fn give_up_frozen(&mut self, now: Duration) -> (Decision, String) {
        for rank in self.alive().collect::<Vec<_>>() {
            let state = &mut self.ranks[rank];
            let silence = state.alive_at.map(|at| now - at);
            state.frozen =
                silence.filter(|it| *it >= self.limits.frozen).map(|silence| (now, silence));
        }
        let limit = self.limits.frozen;
        self.kill(&format!("a rank gave no sign of life for {limit:.0?}"), now)
    }

    fn give_up_silent(&mut self, now: Duration) -> (Decision, String) {
        // Who was never heard of is who the others look for.
        let unheard = self.alive_ranks().any(|rank| rank.report.is_none());
        for rank in self.alive().collect::<Vec<_>>() {
            let state = &mut self.ranks[rank];
            let silence = now - state.heard_at();
            let hangs = silence >= self.limits.silence && (state.report.is_none() || !unheard);
            state.silent = hangs.then_some((now, silence));
        }
        self.kill(&format!("a rank said nothing for {:.0?}", self.limits.silence), now)
    }

    /// Tells of ranks that may hang, or may not.
    fn notice(&mut self, now: Duration) -> (Decision, String) {
        if self.notice_deadline().is_none_or(|deadline| now < deadline) {
            return wait("no failure");
        }
        self.noticed = now;
        let quiet = self.alive().filter_map(|rank| {
            let state = &self.ranks[rank];
            let seconds = now.saturating_sub(state.heard_at()).as_secs();
            let is_quiet = !state.has_a_deadline() && seconds >= NOTICE.as_secs();
            is_quiet
                .then(|| format!("rank {rank} ({}) said nothing for {seconds} s", state.doing()))
        });
        let quiet: Vec<_> = quiet.collect();
        (Decision::Warn, format!("{}; still waiting", quiet.join("; ")))
    }
}
