//! Decides what to do when a rank fails, when the job is asked to stop, or when a deadline passes.
//!
//! Pure: events and times go in, a decision and its reason come out. A time is the duration since the ranks
//! were started.
//!
//! Once a rank has failed, no checkpoint can be saved any more, since that takes a step which all ranks
//! complete. So the other ranks are not asked to stop, which asks for just that: they have [`GRACE_PERIOD`] to
//! report what they saw, and are then killed.

mod culprit;
mod event;
mod outcome;
mod rank;
mod restart;
mod silence;
#[cfg(test)]
mod tests;
mod walltime;

use std::time::Duration;

pub use event::{Decision, Event, Exit, StopSignal};
pub use outcome::{Cause, Failure, Outcome};
pub use rank::{Announcement, Ended, GivenUp, Observation, Rank, Report, Silence};
pub use restart::restart;
pub use walltime::Walltime;

/// Grace period after the first failure, in which the other ranks can report theirs before they are killed.
/// Together with the time that killing takes, it stays well under 2 s.
pub const GRACE_PERIOD: Duration = Duration::from_millis(300);

/// Grace period instead of [`GRACE_PERIOD`] if a rank waited for a peer or lost one and cannot say which: the
/// rank that hangs is the one that does not report so too, and the deadlines of the others pass one after
/// another.
const GRACE_PERIOD_UNNAMED: Duration = Duration::from_secs(3);

/// Time after a first stop signal within which a second one may be its echo: the same signal, arriving by
/// another way.
pub const ECHO: Duration = Duration::from_secs(1);

/// How long killed processes may take to be gone. A process that waits for a device or a file system that
/// does not respond cannot be killed.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// A deadline that is noticed this much too late shows that the launcher itself did not run (suspended,
/// stopped). The ranks probably did not either.
const OVERSLEPT: Duration = Duration::from_secs(1);

/// Reason for a decision after a deadline that was noticed too late, see [`OVERSLEPT`].
const DID_NOT_RUN: &str = "the launcher itself did not run for a while";

/// Time limits for the ranks.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Time from asking all ranks to stop until those that did not are killed. It counts only while no rank
    /// loads, evaluates or saves.
    pub stop: Duration,
    /// Time without a report after which a rank that takes steps, or looks for its peers, counts as hanging.
    pub silence: Duration,
    /// Time without a heartbeat after which a process counts as frozen, whatever it did.
    pub frozen: Duration,
    /// Time after which a rank that has not begun to look for its peers counts as hanging: it still loads
    /// libraries, or opens its device.
    pub start: Duration,
}

impl Limits {
    /// Returns the limits for ranks that wait for each other for `timeout`. Ranks know best which peer is
    /// missing and what it did last, so the limits leave them the time to report it. The same holds for a
    /// launcher that notices that a node is lost.
    pub fn new(timeout: Duration) -> Self {
        /// Time in addition to `timeout`, for a step and for the disk.
        const MARGIN: Duration = Duration::from_secs(60);
        /// Time to load libraries over a slow network.
        const START: Duration = Duration::from_secs(600);
        let limit = timeout + MARGIN;
        let frozen = (timeout + Duration::from_secs(5)).max(Duration::from_secs(20));
        Self { stop: limit, silence: limit, frozen, start: limit.max(START) }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Running,
    Stopping { until: Duration },
    Failing { kill_at: Duration },
    Killing { until: Duration },
}

/// The ranks of one attempt at the job, on all nodes, and what has been decided about them.
#[derive(Debug)]
pub struct Job {
    ranks: Vec<Rank>,
    limits: Limits,
    stage: Stage,
    stop_reason: Option<String>,
    interrupted: bool,
    /// Until when another signal may be an echo of the one that asked to stop, which was sent to all
    /// launchers, or to a study and its runs.
    echo_until: Option<Duration>,
    overdue: Vec<usize>,
    /// When and how `mpirun` ended, if it was killed.
    mpirun_killed: Option<Observation>,
    /// When a rank was first found to be silent for too long, until that is confirmed or refuted.
    suspected: Option<Duration>,
    /// When the last warning about silent ranks was given.
    noticed: Duration,
    /// When ranks were started, or when the launcher last noticed that it had not run for a while.
    started: Duration,
    walltime: Walltime,
}

impl Job {
    /// A job whose `world_size` ranks have just been started.
    pub fn new(world_size: usize, limits: Limits, walltime: Walltime) -> Self {
        Self {
            ranks: vec![Rank::default(); world_size],
            limits,
            walltime,
            stage: Stage::Running,
            stop_reason: None,
            interrupted: false,
            echo_until: None,
            overdue: Vec::new(),
            mpirun_killed: None,
            suspected: None,
            noticed: Duration::ZERO,
            started: Duration::ZERO,
        }
    }

