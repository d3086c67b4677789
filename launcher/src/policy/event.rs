//! Events that the policy hears of, and decisions that it makes.

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
    /// The process ended with this exit status.
    Code(i32),
    /// This signal killed the process.
    Signal(i32),
    /// The kernel killed the process because memory ran out.
    OutOfMemory,
}

impl Exit {
    /// Returns whether the process saved a checkpoint and ended because it was asked to stop.
    pub fn is_stop(self) -> bool {
        self == Self::Code(ExitCode::Stopped as i32)
    }

    /// Returns whether the process ended well: it was done, or was asked to stop.
    pub fn is_good(self) -> bool {
        self.is_stop() || self == Self::Code(ExitCode::Done as i32)
    }
}

/// A signal that asks the launcher to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopSignal {
    /// SIGINT: Ctrl-C.
    Interrupt,
    /// SIGTERM: sent by `kill` and Slurm.
    Terminate,
    /// SIGUSR1: sent by Slurm before the time limit, if it was asked to.
    User1,
    /// SIGHUP: the terminal is gone.
    Hangup,
}

impl StopSignal {
    /// Returns the signal's name, such as `SIGINT`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Interrupt => "SIGINT",
            Self::Terminate => "SIGTERM",
            Self::User1 => "SIGUSR1",
            Self::Hangup => "SIGHUP",
        }
    }
}

/// Something that happened to a rank, a launcher or `mpirun`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A heartbeat of a rank: its process runs.
    Heartbeat {
        /// Rank that the event is about.
        rank: usize,
    },
    /// A rank said what it is doing.
    Reported {
        /// Rank that the event is about.
        rank: usize,
        /// What the rank does.
        phase: Phase,
        /// Current epoch, from 1.
        epoch: usize,
        /// Steps since the start of the run.
        step: u64,
    },
    /// A rank said that it is about to exit because of an error.
    Failed {
        /// Rank that the event is about.
        rank: usize,
        /// The exit code it announced.
        exit_code: u8,
        /// Error message of the rank.
        message: String,
        /// Which ranks it holds responsible.
        blame: Blame,
    },
    /// The handshake of a rank failed: it is incompatible with this launcher.
    Refused {
        /// Rank that the event is about.
        rank: usize,
        /// Why it does not fit.
        reason: String,
    },
    /// A rank's process ended.
    Exited {
        /// Rank that the event is about.
        rank: usize,
        /// How the process ended.
        exit: Exit,
        /// When the process ended. The event comes a little later, after the messages that the rank had sent
        /// before.
        at: Duration,
    },
    /// The launcher of a node is gone, so the state of its ranks is unknown.
    NodeLost {
        /// The ranks of that node.
        ranks: Range<usize>,
        /// Which node, and how its loss was noticed.
        reason: String,
    },
    /// `mpirun` was killed, without which ranks over MPI may not be able to go on.
    MpirunKilled {
        /// How `mpirun` ended.
        reason: String,
        /// When `mpirun` ended.
        at: Duration,
    },
    /// This launcher was asked to stop, by this signal.
    Signal(StopSignal),
    /// The launcher of another node was asked to stop.
    StopAsked {
        /// Signal and node, as text.
        reason: String,
    },
    /// The launcher of another node was asked again, to stop at once without waiting for a checkpoint.
    StopNow {
        /// Signal and node, as text.
        reason: String,
    },
    /// The deadline that the policy asked for has come.
    Tick,
}

/// What to do about an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Do nothing.
    Wait,
    /// Log the reason as a warning, and go on.
    Warn,
    /// Ask all ranks to save a checkpoint and exit.
    AskToStop,
    /// Kill all ranks' process groups.
    Kill,
    /// End with this outcome: all ranks are gone, or cannot be killed.
    Finish(Outcome),
}
