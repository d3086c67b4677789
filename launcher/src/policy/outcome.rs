//! How a job ended, and which rank caused it.

use std::fmt;
use std::time::Duration;

use job::ExitCode;

use super::rank::Silence;
use super::{Announcement, Exit, Job, Rank};

/// How a job ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Trained to the end.
    Done,
    /// Stopped as asked, a checkpoint saved.
    Stopped,
    /// Killed at once as asked, nothing saved since the newest checkpoint.
    Interrupted,
    /// These ranks did not stop in time and were killed.
    Overdue(Vec<usize>),
    /// A rank failed.
    Failed(Failure),
    /// These ranks were killed and are still there.
    Unkillable {
        /// The ranks that are still there.
        ranks: Vec<usize>,
        /// How the job would have ended otherwise.
        after: Box<Outcome>,
    },
}

/// The failure that the others followed from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The rank that failed.
    pub rank: usize,
    /// When the failure happened or was noticed.
    pub at: Duration,
    /// What happened.
    pub cause: Cause,
    /// Exit code of the launcher because of this failure.
    pub exit_code: ExitCode,
}

/// What happened to a rank that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// The rank's process ended.
    Exited(Exit),
    /// The rank announced its failure, and its process was still there when all were killed.
    Announced,
    /// The rank is incompatible with this launcher, for this reason.
    Refused(String),
    /// The launcher of the rank's node is gone: which node, and how that was noticed.
    NodeLost(String),
    /// `mpirun` had been killed before: how it ended.
    MpirunKilled(String),
    /// The launcher gave up on the rank because it was silent.
    Silent(Silence),
    /// Another rank gave up on this one.
    Blamed {
        /// The rank that gave up.
        by: usize,
    },
    /// Another rank gave up on a peer that it cannot name, and this rank reported no failure.
    Mute {
        /// The rank that gave up.
        heard: usize,
    },
}

impl Outcome {
    /// Returns the exit code of the launcher.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Done => ExitCode::Done,
            Self::Stopped | Self::Interrupted => ExitCode::Stopped,
            Self::Overdue(_) => ExitCode::Hang,
            Self::Failed(failure) => failure.exit_code,
            Self::Unkillable { after, .. } => match after.exit_code() {
                ExitCode::Done | ExitCode::Stopped => ExitCode::Hang,
                code => code,
            },
        }
    }

    /// Returns the rank whose failure the others followed from; `None` if nothing failed, or no single rank
    /// caused it.
    pub fn failed_rank(&self) -> Option<usize> {
        match self {
            Self::Failed(Failure {
                cause: Cause::Silent(Silence::Apart(_)) | Cause::MpirunKilled(_),
                ..
            }) => None,
            Self::Failed(failure) => Some(failure.rank),
            Self::Unkillable { after, .. } => after.failed_rank(),
            _ => None,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done => f.write_str("all ranks are done"),
            Self::Stopped => f.write_str("all ranks stopped after saving a checkpoint"),
            Self::Interrupted => f.write_str("stopped at once, without a checkpoint"),
            Self::Overdue(ranks) => {
                write!(f, "these ranks did not stop when asked: {}", numbers(ranks))
            }
            Self::Failed(failure) => failure.fmt(f),
            Self::Unkillable { ranks, after } => {
                write!(
                    f,
                    "{after}; these ranks were killed but have not exited: {}",
                    numbers(ranks)
                )
            }
        }
    }
}

fn numbers(ranks: &[usize]) -> String {
    let ranks: Vec<_> = ranks.iter().map(ToString::to_string).collect();
    ranks.join(", ")
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rank = self.rank;
        match &self.cause {
            Cause::NodeLost(reason) => f.write_str(reason),
            Cause::MpirunKilled(reason) => write!(f, "{reason}; then rank {rank} failed"),
            Cause::Exited(exit) => write!(f, "rank {rank} failed: {exit}"),
            Cause::Announced => write!(f, "rank {rank} failed"),
            Cause::Refused(reason) => {
                write!(f, "rank {rank} is incompatible with this launcher: {reason}")
            }
            Cause::Silent(Silence::Frozen(time)) => {
                write!(f, "rank {rank} is frozen: it sent no heartbeat for {time:.0?}")
            }
            Cause::Silent(Silence::Quiet(time)) => {
                write!(f, "rank {rank} hangs: it reported nothing for {time:.0?}")
            }
            Cause::Silent(Silence::Apart(time)) => write!(
                f,
                "rank {rank} and all others run, but have not connected to each other for \
                 {time:.0?}"
            ),
            Cause::Blamed { by } => write!(f, "rank {rank} did not respond, as rank {by} reports"),
            Cause::Mute { heard } => write!(
                f,
                "rank {rank} seems to hang: rank {heard} waited for its peers, and rank {rank} \
                 reported nothing"
            ),
        }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Code(code) => write!(f, "exit status {code}"),
            Self::Signal(signal) => match signal_name(signal) {
                Some(name) => write!(f, "killed by {name}"),
                None => write!(f, "killed by signal {signal}"),
            },
            Self::OutOfMemory => f.write_str("killed by the kernel: out of memory"),
        }
    }
}

fn signal_name(signal: i32) -> Option<&'static str> {
    Some(match signal {
        libc::SIGHUP => "SIGHUP",
        libc::SIGINT => "SIGINT",
        libc::SIGQUIT => "SIGQUIT",
        libc::SIGILL => "SIGILL",
        libc::SIGTRAP => "SIGTRAP",
        libc::SIGABRT => "SIGABRT",
        libc::SIGBUS => "SIGBUS",
        libc::SIGFPE => "SIGFPE",
        libc::SIGKILL => "SIGKILL",
        libc::SIGUSR1 => "SIGUSR1",
        libc::SIGSEGV => "SIGSEGV",
        libc::SIGUSR2 => "SIGUSR2",
        libc::SIGPIPE => "SIGPIPE",
        libc::SIGALRM => "SIGALRM",
        libc::SIGTERM => "SIGTERM",
        libc::SIGXCPU => "SIGXCPU",
        libc::SIGXFSZ => "SIGXFSZ",
        libc::SIGSYS => "SIGSYS",
        _ => return None,
    })
}

impl Job {
    /// Returns how the job ended. To be called when all ranks are gone, or cannot be killed.
    pub(super) fn outcome(&self) -> Outcome {
        let stopped = |rank: &Rank| rank.exited.is_some_and(|ended| ended.exit.is_stop());
        // In the first two cases no rank had failed before all were killed; later failures follow from that.
        if self.interrupted {
            Outcome::Interrupted
        } else if !self.overdue.is_empty() {
            Outcome::Overdue(self.overdue.clone())
        } else if let Some(failure) = self.first_failure() {
            Outcome::Failed(failure)
        } else if self.ranks.iter().any(stopped) {
            Outcome::Stopped
        } else {
            Outcome::Done
        }
    }

    /// Formats `outcome` in one line, with the first line of the message of the rank that failed.
    pub fn in_a_line(&self, outcome: &Outcome) -> String {
        let rank = outcome.failed_rank();
        match rank.and_then(|rank| Some((rank, self.ranks[rank].said.as_ref()?))) {
            Some((rank, Announcement { message, .. })) => {
                let first = message.lines().next().unwrap_or_default();
                format!("{outcome}; rank {rank} said: {first}")
            }
            None => outcome.to_string(),
        }
    }
}
