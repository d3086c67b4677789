//! What the launcher has heard and seen of one rank.

use std::time::Duration;

use comm::Blame;
use comm::control::Phase;

use super::Exit;

/// What is known of a rank.
#[derive(Debug, Clone, Default)]
pub struct Rank {
    /// When it last said what it is doing, and what.
    pub report: Option<Report>,
    /// When its process last gave a sign of life, if it ever has.
    pub alive_at: Option<Duration>,
    /// That it failed, as it said itself.
    pub said: Option<Said>,
    /// Why it was refused.
    pub refused: Option<Told>,
    /// That the launcher gave up on it.
    pub given_up: Option<GivenUp>,
    /// How its node was lost.
    pub lost: Option<Told>,
    /// How its process ended.
    pub exited: Option<Ended>,
    /// The launcher killed it.
    pub killed: bool,
}

impl Rank {
    /// Whether its process may still be there.
    pub(super) const fn is_alive(&self) -> bool {
        self.exited.is_none() && self.lost.is_none()
    }

    /// What it last said that it is doing.
    pub const fn doing(&self) -> &'static str {
        match self.report {
            None => "not yet heard of",
            Some(report) => match report.phase {
                Phase::Connecting => "looking for its peers",
                Phase::LoadingData => "loading data",
                Phase::Preparing => "preparing the network",
                Phase::Training => "training",
                Phase::Evaluating => "evaluating",
                Phase::Saving => "saving a checkpoint",
            },
        }
    }

    /// When it was last heard of.
    pub(super) fn heard_at(&self) -> Duration {
        self.report.map_or(Duration::ZERO, |report| report.at)
    }

    /// Whether it is not connected yet.
    pub(super) fn looks_for_peers(&self) -> bool {
        self.report.is_some_and(|report| report.phase == Phase::Connecting)
    }

    /// Whether it has to say something again before long: steps do, and peers are looked for until a deadline.
    /// How long the other phases take depends on the data and the disk.
    pub(super) fn has_a_deadline(&self) -> bool {
        let doing = self.report.map(|report| report.phase);
        matches!(doing, Some(Phase::Connecting | Phase::Training))
    }

    /// Whether it does what may take any time.
    pub(super) fn takes_its_time(&self) -> bool {
        self.report.is_some() && !self.has_a_deadline()
    }
}

/// How a rank is silent, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Silence {
    /// It said nothing.
    Quiet(Duration),
    /// Its process gave no sign of life.
    Frozen(Duration),
    /// It and all others look for each other, and their processes run.
    Apart(Duration),
}

/// What a rank said when it failed.
#[derive(Debug, Clone)]
pub struct Said {
    /// When.
    pub at: Duration,
    /// The exit code that it announced.
    pub exit_code: u8,
    /// The message.
    pub message: String,
    /// Whom it held responsible.
    pub blame: Blame,
}

/// What is told of it by others.
#[derive(Debug, Clone)]
pub struct Told {
    /// When.
    pub at: Duration,
    /// What.
    pub reason: String,
}

/// That a rank was silent for too long.
#[derive(Debug, Clone, Copy)]
pub struct GivenUp {
    /// When the launcher gave up.
    pub at: Duration,
    /// Why.
    pub silence: Silence,
}

/// The end of a process.
#[derive(Debug, Clone, Copy)]
pub struct Ended {
    /// When.
    pub at: Duration,
    /// How.
    pub exit: Exit,
}

/// What a rank said it is doing.
#[derive(Debug, Clone, Copy)]
pub struct Report {
    /// When it said so.
    pub at: Duration,
    /// What it does.
    pub phase: Phase,
    /// In which epoch, from 1.
    pub epoch: usize,
    /// Steps since the start of the run.
    pub step: u64,
}
