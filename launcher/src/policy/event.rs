//! What may happen, and what may be done about it.

use std::ops::Range;
use std::time::Duration;

use comm::Blame;
use comm::control::Phase;
use job::ExitCode;
use serde::{Deserialize, Serialize};

use super::Outcome;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Exit {
    /// With an exit status.
    Code(i32),
    /// Killed by a signal.
    Signal(i32),
    /// Killed by the kernel, since memory ran out.
    OutOfMemory,
}

impl Exit {
    /// Whether it saved a checkpoint and ended since somebody asked.
    pub fn is_stop(self) -> bool {
        self == Self::Code(ExitCode::Stopped as i32)
    }

    /// Whether it ended well: it was done, or asked to stop.
    pub fn is_good(self) -> bool {
        self.is_stop() || self == Self::Code(ExitCode::Done as i32)
    }
}

/// A signal that asks the launcher to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopSignal {
    /// Ctrl-C.
    Interrupt,
    /// What `kill` and Slurm send.
    Terminate,
    /// What Slurm is asked to send before the time limit.
    User1,
    /// The terminal is gone.
    Hangup,
}

impl StopSignal {
    /// The signal's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Interrupt => "SIGINT",
            Self::Terminate => "SIGTERM",
            Self::User1 => "SIGUSR1",
            Self::Hangup => "SIGHUP",
        }
    }
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A rank's process runs.
    Alive {
        /// Which rank.
        rank: usize,
    },
    /// A rank said what it is doing.
    Reported {
        /// Which rank.
        rank: usize,
        /// What it does.
        phase: Phase,
        /// In which epoch, from 1.
        epoch: usize,
        /// Steps since the start of the run.
        step: u64,
    },
    /// A rank said that it is about to exit because of an error.
    Failed {
        /// Which rank.
        rank: usize,
        /// The exit code it announced.
        exit_code: u8,
        /// What it said.
        message: String,
        /// Whom it holds responsible.
        blame: Blame,
    },
    /// A rank said hello in a way that does not fit this launcher.
    Refused {
        /// Which rank.
        rank: usize,
        /// Why.
        reason: String,
    },
    /// A rank's process ended.
    Exited {
        /// Which rank.
        rank: usize,
        /// How.
        exit: Exit,
        /// When; the event comes a little later, after what the rank had said before.
        at: Duration,
    },
    /// A node's launcher is gone, and nobody knows what becomes of its ranks.
    NodeLost {
        /// Its ranks.
        ranks: Range<usize>,
        /// Which node, and what was seen of it.
        reason: String,
    },
    /// Somebody has killed `mpirun`, without which ranks over MPI may not go on.
    MpirunKilled {
        /// How it ended.
        reason: String,
        /// When.
        at: Duration,
    },
    /// Somebody asked the launcher to stop.
    Signal(StopSignal),
    /// Somebody asked another node's launcher to stop.
    StopAsked {
        /// By which signal, and on which node.
        reason: String,
    },
    /// Somebody asked another node's launcher again, and will not wait for a checkpoint.
    StopNow {
        /// By which signal, and on which node.
        reason: String,
    },
    /// Time passed.
    Tick,
}

/// What to do now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Nothing.
    Wait,
    /// Say the reason, and go on.
    Warn,
    /// Ask all ranks to save a checkpoint and exit.
    AskToStop,
    /// Kill all ranks' process groups.
    Kill,
    /// All ranks are gone, or will not go: end like this.
    Finish(Outcome),
}