    /// Returns what is known of each rank.
    pub fn ranks(&self) -> &[Rank] {
        &self.ranks
    }

    /// Returns why the job was asked to stop, if it was.
    pub fn stop_reason(&self) -> Option<&str> {
        self.stop_reason.as_deref()
    }

    /// Returns the time limit of the job.
    pub const fn walltime(&self) -> Walltime {
        self.walltime
    }

    /// Returns when to send an [`Event::Tick`], if no other event comes before; `None`: not at all.
    pub fn deadline(&self) -> Option<Duration> {
        match self.stage {
            Stage::Running => {
                let deadlines = [self.silence_deadline(), self.walltime.stop_at()];
                deadlines.into_iter().flatten().min()
            }
            Stage::Stopping { until } => {
                let stop = (!self.somebody_takes_its_time()).then_some(until);
                [self.silence_deadline(), stop].into_iter().flatten().min()
            }
            Stage::Killing { until } => Some(until),
            Stage::Failing { kill_at } => Some(kill_at),
        }
    }

    /// Records `event`, which came at `now`, and returns what to do, and why.
    pub fn on(&mut self, event: &Event, now: Duration) -> (Decision, String) {
        self.extend_stop(now);
        self.record(event, now);
        self.shorten_grace_period(now);
        if self.alive().next().is_none() {
            let outcome = self.outcome();
            let reason = outcome.to_string();
            return (Decision::Finish(outcome), reason);
        }
        match self.stage {
            Stage::Killing { until } if *event == Event::Tick && now > until + OVERSLEPT => {
                self.stage = Stage::Killing { until: now + KILL_TIMEOUT };
                wait(DID_NOT_RUN)
            }
            Stage::Killing { until } if *event == Event::Tick && now >= until => {
                let outcome = Outcome::Unkillable {
                    ranks: self.alive().collect(),
                    after: Box::new(self.outcome()),
                };
                let reason = outcome.to_string();
                (Decision::Finish(outcome), reason)
            }
            Stage::Killing { .. } => wait("the ranks are being killed"),
            Stage::Failing { kill_at } if now >= kill_at => {
                self.kill("a rank failed, so no step can complete", now)
            }
            Stage::Failing { .. } => match event {
                Event::Signal(signal) => {
                    self.kill(&format!("{} after a rank had failed", signal.name()), now)
                }
                Event::StopNow { reason } => {
                    self.kill(&format!("{reason} after a rank had failed"), now)
                }
                _ => wait("ranks may still say why they fail"),
            },
            Stage::Running | Stage::Stopping { .. } => match self.first_failure() {
                Some(failure) => {
                    let grace = if self.somebody_is_at_a_loss() {
                        GRACE_PERIOD_UNNAMED
                    } else {
                        GRACE_PERIOD
                    };
                    self.stage = Stage::Failing { kill_at: now + grace };
                    wait(&format!("{failure}; the others have {grace:.1?} to say what they saw"))
                }
                None => self.while_healthy(event, now),
            },
        }
    }

    fn while_healthy(&mut self, event: &Event, now: Duration) -> (Decision, String) {
        let stopping = matches!(self.stage, Stage::Stopping { .. });
        match (event, self.stage) {
            (Event::Signal(StopSignal::Interrupt), _)
                if stopping && self.echo_until.is_none_or(|until| now > until) =>
            {
                self.interrupted = true;
                self.kill("SIGINT while a checkpoint was being saved", now)
            }
            // Slurm and srun send these signals more than once: a repetition is no sign of impatience.
            (Event::Signal(signal), _) if stopping => {
                self.echo_until = None;
                wait(&format!("{} while already stopping", signal.name()))
            }
            (Event::StopNow { reason }, _) if stopping => {
                self.interrupted = true;
                self.kill(&format!("{reason} while a checkpoint was being saved"), now)
            }
            (Event::StopAsked { reason }, _) if stopping => {
                wait(&format!("{reason} while already stopping"))
            }
            (Event::StopAsked { reason } | Event::StopNow { reason }, _) => {
                self.echo_until = Some(Duration::MAX);
                self.ask_to_stop(reason.clone(), now)
            }
            (Event::Signal(signal), _) => {
                // Under srun, Ctrl-C arrives twice: from the study as SIGTERM, and from srun as SIGINT.
                let echoes = *signal == StopSignal::Terminate;
                self.echo_until = echoes.then_some(now + ECHO);
                self.ask_to_stop(signal.name().to_owned(), now)
            }
            (Event::Exited { rank, exit, .. }, _) if exit.is_stop() && !stopping => {
                self.ask_to_stop(format!("a request to rank {rank}"), now)
            }
            (Event::Tick, Stage::Stopping { until }) if now > until + OVERSLEPT => {
                self.stage = Stage::Stopping { until: now + self.limits.stop };
                wait(DID_NOT_RUN)
            }
            (Event::Tick, Stage::Stopping { until }) if now >= until => {
                self.overdue = self.alive().collect();
                self.kill(&format!("not all ranks stopped within {:.0?}", self.limits.stop), now)
            }
            (_, Stage::Running) if self.walltime.stop_at().is_some_and(|at| now >= at) => {
                let left = self.walltime.left(now);
                self.ask_to_stop(format!("the job's time limit ({left:.0?} left)"), now)
            }
            (Event::Tick, _) => self.check_silence(now),
            _ => wait("no failure"),
        }
    }

