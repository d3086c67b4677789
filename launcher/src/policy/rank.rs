//! What the launcher has heard and seen of one rank.

use std::time::Duration;

use comm::Blame;
use comm::control::Phase;

use super::Exit;

/// What is known of a rank.
#[derive(Debug, Clone, Default)]
pub struct Rank {
    /// The newest report of what the rank is doing, if any.
    pub report: Option<Report>,
    /// When the newest heartbeat of the rank's process came, if any.
    pub alive_at: Option<Duration>,
    /// The failure that the rank announced, if any.
    pub said: Option<Announcement>,
    /// Why the rank was refused, if it was.
    pub refused: Option<Observation>,
    /// Why the launcher gave up on the rank, if it did.
    pub given_up: Option<GivenUp>,
    /// How the rank's node was lost, if it was.
    pub lost: Option<Observation>,
    /// How the rank's process ended, if it did.
    pub exited: Option<Ended>,
    /// Whether the launcher killed the rank.
    pub killed: bool,
}

impl Rank {
    /// Returns whether the rank's process may still be there.
    pub(super) const fn is_alive(&self) -> bool {
        self.exited.is_none() && self.lost.is_none()
    }

    /// Returns what the rank is doing according to its newest report.
    pub const fn doing(&self) -> &'static str {
        match self.report {
            None => "starting up",
            Some(report) => match report.phase {
                Phase::Connecting => "connecting to its peers",
                Phase::LoadingData => "loading data",
                Phase::Preparing => "preparing the network",
                Phase::Training => "training",
                Phase::Evaluating => "evaluating",
                Phase::Saving => "saving a checkpoint",
            },
        }
    }

    /// Returns when the newest report came; zero if none did. Heartbeats do not count.
    pub(super) fn heard_at(&self) -> Duration {
        self.report.map_or(Duration::ZERO, |report| report.at)
    }

    /// Returns whether the rank is connecting to its peers.
    pub(super) fn looks_for_peers(&self) -> bool {
        self.report.is_some_and(|report| report.phase == Phase::Connecting)
    }

    /// Returns whether the next report is due within a known time: steps are reported as they begin, and
    /// connecting to peers has a deadline. How long the other phases take depends on the data and the disk.
    pub(super) fn has_a_deadline(&self) -> bool {
        let doing = self.report.map(|report| report.phase);
        matches!(doing, Some(Phase::Connecting | Phase::Training))
    }

    /// Returns whether the rank is in a phase that may take any time.
    pub(super) fn takes_its_time(&self) -> bool {
        self.report.is_some() && !self.has_a_deadline()
    }
}

/// How a rank is silent, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Silence {
    /// The rank sent no report.
    Quiet(Duration),
    /// The rank's process sent no heartbeat.
    Frozen(Duration),
    /// The rank and all others run, and look for each other in vain.
    Apart(Duration),
}

/// The failure that a rank announced.
#[derive(Debug, Clone)]
pub struct Announcement {
    /// When the launcher heard of it.
    pub at: Duration,
    /// The exit code that it announced.
    pub exit_code: u8,
    /// The error message.
    pub message: String,
    /// Which ranks it held responsible.
    pub blame: Blame,
}

/// An observation about a rank that did not come from the rank itself, or about `mpirun`.
#[derive(Debug, Clone)]
pub struct Observation {
    /// When it was observed.
    pub at: Duration,
    /// What was observed.
    pub reason: String,
}

/// The launcher's decision to give up on a silent rank.
#[derive(Debug, Clone, Copy)]
pub struct GivenUp {
    /// When the launcher gave up.
    pub at: Duration,
    /// The silence that led to the decision.
    pub silence: Silence,
}

/// The end of a process.
#[derive(Debug, Clone, Copy)]
pub struct Ended {
    /// When the process ended.
    pub at: Duration,
    /// How it ended.
    pub exit: Exit,
}

/// A rank's report of what it is doing.
#[derive(Debug, Clone, Copy)]
pub struct Report {
    /// When the report came.
    pub at: Duration,
    /// What the rank is doing.
    pub phase: Phase,
    /// Current epoch, from 1.
    pub epoch: usize,
    /// Steps since the start of the run.
    pub step: u64,
}
