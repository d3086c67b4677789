//! Detects ranks that are silent.

use std::time::Duration;

use super::rank::Silence;
use super::{DID_NOT_RUN, Decision, GivenUp, Job, Limits, OVERSLEPT, Rank, wait};

/// Extra time for a rank that seems to be silent: its messages may not have been read yet.
const CONFIRM: Duration = Duration::from_secs(2);

/// Silence after which the launcher warns of a rank in a phase that may take any time: its data, its
/// evaluation or its disk may be that slow, or it hangs.
const NOTICE: Duration = Duration::from_secs(300);

impl Job {
    /// Returns when to check for silent ranks next.
    pub(super) fn silence_deadline(&self) -> Option<Duration> {
        let first = match self.suspected {
            Some(at) => Some(at + CONFIRM),
            None => self.first_deadline(),
        };
        [first, self.notice_deadline()].into_iter().flatten().min()
    }

    fn first_deadline(&self) -> Option<Duration> {
        let deadlines = [
            self.frozen_deadline(),
            self.unheard_deadline(),
            self.mute_deadline(),
            self.start_deadline(),
        ];
        deadlines.into_iter().flatten().min()
    }

    /// Returns when the first of the processes that have sent heartbeats counts as frozen, without another
    /// one.
    fn frozen_deadline(&self) -> Option<Duration> {
        let signs = self.alive_ranks().filter_map(|rank| rank.alive_at);
        signs.map(|at| at + self.limits.frozen).min()
    }

    /// Returns when a rank that has never reported counts as hanging because others are ahead of it: they
    /// look for it, or train.
    fn unheard_deadline(&self) -> Option<Duration> {
        self.alive_ranks().find(|rank| rank.report.is_none())?;
        let looking = self.alive_ranks().filter(|rank| rank.has_a_deadline());
        looking.map(|rank| rank.heard_at() + self.limits.frozen).min()
    }

    /// Returns when the first of the ranks that take steps, or look for peers, counts as hanging, without
    /// another report.
    fn mute_deadline(&self) -> Option<Duration> {
        let bound = self.alive_ranks().filter(|rank| rank.has_a_deadline());
        bound.map(|rank| rank.heard_at() + self.limits.silence).min()
    }

    /// Returns when a rank that has never reported counts as hanging in any case.
    fn start_deadline(&self) -> Option<Duration> {
        self.alive_ranks()
            .find(|rank| rank.report.is_none())
            .map(|_| self.started + self.limits.start)
    }

    fn notice_deadline(&self) -> Option<Duration> {
        let others = self.alive_ranks().filter(|rank| !rank.has_a_deadline());
        others.map(|rank| rank.heard_at().max(self.noticed) + NOTICE).min()
    }

    fn alive_ranks(&self) -> impl Iterator<Item = &Rank> {
        self.alive().map(|rank| &self.ranks[rank])
    }

    /// Decides what to do about ranks that have been silent for too long, if any have. To be called on
    /// `Event::Tick`.
    pub(super) fn check_silence(&mut self, now: Duration) -> (Decision, String) {
        let Some(deadline) = self.first_deadline().filter(|deadline| now >= *deadline) else {
            self.suspected = None;
            return self.notice(now);
        };
        let overslept = self.suspected.map_or(deadline, |at| at + CONFIRM) + OVERSLEPT;
        if now > overslept {
            self.suspected = None;
            for rank in &mut self.ranks {
                rank.alive_at = rank.alive_at.map(|_| now);
                if let Some(report) = &mut rank.report {
                    report.at = now;
                }
            }
            self.started = now;
            return wait(DID_NOT_RUN);
        }
        match self.suspected {
            None => {
                self.suspected = Some(now);
                wait("a rank seems to have been silent for too long")
            }
            Some(at) if now < at + CONFIRM => wait("a rank seems to be silent"),
            Some(_) => self.give_up_silent(now),
        }
    }

    fn give_up_silent(&mut self, now: Duration) -> (Decision, String) {
        let over = |deadline: Option<Duration>| deadline.is_some_and(|deadline| now >= deadline);
        let Limits { silence, frozen, .. } = self.limits;
        let (some_are_frozen, some_are_unheard, some_do_not_start) = (
            over(self.frozen_deadline()),
            over(self.unheard_deadline()),
            over(self.start_deadline()),
        );
        let bound: Vec<bool> = self.ranks.iter().map(Rank::has_a_deadline).collect();
        let alive: Vec<usize> = self.alive().collect();
        let all_look = alive.iter().all(|rank| self.ranks[*rank].looks_for_peers());
        for rank in alive {
            let state = &mut self.ranks[rank];
            let quiet = now - state.heard_at();
            let given_up = |silence| GivenUp { at: now, silence };
            if some_are_frozen {
                let lifeless = state.alive_at.map(|at| now - at).filter(|time| *time >= frozen);
                state.given_up = lifeless.map(|time| given_up(Silence::Frozen(time)));
            } else if some_are_unheard {
                let unheard = state.report.is_none();
                state.given_up = unheard.then_some(given_up(Silence::Quiet(quiet)));
            } else if all_look {
                state.given_up = Some(given_up(Silence::Apart(quiet)));
            } else if (bound[rank] && quiet >= silence)
                || (state.report.is_none() && some_do_not_start)
            {
                state.given_up = Some(given_up(Silence::Quiet(quiet)));
            }
        }
        let reason = if some_are_frozen {
            format!("a rank sent no heartbeat for {frozen:.0?}")
        } else if some_are_unheard {
            "a rank that its peers wait for never reported".to_owned()
        } else if some_do_not_start {
            format!("a rank did not start within {:.0?}", self.limits.start)
        } else {
            format!("a rank reported nothing for {silence:.0?}")
        };
        self.kill(&reason, now)
    }

    /// Warns of ranks that have been silent for long and may hang, or may just be slow.
    fn notice(&mut self, now: Duration) -> (Decision, String) {
        if self.notice_deadline().is_none_or(|deadline| now < deadline) {
            return wait("no failure");
        }
        self.noticed = now;
        let quiet = self.alive().filter_map(|rank| {
            let state = &self.ranks[rank];
            let seconds = now.saturating_sub(state.heard_at()).as_secs();
            let is_quiet = !state.has_a_deadline() && seconds >= NOTICE.as_secs();
            is_quiet.then(|| {
                format!("rank {rank} ({}) reported nothing for {seconds} s", state.doing())
            })
        });
        let quiet: Vec<_> = quiet.collect();
        (Decision::Warn, format!("{}; still waiting", quiet.join("; ")))
    }
}