    /// Restarts the stop limit if a rank was loading, evaluating or saving until now.
    fn extend_stop(&mut self, now: Duration) {
        if matches!(self.stage, Stage::Stopping { .. }) && self.somebody_takes_its_time() {
            self.stage = Stage::Stopping { until: now + self.limits.stop };
        }
    }

    /// Shortens the grace period to [`GRACE_PERIOD`] once a rank has failed by itself: then there is no need to
    /// find out which rank hangs.
    fn shorten_grace_period(&mut self, now: Duration) {
        if let Stage::Failing { kill_at } = self.stage
            && self.somebody_failed_by_itself()
        {
            self.stage = Stage::Failing { kill_at: kill_at.min(now + GRACE_PERIOD) };
        }
    }

    fn somebody_takes_its_time(&self) -> bool {
        self.alive().any(|rank| self.ranks[rank].takes_its_time())
    }

    fn record(&mut self, event: &Event, now: Duration) {
        match event {
            Event::Reported { rank, phase, epoch, step } => {
                let report = Report { at: now, phase: *phase, epoch: *epoch, step: *step };
                self.ranks[*rank].report = Some(report);
                if *rank == 0 {
                    self.walltime.observe(*phase, now);
                }
            }
            Event::Heartbeat { rank } => self.ranks[*rank].alive_at = Some(now),
            Event::Failed { rank, exit_code, message, blame } => {
                let (message, blame) = (message.clone(), blame.clone());
                let said = Announcement { at: now, exit_code: *exit_code, message, blame };
                self.ranks[*rank].said.get_or_insert(said);
            }
            Event::Refused { rank, reason } => {
                self.ranks[*rank]
                    .refused
                    .get_or_insert(Observation { at: now, reason: reason.clone() });
            }
            Event::Exited { rank, exit, at } => {
                self.ranks[*rank].exited.get_or_insert(Ended { at: *at, exit: *exit });
            }
            Event::NodeLost { ranks, reason } => {
                let exited = |rank: &Rank| rank.exited.is_some();
                for rank in self.ranks[ranks.clone()].iter_mut().filter(|rank| !exited(rank)) {
                    rank.lost.get_or_insert(Observation { at: now, reason: reason.clone() });
                }
            }
            Event::MpirunKilled { reason, at } => {
                self.mpirun_killed.get_or_insert(Observation { at: *at, reason: reason.clone() });
            }
            // Recorded even if no checkpoint can be saved any more: then the job is at least not started
            // again.
            Event::Signal(signal) => {
                self.stop_reason.get_or_insert_with(|| signal.name().to_owned());
            }
            Event::StopAsked { reason } | Event::StopNow { reason } => {
                self.stop_reason.get_or_insert_with(|| reason.clone());
            }
            Event::Tick => {}
        }
    }

    fn ask_to_stop(&mut self, reason: String, now: Duration) -> (Decision, String) {
        self.stage = Stage::Stopping { until: now + self.limits.stop };
        self.stop_reason.get_or_insert_with(|| reason.clone());
        (Decision::AskToStop, reason)
    }

    fn kill(&mut self, reason: &str, now: Duration) -> (Decision, String) {
        self.stage = Stage::Killing { until: now + KILL_TIMEOUT };
        for rank in self.ranks.iter_mut().filter(|rank| rank.is_alive()) {
            rank.killed = true;
        }
        (Decision::Kill, reason.to_owned())
    }

    fn alive(&self) -> impl Iterator<Item = usize> {
        let alive = |(rank, state): (usize, &Rank)| state.is_alive().then_some(rank);
        self.ranks.iter().enumerate().filter_map(alive)
    }
}

fn wait(reason: &str) -> (Decision, String) {
    (Decision::Wait, reason.to_owned())
}
